//! Forgets the payment methods in the event log, when no event that has one can be published again:
//! every subscriber has handled it, and the stream does not have it any more. Its SQL is here.
//!
//! Reads each row of the log once, in the order of their positions. Rows keep their places and ids.

use std::time::Duration;

use anyhow::Context as _;
use contracts::{Event, IdempotencyKey, Subject};
use messaging::{erasure, in_time};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(60);
/// Between two steps, so that orders go first.
const PAUSE: Duration = Duration::from_millis(200);
/// Rows that a step reads.
const STEP: i64 = 1000;
/// Methods older than this are forgotten: as old as a customer must be to be erased.
const AGE: Duration = IdempotencyKey::RETENTION;

/// Forgets until `stopping`.
pub async fn run(pool: PgPool, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stopping.cancelled() => return Ok(()),
        }
        if let Err(error) = forget_all(&pool).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "could not forget payment methods in the log; the next attempt is in {INTERVAL:?}"
            );
        }
    }
}

async fn forget_all(pool: &PgPool) -> anyhow::Result<()> {
    let step = async || {
        let mut tx = pool.begin().await.context("begin")?;
        let is_last = forget_next(&mut tx).await?;
        tx.commit().await.context("commit")?;
        anyhow::Ok(is_last)
    };
    while !in_time(step()).await? {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
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
    // Positions follow time, nearly: what is younger comes again.
    let old = rows.iter().take_while(|row| row.is_old).count();
    rows.truncate(old);
    let Some(last) = rows.last().map(|row| row.position) else {
        return Ok(true);
    };
    let (mut positions, mut payloads) = (Vec::new(), Vec::new());
    for row in &rows {
        let Some(payload) = &row.created else {
            continue;
        };
        match erasure::change(Subject::OrderCreated, payload, Event::forget_payment_method) {
            Ok(None) => {}
            Ok(Some(payload)) => {
                positions.push(row.position);
                payloads.push(payload);
            }
            // The version that has written it would have to forget it. It holds up no other row.
            Err(error) => tracing::warn!(
                position = row.position,
                error = format!("{error:#}"),
                "a payment method stays in the log"
            ),
        }
    }
    let forgotten = erasure::write(tx, &positions, &payloads).await;
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
        SELECT position, recorded_at < now() - make_interval(secs => $2) AS "is_old!",
               CASE WHEN subject = $3 THEN payload END AS created
        FROM outbox
        WHERE position > $1 AND position <= (SELECT position FROM outbox_checkpoint ORDER BY id LIMIT 1)
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
