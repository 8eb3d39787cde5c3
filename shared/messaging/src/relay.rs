//! The relay: publishes the outbox, at least once.
//!
//! - A row is marked as sent only after the broker has acknowledged it. A relay that dies in between
//!   publishes it again, and the broker (`Nats-Msg-Id`) or the consumer's inbox drops the repetition.
//! - Rows are claimed by state (`sent_at IS NULL`) with `FOR UPDATE SKIP LOCKED`, never by position: a
//!   transaction that commits late is not skipped, and any number of replicas may relay at once.
//! - While the broker or the database is unavailable, rows stay where they are and the relay backs off.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::context::PublishAckFuture;
use contracts::{Cause, CorrelationId, Envelope, EventId, OrderId};
use futures::future::join_all;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Participant, backoff, headers};

/// Rows per transaction, and publishes in flight. Beyond this the broker's throughput no longer grows.
const BATCH: i64 = 512;
/// Poll interval, in case a wake-up is lost: a process may die between its commit and the wake-up.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long shutdown waits for the outbox to drain. Events that are left are published after the next
/// start, or by another replica.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Relay {
    participant: Participant,
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
    pub(crate) fn new(participant: Participant) -> Self {
        Self { participant }
    }

    /// Relays until `shutdown`, then flushes.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let service = self.participant.service;
        let mut delays = backoff::delays(backoff::MIN, backoff::MAX);
        while !shutdown.is_cancelled() {
            let Err(error) = self.drain().await else {
                self.participant.progress.touch("relay");
                delays = backoff::delays(backoff::MIN, backoff::MAX);
                tokio::select! {
                    () = self.participant.wake.woken() => {}
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                    () = shutdown.cancelled() => {}
                }
                continue;
            };
            let delay = delays.next().unwrap_or(backoff::MAX);
            tracing::warn!(%service, error = format!("{error:#}"),
                "events could not be published; they stay in the outbox, the relay retries in {delay:?}");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => {}
            }
        }
        let flushed = tokio::time::timeout(FLUSH_TIMEOUT, self.drain()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!(%service,
                "the outbox could not be flushed; its events are published after the next start");
        }
    }

    /// Publishes until a batch is not full. An event that is appended later wakes the relay again.
    async fn drain(&self) -> anyhow::Result<()> {
        while self.relay_batch().await? == BATCH as usize {}
        Ok(())
    }

    /// Claims, publishes and marks one batch; returns how many rows it had.
    async fn relay_batch(&self) -> anyhow::Result<usize> {
        let metrics = &self.participant.metrics;
        // The claim holds its row locks while the broker answers: that keeps two relays from
        // publishing the same row. Only relays lock rows of the outbox, so nothing else waits.
        let mut tx = self.participant.pool.begin().await.context("begin")?;
        let rows = claim(&mut tx).await.context("claim outbox rows")?;
        let age = |oldest: &Row| (OffsetDateTime::now_utc() - oldest.recorded_at).as_seconds_f64();
        metrics.outbox_age(rows.first().map_or(0.0, age));
        if rows.is_empty() {
            return Ok(0);
        }
        let claimed = rows.len();
        let (sent, failure) = self.publish(rows).await;
        // After a failure, too: rows that the broker has acknowledged need not be published again.
        mark_sent(&mut tx, &sent)
            .await
            .context("mark outbox rows as sent")?;
        tx.commit().await.context("commit")?;
        metrics.published(sent.len());
        failure.map_or(Ok(claimed), Err)
    }

    /// Publishes all rows pipelined, then waits for all acknowledgements: one round trip per batch
    /// instead of one per event. Returns (position, stream sequence) of the acknowledged rows, and the
    /// first failure among the others.
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
            cause: Cause {
                correlation_id: CorrelationId(row.correlation_id),
                causation_id: EventId(row.causation_id),
                traceparent: row.traceparent,
            },
        };
        let headers = headers::to_headers(&envelope, self.participant.service);
        let jetstream = &self.participant.broker.jetstream;
        #[expect(
            clippy::disallowed_methods,
            reason = "the relay is the one place that publishes events"
        )]
        let publish = jetstream.publish_with_headers(row.subject, headers, row.payload.into());
        let published = publish.await;
        published.with_context(|| format!("publish event {}", envelope.event_id))
    }
}

/// Waits for the broker's acknowledgement of a row; returns its position and its stream sequence.
async fn acknowledged(
    (position, sent): (i64, anyhow::Result<PublishAckFuture>),
) -> anyhow::Result<(i64, i64)> {
    let ack = sent?
        .await
        .context("the broker did not acknowledge an event")?;
    Ok((position, i64::try_from(ack.sequence)?))
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
