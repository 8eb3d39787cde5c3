//! Three PostgreSQL servers, one of them the primary: a commit waits until one of the standbys has
//! it, and a standby takes over when the primary fails.

use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures::future::{BoxFuture, FutureExt as _};
use sqlx::{Connection as _, PgConnection};

use crate::{
    Balancer, Certificates, Durability, Logs, Postgres, Reaper, certificates, free_port,
    postgres::{self, PASSWORD},
    tools,
};

const SERVERS: usize = 3;
/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running cluster. Dropping it kills every server.
#[derive(Debug)]
pub struct PostgresCluster {
    directory: PathBuf,
    durability: Durability,
    certificates: Option<Certificates>,
    ports: Vec<u16>,
    servers: Vec<Option<Postgres>>,
    primary: usize,
    /// Leads to the primary.
    address: Balancer,
    logs: Logs,
    reaper: Reaper,
}

impl PostgresCluster {
    /// Creates the servers in `directory`, which must be new, and starts them. `port` leads to the
    /// primary, also after a failover.
    pub fn start<'a>(
        directory: &'a Path,
        port: u16,
        durability: Durability,
        certificates: Option<&'a Certificates>,
        logs: &'a Logs,
        reaper: &'a Reaper,
    ) -> BoxFuture<'a, anyhow::Result<Self>> {
        async move {
            let ports = (0..SERVERS).map(|_| free_port());
            let ports = ports.collect::<anyhow::Result<Vec<_>>>()?;
            let mut cluster = Self {
                directory: directory.to_owned(),
                durability,
                certificates: certificates.cloned(),
                address: Balancer::start(port, vec![ports[0]]).await?,
                ports,
                servers: (0..SERVERS).map(|_| None).collect(),
                primary: 0,
                logs: logs.clone(),
                reaper: reaper.clone(),
            };
            // Creates the data of the first.
            cluster.start_server(0).await?;
            if let Some(first) = cluster.servers[0].take() {
                first.stop().await?;
            }
            cluster.configure(0)?;
            cluster.start_server(0).await?;
            for index in 1..SERVERS {
                cluster.make_standby(index).await?;
            }
            Ok(cluster)
        }
        .boxed()
    }

    /// The URL of the administrator, at the primary.
    pub fn admin_url(&self) -> String {
        postgres::url_at(
            self.address.port(),
            "postgres",
            "postgres",
            self.certificates.as_ref(),
            certificates::OPERATOR,
        )
    }

    /// Names and process ids of the servers that run.
    pub fn pids(&self) -> impl Iterator<Item = (String, u32)> {
        let servers = self.servers.iter().enumerate();
        servers.filter_map(|(index, server)| Some((name(index), server.as_ref()?.pid())))
    }

    /// Ends the primary without a checkpoint, as a crash does.
    pub async fn crash_primary(&mut self) -> anyhow::Result<()> {
        let primary = self.servers[self.primary].take();
        primary.context("the primary is not running")?.crash().await
    }

    /// Makes a standby the primary, when the primary has ended: the one that has received most, and
    /// so every commit that was confirmed. Returns its name.
    pub async fn fail_over(&mut self) -> anyhow::Result<Option<String>> {
        let primary = self.servers[self.primary].as_mut();
        if primary.is_some_and(|primary| !primary.has_ended()) {
            return Ok(None);
        }
        self.servers[self.primary] = None;
        let mut best = None;
        for index in 0..SERVERS {
            let server = self.servers[index].as_mut();
            if server.is_none_or(Postgres::has_ended) {
                continue;
            }
            let mut standby = self.connect(index).await?;
            let received = "SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint";
            let received: i64 = sqlx::query_scalar(received).fetch_one(&mut standby).await?;
            best = best.max(Some((received, index)));
        }
        let (_, index) = best.context("no standby is left")?;
        let mut standby = self.connect(index).await?;
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote(true, 300)")
            .fetch_one(&mut standby)
            .await?;
        ensure!(promoted, "{} did not become the primary", name(index));
        self.primary = index;
        self.address.switch_to(self.ports[index]);
        Ok(Some(name(index)))
    }

    /// Replaces the standbys that have ended, the primary of before among them. Returns their
    /// names.
    pub async fn replace_ended(&mut self) -> anyhow::Result<Vec<String>> {
        let mut replaced = Vec::new();
        for index in 0..SERVERS {
            let server = self.servers[index].as_mut();
            if index != self.primary && server.is_none_or(Postgres::has_ended) {
                self.make_standby(index).await?;
                replaced.push(name(index));
            }
        }
        Ok(replaced)
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        // Standbys first: a primary that stops waits until they have everything.
        let mut servers = self.servers;
        let primary = servers[self.primary].take();
        for server in servers.into_iter().flatten().chain(primary) {
            server.stop().await?;
        }
        Ok(())
    }

    async fn connect(&self, index: usize) -> anyhow::Result<PgConnection> {
        let server = self.servers[index]
            .as_ref()
            .context("the server is not running")?;
        Ok(PgConnection::connect(&server.admin_url()).await?)
    }

    async fn start_server(&mut self, index: usize) -> anyhow::Result<()> {
        let (directory, port) = (self.directory.join(name(index)), self.ports[index]);
        let certificates = self.certificates.as_ref();
        let (logs, reaper) = (&self.logs, &self.reaper);
        let start = Postgres::start_with(
            &directory,
            port,
            self.durability,
            certificates,
            logs,
            reaper,
        );
        // A standby whose primary is lost meanwhile never answers.
        let started = tokio::time::timeout(START_TIMEOUT, start).await;
        let started = started.with_context(|| format!("{} does not answer", name(index)))?;
        self.servers[index] = Some(started?);
        Ok(())
    }

    /// Makes a server a standby, with a copy of the primary's data. The primary goes on meanwhile.
    /// <https://www.postgresql.org/docs/18/continuous-archiving.html#BACKUP-LOWLEVEL-BASE-BACKUP>
    async fn make_standby(&mut self, index: usize) -> anyhow::Result<()> {
        self.servers[index] = None;
        let directory = |index| self.directory.join(name(index)).join("data");
        let (from, to) = (directory(self.primary), directory(index));
        let mut primary = self.connect(self.primary).await?;
        ensure!(
            primary.server_version_num() >= Some(150_000),
            "three servers need PostgreSQL 15 or later: 14 has no pg_backup_start"
        );
        let begin = sqlx::query("SELECT pg_backup_start($1, fast => true)");
        begin.bind(name(index)).execute(&mut primary).await?;
        let copied = {
            let to = to.clone();
            tokio::task::spawn_blocking(move || copy_data(&from, &to)).await
        };
        let end = "SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)";
        let label: String = sqlx::query_scalar(end).fetch_one(&mut primary).await?;
        copied.context("the copy panicked")??;
        for (file, text) in [("backup_label", label.as_str()), ("standby.signal", "")] {
            let path = to.join(file);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            tools::change_owner(&path, tools::postgres_user()?)?;
        }
        self.configure(index)?;
        self.start_server(index).await
    }

    /// What a server needs as a primary and as a standby.
    fn configure(&self, index: usize) -> anyhow::Result<()> {
        use std::io::Write as _;
        let path = self
            .directory
            .join(name(index))
            .join("data/postgresql.auto.conf");
        let standbys: Vec<_> = (0..SERVERS)
            .map(|index| format!("\"{}\"", name(index)))
            .collect();
        // Beside the data: see `Postgres::start_with`.
        let files = self.directory.join(name(index));
        let files = files.display();
        let tls = match &self.certificates {
            Some(_) => format!(
                " sslmode=verify-full sslrootcert={files}/ca.crt sslcert={files}/tls.crt \
                 sslkey={files}/tls.key"
            ),
            None => String::new(),
        };
        let settings = format!(
            "synchronous_standby_names = 'ANY 1 ({})'\n\
             primary_conninfo = 'host=127.0.0.1 port={} user=postgres password={PASSWORD} application_name={}{tls}'\n\
             # A standby that was away finds what it has missed.\n\
             wal_keep_size = 512MB\n\
             wal_receiver_timeout = 5s\nwal_sender_timeout = 5s\nwal_retrieve_retry_interval = 200ms\n",
            standbys.join(", "),
            self.address.port(),
            name(index),
        );
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        let mut file = file.with_context(|| format!("open {}", path.display()))?;
        Ok(file.write_all(settings.as_bytes())?)
    }
}

/// What is empty in a copy: a standby gets the log from the primary.
const EMPTY: [&str; 2] = ["pg_wal", "pg_replslot"];
/// What belongs to the process that runs.
const NOT_COPIED: [&str; 2] = ["postmaster.pid", "postmaster.opts"];

/// Copies the data of a server that runs, without links: there are no tablespaces.
fn copy_data(from: &Path, to: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", to.display()));
        }
        _ => {}
    }
    let owner = tools::postgres_user()?;
    let make = |path: &Path| {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        tools::change_owner(path, owner)
    };
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        make(&to.join(&directory))?;
        let entries = match std::fs::read_dir(from.join(&directory)) {
            // The server removes files and directories while it runs; its log tells the standby.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let is_one_of = |names: [&str; 2]| names.iter().any(|name| path == Path::new(name));
            if is_one_of(NOT_COPIED) {
                continue;
            }
            if is_one_of(EMPTY) {
                make(&to.join(&path))?;
                continue;
            }
            if entry.file_type()?.is_dir() {
                directories.push(path);
                continue;
            }
            match std::fs::copy(from.join(&path), to.join(&path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => {
                    result.with_context(|| format!("copy {}", path.display()))?;
                    tools::change_owner(&to.join(&path), owner)?;
                }
            }
        }
    }
    Ok(())
}

fn name(index: usize) -> String {
    format!("postgres-{index}")
}
