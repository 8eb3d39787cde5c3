//! Dead letters: an event that cannot be applied is kept with its reason, never dropped.
//! The dead letter is published and acknowledged first; only then is the event terminated. The
//! broker's `max_deliver` would not do: it merely stops delivering.

use anyhow::Context as _;
use async_nats::{HeaderMap, header::NATS_MESSAGE_ID, jetstream};
use contracts::{
    Service,
    dead_letter::{REDRIVE, header},
    header as event_header,
};

use dead_letters::{KEPT_BYTES, is_about_delivery};

use crate::{Broker, headers::text, topology::original_subject};

/// Bytes kept of all headers together, CloudEvents attributes first. The broker accepts 64 KB. With
/// [`KEPT_BYTES`] and the limits below a dead letter always fits into one NATS message.
const KEPT_HEADER_BYTES: usize = 32 * 1024;
/// Bytes kept of each header, and of the reason.
const KEPT_VALUE_BYTES: usize = 1024;
/// Bytes kept of the subject, which the broker limits together with the reply address.
const KEPT_SUBJECT_BYTES: usize = 256;

/// Publishes `message` as a dead letter of `service`, then terminates it.
///
/// # Errors
/// When the broker does not acknowledge the dead letter; it then redelivers the message.
pub(crate) async fn publish(
    broker: &Broker,
    service: Service,
    message: &jetstream::Message,
    attempts: u32,
    reason: &anyhow::Error,
) -> anyhow::Result<()> {
    let info = message
        .info()
        .map_err(anyhow::Error::from_boxed)
        .context("message without JetStream information")?;
    let mut headers = keep(message.headers.as_ref());
    describe(&mut headers, service, &info, attempts, reason);
    if info.stream == REDRIVE {
        keep_origin(&mut headers, message.headers.as_ref());
    }
    let mut payload = message.payload.clone();
    if payload.len() > KEPT_BYTES {
        headers.insert(header::TRUNCATED, payload.len().to_string());
        payload.truncate(KEPT_BYTES);
    }
    let subject = format!(
        "dlq.{service}.{}",
        cut(original_subject(&message.subject), KEPT_SUBJECT_BYTES)
    );
    #[expect(
        clippy::disallowed_methods,
        reason = "a dead letter is not an event and has no outbox"
    )]
    let publish = broker
        .jetstream
        .publish_with_headers(subject, headers, payload);
    publish
        .await
        .context("publish dead letter")?
        .await
        .context("dead letter was not acknowledged")?;
    message
        .ack_with(jetstream::AckKind::Term)
        .await
        .map_err(anyhow::Error::from_boxed)
}

/// The event's own headers, cut to size. Headers that address the broker (`Nats-Expected-Stream`,
/// `Nats-Rollup`) are left out: they belong to the stream that the event came from, and the broker
/// could reject the dead letter because of them. So are those of an earlier dead letter.
fn keep(headers: Option<&HeaderMap>) -> HeaderMap {
    let mut all: Vec<_> = headers.into_iter().flat_map(HeaderMap::iter).collect();
    all.sort_by_key(|(name, _)| !AsRef::<str>::as_ref(name).starts_with("ce-"));
    let mut kept = HeaderMap::new();
    let mut room = KEPT_HEADER_BYTES;
    for (name, values) in all {
        let text: &str = name.as_ref();
        if is_about_delivery(text) {
            continue;
        }
        for value in values {
            let value = cut(value.as_str(), KEPT_VALUE_BYTES);
            if let Some(left) = room.checked_sub(text.len() + value.len()) {
                room = left;
                kept.append(name.clone(), value);
            }
        }
    }
    kept
}

/// Where a redriven event was first, and how often it was redriven: after any number of redrives a
/// dead letter names the stream that may still have the event.
fn keep_origin(headers: &mut HeaderMap, redriven: Option<&HeaderMap>) {
    for name in [header::STREAM, header::SEQUENCE, header::REDRIVES] {
        if let Some(value) = text(redriven, name) {
            headers.insert(name, value);
        }
    }
}

fn describe(
    headers: &mut HeaderMap,
    service: Service,
    info: &jetstream::message::Info<'_>,
    attempts: u32,
    reason: &anyhow::Error,
) {
    // The broker drops a repetition: one dead letter per service and message. A redriven event is
    // another message, so that its second dead letter is not dropped as a repetition of the first.
    // A stream that was deleted gives its sequences to other events.
    let event = text(Some(headers), event_header::ID).unwrap_or_default();
    let id = format!(
        "dlq-{service}-{}-{}-{event}",
        info.stream, info.stream_sequence
    );
    headers.insert(NATS_MESSAGE_ID, id);
    headers.insert(header::SERVICE, service.name());
    headers.insert(header::REASON, one_line(reason));
    headers.insert(header::ATTEMPTS, attempts.to_string());
    headers.insert(header::STREAM, info.stream);
    headers.insert(header::SEQUENCE, info.stream_sequence.to_string());
}

/// The reason with its causes, as a header or a log line can hold it.
pub(crate) fn one_line(reason: &anyhow::Error) -> String {
    cut(
        &format!("{reason:#}").replace(['\r', '\n'], " "),
        KEPT_VALUE_BYTES,
    )
    .to_owned()
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_address_the_broker_are_left_out_and_long_ones_are_cut() {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", "ORDER");
        headers.insert("nats-rollup", "all");
        headers.insert("Dead-Letter-Truncated", "1");
        headers.insert("ce-id", "é".repeat(KEPT_VALUE_BYTES));
        let kept = keep(Some(&headers));
        assert_eq!(kept.len(), 1);
        assert_eq!(
            kept.get("ce-id").unwrap().as_str(),
            "é".repeat(KEPT_VALUE_BYTES / 2)
        );
        assert!(keep(None).is_empty());
    }

    #[test]
    fn cloudevents_attributes_are_kept_first() {
        let mut headers: HeaderMap = (0..200)
            .map(|nth| {
                (
                    format!("x-{nth}").parse().unwrap(),
                    "x".repeat(KEPT_VALUE_BYTES).into(),
                )
            })
            .collect();
        headers.insert("ce-id", "1");
        let kept = keep(Some(&headers));
        assert_eq!(kept.get("ce-id").unwrap().as_str(), "1");
        assert_eq!(kept.len(), 1 + 31, "32 KB hold no more of a good 1 KB each");
    }
}
