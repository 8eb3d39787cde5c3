//! Where the parts of a running system are.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{Ports, postgres};

/// The processes of the system, in the order in which they start.
pub const SERVICES: [&str; 6] = [
    "psp-sandbox",
    "inventory",
    "payment",
    "notification",
    "order",
    "gateway",
];

/// Addresses of a running system; `up` writes them to a file for the other commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// `http://host:port` of the gateway.
    pub gateway: String,
    /// `http://host:port` of psp-sandbox.
    pub provider: String,
    /// `nats://host:port`.
    pub nats: String,
    /// Database address by service: order, payment, inventory, notification.
    pub databases: BTreeMap<String, String>,
    /// `http://host:port` of the admin listeners, by process.
    pub admin: BTreeMap<String, String>,
    /// Process ids, by process, when they run on this machine.
    pub pids: BTreeMap<String, u32>,
}

impl Endpoints {
    const FILE: &str = "stack.json";

    /// Of a system that somebody else started, whose gateway is at `target`: databases, broker and
    /// provider are expected on this machine at the default ports, as `docker-compose.e2e.yml`
    /// publishes them. Passwords come from the environment under the names that `.env.example`
    /// gives.
    pub fn of_target(target: &str) -> Self {
        let ports = Ports::default();
        let database = |role: &str| {
            let password = std::env::var(format!("{}_DB_PASSWORD", role.to_uppercase()));
            let password = password.unwrap_or_else(|_| postgres::PASSWORD.to_owned());
            (
                role.to_owned(),
                format!(
                    "postgres://{role}:{password}@127.0.0.1:{}/{role}",
                    ports.postgres
                ),
            )
        };
        Self {
            gateway: target.trim_end_matches('/').to_owned(),
            provider: format!("http://127.0.0.1:{}", ports.psp_sandbox),
            nats: format!("nats://127.0.0.1:{}", ports.nats),
            databases: ["order", "payment", "inventory", "notification"]
                .map(database)
                .into(),
            admin: BTreeMap::new(),
            pids: BTreeMap::new(),
        }
    }

    /// Writes them into the state directory.
    pub fn write(&self, state: &Path) -> anyhow::Result<()> {
        let path = state.join(Self::FILE);
        let half = state.join(format!("{}.new", Self::FILE));
        std::fs::write(&half, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", half.display()))?;
        std::fs::rename(&half, &path).with_context(|| format!("write {}", path.display()))
    }

    /// Reads what the last `up` wrote.
    pub fn read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(Self::FILE);
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "nothing runs here ({} is not there): start it with `cargo sagacity up`",
                path.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Says that nothing runs any more.
    pub fn remove(state: &Path) {
        let _gone = std::fs::remove_file(state.join(Self::FILE));
    }
}
