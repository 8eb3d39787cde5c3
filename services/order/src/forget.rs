//! Forgets the payment methods in the event log, when no event that has one is published again:
//! every subscriber has handled it, and it is at least 72 hours old. Its SQL is here.
//!
//! Reads each row of the log once, in the order of their positions. Rows keep their places and ids.
//! A row that an erasure has changed since it was read is not written: it has no method any more.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use chassis::ticks;
use contracts::{Event, IdempotencyKey, Subject};
use messaging::{
    erasure::{self, Change},
    in_time,
};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(60);
/// Rows that a step reads.
const STEP: i64 = 1000;
/// Methods older than this are forgotten: as old as a customer must be to be erased.
const AGE: Duration = IdempotencyKey::RETENTION;

/// Forgets until `stopping`.
pub async fn run(pool: PgPool, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = ticks(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopping.cancelled() => return Ok(()),
        }
        if let Err(error) = forget_all(&pool, &stopping).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "could not forget payment methods in the log; the next attempt is in {INTERVAL:?}"
            );
        }
    }
}

/// Forgets in steps, and rests after each for as long as it took: orders go first.
async fn forget_all(pool: &PgPool, stopping: &CancellationToken) -> anyhow::Result<()> {
    let step = async || {
        let mut tx = pool.begin().await.context("begin")?;
        let is_last = forget_next(&mut tx).await?;
        tx.commit().await.context("commit")?;
        anyhow::Ok(is_last)
    };
    loop {
        let began = Instant::now();
        if in_time(step()).await? {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(began.elapsed()) => {}
            () = stopping.cancelled() => return Ok(()),
        }
    }
}

/// Forgets the methods of the next rows. Returns whether there is nothing left to do for now.
async fn forget_next(tx: &mut PgConnection) -> anyhow::Result<bool> {
    let position = lock(tx).await.context("lock the position")?;
    // Another replica takes this step.
    let Some(position) = position else {
        return Ok(true);
    };
    let mut rows = read(tx, position).await.context("read the log")?;
    let read = rows.len();
    // Positions follow time only roughly: rows after a young one wait for the next step.
    let old = rows.iter().take_while(|row| row.is_old).count();
    rows.truncate(old);
    let Some(last) = rows.last().map(|row| row.position) else {
        return Ok(true);
    };
    let mut changes = Vec::new();
    for row in rows {
        let (position, Some(before)) = (row.position, row.created) else {
            continue;
        };
        let forget = Event::forget_payment_method;
        match erasure::change(Subject::OrderCreated, &before, forget) {
            Ok(None) => {}
            Ok(Some(after)) => changes.push(Change {
                position,
                before,
                after,
            }),
            // Only the version that wrote it can change it. It holds up no other row.
            Err(error) => tracing::warn!(
                position,
                error = format!("{error:#}"),
                "a payment method stays in the log until that version erases the customer"
            ),
        }
    }
    let forgotten = erasure::write(tx, &changes).await;
    let forgotten = forgotten.context("write the log")?;
    advance(tx, last).await.context("write the position")?;
    if forgotten > 0 {
        tracing::info!(forgotten, "payment methods in the log are forgotten");
    }
    Ok(old < read || read < STEP as usize)
}

/// Locks the position up to which methods are forgotten; `None` while another replica has it.
async fn lock(tx: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let position = sqlx::query_scalar!(
        r#"-- methods_lock
        SELECT position FROM methods_forgotten FOR UPDATE SKIP LOCKED"#
    );
    position.fetch_optional(tx).await
}

struct Row {
    position: i64,
    is_old: bool,
    /// The payload, if it may have a payment method.
    created: Option<Vec<u8>>,
}

/// The next rows that every subscriber has handled.
async fn read(tx: &mut PgConnection, position: i64) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"-- methods_read
        SELECT position,
               -- An hour ahead of the database is a wrong clock, and holds up no other row.
               (recorded_at < now() - make_interval(secs => $2)
                OR recorded_at > now() + interval '1 hour') AS "is_old!",
               CASE WHEN subject = $3 THEN payload END AS created
        FROM outbox
        WHERE position > $1
          AND position <= (SELECT position FROM outbox_checkpoint ORDER BY id LIMIT 1)
        ORDER BY position LIMIT $4"#,
        position,
        AGE.as_secs_f64(),
        Subject::OrderCreated.as_str(),
        STEP
    )
    .fetch_all(tx)
    .await
}

async fn advance(tx: &mut PgConnection, position: i64) -> sqlx::Result<()> {
    let advance = sqlx::query!(
        r#"-- methods_advance
        UPDATE methods_forgotten SET position = $1"#,
        position
    );
    advance.execute(tx).await?;
    Ok(())
}
