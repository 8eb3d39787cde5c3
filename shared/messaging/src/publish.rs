//! Publishes rows of the outbox: the one place that publishes events.

use anyhow::{Context as _, anyhow};
use async_nats::{header::NATS_MESSAGE_ID, jetstream::context::PublishAckFuture};
use contracts::{EventId, Service};
use futures::future::join_all;
use uuid::Uuid;

use crate::{Broker, broker::ACK_TIMEOUT, headers, outbox::Recorded};

/// More than our headers ever need.
const HEADER_BYTES: usize = 2048;

/// What became of a batch.
#[derive(Default)]
pub(crate) struct Published {
    /// What the broker has acknowledged.
    pub(crate) sent: Vec<Sent>,
    /// The rows that can never be published, and why.
    pub(crate) refused: Vec<(Recorded, String)>,
    /// The first failure among the others.
    pub(crate) failure: Option<anyhow::Error>,
}

/// An event and its place in the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) event_id: EventId,
    pub(crate) sequence: i64,
    /// The broker had it already, from a publication that nobody has noted.
    pub(crate) is_duplicate: bool,
}

/// Publishes all rows pipelined, then waits for all acknowledgements: one round trip per batch
/// instead of one per event.
///
/// What is published again, up to `replayed_until`, gets a message id of its own: the broker may
/// still remember the event's id, although it has lost the event.
pub(crate) async fn publish(
    broker: &Broker,
    service: Service,
    rows: Vec<Recorded>,
    replayed_until: i64,
) -> Published {
    tokio::select! {
        published = publish_all(broker, service, rows, replayed_until) => published,
        // The acknowledgements went with the connection; waiting for them would take seconds.
        () = broker.reconnected() => Published {
            failure: Some(anyhow!("the connection to NATS was interrupted")),
            ..Published::default()
        },
    }
}

async fn publish_all(
    broker: &Broker,
    service: Service,
    rows: Vec<Recorded>,
    replayed_until: i64,
) -> Published {
    let max_payload = broker.client.server_info().max_payload;
    let mut published = Published::default();
    let mut pending = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(reason) = obstacle(&row, max_payload) {
            published.refused.push((row, reason));
            continue;
        }
        let event_id = row.event_id;
        let is_again = row.position <= replayed_until;
        match send(broker, service, row, is_again).await {
            Ok(acknowledgement) => pending.push(acknowledged(event_id, acknowledgement)),
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

async fn send(
    broker: &Broker,
    service: Service,
    row: Recorded,
    is_again: bool,
) -> anyhow::Result<PublishAckFuture> {
    // The subject as it is: a version that was rolled back may have written one that this version
    // does not know.
    let event = headers::Attributes {
        event_id: row.event_id,
        subject: &row.subject,
        order_id: row.order_id,
        time: row.recorded_at,
        cause: &row.cause,
    };
    let mut headers = event.to_headers(service);
    if is_again {
        headers.insert(NATS_MESSAGE_ID, Uuid::now_v7().to_string());
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the relay is the one place that publishes events"
    )]
    let publish = broker
        .jetstream
        .publish_with_headers(row.subject, headers, row.payload.into());
    // It waits while the client's buffer is full, and the broker may be away by now.
    let published = tokio::time::timeout(ACK_TIMEOUT, publish).await;
    published
        .context("the connection to NATS takes no more events")?
        .with_context(|| format!("publish event {}", row.event_id))
}

/// Why a row can never be published, if so. The client does not look: the server would close the
/// connection, and with it end all other publications.
fn obstacle(row: &Recorded, max_payload: usize) -> Option<String> {
    let token =
        |token: &str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !row.subject.split('.').all(token) {
        return Some(format!("{:?} is not a subject", row.subject));
    }
    let size = row.payload.len() + HEADER_BYTES;
    (size > max_payload)
        .then(|| format!("payload and headers have {size} bytes, the broker takes {max_payload}"))
}

/// Waits for the broker's acknowledgement of an event.
async fn acknowledged(
    event_id: EventId,
    acknowledgement: PublishAckFuture,
) -> anyhow::Result<Sent> {
    let ack = acknowledgement
        .await
        .context("the broker did not acknowledge an event")?;
    Ok(Sent {
        event_id,
        sequence: i64::try_from(ack.sequence)?,
        is_duplicate: ack.duplicate,
    })
}
