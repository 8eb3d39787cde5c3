//! What an order is and what may happen to it: pure functions, no clock, no database, no network.
//!
//! [`decide`] says what happens, [`evolve`] what that makes of the order. Events from other
//! services come in any order and any number; whatever the order, the same facts lead to the same
//! end (see the property test below).

use contracts::{CustomerId, Money, OrderId, OrderLine};
use time::OffsetDateTime;

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Accepted; the payment has not been heard of.
    Pending,
    /// Captured; the reservation has not been heard of.
    Paid,
    /// Captured and reserved.
    Confirmed,
    /// Given up.
    Cancelled(CancelReason),
}

/// Why an order was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The payment was declined.
    PaymentFailed,
    /// Stock ran short.
    OutOfStock,
    /// Not confirmed before its deadline.
    TimedOut,
    /// The customer asked for it.
    CustomerRequest,
}

/// What became of the money of a cancelled order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refund {
    /// Nothing to give back, as far as we have heard.
    None,
    /// Captured, not yet given back.
    Pending,
    /// Given back.
    Done,
}

/// An order: what its events add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The order.
    pub id: OrderId,
    /// Its customer.
    pub customer_id: CustomerId,
    /// What was ordered.
    pub lines: Vec<OrderLine>,
    /// Sum over all lines.
    pub total: Money,
    /// The provider's payment method.
    pub payment_method: String,
    /// Cancelled unless confirmed before.
    pub deadline: OffsetDateTime,
    /// Where it stands.
    pub status: Status,
    /// The payment was captured.
    pub paid: bool,
    /// The captured amount was given back.
    pub refunded: bool,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
    /// Number of its events.
    pub version: i32,
}

/// What an order can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The payment was captured.
    NotePayment,
    /// The payment was declined.
    FailPayment,
    /// Every line is reserved.
    Confirm,
    /// Stock ran short.
    Reject,
    /// The captured amount was given back.
    NoteRefund,
    /// The customer wants out.
    Cancel,
    /// Give up if the deadline has passed.
    Expire,
}

/// What can happen to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was accepted. Always the first event, and only the first.
    Created(Created),
    /// Its payment was noted.
    Paid,
    /// It was confirmed.
    Confirmed,
    /// It was given up.
    Cancelled(CancelReason),
    /// Its refund was noted.
    Refunded,
}

/// An order as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub id: OrderId,
    pub customer_id: CustomerId,
    pub lines: Vec<OrderLine>,
    pub total: Money,
    pub payment_method: String,
    pub deadline: OffsetDateTime,
}

/// A command that contradicts what has already happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The customer cancels what is already cancelled for another reason.
    #[error("the order is already cancelled: {}", .0.as_str())]
    AlreadyCancelled(CancelReason),
    /// Another service says what cannot be: a rule between the services is broken.
    #[error("{command:?} contradicts an order that is {status:?}")]
    Contradiction {
        /// What we were told.
        command: Command,
        /// Where the order stands.
        status: Status,
    },
}

/// What happens when `order` is told `command` at `now`; nothing is an answer, too.
pub fn decide(
    order: &Order,
    command: Command,
    now: OffsetDateTime,
) -> Result<Option<Event>, Refusal> {
    use Status::{Cancelled, Confirmed, Paid, Pending};
    let contradiction = Err(Refusal::Contradiction {
        command,
        status: order.status,
    });
    match (command, order.status) {
        // A late capture is noted although the order is cancelled: the refund is then due.
        (Command::NotePayment, Pending | Cancelled(_)) => Ok((!order.paid).then_some(Event::Paid)),
        (Command::NotePayment, Paid | Confirmed) => Ok(None),

        (Command::FailPayment, Pending) => Ok(Some(Event::Cancelled(CancelReason::PaymentFailed))),
        (Command::FailPayment, Paid | Confirmed) => contradiction,
        (Command::FailPayment, Cancelled(_)) => Ok(None),

        // A reservation may overtake the payment that it follows from; it implies the payment.
        (Command::Confirm, Pending | Paid) => Ok(Some(Event::Confirmed)),
        (Command::Confirm, Confirmed | Cancelled(_)) => Ok(None),

        (Command::Reject, Pending | Paid) => Ok(Some(Event::Cancelled(CancelReason::OutOfStock))),
        (Command::Reject, Confirmed) => contradiction,
        (Command::Reject, Cancelled(_)) => Ok(None),

        (Command::NoteRefund, Pending | Paid | Confirmed) => contradiction,
        (Command::NoteRefund, Cancelled(_)) => Ok((!order.refunded).then_some(Event::Refunded)),

        (Command::Cancel, Pending | Paid | Confirmed) => {
            Ok(Some(Event::Cancelled(CancelReason::CustomerRequest)))
        }
        (Command::Cancel, Cancelled(CancelReason::CustomerRequest)) => Ok(None),
        (Command::Cancel, Cancelled(reason)) => Err(Refusal::AlreadyCancelled(reason)),

        (Command::Expire, Pending | Paid) => {
            Ok((now >= order.deadline).then_some(Event::Cancelled(CancelReason::TimedOut)))
        }
        (Command::Expire, Confirmed | Cancelled(_)) => Ok(None),
    }
}

/// What `event` makes of an order. `None` stands for an order that does not exist: only its
/// creation fits, everything else leaves it as it is.
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
    let Event::Created(created) = event else {
        return None;
    };
    Some(Order {
        id: created.id,
        customer_id: created.customer_id,
        lines: created.lines.clone(),
        total: created.total.clone(),
        payment_method: created.payment_method.clone(),
        deadline: created.deadline,
        status: Status::Pending,
        paid: false,
        refunded: false,
        created_at: at,
        updated_at: at,
        version: 1,
    })
}

impl Order {
    /// What became of the money: of interest once the order is cancelled.
    pub fn refund(&self) -> Refund {
        match self.status {
            Status::Cancelled(_) if self.refunded => Refund::Done,
            Status::Cancelled(_) if self.paid => Refund::Pending,
            _ => Refund::None,
        }
    }
}

impl CancelReason {
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

#[cfg(test)]
mod tests;
