//! The order service's part in the saga: what it does on which event.

use contracts::{DecodeError, Event, Inbound, OrderId, choreography::Service};
use messaging::{Delivery, Handler, Outcome};
use sqlx::PgConnection;

use crate::{
    decisions::{Decisions, Undecided},
    domain::Command,
    store,
};

/// What the order service listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The order's total was captured.
    PaymentCompleted,
    /// The payment was declined.
    PaymentFailed,
    /// What had been captured was given back.
    PaymentRefunded,
    /// Every line is reserved.
    InventoryReserved,
    /// Stock ran short.
    InventoryRejected,
}

impl Inbound for Heard {
    const SERVICE: Service = Service::Order;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        match event {
            Event::PaymentCompleted(_) => Ok(Self::PaymentCompleted),
            Event::PaymentFailed(_) => Ok(Self::PaymentFailed),
            Event::PaymentRefunded(_) => Ok(Self::PaymentRefunded),
            Event::InventoryReserved(_) => Ok(Self::InventoryReserved),
            Event::InventoryRejected(_) => Ok(Self::InventoryRejected),
            other => Err(DecodeError::NotForUs(other.subject())),
        }
    }
}

/// Reacts to what payment and inventory say.
#[derive(Debug)]
pub struct Saga;

impl Handler for Saga {
    type Inbound = Heard;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Heard>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let ids: Vec<OrderId> = batch.iter().map(Delivery::order_id).collect();
        let mut decisions = Decisions::on(store::lock(tx, &ids).await?);
        let outcomes = batch.iter().map(|delivery| {
            let command = match delivery.event {
                Heard::PaymentCompleted => Command::NotePayment,
                Heard::PaymentFailed => Command::FailPayment,
                Heard::InventoryReserved => Command::Confirm,
                Heard::InventoryRejected => Command::Reject,
                Heard::PaymentRefunded => Command::NoteRefund,
            };
            match decisions.tell(delivery.order_id(), command, delivery.cause()) {
                Ok(true) => Outcome::Done,
                Ok(false) => Outcome::Ignored("the order has moved on"),
                Err(error @ (Undecided::NoSuchOrder(_) | Undecided::Refused(_))) => {
                    Outcome::Poison(error.into())
                }
            }
        });
        let outcomes = outcomes.collect();
        decisions.save(tx).await?;
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use contracts::{Subject, choreography::listens_to};

    use super::*;

    #[test]
    fn everything_the_choreography_sends_here_is_understood_and_nothing_else() {
        let declared: Vec<Subject> = Service::ALL
            .into_iter()
            .flat_map(|owner| listens_to(Service::Order, owner))
            .collect();
        for subject in Subject::ALL {
            let event = Event::decode(subject, &[]).unwrap();
            assert_eq!(
                Heard::from_event(event).is_ok(),
                declared.contains(&subject),
                "{subject}"
            );
        }
    }
}
