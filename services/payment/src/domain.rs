//! What a payment is and what may happen to it: pure functions, no clock, no database, no network.
//!
//! A cancellation may arrive before, during or after the charge. The same facts always lead to the same
//! end: captured money of a cancelled order is refunded, and an order that was cancelled first is never
//! charged.

#[cfg(test)]
mod tests;

use std::fmt;

use contracts::{Cause, CustomerId, Money, OrderId, OrderLine, PaymentId, PaymentMethod};
use time::OffsetDateTime;

/// Who pays for which order. Fixed when the first event about the order arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Also the idempotency key of the charge.
    pub payment_id: PaymentId,
    pub order_id: OrderId,
    pub customer_id: CustomerId,
}

/// What is to be charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The order's total.
    pub amount: Money,
    pub method: PaymentMethod,
    /// What is paid for; passed on to inventory when the charge is captured.
    pub lines: Vec<OrderLine>,
    /// When the order is cancelled unless it is confirmed; the provider is not asked for a first
    /// time after that. `None` in payments of the version that did not keep it.
    pub deadline: Option<OffsetDateTime>,
    /// The order's creation: what the outcome of the charge follows from.
    pub cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// To be charged; the provider may have been called.
    Pending,
    /// Captured.
    Completed,
    /// Declined.
    Failed,
    /// Cancelled before the provider was called; never charged.
    Voided,
    /// Captured, to be refunded; the provider may have been called.
    Refunding,
    Refunded,
}

/// The payment of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    pub identity: Identity,
    /// `None` in a tombstone: the cancellation arrived before the order.
    pub charge: Option<Charge>,
    pub status: Status,
    /// The cancellation, once it has arrived: what the refund follows from.
    pub cancelled: Option<Cause>,
    /// Calls to the provider for what is to be done now. Counted before the call: 0 means that the
    /// provider cannot know of it.
    pub attempts: i32,
    /// The provider's name for the charge.
    pub reference: Option<String>,
    /// Why the charge was declined.
    pub failure_code: Option<String>,
    pub updated_at: OffsetDateTime,
}

/// Commands a payment accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The order was accepted.
    Charge(Identity, Charge),
    /// The order was cancelled.
    Cancel(Identity, Cause),
    /// The provider has captured the amount.
    RecordCapture { reference: String },
    /// The provider has declined the charge.
    RecordDecline { code: String },
    /// The provider has refunded the amount.
    RecordRefund,
}

/// What can happen to a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Requested(Identity, Charge),
    /// The order was cancelled before it arrived; nothing will be charged.
    CancelledFirst(Identity, Cause),
    /// The order was cancelled; nothing has been charged and nothing will be.
    Voided(Cause),
    /// The order was cancelled; what has been or will be captured must be refunded.
    Cancelled(Cause),
    Completed {
        reference: String,
    },
    Failed {
        code: String,
    },
    RefundRequested,
    Refunded,
}

/// The provider reported something impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTransition {
    #[error("there is no payment for this order")]
    UnknownPayment,
    #[error("{reported} contradicts a payment that is {status}")]
    Contradiction {
        reported: &'static str,
        status: Status,
    },
}

/// What happens when `payment` gets `command`; no event when nothing changes.
pub fn decide(
    payment: Option<&Payment>,
    command: Command,
) -> Result<Vec<Event>, InvalidTransition> {
    use Status::{Completed, Failed, Pending, Refunded, Refunding, Voided};
    let Some(payment) = payment else {
        return match command {
            Command::Charge(identity, charge) => Ok(vec![Event::Requested(identity, charge)]),
            Command::Cancel(identity, cause) => Ok(vec![Event::CancelledFirst(identity, cause)]),
            _ => Err(InvalidTransition::UnknownPayment),
        };
    };
    let status = payment.status;
    let contradiction = |reported| Err(InvalidTransition::Contradiction { reported, status });
    let nothing = Ok(vec![]);
    match (command, status) {
        // Redelivered, or after a cancellation that arrived first.
        (Command::Charge(..), _) => nothing,

        (Command::Cancel(..), _) if payment.cancelled.is_some() => nothing,
        (Command::Cancel(_, cause), Pending) if payment.attempts == 0 => {
            Ok(vec![Event::Voided(cause)])
        }
        // The provider may have charged: its response to the open call decides.
        (Command::Cancel(_, cause), Pending | Failed) => Ok(vec![Event::Cancelled(cause)]),
        // The compensation: out of stock, a missed deadline and a customer's wish all end here.
        (Command::Cancel(_, cause), Completed) => {
            Ok(vec![Event::Cancelled(cause), Event::RefundRequested])
        }
        (Command::Cancel(..), Voided | Refunding | Refunded) => nothing,

        (Command::RecordCapture { reference }, Pending) => {
            let mut events = vec![Event::Completed { reference }];
            if payment.cancelled.is_some() {
                events.push(Event::RefundRequested);
            }
            Ok(events)
        }
        // Two workers called with the same key and got the same response.
        (Command::RecordCapture { .. }, Completed | Refunding | Refunded) => nothing,
        (Command::RecordCapture { .. }, Failed | Voided) => contradiction("a capture"),

        (Command::RecordDecline { code }, Pending) => Ok(vec![Event::Failed { code }]),
        (Command::RecordDecline { .. }, Failed) => nothing,
        (Command::RecordDecline { .. }, Completed | Voided | Refunding | Refunded) => {
            contradiction("a decline")
        }

        (Command::RecordRefund, Refunding) => Ok(vec![Event::Refunded]),
        (Command::RecordRefund, Refunded) => nothing,
        (Command::RecordRefund, Pending | Completed | Failed | Voided) => contradiction("a refund"),
    }
}

/// The payment after `event`, which happened at `at`. `None` when the event does not fit: only a
/// request or a cancellation begins a payment.
pub fn evolve(payment: Option<Payment>, event: &Event, at: OffsetDateTime) -> Option<Payment> {
    let mut payment = match payment {
        Some(payment) => payment,
        None => begin(event, at)?,
    };
    match event {
        Event::Requested(_, charge) => payment.charge = Some(charge.clone()),
        Event::CancelledFirst(_, cause) | Event::Voided(cause) => {
            payment.cancelled = Some(cause.clone());
            payment.status = Status::Voided;
        }
        Event::Cancelled(cause) => payment.cancelled = Some(cause.clone()),
        Event::Completed { reference } => {
            payment.reference = Some(reference.clone());
            payment.status = Status::Completed;
        }
        Event::Failed { code } => {
            payment.failure_code = Some(code.clone());
            payment.status = Status::Failed;
        }
        Event::RefundRequested => {
            payment.attempts = 0;
            payment.status = Status::Refunding;
        }
        Event::Refunded => payment.status = Status::Refunded,
    }
    payment.updated_at = at;
    Some(payment)
}

fn begin(event: &Event, at: OffsetDateTime) -> Option<Payment> {
    let (Event::Requested(identity, _) | Event::CancelledFirst(identity, _)) = event else {
        return None;
    };
    Some(Payment {
        identity: *identity,
        charge: None,
        status: Status::Pending,
        cancelled: None,
        attempts: 0,
        reference: None,
        failure_code: None,
        updated_at: at,
    })
}

impl Status {
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Completed,
        Self::Failed,
        Self::Voided,
        Self::Refunding,
        Self::Refunded,
    ];

    /// As the database and the API spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Voided => "voided",
            Self::Refunding => "refunding",
            Self::Refunded => "refunded",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
