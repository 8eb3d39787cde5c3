//! One service as a process, for the tests of its crate.

use std::{path::PathBuf, process::ExitStatus};

use anyhow::Context as _;
use futures::future::{BoxFuture, FutureExt as _};
use rustix::process::Signal;

use super::logs;
use crate::{Process, Reaper, endpoints::local_url, free_port, process::Spec};

/// A running service, on ports of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    process: Process,
    /// Its API: `http://host:port`.
    pub url: String,
    /// Its health and metrics: `http://host:port`.
    pub admin: String,
}

impl Program {
    /// Starts `program` (`env!("CARGO_BIN_EXE_...")`) with these settings and waits until it is
    /// ready.
    pub fn start<'a>(
        program: &'a str,
        settings: &'a [(&'a str, &'a str)],
    ) -> BoxFuture<'a, anyhow::Result<Self>> {
        async move {
            let mut started = Self::spawn(program, settings)?;
            started.wait_until_ready().await?;
            Ok(started)
        }
        .boxed()
    }

    /// Starts `program` without waiting until it is ready.
    pub fn spawn(program: &str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let (port, admin) = (free_port()?, free_port()?);
        let (listen, admin_listen) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{admin}"));
        let listen = [("LISTEN", &*listen), ("ADMIN_LISTEN", &admin_listen)];
        let spec = spec(program, &[&listen, settings].concat())?;
        Ok(Self {
            process: Process::start(&spec, &logs(&spec.name), &Reaper::new()?)?,
            url: local_url(port),
            admin: local_url(admin),
        })
    }

    /// Runs a task of `program` to its end.
    pub fn run<'a>(
        program: &'a str,
        task: &'a str,
        settings: &'a [(&'a str, &'a str)],
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            let mut spec = spec(program, settings)?;
            spec.arguments = vec![task.into()];
            let process = Process::start(&spec, &logs(&spec.name), &Reaper::new()?)?;
            process.complete().await
        }
        .boxed()
    }

    /// Waits until `/readyz` answers 200.
    pub fn wait_until_ready(&mut self) -> BoxFuture<'_, anyhow::Result<()>> {
        let Self { process, admin, .. } = self;
        async { process.wait_until_ready(admin).await.map(drop) }.boxed()
    }

    /// Kills the process with SIGKILL.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    /// Sends SIGTERM without waiting for the end.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::TERM)
    }

    /// Waits until the process has ended; kills it after a minute, and fails.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.wait().await
    }
}

fn spec(program: &str, settings: &[(&str, &str)]) -> anyhow::Result<Spec> {
    let program = PathBuf::from(program);
    let name = program.file_name().and_then(|name| name.to_str());
    let settings = settings
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()));
    Ok(Spec {
        name: name.context("a program has a name")?.to_owned(),
        environment: settings.collect(),
        program,
        last_signal: "TERM",
        ..Spec::default()
    })
}
