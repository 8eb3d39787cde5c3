//! Every pending state has a deadline and a way out: orders in flight after their deadline are
//! cancelled.

use std::time::Duration;

use anyhow::Context as _;
use contracts::{CorrelationId, EventId, OrderId};
use messaging::{Node, outbox, outbox::Cause};
use tokio_util::sync::CancellationToken;

use crate::{decisions::Decisions, domain::Command, store};

const EVERY: Duration = Duration::from_millis(500);
const BATCH: i64 = 256;

/// Sweeps until `shutdown`. Safe with several replicas: each takes orders that no other has locked.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        match sweep(&node).await {
            Ok(0) => {}
            Ok(orders) => tracing::info!(orders, "cancelled orders whose deadline has passed"),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "could not sweep; trying again in {EVERY:?}"
            ),
        }
    }
}

/// Cancels up to [`BATCH`] overdue orders; returns how many.
async fn sweep(node: &Node) -> anyhow::Result<usize> {
    let mut tx = node.pool.begin().await.context("begin")?;
    let overdue = store::lock_overdue(&mut tx, outbox::now(), BATCH)
        .await
        .context("lock overdue orders")?;
    if overdue.is_empty() {
        return Ok(0);
    }
    // No customer asked for this: each cancellation begins a correlation and a trace of its own.
    let causes: Vec<(OrderId, Cause)> = overdue.iter().map(|order| (order.id, command())).collect();
    let mut decisions = Decisions::on(overdue);
    let mut cancelled = 0;
    for (id, cause) in &causes {
        cancelled += usize::from(decisions.tell(*id, Command::Expire, cause)?);
    }
    decisions.save(&mut tx).await.context("save")?;
    tx.commit().await.context("commit")?;
    node.wake.wake();
    Ok(cancelled)
}

fn command() -> Cause {
    Cause {
        correlation_id: CorrelationId::new(),
        causation_id: EventId::new(),
        traceparent: None,
    }
}
