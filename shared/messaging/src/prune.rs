//! Keeps outbox and inbox from growing for ever. Small steps, so that a prune never holds much.

use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::topology::STREAM_MAX_AGE;

const EVERY: Duration = Duration::from_secs(60);
const STEP: i64 = 10_000;
/// Inboxes remember for a day longer than streams keep events: no delivery can come after its
/// memory has gone.
const INBOX_MEMORY: Duration = STREAM_MAX_AGE.saturating_add(Duration::from_secs(24 * 3600));

/// Prunes until `shutdown`. `keep_outbox` is how long published events stay; `None` keeps them for
/// ever.
pub(crate) async fn run(pool: PgPool, keep_outbox: Option<Duration>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = prune(&pool, keep_outbox).await {
            tracing::warn!(%error, "could not prune; trying again in {EVERY:?}");
        }
    }
}

async fn prune(pool: &PgPool, keep_outbox: Option<Duration>) -> sqlx::Result<()> {
    while forget_inbox(pool, INBOX_MEMORY).await? == STEP as u64 {}
    if let Some(keep) = keep_outbox {
        while forget_outbox(pool, keep).await? == STEP as u64 {}
    }
    Ok(())
}

async fn forget_inbox(pool: &PgPool, older_than: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"-- inbox_prune
        DELETE FROM inbox WHERE event_id IN (
            SELECT event_id FROM inbox WHERE received_at < now() - make_interval(secs => $1) LIMIT $2)"#,
        older_than.as_secs_f64(),
        STEP
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

async fn forget_outbox(pool: &PgPool, older_than: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"-- outbox_prune
        DELETE FROM outbox WHERE position IN (
            SELECT position FROM outbox
            WHERE recorded_at < now() - make_interval(secs => $1) AND sent_at < now() - make_interval(secs => $1)
            LIMIT $2)"#,
        older_than.as_secs_f64(),
        STEP
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}
