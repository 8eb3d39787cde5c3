//! The `sagacity` command. It is a library with a `main`, so that its machine code, which includes
//! that of everything it awaits, is generated once and not again for each target.

mod api_key;
mod bench;
mod certificates;
mod dlq;
mod erase;
mod load;
mod measure;
mod order;
mod sqlx;
mod timeline;
mod token;
mod up;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use audit::Expectations;
use clap::{
    Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, parser::ValueSource,
};
use devstack::Endpoints;

/// Runs Sagacity on this machine: start it, place orders, put it under load, audit it
#[derive(Parser, Debug)]
#[command(name = "sagacity", bin_name = "cargo sagacity", version)]
struct Sagacity {
    /// Directory in which `up` keeps data and addresses [default: .sagacity in the project]
    #[arg(long, env = "SAGACITY_STATE", global = true)]
    state: Option<PathBuf>,
    /// Gateway of a system that `up` did not start, for example http://localhost:8080. Commands
    /// that need more than the gateway expect the ports of docker-compose.e2e.yml
    #[arg(long, env = "SAGACITY_TARGET", global = true, value_name = "URL")]
    target: Option<String>,
    /// Directory of `certificates` that databases and broker of that system ask for, as in
    /// docker-compose.tls.yml
    #[arg(
        long,
        env = "SAGACITY_CERTIFICATES",
        global = true,
        value_name = "DIRECTORY"
    )]
    certificates: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start the whole system; Ctrl-C stops it
    Up(up::Up),
    /// Place one order and print its events until it ends
    Order(order::Order),
    /// Place many orders, measure latency and throughput, then check the invariants
    Load(load::Load),
    /// Measure what one order costs: transactions, rows, log, events, CPU; with --check, compare
    /// with expected counts
    Bench(bench::Bench),
    /// Check every invariant over databases, streams and provider; exit code 1 on any breach
    Verify(Verify),
    /// Print an access token of the development issuer, for the header Authorization: Bearer
    Token(token::Token),
    /// Issue certificates for mutual TLS: one for each process, and an authority for development
    Certificates(certificates::Certificates),
    /// Make, list and revoke API keys of machines
    ApiKey(api_key::ApiKey),
    /// Print the events of an order with cause, time offset and trace id
    Timeline(timeline::Timeline),
    /// Look at dead letters, send them back to the service that gave up, or discard them
    Dlq(dlq::Dlq),
    /// Erase the personal data of a customer whose orders ended at least 72 hours ago
    Erase(erase::Erase),
    /// For developers: regenerate (or --check) sqlx's offline query metadata
    Sqlx(sqlx::Sqlx),
}

#[derive(Args, Debug)]
struct Verify {
    /// Seconds to wait until no order, event or refund is in flight
    #[arg(long, default_value_t = 60)]
    wait: u64,
    /// Number of dead letters to expect
    #[arg(long, default_value_t = 0)]
    dead_letters: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Parses the command line and runs the command. Exit code 1 for errors and broken invariants, 2
/// for a wrong command line.
pub fn main() -> ExitCode {
    let matches = Sagacity::command().get_matches();
    let sagacity = Sagacity::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let is_flag = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    let names_system = is_flag("state") || is_flag("target");
    let runtime = tokio::runtime::Runtime::new().context("start the runtime");
    match runtime.and_then(|runtime| runtime.block_on(run(sagacity, names_system))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns false when an invariant is broken. `names_system`: a flag, and not a variable, says
/// which system is meant.
async fn run(sagacity: Sagacity, names_system: bool) -> anyhow::Result<bool> {
    let state = match sagacity.state {
        Some(state) => std::path::absolute(state)?,
        None => devstack::workspace().join(".sagacity"),
    };
    let certificates = sagacity.certificates.map(std::path::absolute).transpose()?;
    let certificates = certificates.map(devstack::Certificates::at);
    let endpoints = || match &sagacity.target {
        Some(target) => Endpoints::for_target(target, certificates.as_ref()),
        None => Endpoints::read(&state),
    };
    match sagacity.command {
        Command::Up(up) => up.run(&state).await?,
        Command::Order(order) => order.run(&endpoints()?).await?,
        Command::Load(load) => return load.run(&endpoints()?).await,
        Command::Bench(bench) => return bench.run(&endpoints()?).await,
        Command::Verify(verify) => return verify.run(&endpoints()?).await,
        Command::Token(token) => println!("{}", token.issue()),
        Command::Certificates(certificates) => certificates.issue()?,
        Command::ApiKey(api_key) => api_key.run()?,
        Command::Timeline(timeline) => timeline.run(&endpoints()?).await?,
        Command::Dlq(dlq) => return dlq.run(endpoints, names_system).await,
        Command::Erase(erase) => return erase.run(endpoints).await,
        Command::Sqlx(sqlx) => sqlx.run().await?,
    }
    Ok(true)
}

impl Verify {
    async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<bool> {
        let expectations = Expectations {
            timeout: Duration::from_secs(self.wait),
            dead_letters: self.dead_letters,
            ..Expectations::default()
        };
        let report = audit::audit(endpoints, expectations).await?;
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => print!("{}", report.table()),
        }
        Ok(report.holds())
    }
}
