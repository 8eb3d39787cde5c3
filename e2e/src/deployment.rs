//! Where a system runs: in processes of its own, or behind `SAGACITY_TARGET` in the containers of
//! `docker compose` or in a Kubernetes cluster.

use std::path::Path;

use anyhow::{Context as _, bail};
use devstack::{Endpoints, Logs, Stack};

use crate::{Compose, Kubernetes};

/// The parts of a system, to be killed and restarted one by one.
#[derive(Debug)]
pub enum Deployment {
    /// One process per service, and servers of its own.
    Processes(Box<Stack>),
    /// `docker compose`.
    Containers(Compose),
    Cluster(Kubernetes),
}

impl Deployment {
    /// The addresses of all parts.
    pub fn endpoints(&self) -> &Endpoints {
        match self {
            Self::Processes(stack) => stack.endpoints(),
            Self::Containers(compose) => compose.endpoints(),
            Self::Cluster(cluster) => cluster.endpoints(),
        }
    }

    pub fn containers(&mut self) -> anyhow::Result<&mut Compose> {
        match self {
            Self::Containers(compose) => Ok(compose),
            Self::Processes(_) | Self::Cluster(_) => {
                bail!("only for containers: set SAGACITY_TARGET, and no KUBECONFIG")
            }
        }
    }

    /// Starts a service without waiting for it.
    pub async fn start_service(&mut self, service: &'static str) -> anyhow::Result<()> {
        match self {
            Self::Processes(stack) => stack.start_service(service),
            Self::Containers(compose) => compose.start(service).await,
            Self::Cluster(cluster) => cluster.start(service).await,
        }
    }

    /// Waits until a service is ready.
    pub async fn wait_until_ready(&mut self, service: &str) -> anyhow::Result<()> {
        match self {
            Self::Processes(stack) => stack.wait_until_ready(service).await,
            Self::Containers(compose) => compose.wait_until_ready(service).await,
            Self::Cluster(cluster) => cluster.wait_until_ready(service).await,
        }
    }

    /// Kills a service with SIGKILL.
    pub async fn kill(&mut self, service: &str) -> anyhow::Result<()> {
        match self {
            Self::Processes(stack) => stack.kill(service).await,
            Self::Containers(compose) => compose.kill(service).await,
            Self::Cluster(cluster) => cluster.kill(service).await,
        }
    }

    /// Stops a service with SIGTERM and waits for its end.
    pub async fn stop_service(&mut self, service: &str) -> anyhow::Result<()> {
        match self {
            Self::Processes(stack) => stack.stop_service(service).await,
            Self::Containers(compose) => compose.stop(&[service]).await,
            Self::Cluster(cluster) => cluster.stop(service).await,
        }
    }

    /// Kills the broker with SIGKILL and restarts it.
    pub async fn restart_broker(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Processes(stack) => stack.restart_broker().await,
            Self::Containers(compose) => {
                compose.kill("nats").await?;
                compose.start("nats").await
            }
            Self::Cluster(cluster) => cluster.restart_broker().await,
        }
    }

    /// Kills the broker, deletes its disk, and starts it again.
    pub async fn restart_broker_without_its_disk(&mut self) -> anyhow::Result<()> {
        let stack = self.processes()?;
        let delete = |store: &Path| std::fs::remove_dir_all(store);
        stack.restart_broker_after(delete).await
    }

    /// Ends PostgreSQL without a checkpoint, as a crash does, and starts it again.
    pub async fn restart_database(&mut self) -> anyhow::Result<()> {
        self.processes()?.restart_database().await
    }

    pub fn processes(&mut self) -> anyhow::Result<&mut Stack> {
        match self {
            Self::Processes(stack) => Ok(stack),
            Self::Containers(_) | Self::Cluster(_) => {
                bail!("only for processes: unset SAGACITY_TARGET")
            }
        }
    }

    /// What a service has logged.
    pub async fn log(&self, service: &str) -> anyhow::Result<String> {
        match self {
            Self::Containers(compose) => compose.logs(service).await,
            Self::Cluster(cluster) => cluster.logs(service).await,
            Self::Processes(stack) => match stack.logs() {
                Logs::Directory(directory) => {
                    let path = directory.join(format!("{service}.log"));
                    std::fs::read_to_string(&path)
                        .with_context(|| format!("read {}", path.display()))
                }
                Logs::Lines(_) => bail!("the log of {service} was not kept"),
            },
        }
    }

    /// Stops the processes; containers and pods keep running for the next scenario.
    pub async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Processes(stack) => stack.stop().await,
            Self::Containers(compose) => {
                compose.leave_clean();
                Ok(())
            }
            Self::Cluster(cluster) => {
                cluster.leave_clean();
                Ok(())
            }
        }
    }

    /// Stops the processes; the next scenario replaces containers and pods.
    pub async fn abandon(self) -> anyhow::Result<()> {
        match self {
            Self::Processes(stack) => stack.stop().await,
            Self::Containers(_) | Self::Cluster(_) => Ok(()),
        }
    }
}
