//! Domain events as contract events.

use chassis::status::timestamp;
use contracts::Event as Contract;
use proto::order::v1 as wire;

use crate::domain::{CancelReason, Event, Order};

/// The contract event of a domain event that has led to `order`.
pub fn to_contract(order: &Order, event: &Event) -> Contract {
    let order_id = order.id.to_string();
    match event {
        Event::Created(new) => Contract::OrderCreated(wire::OrderCreated {
            order_id,
            customer_id: order.customer_id.to_string(),
            lines: order.lines.iter().cloned().map(Into::into).collect(),
            total: Some(order.total.into()),
            payment_method: new.payment_method.to_string(),
            deadline: Some(timestamp(order.deadline)),
        }),
        Event::Paid => Contract::OrderPaid(wire::OrderPaid { order_id }),
        Event::Confirmed => Contract::OrderConfirmed(wire::OrderConfirmed {
            order_id,
            customer_id: order.customer_id.to_string(),
            total: Some(order.total.into()),
        }),
        Event::Cancelled(reason) => Contract::OrderCancelled(wire::OrderCancelled {
            order_id,
            customer_id: order.customer_id.to_string(),
            reason: cancel_reason(*reason).into(),
        }),
        Event::Refunded => Contract::OrderRefunded(wire::OrderRefunded { order_id }),
    }
}

pub const fn cancel_reason(reason: CancelReason) -> wire::CancelReason {
    match reason {
        CancelReason::PaymentFailed => wire::CancelReason::PaymentFailed,
        CancelReason::OutOfStock => wire::CancelReason::OutOfStock,
        CancelReason::TimedOut => wire::CancelReason::TimedOut,
        CancelReason::CustomerRequest => wire::CancelReason::CustomerRequest,
    }
}
