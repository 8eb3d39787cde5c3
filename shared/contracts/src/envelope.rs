//! The CloudEvents 1.0 NATS binding in binary mode: attributes are headers, the payload is the bare
//! message.
//!
//! Source: CloudEvents "NATS Protocol Binding", section 3.2; the header names are lower case there.

use async_nats::HeaderMap;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    CorrelationId, DecodeError, EventId, OrderId, Subject, choreography::Service, parse_field,
};

/// Names of the headers.
pub mod header {
    /// The event's id; also the broker's de-duplication key.
    pub const ID: &str = "ce-id";
    /// The event's type: its subject.
    pub const TYPE: &str = "ce-type";
    /// Who published it.
    pub const SOURCE: &str = "ce-source";
    /// When it was recorded, RFC 3339.
    pub const TIME: &str = "ce-time";
    /// What it is about: the order's id.
    pub const SUBJECT: &str = "ce-subject";
    /// Version of the CloudEvents specification.
    pub const SPEC_VERSION: &str = "ce-specversion";
    /// The customer's request that all this began with.
    pub const CORRELATION_ID: &str = "ce-correlationid";
    /// The event or command that caused this one.
    pub const CAUSATION_ID: &str = "ce-causationid";
    /// Media type of the payload.
    pub const CONTENT_TYPE: &str = "content-type";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// JetStream's de-duplication header.
    pub const NATS_MSG_ID: &str = "Nats-Msg-Id";
}

const PROTOBUF: &str = "application/protobuf";

/// Everything about an event but its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The event, UUIDv7.
    pub event_id: EventId,
    /// What kind of event it is.
    pub subject: Subject,
    /// The order that it is about.
    pub order_id: OrderId,
    /// When it was recorded.
    pub time: OffsetDateTime,
    /// The customer's request that all this began with.
    pub correlation_id: CorrelationId,
    /// The event or command that caused this one.
    pub causation_id: EventId,
    /// W3C trace context of whoever recorded it.
    pub traceparent: Option<String>,
}

/// Why headers are not an envelope. No retry mends any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A required header is absent.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header cannot be read.
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
}

impl Envelope {
    /// The headers of this event as published by `source`.
    pub fn to_headers(&self, source: Service) -> HeaderMap {
        let id = self.event_id.to_string();
        let time = self.time.format(&Rfc3339).unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MSG_ID, id.as_str());
        headers.insert(header::SPEC_VERSION, "1.0");
        headers.insert(header::ID, id);
        headers.insert(header::TYPE, self.subject.as_str());
        headers.insert(header::SOURCE, source.source());
        headers.insert(header::TIME, time);
        headers.insert(header::SUBJECT, self.order_id.to_string());
        headers.insert(header::CORRELATION_ID, self.correlation_id.to_string());
        headers.insert(header::CAUSATION_ID, self.causation_id.to_string());
        headers.insert(header::CONTENT_TYPE, PROTOBUF);
        if let Some(traceparent) = &self.traceparent {
            headers.insert(header::TRACEPARENT, traceparent.as_str());
        }
        headers
    }

    /// Reads the headers of a message.
    ///
    /// # Errors
    /// [`EnvelopeError`] that names the header.
    pub fn from_headers(headers: Option<&HeaderMap>) -> Result<Self, EnvelopeError> {
        let required = |name| text(headers, name).ok_or(EnvelopeError::Missing(name));
        let time = required(header::TIME)?;
        let time = OffsetDateTime::parse(time, &Rfc3339).map_err(|error| DecodeError::Field {
            field: header::TIME,
            reason: error.to_string(),
        })?;
        Ok(Self {
            event_id: parse_field(header::ID, required(header::ID)?)?,
            subject: required(header::TYPE)?.parse()?,
            order_id: parse_field(header::SUBJECT, required(header::SUBJECT)?)?,
            time,
            correlation_id: parse_field(header::CORRELATION_ID, required(header::CORRELATION_ID)?)?,
            causation_id: parse_field(header::CAUSATION_ID, required(header::CAUSATION_ID)?)?,
            traceparent: text(headers, header::TRACEPARENT).map(str::to_owned),
        })
    }
}

fn text<'a>(headers: Option<&'a HeaderMap>, name: &'static str) -> Option<&'a str> {
    headers
        .and_then(|headers| headers.get(name))
        .map(|value| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            event_id: EventId::new(),
            subject: Subject::OrderCreated,
            order_id: OrderId::new(),
            time: OffsetDateTime::UNIX_EPOCH,
            correlation_id: CorrelationId::new(),
            causation_id: EventId::new(),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        }
    }

    #[test]
    fn headers_read_back() {
        let envelope = envelope();
        let headers = envelope.to_headers(Service::Order);
        assert_eq!(
            headers.get(header::NATS_MSG_ID).unwrap().as_str(),
            envelope.event_id.to_string()
        );
        assert_eq!(Envelope::from_headers(Some(&headers)), Ok(envelope));
    }

    #[test]
    fn a_missing_or_unreadable_header_is_named() {
        assert_eq!(
            Envelope::from_headers(None),
            Err(EnvelopeError::Missing(header::TIME))
        );
        let mut headers = envelope().to_headers(Service::Order);
        headers.insert(header::SUBJECT, "no uuid");
        let error = Envelope::from_headers(Some(&headers))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("field ce-subject: invalid"), "{error}");
    }
}
