//! Orders over HTTP: create, get, list, cancel.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
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
    backends::{Backends, PART_TIMEOUT, REQUEST_BUDGET, request},
    extract::{Body, Context, IdempotencyKey, OrderPath, Reader, Writer},
    order_request::{NewItem, NewOrder},
    page::{Page, next_cursor},
    problem::Problem,
    views::{ComposedOrder, Notification, Order, OrderPage, Part},
};

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Creates an order.
///
/// The response comes as soon as the order is durable; the order itself, its live stream and its
/// timeline show how it goes on.
#[utoipa::path(post, path = "/api/v1/orders", tag = "orders", params(IdempotencyKey),
    security(("accessToken" = ["orders:write"])),
    request_body(content = NewOrder, content_type = "application/json"),
    responses(
        (status = 201, description = "The order as it was accepted: pending", body = Order),
        (status = 409, description = "The first request with this key is still in progress"),
        (status = 413, description = "The body has more than 65536 bytes"),
        (status = 415, description = "The body is not declared as application/json"),
        (status = 422, description = "The key belongs to another request"),
    ))]
pub async fn create_order(
    State(mut backends): State<Backends>,
    Context(context): Context,
    Writer(customer): Writer,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Body(order): Body<NewOrder>,
) -> Result<Response, Problem> {
    let line = |item: NewItem| RequestedLine {
        sku: item.sku.into(),
        quantity: item.quantity.get(),
    };
    let message = CreateOrderRequest {
        customer_id: customer.to_string(),
        idempotency_key: idempotency_key.into(),
        lines: order.items.into_iter().map(line).collect(),
        payment_method: order.payment_method.into(),
    };
    let created = backends
        .orders
        .create_order(request(&context, REQUEST_BUDGET, message))
        .await?
        .into_inner();
    let order = Order::try_from(created.order)?;
    let location = HeaderValue::try_from(format!("/api/v1/orders/{}", order.id))
        .map_err(|_| Problem::internal())?;
    let mut response = (StatusCode::CREATED, Json(order)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    if created.replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// An order with its payment, reservation and notifications.
///
/// A part that cannot be read now is listed in `unavailable`.
#[utoipa::path(get, path = "/api/v1/orders/{id}", tag = "orders", params(OrderPath),
    security(("accessToken" = ["orders:read"])),
    responses((status = 200, description = "The order", body = ComposedOrder),
              (status = 404, description = "The customer has no such order")))]
pub async fn get_order(
    State(mut backends): State<Backends>,
    Context(context): Context,
    Reader(customer): Reader,
    OrderPath(id): OrderPath,
) -> Result<Json<ComposedOrder>, Problem> {
    let order_id = id.to_string();
    let own = GetOrderRequest {
        order_id: order_id.clone(),
        customer_id: customer.to_string(),
    };
    let payment = GetPaymentRequest {
        order_id: order_id.clone(),
    };
    let reservation = GetReservationRequest {
        order_id: order_id.clone(),
    };
    let notifications = ListNotificationsRequest { order_id };
    // All at once, not the order first: a request for another customer's order is rare.
    let (order, payment, reservation, notifications) = tokio::join!(
        backends
            .orders
            .get_order(request(&context, REQUEST_BUDGET, own)),
        backends
            .payments
            .get_payment(request(&context, PART_TIMEOUT, payment)),
        backends
            .inventory
            .get_reservation(request(&context, PART_TIMEOUT, reservation)),
        backends
            .notifications
            .list_notifications(request(&context, PART_TIMEOUT, notifications)),
    );
    let order = Order::try_from(order?.into_inner().order)?;
    let mut unavailable = Vec::new();
    let payment = part(id, Part::Payment, payment, &mut unavailable);
    let reservation = part(id, Part::Reservation, reservation, &mut unavailable);
    let notifications = part(id, Part::Notifications, notifications, &mut unavailable);
    Ok(Json(ComposedOrder {
        order,
        payment: payment.and_then(|found| found.payment).map(Into::into),
        reservation: reservation.map(|found| found.status().into()),
        notifications: notifications
            .map(|found| found.notifications)
            .into_iter()
            .flatten()
            .map(Notification::try_from)
            .collect::<Result<_, _>>()?,
        unavailable,
    }))
}

/// A part of a composed response; `None` when there is none yet, or when it could not be read,
/// which `unavailable` then shows.
fn part<T>(
    order: OrderId,
    part: Part,
    result: Result<tonic::Response<T>, tonic::Status>,
    unavailable: &mut Vec<Part>,
) -> Option<T> {
    match result {
        Ok(found) => Some(found.into_inner()),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => {
            tracing::warn!(
                order.id = %order, ?part, %status,
                "a part of the order is unavailable; the response lists it as unavailable"
            );
            unavailable.push(part);
            None
        }
    }
}

/// The customer's own orders, newest first.
#[utoipa::path(get, path = "/api/v1/orders", tag = "orders", params(Page<OrderId>),
    security(("accessToken" = ["orders:read"])),
    responses((status = 200, description = "A page of orders", body = OrderPage)))]
pub async fn list_orders(
    State(mut backends): State<Backends>,
    Context(context): Context,
    Reader(customer): Reader,
    page: Page<OrderId>,
) -> Result<Json<OrderPage>, Problem> {
    let message = ListOrdersRequest {
        customer_id: customer.to_string(),
        limit: page.limit,
        before: page.after.map(|id| id.to_string()).unwrap_or_default(),
    };
    let page = backends
        .orders
        .list_orders(request(&context, REQUEST_BUDGET, message))
        .await?
        .into_inner();
    Ok(Json(OrderPage {
        next_cursor: next_cursor::<OrderId>(&page.next_before)?,
        orders: page
            .orders
            .into_iter()
            .map(Order::try_from)
            .collect::<Result<_, _>>()?,
    }))
}

/// Cancels an order.
///
/// A captured payment is refunded. Cancelling twice is the same as once.
#[utoipa::path(post, path = "/api/v1/orders/{id}/cancel", tag = "orders", params(OrderPath),
    security(("accessToken" = ["orders:write"])),
    responses((status = 202, description = "The cancelled order; its refund may be pending",
               body = Order),
              (status = 404, description = "The customer has no such order"),
              (status = 409, description = "The order can no longer be cancelled")))]
pub async fn cancel_order(
    State(mut backends): State<Backends>,
    Context(context): Context,
    Writer(customer): Writer,
    OrderPath(id): OrderPath,
) -> Result<(StatusCode, Json<Order>), Problem> {
    let message = CancelOrderRequest {
        order_id: id.to_string(),
        customer_id: customer.to_string(),
    };
    let cancelled = backends
        .orders
        .cancel_order(request(&context, REQUEST_BUDGET, message))
        .await?
        .into_inner();
    Ok((StatusCode::ACCEPTED, Json(cancelled.order.try_into()?)))
}
