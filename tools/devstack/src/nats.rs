//! A private nats-server with JetStream in a directory of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::{
    Certificates, Logs, Process, Reaper, ports,
    process::{START_TIMEOUT, Spec},
    tools,
};

/// What the server may store; as in deploy/nats/nats.conf.
const STORE: &str = "10GB";

/// The password of all users of `deploy/nats/users.conf` in development.
pub(crate) const PASSWORD: &str = "sagacity";
/// The user of the tools.
const OPERATOR: &str = "operator";

/// The users of `deploy/nats/users.conf`, for the configuration of a server.
pub(crate) fn users() -> anyhow::Result<String> {
    let path = crate::workspace().join("deploy/nats/users.conf");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let with_passwords = text.split(' ').map(|word| match word.strip_prefix('$') {
        Some(variable) if variable.ends_with("_NATS_PASSWORD,") => format!("{PASSWORD:?},"),
        _ => word.to_owned(),
    });
    Ok(with_passwords.collect::<Vec<_>>().join(" "))
}

/// The addresses of servers with [`users`], for the tools. With TLS the certificate in the last
/// address is that of all.
pub(crate) fn for_operator(
    urls: &str,
    password: &str,
    certificates: Option<&Certificates>,
) -> String {
    let with_user = urls.replace("://", &format!("://{OPERATOR}:{password}@"));
    match certificates {
        Some(certificates) => {
            let directory = certificates.of(OPERATOR);
            format!("{with_user}?tls_dir={}", directory.display())
        }
        None => with_user,
    }
}

/// `nats://host:port` or `tls://host:port`, on this machine.
pub(crate) fn url(scheme: &str, port: u16) -> String {
    format!("{scheme}://127.0.0.1:{port}")
}

/// The scheme of the addresses of a server.
pub(crate) fn scheme(certificates: Option<&Certificates>) -> &'static str {
    match certificates {
        Some(_) => "tls",
        None => "nats",
    }
}

/// A running nats-server.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    port: u16,
    /// Where the server keeps its streams.
    store: PathBuf,
    spec: Spec,
}

impl NatsServer {
    /// Starts a server that keeps its streams in `directory`, and waits until it answers.
    pub async fn start(
        directory: &Path,
        port: u16,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        Self::start_with(directory, port, "", logs, reaper).await
    }

    /// The same; `more` is added to its configuration.
    pub async fn start_with(
        directory: &Path,
        port: u16,
        more: &str,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        // A file, since there is no argument for the limit. By itself the server takes a share of
        // what is free, which may be less than the streams declare, although they never need it.
        std::fs::create_dir_all(directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let config = directory.with_extension("conf");
        let text = format!(
            "host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: {directory:?}, max_file_store: {STORE} }}\n{more}"
        );
        std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let arguments = vec!["--config".into(), config.into()];
        let spec = Spec {
            name: "nats".to_owned(),
            program: tools::nats_server()?,
            arguments,
            last_signal: "TERM",
            ..Spec::default()
        };
        ports::ensure_free(port, "NATS")?;
        Self::spawn(spec, port, directory.to_owned(), logs, reaper).await
    }

    async fn spawn(
        spec: Spec,
        port: u16,
        store: PathBuf,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        let mut process = Process::start(&spec, logs, reaper)?;
        let began = Instant::now();
        while began.elapsed() < START_TIMEOUT {
            if let Some(status) = process.exit_status() {
                bail!("nats-server ended with {status}; its log has the reason");
            }
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if TcpStream::connect(address).await.is_ok() {
                return Ok(Self {
                    process,
                    port,
                    store,
                    spec,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("nats-server did not answer within {START_TIMEOUT:?}; its log may have the reason")
    }

    /// `nats://host:port`.
    pub fn url(&self) -> String {
        url("nats", self.port)
    }

    /// Kills the server with SIGKILL and starts it with the same directory and port.
    pub async fn crash_and_restart(self, logs: &Logs, reaper: &Reaper) -> anyhow::Result<Self> {
        self.crash_and_restart_after(|_store| Ok(()), logs, reaper)
            .await
    }

    /// The same; `tamper` gets the directory of the streams while no server uses it.
    pub async fn crash_and_restart_after(
        self,
        tamper: impl FnOnce(&Path) -> std::io::Result<()>,
        logs: &Logs,
        reaper: &Reaper,
    ) -> anyhow::Result<Self> {
        self.process.kill().await?;
        tamper(&self.store)?;
        Self::spawn(self.spec, self.port, self.store, logs, reaper).await
    }

    /// Kills the server with SIGKILL.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.exit_status().is_some()
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.process.stop(Signal::TERM).await
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
