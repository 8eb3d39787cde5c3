//! A private nats-server with JetStream in a directory of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{bail, ensure};
use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::{Logs, Process, Reaper, ports, process::Spec, tools};

/// The server.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    port: u16,
    spec: Spec,
}

impl NatsServer {
    /// Starts a server that keeps its streams in `directory`, and waits until it answers.
    pub async fn start(
        directory: &Path,
        port: u16,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        let mut arguments = vec![
            "--addr".into(),
            "127.0.0.1".into(),
            "--port".into(),
            port.to_string().into(),
        ];
        arguments.extend(["--jetstream".into(), "--store_dir".into(), directory.into()]);
        let spec = Spec {
            name: "nats".to_owned(),
            program: tools::nats_server()?,
            arguments,
            last_signal: "TERM",
            ..Spec::default()
        };
        ensure!(
            ports::is_free(port),
            "port {port}, wanted for NATS, is taken by another process"
        );
        Self::spawn(spec, port, logs, reaper).await
    }

    async fn spawn(spec: Spec, port: u16, logs: &Logs, reaper: &Reaper) -> anyhow::Result<Self> {
        let process = Process::start(&spec, logs, reaper)?;
        let mut server = Self {
            process,
            port,
            spec,
        };
        for _ in 0..600 {
            if let Some(status) = server.process.ended() {
                bail!("nats-server ended with {status}; its log says why");
            }
            if TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
                .await
                .is_ok()
            {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("nats-server did not answer within 12 s; its log says why")
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server with SIGKILL; start it again with [`NatsServer::start`] in the same
    /// directory.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    /// Kills the server with SIGKILL and starts it again.
    pub async fn crash_and_restart(self, logs: &Logs, reaper: &Reaper) -> anyhow::Result<Self> {
        let Self {
            process,
            port,
            spec,
        } = self;
        process.kill().await?;
        Self::spawn(spec, port, logs, reaper).await
    }

    /// Stops the server.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.process.stop(Signal::TERM).await
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
