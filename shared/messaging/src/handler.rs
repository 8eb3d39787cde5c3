//! What a service writes: a [`Handler`] that applies a batch of events in one transaction.

use contracts::{Cause, Envelope, EventId, Inbound, OrderId};
use sqlx::PgConnection;

/// An event that this service has not applied before.
#[derive(Debug)]
pub struct Delivery<E> {
    /// Everything about the event but its payload.
    pub envelope: Envelope,
    /// What the service needs from it.
    pub event: E,
    /// The span of its handling, a child of the publisher's.
    pub span: tracing::Span,
    pub(crate) cause: Cause,
}

impl<E> Delivery<E> {
    /// For events that follow from this one: same correlation, this event as the cause, this span
    /// as the parent of the trace.
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

/// The result of one event. The consumer acts on it after the transaction has been committed.
#[derive(Debug)]
pub enum Outcome {
    /// Applied; acknowledged.
    Done,
    /// Applied before; acknowledged. Only the consumer returns this, from the inbox.
    Duplicate,
    /// It changes nothing, for example because the order was cancelled before; acknowledged.
    Ignored(&'static str),
    /// Could not be applied now: redelivered with back-off, and a dead letter after
    /// [`Participant::max_attempts`](crate::Participant::max_attempts). The handler must not have
    /// written anything for this event.
    Retry(anyhow::Error),
    /// Not known to this version of the service, but perhaps to a newer replica: redelivered for
    /// [`Participant::unknown_timeout`](crate::Participant::unknown_timeout), then a dead letter.
    /// Only the consumer returns this.
    Unknown(anyhow::Error),
    /// Can never be applied: a dead letter at once. The handler must not have written anything for
    /// this event.
    Poison(anyhow::Error),
}

impl Outcome {
    /// The outcome of an event that was executed in a [`UnitOfWork`](crate::UnitOfWork). A
    /// rejection is poison: the protocol between the services was violated, and no retry can help.
    pub fn from_execution<E, R>(result: Result<Vec<E>, R>) -> Self
    where
        R: std::error::Error + Send + Sync + 'static,
    {
        match result {
            Ok(events) if events.is_empty() => Self::Ignored("it changes nothing any more"),
            Ok(_) => Self::Done,
            Err(rejection) => Self::Poison(rejection.into()),
        }
    }
}

/// The reactions of one service to all its inbound events.
pub trait Handler: Send + Sync + 'static {
    /// The closed enum of events that the service subscribes to.
    type Inbound: Inbound;

    /// Applies a batch in the transaction `tx`: locks all aggregates with one query in key order,
    /// decides each in memory, writes all changes with one statement, appends all outgoing events
    /// with one ([`UnitOfWork`](crate::UnitOfWork)). The consumer has claimed the events in the
    /// inbox and commits. Returns one outcome per delivery, in the same order.
    ///
    /// A batch may hold several events of one order, in any order; all of them must be applied.
    ///
    /// # Errors
    /// An error fails the whole batch: it is rolled back and tried again event by event. An error
    /// of the database that is not the fault of the data pauses the consumer instead, and counts no
    /// attempt.
    fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Self::Inbound>],
    ) -> impl Future<Output = anyhow::Result<Vec<Outcome>>> + Send;

    /// Called after each commit, for services that wake work of their own.
    fn committed(&self) {}
}
