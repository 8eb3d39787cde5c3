//! Reliable events over PostgreSQL and NATS JetStream: the only crate that knows both.
//!
//! - Saying something: [`outbox::append`] in the transaction that changes the state. The relay
//!   publishes later, at least once.
//! - Hearing something: implement [`Handler`] and [`run`] it. Each event is applied exactly once,
//!   because the inbox row is written in the transaction of its effects.
//! - What fails is tried again with back-off, and then kept as a dead letter; nothing is dropped.
//!
//! Reading order: [`outbox`], `relay`, [`inbox`], [`handler`], `batch`, `consumer`, `dead_letter`,
//! [`topology`].
#![warn(missing_docs)]

mod backoff;
mod batch;
mod broker;
mod consumer;
mod database;
mod dead_letter;
mod event_log;
pub mod handler;
pub mod inbox;
mod metrics;
mod node;
pub mod outbox;
mod progress;
mod prune;
mod relay;
pub mod topology;
mod trace;

pub use broker::{Broker, BrokerError};
pub use dead_letter::header as dead_letter_header;
pub use event_log::EventLog;
pub use handler::{Delivery, Handler, Outcome};
pub use node::{Node, run};
pub use progress::Progress;

/// The migrations of outbox and inbox; run them before the service's own.
pub fn migrator() -> sqlx::migrate::Migrator {
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.dangerous_set_table_name("_messaging_migrations");
    migrator
}
