//! One trace from the customer's request through all services: spans of handlers continue the
//! publisher's trace.

use std::collections::HashMap;

use contracts::{Envelope, header, trace_id};
use opentelemetry::{global, trace::TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// A span for handling one event, child of the span that recorded it, and the trace context for
/// events that follow. When nobody exports spans there is none, and the context is the publisher's:
/// still the same trace id.
pub(crate) fn handling(envelope: &Envelope) -> (Span, Option<String>) {
    let traceparent = envelope.cause.traceparent.clone();
    if !is_exported() {
        return (Span::none(), traceparent);
    }
    let span = tracing::info_span!(
        "handle",
        otel.name = %envelope.subject,
        otel.kind = "consumer",
        order.id = %envelope.order_id,
        event.id = %envelope.event_id,
        event.r#type = envelope.subject.as_str(),
        correlation.id = %envelope.cause.correlation_id,
        trace.id = trace_id(traceparent.as_deref().unwrap_or_default()),
    );
    let Some(parent) = &traceparent else {
        return (span, traceparent);
    };
    let carrier = HashMap::from([(header::TRACEPARENT.to_owned(), parent.clone())]);
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    if span.set_parent(context).is_err() {
        return (span, traceparent);
    }
    let mut propagated = HashMap::new();
    let context = span.context();
    if context.span().span_context().is_valid() {
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut propagated)
        });
    }
    (span, propagated.remove(header::TRACEPARENT).or(traceparent))
}

/// Whether spans are exported: only then is a propagator set.
fn is_exported() -> bool {
    global::get_text_map_propagator(|propagator| propagator.fields().next().is_some())
}
