//! Where the parts of a running system are.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    Certificates, Ports, certificates::postgres_url, databases, members, nats, postgres, state,
};

/// Addresses of a running system. `up` writes them to a file that the other commands read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// `http://host:port` of the gateway.
    pub gateway: String,
    /// `http://host:port` of psp-sandbox.
    pub provider: String,
    /// `nats://user:password@host:port` of the user who may do everything.
    pub nats: String,
    /// Database URLs, by process.
    pub databases: BTreeMap<String, String>,
    /// The same for the owners of their tables.
    pub owners: BTreeMap<String, String>,
    /// `http://host:port` of the admin listeners, by process; empty where they are not reachable.
    pub admin: BTreeMap<String, String>,
    /// Process ids, by process; empty where they do not run on this machine.
    pub pids: BTreeMap<String, u32>,
}

impl Endpoints {
    const FILE: &str = "stack.json";

    /// The system whose gateway is at `target` and that `up` did not start. Databases, broker and
    /// provider are expected on this machine at the default ports, where `docker-compose.e2e.yml`
    /// publishes them. Passwords come from the environment, under the names in `.env.example`.
    /// `certificates` are those of `docker-compose.tls.yml`.
    pub fn for_target(target: &str, certificates: Option<&Certificates>) -> anyhow::Result<Self> {
        let ports = Ports::default();
        let url = |service: &str, role: &str, setting: &str| {
            let setting = format!("{}_{setting}", service.to_uppercase());
            let password = std::env::var(setting);
            let password = password.unwrap_or_else(|_| postgres::PASSWORD.to_owned());
            let server = format!("127.0.0.1:{}", ports.postgres);
            let url = format!("postgres://{role}:{password}@{server}/{service}");
            let url = postgres_url(certificates, service, url);
            (service.to_owned(), url)
        };
        let services = || members::with_database().map(|member| member.name);
        let of_services = services().map(|service| url(service, service, "DB_PASSWORD"));
        let of_owners =
            services().map(|service| url(service, &databases::owner(service), "DB_OWNER_PASSWORD"));
        let broker_password = std::env::var("OPERATOR_NATS_PASSWORD");
        let broker_password = broker_password.unwrap_or_else(|_| nats::PASSWORD.to_owned());
        Ok(Self {
            gateway: target.trim_end_matches('/').to_owned(),
            provider: local_url(ports.get("psp-sandbox")?.api),
            nats: nats::for_operator(
                &nats::url(nats::scheme(certificates), ports.nats),
                &broker_password,
                certificates,
            ),
            databases: of_services.collect(),
            owners: of_owners.collect(),
            admin: BTreeMap::new(),
            pids: BTreeMap::new(),
        })
    }

    /// Writes the addresses into the state directory, in one step: a reader sees a whole file.
    pub fn write(&self, state: &Path) -> anyhow::Result<()> {
        let path = state.join(Self::FILE);
        let incomplete = state.join(format!("{}.new", Self::FILE));
        std::fs::write(&incomplete, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", incomplete.display()))?;
        std::fs::rename(&incomplete, &path).with_context(|| format!("write {}", path.display()))
    }

    /// Reads what `up` has written.
    pub fn read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(Self::FILE);
        // A system that was killed leaves the file behind.
        ensure!(
            state::is_claimed(state),
            "no running system uses {}; start one with `cargo sagacity up`",
            state.display()
        );
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "the system is not ready: {} does not exist yet",
                path.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Removes the file, because the system has stopped.
    pub fn remove(state: &Path) {
        let _already_removed = std::fs::remove_file(state.join(Self::FILE));
    }
}

/// The address of a service's gRPC on this machine.
pub(crate) fn service_url(certificates: Option<&Certificates>, port: u16) -> String {
    let scheme = match certificates {
        Some(_) => "https",
        None => "http",
    };
    format!("{scheme}://127.0.0.1:{port}")
}

/// An HTTP address on this machine.
pub(crate) fn local_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
