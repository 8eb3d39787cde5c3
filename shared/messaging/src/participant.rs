//! A participant of the saga: what its consumers, its relay and its own loops share.

use std::time::Duration;

use contracts::Service;
use dead_letters::DeadLetters;
use sqlx::PgPool;

use crate::{
    Broker, Progress, metrics::Metrics, outbox::Wake, partitions::OUTBOX_RETENTION,
    storage::Storage,
};

/// A service as a participant of the saga; cheap to clone.
#[derive(Clone, Debug)]
pub struct Participant {
    /// The service.
    pub service: Service,
    /// The service's own database: inbox, outbox and state live together, so that one transaction
    /// covers them.
    pub pool: PgPool,
    /// The connection to the broker.
    pub broker: Broker,
    /// Wakes the relay. Handlers need not: the consumer wakes it after each commit.
    pub wake: Wake,
    /// What readiness looks at.
    pub progress: Progress,
    /// How long published events stay in the outbox; `None` keeps them without end.
    pub outbox_retention: Option<Duration>,
    /// Failed attempts after which an event becomes a dead letter.
    pub max_attempts: u32,
    /// How long an event of an unknown version waits for a newer replica before it becomes a dead
    /// letter.
    pub unknown_timeout: Duration,
    /// How much room the broker has left.
    pub storage: Storage,
    pub(crate) metrics: Metrics,
}

/// With the back-off between attempts this is about a minute: long enough for a deployment or a
/// failover of something that a handler depends on.
const MAX_ATTEMPTS: u32 = 8;
/// Longer than a rolling upgrade takes.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(15 * 60);

impl Participant {
    /// A participant that keeps published events for a week.
    pub fn new(service: Service, pool: PgPool, broker: Broker) -> Self {
        Self {
            service,
            pool,
            broker,
            wake: Wake::default(),
            progress: Progress::default(),
            outbox_retention: Some(OUTBOX_RETENTION),
            max_attempts: MAX_ATTEMPTS,
            unknown_timeout: UNKNOWN_TIMEOUT,
            storage: Storage::default(),
            metrics: Metrics::new(service),
        }
    }

    /// Keeps published events without end: for a service whose outbox is its event log.
    #[must_use]
    pub fn retain_outbox(mut self) -> Self {
        self.outbox_retention = None;
        self
    }

    /// The service's own dead letters, for operators.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(self.broker.jetstream.clone(), Some(self.service))
    }
}
