//! One child process: started with its output going somewhere, watched, stopped, killed.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

use crate::{Reaper, readiness};

/// How long a process may take until it is ready. Migrations run in this time.
const READY: Duration = Duration::from_secs(180);
/// How long a server may take until it answers: one that was killed first reads what it has kept,
/// gigabytes after a long load, and would begin again if it was killed meanwhile.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a process may take to stop. Services end within `bootstrap::shutdown::GRACE` by
/// themselves, on a machine that has time for them.
const STOP: Duration = Duration::from_secs(60);

/// Where the output of processes goes.
#[derive(Clone, Debug)]
pub enum Logs {
    /// To one file per process in this directory.
    Directory(PathBuf),
    /// To this channel, as name of the process and line.
    Lines(mpsc::UnboundedSender<(String, String)>),
}

/// A running process. Dropping it kills it.
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
    /// The signal with which the reaper ends it when this process dies first.
    pub(crate) last_signal: &'static str,
}

impl Process {
    pub(crate) fn start(spec: &Spec, logs: &Logs, reaper: &Reaper) -> anyhow::Result<Self> {
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.arguments)
            .envs(spec.environment.iter().cloned())
            .stdin(Stdio::null())
            // A group of its own: Ctrl-C at the terminal reaches `up` only, which then stops the
            // processes in order.
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
        let id = child.id().context("the process has ended already")?;
        reaper.add(id, spec.last_signal);
        if let Logs::Lines(lines) = logs {
            if let Some(output) = child.stdout.take() {
                forward(spec.name.clone(), output, lines.clone());
            }
            if let Some(output) = child.stderr.take() {
                forward(spec.name.clone(), output, lines.clone());
            }
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

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The exit status, once the process has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until `/readyz` of the admin listener answers 200. Returns the time since the start
    /// of the process.
    pub(crate) async fn wait_until_ready(&mut self, admin: &str) -> anyhow::Result<Duration> {
        let deadline = Instant::now() + READY;
        loop {
            if let Some(status) = self.exit_status() {
                bail!("{} ended with {status}; its log has the reason", self.name);
            }
            let reason = match readiness::check(admin).await {
                Ok(()) => return Ok(self.started.elapsed()),
                Err(reason) => reason,
            };
            if Instant::now() > deadline {
                return Err(reason)
                    .with_context(|| format!("{} was not ready within {READY:?}", self.name));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal without waiting for its effect.
    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // A process that has ended has no id any more; the id may belong to another one.
        if self.exit_status().is_none() {
            kill_process(self.pid, signal)
                .with_context(|| format!("send a signal to {}", self.name))?;
        }
        Ok(())
    }

    /// Waits until the process has ended; kills it when that takes too long.
    pub(crate) async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = tokio::time::timeout(STOP, self.child.wait()).await;
        self.reaper.forget(self.pid());
        match ended {
            Ok(status) => Ok(status?),
            Err(_elapsed) => {
                self.child.kill().await?;
                bail!("{} did not end within {STOP:?} and was killed", self.name)
            }
        }
    }

    /// Waits for the end of a task. Fails when its exit code is not 0.
    pub(crate) async fn complete(mut self) -> anyhow::Result<()> {
        let ended = tokio::time::timeout(READY, self.child.wait()).await;
        let status = ended.with_context(|| format!("{} did not end within {READY:?}", self.name));
        let status = status??;
        self.reaper.forget(self.pid());
        ensure!(
            status.success(),
            "{} ended with {status}; its log has the reason",
            self.name
        );
        Ok(())
    }

    /// Ends the process with `signal`. Fails when its exit code is not 0.
    pub(crate) async fn stop(mut self, signal: Signal) -> anyhow::Result<()> {
        self.signal(signal)?;
        let status = self.wait().await?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
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
        // A live process stays with the reaper: `kill_on_drop` does not wait for its end. An ended
        // one must not stay, because its id may be given to another process.
        if self.exit_status().is_some() {
            self.reaper.forget(self.pid());
        }
    }
}

fn log_file(directory: &Path, name: &str) -> anyhow::Result<std::fs::File> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("create {}", directory.display()))?;
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
