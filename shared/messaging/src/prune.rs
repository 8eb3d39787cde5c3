//! Keeps outbox and inbox from growing without end.
//!
//! A step reads and deletes a bounded number of rows at the old end of a primary key, which is
//! ordered by time: it costs the same however large the table is, and never holds many locks.

use std::time::{Duration, SystemTime};

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::topology::STREAM_MAX_AGE;

const EVERY: Duration = Duration::from_secs(60);
const STEP: i64 = 10_000;
/// Inboxes remember an event for a day longer than streams keep it: no redelivery can come later.
const INBOX_RETENTION: Duration = STREAM_MAX_AGE.saturating_add(Duration::from_secs(24 * 3600));

/// Prunes until `shutdown`. `outbox_retention` is how long published events stay; `None` keeps them
/// without end.
pub(crate) async fn run(
    pool: PgPool,
    outbox_retention: Option<Duration>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = prune(&pool, outbox_retention).await {
            tracing::warn!(%error, "could not prune outbox and inbox; the next attempt is in {EVERY:?}");
        }
    }
}

async fn prune(pool: &PgPool, outbox_retention: Option<Duration>) -> sqlx::Result<()> {
    while prune_inbox(pool, INBOX_RETENTION).await? == STEP as u64 {}
    if let Some(keep) = outbox_retention {
        while prune_outbox(pool, keep).await? == STEP as u64 {}
    }
    Ok(())
}

/// The smallest UUIDv7 of a time that is `age` ago: ids below it are older.
pub fn oldest_id(age: Duration) -> Uuid {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let then = now.unwrap_or_default().saturating_sub(age).as_millis();
    let millis = u64::try_from(then).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

async fn prune_inbox(pool: &PgPool, older_than: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"-- inbox_prune
        DELETE FROM inbox WHERE event_id IN (
            SELECT event_id FROM inbox
            WHERE event_id < $1 AND received_at < now() - make_interval(secs => $2)
            ORDER BY event_id LIMIT $3)"#,
        oldest_id(older_than),
        older_than.as_secs_f64(),
        STEP
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

async fn prune_outbox(pool: &PgPool, older_than: Duration) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        r#"-- outbox_prune
        DELETE FROM outbox WHERE position IN (
            SELECT position FROM (
                SELECT position, recorded_at, sent_at FROM outbox
                ORDER BY position LIMIT $2) AS oldest
            WHERE recorded_at < now() - make_interval(secs => $1)
              AND sent_at < now() - make_interval(secs => $1))"#,
        older_than.as_secs_f64(),
        STEP
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}
