//! Orders' events as contracts and back: the outbox is the event log, so what is published is what
//! is folded.

use contracts::{
    DecodeError, Event as Contract, Money, MoneyError, OrderLine, Subject, parse_field,
};
use prost_types::Timestamp;
use proto::order::v1 as wire;
use time::OffsetDateTime;

use crate::domain::{CancelReason, Created, Event, Order};

/// The contract of an event that happened to `order`.
pub(crate) fn publish(order: &Order, event: &Event) -> Contract {
    let order_id = order.id.to_string();
    match event {
        Event::Created(_) => Contract::OrderCreated(created(order)),
        Event::Paid => Contract::OrderPaid(wire::OrderPaid { order_id }),
        Event::Confirmed => Contract::OrderConfirmed(wire::OrderConfirmed {
            order_id,
            customer_id: order.customer_id.to_string(),
            total: Some(order.total.clone().into()),
        }),
        Event::Cancelled(reason) => Contract::OrderCancelled(wire::OrderCancelled {
            order_id,
            customer_id: order.customer_id.to_string(),
            reason: cancel_reason(*reason).into(),
        }),
        Event::Refunded => Contract::OrderRefunded(wire::OrderRefunded { order_id }),
    }
}

fn created(order: &Order) -> wire::OrderCreated {
    wire::OrderCreated {
        order_id: order.id.to_string(),
        customer_id: order.customer_id.to_string(),
        lines: order.lines.iter().cloned().map(Into::into).collect(),
        total: Some(order.total.clone().into()),
        payment_method: order.payment_method.clone(),
        deadline: Some(timestamp(order.deadline)),
    }
}

/// A cancellation's reason as contracts spell it.
pub(crate) const fn cancel_reason(reason: CancelReason) -> wire::CancelReason {
    match reason {
        CancelReason::PaymentFailed => wire::CancelReason::PaymentFailed,
        CancelReason::OutOfStock => wire::CancelReason::OutOfStock,
        CancelReason::TimedOut => wire::CancelReason::TimedOut,
        CancelReason::CustomerRequest => wire::CancelReason::CustomerRequest,
    }
}

/// A time as contracts spell it.
pub(crate) fn timestamp(time: OffsetDateTime) -> Timestamp {
    Timestamp::from(std::time::SystemTime::from(time))
}

/// Reads an event of the log.
pub(crate) fn read(subject: &str, payload: &[u8]) -> Result<Event, DecodeError> {
    let subject: Subject = subject.parse()?;
    match Contract::decode(subject, payload)? {
        Contract::OrderCreated(event) => Ok(Event::Created(read_created(event)?)),
        Contract::OrderPaid(_) => Ok(Event::Paid),
        Contract::OrderConfirmed(_) => Ok(Event::Confirmed),
        Contract::OrderCancelled(event) => Ok(Event::Cancelled(read_reason(event.reason())?)),
        Contract::OrderRefunded(_) => Ok(Event::Refunded),
        Contract::PaymentCompleted(_)
        | Contract::PaymentFailed(_)
        | Contract::PaymentRefunded(_)
        | Contract::InventoryReserved(_)
        | Contract::InventoryRejected(_)
        | Contract::InventoryReleased(_) => Err(DecodeError::NotForUs(subject)),
    }
}

fn read_created(event: wire::OrderCreated) -> Result<Created, DecodeError> {
    let deadline = event.deadline.ok_or_else(|| missing("deadline"))?;
    let deadline =
        std::time::SystemTime::try_from(deadline).map_err(|error| DecodeError::Field {
            field: "deadline",
            reason: error.to_string(),
        })?;
    let lines: Result<Vec<OrderLine>, MoneyError> =
        event.lines.into_iter().map(OrderLine::try_from).collect();
    Ok(Created {
        id: parse_field("order_id", &event.order_id)?,
        customer_id: parse_field("customer_id", &event.customer_id)?,
        lines: lines.map_err(|error| money("lines", &error))?,
        total: Money::try_from(event.total).map_err(|error| money("total", &error))?,
        payment_method: event.payment_method,
        deadline: deadline.into(),
    })
}

fn read_reason(reason: wire::CancelReason) -> Result<CancelReason, DecodeError> {
    match reason {
        wire::CancelReason::Unspecified => Err(missing("reason")),
        wire::CancelReason::PaymentFailed => Ok(CancelReason::PaymentFailed),
        wire::CancelReason::OutOfStock => Ok(CancelReason::OutOfStock),
        wire::CancelReason::TimedOut => Ok(CancelReason::TimedOut),
        wire::CancelReason::CustomerRequest => Ok(CancelReason::CustomerRequest),
    }
}

fn missing(field: &'static str) -> DecodeError {
    DecodeError::Field {
        field,
        reason: "it is missing".to_owned(),
    }
}

fn money(field: &'static str, error: &MoneyError) -> DecodeError {
    DecodeError::Field {
        field,
        reason: error.to_string(),
    }
}
