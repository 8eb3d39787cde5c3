//! The story of an order, put together from the event logs of the services.

use std::collections::HashMap;

use axum::{Json, extract::State};
use bootstrap::{RequestContext, context::trace_id};
use contracts::OrderId;
use futures::future::join_all;
use proto::{
    eventlog::v1::{ListEventsRequest, RecordedEvent},
    order::v1::GetOrderRequest,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::{
    extract::{Customer, OrderPath, Travelling},
    problem::Problem,
    shop::{PART, Shop, WHOLE, ask},
    views,
};

/// Every event of an order, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Timeline {
    /// The order.
    pub(crate) order_id: String,
    /// Its events.
    pub(crate) events: Vec<TimelineEvent>,
    /// Services whose events cannot be had now.
    pub(crate) unavailable: Vec<&'static str>,
}

/// One event of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct TimelineEvent {
    /// The event, UUIDv7.
    pub(crate) id: String,
    /// What happened: `order.created.v1` and so on.
    pub(crate) r#type: String,
    /// Who says so.
    pub(crate) service: &'static str,
    /// When it was recorded, by the clock of that service.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) recorded_at: Option<OffsetDateTime>,
    /// Milliseconds since the order's first event.
    pub(crate) offset_ms: i64,
    /// The event or command that caused it.
    pub(crate) causation_id: String,
    /// What kind of event caused it; null for a command.
    pub(crate) cause: Option<String>,
    /// The customer's request that it began with.
    pub(crate) correlation_id: String,
    /// The trace that it belongs to.
    pub(crate) trace_id: String,
    /// Where the stream of the service put it; null while it has not been published.
    pub(crate) stream_sequence: Option<u64>,
}

/// Every event of the order with cause, time and trace id.
#[utoipa::path(get, path = "/api/v1/orders/{id}/timeline", tag = "orders",
    params(("id" = String, Path, description = "UUID of the order"),
           ("X-Customer-Id" = String, Header, description = "UUID of the customer")),
    responses((status = 200, body = Timeline), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn look(
    State(mut shop): State<Shop>,
    Travelling(context): Travelling,
    Customer(customer): Customer,
    OrderPath(id): OrderPath,
) -> Result<Json<Timeline>, Problem> {
    let own = GetOrderRequest {
        order_id: id.to_string(),
        customer_id: customer.to_string(),
    };
    shop.orders.get_order(ask(&context, WHOLE, own)).await?;
    Ok(Json(timeline(&shop, &context, id).await))
}

/// The order's events as far as they can be had.
///
/// The logs are not read at the same instant: an effect may be there whose cause was written just
/// after its log was read. Whoever reads once more finds the cause, because it was there before its
/// effect.
pub(crate) async fn timeline(shop: &Shop, context: &RequestContext, id: OrderId) -> Timeline {
    let first = read(shop, context, id).await;
    let complete = first
        .events
        .iter()
        .skip(1)
        .all(|event| event.cause.is_some());
    if complete {
        first
    } else {
        read(shop, context, id).await
    }
}

async fn read(shop: &Shop, context: &RequestContext, id: OrderId) -> Timeline {
    let asked = shop.logs.iter().map(async |(service, log)| {
        let request = ask(
            context,
            PART,
            ListEventsRequest {
                order_id: id.to_string(),
            },
        );
        (*service, log.clone().list_events(request).await)
    });
    let (mut recorded, mut unavailable) = (Vec::new(), Vec::new());
    for (service, answer) in join_all(asked).await {
        match answer {
            Ok(answer) => recorded.extend(
                answer
                    .into_inner()
                    .events
                    .into_iter()
                    .map(|event| (service, event)),
            ),
            Err(status) => {
                tracing::warn!(order.id = %id, service, %status, "the event log cannot be had now");
                unavailable.push(service);
            }
        }
    }
    Timeline {
        order_id: id.to_string(),
        events: sort(recorded),
        unavailable,
    }
}

/// Oldest first, each with the kind of its cause and the time since the first.
fn sort(recorded: Vec<(&'static str, RecordedEvent)>) -> Vec<TimelineEvent> {
    let kinds: HashMap<String, String> = recorded
        .iter()
        .map(|(_, event)| (event.event_id.clone(), event.subject.clone()))
        .collect();
    let mut events: Vec<TimelineEvent> = recorded
        .into_iter()
        .map(|(service, event)| TimelineEvent {
            cause: kinds.get(&event.causation_id).cloned(),
            r#type: event.subject,
            service,
            recorded_at: event.recorded_at.and_then(views::time),
            offset_ms: 0,
            causation_id: event.causation_id,
            correlation_id: event.correlation_id,
            trace_id: trace_id(&event.traceparent).to_owned(),
            stream_sequence: Some(event.stream_sequence).filter(|sequence| *sequence > 0),
            id: event.event_id,
        })
        .collect();
    events.sort_by(|a, b| (a.recorded_at, &a.id).cmp(&(b.recorded_at, &b.id)));
    let first = events.first().and_then(|event| event.recorded_at);
    for event in &mut events {
        let offset = event
            .recorded_at
            .zip(first)
            .map(|(at, first)| (at - first).whole_milliseconds());
        event.offset_ms = offset
            .and_then(|offset| i64::try_from(offset).ok())
            .unwrap_or_default();
    }
    events
}
