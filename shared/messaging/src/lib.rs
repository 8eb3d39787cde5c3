//! Reliable events over PostgreSQL and NATS JetStream: the only crate that knows both.
//!
//! - Publishing: [`outbox::append`] in the transaction that changes the state. The relay publishes
//!   later, at least once.
//! - Consuming: implement [`Handler`] and [`run`](run::run) it. The effects of an event are
//!   committed at most once, because the inbox row is written in the same transaction.
//! - Deciding: [`UnitOfWork`] executes commands on locked aggregates and writes them with their
//!   events.
//! - An event that fails is retried with back-off and then kept as a dead letter; none is dropped.
//!
//! Reading order: [`outbox`], `tail`, `relay`, `checkpoint`, `reconcile`, [`inbox`], [`handler`],
//! [`unit_of_work`], `connection`, `batch`, `consumer`, `dead_letter`, `partitions`, [`topology`],
//! [`run`](mod@run).
#![warn(missing_docs, unreachable_pub)]

pub mod backoff;
mod batch;
mod broker;
mod checkpoint;
mod connection;
mod consumer;
mod database;
mod dead_letter;
pub mod erasure;
pub mod handler;
pub mod headers;
pub mod inbox;
mod lookback;
mod metrics;
pub mod outbox;
mod participant;
mod partitions;
pub mod permissions;
mod progress;
mod publish;
mod reconcile;
mod relay;
mod replay;
pub mod run;
mod storage;
mod tail;
pub mod topology;
mod trace;
pub mod unit_of_work;

pub use broker::{Broker, BrokerError, Login, STREAM_MAX_BYTES, StreamSettings};
pub use connection::DedicatedConnection;
pub use database::{TRANSACTION_TIMEOUT, in_time, is_unavailable};
pub use handler::{Delivery, Handler, Outcome};
pub use lookback::Lookback;
pub use participant::Participant;
pub use partitions::oldest_id;
pub use progress::Progress;
pub use relay::FLUSH_TIMEOUT;
pub use storage::Storage;
pub use unit_of_work::{Aggregate, UnitOfWork};

/// The migrations of outbox and inbox; run them before the service's own.
pub fn migrator() -> sqlx::migrate::Migrator {
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.dangerous_set_table_name("_messaging_migrations");
    migrator
}
