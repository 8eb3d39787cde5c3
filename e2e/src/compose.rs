//! A system in containers: `docker compose` with the files of this repository, encrypted.

use std::{
    ffi::OsStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use devstack::{Certificates, Endpoints};
use tokio::process::Command;

use crate::command::output;

/// The label of containers outside the project: `down` does not remove them.
const EXTRA: &str = "sagacity=extra";

/// How a scenario has left the containers for the next one.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// A scenario has begun and has not reported that the next one can use the containers: it
    /// failed, or it left them as no audit would accept.
    is_tampered: AtomicBool,
}

/// Runs a command of Docker and returns its output.
pub async fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let mut docker = Command::new("docker");
    docker.args(arguments);
    output(docker, &format!("docker {arguments:?}")).await
}

/// Removes what [`Compose::run_like`] has started, and a scenario that failed has left.
async fn remove_extra() -> anyhow::Result<()> {
    let left = docker(&[
        "ps",
        "--all",
        "--quiet",
        "--filter",
        &format!("label={EXTRA}"),
    ])
    .await?;
    for container in left.lines() {
        docker(&["rm", "--force", container]).await?;
    }
    Ok(())
}

/// Those that `docker-compose.tls.yml` mounts.
fn certificates() -> Certificates {
    Certificates::at(devstack::workspace().join("target/certificates"))
}

/// The containers. One scenario at a time uses them.
#[derive(Debug)]
pub struct Compose {
    endpoints: Endpoints,
    state: Arc<State>,
    /// Environment variables that differ from the defaults.
    settings: Vec<(String, String)>,
    /// Replica counts that differ from one.
    scale: Vec<String>,
}

impl Compose {
    /// Starts the containers behind `target` with these settings. With `fresh` no orders and no
    /// logs of earlier scenarios are left.
    pub(crate) async fn open(
        target: &str,
        state: Arc<State>,
        settings: &[(&str, &str, &str)],
        fresh: bool,
    ) -> anyhow::Result<Self> {
        let settings = settings
            .iter()
            .map(|(_, name, value)| (name.to_string(), value.to_string()))
            .collect();
        let compose = Self {
            endpoints: Endpoints::for_target(target, Some(&certificates()))?,
            state,
            settings,
            scale: Vec::new(),
        };
        let is_tampered = compose.state.is_tampered.swap(true, Ordering::Relaxed);
        if is_tampered || fresh {
            remove_extra().await?;
            compose
                .run(&["down", "--volumes", "--timeout", "10"])
                .await?;
        }
        compose.up(&["--wait"]).await?;
        Ok(compose)
    }

    /// Lets the next scenario use these containers.
    pub fn leave_clean(&self) {
        let is_tampered = !self.scale.is_empty();
        self.state.is_tampered.store(is_tampered, Ordering::Relaxed);
    }

    /// The addresses of all parts.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Starts a stopped service without waiting for it.
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
        let first = self.first(service).await?;
        docker(&["kill", &first]).await.map(drop)
    }

    /// Starts one more container of a service, with the environment of the first and these
    /// arguments of `docker run`. Returns its id. It is not part of the Compose project.
    pub async fn run_like(&self, service: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let first = self.first(service).await?;
        let inspect = async |format: &str| docker(&["inspect", "--format", format, &first]).await;
        let image = inspect("{{.Config.Image}}").await?;
        let network =
            inspect("{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}").await?;
        let environment = inspect("{{range .Config.Env}}{{println .}}{{end}}").await?;
        let mut command = vec![
            "run",
            "--detach",
            "--label",
            EXTRA,
            "--network",
            network.trim(),
        ];
        // Its certificate.
        command.extend(["--volumes-from", &first]);
        command.extend(arguments);
        for variable in environment.lines().filter(|line| !line.is_empty()) {
            command.extend(["--env", variable]);
        }
        command.push(image.trim());
        Ok(docker(&command).await?.trim().to_owned())
    }

    async fn first(&self, service: &str) -> anyhow::Result<String> {
        let ids = self.run(&["ps", "--quiet", service]).await?;
        let first = ids.lines().next();
        let first = first.with_context(|| format!("no container of {service}"))?;
        Ok(first.to_owned())
    }

    /// Stops services and waits for their end; all services when none is named.
    pub async fn stop(&self, services: &[&str]) -> anyhow::Result<()> {
        self.run(&[&["stop"], services].concat()).await.map(drop)
    }

    /// Scales a service and waits until its replicas are healthy.
    pub async fn scale(&mut self, service: &str, replicas: usize) -> anyhow::Result<()> {
        let one = format!("--scale={service}=");
        self.scale.retain(|scale| !scale.starts_with(&one));
        if replicas != 1 {
            self.scale.push(format!("{one}{replicas}"));
        }
        self.up(&["--wait"]).await
    }

    /// `docker compose up` with the current settings and replica counts.
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

    /// The log of a service since its container was created.
    pub async fn logs(&self, service: &str) -> anyhow::Result<String> {
        self.run(&["logs", "--no-log-prefix", "--no-color", service])
            .await
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let root = devstack::workspace();
        let mut docker = Command::new("docker");
        docker
            .arg("compose")
            .args(["--file", "docker-compose.yml"])
            .args(["--file", "docker-compose.tls.yml"])
            .args(["--file", "docker-compose.e2e.yml"])
            .args(arguments);
        docker.current_dir(root);
        docker.envs(
            self.settings
                .iter()
                .map(|(name, value)| (OsStr::new(name), OsStr::new(value))),
        );
        output(docker, &format!("docker compose {arguments:?}")).await
    }
}
