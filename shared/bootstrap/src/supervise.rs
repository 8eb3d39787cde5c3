//! Supervision: when one task of a process fails, it is named and all others are stopped.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, anyhow};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// The tasks of a process.
#[derive(Debug)]
pub(crate) struct Supervisor {
    tasks: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// For tasks that all end at `shutdown`.
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        Self {
            tasks: JoinSet::new(),
            names: HashMap::new(),
            shutdown,
        }
    }

    /// Starts a task that must not end before shutdown.
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Waits until shutdown, then for at most `timeout` for all tasks to end.
    ///
    /// # Errors
    /// Names the task that failed, panicked, ended by itself or did not end in time.
    pub(crate) async fn run(mut self, timeout: Duration) -> anyhow::Result<()> {
        let mut result = Ok(());
        while result.is_ok() && !self.shutdown.is_cancelled() {
            tokio::select! {
                ended = self.tasks.join_next_with_id() => match ended {
                    Some(ended) => result = self.check(ended),
                    None => return Ok(()),
                },
                () = self.shutdown.clone().cancelled_owned() => {}
            }
        }
        self.shutdown.cancel();
        let all = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                let checked = self.check(ended);
                result = std::mem::replace(&mut result, Ok(())).and(checked);
            }
            result
        };
        tokio::time::timeout(timeout, all)
            .await
            .context("some tasks did not end in time")?
    }

    fn check(&mut self, ended: Result<(Id, anyhow::Result<()>), JoinError>) -> anyhow::Result<()> {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(anyhow!(error))),
        };
        let name = self.names.remove(&id).unwrap_or("unknown");
        result.with_context(|| format!("task {name:?} failed"))?;
        anyhow::ensure!(
            self.shutdown.is_cancelled(),
            "task {name:?} ended by itself"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    async fn until(shutdown: CancellationToken) -> anyhow::Result<()> {
        shutdown.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_task_that_fails_is_named_and_ends_the_others() {
        let shutdown = CancellationToken::new();
        let mut supervisor = Supervisor::new(shutdown.clone());
        supervisor.spawn("steady", until(shutdown.clone()));
        supervisor.spawn("relay", async { anyhow::bail!("no disk") });
        let error = supervisor.run(TIMEOUT).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "task \"relay\" failed: no disk");
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_panics_or_ends_by_itself_is_named() {
        let mut supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("sweep", async { panic!("boom") });
        assert!(
            format!("{:#}", supervisor.run(TIMEOUT).await.unwrap_err())
                .starts_with("task \"sweep\" failed")
        );
        let mut supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("prune", async { Ok(()) });
        assert_eq!(
            supervisor.run(TIMEOUT).await.unwrap_err().to_string(),
            "task \"prune\" ended by itself"
        );
    }

    #[tokio::test]
    async fn shutdown_ends_everything_well() {
        let shutdown = CancellationToken::new();
        let mut supervisor = Supervisor::new(shutdown.clone());
        supervisor.spawn("steady", until(shutdown.clone()));
        shutdown.cancel();
        assert!(supervisor.run(TIMEOUT).await.is_ok());
    }
}
