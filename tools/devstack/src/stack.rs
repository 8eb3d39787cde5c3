//! The whole system, one process per service.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use futures::future::try_join_all;
use rustix::process::Signal;

use crate::{
    Durability, Endpoints, Logs, NatsServer, Ports, Postgres, Process, Reaper, SERVICES, ports,
    postgres, process::Spec,
};

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where data is kept.
    pub state: PathBuf,
    /// Where the services' programs are.
    pub programs: PathBuf,
    /// Who listens where.
    pub ports: Ports,
    /// What a commit means, when the server is ours.
    pub durability: Durability,
    /// A PostgreSQL server to use instead of a private one: an administrator's address.
    pub database: Option<String>,
    /// Put before the names of databases, so that several systems can share a server.
    pub database_prefix: String,
    /// A NATS server to use instead of a private one.
    pub nats: Option<String>,
    /// More settings for single services: (service, name, value).
    pub settings: Vec<(String, String, String)>,
    /// Where the services' logs go.
    pub logs: Logs,
    /// Where the logs of PostgreSQL and nats-server go.
    pub server_logs: Logs,
}

/// The running system.
#[derive(Debug)]
pub struct Stack {
    options: Options,
    reaper: Reaper,
    postgres: Option<Postgres>,
    nats: Option<NatsServer>,
    running: BTreeMap<&'static str, Process>,
    ready_after: BTreeMap<&'static str, Duration>,
    endpoints: Endpoints,
}

impl Stack {
    /// Starts everything and waits until it is ready.
    pub async fn start(options: Options, reaper: Reaper) -> anyhow::Result<Self> {
        for service in SERVICES {
            let (port, admin) = options
                .ports
                .of(service)
                .context("every service has a port")?;
            for port in [port, admin] {
                ensure!(
                    ports::is_free(port),
                    "port {port}, wanted for {service}, is taken by another process"
                );
            }
        }
        std::fs::create_dir_all(&options.state)
            .with_context(|| format!("make {}", options.state.display()))?;
        let postgres = match &options.database {
            Some(_) => None,
            None => {
                let directory = postgres::reachable(&options.state)?;
                let (port, durability) = (options.ports.postgres, options.durability);
                Some(
                    Postgres::start(&directory, port, durability, &options.server_logs, &reaper)
                        .await?,
                )
            }
        };
        let nats = match &options.nats {
            Some(_) => None,
            None => {
                let directory = options.state.join("nats");
                Some(
                    NatsServer::start(
                        &directory,
                        options.ports.nats,
                        &options.server_logs,
                        &reaper,
                    )
                    .await?,
                )
            }
        };
        let endpoints = endpoints(&options, postgres.as_ref(), nats.as_ref()).await?;
        let mut stack = Self {
            options,
            reaper,
            postgres,
            nats,
            running: BTreeMap::new(),
            ready_after: BTreeMap::new(),
            endpoints,
        };
        for service in SERVICES {
            stack.start_service(service)?;
        }
        let ready = stack.running.iter_mut().map(async |(service, process)| {
            let admin = stack
                .endpoints
                .admin
                .get(*service)
                .context("every service has an admin address")?;
            anyhow::Ok((*service, process.until_ready(admin).await?))
        });
        stack.ready_after = try_join_all(ready).await?.into_iter().collect();
        Ok(stack)
    }

    /// Where everything is.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// How long each service took from its start until it was ready.
    pub fn ready_after(&self) -> &BTreeMap<&'static str, Duration> {
        &self.ready_after
    }

    /// Where the services' logs go.
    pub fn logs(&self) -> &Logs {
        &self.options.logs
    }

    /// Starts one service without waiting for it.
    pub fn start_service(&mut self, service: &'static str) -> anyhow::Result<()> {
        let process = Process::start(&self.spec(service)?, &self.options.logs, &self.reaper)?;
        self.endpoints
            .pids
            .insert(service.to_owned(), process.pid());
        self.running.insert(service, process);
        Ok(())
    }

    /// Waits until a service says that it is ready.
    pub async fn wait_until_ready(&mut self, service: &str) -> anyhow::Result<()> {
        let admin = self
            .endpoints
            .admin
            .get(service)
            .context("no such service")?;
        self.running
            .get_mut(service)
            .with_context(|| format!("{service} does not run"))?
            .until_ready(admin)
            .await?;
        Ok(())
    }

    /// Kills a service with SIGKILL.
    pub async fn kill(&mut self, service: &str) -> anyhow::Result<()> {
        self.running
            .remove(service)
            .with_context(|| format!("{service} does not run"))?
            .kill()
            .await
    }

    /// Asks a service to end and waits until it has.
    pub async fn stop_service(&mut self, service: &str) -> anyhow::Result<()> {
        self.running
            .remove(service)
            .with_context(|| format!("{service} does not run"))?
            .stop(Signal::TERM)
            .await
    }

    /// Kills the private broker with SIGKILL and starts it again.
    pub async fn restart_broker(&mut self) -> anyhow::Result<()> {
        let nats = self.nats.take().context("the broker is not ours")?;
        self.nats = Some(
            nats.crash_and_restart(&self.options.server_logs, &self.reaper)
                .await?,
        );
        Ok(())
    }

    /// The first service that has ended by itself, with how.
    pub fn ended(&mut self) -> Option<String> {
        self.running
            .iter_mut()
            .find_map(|(name, process)| Some(format!("{name} ended with {}", process.ended()?)))
    }

    /// Stops everything, the edge first and the servers last.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for service in SERVICES.iter().rev() {
            if let Some(process) = self.running.remove(service) {
                failures.extend(process.stop(Signal::TERM).await.err());
            }
        }
        if let Some(nats) = self.nats.take() {
            failures.extend(nats.stop().await.err());
        }
        if let Some(postgres) = self.postgres.take() {
            failures.extend(postgres.stop().await.err());
        }
        let failures: Vec<String> = failures
            .into_iter()
            .map(|error| format!("{error:#}"))
            .collect();
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }

    fn spec(&self, service: &'static str) -> anyhow::Result<Spec> {
        let (port, admin) = self
            .options
            .ports
            .of(service)
            .context("every service has a port")?;
        let url = |service| {
            let (port, _) = self.options.ports.of(service)?;
            Some(format!("http://127.0.0.1:{port}"))
        };
        let mut environment = vec![
            ("LISTEN".to_owned(), format!("127.0.0.1:{port}")),
            ("ADMIN_LISTEN".to_owned(), format!("127.0.0.1:{admin}")),
            ("NATS_URL".to_owned(), self.endpoints.nats.clone()),
            ("PROVIDER_URL".to_owned(), self.endpoints.provider.clone()),
            ("PROVIDER_API_KEY".to_owned(), "sk_test_sagacity".to_owned()),
            (
                "DATA_DIR".to_owned(),
                self.options.state.join("psp-sandbox").display().to_string(),
            ),
        ];
        for other in ["order", "payment", "inventory", "notification"] {
            environment
                .extend(url(other).map(|url| (format!("{}_URL", other.to_uppercase()), url)));
        }
        environment.extend(
            self.endpoints
                .databases
                .get(service)
                .map(|url| ("DATABASE_URL".to_owned(), url.clone())),
        );
        for (of, name, value) in &self.options.settings {
            if of == service {
                environment.push((name.clone(), value.clone()));
            }
        }
        Ok(Spec {
            name: service.to_owned(),
            program: self.options.programs.join(service),
            environment,
            last_signal: "TERM",
            ..Spec::default()
        })
    }
}

async fn endpoints(
    options: &Options,
    postgres: Option<&Postgres>,
    nats: Option<&NatsServer>,
) -> anyhow::Result<Endpoints> {
    let admin = match (postgres, &options.database) {
        (Some(postgres), _) => postgres.admin_url(),
        (None, Some(database)) => database.clone(),
        (None, None) => bail!("neither a private PostgreSQL server nor DATABASE"),
    };
    let mut databases = BTreeMap::new();
    for role in ["order", "payment", "inventory", "notification"] {
        let name = format!("{}{role}", options.database_prefix);
        postgres::provide(&admin, role, &name)
            .await
            .with_context(|| format!("provide the database {name}"))?;
        databases.insert(role.to_owned(), postgres::url_for(&admin, role, &name)?);
    }
    let local = |port: u16| format!("http://127.0.0.1:{port}");
    let port_of = |service: &&str| {
        options
            .ports
            .of(service)
            .map(|(_, admin)| ((*service).to_owned(), local(admin)))
    };
    let mut pids = BTreeMap::new();
    pids.extend(postgres.map(|postgres| ("postgres".to_owned(), postgres.pid())));
    pids.extend(nats.map(|nats| ("nats".to_owned(), nats.pid())));
    Ok(Endpoints {
        gateway: local(options.ports.gateway),
        provider: local(options.ports.psp_sandbox),
        nats: nats
            .map(NatsServer::url)
            .or_else(|| options.nats.clone())
            .context("neither a private broker nor NATS")?,
        databases,
        admin: SERVICES.iter().filter_map(port_of).collect(),
        pids,
    })
}

/// Removes everything that a private system keeps in `state`.
pub fn wipe(state: &Path) -> anyhow::Result<()> {
    for directory in [state.to_owned(), postgres::reachable(state)?] {
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", directory.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
