//! Dead letters: what cannot be applied is kept with its reason, never dropped.
//!
//! The letter is published and acknowledged first; only then is the message terminated. `max_deliver` would not do:
//! the broker then merely stops delivering.

use anyhow::Context as _;
use async_nats::{HeaderMap, jetstream};
use contracts::{choreography::Service, header as event_header};

use crate::Broker;

/// Headers that a dead letter has besides those of the event.
pub mod header {
    /// The service that gave up.
    pub const SERVICE: &str = "dead-letter-service";
    /// Why: the error with its causes.
    pub const REASON: &str = "dead-letter-reason";
    /// How often the event was tried.
    pub const ATTEMPTS: &str = "dead-letter-attempts";
    /// The stream that the event came from.
    pub const STREAM: &str = "dead-letter-stream";
    /// Its sequence there.
    pub const SEQUENCE: &str = "dead-letter-sequence";
    /// Set when the payload was too large to keep: its length in bytes; the event itself is still in its stream.
    pub const TRUNCATED: &str = "dead-letter-truncated";
}

/// What is kept of an oversized payload, so that letter and headers fit into any message.
const KEPT_BYTES: usize = 256 * 1024;

/// Keeps `message` as a dead letter of `service` and terminates it.
///
/// # Errors
/// When the broker does not acknowledge the letter; the message is then delivered again.
pub(crate) async fn bury(
    broker: &Broker,
    service: Service,
    message: &jetstream::Message,
    attempts: u32,
    reason: &anyhow::Error,
) -> anyhow::Result<()> {
    let info = message.info().map_err(anyhow::Error::from_boxed).context("message without JetStream information")?;
    let mut headers = message.headers.clone().unwrap_or_default();
    describe(&mut headers, service, &info, attempts, reason);
    let mut payload = message.payload.clone();
    if payload.len() > KEPT_BYTES {
        headers.insert(header::TRUNCATED, payload.len().to_string());
        payload.truncate(KEPT_BYTES);
    }
    let subject = format!("dlq.{service}.{}", message.subject);
    #[expect(clippy::disallowed_methods, reason = "a dead letter is not an event and has no outbox")]
    let publish = broker.jetstream.publish_with_headers(subject, headers, payload);
    publish.await.context("publish dead letter")?.await.context("dead letter was not acknowledged")?;
    message.ack_with(jetstream::AckKind::Term).await.map_err(anyhow::Error::from_boxed)
}

fn describe(
    headers: &mut HeaderMap,
    service: Service,
    info: &jetstream::message::Info<'_>,
    attempts: u32,
    reason: &anyhow::Error,
) {
    // One letter per service and message, however often we get here.
    let id = format!("dlq-{service}-{}-{}", info.stream, info.stream_sequence);
    headers.insert(event_header::NATS_MSG_ID, id);
    headers.insert(header::SERVICE, service.name());
    headers.insert(header::REASON, one_line(reason));
    headers.insert(header::ATTEMPTS, attempts.to_string());
    headers.insert(header::STREAM, info.stream);
    headers.insert(header::SEQUENCE, info.stream_sequence.to_string());
}

/// Header values must not contain line breaks.
fn one_line(reason: &anyhow::Error) -> String {
    format!("{reason:#}").replace(['\r', '\n'], " ")
}
