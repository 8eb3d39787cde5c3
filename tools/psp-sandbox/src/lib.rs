//! `psp-sandbox`: a stand-in for the payment service provider, as a process of its own.
//!
//! It implements the part of Stripe's HTTP API that the payment service uses
//! (<https://docs.stripe.com/api>), with test tokens, idempotency keys and error shapes. What it
//! acknowledges is on disk: a charge survives `kill -9`, so that an audit can compare it with the
//! payment database. Faults can be injected per token while it runs.
//!
//! `ledger` and `charges` hold the rules and are pure; `journal` makes records durable;
//! `idempotency` ties them together; `api` is the HTTP surface.

mod api;
mod charges;
mod faults;
mod idempotency;
mod journal;
mod ledger;
mod response;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use bootstrap::{
    Process,
    settings::{Common, ProcessSettings, Settings},
};
use clap::Parser;
use parking_lot::Mutex;

/// A payment service provider for tests and demonstrations; implements a part of Stripe's HTTP API
#[derive(Parser, Clone, Debug)]
#[command(name = "psp-sandbox", version)]
struct Config {
    #[command(flatten)]
    process: ProcessSettings<12111, 9085>,
    /// Directory of the ledger on disk; created if missing
    #[arg(long, env = "DATA_DIR", value_name = "DATA_DIR")]
    data_dir: PathBuf,
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
    let (journal, ledger) = journal::open(&config.data_dir).with_context(|| {
        let directory = config.data_dir.display();
        format!("DATA_DIR: cannot open the ledger in {directory}")
    })?;
    process.serve_http(api::routes(api::Sandbox {
        ledger: Arc::new(Mutex::new(ledger)),
        journal,
        faults: faults::Faults::default(),
    }))?;
    process.until_shutdown().await
}
