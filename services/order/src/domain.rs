//! What an order is and what may happen to it: pure functions, no clock, no database, no network.
//!
//! [`decide`] returns what happens, [`evolve`] the order after it. Events of other services arrive
//! in any order and any number of times; the same facts always lead to the same end (see the
//! property test in `domain/tests.rs`).

mod request;
#[cfg(test)]
mod tests;

use std::fmt;

use contracts::{CustomerId, Money, OrderId, OrderLine, PaymentMethod};
use time::OffsetDateTime;

pub use request::{InvalidRequest, OrderRequest, PricedOrder};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Accepted; the payment is open.
    Pending,
    /// Captured; the reservation is open.
    Paid,
    /// Captured and reserved.
    Confirmed,
    Cancelled(CancelReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The payment was declined.
    PaymentFailed,
    /// Inventory could not reserve every line.
    OutOfStock,
    /// Not confirmed before its deadline.
    TimedOut,
    CustomerRequest,
}

/// What happens to the money of a cancelled order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refund {
    /// Nothing was captured, as far as this service knows.
    None,
    /// Captured, not yet refunded.
    Pending,
    Done,
}

/// An order: the sum of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub id: OrderId,
    pub customer_id: CustomerId,
    pub lines: Vec<OrderLine>,
    /// Sum over all lines.
    pub total: Money,
    /// Cancelled unless confirmed before.
    pub deadline: OffsetDateTime,
    pub status: Status,
    /// The payment was captured. Apart from the status, because a cancelled order can be captured,
    /// too.
    pub paid: bool,
    /// The captured amount was refunded.
    pub refunded: bool,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    /// Number of its events.
    pub version: i32,
}

/// An order as it is accepted: valid and with its prices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder {
    pub id: OrderId,
    pub customer_id: CustomerId,
    pub lines: Vec<OrderLine>,
    pub total: Money,
    pub payment_method: PaymentMethod,
    pub deadline: OffsetDateTime,
}

/// Commands an order accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Create(NewOrder),
    /// The payment was captured.
    RecordPayment,
    /// The payment was declined.
    FailPayment,
    /// Every line is reserved.
    Confirm,
    /// Inventory could not reserve every line.
    Reject,
    /// The captured amount was refunded.
    RecordRefund,
    /// The customer cancels.
    Cancel,
    /// Cancel if the deadline has passed.
    Expire {
        now: OffsetDateTime,
    },
}

/// What can happen to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Always the first event, and only the first.
    Created(NewOrder),
    Paid,
    Confirmed,
    Cancelled(CancelReason),
    Refunded,
}

/// A command that contradicts what has already happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTransition {
    #[error("there is no such order")]
    UnknownOrder,
    #[error("the order was created before")]
    AlreadyCreated,
    /// The customer cancels an order that was cancelled for another reason.
    #[error("the order is already cancelled: {}", .0.as_str())]
    AlreadyCancelled(CancelReason),
    /// Another service reported something impossible: the protocol between services was violated.
    #[error("{reported} contradicts an order that is {status}")]
    Contradiction {
        reported: &'static str,
        status: Status,
    },
}

/// What happens when `order` gets `command`; no event when nothing changes.
pub fn decide(order: Option<&Order>, command: Command) -> Result<Vec<Event>, InvalidTransition> {
    use CancelReason::{CustomerRequest, OutOfStock, PaymentFailed, TimedOut};
    use Status::{Cancelled, Confirmed, Paid, Pending};
    let Some(order) = order else {
        return match command {
            Command::Create(new) => Ok(vec![Event::Created(new)]),
            _ => Err(InvalidTransition::UnknownOrder),
        };
    };
    let status = order.status;
    let contradiction = |reported| Err(InvalidTransition::Contradiction { reported, status });
    let nothing = Ok(vec![]);
    match (command, status) {
        (Command::Create(_), _) => Err(InvalidTransition::AlreadyCreated),

        // A late capture is recorded although the order is cancelled: the refund is then due.
        (Command::RecordPayment, Pending | Cancelled(_)) if !order.paid => Ok(vec![Event::Paid]),
        (Command::RecordPayment, _) => nothing,

        (Command::FailPayment, Pending) => Ok(vec![Event::Cancelled(PaymentFailed)]),
        (Command::FailPayment, Paid | Confirmed) => contradiction("a declined payment"),
        (Command::FailPayment, Cancelled(_)) => nothing,

        // A reservation may overtake the payment that it follows from; it implies the payment.
        (Command::Confirm, Pending | Paid) => Ok(vec![Event::Confirmed]),
        (Command::Confirm, Confirmed | Cancelled(_)) => nothing,

        (Command::Reject, Pending | Paid) => Ok(vec![Event::Cancelled(OutOfStock)]),
        (Command::Reject, Confirmed) => contradiction("a rejected reservation"),
        (Command::Reject, Cancelled(_)) => nothing,

        (Command::RecordRefund, Pending | Paid | Confirmed) => contradiction("a refund"),
        (Command::RecordRefund, Cancelled(_)) if order.refunded => nothing,
        (Command::RecordRefund, Cancelled(_)) => Ok(vec![Event::Refunded]),

        (Command::Cancel, Pending | Paid | Confirmed) => {
            Ok(vec![Event::Cancelled(CustomerRequest)])
        }
        (Command::Cancel, Cancelled(CustomerRequest)) => nothing,
        (Command::Cancel, Cancelled(reason)) => Err(InvalidTransition::AlreadyCancelled(reason)),

        (Command::Expire { now }, Pending | Paid) if now >= order.deadline => {
            Ok(vec![Event::Cancelled(TimedOut)])
        }
        (Command::Expire { .. }, _) => nothing,
    }
}

/// The order after `event`, which happened at `at`. `None` when the event does not fit: only a
/// creation begins an order.
pub fn evolve(order: Option<Order>, event: &Event, at: OffsetDateTime) -> Option<Order> {
    let Some(mut order) = order else {
        return create(event, at);
    };
    match event {
        Event::Created(_) => {}
        Event::Paid => {
            order.paid = true;
            if order.status == Status::Pending {
                order.status = Status::Paid;
            }
        }
        Event::Confirmed => {
            order.paid = true;
            order.status = Status::Confirmed;
        }
        Event::Cancelled(reason) => order.status = Status::Cancelled(*reason),
        Event::Refunded => {
            order.paid = true;
            order.refunded = true;
        }
    }
    order.updated_at = at;
    order.version += 1;
    Some(order)
}

fn create(event: &Event, at: OffsetDateTime) -> Option<Order> {
    let Event::Created(new) = event else {
        return None;
    };
    Some(Order {
        id: new.id,
        customer_id: new.customer_id,
        lines: new.lines.clone(),
        total: new.total,
        deadline: new.deadline,
        status: Status::Pending,
        paid: false,
        refunded: false,
        created_at: at,
        updated_at: at,
        version: 1,
    })
}

impl Order {
    /// Meaningful once the order is cancelled.
    pub fn refund(&self) -> Refund {
        match self.status {
            Status::Cancelled(_) if self.refunded => Refund::Done,
            Status::Cancelled(_) if self.paid => Refund::Pending,
            _ => Refund::None,
        }
    }
}

impl Status {
    /// As the database and the API spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Paid => "paid",
            Self::Confirmed => "confirmed",
            Self::Cancelled(_) => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl CancelReason {
    pub const ALL: [Self; 4] = [
        Self::PaymentFailed,
        Self::OutOfStock,
        Self::TimedOut,
        Self::CustomerRequest,
    ];

    /// As the database and the API spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PaymentFailed => "payment_failed",
            Self::OutOfStock => "out_of_stock",
            Self::TimedOut => "timed_out",
            Self::CustomerRequest => "customer_request",
        }
    }
}
