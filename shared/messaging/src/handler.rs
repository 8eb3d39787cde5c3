//! What a service writes: a [`Handler`] that applies a batch of events in one transaction.

use contracts::{Envelope, EventId, Inbound, OrderId};
use sqlx::PgConnection;

use crate::outbox::Cause;

/// An event that was delivered, for the first time as far as this service's state is concerned.
#[derive(Debug)]
pub struct Delivery<E> {
    /// Everything about the event but its payload.
    pub envelope: Envelope,
    /// What the service needs from it.
    pub event: E,
    /// The span that handles it, a child of the publisher's.
    pub span: tracing::Span,
    pub(crate) cause: Cause,
}

impl<E> Delivery<E> {
    /// For events that this one causes: same correlation, this event as the cause, this span as the
    /// trace's parent.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// The order that the event is about.
    pub fn order_id(&self) -> OrderId {
        self.envelope.order_id
    }

    /// The event's id.
    pub fn event_id(&self) -> EventId {
        self.envelope.event_id
    }
}

/// What became of one event. The worker acts on it after the batch's transaction has been
/// committed.
#[derive(Debug)]
pub enum Outcome {
    /// Applied; acknowledged.
    Done,
    /// Handled before; acknowledged. Only the worker says this: the inbox knows.
    Duplicate,
    /// It changes nothing, for example because the order was cancelled before; acknowledged.
    Ignored(&'static str),
    /// Could not be applied now; delivered again with back-off, and a dead letter after
    /// [`Node::max_attempts`](crate::Node::max_attempts).
    /// The handler must not have written anything for this event.
    Retry(anyhow::Error),
    /// Cannot be applied ever; a dead letter at once. The handler must not have written anything
    /// for this event.
    Poison(anyhow::Error),
}

/// The reactions of one service, all inbound events together.
pub trait Handler: Send + Sync + 'static {
    /// The closed enum of events that the service listens to.
    type Inbound: Inbound;

    /// Applies a batch in the transaction `tx`: lock all aggregates with one query in key order,
    /// decide each in memory, write all changes with one statement, append all outgoing events
    /// with one. The worker has claimed the events in the inbox and commits. Returns one
    /// outcome per delivery, in the same order.
    ///
    /// A batch may hold several events of one order, in any order; they must all be applied.
    ///
    /// # Errors
    /// An error sinks the whole batch: it is rolled back and tried again event by event. When the
    /// database is away, the worker pauses and no attempt is counted.
    fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Self::Inbound>],
    ) -> impl Future<Output = anyhow::Result<Vec<Outcome>>> + Send;

    /// Called after each commit, for services that have work of their own to wake.
    fn committed(&self) {}
}
