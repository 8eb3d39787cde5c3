//! What a payment is and what may happen to it: pure functions, no clock, no database, no network.
//!
//! A cancellation may arrive before, during or after the charge. The same facts always lead to the
//! same end: captured money of a cancelled order is refunded, and an order that was cancelled first
//! is never charged.

#[cfg(test)]
mod tests;

use std::fmt;

use contracts::{Cause, CustomerId, Money, OrderId, OrderLine, PaymentId, PaymentMethod};
use time::OffsetDateTime;

/// Who pays for which order. Fixed when the first event about the order arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Also the first idempotency key of the charge.
    pub payment_id: PaymentId,
    pub order_id: OrderId,
    pub customer_id: CustomerId,
}

/// What is to be charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The order's total.
    pub amount: Money,
    /// `None` once the charge is settled: refunds name the charge, and not the method.
    pub method: Option<PaymentMethod>,
    /// What is paid for; passed on to inventory when the charge is captured.
    pub lines: Vec<OrderLine>,
    /// When the order is cancelled unless it is confirmed; the provider is not asked for a first
    /// time after that. `None` in payments of the version that did not keep it.
    pub deadline: Option<OffsetDateTime>,
    /// The encoded body of the request to the provider. `None` in payments of the version that did
    /// not keep it, and once the charge is settled.
    pub request: Option<String>,
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
    /// Cancelled, and never charged: before the provider was called, or after it is known that it
    /// has charged nothing.
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
    /// Calls to the provider under the current key. Counted before the call: 0 means that the
    /// provider has not done what is to be done now, and will not unless it is asked again.
    pub attempts: i32,
    /// How many of these calls cannot be executed any more.
    pub answered: i32,
    /// The number of the current key, of the charge or of the refund; 0 is the first.
    pub key_number: i32,
    /// The provider's name for a refund that is pending.
    pub refund_id: Option<String>,
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
    /// The provider has not charged, and will not under the keys used so far. Known from this call.
    RecordAbsence(Call),
    /// The provider has refunded the amount.
    RecordRefund,
    /// The provider has accepted the refund; it is not completed.
    RecordPendingRefund { id: String },
    /// The refund has failed or was refused. Known from this call.
    RecordFailedRefund(Call),
}

/// A call to the provider. What it finds missing counts only while it is the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub key_number: i32,
    pub attempt: i32,
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
    /// Nothing was charged; the next call is the first one under a new key.
    FoundUncharged,
    RefundRequested,
    RefundAccepted {
        id: String,
    },
    /// Nothing was refunded; the next call is the first one under a new key.
    RefundFailed,
    Refunded,
}

/// A command that contradicts what has already happened.
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
        // The provider may have charged: what it answers or what is found there decides.
        (Command::Cancel(_, cause), Pending | Failed) => Ok(vec![Event::Cancelled(cause)]),
        // The compensation: out of stock, a missed deadline and a customer's cancellation all end
        // here.
        (Command::Cancel(_, cause), Completed) => {
            Ok(vec![Event::Cancelled(cause), Event::RefundRequested])
        }
        (Command::Cancel(..), Voided | Refunding | Refunded) => nothing,

        // That a voided payment is captured cannot happen, unless a worker was paused for minutes
        // in the middle of its call. The money goes back all the same.
        (Command::RecordCapture { reference }, Pending | Voided) if payment.charge.is_some() => {
            let mut events = vec![Event::Completed { reference }];
            if payment.cancelled.is_some() {
                events.push(Event::RefundRequested);
            }
            Ok(events)
        }
        // Two workers called with the same key and got the same response.
        (Command::RecordCapture { .. }, Completed | Refunding | Refunded) => nothing,
        (Command::RecordCapture { .. }, Pending | Failed | Voided) => contradiction("a capture"),

        (Command::RecordDecline { code }, Pending) => Ok(vec![Event::Failed { code }]),
        (Command::RecordDecline { .. }, Failed) => nothing,
        (Command::RecordDecline { .. }, Completed | Voided | Refunding | Refunded) => {
            contradiction("a decline")
        }

        // Another worker has called since, and knows more.
        (Command::RecordAbsence(call), Pending) if call != payment.last_call() => nothing,
        // Nothing is at the provider and nothing will be: as if it had never been called.
        (Command::RecordAbsence(_), Pending) => Ok(match &payment.cancelled {
            Some(cause) => vec![Event::Voided(cause.clone())],
            None => vec![Event::FoundUncharged],
        }),
        (Command::RecordAbsence(_), Failed | Voided) => nothing,
        (Command::RecordAbsence(call), _) if call != payment.last_call() => nothing,
        (Command::RecordAbsence(_), Completed | Refunding | Refunded) => {
            contradiction("the absence of a charge")
        }

        (Command::RecordPendingRefund { id }, Refunding) => Ok(match &payment.refund_id {
            Some(known) if *known == id => vec![],
            _ => vec![Event::RefundAccepted { id }],
        }),
        // It has succeeded since.
        (Command::RecordPendingRefund { .. } | Command::RecordFailedRefund(_), Refunded) => nothing,
        (Command::RecordFailedRefund(call), Refunding) if call != payment.last_call() => nothing,
        (Command::RecordFailedRefund(_), Refunding) => Ok(vec![Event::RefundFailed]),
        (
            Command::RecordPendingRefund { .. } | Command::RecordFailedRefund(_),
            Pending | Completed | Failed | Voided,
        ) => contradiction("a refund"),

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
        Event::FoundUncharged => payment.use_key(payment.key_number.saturating_add(1)),
        Event::RefundRequested => {
            payment.use_key(0);
            payment.status = Status::Refunding;
        }
        Event::RefundAccepted { id } => payment.refund_id = Some(id.clone()),
        Event::RefundFailed => {
            payment.refund_id = None;
            payment.use_key(payment.key_number.saturating_add(1));
        }
        Event::Refunded => payment.status = Status::Refunded,
    }
    if payment.status != Status::Pending {
        payment.forget_method();
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
        answered: 0,
        key_number: 0,
        refund_id: None,
        reference: None,
        failure_code: None,
        updated_at: at,
    })
}

impl Payment {
    /// The last call that was counted.
    pub fn last_call(&self) -> Call {
        Call {
            key_number: self.key_number,
            attempt: self.attempts,
        }
    }

    /// Nothing is asked of the provider for the charge any more.
    fn forget_method(&mut self) {
        if let Some(charge) = &mut self.charge {
            charge.method = None;
            charge.request = None;
        }
    }

    fn use_key(&mut self, number: i32) {
        self.key_number = number;
        self.attempts = 0;
        self.answered = 0;
    }
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
