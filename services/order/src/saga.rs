//! The order service's part in the saga: what it does on which event.

use anyhow::Context as _;
use contracts::{DecodeError, Event, Inbound, OrderId, Service};
use messaging::{Delivery, Handler, Outcome, UnitOfWork};
use sqlx::PgConnection;

use crate::{domain::Command, store};

/// The events that the order service subscribes to. It needs nothing of their payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundEvent {
    PaymentCompleted,
    PaymentFailed,
    PaymentRefunded,
    InventoryReserved,
    InventoryRejected,
}

impl Inbound for InboundEvent {
    const SERVICE: Service = Service::Order;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        match event {
            Event::PaymentCompleted(_) => Ok(Self::PaymentCompleted),
            Event::PaymentFailed(_) => Ok(Self::PaymentFailed),
            Event::PaymentRefunded(_) => Ok(Self::PaymentRefunded),
            Event::InventoryReserved(_) => Ok(Self::InventoryReserved),
            Event::InventoryRejected(_) => Ok(Self::InventoryRejected),
            other => Err(DecodeError::NotSubscribed(other.subject())),
        }
    }
}

fn command(event: InboundEvent) -> Command {
    match event {
        InboundEvent::PaymentCompleted => Command::RecordPayment,
        InboundEvent::PaymentFailed => Command::FailPayment,
        InboundEvent::PaymentRefunded => Command::RecordRefund,
        InboundEvent::InventoryReserved => Command::Confirm,
        InboundEvent::InventoryRejected => Command::Reject,
    }
}

/// Applies the results of payment and inventory to orders.
#[derive(Debug)]
pub struct Saga;

impl Handler for Saga {
    type Inbound = InboundEvent;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<InboundEvent>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let ids: Vec<OrderId> = batch.iter().map(Delivery::order_id).collect();
        let mut work = UnitOfWork::new(store::lock(tx, &ids).await.context("lock orders")?);
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch {
            let command = command(delivery.event);
            let executed = work.execute(delivery.order_id(), command, delivery.cause());
            outcomes.push(Outcome::from_execution(executed));
        }
        work.flush(tx).await.context("save orders")?;
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use contracts::choreography::mismatches;

    use super::*;

    #[test]
    fn inbound_events_agree_with_the_choreography() {
        assert_eq!(mismatches::<InboundEvent>(), []);
    }
}
