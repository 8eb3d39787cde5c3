//! The ports of a system: the documented ones or free ones.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use uuid::Uuid;

use crate::MEMBERS;

/// Who listens where.
#[derive(Clone, Debug)]
pub struct Ports {
    pub postgres: u16,
    pub nats: u16,
    members: BTreeMap<&'static str, MemberPorts>,
}

/// The ports of one process.
#[derive(Clone, Copy, Debug)]
pub struct MemberPorts {
    pub api: u16,
    pub admin: u16,
}

impl Default for Ports {
    /// The documented ports. Those of PostgreSQL and NATS differ from their usual ones, which may
    /// be in use.
    fn default() -> Self {
        let members = MEMBERS.iter().map(|member| {
            let (api, admin) = (member.port, member.admin_port);
            (member.name, MemberPorts { api, admin })
        });
        Self {
            postgres: 15432,
            nats: 14222,
            members: members.collect(),
        }
    }
}

impl Ports {
    /// Ports that are not in use now.
    pub fn free() -> anyhow::Result<Self> {
        let members = MEMBERS.iter().map(|member| {
            let (api, admin) = (free_port()?, free_port()?);
            anyhow::Ok((member.name, MemberPorts { api, admin }))
        });
        Ok(Self {
            postgres: free_port()?,
            nats: free_port()?,
            members: members.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The ports of a process.
    pub fn get(&self, name: &str) -> anyhow::Result<MemberPorts> {
        let ports = self.members.get(name).copied();
        ports.with_context(|| format!("there is no process {name}"))
    }
}

/// A port that is not in use and was not handed out before, so that two systems of one test binary
/// never share one, even while a service is down. It lies below the range from which the operating
/// system chooses ports for outgoing connections.
pub fn free_port() -> anyhow::Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    // Test binaries run at the same time: each begins elsewhere.
    static START: LazyLock<u16> = LazyLock::new(|| Uuid::new_v4().as_fields().1 % COUNT);
    static HANDED_OUT: AtomicU16 = AtomicU16::new(0);
    loop {
        let nth = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        ensure!(nth < COUNT, "no port between 20000 and 32000 is free");
        let port = FIRST + (*START + nth) % COUNT;
        if is_free(port) {
            return Ok(port);
        }
    }
}

/// Fails when a process of this machine already listens on `port`, which `owner` needs.
pub(crate) fn ensure_free(port: u16, owner: &str) -> anyhow::Result<()> {
    ensure!(
        is_free(port),
        "port {port} of {owner} is in use: end the process that listens there, \
         or use other ports (`cargo sagacity up --free-ports`)"
    );
    Ok(())
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}
