//! What the `main` of every service needs: settings, telemetry, health, pools, gRPC, supervision,
//! signals.
//!
//! A service is `pub async fn run(config, listeners, shutdown) -> anyhow::Result<()>`;
//! [`process::main`] calls it.
#![warn(missing_docs)]

pub mod admin;
pub mod context;
pub mod database;
pub mod grpc;
pub mod healthcheck;
pub mod process;
pub mod server;
pub mod settings;
pub mod supervise;
pub mod telemetry;

pub use admin::Readiness;
pub use context::RequestContext;
pub use server::Listeners;
pub use supervise::Supervisor;
