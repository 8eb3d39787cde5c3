//! Servers and services as processes on this machine, for `cargo sagacity up`, tests and e2e.
//!
//! - [`MEMBERS`]: the table of processes.
//! - [`tools`]: finds PostgreSQL and nats-server, or fetches them.
//! - [`Postgres`], [`NatsServer`]: private servers in a directory of their own;
//!   [`PostgresCluster`], [`NatsCluster`]: three of them.
//! - [`Certificates`]: an authority for development, for mutual TLS between all of them.
//! - [`jetstream`]: connects to a broker and reads streams.
//! - [`Stack`]: the whole system, one process per service, or highly available with a [`Cluster`];
//!   each process can be killed and restarted.
//! - [`programs`]: builds the workspace's programs.
//! - [`test`](mod@test): fixtures for tests.
//!
//! The [`Reaper`] ends all of them with the process that started them, even after `kill -9`.
//!
//! The large functions that other crates await return a `BoxFuture`. The machine code of an
//! `async fn` is generated in every crate that awaits it; that of a boxed future only here.

mod balancer;
mod certificates;
mod cluster;
mod databases;
mod directory;
mod endpoints;
pub mod jetstream;
mod members;
mod nats;
mod nats_cluster;
mod ports;
mod postgres;
mod postgres_cluster;
mod process;
pub mod programs;
mod readiness;
mod reaper;
mod stack;
pub mod state;
pub mod test;
pub mod tools;

pub use balancer::Balancer;
pub use certificates::Certificates;
pub use cluster::Cluster;
pub use directory::TemporaryDirectory;
pub use endpoints::Endpoints;
pub use members::{MEMBERS, Member, services, with_database};
pub use nats::NatsServer;
pub use nats_cluster::NatsCluster;
pub use ports::{MemberPorts, Ports, free_port};
pub use postgres::{Durability, Paused, Postgres};
pub use postgres_cluster::PostgresCluster;
pub use process::{Logs, Process};
pub use reaper::Reaper;
pub use stack::{Options, Stack};
pub use tools::workspace;
