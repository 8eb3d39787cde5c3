//! Orders over HTTP: place, look at, list, cancel.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::OrderId;
use proto::{
    inventory::v1::GetReservationRequest,
    notification::v1::ListNotificationsRequest,
    order::v1::{
        CancelOrderRequest, CreateOrderRequest, GetOrderRequest, ListOrdersRequest, RequestedLine,
    },
    payment::v1::GetPaymentRequest,
};
use tonic::Code;

use crate::{
    extract::{Body, Customer, IdempotencyKey, OrderPath, Page, Travelling, cursor},
    problem::Problem,
    shop::{PART, Shop, WHOLE, ask},
    views::{ComposedOrder, NewOrder, Notification, Order, OrderPage, Payment, reservation},
};

/// Places an order. The answer comes as soon as the order is durable; what becomes of it is told by
/// the order itself, its live stream and its timeline. Keys are remembered for 72 hours.
#[utoipa::path(post, path = "/api/v1/orders", tag = "orders", request_body = NewOrder,
    params(("Idempotency-Key" = String, Header, description = "Chosen by the client, new for each new order; the same request with the same key gets the same answer"),
           ("X-Customer-Id" = String, Header, description = "UUID of the customer")),
    responses((status = 201, body = Order, headers(("Location" = String))), (status = 400, body = Problem),
              (status = 409, body = Problem, description = "The first request with this key is still being worked on"),
              (status = 413, body = Problem), (status = 415, body = Problem),
              (status = 422, body = Problem, description = "The key belongs to another request"),
              (status = 503, body = Problem)))]
pub(crate) async fn place(
    State(shop): State<Shop>,
    Travelling(context): Travelling,
    Customer(customer): Customer,
    IdempotencyKey(key): IdempotencyKey,
    Body(order): Body<NewOrder>,
) -> Result<Response, Problem> {
    let lines = order
        .items
        .into_iter()
        .map(|item| RequestedLine {
            sku: item.sku,
            quantity: item.quantity,
        })
        .collect();
    let message = CreateOrderRequest {
        customer_id: customer.to_string(),
        idempotency_key: key,
        lines,
        payment_method: order.payment_method,
    };
    let answer = shop
        .orders
        .clone()
        .create_order(ask(&context, WHOLE, message))
        .await?
        .into_inner();
    let order: Order = answer.order.ok_or_else(Problem::internal)?.into();
    let location = HeaderValue::try_from(format!("/api/v1/orders/{}", order.id))
        .map_err(|_| Problem::internal())?;
    let mut response = (
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(order),
    )
        .into_response();
    if answer.replayed {
        response
            .headers_mut()
            .insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// An order with its payment, reservation and notifications. A part that cannot be had now is named
/// in `unavailable`.
#[utoipa::path(get, path = "/api/v1/orders/{id}", tag = "orders",
    params(("id" = String, Path, description = "UUID of the order"),
           ("X-Customer-Id" = String, Header, description = "UUID of the customer")),
    responses((status = 200, body = ComposedOrder), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn look(
    State(shop): State<Shop>,
    Travelling(context): Travelling,
    Customer(customer): Customer,
    OrderPath(id): OrderPath,
) -> Result<Json<ComposedOrder>, Problem> {
    let order_id = id.to_string();
    let own = GetOrderRequest {
        order_id: order_id.clone(),
        customer_id: customer.to_string(),
    };
    let (mut orders, mut payments) = (shop.orders, shop.payments);
    let (mut inventory, mut notifications) = (shop.inventory, shop.notifications);
    let (order, payment, reserved, told) = tokio::join!(
        orders.get_order(ask(&context, WHOLE, own)),
        payments.get_payment(ask(
            &context,
            PART,
            GetPaymentRequest {
                order_id: order_id.clone()
            }
        )),
        inventory.get_reservation(ask(
            &context,
            PART,
            GetReservationRequest {
                order_id: order_id.clone()
            }
        )),
        notifications.list_notifications(ask(
            &context,
            PART,
            ListNotificationsRequest { order_id }
        )),
    );
    let order = order?.into_inner().order.ok_or_else(Problem::internal)?;
    let mut unavailable = Vec::new();
    let payment = part(id, "payment", payment, &mut unavailable);
    let reserved = part(id, "reservation", reserved, &mut unavailable);
    let told = part(id, "notifications", told, &mut unavailable);
    Ok(Json(ComposedOrder {
        order: order.into(),
        payment: payment.and_then(|answer| answer.payment).map(Payment::from),
        reservation: reserved.map(|answer| reservation(answer.status())),
        notifications: told
            .map(|answer| answer.notifications)
            .into_iter()
            .flatten()
            .map(Notification::from)
            .collect(),
        unavailable,
    }))
}

/// A part of a composed answer; `None` when there is none yet, or when it cannot be had, which is
/// then noted.
fn part<T>(
    order: OrderId,
    name: &'static str,
    answer: Result<tonic::Response<T>, tonic::Status>,
    unavailable: &mut Vec<&'static str>,
) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => {
            tracing::warn!(order.id = %order, part = name, %status, "a part of the order cannot be had now");
            unavailable.push(name);
            None
        }
    }
}

/// The customer's own orders, newest first.
#[utoipa::path(get, path = "/api/v1/orders", tag = "orders",
    params(("limit" = Option<u32>, Query, description = "1 to 100, default 20"),
           ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
           ("X-Customer-Id" = String, Header, description = "UUID of the customer")),
    responses((status = 200, body = OrderPage), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(mut shop): State<Shop>,
    Travelling(context): Travelling,
    Customer(customer): Customer,
    page: Page,
) -> Result<Json<OrderPage>, Problem> {
    if !page.after.is_empty() && page.after.parse::<OrderId>().is_err() {
        return Err(Problem::invalid(
            "cursor",
            "expected the next_cursor of the page before",
        ));
    }
    let message = ListOrdersRequest {
        customer_id: customer.to_string(),
        limit: page.limit,
        before: page.after,
    };
    let answer = shop
        .orders
        .list_orders(ask(&context, WHOLE, message))
        .await?
        .into_inner();
    let orders = answer.orders.into_iter().map(Order::from).collect();
    Ok(Json(OrderPage {
        orders,
        next_cursor: cursor(&answer.next_before),
    }))
}

/// Cancels an order; what was paid is given back.
#[utoipa::path(post, path = "/api/v1/orders/{id}/cancel", tag = "orders",
    params(("id" = String, Path, description = "UUID of the order"),
           ("X-Customer-Id" = String, Header, description = "UUID of the customer")),
    responses((status = 202, body = Order), (status = 400, body = Problem), (status = 404, body = Problem),
              (status = 409, body = Problem, description = "It can no longer be cancelled")))]
pub(crate) async fn cancel(
    State(mut shop): State<Shop>,
    Travelling(context): Travelling,
    Customer(customer): Customer,
    OrderPath(id): OrderPath,
) -> Result<(StatusCode, Json<Order>), Problem> {
    let message = CancelOrderRequest {
        order_id: id.to_string(),
        customer_id: customer.to_string(),
    };
    let answer = shop
        .orders
        .cancel_order(ask(&context, WHOLE, message))
        .await?
        .into_inner();
    Ok((
        StatusCode::ACCEPTED,
        Json(answer.order.ok_or_else(Problem::internal)?.into()),
    ))
}
