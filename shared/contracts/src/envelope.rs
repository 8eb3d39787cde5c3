//! Everything about an event but its payload, and the names of its CloudEvents attributes.

use time::OffsetDateTime;

use crate::{Cause, EventId, OrderId, Subject};

/// Names of the headers: CloudEvents 1.0, "NATS Protocol Binding", section 3.2 (lower case there).
pub mod header {
    /// The event's id.
    pub const ID: &str = "ce-id";
    /// The event's type: its subject.
    pub const TYPE: &str = "ce-type";
    /// The service that published it.
    pub const SOURCE: &str = "ce-source";
    /// When it was recorded, RFC 3339.
    pub const TIME: &str = "ce-time";
    /// The order's id.
    pub const SUBJECT: &str = "ce-subject";
    /// Version of the CloudEvents specification.
    pub const SPEC_VERSION: &str = "ce-specversion";
    /// The customer's request that started the chain.
    pub const CORRELATION_ID: &str = "ce-correlationid";
    /// The event or command directly before this event.
    pub const CAUSATION_ID: &str = "ce-causationid";
    /// Media type of the payload.
    pub const CONTENT_TYPE: &str = "content-type";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
}

/// Everything about an event but its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The event, UUIDv7.
    pub event_id: EventId,
    /// The kind of event.
    pub subject: Subject,
    /// The order that the event is about.
    pub order_id: OrderId,
    /// When it was recorded.
    pub time: OffsetDateTime,
    /// What it follows from.
    pub cause: Cause,
}
