//! One process of ours: started with its log going somewhere, stopped, killed, paused.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

use crate::Reaper;

const READY: Duration = Duration::from_secs(60);

/// Where the output of processes goes.
#[derive(Clone, Debug)]
pub enum Logs {
    /// To a file per process in this directory.
    Directory(PathBuf),
    /// To whoever reads this: name of the process and line.
    Lines(mpsc::UnboundedSender<(String, String)>),
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    started: Instant,
    reaper: Reaper,
}

/// How to start a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(String, String)>,
    /// User and group to run as.
    pub(crate) user: Option<(u32, u32)>,
    /// What ends it well when we cannot do so ourselves.
    pub(crate) last_signal: &'static str,
}

impl Process {
    pub(crate) fn start(spec: &Spec, logs: &Logs, reaper: &Reaper) -> anyhow::Result<Self> {
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.arguments)
            .envs(spec.environment.iter().cloned())
            .stdin(Stdio::null())
            // Ctrl-C at our terminal is for us; we then stop them in order.
            .process_group(0)
            .kill_on_drop(true);
        if let Some((user, group)) = spec.user {
            command.uid(user).gid(group).current_dir("/");
        }
        match logs {
            Logs::Directory(directory) => {
                let file = log_file(directory, &spec.name)?;
                command.stderr(file.try_clone()?).stdout(file);
            }
            Logs::Lines(_) => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", spec.program.display()))?;
        let id = child.id().context("the process ended at once")?;
        reaper.add(id, spec.last_signal);
        if let Logs::Lines(lines) = logs {
            child
                .stdout
                .take()
                .into_iter()
                .for_each(|output| forward(spec.name.clone(), output, lines.clone()));
            child
                .stderr
                .take()
                .into_iter()
                .for_each(|output| forward(spec.name.clone(), output, lines.clone()));
        }
        let pid = Pid::from_raw(i32::try_from(id)?).context("a process id is positive")?;
        Ok(Self {
            name: spec.name.clone(),
            child,
            pid,
            started,
            reaper: reaper.clone(),
        })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it says at `admin`/readyz that it is ready; returns how long it took from its
    /// start.
    pub(crate) async fn until_ready(&mut self, admin: &str) -> anyhow::Result<Duration> {
        // Once per process; whoever was first is fine.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(2))
            .build()?;
        let until = Instant::now() + READY;
        let mut last = "nothing".to_owned();
        while Instant::now() < until {
            if let Some(status) = self.ended() {
                bail!("{} ended with {status}; its log says why", self.name);
            }
            match client.get(format!("{admin}/readyz")).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(self.started.elapsed()),
                Ok(answer) => last = answer.text().await.unwrap_or_default(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!(
            "{} was not ready within {READY:?}; last it said {last}",
            self.name
        )
    }

    /// Asks it to end with `signal` and waits; kills it after 20 seconds.
    pub(crate) async fn stop(mut self, signal: Signal) -> anyhow::Result<()> {
        if self.ended().is_none() {
            // It may end in between, and that is what we want.
            let _ended = kill_process(self.pid, signal);
        }
        let ended = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        self.reaper.forget(self.pid());
        match ended {
            Ok(status) if status.as_ref().is_ok_and(ExitStatus::success) => Ok(()),
            Ok(status) => bail!("{} ended with {}", self.name, status?),
            Err(_late) => {
                self.child.kill().await?;
                bail!("{} did not end within 20 s and was killed", self.name)
            }
        }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child
            .kill()
            .await
            .with_context(|| format!("kill {}", self.name))?;
        self.reaper.forget(self.pid());
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // `kill_on_drop` kills it; once it is gone its id may be another's.
        if self.ended().is_some() {
            self.reaper.forget(self.pid());
        }
    }
}

fn log_file(directory: &Path, name: &str) -> anyhow::Result<std::fs::File> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let path = directory.join(format!("{name}.log"));
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path);
    file.with_context(|| format!("open {}", path.display()))
}

fn forward(
    name: String,
    output: impl AsyncRead + Send + Unpin + 'static,
    lines: mpsc::UnboundedSender<(String, String)>,
) {
    tokio::spawn(async move {
        let mut output = BufReader::new(output).lines();
        while let Ok(Some(line)) = output.next_line().await {
            if lines.send((name.clone(), line)).is_err() {
                return;
            }
        }
    });
}
