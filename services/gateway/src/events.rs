//! The live story of an order as server-sent events.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use bootstrap::RequestContext;
use contracts::{CustomerId, OrderId};
use futures::{Stream, stream};
use proto::{
    order::v1::{GetOrderRequest, OrderStatus},
    payment::v1::{GetPaymentRequest, PaymentStatus},
};

use crate::{
    extract::{Customer, OrderPath, Travelling},
    live::Watch,
    problem::Problem,
    shop::{PART, Shop, WHOLE, ask},
    timeline::{TimelineEvent, timeline},
};

/// How often to look without having been woken.
const LOOK: Duration = Duration::from_secs(2);
/// A stream that has lived for so long ends; clients connect again with `Last-Event-ID`.
const LONGEST: Duration = Duration::from_secs(600);

/// The order's story so far, then live until it ends. Every event has the fields of the timeline;
/// the last one is `end`, with the order's final status.
#[utoipa::path(get, path = "/api/v1/orders/{id}/events", tag = "orders",
    params(("id" = String, Path, description = "UUID of the order"),
           ("X-Customer-Id" = String, Header, description = "UUID of the customer"),
           ("Last-Event-ID" = Option<String>, Header, description = "Where to go on")),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 400, body = Problem),
              (status = 404, body = Problem)))]
pub(crate) async fn watch(
    State(shop): State<Shop>,
    Travelling(context): Travelling,
    Customer(customer): Customer,
    OrderPath(id): OrderPath,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let own = GetOrderRequest {
        order_id: id.to_string(),
        customer_id: customer.to_string(),
    };
    shop.orders
        .clone()
        .get_order(ask(&context, WHOLE, own))
        .await?;
    let watch = shop.live.watch(id);
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);
    let story = Story {
        shop,
        context,
        customer,
        id,
        watch,
        seen: HashSet::new(),
        last,
        ready: Vec::new(),
        over: None,
    };
    let until = tokio::time::Instant::now() + LONGEST;
    let events = stream::unfold(story, move |mut story| async move {
        let next = tokio::time::timeout_at(until, story.next()).await.ok()??;
        Some((Ok(next), story))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// What one client has been told, and what it is told next.
struct Story {
    shop: Shop,
    context: RequestContext,
    customer: CustomerId,
    id: OrderId,
    watch: Watch,
    seen: HashSet<String>,
    /// What the client saw before it connected again.
    last: Option<String>,
    /// To be told, latest first.
    ready: Vec<TimelineEvent>,
    /// The order's final status; told last.
    over: Option<Over>,
}

enum Over {
    Telling(&'static str),
    Told,
}

impl Story {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop() {
                let data = Event::default()
                    .id(&event.id)
                    .event(&event.r#type)
                    .json_data(&event);
                return data
                    .inspect_err(
                        |error| tracing::error!(%error, "an event cannot be written as JSON"),
                    )
                    .ok();
            }
            match self.over {
                Some(Over::Told) => return None,
                Some(Over::Telling(status)) => {
                    self.over = Some(Over::Told);
                    return Event::default()
                        .event("end")
                        .json_data(serde_json::json!({ "status": status }))
                        .ok();
                }
                None => self.look().await,
            }
        }
    }

    /// Reads what is new; waits when there is nothing.
    async fn look(&mut self) {
        // Asked before the events are read: when the order is over, all its events are there.
        let context = self.context.clone().without_deadline();
        let over = self.is_over(&context).await;
        let mut events = timeline(&self.shop, &context, self.id).await.events;
        if let Some(place) = self
            .last
            .take()
            .and_then(|last| events.iter().position(|event| event.id == last))
        {
            self.seen
                .extend(events.drain(..=place).map(|event| event.id));
        }
        events.retain(|event| self.seen.insert(event.id.clone()));
        events.reverse();
        self.ready = events;
        self.over = over.map(Over::Telling);
        if self.ready.is_empty() && self.over.is_none() {
            self.watch.changed(LOOK).await;
        }
    }

    /// The final status, when nothing more will happen: confirmed, or cancelled with the payment
    /// settled.
    async fn is_over(&self, context: &RequestContext) -> Option<&'static str> {
        let (order_id, customer_id) = (self.id.to_string(), self.customer.to_string());
        let own = GetOrderRequest {
            order_id: order_id.clone(),
            customer_id,
        };
        let order = self
            .shop
            .orders
            .clone()
            .get_order(ask(context, PART, own))
            .await
            .ok()?
            .into_inner()
            .order?;
        match order.status() {
            OrderStatus::Confirmed => Some("confirmed"),
            OrderStatus::Cancelled => {
                let request = ask(context, PART, GetPaymentRequest { order_id });
                let payment = self
                    .shop
                    .payments
                    .clone()
                    .get_payment(request)
                    .await
                    .ok()?
                    .into_inner()
                    .payment?;
                use PaymentStatus::{Failed, Refunded, Voided};
                matches!(payment.status(), Failed | Voided | Refunded).then_some("cancelled")
            }
            OrderStatus::Unspecified | OrderStatus::Pending | OrderStatus::Paid => None,
        }
    }
}
