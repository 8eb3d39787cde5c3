//! What the HTTP API says: JSON, snake_case, money in minor units, times in RFC 3339.

use proto::{
    common::v1 as common, inventory::v1 as inventory, notification::v1 as notification,
    order::v1 as order, payment::v1 as payment,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::object;

/// An amount in the minor unit of its currency: 19.99 EUR is 1999.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Money {
    /// Minor units (cents).
    #[schema(example = 1999)]
    pub(crate) amount: i64,
    /// ISO 4217 code.
    #[schema(example = "EUR")]
    pub(crate) currency: String,
}

/// An order to be placed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOrder {
    /// 1 to 100 lines, each with another product.
    #[serde(deserialize_with = "object::list")]
    pub(crate) items: Vec<NewItem>,
    /// A payment method of the provider; for tests `tok_visa`, `tok_mastercard`,
    /// `tok_chargeDeclined` or `tok_chargeDeclinedInsufficientFunds`.
    #[schema(example = "tok_visa")]
    pub(crate) payment_method: String,
}

/// One line of an order to be placed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewItem {
    /// Stock keeping unit.
    #[schema(example = "SKU-0001")]
    pub(crate) sku: String,
    /// Units, 1 to 999.
    #[schema(minimum = 1, maximum = 999)]
    pub(crate) quantity: u32,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Order {
    /// The order, UUIDv7.
    pub(crate) id: String,
    /// `pending`, `paid`, `confirmed` or `cancelled`.
    pub(crate) status: &'static str,
    /// Why it was cancelled: `payment_failed`, `out_of_stock`, `timed_out` or `customer_request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// What became of the money of a cancelled order: `none`, `pending` or `done`.
    pub(crate) refund: &'static str,
    /// Its lines.
    pub(crate) items: Vec<Item>,
    /// Sum over all lines.
    pub(crate) total: Option<Money>,
    /// When it was accepted.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) created_at: Option<OffsetDateTime>,
    /// When it last changed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) updated_at: Option<OffsetDateTime>,
    /// Cancelled unless confirmed before.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) deadline: Option<OffsetDateTime>,
}

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Item {
    /// Stock keeping unit.
    pub(crate) sku: String,
    /// Units.
    pub(crate) quantity: u32,
    /// Price of one unit when the order was accepted.
    pub(crate) unit_price: Option<Money>,
}

/// An order with what the other services know of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ComposedOrder {
    /// The order itself.
    #[serde(flatten)]
    pub(crate) order: Order,
    /// Its payment; null before there is one.
    pub(crate) payment: Option<Payment>,
    /// Its reservation: `reserved`, `rejected` or `released`; null before there is one.
    pub(crate) reservation: Option<&'static str>,
    /// What the customer was told.
    pub(crate) notifications: Vec<Notification>,
    /// Parts that cannot be had now: `payment`, `reservation`, `notifications`.
    pub(crate) unavailable: Vec<&'static str>,
}

/// The payment of an order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Payment {
    /// The payment, UUIDv7.
    pub(crate) id: String,
    /// `pending`, `completed`, `failed`, `voided`, `refunding` or `refunded`.
    pub(crate) status: &'static str,
    /// What is or was to be paid; null when the order was cancelled before payment heard of it.
    pub(crate) amount: Option<Money>,
    /// Why it was declined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure_code: Option<String>,
}

/// Something the customer was told.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Notification {
    /// The notification, UUIDv7.
    pub(crate) id: String,
    /// `order_confirmed`, `order_cancelled` or `payment_refunded`.
    pub(crate) kind: &'static str,
    /// When.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) created_at: Option<OffsetDateTime>,
}

/// A page of the customer's orders, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OrderPage {
    /// The orders.
    pub(crate) orders: Vec<Order>,
    /// `cursor` of the next page; null on the last.
    pub(crate) next_cursor: Option<String>,
}

/// A product.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Product {
    /// Stock keeping unit.
    pub(crate) sku: String,
    /// What it is called.
    pub(crate) name: String,
    /// What kind of thing it is.
    pub(crate) category: String,
    /// Of one unit.
    pub(crate) price: Option<Money>,
    /// Units that can be ordered now.
    pub(crate) available: u64,
}

/// A page of products, by SKU.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProductPage {
    /// The products.
    pub(crate) products: Vec<Product>,
    /// `cursor` of the next page; null on the last.
    pub(crate) next_cursor: Option<String>,
}

impl From<common::Money> for Money {
    fn from(money: common::Money) -> Self {
        Self {
            amount: money.amount,
            currency: money.currency,
        }
    }
}

impl From<order::Order> for Order {
    fn from(order: order::Order) -> Self {
        use order::{CancelReason, OrderStatus, RefundStatus};
        Self {
            status: match order.status() {
                OrderStatus::Unspecified => "unknown",
                OrderStatus::Pending => "pending",
                OrderStatus::Paid => "paid",
                OrderStatus::Confirmed => "confirmed",
                OrderStatus::Cancelled => "cancelled",
            },
            reason: match order.cancel_reason() {
                CancelReason::Unspecified => None,
                CancelReason::PaymentFailed => Some("payment_failed"),
                CancelReason::OutOfStock => Some("out_of_stock"),
                CancelReason::TimedOut => Some("timed_out"),
                CancelReason::CustomerRequest => Some("customer_request"),
            },
            refund: match order.refund() {
                RefundStatus::Unspecified | RefundStatus::None => "none",
                RefundStatus::Pending => "pending",
                RefundStatus::Done => "done",
            },
            items: order.lines.into_iter().map(Item::from).collect(),
            total: order.total.map(Money::from),
            created_at: order.created_at.and_then(time),
            updated_at: order.updated_at.and_then(time),
            deadline: order.deadline.and_then(time),
            id: order.order_id,
        }
    }
}

impl From<common::OrderLine> for Item {
    fn from(line: common::OrderLine) -> Self {
        Self {
            sku: line.sku,
            quantity: line.quantity,
            unit_price: line.unit_price.map(Money::from),
        }
    }
}

impl From<payment::Payment> for Payment {
    fn from(payment: payment::Payment) -> Self {
        use payment::PaymentStatus;
        Self {
            status: match payment.status() {
                PaymentStatus::Unspecified => "unknown",
                PaymentStatus::Pending => "pending",
                PaymentStatus::Completed => "completed",
                PaymentStatus::Failed => "failed",
                PaymentStatus::Voided => "voided",
                PaymentStatus::Refunding => "refunding",
                PaymentStatus::Refunded => "refunded",
            },
            amount: payment.amount.map(Money::from),
            failure_code: Some(payment.failure_code).filter(|code| !code.is_empty()),
            id: payment.payment_id,
        }
    }
}

/// How the API spells a reservation's status.
pub(crate) const fn reservation(status: inventory::ReservationStatus) -> &'static str {
    use inventory::ReservationStatus;
    match status {
        ReservationStatus::Unspecified => "unknown",
        ReservationStatus::Reserved => "reserved",
        ReservationStatus::Rejected => "rejected",
        ReservationStatus::Released => "released",
    }
}

impl From<notification::Notification> for Notification {
    fn from(notification: notification::Notification) -> Self {
        use notification::NotificationKind;
        Self {
            kind: match notification.kind() {
                NotificationKind::Unspecified => "unknown",
                NotificationKind::OrderConfirmed => "order_confirmed",
                NotificationKind::OrderCancelled => "order_cancelled",
                NotificationKind::PaymentRefunded => "payment_refunded",
            },
            created_at: notification.created_at.and_then(time),
            id: notification.notification_id,
        }
    }
}

impl From<inventory::Product> for Product {
    fn from(product: inventory::Product) -> Self {
        Self {
            sku: product.sku,
            name: product.name,
            category: product.category,
            price: product.price.map(Money::from),
            available: product.available,
        }
    }
}

/// A time as the standard library has it; nothing when a service sent what is none.
pub(crate) fn time(timestamp: prost_types::Timestamp) -> Option<OffsetDateTime> {
    std::time::SystemTime::try_from(timestamp)
        .ok()
        .map(OffsetDateTime::from)
}
