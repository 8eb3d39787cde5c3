//! Every pending state has a deadline and a way out: orders in flight after their deadline are
//! cancelled.

use std::time::Duration;

use anyhow::Context as _;
use chassis::ticks;
use contracts::{Cause, CorrelationId, EventId};
use messaging::{Lookback, Participant, UnitOfWork};
use tokio_util::sync::CancellationToken;

use crate::{domain::Command, store};

const INTERVAL: Duration = Duration::from_millis(500);
const BATCH: i64 = 256;

/// Sweeps until `stopping`. Safe with several replicas: each takes orders that no other has locked.
pub async fn run(participant: Participant, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = ticks(INTERVAL);
    let mut lookback = Lookback::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopping.cancelled() => return Ok(()),
        }
        match sweep_all(&participant, &mut lookback, &stopping).await {
            Ok(0) => {}
            Ok(orders) => tracing::info!(orders, "deadlines have passed; the orders are cancelled"),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the sweep failed; the next one is in {INTERVAL:?}"
                );
                lookback = Lookback::default();
            }
        }
    }
}

/// Cancels all overdue orders, some at a time, until `stopping`; returns how many.
async fn sweep_all(
    participant: &Participant,
    lookback: &mut Lookback,
    stopping: &CancellationToken,
) -> anyhow::Result<usize> {
    let mut cancelled = 0;
    loop {
        let swept = messaging::in_time(sweep(participant, lookback)).await?;
        cancelled += swept;
        if swept < BATCH as usize || stopping.is_cancelled() {
            return Ok(cancelled);
        }
    }
}

/// Cancels up to [`BATCH`] overdue orders; returns how many. The clock is the database's, as it was
/// when the deadlines were set.
async fn sweep(participant: &Participant, lookback: &mut Lookback) -> anyhow::Result<usize> {
    let mut tx = participant.pool.begin().await.context("begin")?;
    let now = store::now(&mut tx).await.context("read the clock")?;
    let reach = lookback.reach();
    let ids = store::lock_overdue(&mut tx, now - reach, now, BATCH).await;
    let ids = ids.context("lock overdue orders")?;
    let overdue = store::lock_readable(&mut tx, &ids).await;
    let overdue = overdue.context("read overdue orders")?;
    // One that could not be read is looked for until it is repaired.
    let are_all = ids.len() < BATCH as usize && overdue.len() == ids.len();
    let ids: Vec<_> = overdue.keys().copied().collect();
    let mut work = UnitOfWork::new(overdue);
    let mut cancelled = 0;
    for id in ids {
        // No request caused this: each cancellation starts a correlation and a trace of its own.
        let cause = Cause {
            correlation_id: CorrelationId::new(),
            causation_id: EventId::new(),
            traceparent: None,
        };
        let command = Command::Expire { now };
        cancelled += work.execute(id, command, &cause)?.len();
    }
    work.flush(&mut tx).await.context("save orders")?;
    tx.commit().await.context("commit")?;
    // Not before: the next look would begin behind orders that are not cancelled yet.
    if are_all {
        lookback.found_all(reach);
    }
    if cancelled > 0 {
        participant.wake.wake();
    }
    Ok(cancelled)
}
