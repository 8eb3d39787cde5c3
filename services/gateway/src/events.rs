//! The live stream of an order as server-sent events.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use bootstrap::RequestContext;
use contracts::{CustomerId, OrderId};
use futures::{Stream, StreamExt as _, stream};
use proto::{
    inventory::v1::{GetReservationRequest, ReservationStatus},
    order::v1::{GetOrderRequest, OrderStatus, RefundStatus},
    payment::v1::{GetPaymentRequest, PaymentStatus},
};
use serde_json::json;

use crate::{
    backends::{Backends, PART_TIMEOUT, REQUEST_BUDGET, request},
    extract::{Caller, Context, OrderPath, Reader},
    live::{MAX_STREAMS, Watch},
    position::Position,
    problem::Problem,
    timeline::{TimelineEvent, timeline},
    views,
};

/// How long to wait for a notification before polling without one.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Streams end after this time, or with the access token or key, so that none outlives its client
/// by much and replicas stay evenly loaded; clients connect again with `Last-Event-ID`.
const MAX_DURATION: Duration = Duration::from_secs(600);

/// The order's events so far, then live until it ends.
///
/// The data of each event is a timeline event; the last event is `end`, with the order's final
/// status. A stream ends with the access token or API key, and after 10 minutes at the latest.
#[utoipa::path(get, path = "/api/v1/orders/{id}/events", tag = "orders",
    security(("accessToken" = ["orders:read"])),
    params(OrderPath,
           ("Last-Event-ID" = Option<String>, Header,
            description = "The id of the last event that was received: the stream goes on after \
                           it. Anything else starts from the beginning.")),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream",
               body = Message),
              (status = 404, description = "The customer has no such order"),
              (status = 429, description = "The customer watches too many orders")))]
pub async fn watch_order(
    State(mut backends): State<Backends>,
    Context(context): Context,
    Reader(customer): Reader,
    Extension(Caller(caller)): Extension<Caller>,
    OrderPath(id): OrderPath,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let own = GetOrderRequest {
        order_id: id.to_string(),
        customer_id: customer.to_string(),
    };
    // Only to see whether it is the customer's order, while there can still be a problem document.
    backends
        .orders
        .get_order(request(&context, REQUEST_BUDGET, own))
        .await?;
    let watch = backends.live.watch(customer, id);
    let watch = watch.ok_or_else(|| Problem::too_many_streams(MAX_STREAMS))?;
    let last_seen = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .and_then(|id| id.parse().ok());
    let state = OrderStream {
        watch,
        backends,
        context: context.without_deadline(),
        customer,
        id,
        received: last_seen.unwrap_or_default(),
        ready: Vec::new(),
        end: None,
    };
    let token = caller.as_ref().map_or(Duration::ZERO, |caller| {
        caller
            .until
            .duration_since(SystemTime::now())
            .unwrap_or_default()
    });
    let until = tokio::time::Instant::now() + MAX_DURATION.min(token);
    let events = stream::unfold(state, move |mut state| async move {
        let next = tokio::time::timeout_at(until, state.next()).await.ok()??;
        Some((Ok(next), state))
    });
    let revoked = async move {
        match caller.and_then(|caller| caller.key) {
            Some(key) => key.revoked.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let events = events.take_until(Box::pin(revoked));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// One server-sent event, as the contract shows it.
#[derive(utoipa::ToSchema)]
#[expect(
    dead_code,
    reason = "axum writes server-sent events; this is their documentation"
)]
struct Message {
    /// How much of the stream has been received with this event, for `Last-Event-ID`; the `end` has
    /// none.
    #[schema(nullable = false, example = "order:3,payment:2")]
    id: Option<String>,
    /// The type of the event in the timeline, or `end`.
    #[schema(example = "order.created.v1")]
    event: String,
    /// JSON: a timeline event, or for `end` an object with the order's final `status`.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// What one client has received, and what it receives next.
struct OrderStream {
    backends: Backends,
    context: RequestContext,
    customer: CustomerId,
    id: OrderId,
    watch: Watch,
    received: Position,
    /// Events to send, latest first.
    ready: Vec<TimelineEvent>,
    /// Sent after all events.
    end: Option<End>,
}

enum End {
    Ready(views::OrderStatus),
    Sent,
}

impl OrderStream {
    /// `None` after the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop() {
                self.received.advance(event.service, event.nth);
                let id = self.received.to_string();
                let message = Event::default().id(id).event(&event.r#type);
                return json_data(message, &event);
            }
            match self.end {
                Some(End::Sent) => return None,
                Some(End::Ready(status)) => {
                    self.end = Some(End::Sent);
                    return json_data(Event::default().event("end"), &json!({ "status": status }));
                }
                None => self.poll().await,
            }
        }
    }

    /// Reads new events; waits when there are none.
    async fn poll(&mut self) {
        // The status before the events: if it is final, then the events are complete.
        let end = self.final_status().await;
        let timeline = timeline(&self.backends, &self.context, self.id).await;
        let mut events = timeline.events;
        events.retain(|event| !self.received.includes(event.service, event.nth));
        events.reverse();
        self.ready = events;
        // A log that cannot be read now may hold events that the client has not received.
        let end = end.filter(|_| timeline.unavailable.is_empty());
        self.end = end.map(End::Ready);
        if self.ready.is_empty() && self.end.is_none() {
            self.watch.changed(POLL_INTERVAL).await;
        }
    }

    /// Once there will be no more events: confirmed, or cancelled with everything undone. A
    /// confirmed order that is cancelled later has a new end; a client that connects then receives
    /// the rest.
    async fn final_status(&mut self) -> Option<views::OrderStatus> {
        let order_id = self.id.to_string();
        let own = GetOrderRequest {
            order_id,
            customer_id: self.customer.to_string(),
        };
        let own = request(&self.context, PART_TIMEOUT, own);
        let order = self.backends.orders.get_order(own).await.ok()?;
        let order = order.into_inner().order?;
        let status = order.status();
        let settled = match status {
            OrderStatus::Confirmed => true,
            OrderStatus::Cancelled => self.is_undone(order.refund()).await?,
            OrderStatus::Unspecified | OrderStatus::Pending | OrderStatus::Paid => false,
        };
        settled.then(|| status.into())
    }

    /// Whether payment and inventory have undone a cancelled order, and the order knows of its
    /// refund.
    async fn is_undone(&mut self, refund: RefundStatus) -> Option<bool> {
        let order_id = self.id.to_string();
        let payment = GetPaymentRequest {
            order_id: order_id.clone(),
        };
        let payment = request(&self.context, PART_TIMEOUT, payment);
        let payment = self.backends.payments.get_payment(payment).await.ok()?;
        let paid_back = match payment.into_inner().payment?.status() {
            PaymentStatus::Failed | PaymentStatus::Voided => true,
            PaymentStatus::Refunded => refund == RefundStatus::Done,
            _ => false,
        };
        let reservation = GetReservationRequest { order_id };
        let reservation = request(&self.context, PART_TIMEOUT, reservation);
        let inventory = &mut self.backends.inventory;
        let reservation = inventory.get_reservation(reservation).await.ok()?;
        let reservation = reservation.into_inner().status();
        use ReservationStatus::{Rejected, Released};
        Some(paid_back && matches!(reservation, Rejected | Released))
    }
}

fn json_data(event: Event, data: &impl serde::Serialize) -> Option<Event> {
    event
        .json_data(data)
        .inspect_err(|error| tracing::error!(%error, "an event is no JSON; the live stream ends"))
        .ok()
}
