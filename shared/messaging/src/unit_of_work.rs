//! The unit of work: locked aggregates, what was decided on them, and one write of all of it.
//!
//! A batch may hold several commands for one aggregate. Each sees what the commands before it have
//! changed, and the database sees only the result: one statement for new aggregates, one for
//! changed ones, one for all outgoing events.

use std::collections::{BTreeSet, HashMap, HashSet};

use contracts::{Cause, Event, OrderId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::outbox::{self, Outgoing};

/// A decider with its table: what a service gives to the unit of work.
///
/// `decide` and `evolve` are the pure functions of the service's `domain.rs`.
pub trait Aggregate: Sized + Send + Sync {
    /// What the aggregate can be asked to do.
    type Command;
    /// What can happen to it.
    type Event: Send + Sync;
    /// Why a command contradicts what has already happened.
    type Rejection;

    /// What happens on `command`; no event when nothing changes.
    ///
    /// # Errors
    /// When the command contradicts what has already happened.
    fn decide(
        state: Option<&Self>,
        command: Self::Command,
    ) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// The aggregate after `event`; `None` when the event does not fit, which `decide` never
    /// causes.
    fn evolve(state: Option<Self>, event: &Self::Event, at: OffsetDateTime) -> Option<Self>;

    /// The event to publish when `event` has led to this state, if any.
    fn outgoing(&self, event: &Self::Event) -> Option<Event>;

    /// Inserts new aggregates with one statement.
    fn insert(
        tx: &mut PgConnection,
        new: &[(OrderId, &Self)],
    ) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Writes changed aggregates with one statement.
    fn update(
        tx: &mut PgConnection,
        changed: &[(OrderId, &Self)],
    ) -> impl Future<Output = sqlx::Result<()>> + Send;
}

/// Aggregates that the caller's transaction has locked, by order, with what was decided on them.
pub struct UnitOfWork<A> {
    states: HashMap<OrderId, A>,
    /// Those that had a row before: they are updated, the others inserted.
    existing: HashSet<OrderId>,
    /// In key order, so that statements of two transactions lock rows in the same order.
    changed: BTreeSet<OrderId>,
    outgoing: Vec<Outgoing>,
    /// One time for everything in this unit: the row and its event agree.
    now: OffsetDateTime,
}

impl<A: Aggregate> UnitOfWork<A> {
    /// Starts with aggregates that are locked; all others do not exist yet.
    pub fn new(locked: HashMap<OrderId, A>) -> Self {
        Self {
            existing: locked.keys().copied().collect(),
            states: locked,
            changed: BTreeSet::new(),
            outgoing: Vec::new(),
            now: outbox::now(),
        }
    }

    /// The time of everything in this unit.
    pub fn now(&self) -> OffsetDateTime {
        self.now
    }

    /// Executes a command in memory and returns what happened; no event when nothing changes.
    ///
    /// # Errors
    /// When the command contradicts what has already happened; then nothing changes.
    pub fn execute(
        &mut self,
        id: OrderId,
        command: A::Command,
        cause: &Cause,
    ) -> Result<Vec<A::Event>, A::Rejection> {
        let events = A::decide(self.states.get(&id), command)?;
        for event in &events {
            let Some(state) = A::evolve(self.states.remove(&id), event, self.now) else {
                continue;
            };
            if let Some(published) = state.outgoing(event) {
                let outgoing = Outgoing::new(id, published, cause.clone());
                self.outgoing.push(Outgoing {
                    recorded_at: self.now,
                    ..outgoing
                });
            }
            self.states.insert(id, state);
            self.changed.insert(id);
        }
        Ok(events)
    }

    /// An aggregate as it is after the commands so far.
    pub fn get(&self, id: OrderId) -> Option<&A> {
        self.states.get(&id)
    }

    /// Takes an aggregate out; call after [`flush`](Self::flush).
    pub fn take(&mut self, id: OrderId) -> Option<A> {
        self.states.remove(&id)
    }

    /// Writes everything in the caller's transaction: new aggregates, changed ones, outgoing
    /// events.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn flush(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        let state = |id: &OrderId| self.states.get(id).map(|state| (*id, state));
        let (changed, new): (Vec<_>, Vec<_>) = self
            .changed
            .iter()
            .filter_map(state)
            .partition(|(id, _)| self.existing.contains(id));
        if !new.is_empty() {
            A::insert(tx, &new).await?;
        }
        if !changed.is_empty() {
            A::update(tx, &changed).await?;
        }
        outbox::append(tx, &self.outgoing).await
    }
}
