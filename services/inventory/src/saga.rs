//! The inventory service's part in the saga: set stock aside for an order that was paid, undo that
//! when it is cancelled.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use contracts::{DecodeError, Event as Contract, Inbound, OrderId, choreography::Service};
use messaging::{
    Delivery, Handler, Outcome,
    outbox::{self, Outgoing},
};
use proto::inventory::v1 as wire;
use sqlx::PgConnection;

use crate::{
    domain::{Command, Event, Line, decide, evolve, movements},
    store,
};

/// What the inventory service listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An order was paid: reserve its lines.
    PaymentCompleted(Vec<Line>),
    /// An order was cancelled: release them.
    OrderCancelled,
}

impl Inbound for Heard {
    const SERVICE: Service = Service::Inventory;

    fn from_event(event: Contract) -> Result<Self, DecodeError> {
        match event {
            Contract::PaymentCompleted(event) => {
                let lines = event.lines.into_iter().map(|line| Line {
                    sku: line.sku,
                    quantity: line.quantity,
                });
                Ok(Self::PaymentCompleted(lines.collect()))
            }
            Contract::OrderCancelled(_) => Ok(Self::OrderCancelled),
            other => Err(DecodeError::NotForUs(other.subject())),
        }
    }
}

/// Reserves and releases.
#[derive(Debug)]
pub struct Saga;

impl Handler for Saga {
    type Inbound = Heard;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Heard>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let orders: Vec<OrderId> = batch.iter().map(Delivery::order_id).collect();
        let mut reservations = store::lock(tx, &orders)
            .await
            .context("lock reservations")?;
        let known: BTreeSet<OrderId> = reservations.keys().copied().collect();
        let wanted = batch.iter().flat_map(|delivery| match &delivery.event {
            Heard::PaymentCompleted(lines) => lines.as_slice(),
            Heard::OrderCancelled => &[],
        });
        let held = reservations
            .values()
            .flat_map(|reservation| &reservation.lines);
        let skus: BTreeSet<String> = wanted.chain(held).map(|line| line.sku.clone()).collect();
        let skus: Vec<&str> = skus.iter().map(String::as_str).collect();
        let mut stock = store::lock_stock(tx, &skus).await.context("lock stock")?;

        let mut moved: BTreeMap<String, i64> = BTreeMap::new();
        let mut changed = BTreeSet::new();
        let mut events = Vec::new();
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch {
            let order = delivery.order_id();
            let command = match &delivery.event {
                Heard::PaymentCompleted(lines) => Command::Reserve(lines.clone()),
                Heard::OrderCancelled => Command::Release,
            };
            let Some(event) = decide(reservations.get(&order), command, &stock) else {
                outcomes.push(Outcome::Ignored("the reservation has moved on"));
                continue;
            };
            for (sku, by) in movements(&event) {
                *stock.entry(sku.to_owned()).or_default() += by;
                *moved.entry(sku.to_owned()).or_default() += by;
            }
            reservations.insert(order, evolve(&event));
            changed.insert(order);
            events.extend(
                publish(order, &event)
                    .map(|contract| Outgoing::new(order, contract, delivery.cause())),
            );
            outcomes.push(Outcome::Done);
        }

        let (old, new) = changed
            .iter()
            .filter_map(|order| Some((*order, reservations.get(order)?)))
            .partition(|(order, _)| known.contains(order));
        store::move_stock(tx, &moved).await.context("move stock")?;
        store::update(tx, &old)
            .await
            .context("update reservations")?;
        store::insert(tx, &new)
            .await
            .context("insert reservations")?;
        outbox::append(tx, &events).await.context("append events")?;
        Ok(outcomes)
    }
}

/// What is said about what happened.
fn publish(order: OrderId, event: &Event) -> Option<Contract> {
    let order_id = order.to_string();
    match event {
        Event::Reserved(_) => Some(Contract::InventoryReserved(wire::InventoryReserved {
            order_id,
        })),
        Event::Rejected { short_skus, .. } => {
            Some(Contract::InventoryRejected(wire::InventoryRejected {
                order_id,
                short_skus: short_skus.clone(),
            }))
        }
        Event::Released(_) => Some(Contract::InventoryReleased(wire::InventoryReleased {
            order_id,
        })),
        Event::Buried => None,
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
            .flat_map(|owner| listens_to(Service::Inventory, owner))
            .collect();
        for subject in Subject::ALL {
            let event = Contract::decode(subject, &[]).unwrap();
            assert_eq!(
                Heard::from_event(event).is_ok(),
                declared.contains(&subject),
                "{subject}"
            );
        }
    }
}
