//! The transactional outbox: the only way to publish an event.
//!
//! A row is committed together with the state that it reports, and published later by the relay.
//! Rows are never changed, but to erase a customer or to forget a payment method: the outbox is a
//! log.

use std::sync::Arc;

use contracts::{Cause, CorrelationId, Event, EventId, OrderId};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

/// An event that is about to be appended.
#[derive(Debug)]
pub struct Outgoing {
    /// The event, UUIDv7.
    pub event_id: EventId,
    /// The order that the event is about.
    pub order_id: OrderId,
    /// The event with its payload.
    pub event: Event,
    /// When it happened; see [`now`].
    pub recorded_at: OffsetDateTime,
    /// What it follows from.
    pub cause: Cause,
}

impl Outgoing {
    /// An event with a new id that happens now.
    pub fn new(order_id: OrderId, event: Event, cause: Cause) -> Self {
        Self {
            event_id: EventId::new(),
            order_id,
            event,
            recorded_at: now(),
            cause,
        }
    }
}

/// The current time in whole microseconds, as PostgreSQL keeps it: what is read back is equal.
pub fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap_or(now)
}

/// Wakes the relay of this process after a commit, so that events leave at once. The relay also
/// polls, so a lost wake-up costs time only. (`NOTIFY` in the transaction would cost four fifths of
/// the throughput.)
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Call after the commit.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.0.notified().await;
    }
}

/// Appends events in the caller's transaction, all with one statement, in the order given.
pub async fn append(tx: &mut PgConnection, events: &[Outgoing]) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    // One array per column: the statement is the same for any number of events.
    let ids: Vec<_> = events.iter().map(|outgoing| outgoing.event_id.0).collect();
    let subjects: Vec<_> = events
        .iter()
        .map(|outgoing| outgoing.event.subject().as_str())
        .collect();
    let orders: Vec<_> = events.iter().map(|outgoing| outgoing.order_id.0).collect();
    let payloads: Vec<_> = events
        .iter()
        .map(|outgoing| outgoing.event.encode())
        .collect();
    let correlations: Vec<_> = events
        .iter()
        .map(|outgoing| outgoing.cause.correlation_id.0)
        .collect();
    let causes: Vec<_> = events
        .iter()
        .map(|outgoing| outgoing.cause.causation_id.0)
        .collect();
    let times: Vec<_> = events.iter().map(|outgoing| outgoing.recorded_at).collect();
    let traces: Vec<_> = events
        .iter()
        .map(|outgoing| outgoing.cause.traceparent.as_deref())
        .collect();
    sqlx::query!(
        r#"-- outbox_append
        INSERT INTO outbox
            (event_id, subject, order_id, payload, correlation_id, causation_id, traceparent, recorded_at, sent_at)
        -- sent_at keeps the version before this one from publishing the whole log after a roll-back.
        SELECT event_id, subject, order_id, payload, correlation_id, causation_id, traceparent, recorded_at, now()
        FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bytea[], $5::uuid[], $6::uuid[], $7::text[],
                    $8::timestamptz[])
            WITH ORDINALITY
            AS e (event_id, subject, order_id, payload, correlation_id, causation_id, traceparent, recorded_at, nth)
        ORDER BY nth"#,
        &ids,
        &subjects as &[&str],
        &orders,
        &payloads,
        &correlations,
        &causes,
        &traces as &[Option<&str>],
        &times,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// An event as the outbox keeps it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its place in the outbox.
    pub position: i64,
    /// The event.
    pub event_id: EventId,
    /// Its subject.
    pub subject: String,
    /// The order that the event is about.
    pub order_id: OrderId,
    /// The protobuf message.
    pub payload: Vec<u8>,
    /// What it follows from.
    pub cause: Cause,
    /// When it was recorded.
    pub recorded_at: OffsetDateTime,
}

pub(crate) struct Row {
    pub(crate) position: i64,
    pub(crate) event_id: Uuid,
    pub(crate) subject: String,
    pub(crate) order_id: Uuid,
    pub(crate) payload: Vec<u8>,
    pub(crate) correlation_id: Uuid,
    pub(crate) causation_id: Uuid,
    pub(crate) traceparent: Option<String>,
    pub(crate) recorded_at: OffsetDateTime,
}

impl From<Row> for Recorded {
    fn from(row: Row) -> Self {
        Self {
            position: row.position,
            event_id: EventId(row.event_id),
            subject: row.subject,
            order_id: OrderId(row.order_id),
            payload: row.payload,
            cause: Cause {
                correlation_id: CorrelationId(row.correlation_id),
                causation_id: EventId(row.causation_id),
                traceparent: row.traceparent,
            },
            recorded_at: row.recorded_at,
        }
    }
}

/// All events of an order that this outbox still holds, oldest first.
pub async fn history(pool: &PgPool, order_id: OrderId) -> sqlx::Result<Vec<Recorded>> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- outbox_history
        SELECT position, event_id, subject, order_id, payload, correlation_id, causation_id, traceparent, recorded_at
        FROM outbox WHERE order_id = $1 ORDER BY position"#,
        order_id.0
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Recorded::from).collect())
}
