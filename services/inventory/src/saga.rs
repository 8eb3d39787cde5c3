//! The inventory service's part in the saga: reserve stock for a paid order, undo that when it is
//! cancelled.

use std::collections::{BTreeSet, HashMap};

use anyhow::Context as _;
use contracts::{DecodeError, Event, Inbound, OrderId, Service, Sku, parse_lines};
use messaging::{Delivery, Handler, Outcome, UnitOfWork};
use sqlx::PgConnection;

use crate::{
    domain::{Command, Line, Reservation, Stock},
    store,
};

/// The events that the inventory service subscribes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundEvent {
    PaymentCompleted { lines: Vec<Line> },
    OrderCancelled,
}

impl Inbound for InboundEvent {
    const SERVICE: Service = Service::Inventory;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        match event {
            Event::PaymentCompleted(event) => {
                let lines = parse_lines(event.lines)?.into_iter();
                let lines = lines.map(|line| Line {
                    sku: line.sku,
                    quantity: line.quantity,
                });
                Ok(Self::PaymentCompleted {
                    lines: lines.collect(),
                })
            }
            Event::OrderCancelled(_) => Ok(Self::OrderCancelled),
            other => Err(DecodeError::NotSubscribed(other.subject())),
        }
    }
}

fn command(delivery: &Delivery<InboundEvent>, stock: &Stock) -> Command {
    let order_id = delivery.order_id();
    match &delivery.event {
        InboundEvent::PaymentCompleted { lines } => Command::Reserve {
            order_id,
            lines: lines.clone(),
            shortages: stock.shortages(lines),
        },
        InboundEvent::OrderCancelled => Command::Release { order_id },
    }
}

/// Every product that the batch can move: requested by a payment, or held by a reservation.
fn products(
    batch: &[Delivery<InboundEvent>],
    reservations: &HashMap<OrderId, Reservation>,
) -> BTreeSet<Sku> {
    let requested = batch.iter().flat_map(|delivery| match &delivery.event {
        InboundEvent::PaymentCompleted { lines } => lines.as_slice(),
        InboundEvent::OrderCancelled => &[],
    });
    let held = reservations
        .values()
        .flat_map(|reservation| &reservation.lines);
    requested.chain(held).map(|line| line.sku.clone()).collect()
}

/// Reserves and releases stock.
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
        let reservations = store::lock(tx, &ids).await.context("lock reservations")?;
        // Reservations first and stock second, in every batch: two batches cannot deadlock.
        let stock = store::lock_stock(tx, &products(batch, &reservations)).await;
        let mut stock = stock.context("lock stock")?;
        let mut work = UnitOfWork::new(reservations);
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch {
            let command = command(delivery, &stock);
            let executed = work.execute(delivery.order_id(), command, delivery.cause());
            executed
                .iter()
                .flatten()
                .for_each(|event| stock.apply(event));
            outcomes.push(Outcome::from_execution(executed));
        }
        store::move_stock(tx, stock.changes())
            .await
            .context("move stock")?;
        work.flush(tx).await.context("save reservations")?;
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
