//! A shop in containers: `docker compose` with the files of this repository.

use std::{
    ffi::OsStr,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use devstack::Endpoints;
use tokio::process::Command;

/// Names the gateway of containers that the scenarios should use instead of processes of their own.
pub(crate) const TARGET: &str = "SAGACITY_TARGET";

/// How long one command may take; stopping everything takes the longest.
const DEADLINE: Duration = Duration::from_secs(180);

/// Somebody has left the containers other than a clean shop would: the next scenario starts with
/// new ones.
static TAMPERED: AtomicBool = AtomicBool::new(false);

/// The containers; one scenario at a time uses them.
#[derive(Debug)]
pub struct Compose {
    endpoints: Endpoints,
    /// Environment that differs from the defaults.
    settings: Vec<(String, String)>,
    /// Numbers of replicas that differ from one.
    scale: Vec<String>,
}

impl Compose {
    /// The containers behind `target`, all of them up, with these settings. With `fresh` nothing of
    /// earlier scenarios is left: neither orders nor logs.
    pub async fn open(
        target: &str,
        settings: &[(&str, &str, &str)],
        fresh: bool,
    ) -> anyhow::Result<Self> {
        let settings = settings
            .iter()
            .map(|(_, name, value)| (name.to_string(), value.to_string()))
            .collect();
        let compose = Self {
            endpoints: Endpoints::of_target(target),
            settings,
            scale: Vec::new(),
        };
        if TAMPERED.swap(true, Ordering::Relaxed) || fresh {
            compose
                .run(&["down", "--volumes", "--timeout", "10"])
                .await?;
        }
        compose.up(&["--wait"]).await?;
        Ok(compose)
    }

    /// Says that the next scenario may go on with these containers.
    pub fn leave_clean(&self) {
        TAMPERED.store(!self.scale.is_empty(), Ordering::Relaxed);
    }

    /// Where everything is.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Starts what does not run of a service, without waiting for it.
    pub async fn start(&self, service: &str) -> anyhow::Result<()> {
        self.up(&["--no-deps", service]).await
    }

    /// Waits until a service is healthy.
    pub async fn wait_until_ready(&self, service: &str) -> anyhow::Result<()> {
        self.up(&["--no-deps", "--wait", service]).await
    }

    /// Kills a service with SIGKILL.
    pub async fn kill(&self, service: &str) -> anyhow::Result<()> {
        self.run(&["kill", "--signal", "KILL", service])
            .await
            .map(drop)
    }

    /// Kills the first of several replicas of a service.
    pub async fn kill_one(&self, service: &str) -> anyhow::Result<()> {
        let ids = self.run(&["ps", "--quiet", service]).await?;
        let first = ids
            .lines()
            .next()
            .with_context(|| format!("no container of {service}"))?;
        let killed = Command::new("docker")
            .args(["kill", first])
            .stdout(Stdio::null())
            .status()
            .await?;
        ensure!(killed.success(), "docker kill {first}: {killed}");
        Ok(())
    }

    /// Asks services to end and waits until they have; all when none is named.
    pub async fn stop(&self, services: &[&str]) -> anyhow::Result<()> {
        self.run(&[&["stop"], services].concat()).await.map(drop)
    }

    /// Runs so many replicas of a service, and waits until they are healthy.
    pub async fn scale(&mut self, service: &str, replicas: usize) -> anyhow::Result<()> {
        let one = format!("--scale={service}=");
        self.scale.retain(|scale| !scale.starts_with(&one));
        if replicas != 1 {
            self.scale.push(format!("{one}{replicas}"));
        }
        self.up(&["--wait"]).await
    }

    /// Brings everything up that is not.
    pub async fn up(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let scale: Vec<&str> = self.scale.iter().map(String::as_str).collect();
        self.run(
            &[
                &["up", "--detach", "--no-build"],
                scale.as_slice(),
                arguments,
            ]
            .concat(),
        )
        .await
        .map(drop)
    }

    /// What a service has logged since it was made.
    pub async fn logs(&self, service: &str) -> anyhow::Result<String> {
        self.run(&["logs", "--no-log-prefix", "--no-color", service])
            .await
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let root = devstack::workspace();
        let mut docker = Command::new("docker");
        docker
            .args([
                "compose",
                "--file",
                "docker-compose.yml",
                "--file",
                "docker-compose.e2e.yml",
            ])
            .args(arguments);
        docker
            .current_dir(root)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        docker.envs(
            self.settings
                .iter()
                .map(|(name, value)| (OsStr::new(name), OsStr::new(value))),
        );
        let output = tokio::time::timeout(DEADLINE, docker.output());
        let output = output
            .await
            .with_context(|| format!("docker compose {arguments:?} hangs"))?;
        let output = output.context("run docker compose")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "docker compose {arguments:?}: {}",
            said.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
