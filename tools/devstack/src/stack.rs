//! The whole system, one process per service.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures::future::{BoxFuture, FutureExt as _, try_join_all};
use rustix::process::Signal;

use crate::{
    Durability, Endpoints, Logs, MEMBERS, NatsServer, Ports, Postgres, Process, Reaper,
    endpoints::local_url, free_port, members, ports, postgres, process::Spec, services,
};

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of all data.
    pub state: PathBuf,
    /// Directory of the services' programs.
    pub programs: PathBuf,
    pub ports: Ports,
    /// What a commit guarantees in the private PostgreSQL server.
    pub durability: Durability,
    /// Administrator's URL of a PostgreSQL server to use instead of a private one.
    pub database: Option<String>,
    /// Prefix of the names of the databases, so that several systems can share a server.
    pub database_prefix: String,
    /// URL of a NATS server to use instead of a private one.
    pub nats: Option<String>,
    /// More settings of single services: (service, name, value).
    pub settings: Vec<(String, String, String)>,
    pub logs: Logs,
    /// Logs of PostgreSQL and nats-server.
    pub server_logs: Logs,
}

/// The running system. Dropping it kills every process.
#[derive(Debug)]
pub struct Stack {
    options: Options,
    reaper: Reaper,
    postgres: Option<Postgres>,
    nats: Option<NatsServer>,
    running: BTreeMap<&'static str, Process>,
    /// Beside the processes above: service and process.
    replicas: Vec<(&'static str, Process)>,
    ready_after: BTreeMap<&'static str, Duration>,
    endpoints: Endpoints,
}

impl Stack {
    /// Starts everything and waits until it is ready.
    pub fn start(options: Options, reaper: Reaper) -> BoxFuture<'static, anyhow::Result<Self>> {
        start(options, reaper).boxed()
    }

    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The time from the start of each service until it was ready.
    pub fn ready_after(&self) -> &BTreeMap<&'static str, Duration> {
        &self.ready_after
    }

    /// Where the services' logs go.
    pub fn logs(&self) -> &Logs {
        &self.options.logs
    }

    /// Starts one service without waiting until it is ready.
    pub fn start_service(&mut self, service: &'static str) -> anyhow::Result<()> {
        let process = Process::start(&self.spec(service)?, &self.options.logs, &self.reaper)?;
        let pid = process.pid();
        self.endpoints.pids.insert(service.to_owned(), pid);
        self.running.insert(service, process);
        Ok(())
    }

    /// Waits until a service reports that it is ready.
    pub async fn wait_until_ready(&mut self, service: &str) -> anyhow::Result<()> {
        let admin = self.endpoints.admin.get(service);
        let admin = admin.with_context(|| format!("there is no service {service}"))?;
        let process = self.running.get_mut(service);
        let process = process.with_context(|| format!("{service} is not running"))?;
        process.wait_until_ready(admin).await.map(drop)
    }

    /// Kills a service with SIGKILL.
    pub async fn kill(&mut self, service: &str) -> anyhow::Result<()> {
        self.take(service)?.kill().await
    }

    /// Stops a service with SIGTERM.
    pub async fn stop_service(&mut self, service: &str) -> anyhow::Result<()> {
        self.take(service)?.stop(Signal::TERM).await
    }

    /// Starts one more process of a service, on ports of its own, and waits until it is ready.
    /// `settings` are (name, value). The other services do not call it: it shares the events and
    /// the periodic work.
    pub fn add_replica<'a>(
        &'a mut self,
        service: &'static str,
        settings: &'a [(&'a str, &'a str)],
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            let mut spec = self.spec(service)?;
            let admin = free_port()?;
            let listen = [
                ("LISTEN".to_owned(), format!("127.0.0.1:{}", free_port()?)),
                ("ADMIN_LISTEN".to_owned(), format!("127.0.0.1:{admin}")),
            ];
            let settings = settings.iter();
            let settings = settings.map(|(name, value)| (name.to_string(), value.to_string()));
            spec.environment.extend(listen.into_iter().chain(settings));
            spec.name = format!("{service}-replica");
            let mut process = Process::start(&spec, &self.options.logs, &self.reaper)?;
            process.wait_until_ready(&local_url(admin)).await?;
            self.replicas.push((service, process));
            Ok(())
        }
        .boxed()
    }

    /// Stops the added processes of a service with SIGTERM.
    pub async fn stop_replicas(&mut self, service: &str) -> anyhow::Result<()> {
        let replicas = self.replicas.extract_if(.., |(name, _)| *name == service);
        for (_, process) in replicas.collect::<Vec<_>>() {
            process.stop(Signal::TERM).await?;
        }
        Ok(())
    }

    /// Changes a setting of a service, from its next start on.
    pub fn set(&mut self, service: &str, name: &str, value: &str) {
        let settings = &mut self.options.settings;
        settings.retain(|(owner, other, _)| owner != service || other != name);
        settings.push((service.to_owned(), name.to_owned(), value.to_owned()));
    }

    /// The directory of the programs that are started from now on.
    pub fn use_programs(&mut self, directory: &Path) {
        directory.clone_into(&mut self.options.programs);
    }

    /// Changes the URL with which a service, from its next start on, and tests enter its database.
    pub fn use_database(&mut self, service: &str, url: &str) {
        let databases = &mut self.endpoints.databases;
        databases.insert(service.to_owned(), url.to_owned());
    }

    /// The private PostgreSQL server.
    pub fn postgres(&mut self) -> anyhow::Result<&mut Postgres> {
        let postgres = self.postgres.as_mut();
        postgres.context("the database is not a private one")
    }

    fn take(&mut self, service: &str) -> anyhow::Result<Process> {
        let process = self.running.remove(service);
        process.with_context(|| format!("{service} is not running"))
    }

    /// Kills the private broker with SIGKILL and starts it again.
    pub async fn restart_broker(&mut self) -> anyhow::Result<()> {
        self.restart_broker_after(|_store| Ok(())).await
    }

    /// The same; `tamper` gets the directory of the streams while no server uses it.
    pub async fn restart_broker_after(
        &mut self,
        tamper: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let nats = self.nats.take();
        let nats = nats.context("a broker that `up` did not start cannot be restarted")?;
        let logs = &self.options.server_logs;
        let restarted = nats.crash_and_restart_after(tamper, logs, &self.reaper);
        self.nats = Some(restarted.await?);
        Ok(())
    }

    /// Ends the private PostgreSQL without a checkpoint, as a crash does, and starts it again.
    pub async fn restart_database(&mut self) -> anyhow::Result<()> {
        let postgres = self.postgres.take();
        let postgres =
            postgres.context("a database that `up` did not start cannot be restarted")?;
        postgres.crash().await?;
        self.postgres = Some(start_postgres(&self.options, &self.reaper).await?);
        Ok(())
    }

    /// The first service that has ended by itself, with its exit status.
    pub fn ended(&mut self) -> Option<String> {
        let running = self.running.iter_mut();
        let running = running.map(|(name, process)| (*name, process));
        let replicas = self.replicas.iter_mut();
        let replicas = replicas.map(|(name, process)| (*name, process));
        let mut all = running.chain(replicas);
        all.find_map(|(name, process)| {
            let status = process.exit_status()?;
            Some(format!("{name} ended with {status}"))
        })
    }

    /// Stops everything: services in the reverse order of their start, then the servers.
    pub fn stop(self) -> BoxFuture<'static, anyhow::Result<()>> {
        stop(self).boxed()
    }

    fn spec(&self, service: &'static str) -> anyhow::Result<Spec> {
        let ports = self.options.ports.get(service)?;
        let data = self.options.state.join(service);
        let mut environment = BTreeMap::from([
            ("LISTEN".to_owned(), format!("127.0.0.1:{}", ports.api)),
            (
                "ADMIN_LISTEN".to_owned(),
                format!("127.0.0.1:{}", ports.admin),
            ),
            ("NATS_URL".to_owned(), self.endpoints.nats.clone()),
            ("PROVIDER_URL".to_owned(), self.endpoints.provider.clone()),
            ("PROVIDER_API_KEY".to_owned(), "sk_test_sagacity".to_owned()),
            ("DATA_DIR".to_owned(), data.display().to_string()),
        ]);
        for other in MEMBERS {
            let url = local_url(self.options.ports.get(other.name)?.api);
            environment.insert(other.url_setting(), url);
        }
        if let Some(url) = self.endpoints.databases.get(service) {
            environment.insert("DATABASE_URL".to_owned(), url.clone());
        }
        for (owner, name, value) in &self.options.settings {
            if owner == service {
                environment.insert(name.clone(), value.clone());
            }
        }
        Ok(Spec {
            name: service.to_owned(),
            program: self.options.programs.join(service),
            environment: environment.into_iter().collect(),
            last_signal: "TERM",
            ..Spec::default()
        })
    }
}

async fn start(options: Options, reaper: Reaper) -> anyhow::Result<Stack> {
    for service in services() {
        let ports = options.ports.get(service)?;
        ports::ensure_free(ports.api, service)?;
        ports::ensure_free(ports.admin, service)?;
    }
    std::fs::create_dir_all(&options.state)
        .with_context(|| format!("create {}", options.state.display()))?;
    let logs = &options.server_logs;
    let mut pids = BTreeMap::new();
    let (postgres, admin_url) = match &options.database {
        Some(url) => (None, url.clone()),
        None => {
            let server = start_postgres(&options, &reaper).await?;
            pids.insert("postgres".to_owned(), server.pid());
            let url = server.admin_url();
            (Some(server), url)
        }
    };
    let (nats, nats_url) = match &options.nats {
        Some(url) => (None, url.clone()),
        None => {
            let directory = options.state.join("nats");
            let server = NatsServer::start(&directory, options.ports.nats, logs, &reaper).await?;
            pids.insert("nats".to_owned(), server.pid());
            let url = server.url();
            (Some(server), url)
        }
    };
    let endpoints = Endpoints {
        gateway: local_url(options.ports.get("gateway")?.api),
        provider: local_url(options.ports.get("psp-sandbox")?.api),
        nats: nats_url,
        databases: create_databases(&admin_url, &options.database_prefix).await?,
        admin: admin_urls(&options.ports)?,
        pids,
    };
    let mut stack = Stack {
        options,
        reaper,
        postgres,
        nats,
        running: BTreeMap::new(),
        replicas: Vec::new(),
        ready_after: BTreeMap::new(),
        endpoints,
    };
    // All at once: each waits by itself for those that it needs.
    for service in services() {
        stack.start_service(service)?;
    }
    let admin = &stack.endpoints.admin;
    let ready = stack.running.iter_mut().map(async |(service, process)| {
        let ready_after = process.wait_until_ready(&admin[*service]).await?;
        anyhow::Ok((*service, ready_after))
    });
    stack.ready_after = try_join_all(ready).await?.into_iter().collect();
    Ok(stack)
}

async fn create_databases(
    admin_url: &str,
    prefix: &str,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut databases = BTreeMap::new();
    for member in members::with_database() {
        let (role, name) = (member.name, format!("{prefix}{}", member.name));
        postgres::create_database(admin_url, role, &name)
            .await
            .with_context(|| format!("create the database {name}"))?;
        databases.insert(role.to_owned(), postgres::url_for(admin_url, role, &name)?);
    }
    Ok(databases)
}

fn admin_urls(ports: &Ports) -> anyhow::Result<BTreeMap<String, String>> {
    let url = |name: &str| Ok((name.to_owned(), local_url(ports.get(name)?.admin)));
    services().map(url).collect()
}

async fn stop(mut stack: Stack) -> anyhow::Result<()> {
    // A failure to stop one process must not leave the others running.
    let mut failures = Vec::new();
    for (_, replica) in stack.replicas {
        failures.extend(replica.stop(Signal::TERM).await.err());
    }
    for service in services().rev() {
        if let Some(process) = stack.running.remove(service) {
            failures.extend(process.stop(Signal::TERM).await.err());
        }
    }
    if let Some(nats) = stack.nats.take() {
        failures.extend(nats.stop().await.err());
    }
    if let Some(postgres) = stack.postgres.take() {
        failures.extend(postgres.stop().await.err());
    }
    let failures: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Removes everything that a private system keeps for `state`.
pub fn wipe(state: &Path) -> anyhow::Result<()> {
    for directory in [state.to_owned(), postgres::cluster_directory(state)?] {
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", directory.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn start_postgres(options: &Options, reaper: &Reaper) -> anyhow::Result<Postgres> {
    let directory = postgres::cluster_directory(&options.state)?;
    let (port, durability) = (options.ports.postgres, options.durability);
    Postgres::start(&directory, port, durability, &options.server_logs, reaper).await
}
