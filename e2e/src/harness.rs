//! Where the scenarios of one run get their systems from.

use std::sync::Arc;

use devstack::test::{self, System};

use crate::{Compose, Deployment, Shop, compose::State};

/// The environment variable with the gateway of the containers to use instead of processes.
const TARGET: &str = "SAGACITY_TARGET";

/// Opens a system for each scenario. The clones of one harness share the containers.
#[derive(Clone, Debug)]
pub struct Harness {
    target: Option<String>,
    /// The containers outlive the scenarios, so that what one leaves behind concerns the next.
    state: Arc<State>,
}

impl Harness {
    /// Uses the containers behind `SAGACITY_TARGET`; without it, processes.
    pub fn from_env() -> Self {
        let target = std::env::var(TARGET).ok();
        Self {
            target: target.filter(|target| !target.is_empty()),
            state: Arc::default(),
        }
    }

    pub fn uses_containers(&self) -> bool {
        self.target.is_some()
    }

    /// Opens a system; `settings` are (service, name, value). In containers it may hold the settled
    /// orders of earlier scenarios.
    pub async fn open(&self, name: &str, settings: &[(&str, &str, &str)]) -> anyhow::Result<Shop> {
        Shop::new(self.deploy(name, settings, false).await?).await
    }

    /// Opens a system without any order.
    pub async fn open_new(&self, name: &str) -> anyhow::Result<Shop> {
        Shop::new(self.deploy(name, &[], true).await?).await
    }

    /// Opens a system of processes with a PostgreSQL server of its own, which may be crashed.
    pub async fn open_with_own_database(&self, name: &str) -> anyhow::Result<Shop> {
        let system = System {
            own_server: true,
            ..System::default()
        };
        Self::open_processes(name, system).await
    }

    /// Opens a system of processes.
    pub async fn open_processes(name: &str, system: System<'_>) -> anyhow::Result<Shop> {
        let stack = test::stack(name, system).await?;
        Shop::new(Deployment::Processes(Box::new(stack))).await
    }

    async fn deploy(
        &self,
        name: &str,
        settings: &[(&str, &str, &str)],
        fresh: bool,
    ) -> anyhow::Result<Deployment> {
        let Some(target) = &self.target else {
            let system = System {
                settings,
                ..System::default()
            };
            let stack = test::stack(name, system).await?;
            return Ok(Deployment::Processes(Box::new(stack)));
        };
        let state = Arc::clone(&self.state);
        let compose = Compose::open(target, state, settings, fresh).await?;
        Ok(Deployment::Containers(compose))
    }
}
