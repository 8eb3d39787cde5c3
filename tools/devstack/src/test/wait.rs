//! Waiting for a condition, in place of sleeping for a time that is always too short or too long.

use std::time::{Duration, Instant};

use anyhow::ensure;

/// How long a test waits for what must happen. Generous: a slow machine is no failure, and what
/// services do once a minute may fail at first.
pub const TIMEOUT: Duration = Duration::from_secs(300);

const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` holds; panics when it does not within [`TIMEOUT`].
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = wait_for(what, async || Ok(condition().await.then_some(()))).await;
    if let Err(error) = waited {
        panic!("{error:#}");
    }
}

/// Waits until `condition` returns a value, and returns it. An error counts as "not yet"; the last
/// one is reported when [`TIMEOUT`] is over.
pub async fn wait_for<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let last = match condition().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::new(),
            Err(error) => format!("; last error: {error:#}"),
        };
        ensure!(
            Instant::now() < deadline,
            "not within {TIMEOUT:?}: {what}{last}"
        );
        tokio::time::sleep(INTERVAL).await;
    }
}
