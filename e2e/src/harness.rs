//! Where the scenarios of one run get their systems from.

use std::sync::Arc;

use devstack::test::{self, System};

use crate::{Compose, Deployment, Kubernetes, Shop, compose, kubernetes};

/// The environment variable with the gateway of a system to use instead of processes: in
/// containers, or in the cluster of `KUBECONFIG` if that is set.
const TARGET: &str = "SAGACITY_TARGET";

/// Scenarios have one customer, who sends more than a real one, and a machine that may be slow.
const SETTINGS: [(&str, &str, &str); 4] = [
    ("gateway", "CUSTOMER_REQUESTS_PER_SECOND", "0"),
    ("gateway", "API_KEY_REQUESTS_PER_SECOND", "0"),
    ("gateway", "ADDRESS_REQUESTS_PER_SECOND", "0"),
    ("order", "ORDER_DEADLINE_SECONDS", "150"),
];

/// Opens a system for each scenario. The clones of one harness share the containers or the cluster.
#[derive(Clone, Debug)]
pub struct Harness(Place);

/// Where systems run. Containers and pods outlive the scenarios, so that what one leaves behind
/// concerns the next.
#[derive(Clone, Debug)]
enum Place {
    Processes,
    Containers(String, Arc<compose::State>),
    Cluster(String, Arc<kubernetes::State>),
}

impl Harness {
    /// Uses the containers or the cluster behind `SAGACITY_TARGET`; without it, processes.
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self(match (set(TARGET), set("KUBECONFIG")) {
            (None, _) => Place::Processes,
            (Some(target), None) => Place::Containers(target, Arc::default()),
            (Some(target), Some(_)) => Place::Cluster(target, Arc::default()),
        })
    }

    pub fn uses_processes(&self) -> bool {
        matches!(self.0, Place::Processes)
    }

    pub fn uses_containers(&self) -> bool {
        matches!(self.0, Place::Containers(..))
    }

    /// Opens a system; `settings` are (service, name, value). Without other settings the gateway
    /// accepts any number of requests, and an order has 150 seconds. In containers or a cluster it
    /// may hold the settled orders of earlier scenarios.
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
        Shop::new(Self::deploy_processes(name, system).await?).await
    }

    async fn deploy_processes(name: &str, system: System<'_>) -> anyhow::Result<Deployment> {
        let settings = [&SETTINGS, system.settings].concat();
        let system = System {
            settings: &settings,
            ..system
        };
        let stack = test::stack(name, system).await?;
        Ok(Deployment::Processes(Box::new(stack)))
    }

    async fn deploy(
        &self,
        name: &str,
        settings: &[(&str, &str, &str)],
        fresh: bool,
    ) -> anyhow::Result<Deployment> {
        let with_defaults = [&SETTINGS, settings].concat();
        match &self.0 {
            Place::Processes => {
                let system = System {
                    settings,
                    ..System::default()
                };
                Self::deploy_processes(name, system).await
            }
            Place::Containers(target, state) => {
                let compose =
                    Compose::open(target, Arc::clone(state), &with_defaults, fresh).await?;
                Ok(Deployment::Containers(compose))
            }
            Place::Cluster(target, state) => {
                let cluster =
                    Kubernetes::open(target, Arc::clone(state), &with_defaults, fresh).await?;
                Ok(Deployment::Cluster(cluster))
            }
        }
    }
}
