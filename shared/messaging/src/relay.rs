//! The relay: publishes what the outbox holds, at least once.
//!
//! - A row is marked sent only after the broker has acknowledged it; a relay that dies in between
//!   publishes it again, and the broker (`Nats-Msg-Id`) or the consumer's inbox drops the
//!   repetition.
//! - Rows are claimed by state (`sent_at IS NULL`) with `FOR UPDATE SKIP LOCKED`, never by
//!   position: a transaction that commits late is not skipped, and any number of replicas may relay
//!   at once.
//! - While the broker or the database is away, rows stay where they are and the relay backs off.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::context::PublishAckFuture;
use contracts::{CorrelationId, Envelope, EventId, OrderId, choreography::Service};
use futures::future::join_all;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Broker, Progress, backoff::backoff, metrics::Metrics, outbox::Wake};

/// Rows per transaction and publishes in flight.
const BATCH: i64 = 512;
/// The safety net under the wake-up.
const POLL: Duration = Duration::from_millis(200);
/// How long shutdown waits for the outbox to drain; what is left is sent after the next start.
const FLUSH: Duration = Duration::from_secs(5);

pub(crate) struct Relay {
    pub(crate) service: Service,
    pub(crate) pool: PgPool,
    pub(crate) broker: Broker,
    pub(crate) wake: Wake,
    pub(crate) progress: Progress,
    pub(crate) metrics: Metrics,
}

struct Row {
    position: i64,
    event_id: Uuid,
    subject: String,
    order_id: Uuid,
    payload: Vec<u8>,
    correlation_id: Uuid,
    causation_id: Uuid,
    traceparent: Option<String>,
    recorded_at: OffsetDateTime,
}

impl Relay {
    /// Relays until `shutdown`, then flushes.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut delays = backoff();
        while !shutdown.is_cancelled() {
            match self.drain().await {
                Ok(()) => {
                    self.progress.touch("relay");
                    delays = backoff();
                    tokio::select! {
                        () = self.wake.woken() => {}
                        () = tokio::time::sleep(POLL) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
                Err(error) => {
                    let delay = delays.next().unwrap_or(POLL);
                    tracing::warn!(service = %self.service, error = format!("{error:#}"), ?delay,
                        "events wait in the outbox; the relay tries again");
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
        if tokio::time::timeout(FLUSH, self.drain()).await.is_err() {
            tracing::warn!(service = %self.service, "events are left in the outbox; they are sent after the next start");
        }
    }

    async fn drain(&self) -> anyhow::Result<()> {
        while self.relay_batch().await? == BATCH as usize {}
        Ok(())
    }

    /// Claims, publishes and marks one batch; returns how many rows it had.
    async fn relay_batch(&self) -> anyhow::Result<usize> {
        let mut tx = self.pool.begin().await.context("begin")?;
        let rows = claim(&mut tx).await.context("claim outbox rows")?;
        let age = rows.first().map_or(0.0, |oldest| {
            (OffsetDateTime::now_utc() - oldest.recorded_at).as_seconds_f64()
        });
        self.metrics.outbox_age(age);
        if rows.is_empty() {
            return Ok(0);
        }
        let claimed = rows.len();
        let (sent, failure) = self.publish(rows).await;
        mark_sent(&mut tx, &sent)
            .await
            .context("mark outbox rows as sent")?;
        tx.commit().await.context("commit")?;
        self.metrics.published(sent.len());
        failure.map_or(Ok(claimed), Err)
    }

    /// Publishes all rows pipelined, then waits for all acknowledgements. Returns (position, stream
    /// sequence) of those that were acknowledged, and the first failure among the others.
    async fn publish(&self, rows: Vec<Row>) -> (Vec<(i64, i64)>, Option<anyhow::Error>) {
        let mut pending = Vec::with_capacity(rows.len());
        for row in rows {
            pending.push((row.position, self.send(row).await));
        }
        let mut sent = Vec::new();
        let mut failure = None;
        for outcome in join_all(pending.into_iter().map(acknowledged)).await {
            match outcome {
                Ok(acknowledged) => sent.push(acknowledged),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        (sent, failure)
    }

    async fn send(&self, row: Row) -> anyhow::Result<PublishAckFuture> {
        let envelope = Envelope {
            event_id: EventId(row.event_id),
            subject: row.subject.parse()?,
            order_id: OrderId(row.order_id),
            time: row.recorded_at,
            correlation_id: CorrelationId(row.correlation_id),
            causation_id: EventId(row.causation_id),
            traceparent: row.traceparent,
        };
        let headers = envelope.to_headers(self.service);
        #[expect(
            clippy::disallowed_methods,
            reason = "the relay is the one place that publishes events"
        )]
        let publish =
            self.broker
                .jetstream
                .publish_with_headers(row.subject, headers, row.payload.into());
        publish
            .await
            .with_context(|| format!("publish event {}", envelope.event_id))
    }
}

/// Waits for the broker's word on a publish: its row and where the stream has it.
async fn acknowledged(
    (position, sent): (i64, anyhow::Result<PublishAckFuture>),
) -> anyhow::Result<(i64, i64)> {
    let ack = sent?.await.context("no acknowledgement from the broker")?;
    Ok((position, ack.sequence as i64))
}

async fn claim(tx: &mut PgConnection) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"-- outbox_claim
        SELECT position, event_id, subject, order_id, payload, correlation_id, causation_id, traceparent, recorded_at
        FROM outbox WHERE sent_at IS NULL ORDER BY position LIMIT $1 FOR UPDATE SKIP LOCKED"#,
        BATCH
    )
    .fetch_all(tx)
    .await
}

async fn mark_sent(tx: &mut PgConnection, sent: &[(i64, i64)]) -> sqlx::Result<()> {
    let (positions, sequences): (Vec<i64>, Vec<i64>) = sent.iter().copied().unzip();
    sqlx::query!(
        r#"-- outbox_mark_sent
        UPDATE outbox SET sent_at = clock_timestamp(), stream_sequence = sent.sequence
        FROM unnest($1::bigint[], $2::bigint[]) AS sent (position, sequence)
        WHERE outbox.position = sent.position"#,
        &positions,
        &sequences
    )
    .execute(tx)
    .await?;
    Ok(())
}
