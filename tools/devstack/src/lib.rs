//! Servers and services as processes on this machine: for `cargo sagacity up`, for tests and for
//! e2e.
//!
//! - [`tools`]: finds or fetches PostgreSQL and nats-server.
//! - [`Postgres`], [`NatsServer`]: private servers in a directory of their own.
//! - [`Stack`]: the whole system, one process per service, to be killed and restarted one by one.
//! - [`programs`]: builds the workspace's programs.
//! - [`test`](mod@test): servers that all tests of one test binary share.
//!
//! Whatever happens to the process that started them, the [`Reaper`] ends them all.

mod directory;
mod endpoints;
mod nats;
mod ports;
mod postgres;
mod process;
pub mod programs;
mod reaper;
mod stack;
pub mod test;
pub mod tools;

pub use directory::TemporaryDirectory;
pub use endpoints::{Endpoints, SERVICES};
pub use nats::NatsServer;
pub use ports::{Ports, free_port};
pub use postgres::{Durability, Postgres};
pub use process::{Logs, Process};
pub use reaper::Reaper;
pub use stack::{Options, Stack, wipe};
pub use tools::workspace;
