//! The timeline of an order, composed of the event logs of the services.

use std::collections::HashMap;

use axum::{Json, extract::State};
use bootstrap::RequestContext;
use contracts::{OrderId, Service, trace_id};
use futures::future::join_all;
use proto::{
    eventlog::v1::{ListEventsRequest, RecordedEvent},
    order::v1::GetOrderRequest,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, schema::Type},
};

use crate::{
    backends::{Backends, PART_TIMEOUT, REQUEST_BUDGET, publishers, request},
    extract::{Context, OrderPath, Reader},
    problem::Problem,
    views::{self, Missing},
};

/// Every event of an order, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Timeline {
    #[schema(format = Uuid)]
    pub order_id: String,
    pub events: Vec<TimelineEvent>,
    /// The services whose events could not be read now; their events are left out.
    #[schema(schema_with = publisher_names)]
    pub unavailable: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TimelineEvent {
    #[schema(format = Uuid)]
    pub id: String,
    #[schema(example = "order.created.v1")]
    pub r#type: String,
    /// The service that published it.
    #[schema(schema_with = publisher_name)]
    pub service: &'static str,
    /// By the clock of that service.
    #[serde(with = "time::serde::rfc3339")]
    pub recorded_at: OffsetDateTime,
    /// Milliseconds since the order's first event.
    pub offset_ms: i64,
    /// The event or command that caused it.
    #[schema(format = Uuid)]
    pub causation_id: String,
    /// The type of the event that caused it; null for a command.
    #[schema(required = true)]
    pub cause: Option<String>,
    /// The customer's request that started it all.
    #[schema(format = Uuid)]
    pub correlation_id: String,
    /// The distributed trace that it is part of.
    #[schema(example = "0af7651916cd43dd8448eb211c80319c")]
    pub trace_id: String,
    /// Its place among the order's events in the service's log, from 1.
    #[serde(skip)]
    pub nth: usize,
    /// Not before those that precede it in the log, whatever the clocks of replicas say.
    #[serde(skip)]
    shown_at: Option<OffsetDateTime>,
}

fn publisher_name() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(publishers().map(Service::name)))
        .build()
}

fn publisher_names() -> utoipa::openapi::schema::Array {
    utoipa::openapi::schema::Array::new(publisher_name())
}

/// Every event of the order, with its cause, its time and its trace.
#[utoipa::path(get, path = "/api/v1/orders/{id}/timeline", tag = "orders",
    security(("accessToken" = ["orders:read"])),
    params(OrderPath),
    responses((status = 200, description = "The timeline", body = Timeline),
              (status = 404, description = "The customer has no such order")))]
pub async fn get_timeline(
    State(mut backends): State<Backends>,
    Context(context): Context,
    Reader(customer): Reader,
    OrderPath(id): OrderPath,
) -> Result<Json<Timeline>, Problem> {
    let own = GetOrderRequest {
        order_id: id.to_string(),
        customer_id: customer.to_string(),
    };
    // Event logs do not know customers: this is the check that it is the customer's order.
    backends
        .orders
        .get_order(request(&context, REQUEST_BUDGET, own))
        .await?;
    Ok(Json(timeline(&backends, &context, id).await))
}

/// The order's events, as far as they can be read.
///
/// The logs are not read at the same instant: an effect may be there without its cause, if the
/// cause was written just after its log was read. A second read finds the cause, because it was
/// written before its effect.
pub async fn timeline(backends: &Backends, context: &RequestContext, id: OrderId) -> Timeline {
    let first = read(backends, context, id).await;
    let complete = first
        .events
        .iter()
        .skip(1)
        .all(|event| event.cause.is_some());
    if complete {
        first
    } else {
        read(backends, context, id).await
    }
}

async fn read(backends: &Backends, context: &RequestContext, id: OrderId) -> Timeline {
    let logs = backends.event_logs.iter().map(async |(service, log)| {
        let order_id = id.to_string();
        let request = request(context, PART_TIMEOUT, ListEventsRequest { order_id });
        let log = log.clone().list_events(request).await;
        let events = log.map_err(|status| status.to_string()).and_then(|log| {
            let events = log.into_inner().events.into_iter();
            let events: Result<Vec<_>, Missing> = events
                .map(|event| TimelineEvent::new(*service, event))
                .collect();
            events.map(number).map_err(|missing| missing.to_string())
        });
        (service.name(), events)
    });
    let (mut events, mut unavailable) = (Vec::new(), Vec::new());
    for (service, log) in join_all(logs).await {
        match log {
            Ok(log) => events.extend(log),
            Err(error) => {
                tracing::warn!(
                    order.id = %id, service, error,
                    "the event log is unavailable; the response lists the service as unavailable"
                );
                unavailable.push(service);
            }
        }
    }
    relate(&mut events);
    Timeline {
        order_id: id.to_string(),
        events,
        unavailable,
    }
}

impl TimelineEvent {
    /// Without what only the other events of the order show: see [`relate`].
    fn new(service: Service, event: RecordedEvent) -> Result<Self, Missing> {
        Ok(Self {
            r#type: event.subject,
            service: service.name(),
            recorded_at: views::time("recorded_at", event.recorded_at)?,
            offset_ms: 0,
            causation_id: event.causation_id,
            cause: None,
            correlation_id: event.correlation_id,
            trace_id: trace_id(&event.traceparent).to_owned(),
            id: event.event_id,
            nth: 0,
            shown_at: None,
        })
    }
}

/// Sets the places of the events of one log.
fn number(mut events: Vec<TimelineEvent>) -> Vec<TimelineEvent> {
    let mut shown_at = None;
    for (before, event) in events.iter_mut().enumerate() {
        shown_at = shown_at.max(Some(event.recorded_at));
        event.shown_at = shown_at;
        event.nth = before + 1;
    }
    events
}

/// Sorts the events, oldest first, and sets their causes and offsets.
fn relate(events: &mut [TimelineEvent]) {
    // Stable: events of one log keep their order.
    events.sort_by_key(|event| event.shown_at);
    let types: HashMap<String, String> = events
        .iter()
        .map(|event| (event.id.clone(), event.r#type.clone()))
        .collect();
    let first = events.first().map(|event| event.recorded_at);
    for event in events {
        event.cause = types.get(&event.causation_id).cloned();
        let offset = first.map(|first| (event.recorded_at - first).whole_milliseconds());
        event.offset_ms = offset
            .and_then(|offset| i64::try_from(offset).ok())
            .unwrap_or_default();
    }
}
