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
    Certificates, Cluster, Durability, Endpoints, Logs, MEMBERS, Member, MemberPorts, NatsServer,
    Ports, Postgres, Process, Reaper,
    certificates::postgres_url,
    databases,
    databases::Administrator,
    endpoints::{local_url, service_url},
    free_port, members, nats, ports, postgres,
    process::Spec,
    services,
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
    /// For mutual TLS between all processes and private servers; `None` without. With a server
    /// that is used instead, it is the one with `certificates`.
    pub certificates: Option<Certificates>,
    /// Whether each service runs as the owner of its tables, and migrates them when it starts: what
    /// a build does that knows no other way.
    pub single_role: bool,
    /// Whether there are three servers of each kind and two processes of each service. `state` must
    /// then be new.
    pub highly_available: bool,
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
    /// The servers of a highly available system.
    cluster: Option<Cluster>,
    /// Beside the processes above.
    replicas: Vec<Replica>,
    ready_after: BTreeMap<&'static str, Duration>,
    endpoints: Endpoints,
    /// `nats://host:port`, for the services.
    nats_url: String,
}

/// One more process of a service.
#[derive(Debug)]
struct Replica {
    service: &'static str,
    spec: Spec,
    /// `http://host:port` of its admin listener.
    admin: String,
    process: Process,
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
            let (api, admin) = (free_port()?, free_port()?);
            let ports = MemberPorts { api, admin };
            self.add_replica_at(service, ports, settings).await
        }
        .boxed()
    }

    /// The same, on these ports.
    pub async fn add_replica_at(
        &mut self,
        service: &'static str,
        ports: MemberPorts,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let mut spec = self.spec(service)?;
        let listen = [
            ("LISTEN".to_owned(), format!("127.0.0.1:{}", ports.api)),
            (
                "ADMIN_LISTEN".to_owned(),
                format!("127.0.0.1:{}", ports.admin),
            ),
        ];
        let settings = settings.iter();
        let settings = settings.map(|(name, value)| (name.to_string(), value.to_string()));
        spec.environment.extend(listen.into_iter().chain(settings));
        spec.name = format!("{service}-replica");
        self.start_replica(service, spec, local_url(ports.admin))
            .await
    }

    async fn start_replica(
        &mut self,
        service: &'static str,
        spec: Spec,
        admin: String,
    ) -> anyhow::Result<()> {
        let mut process = Process::start(&spec, &self.options.logs, &self.reaper)?;
        process.wait_until_ready(&admin).await?;
        self.endpoints.pids.insert(spec.name.clone(), process.pid());
        self.replicas.push(Replica {
            service,
            spec,
            admin,
            process,
        });
        Ok(())
    }

    /// Kills a process with SIGKILL and leaves it to [`heal`](Self::heal). `name` is that of a
    /// service, or `<service>-replica`.
    pub fn crash(&mut self, name: &str) -> anyhow::Result<()> {
        let replicas = self.replicas.iter_mut();
        let mut replicas = replicas.filter(|replica| replica.spec.name == name);
        let replica = replicas.next().map(|replica| &mut replica.process);
        let process = self.running.get_mut(name).or(replica);
        let process = process.with_context(|| format!("{name} is not running"))?;
        process.signal(Signal::KILL)
    }

    /// Replaces a process of a highly available system: stops it with SIGTERM, starts it again on
    /// the same ports, and waits until it is ready. `name` as for [`crash`](Self::crash).
    ///
    /// The balancer leads no new customer to a gateway meanwhile. The callers of a service are told
    /// nothing.
    pub async fn roll(&mut self, name: &str) -> anyhow::Result<()> {
        self.cluster()?.lead_away_from(name);
        let replaced = self.replace(name).await;
        self.cluster()?.lead_to_all_gateways();
        replaced
    }

    async fn replace(&mut self, name: &str) -> anyhow::Result<()> {
        let mut replicas = self.replicas.iter();
        if let Some(index) = replicas.position(|replica| replica.spec.name == name) {
            let Replica {
                service,
                spec,
                admin,
                process,
            } = self.replicas.remove(index);
            process.stop(Signal::TERM).await?;
            return self.start_replica(service, spec, admin).await;
        }
        let service = services().find(|service| *service == name);
        let service = service.with_context(|| format!("there is no process {name}"))?;
        self.stop_service(service).await?;
        self.start_service(service)?;
        self.wait_until_ready(service).await
    }

    /// Waits until every process reports that it is ready.
    pub async fn wait_until_all_are_ready(&mut self) -> anyhow::Result<()> {
        for (service, process) in &mut self.running {
            let admin = self.endpoints.admin.get(*service);
            let admin = admin.with_context(|| format!("there is no service {service}"))?;
            process.wait_until_ready(admin).await?;
        }
        for replica in &mut self.replicas {
            replica.process.wait_until_ready(&replica.admin).await?;
        }
        Ok(())
    }

    /// Starts the processes that have ended by themselves or were killed from outside, and returns
    /// their names.
    fn restart_ended(&mut self) -> anyhow::Result<Vec<String>> {
        let mut restarted = Vec::new();
        let running = self.running.iter_mut();
        let ended = running.filter_map(|(name, process)| process.exit_status().map(|_| *name));
        for service in ended.collect::<Vec<_>>() {
            self.start_service(service)?;
            restarted.push(service.to_owned());
        }
        for replica in &mut self.replicas {
            if replica.process.exit_status().is_some() {
                let (logs, reaper) = (&self.options.logs, &self.reaper);
                replica.process = Process::start(&replica.spec, logs, reaper)?;
                let (name, pid) = (replica.spec.name.clone(), replica.process.pid());
                self.endpoints.pids.insert(name, pid);
                restarted.push(replica.spec.name.clone());
            }
        }
        Ok(restarted)
    }

    /// The servers of a highly available system.
    pub fn cluster(&mut self) -> anyhow::Result<&mut Cluster> {
        let cluster = self.cluster.as_mut();
        cluster.context("the system is not highly available")
    }

    /// Replaces what has ended in a highly available system, as an orchestrator does, and describes
    /// what was done.
    pub async fn heal(&mut self) -> anyhow::Result<Vec<String>> {
        let cluster = self.cluster()?;
        let mut done = cluster.heal().await?;
        let pids: Vec<_> = cluster.pids().collect();
        self.endpoints.pids.extend(pids);
        for process in self.restart_ended()? {
            done.push(format!("{process} had ended; it is restarted"));
        }
        Ok(done)
    }

    pub fn is_highly_available(&self) -> bool {
        self.cluster.is_some()
    }

    /// Stops the added processes of a service with SIGTERM.
    pub async fn stop_replicas(&mut self, service: &str) -> anyhow::Result<()> {
        let replicas = self
            .replicas
            .extract_if(.., |replica| replica.service == service);
        for replica in replicas.collect::<Vec<_>>() {
            replica.process.stop(Signal::TERM).await?;
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

    /// The first process that has ended by itself, with its exit status if it is one of a service.
    pub fn ended(&mut self) -> Option<String> {
        if self.postgres.as_mut().is_some_and(Postgres::has_ended) {
            return Some("PostgreSQL has ended; its log has the reason".to_owned());
        }
        if self.nats.as_mut().is_some_and(NatsServer::has_ended) {
            return Some("nats-server has ended; its log has the reason".to_owned());
        }
        let running = self.running.iter_mut();
        let running = running.map(|(name, process)| (*name, process));
        let replicas = self.replicas.iter_mut();
        let replicas = replicas.map(|replica| (replica.service, &mut replica.process));
        let mut all = running.chain(replicas);
        all.find_map(|(name, process)| {
            let status = process.exit_status()?;
            Some(format!(
                "{name} ended with {status}; its last lines are above"
            ))
        })
    }

    /// Stops everything: services in the reverse order of their start, then the servers.
    pub fn stop(self) -> BoxFuture<'static, anyhow::Result<()>> {
        stop(self).boxed()
    }

    /// Runs the task `migrate` of each service, as the owner of its tables.
    async fn migrate(&self) -> anyhow::Result<()> {
        let tasks = members::with_database().map(async |member| {
            let mut spec = self.spec(member.name)?;
            spec.arguments = vec!["migrate".into()];
            let owner = self.endpoints.owners[member.name].clone();
            let settings = [
                ("DATABASE_URL", owner),
                ("DATABASE_ROLE", member.name.to_owned()),
            ];
            let settings = settings.map(|(name, value)| (name.to_owned(), value));
            spec.environment.extend(settings);
            let task = Process::start(&spec, &self.options.logs, &self.reaper)?;
            task.complete().await.context("its task `migrate`")
        });
        try_join_all(tasks).await.map(drop)
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
            ("NATS_URL".to_owned(), self.nats_url.clone()),
            ("PROVIDER_URL".to_owned(), self.endpoints.provider.clone()),
            ("PROVIDER_API_KEY".to_owned(), "sk_test_sagacity".to_owned()),
            ("DATA_DIR".to_owned(), data.display().to_string()),
        ]);
        let certificates = self.options.certificates.as_ref();
        for other in MEMBERS {
            let port = self.options.ports.get(other.name)?.api;
            let url = match other.stand_in {
                true => local_url(port),
                false => service_url(certificates, port),
            };
            environment.insert(other.url_setting(), url);
        }
        let directory = certificates.map(|certificates| certificates.of(service));
        // The provider has none.
        if let Some(directory) = directory.filter(|directory| directory.is_dir()) {
            environment.insert("TLS_DIR".to_owned(), directory.display().to_string());
        }
        if self.nats_url != self.endpoints.nats {
            environment.insert("NATS_PASSWORD".to_owned(), nats::PASSWORD.to_owned());
        }
        if let Some(url) = self.endpoints.databases.get(service) {
            environment.insert("DATABASE_URL".to_owned(), url.clone());
            if !self.options.single_role {
                environment.insert("MIGRATIONS".to_owned(), "check".to_owned());
            }
        }
        if std::env::var_os(WORKER_THREADS).is_none() {
            environment.insert(WORKER_THREADS.to_owned(), worker_threads().to_string());
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

/// Read by Tokio.
const WORKER_THREADS: &str = "TOKIO_WORKER_THREADS";

/// How many threads each process gets: one, and on larger machines so many that all together have a
/// thread for each core. More would only take turns.
fn worker_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.div_ceil(MEMBERS.len())
}

async fn start(mut options: Options, reaper: Reaper) -> anyhow::Result<Stack> {
    for service in services() {
        let ports = options.ports.get(service)?;
        ports::ensure_free(ports.api, service)?;
        ports::ensure_free(ports.admin, service)?;
    }
    std::fs::create_dir_all(&options.state)
        .with_context(|| format!("create {}", options.state.display()))?;
    let mut pids = BTreeMap::new();
    let cluster = match options.highly_available {
        true => Some(Cluster::start(&mut options, &reaper).await?),
        false => None,
    };
    let logs = &options.server_logs;
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
            let (directory, port) = (options.state.join("nats"), options.ports.nats);
            let certificates = options.certificates.as_ref();
            let tls = certificates.map_or_else(String::new, Certificates::for_nats_server);
            let more = tls + &nats::users()?;
            let server = NatsServer::start_with(&directory, port, &more, logs, &reaper).await?;
            pids.insert("nats".to_owned(), server.pid());
            (Some(server), nats::url(nats::scheme(certificates), port))
        }
    };
    let has_users = nats.is_some() || cluster.is_some();
    let mut gateway = options.ports.get("gateway")?.api;
    if let Some(cluster) = &cluster {
        gateway = cluster.gateways.port();
        pids.extend(cluster.pids());
    }
    let (databases, owners) = create_databases(&admin_url, &options).await?;
    let endpoints = Endpoints {
        gateway: local_url(gateway),
        provider: local_url(options.ports.get("psp-sandbox")?.api),
        nats: match has_users {
            true => {
                let certificates = options.certificates.as_ref();
                nats::for_operator(&nats_url, nats::PASSWORD, certificates)
            }
            false => nats_url.clone(),
        },
        databases,
        owners,
        admin: admin_urls(&options.ports)?,
        pids,
    };
    let mut stack = Stack {
        options,
        reaper,
        postgres,
        nats,
        cluster,
        running: BTreeMap::new(),
        replicas: Vec::new(),
        ready_after: BTreeMap::new(),
        endpoints,
        nats_url,
    };
    if !stack.options.single_role {
        stack.migrate().await?;
    }
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
    let cluster = stack.cluster.as_ref();
    for (service, ports) in cluster
        .map(|cluster| cluster.second.clone())
        .unwrap_or_default()
    {
        stack.add_replica_at(service, ports, &[]).await?;
    }
    Ok(stack)
}

/// The URLs of the databases, by service: for the service, and for the owner of its tables.
async fn create_databases(
    admin_url: &str,
    options: &Options,
) -> anyhow::Result<(BTreeMap<String, String>, BTreeMap<String, String>)> {
    let (mut services, mut owners) = (BTreeMap::new(), BTreeMap::new());
    let mut administrator = Administrator::connect(admin_url).await?;
    for Member { name: service, .. } in members::with_database() {
        let name = format!("{}{service}", options.database_prefix);
        let owner = match options.single_role {
            true => service.to_string(),
            false => databases::owner(service),
        };
        let created = administrator.create(&name, service, &owner).await;
        created.with_context(|| format!("create the database {name}"))?;
        for (urls, role) in [(&mut services, *service), (&mut owners, &owner)] {
            let url = databases::url_for(admin_url, role, &name)?;
            let url = postgres_url(options.certificates.as_ref(), service, url);
            urls.insert(service.to_string(), url);
        }
    }
    administrator.close().await?;
    Ok((services, owners))
}

fn admin_urls(ports: &Ports) -> anyhow::Result<BTreeMap<String, String>> {
    let url = |name: &str| Ok((name.to_owned(), local_url(ports.get(name)?.admin)));
    services().map(url).collect()
}

async fn stop(mut stack: Stack) -> anyhow::Result<()> {
    // A failure to stop one process must not leave the others running.
    let mut failures = Vec::new();
    for replica in stack.replicas {
        failures.extend(replica.process.stop(Signal::TERM).await.err());
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
    if let Some(cluster) = stack.cluster.take() {
        failures.extend(cluster.stop().await.err());
    }
    let failures: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

async fn start_postgres(options: &Options, reaper: &Reaper) -> anyhow::Result<Postgres> {
    let directory = postgres::cluster_directory(&options.state)?;
    let (port, durability) = (options.ports.postgres, options.durability);
    let certificates = options.certificates.as_ref();
    let logs = &options.server_logs;
    Postgres::start_with(&directory, port, durability, certificates, logs, reaper).await
}
