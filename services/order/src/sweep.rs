//! Every pending state has a deadline and a way out: orders in flight after their deadline are
//! cancelled.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use contracts::{Cause, CorrelationId, EventId};
use messaging::{Participant, UnitOfWork};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{domain::Command, store};

const INTERVAL: Duration = Duration::from_millis(500);
const BATCH: i64 = 256;
/// How far a look goes back behind the one before. Longer than a transaction lasts: one may have had
/// an order locked, or commit an order late whose deadline is short.
const OVERLAP: Duration = Duration::from_secs(30);
/// How often a look goes back to the beginning.
const FULL_LOOK: Duration = Duration::from_secs(600);

/// What earlier looks have found. The index of orders in flight keeps an entry of every order that has
/// ended for as long as a snapshot is held, by a backup for example. A look that begins where the one
/// before has ended does not read them.
struct Looked {
    up_to: OffsetDateTime,
    full: Instant,
}

/// Sweeps until `stopping`. Safe with several replicas: each takes orders that no other has locked.
pub async fn run(participant: Participant, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked = Looked::nowhere();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopping.cancelled() => return Ok(()),
        }
        if looked.full.elapsed() > FULL_LOOK {
            looked = Looked::nowhere();
        }
        match sweep_all(&participant, &mut looked).await {
            Ok(0) => {}
            Ok(orders) => tracing::info!(orders, "deadlines have passed; the orders are cancelled"),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "the sweep failed; the next one is in {INTERVAL:?}"
            ),
        }
    }
}

impl Looked {
    fn nowhere() -> Self {
        Self {
            up_to: OffsetDateTime::UNIX_EPOCH,
            full: Instant::now(),
        }
    }
}

/// Cancels all overdue orders, some at a time; returns how many.
async fn sweep_all(participant: &Participant, looked: &mut Looked) -> anyhow::Result<usize> {
    let mut cancelled = 0;
    loop {
        let swept = sweep(participant, looked).await?;
        cancelled += swept;
        if swept < BATCH as usize {
            return Ok(cancelled);
        }
    }
}

/// Cancels up to [`BATCH`] overdue orders; returns how many. The clock is the database's, as it was
/// when the deadlines were set.
async fn sweep(participant: &Participant, looked: &mut Looked) -> anyhow::Result<usize> {
    let mut tx = participant.pool.begin().await.context("begin")?;
    let now = store::now(&mut tx).await.context("read the clock")?;
    let overdue = store::lock_overdue(&mut tx, looked.up_to, now, BATCH).await;
    let overdue = overdue.context("lock overdue orders")?;
    if overdue.len() < BATCH as usize {
        looked.up_to = looked.up_to.max(now - OVERLAP);
    }
    if overdue.is_empty() {
        return Ok(0);
    }
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
    participant.wake.wake();
    Ok(cancelled)
}
