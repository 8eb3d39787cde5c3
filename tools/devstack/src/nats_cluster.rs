//! Three nats-servers that keep the streams together: one of them may fail.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::{Certificates, Logs, NatsServer, Reaper, free_port, nats};

const SERVERS: usize = 3;

/// A running cluster. Dropping it kills every server.
#[derive(Debug)]
pub struct NatsCluster {
    directory: PathBuf,
    certificates: Option<Certificates>,
    /// For clients, and for the other servers.
    ports: Vec<(u16, u16)>,
    servers: Vec<Option<NatsServer>>,
    logs: Logs,
    reaper: Reaper,
}

impl NatsCluster {
    /// Starts the servers, each with a directory of its own in `directory`. They elect their leader
    /// afterwards.
    pub async fn start(
        directory: &Path,
        certificates: Option<&Certificates>,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        let mut cluster = Self {
            directory: directory.to_owned(),
            certificates: certificates.cloned(),
            ports: Vec::new(),
            servers: Vec::new(),
            logs: logs.clone(),
            reaper: reaper.clone(),
        };
        for _ in 0..SERVERS {
            cluster.ports.push((free_port()?, free_port()?));
            cluster.servers.push(None);
        }
        for index in 0..SERVERS {
            cluster.start_server(index).await?;
        }
        Ok(cluster)
    }

    /// The addresses of all servers, separated by commas.
    pub fn url(&self) -> String {
        let urls = self
            .ports
            .iter()
            .map(|(port, _)| nats::url(nats::scheme(self.certificates.as_ref()), *port));
        urls.collect::<Vec<_>>().join(",")
    }

    /// The name of a server in the answers of JetStream.
    pub fn name(index: usize) -> String {
        format!("nats-{index}")
    }

    /// Names and process ids of the servers that run.
    pub fn pids(&self) -> impl Iterator<Item = (String, u32)> {
        let servers = self.servers.iter().enumerate();
        servers.filter_map(|(index, server)| Some((Self::name(index), server.as_ref()?.pid())))
    }

    /// Kills a server with SIGKILL.
    pub async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let server = self.servers.get_mut(index).and_then(Option::take);
        let server = server.with_context(|| format!("{} is not running", Self::name(index)))?;
        server.kill().await
    }

    /// Starts the servers that have ended, with their directories, and returns their names.
    pub async fn restart_ended(&mut self) -> anyhow::Result<Vec<String>> {
        let mut restarted = Vec::new();
        for index in 0..SERVERS {
            let server = self.servers.get_mut(index).and_then(Option::as_mut);
            if server.is_none_or(|server| server.has_ended()) {
                self.start_server(index).await?;
                restarted.push(Self::name(index));
            }
        }
        Ok(restarted)
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        for server in self.servers.into_iter().flatten() {
            server.stop().await?;
        }
        Ok(())
    }

    async fn start_server(&mut self, index: usize) -> anyhow::Result<()> {
        let name = Self::name(index);
        let routes = self
            .ports
            .iter()
            .map(|(_, route)| format!("nats://127.0.0.1:{route}"));
        let routes = routes.collect::<Vec<_>>().join(", ");
        let (port, route) = self.ports[index];
        let tls = self.certificates.as_ref();
        let tls = tls.map_or_else(String::new, Certificates::for_nats_server);
        let cluster = format!(
            "server_name: {name}\n\
             cluster {{ name: sagacity, listen: 127.0.0.1:{route}, routes: [{routes}]\n{tls}}}\n\
             {tls}{}",
            nats::users()?
        );
        let directory = self.directory.join(&name);
        let server =
            NatsServer::start_with(&directory, port, &cluster, &self.logs, &self.reaper).await?;
        self.servers[index] = Some(server);
        Ok(())
    }
}
