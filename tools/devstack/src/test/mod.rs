//! Fixtures for tests. Servers are shared by all tests of one test binary; databases, brokers and
//! whole systems belong to one test each. Logs are in `target/test-logs`.

mod program;
mod service;
mod wait;

use std::{
    collections::BTreeSet,
    fs::DirEntry,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use futures::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use sqlx::{PgPool, migrate::Migrator};
use tokio::sync::OnceCell;
use uuid::Uuid;

pub use program::Program;
pub use service::ServiceFixture;
pub use wait::{TIMEOUT, eventually, wait_for};

pub use crate::jetstream::{StreamMessage, read_stream};

use crate::{
    Certificates, Durability, Logs, NatsServer, Options, Ports, Postgres, Reaper, Stack,
    TemporaryDirectory, databases::Administrator, free_port, nats, programs, tools,
};

/// How long the logs of tests are kept.
const KEEP_LOGS: Duration = Duration::from_secs(24 * 3600);

/// What all tests of one binary share.
struct Shared {
    reaper: Reaper,
    directory: TemporaryDirectory,
    postgres: Postgres,
    certificates: Certificates,
    /// For whole systems: it takes only clients with a certificate.
    encrypted: OnceCell<Postgres>,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();

async fn shared() -> anyhow::Result<&'static Shared> {
    SHARED.get_or_try_init(start_shared).await
}

async fn start_shared() -> anyhow::Result<Shared> {
    let reaper = Reaper::new()?;
    let directory = TemporaryDirectory::new(&reaper)?;
    let data = directory.path().join("postgres");
    let (port, logs) = (free_port()?, logs("shared"));
    let postgres = Postgres::start(&data, port, Durability::Ephemeral, &logs, &reaper).await?;
    let certificates = Certificates::issue(&directory.path().join("certificates"), 0o600)?;
    Ok(Shared {
        reaper,
        directory,
        postgres,
        certificates,
        encrypted: OnceCell::new(),
    })
}

impl Shared {
    async fn encrypted(&self) -> anyhow::Result<&Postgres> {
        let start = async || {
            let data = self.directory.path().join("postgres-encrypted");
            let (port, logs) = (free_port()?, logs("shared-encrypted"));
            let (certificates, reaper) = (Some(&self.certificates), &self.reaper);
            let durability = Durability::Ephemeral;
            Postgres::start_with(&data, port, durability, certificates, &logs, reaper).await
        };
        self.encrypted.get_or_try_init(start).await
    }
}

/// Where the logs with this name go. Those of an earlier process with the same id are removed, and
/// all that are older than a day.
fn logs(name: &str) -> Logs {
    static USED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let all = tools::target_directory().join("test-logs");
    let directory = all.join(format!("{}-{name}", std::process::id()));
    let mut used = USED.lock();
    if used.is_empty() {
        remove_old(&all);
    }
    if used.insert(directory.clone()) {
        let _not_there = std::fs::remove_dir_all(&directory);
    }
    Logs::Directory(directory)
}

fn remove_old(logs: &Path) {
    let is_old = |entry: &DirEntry| {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.map(|modified| modified.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age > KEEP_LOGS)
    };
    let entries = std::fs::read_dir(logs).into_iter().flatten().flatten();
    for entry in entries.filter(is_old) {
        let _removed_by_another_test = std::fs::remove_dir_all(entry.path());
    }
}

/// The URL of a new, empty database.
pub fn empty_database() -> BoxFuture<'static, anyhow::Result<String>> {
    async {
        let name = create_database(TEST).await?;
        Ok(shared().await?.postgres.url(TEST, &name))
    }
    .boxed()
}

/// The role of all tests, and the owner of tables in a [`ServiceDatabase`].
const TEST: &str = "test";
const OWNER: &str = "test_owner";

async fn create_database(owner: &str) -> anyhow::Result<String> {
    let name = format!("test_{}", Uuid::now_v7().simple());
    let url = shared().await?.postgres.admin_url();
    let mut administrator = Administrator::connect(&url).await?;
    administrator.create(&name, TEST, owner).await?;
    administrator.close().await?;
    Ok(name)
}

/// The database of a service that does not own its tables, as it is deployed.
#[derive(Debug)]
pub struct ServiceDatabase {
    /// With the rights of the service.
    pub pool: PgPool,
    /// `DATABASE_URL` of the service, which needs `MIGRATIONS=check`.
    pub url: String,
    /// `DATABASE_URL` of its task `migrate`.
    pub owner_url: String,
}

/// A new database, migrated by `program` (`env!("CARGO_BIN_EXE_...")`) as the owner of its tables.
/// `settings` are what the program needs beside it.
pub async fn service_database(
    program: &str,
    settings: &[(&str, &str)],
) -> anyhow::Result<ServiceDatabase> {
    let name = create_database(OWNER).await?;
    let postgres = &shared().await?.postgres;
    let (url, owner_url) = (postgres.url(TEST, &name), postgres.url(OWNER, &name));
    let database = [("DATABASE_URL", &*owner_url), ("DATABASE_ROLE", TEST)];
    Program::run(program, "migrate", &[settings, &database].concat()).await?;
    Ok(ServiceDatabase {
        pool: PgPool::connect(&url).await?,
        url,
        owner_url,
    })
}

/// A new database, migrated by `migrators`, and its URL.
pub async fn database(migrators: &[Migrator]) -> anyhow::Result<(PgPool, String)> {
    // Not boxed, like `ServiceFixture::start`: only tests need the pool's machine code.
    let url = empty_database().await?;
    let pool = PgPool::connect(&url).await?;
    for migrator in migrators {
        migrator.run(&pool).await?;
    }
    Ok((pool, url))
}

/// A new broker. [`NatsServer::crash_and_restart`] needs [`broker_environment`].
pub fn broker() -> BoxFuture<'static, anyhow::Result<NatsServer>> {
    start_broker(String::new())
}

/// The same with the users of `deploy/nats/users.conf`, and the password of development.
pub async fn broker_with_users() -> anyhow::Result<NatsServer> {
    start_broker(nats::users()?).await
}

/// The same with other users: a part of the server's configuration.
pub async fn broker_with(users: &str) -> anyhow::Result<NatsServer> {
    start_broker(users.to_owned()).await
}

fn start_broker(users: String) -> BoxFuture<'static, anyhow::Result<NatsServer>> {
    async move {
        let shared = shared().await?;
        let directory = format!("nats-{}", Uuid::now_v7().simple());
        let directory = shared.directory.path().join(directory);
        let (port, logs) = (free_port()?, logs("broker"));
        NatsServer::start_with(&directory, port, &users, &logs, &shared.reaper).await
    }
    .boxed()
}

/// Logs and reaper with which [`broker`] has started its server.
pub async fn broker_environment() -> anyhow::Result<(Logs, Reaper)> {
    Ok((logs("broker"), shared().await?.reaper.clone()))
}

/// The whole system of one test, with a broker and databases of its own. Its processes and servers
/// know each other by certificates.
#[derive(Clone, Copy, Debug, Default)]
pub struct System<'a> {
    /// (service, name, value).
    pub settings: &'a [(&'a str, &'a str, &'a str)],
    /// Whether it has a PostgreSQL server of its own, which may be crashed.
    pub own_server: bool,
    /// Whether it has three servers of each kind, its own, and two processes of each service.
    pub highly_available: bool,
    /// The directory of its programs; those of this workspace when `None`.
    pub programs: Option<&'a Path>,
}

/// Starts a system. `name` is part of the names of its logs.
pub fn stack<'a>(name: &'a str, system: System<'a>) -> BoxFuture<'a, anyhow::Result<Stack>> {
    async move {
        let shared = shared().await?;
        let System {
            settings,
            own_server,
            highly_available,
            programs: directory,
        } = system;
        let database = match (own_server || highly_available, directory) {
            (true, _) => None,
            (false, None) => Some(shared.encrypted().await?.admin_url()),
            (false, Some(_)) => Some(shared.postgres.admin_url()),
        };
        let id = Uuid::now_v7().simple().to_string();
        let settings = settings.iter().map(|(service, name, value)| {
            (service.to_string(), name.to_string(), value.to_string())
        });
        let options = Options {
            state: shared.directory.path().join(&id),
            programs: match directory {
                Some(directory) => directory.to_owned(),
                None => programs().await?,
            },
            ports: Ports::free()?,
            durability: Durability::Ephemeral,
            database,
            database_prefix: format!("{id}_"),
            nats: None,
            // Another build may know no certificates, and one role only.
            certificates: directory.is_none().then(|| shared.certificates.clone()),
            single_role: directory.is_some(),
            highly_available,
            settings: settings.collect(),
            logs: logs(name),
            server_logs: logs(name),
        };
        Stack::start(options, shared.reaper.clone()).await
    }
    .boxed()
}

static PROGRAMS: OnceCell<PathBuf> = OnceCell::const_new();

/// Builds the services' programs in the profile of the running test, which cargo does by itself
/// only for tests of the same crate. Returns their directory.
pub async fn programs() -> anyhow::Result<PathBuf> {
    PROGRAMS.get_or_try_init(build_programs).await.cloned()
}

async fn build_programs() -> anyhow::Result<PathBuf> {
    // target/debug/deps/scenarios-0123456789abcdef
    let test = std::env::current_exe()?;
    let directory = test.parent().and_then(Path::parent);
    let directory = directory.context("a test is in target/<profile>/deps")?;
    programs::build(directory, &["--quiet"]).await?;
    Ok(directory.to_owned())
}
