//! Commands of Docker and Kubernetes.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// How long one command may take. Stopping all containers takes longest.
const DEADLINE: Duration = Duration::from_secs(180);

/// Runs a command, which errors call `what`, and returns its output.
pub(crate) async fn output(mut command: Command, what: &str) -> anyhow::Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = output.with_context(|| format!("{what} hangs"))?;
    let output = output.with_context(|| format!("run {what}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}", error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
