//! Forgets the payment methods of charges that the version before this one has settled. This
//! version forgets them when it settles a charge; the next one needs this no more.

use std::time::Duration;

use chassis::ticks;
use messaging::in_time;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store;

const INTERVAL: Duration = Duration::from_secs(60);
/// Between two steps, so that orders go first.
const PAUSE: Duration = Duration::from_millis(200);

/// Forgets until `stopping`: replicas of the version before this one may still run.
pub async fn run(pool: PgPool, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = ticks(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopping.cancelled() => return Ok(()),
        }
        match forget_all(&pool, &stopping).await {
            Ok(0) => {}
            Ok(payments) => tracing::info!(payments, "old payment methods are forgotten"),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "could not forget old payment methods; the next attempt is in {INTERVAL:?}"
            ),
        }
    }
}

/// Forgets in steps. Each begins behind the last one: a snapshot that is held for long keeps the
/// entries of the index, and a step would read all of them again.
async fn forget_all(pool: &PgPool, stopping: &CancellationToken) -> anyhow::Result<usize> {
    let (mut after, mut payments) = (Uuid::nil(), 0);
    loop {
        let step = in_time(async { Ok(store::forget_methods(pool, after).await?) }).await?;
        let Some(last) = step.iter().max() else {
            return Ok(payments);
        };
        after = *last;
        payments += step.len();
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stopping.cancelled() => return Ok(payments),
        }
    }
}
