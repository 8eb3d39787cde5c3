//! Binds the decider to the unit of work.

use contracts::OrderId;
use messaging::Aggregate;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    domain::{self, Command, Event, InvalidTransition, Reservation},
    outgoing, store,
};

impl Aggregate for Reservation {
    type Command = Command;
    type Event = Event;
    type Rejection = InvalidTransition;

    fn decide(state: Option<&Self>, command: Command) -> Result<Vec<Event>, InvalidTransition> {
        domain::decide(state, command)
    }

    fn evolve(state: Option<Self>, event: &Event, at: OffsetDateTime) -> Option<Self> {
        domain::evolve(state, event, at)
    }

    fn outgoing(&self, event: &Event) -> Option<contracts::Event> {
        outgoing::to_contract(self, event)
    }

    async fn insert(tx: &mut PgConnection, new: &[(OrderId, &Self)]) -> sqlx::Result<()> {
        let reservations: Vec<&Reservation> = new.iter().map(|(_, row)| *row).collect();
        store::insert(tx, &reservations).await
    }

    async fn update(tx: &mut PgConnection, changed: &[(OrderId, &Self)]) -> sqlx::Result<()> {
        let reservations: Vec<&Reservation> = changed.iter().map(|(_, row)| *row).collect();
        store::update(tx, &reservations).await
    }
}
