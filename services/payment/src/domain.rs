//! What a payment is and what may happen to it: pure functions, no clock, no database, no network.
//!
//! A cancellation may come before, while and after the charge is made; whatever the order, the same
//! facts lead to the same end: captured money of a cancelled order is given back, and an order that
//! was cancelled first is never charged.

use contracts::{CustomerId, Money, OrderId, OrderLine, PaymentId};
use messaging::outbox::Cause;

/// What is to be charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The order's total.
    pub amount: Money,
    /// The provider's payment method.
    pub method: String,
    /// What is paid for; handed on when the charge is captured.
    pub lines: Vec<OrderLine>,
    /// The order's creation: what the outcome of the charge follows from.
    pub cause: Cause,
}

/// Where a payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// To be charged; the provider may have been asked.
    Pending,
    /// Captured.
    Completed,
    /// Declined.
    Failed,
    /// Cancelled before the provider was asked; never charged.
    Voided,
    /// Captured, to be given back; the provider may have been asked.
    Refunding,
    /// Given back.
    Refunded,
}

/// The payment of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// The payment, and the idempotency key of its charge.
    pub id: PaymentId,
    /// What it pays for.
    pub order_id: OrderId,
    /// Who pays.
    pub customer_id: CustomerId,
    /// `None` when the cancellation came first: a tombstone.
    pub charge: Option<Charge>,
    /// Where it stands.
    pub status: Status,
    /// The cancellation, once heard of: what the refund follows from.
    pub cancelled: Option<Cause>,
    /// How often the provider was asked for what is to be done now; 0 means that it cannot know of
    /// it.
    pub attempts: i32,
    /// The provider's name for the charge.
    pub reference: Option<String>,
    /// Why the charge was declined.
    pub failure_code: Option<String>,
}

/// What a payment can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The order was accepted.
    Charge(Charge),
    /// The order was cancelled.
    Cancel(Cause),
    /// The provider has captured the amount.
    NoteCapture {
        /// The provider's name for the charge.
        reference: String,
    },
    /// The provider has declined.
    NoteDecline {
        /// The provider's reason.
        code: String,
    },
    /// The provider has given the amount back.
    NoteRefund,
}

/// What can happen to a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was asked for.
    Requested(Charge),
    /// The order was cancelled; nothing has been charged and nothing will be.
    Voided(Cause),
    /// The order was cancelled; whatever has been or will be captured must be given back.
    Cancelled(Cause),
    /// The amount was captured.
    Completed {
        /// The provider's name for the charge.
        reference: String,
    },
    /// The charge was declined.
    Failed {
        /// The provider's reason.
        code: String,
    },
    /// The captured amount is to be given back.
    RefundRequested,
    /// The captured amount was given back.
    Refunded,
}

/// The provider says what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{command:?} contradicts a payment that is {status:?}")]
pub struct Contradiction {
    command: Box<Command>,
    status: Option<Status>,
}

/// What happens when the payment of an order is told `command`; nothing is an answer, too.
pub fn decide(payment: Option<&Payment>, command: Command) -> Result<Vec<Event>, Contradiction> {
    use Status::{Completed, Failed, Pending, Refunded, Refunding, Voided};
    let status = payment.map(|payment| payment.status);
    let asked = payment.is_some_and(|payment| payment.attempts > 0);
    let cancelled = payment.is_some_and(|payment| payment.cancelled.is_some());
    match (command, status) {
        (Command::Charge(charge), None) => Ok(vec![Event::Requested(charge)]),
        (Command::Charge(_), Some(_)) => Ok(vec![]),

        (Command::Cancel(_), _) if cancelled => Ok(vec![]),
        (Command::Cancel(cause), None) => Ok(vec![Event::Voided(cause)]),
        (Command::Cancel(cause), Some(Pending)) if !asked => Ok(vec![Event::Voided(cause)]),
        // The provider may have charged: the answer to the question that is open decides.
        (Command::Cancel(cause), Some(Pending | Failed)) => Ok(vec![Event::Cancelled(cause)]),
        // This is where a payment is refunded when stock runs out, a deadline passes or the
        // customer cancels.
        (Command::Cancel(cause), Some(Completed)) => {
            Ok(vec![Event::Cancelled(cause), Event::RefundRequested])
        }
        (Command::Cancel(_), Some(Voided | Refunding | Refunded)) => Ok(vec![]),

        (Command::NoteCapture { reference }, Some(Pending)) if cancelled => {
            Ok(vec![Event::Completed { reference }, Event::RefundRequested])
        }
        (Command::NoteCapture { reference }, Some(Pending)) => {
            Ok(vec![Event::Completed { reference }])
        }
        // Two workers asked with the same key and got the same answer.
        (Command::NoteCapture { .. }, Some(Completed | Refunding | Refunded)) => Ok(vec![]),
        (Command::NoteDecline { code }, Some(Pending)) => Ok(vec![Event::Failed { code }]),
        (Command::NoteDecline { .. }, Some(Failed)) => Ok(vec![]),
        (Command::NoteRefund, Some(Refunding)) => Ok(vec![Event::Refunded]),
        (Command::NoteRefund, Some(Refunded)) => Ok(vec![]),

        (command @ Command::NoteCapture { .. }, None | Some(Failed | Voided))
        | (
            command @ Command::NoteDecline { .. },
            None | Some(Completed | Voided | Refunding | Refunded),
        )
        | (command @ Command::NoteRefund, None | Some(Pending | Completed | Failed | Voided)) => {
            Err(Contradiction {
                command: Box::new(command),
                status,
            })
        }
    }
}

impl Payment {
    /// A payment before anything has happened to it.
    pub fn of(order_id: OrderId, customer_id: CustomerId) -> Self {
        Self {
            id: PaymentId::new(),
            order_id,
            customer_id,
            charge: None,
            status: Status::Pending,
            cancelled: None,
            attempts: 0,
            reference: None,
            failure_code: None,
        }
    }

    /// What `event` makes of this payment.
    pub fn evolve(mut self, event: &Event) -> Self {
        match event {
            Event::Requested(charge) => self.charge = Some(charge.clone()),
            Event::Voided(cause) => {
                self.cancelled = Some(cause.clone());
                self.status = Status::Voided;
            }
            Event::Cancelled(cause) => self.cancelled = Some(cause.clone()),
            Event::Completed { reference } => {
                self.reference = Some(reference.clone());
                self.status = Status::Completed;
            }
            Event::Failed { code } => {
                self.failure_code = Some(code.clone());
                self.status = Status::Failed;
            }
            Event::RefundRequested => {
                self.attempts = 0;
                self.status = Status::Refunding;
            }
            Event::Refunded => self.status = Status::Refunded,
        }
        self
    }

    /// Whether the provider is to be asked for something.
    pub fn is_due(&self) -> bool {
        matches!(self.status, Status::Pending | Status::Refunding)
    }
}

#[cfg(test)]
mod tests;
