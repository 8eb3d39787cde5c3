//! What an event follows from.

use crate::{CorrelationId, EventId};

/// What an event follows from, and which trace it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The customer's request that started the chain.
    pub correlation_id: CorrelationId,
    /// The event or command directly before this event.
    pub causation_id: EventId,
    /// W3C trace context to continue.
    pub traceparent: Option<String>,
}

/// The trace id of a `traceparent`: its second part, 32 hexadecimal digits (W3C Trace Context,
/// section 3.2). Empty when there is none.
pub fn trace_id(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).unwrap_or_default()
}
