//! JSON response types: snake_case, money in minor units, times in RFC 3339. Their documentation is
//! what `/openapi.json` shows.

use std::fmt;

use proto::{
    common::v1 as common, inventory::v1 as inventory, notification::v1 as notification,
    order::v1 as order, payment::v1 as payment,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::problem::Problem;

/// An amount in the minor unit of its currency: 19.99 EUR is 1999.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Money {
    #[schema(example = 1999)]
    pub amount: i64,
    /// ISO 4217 code.
    #[schema(pattern = "^[A-Z]{3}$", example = "EUR")]
    pub currency: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Order {
    #[schema(format = Uuid)]
    pub id: String,
    pub status: OrderStatus,
    /// Only of a cancelled order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<CancelReason>,
    pub refund: RefundStatus,
    pub items: Vec<Item>,
    /// The sum of all lines.
    pub total: Money,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// The order is cancelled unless it is confirmed before.
    #[serde(with = "time::serde::rfc3339")]
    pub deadline: OffsetDateTime,
}

/// `unknown` is a status that this version of the API does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    Pending,
    Paid,
    Confirmed,
    Cancelled,
    Unknown,
}

/// Why an order was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    PaymentFailed,
    OutOfStock,
    TimedOut,
    CustomerRequest,
}

/// What happens to the money of a cancelled order. `none`: nothing was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefundStatus {
    None,
    Pending,
    Done,
}

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Item {
    pub sku: String,
    pub quantity: u32,
    /// Of one unit, when the order was accepted.
    pub unit_price: Money,
}

/// An order with what the other services know about it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComposedOrder {
    #[serde(flatten)]
    pub order: Order,
    /// Null before there is one.
    #[schema(required = true)]
    pub payment: Option<Payment>,
    /// Null before there is one.
    #[schema(required = true)]
    pub reservation: Option<ReservationStatus>,
    /// Those sent to the customer, oldest first.
    pub notifications: Vec<Notification>,
    /// The parts that could not be read now; the response shows them as if there were none.
    pub unavailable: Vec<Part>,
}

/// A part of a composed order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Payment,
    Reservation,
    Notifications,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Payment {
    #[schema(format = Uuid)]
    pub id: String,
    pub status: PaymentStatus,
    /// Null when the order was cancelled before its charge was known.
    #[schema(required = true)]
    pub amount: Option<Money>,
    /// The provider's code for a declined payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub failure_code: Option<String>,
}

/// `unknown` is a status that this version of the API does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    Pending,
    Completed,
    Failed,
    Voided,
    Refunding,
    Refunded,
    Unknown,
}

/// `unknown` is a status that this version of the API does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReservationStatus {
    Reserved,
    Rejected,
    Released,
    Unknown,
}

/// A message to the customer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Notification {
    #[schema(format = Uuid)]
    pub id: String,
    pub kind: NotificationKind,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// `unknown` is a kind that this version of the API does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NotificationKind {
    OrderConfirmed,
    OrderCancelled,
    PaymentRefunded,
    Unknown,
}

/// A page of the customer's orders, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct OrderPage {
    pub orders: Vec<Order>,
    /// `cursor` of the next page; null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Product {
    pub sku: String,
    pub name: String,
    pub category: String,
    /// Of one unit.
    pub price: Money,
    /// Units that can be ordered now.
    pub available: u64,
}

/// A page of products, by SKU.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProductPage {
    pub products: Vec<Product>,
    /// `cursor` of the next page; null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

/// A service left a field out that the contract promises to clients.
#[derive(Debug)]
pub struct Missing(&'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the field {} is missing or out of range", self.0)
    }
}

impl From<Missing> for Problem {
    fn from(missing: Missing) -> Self {
        tracing::error!(%missing, "a response of a service cannot be shown; the client gets 500");
        Self::internal()
    }
}

impl From<common::Money> for Money {
    fn from(money: common::Money) -> Self {
        Self {
            amount: money.amount,
            currency: money.currency,
        }
    }
}

fn money(field: &'static str, money: Option<common::Money>) -> Result<Money, Missing> {
    money.map(Money::from).ok_or(Missing(field))
}

/// Protobuf's timestamps reach further than RFC 3339's.
pub fn time(
    field: &'static str,
    timestamp: Option<prost_types::Timestamp>,
) -> Result<OffsetDateTime, Missing> {
    let timestamp = timestamp.ok_or(Missing(field))?;
    let nanoseconds = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).map_err(|_| Missing(field))
}

impl TryFrom<Option<order::Order>> for Order {
    type Error = Missing;

    fn try_from(order: Option<order::Order>) -> Result<Self, Missing> {
        order.ok_or(Missing("order"))?.try_into()
    }
}

impl TryFrom<order::Order> for Order {
    type Error = Missing;

    fn try_from(order: order::Order) -> Result<Self, Missing> {
        Ok(Self {
            status: order.status().into(),
            reason: match order.cancel_reason() {
                order::CancelReason::Unspecified => None,
                order::CancelReason::PaymentFailed => Some(CancelReason::PaymentFailed),
                order::CancelReason::OutOfStock => Some(CancelReason::OutOfStock),
                order::CancelReason::TimedOut => Some(CancelReason::TimedOut),
                order::CancelReason::CustomerRequest => Some(CancelReason::CustomerRequest),
            },
            refund: match order.refund() {
                order::RefundStatus::Unspecified | order::RefundStatus::None => RefundStatus::None,
                order::RefundStatus::Pending => RefundStatus::Pending,
                order::RefundStatus::Done => RefundStatus::Done,
            },
            items: order
                .lines
                .into_iter()
                .map(Item::try_from)
                .collect::<Result<_, _>>()?,
            total: money("total", order.total)?,
            created_at: time("created_at", order.created_at)?,
            updated_at: time("updated_at", order.updated_at)?,
            deadline: time("deadline", order.deadline)?,
            id: order.order_id,
        })
    }
}

impl From<order::OrderStatus> for OrderStatus {
    fn from(status: order::OrderStatus) -> Self {
        match status {
            order::OrderStatus::Unspecified => Self::Unknown,
            order::OrderStatus::Pending => Self::Pending,
            order::OrderStatus::Paid => Self::Paid,
            order::OrderStatus::Confirmed => Self::Confirmed,
            order::OrderStatus::Cancelled => Self::Cancelled,
        }
    }
}

impl TryFrom<common::OrderLine> for Item {
    type Error = Missing;

    fn try_from(line: common::OrderLine) -> Result<Self, Missing> {
        Ok(Self {
            sku: line.sku,
            quantity: line.quantity,
            unit_price: money("unit_price", line.unit_price)?,
        })
    }
}

impl From<payment::Payment> for Payment {
    fn from(payment: payment::Payment) -> Self {
        Self {
            status: payment.status().into(),
            amount: payment.amount.map(Money::from),
            failure_code: Some(payment.failure_code).filter(|code| !code.is_empty()),
            id: payment.payment_id,
        }
    }
}

impl From<payment::PaymentStatus> for PaymentStatus {
    fn from(status: payment::PaymentStatus) -> Self {
        match status {
            payment::PaymentStatus::Unspecified => Self::Unknown,
            payment::PaymentStatus::Pending => Self::Pending,
            payment::PaymentStatus::Completed => Self::Completed,
            payment::PaymentStatus::Failed => Self::Failed,
            payment::PaymentStatus::Voided => Self::Voided,
            payment::PaymentStatus::Refunding => Self::Refunding,
            payment::PaymentStatus::Refunded => Self::Refunded,
        }
    }
}

impl From<inventory::ReservationStatus> for ReservationStatus {
    fn from(status: inventory::ReservationStatus) -> Self {
        match status {
            inventory::ReservationStatus::Unspecified => Self::Unknown,
            inventory::ReservationStatus::Reserved => Self::Reserved,
            inventory::ReservationStatus::Rejected => Self::Rejected,
            inventory::ReservationStatus::Released => Self::Released,
        }
    }
}

impl TryFrom<notification::Notification> for Notification {
    type Error = Missing;

    fn try_from(notification: notification::Notification) -> Result<Self, Missing> {
        use notification::NotificationKind as Kind;
        Ok(Self {
            kind: match notification.kind() {
                Kind::Unspecified => NotificationKind::Unknown,
                Kind::OrderConfirmed => NotificationKind::OrderConfirmed,
                Kind::OrderCancelled => NotificationKind::OrderCancelled,
                Kind::PaymentRefunded => NotificationKind::PaymentRefunded,
            },
            created_at: time("created_at", notification.created_at)?,
            id: notification.notification_id,
        })
    }
}

impl TryFrom<Option<inventory::Product>> for Product {
    type Error = Missing;

    fn try_from(product: Option<inventory::Product>) -> Result<Self, Missing> {
        product.ok_or(Missing("product"))?.try_into()
    }
}

impl TryFrom<inventory::Product> for Product {
    type Error = Missing;

    fn try_from(product: inventory::Product) -> Result<Self, Missing> {
        Ok(Self {
            price: money("price", product.price)?,
            sku: product.sku,
            name: product.name,
            category: product.category,
            available: product.available,
        })
    }
}
