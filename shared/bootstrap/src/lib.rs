//! What every process needs: settings, telemetry, health, database pool, servers, supervision,
//! shutdown.
//!
//! A service calls [`process::main`] with its `run(settings, process)`. Read [`process`] first,
//! then [`shutdown`] and `admin`.
#![warn(missing_docs, unreachable_pub)]

mod admin;
mod allocator;
pub mod bearer;
pub mod context;
pub mod database;
pub mod grpc;
mod healthcheck;
mod http;
mod listen;
pub mod process;
mod replicas;
mod rights;
pub mod settings;
pub mod shutdown;
mod supervise;
mod telemetry;
mod tls;

pub use admin::Readiness;
pub use context::RequestContext;
pub use process::Process;
pub use replicas::Replicas;
pub use tls::Tls;
