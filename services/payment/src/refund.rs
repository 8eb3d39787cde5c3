//! How a charge is refunded, and the refund followed until the money is back.
//!
//! A refund that the provider has accepted may be pending for days and may fail. It is followed by
//! its id, and a failed one is asked for again under a new key. Two keys cannot refund twice: the
//! provider refunds a charge in full and not beyond that, and a refund that it refuses as already
//! made is searched for.

use contracts::Money;

use crate::{
    domain::Payment,
    provider::{CallError, Provider, ProviderOutcome, Refund},
};

/// Unknown outcomes after which the refund is also searched for.
const ATTEMPTS_BEFORE_SEARCH: i32 = 3;

/// Makes the calls that a leased refund needs. `reference`: the provider's name for the charge.
pub async fn call(
    provider: &Provider,
    payment: &Payment,
    reference: &str,
    amount: Money,
) -> ProviderOutcome {
    if let Some(id) = &payment.refund_id {
        return match provider.get_refund(id).await {
            Ok(refund) => outcome(refund),
            Err(error) => error.unknown(),
        };
    }
    match provider.create_refund(&key(payment), reference).await {
        Ok(refund) => outcome(refund),
        Err(CallError::Rejected(error))
            if error.code.as_deref() == Some("charge_already_refunded") =>
        {
            search(provider, reference, amount, &error.to_string()).await
        }
        // The refusal is stored under the key.
        Err(CallError::Rejected(error)) => ProviderOutcome::NotRefunded {
            reason: error.to_string(),
        },
        Err(CallError::Stored(reason) | CallError::OtherBody(reason)) => {
            search(provider, reference, amount, &reason).await
        }
        Err(error) if payment.attempts >= ATTEMPTS_BEFORE_SEARCH => {
            match search(provider, reference, amount, "").await {
                ProviderOutcome::NotRefunded { .. } => error.unknown(),
                found => found,
            }
        }
        Err(error) => error.unknown(),
    }
}

/// What the refunds of a charge amount to.
async fn search(
    provider: &Provider,
    reference: &str,
    amount: Money,
    reason: &str,
) -> ProviderOutcome {
    let refunds = match provider.find_refunds(reference).await {
        Ok(refunds) => refunds,
        Err(error) => return error.unknown(),
    };
    let succeeded = refunds
        .iter()
        .filter(|refund| refund.status.as_deref() == Some("succeeded"));
    if succeeded.map(|refund| refund.amount).sum::<i64>() >= amount.amount() {
        return ProviderOutcome::Refunded;
    }
    let pending = refunds.into_iter().find(Refund::is_pending);
    pending.map_or_else(
        || ProviderOutcome::NotRefunded {
            reason: reason.to_owned(),
        },
        outcome,
    )
}

fn outcome(refund: Refund) -> ProviderOutcome {
    match refund.status.as_deref() {
        Some("succeeded") => ProviderOutcome::Refunded,
        _ if refund.is_pending() => ProviderOutcome::RefundPending { id: refund.id },
        status => ProviderOutcome::NotRefunded {
            reason: format!("the refund {} is {}", refund.id, status.unwrap_or_default()),
        },
    }
}

fn key(payment: &Payment) -> String {
    let id = payment.identity.payment_id;
    match payment.key_number {
        0 => format!("{id}-refund"),
        number => format!("{id}-refund-{number}"),
    }
}

impl Refund {
    fn is_pending(&self) -> bool {
        matches!(
            self.status.as_deref(),
            None | Some("pending" | "requires_action")
        )
    }
}
