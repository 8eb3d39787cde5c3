//! Ports: the default ones, free ones, and who is in the way.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// The ports of a stack; each process also has an admin port.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ports {
    pub postgres: u16,
    pub nats: u16,
    pub gateway: u16,
    pub gateway_admin: u16,
    pub order: u16,
    pub order_admin: u16,
    pub payment: u16,
    pub payment_admin: u16,
    pub inventory: u16,
    pub inventory_admin: u16,
    pub notification: u16,
    pub notification_admin: u16,
    pub psp_sandbox: u16,
    pub psp_sandbox_admin: u16,
}

impl Default for Ports {
    /// The documented ones; PostgreSQL and NATS beside their usual ports, which may be in use.
    fn default() -> Self {
        Self {
            postgres: 15432,
            nats: 14222,
            gateway: 8080,
            gateway_admin: 9080,
            order: 50051,
            order_admin: 9081,
            payment: 50052,
            payment_admin: 9082,
            inventory: 50053,
            inventory_admin: 9083,
            notification: 50054,
            notification_admin: 9084,
            psp_sandbox: 12111,
            psp_sandbox_admin: 9085,
        }
    }
}

impl Ports {
    /// All free now.
    pub fn free() -> anyhow::Result<Self> {
        Ok(Self {
            postgres: free_port()?,
            nats: free_port()?,
            gateway: free_port()?,
            gateway_admin: free_port()?,
            order: free_port()?,
            order_admin: free_port()?,
            payment: free_port()?,
            payment_admin: free_port()?,
            inventory: free_port()?,
            inventory_admin: free_port()?,
            notification: free_port()?,
            notification_admin: free_port()?,
            psp_sandbox: free_port()?,
            psp_sandbox_admin: free_port()?,
        })
    }

    /// Listening port and admin port of a service or of `psp-sandbox`.
    pub fn of(&self, service: &str) -> Option<(u16, u16)> {
        match service {
            "gateway" => Some((self.gateway, self.gateway_admin)),
            "order" => Some((self.order, self.order_admin)),
            "payment" => Some((self.payment, self.payment_admin)),
            "inventory" => Some((self.inventory, self.inventory_admin)),
            "notification" => Some((self.notification, self.notification_admin)),
            "psp-sandbox" => Some((self.psp_sandbox, self.psp_sandbox_admin)),
            _ => None,
        }
    }
}

/// A port that nobody listens on and that was not handed out before: two stacks of one test binary
/// never share one, not even while a service is down. Below the range that the system hands out by
/// itself.
pub fn free_port() -> anyhow::Result<u16> {
    const RANGE: std::ops::Range<u16> = 20_000..32_000;
    static FIRST: LazyLock<u16> = LazyLock::new(|| rand::random_range(0..RANGE.len() as u16));
    static HANDED_OUT: AtomicU16 = AtomicU16::new(0);
    loop {
        let nth = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        ensure!(
            nth < RANGE.len() as u16,
            "no free port between 20000 and 32000"
        );
        let port = RANGE.start + (*FIRST + nth) % RANGE.len() as u16;
        if is_free(port) {
            return Ok(port);
        }
    }
}

/// Whether nobody listens on a port of this machine.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}
