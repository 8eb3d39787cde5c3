//! Servers that all tests of one test binary share; the reaper ends them with it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::process::Signal;
use sqlx::{PgPool, migrate::Migrator};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    Durability, Logs, NatsServer, Options, Ports, Postgres, Process, Reaper, Stack,
    TemporaryDirectory, free_port, postgres, process::Spec, programs, tools,
};

struct Shared {
    reaper: Reaper,
    directory: TemporaryDirectory,
    postgres: Postgres,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();

async fn shared() -> anyhow::Result<&'static Shared> {
    SHARED
        .get_or_try_init(async || {
            let reaper = Reaper::new()?;
            let directory = TemporaryDirectory::new(&reaper)?;
            let place = directory.path().join("postgres");
            let postgres = Postgres::start(
                &place,
                free_port()?,
                Durability::Ephemeral,
                &logs("shared"),
                &reaper,
            )
            .await?;
            Ok(Shared {
                reaper,
                directory,
                postgres,
            })
        })
        .await
}

/// Where the logs of a test's processes go.
fn logs(name: &str) -> Logs {
    Logs::Directory(
        tools::target_directory()
            .join("test-logs")
            .join(format!("{}-{name}", std::process::id())),
    )
}

/// A new database for one test, migrated, and its address.
pub async fn database(migrators: &[Migrator]) -> anyhow::Result<(PgPool, String)> {
    let shared = shared().await?;
    let name = format!("test_{}", Uuid::now_v7().simple());
    postgres::provide(&shared.postgres.admin_url(), "test", &name).await?;
    let url = shared.postgres.url("test", &name);
    let pool = PgPool::connect(&url).await?;
    for migrator in migrators {
        migrator.run(&pool).await?;
    }
    Ok((pool, url))
}

/// A broker for one test. To keep its streams over a restart use [`NatsServer::crash_and_restart`]
/// with [`broker_environment`].
pub async fn broker() -> anyhow::Result<NatsServer> {
    let shared = shared().await?;
    let directory = shared
        .directory
        .path()
        .join(format!("nats-{}", Uuid::now_v7().simple()));
    NatsServer::start(&directory, free_port()?, &logs("broker"), &shared.reaper).await
}

/// What is needed to restart a broker of a test.
pub async fn broker_environment() -> anyhow::Result<(Logs, Reaper)> {
    Ok((logs("broker"), shared().await?.reaper.clone()))
}

/// The whole system for one test, with its own broker and databases. `settings` are (service, name,
/// value).
pub async fn stack(name: &str, settings: &[(&str, &str, &str)]) -> anyhow::Result<Stack> {
    let shared = shared().await?;
    let programs = programs().await?;
    let id = Uuid::now_v7().simple().to_string();
    let options = Options {
        state: shared.directory.path().join(&id),
        programs,
        ports: Ports::free()?,
        durability: Durability::Ephemeral,
        database: Some(shared.postgres.admin_url()),
        database_prefix: format!("{id}_"),
        nats: None,
        settings: settings
            .iter()
            .map(|(of, name, value)| (of.to_string(), name.to_string(), value.to_string()))
            .collect(),
        logs: logs(name),
        server_logs: logs(name),
    };
    Stack::start(options, shared.reaper.clone()).await
}

/// One service as a process of its own, for the tests of its crate.
#[derive(Debug)]
pub struct Program {
    process: Process,
    /// Where it listens.
    pub url: String,
    /// Where its health and metrics are.
    pub admin: String,
}

impl Program {
    /// Starts `program` (`env!("CARGO_BIN_EXE_...")`) with these settings and waits until it is
    /// ready.
    pub async fn start(program: &str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let program = PathBuf::from(program);
        let name = program
            .file_name()
            .and_then(|name| name.to_str())
            .context("a program has a name")?
            .to_owned();
        let (port, admin) = (free_port()?, free_port()?);
        let mut environment: Vec<(String, String)> = settings
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        environment.push(("LISTEN".to_owned(), format!("127.0.0.1:{port}")));
        environment.push(("ADMIN_LISTEN".to_owned(), format!("127.0.0.1:{admin}")));
        let logs = logs(&name);
        let spec = Spec {
            name,
            program,
            environment,
            last_signal: "TERM",
            ..Spec::default()
        };
        let (url, admin) = (
            format!("http://127.0.0.1:{port}"),
            format!("http://127.0.0.1:{admin}"),
        );
        let mut process = Process::start(&spec, &logs, &Reaper::new()?)?;
        process.until_ready(&admin).await?;
        Ok(Self {
            process,
            url,
            admin,
        })
    }

    /// Kills it with SIGKILL.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    /// Asks it to end and waits until it has.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.process.stop(Signal::TERM).await
    }
}

static PROGRAMS: OnceCell<PathBuf> = OnceCell::const_new();

/// Builds the services' programs in the profile of the running test, which cargo does not do by
/// itself for tests of another crate, and says where they are.
pub async fn programs() -> anyhow::Result<PathBuf> {
    let build = async || {
        // .../target/debug/deps/scenarios-0123456789abcdef
        let test = std::env::current_exe()?;
        let directory = test
            .parent()
            .and_then(Path::parent)
            .context("a test lies in target/<profile>/deps")?;
        programs::build(directory, &["--quiet"]).await?;
        Ok(directory.to_owned())
    };
    PROGRAMS.get_or_try_init(build).await.cloned()
}
