//! Domain events as contract events.

use contracts::Event as Contract;
use proto::payment::v1 as wire;

use crate::domain::{Charge, Event, Payment};

/// The contract event of a domain event that has led to `payment`; `None` when other services need
/// not know.
pub fn to_contract(payment: &Payment, event: &Event) -> Option<Contract> {
    let Charge { amount, lines, .. } = payment.charge.as_ref()?;
    let order_id = payment.identity.order_id.to_string();
    let payment_id = payment.identity.payment_id.to_string();
    match event {
        Event::Completed { .. } => Some(Contract::PaymentCompleted(wire::PaymentCompleted {
            order_id,
            payment_id,
            amount: Some((*amount).into()),
            lines: lines.iter().cloned().map(Into::into).collect(),
        })),
        Event::Failed { code } => Some(Contract::PaymentFailed(wire::PaymentFailed {
            order_id,
            payment_id,
            code: code.clone(),
        })),
        Event::Refunded => Some(Contract::PaymentRefunded(wire::PaymentRefunded {
            order_id,
            payment_id,
            amount: Some((*amount).into()),
            customer_id: payment.identity.customer_id.to_string(),
        })),
        Event::Requested(..)
        | Event::CancelledFirst(..)
        | Event::Voided(_)
        | Event::Cancelled(_)
        | Event::FoundUncharged
        | Event::RefundRequested
        | Event::RefundAccepted { .. }
        | Event::RefundFailed => None,
    }
}
