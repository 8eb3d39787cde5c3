//! `sagacity bench`: what one order costs, in counts that are the same on every machine, and in
//! CPU.
//!
//! Orders are placed so far apart that each is alone. What the system does while there is nothing
//! to do is measured before, and taken off.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use async_nats::ConnectOptions;
use clap::Args;
use contracts::Service;
use devstack::{
    Endpoints,
    jetstream::{connect, context},
};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::load::Load;

#[derive(Args, Clone, Debug)]
pub(crate) struct Bench {
    /// Number of orders, twenty each second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    orders: u64,
    /// File with the expected counts: a name, a figure and `#` with its reason on each line. A
    /// count that is more than a tenth higher is an error
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// Each is alone: an order takes less than 50 ms.
const RATE: f64 = 20.0;
/// A session tells what it has done up to a second later (PostgreSQL, `PGSTAT_MIN_INTERVAL`), and
/// the server shows it within another one.
const SETTLE: Duration = Duration::from_secs(3);
/// How long the idle system is watched.
const IDLE: Duration = Duration::from_secs(10);
/// A count may grow so much: orders of a slow machine may meet periodic work.
const TOLERANCE: f64 = 1.10;

/// By name, for example `order transactions`.
type Counts = BTreeMap<String, f64>;

impl Bench {
    /// Returns whether no count is higher than expected.
    pub(crate) async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<bool> {
        let expected = self.check.as_ref().map(expected).transpose()?;
        // Opens connections, and prepares statements.
        load(RATE as u64).measure(endpoints).await?;
        let start = counts(endpoints).await?;
        let began = Instant::now();
        tokio::time::sleep(IDLE).await;
        let before = counts(endpoints).await?;
        let idle = began.elapsed();
        let began = Instant::now();
        let figures = load(self.orders).measure(endpoints).await?;
        let after = counts(endpoints).await?;
        let busy = began.elapsed();

        let per_order = |name: &String, after: &f64| {
            let by_itself = before[name] - start[name];
            let by_itself = by_itself * busy.as_secs_f64() / idle.as_secs_f64();
            (after - before[name] - by_itself) / self.orders as f64
        };
        println!("one order, alone, costs:");
        let mut holds = true;
        for (name, after) in &after {
            let count = per_order(name, after);
            let limit = expected.as_ref().and_then(|expected| expected.get(name));
            let verdict = match limit {
                Some(limit) if count > limit * TOLERANCE => {
                    holds = false;
                    format!("  expected {limit}: see the file of expected counts")
                }
                _ => String::new(),
            };
            println!("  {name:<26} {count:>9.2}{verdict}");
        }
        println!("and CPU, in ms:");
        for (name, usage) in &figures.processes {
            let cpu = usage.cpu_seconds * 1000.0 / self.orders as f64;
            println!("  {name:<26} {cpu:>9.2}");
        }
        if let Some(expected) = &expected {
            let unknown = expected.keys().find(|name| !after.contains_key(*name));
            ensure!(unknown.is_none(), "there is no count {unknown:?}");
        }
        Ok(holds)
    }
}

fn load(orders: u64) -> Load {
    Load::at_rate(orders, RATE)
}

/// What databases, streams and processes have counted so far.
async fn counts(endpoints: &Endpoints) -> anyhow::Result<Counts> {
    tokio::time::sleep(SETTLE).await;
    let mut counts = Counts::new();
    for (service, url) in &endpoints.databases {
        let mut database = PgConnection::connect(url).await?;
        let counted = sqlx::query(
            "SELECT xact_commit + xact_rollback AS transactions,
                    tup_inserted + tup_updated + tup_deleted AS rows,
                    (pg_current_wal_insert_lsn() - '0/0')::bigint AS wal
             FROM pg_stat_database WHERE datname = current_database()",
        );
        let counted = counted.fetch_one(&mut database).await?;
        for (name, column) in [("transactions", "transactions"), ("rows written", "rows")] {
            let count = counted.try_get::<i64, _>(column)?;
            counts.insert(format!("{service} {name}"), count as f64);
        }
        let log = counted.try_get::<i64, _>("wal")?;
        counts.insert("PostgreSQL log bytes".to_owned(), log as f64);
        database.close().await?;
    }
    let client = connect(
        ConnectOptions::new().name("sagacity bench"),
        &endpoints.nats,
    )
    .await?;
    let jetstream = context(client);
    for stream in Service::ALL.into_iter().filter_map(Service::stream) {
        let found = jetstream.get_stream(stream).await;
        let found = found.with_context(|| format!("look at the stream {stream}"))?;
        let state = &found.cached_info().state;
        counts.insert(format!("{stream} events"), state.messages as f64);
        counts.insert(format!("{stream} event bytes"), state.bytes as f64);
    }
    Ok(counts)
}

/// Reads `name figure # reason` lines; the name may have spaces.
fn expected(path: &PathBuf) -> anyhow::Result<Counts> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().filter_map(|line| line.split('#').next());
    let lines = lines.map(str::trim).filter(|line| !line.is_empty());
    let parse = |line: &str| {
        let (name, figure) = line.rsplit_once(' ')?;
        Some((name.trim().to_owned(), figure.parse().ok()?))
    };
    lines
        .map(|line| {
            parse(line).with_context(|| {
                let path = path.display();
                format!("{path}: {line:?}: expected a name, a figure and # with its reason")
            })
        })
        .collect()
}
