//! Shutdown, and the time that each of its steps may take.
//!
//! On SIGTERM or Ctrl-C readiness turns off first. After the lag, so that load balancers have
//! noticed, listeners stop accepting and work drains. The admin listener closes last.
//!
//! | step | budget |
//! |---|---|
//! | readiness is off, requests are still accepted | the setting `SHUTDOWN_LAG_SECONDS` |
//! | requests in flight complete | [`DRAIN`] |
//! | one step of a task: a statement, a call to another system | [`STEP`] |
//! | several steps of a task, one after the other | [`STEPS`] |
//! | all tasks end | [`TASKS`] |
//! | telemetry is exported | [`EXPORT`] |
//! | the process has ended, counted from the end of the lag | [`GRACE`] |

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long requests in flight may go on; an idle client must not hold up the process for longer.
pub const DRAIN: Duration = Duration::from_secs(5);
/// The longest single step of a task. Statements and calls to other systems time out within it.
pub const STEP: Duration = Duration::from_secs(10);
/// How long a task may go on when it has several steps to take, such as a call and its record.
pub const STEPS: Duration = Duration::from_secs(14);
/// How long all tasks together may take to end.
pub const TASKS: Duration = Duration::from_secs(16);
/// How long the last spans, metrics and logs may each take to be exported.
pub const EXPORT: Duration = Duration::from_secs(1);
/// What an orchestrator must grant a process, in addition to the lag: `stop_grace_period` in
/// Compose, `terminationGracePeriodSeconds` in Kubernetes.
pub const GRACE: Duration = Duration::from_secs(20);

const fn fits(inner: Duration, outer: Duration) -> bool {
    inner.as_millis() < outer.as_millis()
}

// The budgets nest: what a step waits for ends before the step does.
const _: () = assert!(fits(DRAIN, TASKS) && fits(STEP, STEPS) && fits(STEPS, TASKS));
const _: () = assert!(fits(TASKS.saturating_add(EXPORT.saturating_mul(3)), GRACE));

/// Drops `work` when it has not ended [`STEPS`] after `stopping`. Returns whether it has ended.
pub async fn ends_in_time(work: impl Future<Output = ()>, stopping: &CancellationToken) -> bool {
    let too_late = async {
        stopping.cancelled().await;
        tokio::time::sleep(STEPS).await;
    };
    tokio::select! {
        biased;
        () = work => true,
        () = too_late => false,
    }
}

/// The two moments of a shutdown; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled at the signal: readiness is off.
    pub draining: CancellationToken,
    /// Cancelled after the lag: listeners and tasks end.
    pub stopping: CancellationToken,
}

impl Shutdown {
    /// A shutdown that SIGTERM or Ctrl-C begins. A second signal skips the lag.
    pub(crate) fn on_signal(lag: Duration) -> std::io::Result<Self> {
        let (mut term, mut int) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let shutdown = Self::default();
        let Self { draining, stopping } = shutdown.clone();
        tokio::spawn(async move {
            let mut signalled = async || {
                tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
            };
            signalled().await;
            tracing::info!(
                "received a signal to stop; readiness is off, listeners stop in {lag:?}"
            );
            draining.cancel();
            tokio::select! {
                () = tokio::time::sleep(lag) => {}
                () = signalled() => {}
            }
            stopping.cancel();
        });
        Ok(shutdown)
    }
}
