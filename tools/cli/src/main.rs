//! The `sagacity` command.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use audit::Expectations;
use clap::{Parser, Subcommand};
use cli::{load::Load, order::Order, sqlx::Sqlx, timeline::Timeline, up::Up};
use devstack::Endpoints;

/// Starts Sagacity on this machine, uses it, loads it and audits it.
#[derive(Parser, Debug)]
#[command(name = "sagacity", bin_name = "cargo sagacity", version)]
struct Sagacity {
    /// Where `up` keeps data and addresses [default: .sagacity in the project]
    #[arg(long, env = "SAGACITY_STATE", global = true)]
    state: Option<PathBuf>,
    /// Gateway of a system that `up` did not start, for example http://localhost:8080; for what needs more than the
    /// gateway, start the containers with docker-compose.e2e.yml
    #[arg(long, env = "SAGACITY_TARGET", global = true, value_name = "URL")]
    target: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Starts the whole system and stops it at Ctrl-C
    Up(Up),
    /// Places one order and prints its story until it ends
    Order(Order),
    /// Places many orders, measures, then checks the invariants
    Load(Load),
    /// Checks every invariant over databases, streams and provider; exit code 1 on any breach
    Verify {
        /// Seconds that orders and events in flight may take to settle
        #[arg(long, default_value_t = 60)]
        settle: u64,
        /// How many dead letters there should be
        #[arg(long, default_value_t = 0)]
        dead_letters: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints the events of an order with cause, time offset and trace id
    Timeline(Timeline),
    /// For developers: writes or checks the data that queries are checked with at build time
    Sqlx(Sqlx),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Sagacity::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(sagacity: Sagacity) -> anyhow::Result<ExitCode> {
    let state = match sagacity.state {
        Some(state) => std::path::absolute(state)?,
        None => devstack::workspace().join(".sagacity"),
    };
    let endpoints = || match &sagacity.target {
        Some(target) => Ok(Endpoints::of_target(target)),
        None => Endpoints::read(&state),
    };
    let holds = match sagacity.command {
        Command::Up(up) => up.run(&state).await.map(|()| true),
        Command::Order(order) => order.run(&endpoints()?).await.map(|()| true),
        Command::Load(load) => load.run(&endpoints()?).await,
        Command::Timeline(timeline) => timeline.run(&endpoints()?).await.map(|()| true),
        Command::Sqlx(sqlx) => sqlx.run().await.map(|()| true),
        Command::Verify {
            settle,
            dead_letters,
            json,
        } => {
            let expectations = Expectations {
                settle: Duration::from_secs(settle),
                dead_letters,
                ..Expectations::default()
            };
            let report = audit::audit(&endpoints()?, expectations).await?;
            match json {
                true => println!("{}", serde_json::to_string_pretty(&report)?),
                false => print!("{}", report.table()),
            }
            Ok(report.holds())
        }
    }?;
    Ok(if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
