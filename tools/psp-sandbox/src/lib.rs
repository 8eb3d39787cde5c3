//! `psp-sandbox`: a stand-in for the payment service provider, as a process of its own.
//!
//! It speaks the subset of Stripe's HTTP API that the payment service uses (<https://docs.stripe.com/api>), with test
//! tokens, idempotency keys and error shapes. It remembers durably: an answered charge survives
//! `kill -9`, so that it can be audited against the payment database. Faults can be set per token
//! while it runs.

mod api;
mod faults;
mod journal;
mod ledger;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use bootstrap::{
    Listeners, Readiness, Supervisor, admin,
    process::Registry,
    settings::{Addresses, Settings},
};
use clap::Parser;
use tokio_util::sync::CancellationToken;

pub use faults::Fault;
pub use ledger::Balance;

/// A payment service provider for tests and demonstrations; speaks a subset of Stripe's HTTP API.
#[derive(Parser, Clone, Debug)]
#[command(name = "psp-sandbox", version)]
pub struct SandboxConfig {
    /// Where the API listens; faults and ledger are below /sandbox there
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:12111")]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9085")]
    pub admin_listen: SocketAddr,
    /// Directory of the durable memory; made if missing
    #[arg(long, env = "DATA_DIR", value_name = "DATA_DIR")]
    pub data_dir: PathBuf,
}

impl Settings for SandboxConfig {
    fn addresses(&self) -> Addresses {
        Addresses {
            listen: self.listen,
            admin: self.admin_listen,
        }
    }
}

/// Serves until `shutdown`.
pub async fn run(
    config: SandboxConfig,
    listeners: Listeners,
    registry: Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (journal, ledger) = journal::open(&config.data_dir).with_context(|| {
        format!(
            "DATA_DIR: cannot open the memory in {}",
            config.data_dir.display()
        )
    })?;
    let routes = api::routes(api::Sandbox {
        ledger: Arc::new(std::sync::Mutex::new(ledger)),
        journal,
        faults: faults::Faults::default(),
    });
    let stop = shutdown.clone();
    let serve = async move {
        let served = axum::serve(listeners.main, routes)
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        // Clients that wait for an answer that never comes must not hold up the end.
        let grace = async {
            stop.cancelled().await;
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        };
        tokio::select! {
            served = async { served.await } => served.context("serve HTTP"),
            () = grace => Ok(()),
        }
    };
    let mut supervisor = Supervisor::new(shutdown.clone());
    supervisor.spawn(
        "admin",
        admin::serve(listeners.admin, Readiness::default(), registry, shutdown),
    );
    supervisor.spawn("api", serve);
    supervisor.run().await
}
