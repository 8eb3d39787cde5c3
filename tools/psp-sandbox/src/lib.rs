//! `psp-sandbox`: a stand-in for the payment service provider, as a process of its own.
//!
//! It implements the part of Stripe's HTTP API that the payment service uses
//! (<https://docs.stripe.com/api>), with test tokens, idempotency keys and error shapes. What it
//! acknowledges is on disk: a charge survives `kill -9`, so that an audit can compare it with the
//! payment database. Faults can be injected per token while it runs.
//!
//! `ledger` and `charges` hold the rules and are pure; `tables` and `journal` keep the ledger on
//! disk; `idempotency` ties them together; `api` and `queries` are the HTTP surface.

mod api;
mod charges;
mod faults;
mod idempotency;
mod journal;
mod ledger;
mod queries;
mod response;
mod tables;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use bootstrap::{
    Process,
    settings::{Common, ProcessSettings, Settings},
};
use clap::Parser;

use api::Sandbox;
use faults::Faults;
use idempotency::KeysInUse;
use journal::Journal;

/// A payment service provider for tests and demonstrations; implements a part of Stripe's HTTP API
#[derive(Parser, Clone, Debug)]
#[command(name = "psp-sandbox", version)]
struct Config {
    #[command(flatten)]
    process: ProcessSettings<12111, 9085>,
    /// Directory of the ledger on disk; created if missing
    #[arg(long, env = "DATA_DIR", value_name = "DATA_DIR")]
    data_dir: PathBuf,
    /// How long idempotency keys are remembered at least; Stripe forgets them after 24 hours
    #[arg(long, env = "KEY_RETENTION_SECONDS", default_value_t = 24 * 3600)]
    key_retention_seconds: u32,
}

impl Settings for Config {
    fn common(&self) -> Common {
        self.process.common()
    }
}

/// Runs the sandbox.
pub fn main() -> ExitCode {
    bootstrap::process::main("psp-sandbox", run)
}

async fn run(config: Config, mut process: Process) -> anyhow::Result<()> {
    let retention = Duration::from_secs(config.key_retention_seconds.into());
    let journal = Journal::open(&config.data_dir, retention).with_context(|| {
        let directory = config.data_dir.display();
        format!("DATA_DIR: cannot open the ledger in {directory}")
    })?;
    process.serve_http(api::routes(Sandbox {
        journal,
        keys_in_use: KeysInUse::default(),
        faults: Faults::default(),
    }))?;
    process.until_shutdown().await
}
