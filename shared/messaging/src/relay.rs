//! The relay: publishes the outbox, at least once.
//!
//! - A row is marked as sent only after the broker has acknowledged it. A relay that dies in between
//!   publishes it again, and the broker (`Nats-Msg-Id`) or the consumer's inbox drops the repetition.
//! - Rows are claimed by state (`sent_at IS NULL`) with `FOR UPDATE SKIP LOCKED`, never by position: a
//!   transaction that commits late is not skipped, and any number of replicas may relay at once.
//! - Before it publishes over a new connection, and regularly, it has the stream compared with the
//!   outbox (`reconcile`): what the broker has lost is published again.
//! - A row that can never be published is set aside, and does not hold up the others.
//! - While the broker or the database is unavailable, rows stay where they are and the relay backs off.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::context::PublishAckFuture;
use contracts::{Cause, CorrelationId, EventId, OrderId};
use futures::future::join_all;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Participant, backoff, broker::ACK_TIMEOUT, headers, reconcile, topology};

/// Rows per transaction, and publishes in flight. Beyond this the broker's throughput no longer grows.
const BATCH: i64 = 512;
/// Poll interval, in case a wake-up is lost: a process may die between its commit and the wake-up.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long shutdown waits for the outbox to drain. Events that are left are published after the next
/// start, or by another replica.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the end of the stream is compared with the outbox while the connection is undisturbed:
/// an operator may have deleted the stream.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);
/// More than our headers ever need.
const HEADER_BYTES: usize = 2048;
/// The relay's name in readiness.
const PART: &str = "relay";

pub(crate) struct Relay {
    participant: Participant,
    reconciled: Option<Reconciled>,
}

/// When stream and outbox were last compared, and over which connection.
struct Reconciled {
    at: Instant,
    connections: u64,
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

/// What became of a batch.
#[derive(Default)]
struct Published {
    /// Position and stream sequence of the rows that the broker has acknowledged.
    sent: Vec<(i64, i64)>,
    /// Position of the rows that can never be published, and why.
    set_aside: Vec<(i64, String)>,
    /// The first failure among the others.
    failure: Option<anyhow::Error>,
}

impl Relay {
    pub(crate) fn new(participant: Participant) -> Self {
        Self {
            participant,
            reconciled: None,
        }
    }

    /// Relays until `shutdown`, then flushes.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let Participant {
            service,
            broker,
            wake,
            progress,
            ..
        } = self.participant.clone();
        let mut delays = backoff::outage();
        while !shutdown.is_cancelled() {
            let relayed = tokio::select! {
                relayed = self.relay() => relayed,
                // Rows that are in flight are published again after the next start.
                () = broker.cut_off(&shutdown) => break,
            };
            let Err(error) = relayed else {
                delays = backoff::outage();
                tokio::select! {
                    () = wake.woken() => {}
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                    () = shutdown.cancelled() => {}
                }
                continue;
            };
            // What the broker has answered is unknown: look before the next publication.
            self.reconciled = None;
            let delay = delays.next_delay();
            let error = format!("{error:#}");
            tracing::warn!(%service, error,
                "events could not be published; they stay in the outbox, the relay retries in {delay:?}");
            progress.obstruct(PART, error);
            tokio::select! {
                () = broker.pause(delay) => {}
                () = shutdown.cancelled() => {}
            }
        }
        let flushed = tokio::time::timeout(FLUSH_TIMEOUT, self.relay()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!(%service,
                "the outbox could not be flushed; its events are published after the next start");
        }
    }

    /// Publishes until a batch is not full. An event that is appended later wakes the relay again.
    async fn relay(&mut self) -> anyhow::Result<()> {
        let broker = &self.participant.broker;
        // The client would keep what is published now and send it, stale, after the outage.
        ensure!(broker.is_connected(), "there is no connection to NATS");
        let connections = broker.connections();
        let is_due = self.reconciled.as_ref().is_none_or(|last| {
            last.connections != connections || last.at.elapsed() > RECONCILE_INTERVAL
        });
        if is_due {
            topology::reconcile_streams(broker).await?;
            reconcile::reconcile(&self.participant).await?;
            self.reconciled = Some(Reconciled {
                at: Instant::now(),
                connections,
            });
        }
        loop {
            let claimed = self.relay_batch().await?;
            self.participant.progress.touch(PART);
            if claimed < BATCH as usize {
                return Ok(());
            }
        }
    }

    /// Claims, publishes and marks one batch; returns how many rows it had.
    async fn relay_batch(&self) -> anyhow::Result<usize> {
        let metrics = &self.participant.metrics;
        // The claim holds its row locks while the broker answers: that keeps two relays from
        // publishing the same row. Only relays lock rows of the outbox, so nothing else waits.
        let mut tx = self.participant.pool.begin().await.context("begin")?;
        let rows = claim(&mut tx).await.context("claim outbox rows")?;
        metrics.outbox_oldest(rows.first().map(|oldest| oldest.recorded_at));
        if rows.is_empty() {
            return Ok(0);
        }
        let claimed = rows.len();
        let published = self.publish(rows).await;
        // After a failure, too: rows that the broker has acknowledged need not be published again.
        let reused = mark_sent(&mut tx, &published.sent).await;
        let reused = reused.context("mark outbox rows as sent")?;
        set_aside(&mut tx, &published.set_aside)
            .await
            .context("set outbox rows aside")?;
        tx.commit().await.context("commit")?;
        metrics.published(published.sent.len());
        self.report_set_aside(&published.set_aside);
        ensure!(
            !reused,
            "the stream uses sequences again: the broker has lost events"
        );
        published.failure.map_or(Ok(claimed), Err)
    }

    fn report_set_aside(&self, rows: &[(i64, String)]) {
        self.participant.metrics.set_aside(rows.len());
        for (position, reason) in rows {
            tracing::error!(service = %self.participant.service, outbox.position = position, reason,
                "an event cannot be published; it is set aside in the outbox for an operator");
        }
    }

    /// Publishes all rows pipelined, then waits for all acknowledgements: one round trip per batch
    /// instead of one per event.
    async fn publish(&self, rows: Vec<Row>) -> Published {
        let max_payload = self.participant.broker.client.server_info().max_payload;
        let mut published = Published::default();
        let mut pending = Vec::with_capacity(rows.len());
        for row in rows {
            let position = row.position;
            if let Some(reason) = obstacle(&row, max_payload) {
                published.set_aside.push((position, reason));
                continue;
            }
            match self.send(row).await {
                Ok(acknowledgement) => pending.push(acknowledged(position, acknowledgement)),
                Err(error) => {
                    published.failure = Some(error);
                    break;
                }
            }
        }
        for outcome in join_all(pending).await {
            match outcome {
                Ok(sent) => published.sent.push(sent),
                Err(error) => published.failure = published.failure.or(Some(error)),
            }
        }
        published
    }

    async fn send(&self, row: Row) -> anyhow::Result<PublishAckFuture> {
        let cause = Cause {
            correlation_id: CorrelationId(row.correlation_id),
            causation_id: EventId(row.causation_id),
            traceparent: row.traceparent,
        };
        // The subject as it is: a version that was rolled back may have written one that this
        // version does not know.
        let event = headers::Attributes {
            event_id: EventId(row.event_id),
            subject: &row.subject,
            order_id: OrderId(row.order_id),
            time: row.recorded_at,
            cause: &cause,
        };
        let headers = event.to_headers(self.participant.service);
        let jetstream = &self.participant.broker.jetstream;
        #[expect(
            clippy::disallowed_methods,
            reason = "the relay is the one place that publishes events"
        )]
        let publish =
            jetstream.publish_with_headers(row.subject.clone(), headers, row.payload.into());
        // It waits while the client's buffer is full, and the broker may be away by now.
        let published = tokio::time::timeout(ACK_TIMEOUT, publish).await;
        published
            .context("the connection to NATS takes no more events")?
            .with_context(|| format!("publish event {}", row.event_id))
    }
}

/// Why a row can never be published, if so. The client does not look: the server would close the
/// connection, and with it end all other publications.
fn obstacle(row: &Row, max_payload: usize) -> Option<String> {
    let token =
        |token: &str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !row.subject.split('.').all(token) {
        return Some(format!("{:?} is not a subject", row.subject));
    }
    let size = row.payload.len() + HEADER_BYTES;
    (size > max_payload)
        .then(|| format!("payload and headers have {size} bytes, the broker takes {max_payload}"))
}

/// Waits for the broker's acknowledgement of a row; returns its position and its stream sequence.
async fn acknowledged(
    position: i64,
    acknowledgement: PublishAckFuture,
) -> anyhow::Result<(i64, i64)> {
    let ack = acknowledgement
        .await
        .context("the broker did not acknowledge an event")?;
    Ok((position, i64::try_from(ack.sequence)?))
}

async fn claim(tx: &mut PgConnection) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"-- outbox_claim
        SELECT position, event_id, subject, order_id, payload, correlation_id, causation_id, traceparent, recorded_at
        FROM outbox WHERE sent_at IS NULL AND set_aside_at IS NULL
        ORDER BY position LIMIT $1 FOR UPDATE SKIP LOCKED"#,
        BATCH
    )
    .fetch_all(tx)
    .await
}

/// Returns whether the broker has given out a sequence that belongs to another row: the stream went
/// back, and nobody has noticed yet. In the same statement, because it runs for every batch.
async fn mark_sent(tx: &mut PgConnection, sent: &[(i64, i64)]) -> sqlx::Result<bool> {
    let (positions, sequences): (Vec<i64>, Vec<i64>) = sent.iter().copied().unzip();
    sqlx::query_scalar!(
        r#"-- outbox_mark_sent
        WITH marked AS (
            UPDATE outbox SET sent_at = clock_timestamp(), stream_sequence = sent.sequence
            FROM unnest($1::bigint[], $2::bigint[]) AS sent (position, sequence)
            WHERE outbox.position = sent.position)
        SELECT EXISTS (
            SELECT FROM outbox
            WHERE stream_sequence = ANY($2) AND position <> ALL($1)) AS "reused!""#,
        &positions,
        &sequences
    )
    .fetch_one(tx)
    .await
}

async fn set_aside(tx: &mut PgConnection, rows: &[(i64, String)]) -> sqlx::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (positions, reasons): (Vec<i64>, Vec<String>) = rows.iter().cloned().unzip();
    sqlx::query!(
        r#"-- outbox_set_aside
        UPDATE outbox SET set_aside_at = clock_timestamp(), set_aside_reason = row.reason
        FROM unnest($1::bigint[], $2::text[]) AS row (position, reason)
        WHERE outbox.position = row.position"#,
        &positions,
        &reasons
    )
    .execute(tx)
    .await?;
    Ok(())
}
