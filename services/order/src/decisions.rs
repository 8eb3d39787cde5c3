//! Decisions on locked orders: the one way in which orders change, whoever asks: the saga, the
//! customer, the sweep.

use std::collections::{BTreeSet, HashMap};

use contracts::OrderId;
use messaging::outbox::{self, Cause, Outgoing};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    domain::{Command, Order, Refusal, decide, evolve},
    log, store,
};

/// Orders that the caller's transaction has locked, and what was decided on them so far.
pub(crate) struct Decisions<'a> {
    orders: HashMap<OrderId, Order>,
    changed: BTreeSet<OrderId>,
    events: Vec<Outgoing<'a>>,
    now: OffsetDateTime,
}

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecided {
    #[error("there is no order {0}")]
    NoSuchOrder(OrderId),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl<'a> Decisions<'a> {
    /// On orders that are locked.
    pub(crate) fn on(orders: Vec<Order>) -> Self {
        let orders = orders.into_iter().map(|order| (order.id, order)).collect();
        Self {
            orders,
            changed: BTreeSet::new(),
            events: Vec::new(),
            now: outbox::now(),
        }
    }

    /// Tells an order something; returns whether anything happened. A later call sees what an
    /// earlier one did.
    pub(crate) fn tell(
        &mut self,
        id: OrderId,
        command: Command,
        cause: &'a Cause,
    ) -> Result<bool, Undecided> {
        let order = self.orders.get(&id).ok_or(Undecided::NoSuchOrder(id))?;
        let Some(event) = decide(order, command, self.now)? else {
            return Ok(false);
        };
        let Some(order) = evolve(self.orders.remove(&id), &event, self.now) else {
            return Ok(false);
        };
        let mut outgoing = Outgoing::new(id, log::publish(&order, &event), cause);
        outgoing.recorded_at = self.now;
        self.events.push(outgoing);
        self.changed.insert(id);
        self.orders.insert(id, order);
        Ok(true)
    }

    /// Writes all changed orders with one statement and all events with another.
    pub(crate) async fn save(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        let changed: Vec<&Order> = self
            .changed
            .iter()
            .filter_map(|id| self.orders.get(id))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        store::update(tx, &changed).await?;
        outbox::append(tx, &self.events).await
    }

    /// An order as it stands after the decisions so far.
    pub(crate) fn order(&self, id: OrderId) -> Option<&Order> {
        self.orders.get(&id)
    }
}
