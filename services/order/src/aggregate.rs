//! Binds the decider to the unit of work.

use contracts::OrderId;
use messaging::Aggregate;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    domain::{self, Command, Event, InvalidTransition, Order},
    outgoing, store,
};

impl Aggregate for Order {
    type Command = Command;
    type Event = Event;
    type Rejection = InvalidTransition;

    fn decide(state: Option<&Self>, command: Command) -> Result<Vec<Event>, InvalidTransition> {
        domain::decide(state, command)
    }

    fn evolve(state: Option<Self>, event: &Event, at: OffsetDateTime) -> Option<Self> {
        domain::evolve(state, event, at)
    }

    /// Every event is published: the outbox is the event log of the orders.
    fn outgoing(&self, event: &Event) -> Option<contracts::Event> {
        Some(outgoing::to_contract(self, event))
    }

    async fn insert(tx: &mut PgConnection, new: &[(OrderId, &Self)]) -> sqlx::Result<()> {
        let orders: Vec<&Order> = new.iter().map(|(_, order)| *order).collect();
        // The only command for an order that does not exist creates it.
        store::insert(tx, &orders).await
    }

    async fn update(tx: &mut PgConnection, changed: &[(OrderId, &Self)]) -> sqlx::Result<()> {
        let orders: Vec<&Order> = changed.iter().map(|(_, order)| *order).collect();
        store::update(tx, &orders).await
    }
}
