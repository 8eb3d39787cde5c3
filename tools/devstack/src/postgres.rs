//! A private PostgreSQL server in a directory of its own.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};

use crate::{
    Certificates, Logs, Process, Reaper, certificates, ports,
    process::{START_TIMEOUT, Spec},
    tools,
};

/// What a commit guarantees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Survives a power failure: `fsync` and `synchronous_commit` are on. Roles need passwords.
    Durable,
    /// Survives the end of a process, not of the machine: for tests. Roles need no password.
    Ephemeral,
}

/// A running PostgreSQL server.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    /// With which its clients and itself are known; `None` without TLS.
    certificates: Option<Certificates>,
}

/// The password of all roles in development; services refuse it in production.
pub(crate) const PASSWORD: &str = "sagacity";

impl Postgres {
    /// Starts the cluster in `directory`, creating it if needed, and waits until it answers.
    pub async fn start(
        directory: &Path,
        port: u16,
        durability: Durability,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        Self::start_with(directory, port, durability, None, logs, reaper).await
    }

    /// The same; with `certificates` it takes only clients that have one.
    pub async fn start_with(
        directory: &Path,
        port: u16,
        durability: Durability,
        certificates: Option<&Certificates>,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        let owner = tools::postgres_user()?;
        let mut bin = tools::postgres()?;
        std::fs::create_dir_all(directory)
            .with_context(|| format!("create {}", directory.display()))?;
        tools::change_owner(directory, owner)?;
        if owner.is_some() && !tools::is_open_to_all(&bin) {
            bin = tools::copy_postgres(&bin, &directory.join("software"))?;
        }
        let data = directory.join("data");
        if !data.join("PG_VERSION").is_file() {
            initialize(&bin, directory, &data, durability, owner).await?;
        }
        let mut arguments = arguments(&data, port, durability);
        if let Some(certificates) = certificates {
            let settings = encrypt(directory, durability, certificates, owner)?;
            arguments.extend(settings.into_iter().flat_map(|set| ["-c".to_owned(), set]));
        }
        let spec = Spec {
            name: "postgres".to_owned(),
            program: bin.join("postgres"),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: vec![("LC_ALL".to_owned(), "C".to_owned())],
            user: owner,
            last_signal: "QUIT",
        };
        ports::ensure_free(port, "PostgreSQL")?;
        let process = Process::start(&spec, logs, reaper)?;
        let certificates = certificates.cloned();
        let mut server = Self {
            process,
            port,
            certificates,
        };
        server.wait_until_it_answers().await?;
        Ok(server)
    }

    /// The URL of a database for a role.
    pub fn url(&self, role: &str, database: &str) -> String {
        let certificates = self.certificates.as_ref();
        url_at(
            self.port,
            role,
            database,
            certificates,
            certificates::OPERATOR,
        )
    }

    /// The URL of the administrator.
    pub fn admin_url(&self) -> String {
        self.url("postgres", "postgres")
    }

    /// Ends the server at once and without a checkpoint: the next start recovers from its log.
    pub async fn crash(self) -> anyhow::Result<()> {
        self.process.stop(Signal::QUIT).await
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.exit_status().is_some()
    }

    /// Stops the server and closes its connections.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.process.stop(Signal::INT).await
    }

    /// Stops every process of the server with SIGSTOP: connections stay open, and nothing answers.
    /// Only on Linux. They go on when the result is dropped.
    pub fn pause(&mut self) -> anyhow::Result<Paused> {
        let mut paused = Paused(Vec::new());
        // The first one is stopped first, so that it starts no other one meanwhile.
        paused.stop(self.process.pid())?;
        for child in children(self.process.pid())? {
            paused.stop(child)?;
        }
        Ok(paused)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    async fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < START_TIMEOUT {
            if let Some(status) = self.process.exit_status() {
                bail!("PostgreSQL ended with {status}; its log has the reason");
            }
            if PgConnection::connect(&self.admin_url()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("PostgreSQL did not answer within {START_TIMEOUT:?}; its log may have the reason")
    }
}

/// A server that was paused. Dropping this resumes it.
#[derive(Debug)]
pub struct Paused(Vec<Pid>);

impl Paused {
    fn stop(&mut self, pid: u32) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id is positive")?;
        // A connection may have ended since the list was made.
        if kill_process(pid, Signal::STOP).is_ok() {
            self.0.push(pid);
        }
        Ok(())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ended_meanwhile = kill_process(*pid, Signal::CONT);
        }
    }
}

/// The processes that `parent` has started (man 5 proc).
fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list the processes of this machine")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // PID (PROGRAM) STATE PARENT ...; a process may end while it is looked at.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_program = stat.rsplit_once(')').map(|(_, rest)| rest);
        let found = after_program.and_then(|rest| rest.split_whitespace().nth(1));
        if found.is_some_and(|found| found == parent.to_string()) {
            children.push(pid);
        }
    }
    Ok(children)
}

async fn initialize(
    bin: &Path,
    directory: &Path,
    data: &Path,
    durability: Durability,
    owner: Option<(u32, u32)>,
) -> anyhow::Result<()> {
    let password = directory.join("password");
    std::fs::write(&password, PASSWORD)?;
    tools::change_owner(&password, owner)?;
    let mut command = tokio::process::Command::new(bin.join("initdb"));
    command
        .arg("-D")
        .arg(data)
        .arg("--pwfile")
        .arg(&password)
        .args(["-U", "postgres", "-E", "UTF8", "--locale=C"]);
    match durability {
        Durability::Durable => command.arg("--auth=scram-sha-256"),
        Durability::Ephemeral => command.args(["--auth=trust", "--no-sync"]),
    };
    if let Some((user, group)) = owner {
        command.uid(user).gid(group).current_dir("/");
    }
    let output = command.output().await.context("run initdb")?;
    std::fs::remove_file(&password)?;
    ensure!(
        output.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Settings of a server that takes only encrypted connections, from clients with a certificate.
fn encrypt(
    directory: &Path,
    durability: Durability,
    certificates: &Certificates,
    owner: Option<(u32, u32)>,
) -> anyhow::Result<Vec<String>> {
    let method = match durability {
        Durability::Durable => "scram-sha-256",
        Durability::Ephemeral => "trust",
    };
    let rules = ["all", "replication"].map(|database| {
        format!("hostssl {database} all 127.0.0.1/32 {method} clientcert=verify-ca\n")
    });
    let rules_file = directory.join("pg_hba.conf");
    std::fs::write(&rules_file, rules.concat())?;
    tools::change_owner(&rules_file, owner)?;
    // The server may not be able to enter the directory of the certificates, and refuses a key of
    // somebody else.
    let mut settings = vec![
        "ssl=on".to_owned(),
        format!("hba_file={}", rules_file.display()),
    ];
    for (setting, file) in [
        ("ssl_cert_file", "tls.crt"),
        ("ssl_key_file", "tls.key"),
        ("ssl_ca_file", "ca.crt"),
    ] {
        let copy = directory.join(file);
        std::fs::copy(certificates.of("postgres").join(file), &copy)
            .with_context(|| format!("copy {}", copy.display()))?;
        tools::change_owner(&copy, owner)?;
        settings.push(format!("{setting}={}", copy.display()));
    }
    Ok(settings)
}

fn arguments(data: &Path, port: u16, durability: Durability) -> Vec<String> {
    let mut arguments = vec![
        "-D".to_owned(),
        data.display().to_string(),
        "-p".to_owned(),
        port.to_string(),
    ];
    let mut set = |setting: &str| arguments.extend(["-c".to_owned(), setting.to_owned()]);
    set("listen_addresses=127.0.0.1");
    set("unix_socket_directories=");
    set("max_connections=300");
    set("log_min_messages=warning");
    match durability {
        Durability::Durable => {
            set("shared_buffers=256MB");
            set("max_wal_size=4GB");
            // With many small transactions most of the write-ahead log is images of whole pages,
            // one per page and checkpoint. They compress well.
            set("wal_compression=on");
        }
        Durability::Ephemeral => {
            // Without fsync a commit only reaches the operating system, which survives the server.
            set("fsync=off");
            set("full_page_writes=off");
            set("shared_buffers=64MB");
        }
    }
    arguments
}

/// The URL of a server on this machine for the process that has the certificate `name`.
pub(crate) fn url_at(
    port: u16,
    role: &str,
    database: &str,
    certificates: Option<&Certificates>,
    name: &str,
) -> String {
    let url = format!("postgres://{role}:{PASSWORD}@127.0.0.1:{port}/{database}");
    certificates::postgres_url(certificates, name, url)
}

/// Where the private cluster of a state directory is. Started by root, PostgreSQL runs as another
/// user, who may not be able to enter the state directory.
pub(crate) fn cluster_directory(state: &Path) -> anyhow::Result<PathBuf> {
    if tools::postgres_user()?.is_none() || tools::is_open_to_all(state) {
        return Ok(state.join("postgres"));
    }
    let name = state.display().to_string().replace('/', "-");
    Ok(PathBuf::from(format!("/var/tmp/sagacity{name}")))
}
