//! The CloudEvents 1.0 NATS binding in binary mode: attributes are headers, the payload is the bare
//! message.
//!
//! Source: CloudEvents "NATS Protocol Binding", section 3.2.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use contracts::{Cause, DecodeError, Envelope, EventId, OrderId, Service, header, parse_field};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const PROTOBUF: &str = "application/protobuf";

/// Why headers are not an envelope. A retry cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A required header is absent.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header cannot be read.
    #[error(transparent)]
    Invalid(#[from] DecodeError),
}

/// The headers of an event as `source` publishes it. `Nats-Msg-Id` is the event's id, so that the
/// broker drops a repetition by itself; correctness does not depend on that.
pub fn to_headers(envelope: &Envelope, source: Service) -> HeaderMap {
    let attributes = Attributes {
        event_id: envelope.event_id,
        subject: envelope.subject.as_str(),
        order_id: envelope.order_id,
        time: envelope.time,
        cause: &envelope.cause,
    };
    attributes.to_headers(source)
}

/// An envelope whose subject is text: of a row in the outbox that another version may have written.
pub(crate) struct Attributes<'a> {
    pub(crate) event_id: EventId,
    pub(crate) subject: &'a str,
    pub(crate) order_id: OrderId,
    pub(crate) time: OffsetDateTime,
    pub(crate) cause: &'a Cause,
}

impl Attributes<'_> {
    pub(crate) fn to_headers(&self, source: Service) -> HeaderMap {
        let id = self.event_id.to_string();
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        headers.insert(header::SPEC_VERSION, "1.0");
        headers.insert(header::ID, id);
        headers.insert(header::TYPE, self.subject);
        headers.insert(header::SOURCE, source.source());
        headers.insert(header::TIME, self.time.format(&Rfc3339).unwrap_or_default());
        headers.insert(header::SUBJECT, self.order_id.to_string());
        headers.insert(
            header::CORRELATION_ID,
            self.cause.correlation_id.to_string(),
        );
        headers.insert(header::CAUSATION_ID, self.cause.causation_id.to_string());
        headers.insert(header::CONTENT_TYPE, PROTOBUF);
        if let Some(traceparent) = &self.cause.traceparent {
            headers.insert(header::TRACEPARENT, traceparent.as_str());
        }
        headers
    }
}

/// Reads the headers of a message.
///
/// # Errors
/// [`EnvelopeError`] that names the header.
pub fn from_headers(headers: Option<&HeaderMap>) -> Result<Envelope, EnvelopeError> {
    let required = |name| text(headers, name).ok_or(EnvelopeError::Missing(name));
    let time = OffsetDateTime::parse(required(header::TIME)?, &Rfc3339);
    let cause = Cause {
        correlation_id: parse_field(header::CORRELATION_ID, required(header::CORRELATION_ID)?)?,
        causation_id: parse_field(header::CAUSATION_ID, required(header::CAUSATION_ID)?)?,
        traceparent: text(headers, header::TRACEPARENT).map(str::to_owned),
    };
    Ok(Envelope {
        event_id: parse_field(header::ID, required(header::ID)?)?,
        subject: required(header::TYPE)?.parse()?,
        order_id: parse_field(header::SUBJECT, required(header::SUBJECT)?)?,
        time: time.map_err(|error| DecodeError::invalid(header::TIME, error))?,
        cause,
    })
}

/// The value of a header as text; `None` when it is absent.
pub(crate) fn text<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    headers
        .and_then(|headers| headers.get(name))
        .map(|value| value.as_str())
}

#[cfg(test)]
mod tests {
    use contracts::{CorrelationId, Subject};

    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            event_id: EventId::new(),
            subject: Subject::OrderCreated,
            order_id: OrderId::new(),
            time: OffsetDateTime::UNIX_EPOCH,
            cause: Cause {
                correlation_id: CorrelationId::new(),
                causation_id: EventId::new(),
                traceparent: Some(
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                ),
            },
        }
    }

    #[test]
    fn headers_read_back() {
        let envelope = envelope();
        let headers = to_headers(&envelope, Service::Order);
        let id = text(Some(&headers), "Nats-Msg-Id");
        assert_eq!(id, Some(envelope.event_id.to_string().as_str()));
        assert_eq!(from_headers(Some(&headers)), Ok(envelope));
    }

    #[test]
    fn a_missing_or_invalid_header_is_named() {
        let missing = EnvelopeError::Missing(header::TIME);
        assert_eq!(from_headers(None), Err(missing));
        for (name, value) in [
            (header::CORRELATION_ID, "no uuid"),
            (header::TIME, "yesterday"),
            (header::TYPE, "order.created.v9"),
        ] {
            let mut headers = to_headers(&envelope(), Service::Order);
            headers.insert(name, value);
            let error = from_headers(Some(&headers)).unwrap_err().to_string();
            assert!(error.contains(name) || error.contains(value), "{error}");
        }
    }
}
