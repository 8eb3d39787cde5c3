//! Finds events that the broker has lost, and has them published again.
//!
//! JetStream acknowledges before it writes to its disk: a broker that loses power, whose disk is
//! replaced by an older copy, or whose stream an operator deletes, forgets events that the relay
//! has marked as sent. The outbox, committed with fsync, does not. It knows which event was
//! acknowledged at which sequence of the stream.
//!
//! A stream forgets its end: up to some sequence it still holds what was acknowledged there. After
//! that it holds nothing, or other events, because the broker counts on from there. The reconciler
//! searches that point and marks everything after it as not sent. The relay publishes it again;
//! inboxes drop what consumers had applied before.

use anyhow::Context as _;
use async_nats::{
    header::NATS_MESSAGE_ID,
    jetstream::stream::{RawMessageErrorKind, Stream},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{Participant, topology::STREAM_MAX_AGE};

/// Rows per statement, so that none holds many locks for long.
const STEP: i64 = 5_000;

/// Compares the end of the service's stream with the outbox. Marks events that the stream has lost
/// as not sent, and returns how many.
///
/// # Errors
/// Those of the database and the broker; nothing is lost by trying again.
pub(crate) async fn reconcile(participant: &Participant) -> anyhow::Result<u64> {
    let Some(name) = participant.service.stream() else {
        return Ok(0);
    };
    let pool = &participant.pool;
    let Some(newest) = newest_sequence(pool)
        .await
        .context("find the newest sequence")?
    else {
        return Ok(0);
    };
    let stream = participant.broker.jetstream.get_stream(name).await;
    let stream = stream.context("look at the stream")?;
    let state = &stream.cached_info().state;
    let (first, last) = (
        i64::try_from(state.first_sequence)?,
        i64::try_from(state.last_sequence)?,
    );
    if newest <= last && (newest < first || agrees(pool, &stream, newest).await?) {
        return Ok(0);
    }
    let intact = last_intact(pool, &stream, first, last.min(newest)).await?;
    let lost = mark_unsent(pool, intact)
        .await
        .context("mark lost events as not sent")?;
    if lost > 0 {
        tracing::error!(service = %participant.service, stream = name, intact, lost,
            "the broker has lost events after a sequence of the stream; they are published again");
    }
    Ok(lost)
}

/// The last sequence of the stream that still holds what the outbox knows was acknowledged there;
/// one before `first` when there is none.
async fn last_intact(pool: &PgPool, stream: &Stream, first: i64, last: i64) -> anyhow::Result<i64> {
    let (mut intact, mut broken) = (first.max(1) - 1, last + 1);
    while broken - intact > 1 {
        let middle = intact + (broken - intact) / 2;
        if agrees(pool, stream, middle).await? {
            intact = middle;
        } else {
            broken = middle;
        }
    }
    Ok(intact)
}

/// Whether stream and outbox have the same event at a sequence. By id: a stream that went back
/// gives its sequences to other events.
async fn agrees(pool: &PgPool, stream: &Stream, sequence: i64) -> anyhow::Result<bool> {
    let message = match stream.get_raw_message(u64::try_from(sequence)?).await {
        Ok(message) => message,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(false),
        Err(error) => return Err(error).context("read a message of the stream"),
    };
    let id = message.headers.get(NATS_MESSAGE_ID);
    let id: Option<Uuid> = id.and_then(|id| id.as_str().parse().ok());
    let acknowledged = sqlx::query_scalar!(
        "-- outbox_at_sequence\nSELECT event_id FROM outbox WHERE stream_sequence = $1",
        sequence
    );
    let acknowledged = acknowledged.fetch_all(pool).await?;
    // None: the row is pruned, or the event is a copy from elsewhere.
    Ok(acknowledged.iter().all(|event| Some(*event) == id))
}

async fn newest_sequence(pool: &PgPool) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        r#"-- outbox_newest_sequence
        SELECT stream_sequence FROM outbox WHERE stream_sequence IS NOT NULL
        ORDER BY stream_sequence DESC LIMIT 1"#
    )
    .fetch_optional(pool)
    .await
    .map(Option::flatten)
}

/// Marks events as not sent that were acknowledged after a sequence. Those that are so old that the
/// stream would have dropped them by now stay as they are.
async fn mark_unsent(pool: &PgPool, after: i64) -> sqlx::Result<u64> {
    let mut lost = 0;
    loop {
        let marked = sqlx::query_scalar!(
            r#"-- outbox_mark_unsent
            UPDATE outbox
            SET stream_sequence = NULL,
                sent_at = CASE WHEN recorded_at > now() - make_interval(secs => $3) THEN NULL
                               ELSE sent_at END
            WHERE position IN (
                SELECT position FROM outbox WHERE stream_sequence > $1
                ORDER BY stream_sequence DESC LIMIT $2)
            RETURNING sent_at IS NULL AS "lost!""#,
            after,
            STEP,
            STREAM_MAX_AGE.as_secs_f64()
        )
        .fetch_all(pool)
        .await?;
        lost += marked.iter().filter(|lost| **lost).count() as u64;
        if marked.len() < STEP as usize {
            return Ok(lost);
        }
    }
}
