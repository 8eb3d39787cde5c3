//! What a request carries from the edge through every call: correlation, trace, deadline.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use contracts::{Cause, CorrelationId, EventId, trace_id};
use http::HeaderMap;
use opentelemetry::{global, trace::TraceContextExt as _};
use tonic::{
    Request,
    metadata::{MetadataMap, MetadataValue},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use uuid::Uuid;

/// Metadata key and HTTP header of the correlation id.
pub const CORRELATION_ID: &str = "x-correlation-id";
/// Metadata key and HTTP header of the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// What a request carries along.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// One per request of a customer.
    pub correlation_id: CorrelationId,
    /// This request as a command: the cause of the events that it leads to.
    pub command_id: EventId,
    /// W3C trace context to continue.
    pub traceparent: String,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// There is no caller's span to continue: the trace starts here.
    begins_trace: bool,
}

impl RequestContext {
    /// For a request at the edge: valid identifiers of the client are kept, others are replaced.
    pub fn for_edge(
        correlation_id: Option<&str>,
        traceparent: Option<&str>,
        budget: Duration,
    ) -> Self {
        let traceparent = traceparent.filter(|text| is_traceparent(text));
        Self {
            correlation_id: correlation_id
                .and_then(|text| text.parse().ok())
                .unwrap_or_else(CorrelationId::new),
            command_id: EventId::new(),
            begins_trace: traceparent.is_none(),
            traceparent: traceparent.map_or_else(new_traceparent, str::to_owned),
            deadline: Instant::now().checked_add(budget),
        }
    }

    /// For long-lived streams: no overall deadline, only a timeout per call.
    pub fn without_deadline(self) -> Self {
        Self {
            deadline: None,
            ..self
        }
    }

    /// For a call from another service; continues in the span of the call.
    pub fn from_metadata(metadata: &MetadataMap) -> Self {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let budget = budget(metadata.as_ref()).unwrap_or(DEFAULT_BUDGET);
        let mut context = Self::for_edge(text(CORRELATION_ID), text(TRACEPARENT), budget);
        context.propagate(&Span::current().context());
        context
    }

    /// Makes `span` a child of the caller's span, if there is one, and the parent of all spans that
    /// follow, and fills in its field `trace.id`. When nobody exports spans the trace context stays
    /// unchanged: still the same trace id.
    pub fn continue_in(&mut self, span: &Span) {
        if !self.begins_trace {
            set_parent(span, &self.traceparent);
        }
        if self.propagate(&span.context()) {
            span.record("trace.id", self.trace_id());
        }
    }

    /// Whether there is a span to continue in.
    fn propagate(&mut self, context: &opentelemetry::Context) -> bool {
        let is_exported = context.span().span_context().is_valid();
        if is_exported {
            let mut carrier = HashMap::new();
            global::get_text_map_propagator(|propagator| {
                propagator.inject_context(context, &mut carrier)
            });
            self.traceparent = carrier
                .remove(TRACEPARENT)
                .unwrap_or_else(|| std::mem::take(&mut self.traceparent));
        }
        is_exported
    }

    /// Passes correlation, trace and the remaining time, at most `most`, to a call.
    pub fn apply<T>(&self, request: &mut Request<T>, most: Duration) {
        let remaining = self.deadline.map_or(most, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        request.set_timeout(remaining.min(most));
        let mut correlation = Uuid::encode_buffer();
        let correlation: &str = self
            .correlation_id
            .0
            .as_hyphenated()
            .encode_lower(&mut correlation);
        if let Ok(value) = MetadataValue::try_from(correlation) {
            request.metadata_mut().insert(CORRELATION_ID, value);
        }
        if let Ok(value) = MetadataValue::try_from(self.traceparent.as_str()) {
            request.metadata_mut().insert(TRACEPARENT, value);
        }
    }

    /// The cause of the events that this request leads to.
    pub fn cause(&self) -> Cause {
        Cause {
            correlation_id: self.correlation_id,
            causation_id: self.command_id,
            traceparent: Some(self.traceparent.clone()),
        }
    }

    /// The trace's id, unless a span is still to decide it: see [`continue_in`](Self::continue_in).
    pub fn final_trace_id(&self) -> Option<&str> {
        let is_exported =
            global::get_text_map_propagator(|propagator| propagator.fields().next().is_some());
        (!is_exported).then(|| self.trace_id())
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        trace_id(&self.traceparent)
    }
}

/// The span of a gRPC call, child of the caller's.
pub(crate) fn call_span(request: &http::Request<()>) -> Span {
    let text = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let (path, traceparent) = (request.uri().path(), text(TRACEPARENT));
    let span = tracing::info_span!(
        "grpc",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "server",
        correlation.id = text(CORRELATION_ID),
        trace.id = trace_id(traceparent)
    );
    set_parent(&span, traceparent);
    span
}

fn set_parent(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    // Fails when nothing is exported; then there is nothing to link.
    let _linked = span.set_parent(parent);
}

const DEFAULT_BUDGET: Duration = Duration::from_secs(10);

/// Whether a text is a `traceparent` of version 00 (W3C Trace Context, section 3.2.2).
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    match parts[..] {
        ["00", trace, span, flags] => {
            hex(trace, 32) && hex(span, 16) && hex(flags, 2) && !zero(trace) && !zero(span)
        }
        _ => false,
    }
}

/// A new trace, marked as sampled: the exporter decides what it keeps.
fn new_traceparent() -> String {
    let (_, span) = Uuid::new_v4().as_u64_pair();
    format!("00-{}-{span:016x}-01", Uuid::new_v4().simple())
}

/// How long a call may take; `None` when its caller sets no limit.
pub(crate) fn budget(headers: &HeaderMap) -> Option<Duration> {
    let timeout = headers.get("grpc-timeout")?;
    parse_timeout(timeout.to_str().ok()?)
}

/// Reads `grpc-timeout` (gRPC over HTTP/2, "Timeout"): up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = if digits.len() <= 8 {
        digits.parse().ok()?
    } else {
        return None;
    };
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_wellformed_context_is_kept_and_anything_else_is_replaced() {
        let id = CorrelationId::new();
        let kept =
            RequestContext::for_edge(Some(&id.to_string()), Some(TRACE), Duration::from_secs(1));
        assert_eq!(
            (kept.correlation_id, kept.traceparent.as_str()),
            (id, TRACE)
        );
        for wrong in [
            "",
            "00-x-y-z",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            &TRACE.to_uppercase(),
        ] {
            let replaced =
                RequestContext::for_edge(Some("no uuid\r\n"), Some(wrong), Duration::from_secs(1));
            assert!(
                is_traceparent(&replaced.traceparent) && replaced.traceparent != wrong,
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_call_gets_the_smaller_of_its_own_and_the_remaining_time() {
        let context = RequestContext::for_edge(None, Some(TRACE), Duration::from_millis(100));
        let mut request = Request::new(());
        context.apply(&mut request, Duration::from_secs(60));
        let handed_on = RequestContext::from_metadata(request.metadata());
        assert!(handed_on.deadline.unwrap() <= Instant::now() + Duration::from_millis(100));
        assert_eq!(handed_on.correlation_id, context.correlation_id);
        assert_eq!(handed_on.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        for wrong in ["", "m", "1", "123456789S", "-1S", "5ü"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }
}
