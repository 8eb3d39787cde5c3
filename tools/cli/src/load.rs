//! `sagacity load`: places many orders, measures how fast they are accepted and how fast their
//! sagas end, then checks the invariants.

mod figures;
mod placing;
mod sagas;

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use audit::Expectations;
use clap::Args;
use client::{Customer, http_client};
use contracts::CustomerId;
use devstack::Endpoints;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::measure::{self, Usages};
use figures::{Figures, Latency, Window};
use sagas::Sagas;

#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// Number of orders
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    orders: u64,
    /// Number of orders that are placed at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    concurrency: u64,
    /// Orders per second, evenly spaced [default: as fast as they are accepted]
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Share of orders whose card is declined
    #[arg(long, default_value = "0%", value_parser = share)]
    declined: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok();
    rate.filter(|rate| (0.01..=1e6).contains(rate))
        .ok_or_else(|| "expected orders per second, from 0.01 to 1000000".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse::<f64>().ok();
    percent
        .filter(|percent| (0.0..=100.0).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| "expected a share between 0% and 100%".to_owned())
}

/// How long the last sagas may take after the last order was accepted.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// How many customers share the orders: none sends more than the gateway accepts from one.
const CUSTOMERS: u64 = 1000;

/// Without an end for this long, orders whose end was not seen are looked up.
const QUIET: Duration = Duration::from_secs(5);

/// What the workers of one run share.
#[derive(Debug)]
struct Run {
    load: Load,
    customers: Vec<Customer>,
    skus: Vec<String>,
    sagas: Mutex<Sagas>,
    /// Number of the next order to place.
    next: AtomicU64,
    accepted: AtomicU64,
    retries: AtomicU64,
    began: Instant,
}

impl Load {
    /// So many orders, evenly spaced.
    pub(crate) fn at_rate(orders: u64, rate: f64) -> Self {
        Self {
            orders,
            concurrency: 64,
            rate: Some(rate),
            declined: 0.0,
            json: true,
        }
    }

    /// Returns whether all invariants hold.
    pub(crate) async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<bool> {
        let mut figures = self.measure(endpoints).await?;
        let expectations = Expectations {
            timeout: END_TIMEOUT,
            ..Expectations::default()
        };
        let report = audit::audit(endpoints, expectations).await?;
        let holds = report.holds();
        figures.invariants = Some(report);
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&figures)?),
            false => print!("{figures}"),
        }
        Ok(holds)
    }

    /// Places the orders and waits for their ends.
    pub(crate) async fn measure(&self, endpoints: &Endpoints) -> anyhow::Result<Figures> {
        let customer = Customer::new(http_client()?, &endpoints.gateway);
        let skus = placing::catalogue(&customer).await?;
        let before = measure::usage(&endpoints.pids);
        let run = Arc::new(Run {
            load: self.clone(),
            customers: (0..CUSTOMERS)
                .map(|_| customer.another(CustomerId::new()))
                .collect(),
            skus,
            sagas: Mutex::default(),
            next: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            began: Instant::now(),
        });
        let mut background = JoinSet::new();
        background.spawn(sagas::observe(&endpoints.nats, Arc::clone(&run)).await?);
        if !self.json && std::io::stderr().is_terminal() {
            background.spawn(Arc::clone(&run).print_progress());
        }
        let early = tokio::spawn(Arc::clone(&run).usage_after_a_tenth(endpoints.pids.clone()));
        Arc::clone(&run).place_all().await?;
        let accept_seconds = run.began.elapsed().as_secs_f64();
        let ended = run.wait_for_sagas().await;
        if ended.is_err() {
            early.abort();
        }
        ended?;
        background.shutdown().await;
        let early = early.await?;
        let processes = measure::since(&before, measure::usage(&endpoints.pids));
        let sagas = std::mem::take(&mut *run.sagas.lock());
        let saga_seconds = sagas.seconds_since(run.began);
        let orders = self.orders as f64;
        Ok(Figures {
            orders: self.orders,
            confirmed: sagas.confirmed,
            cancelled: sagas.cancelled,
            looked_up: sagas.looked_up,
            retries: run.retries.load(Ordering::Relaxed),
            accept_seconds,
            accepted_per_second: orders / accept_seconds,
            saga_seconds,
            sagas_per_second: orders / saga_seconds,
            accept_latency_ms: Latency::from_samples(&sagas.accepts),
            saga_latency_ms: Latency::from_samples(&sagas.ends),
            windows: Window::all(&sagas, run.began),
            cpu_ms_per_order: measure::cpu_seconds(&processes) * 1000.0 / orders,
            services_resident_mb: measure::services_resident_mb(&processes),
            resident_mb_after_a_tenth: measure::resident_mb(&early),
            processes,
            invariants: None,
        })
    }
}

impl Run {
    async fn place_all(self: Arc<Self>) -> anyhow::Result<()> {
        let workers = self.load.concurrency.min(self.load.orders);
        let mut working: JoinSet<_> = (0..workers)
            .map(|_| placing::work(Arc::clone(&self)))
            .collect();
        while let Some(ended) = working.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// What the processes use when a tenth of the sagas has ended: memory that has grown since then
    /// grows with what was handled.
    async fn usage_after_a_tenth(self: Arc<Self>, pids: BTreeMap<String, u32>) -> Usages {
        while self.sagas.lock().ended() < self.load.orders.div_ceil(10) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        measure::usage(&pids)
    }

    async fn wait_for_sagas(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + END_TIMEOUT;
        let (mut before, mut since) = (0, Instant::now());
        loop {
            let ended = self.sagas.lock().ended();
            if ended >= self.load.orders {
                return Ok(());
            }
            if ended > before {
                (before, since) = (ended, Instant::now());
            } else if since.elapsed() > QUIET {
                self.look_up_ends().await;
                since = Instant::now();
            }
            ensure!(
                Instant::now() < deadline,
                "{} sagas have not ended within {END_TIMEOUT:?}",
                self.load.orders - ended
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks for the orders whose end was not seen: what the broker forgets, it does not deliver
    /// here again.
    async fn look_up_ends(&self) {
        let open = self.sagas.lock().open();
        for (order, customer) in open {
            let customer = self.customers[0].another(customer);
            // One that cannot be read is asked for again.
            let Ok(found) = customer.order(&order.to_string()).await else {
                continue;
            };
            if let Some(status @ ("confirmed" | "cancelled")) = found["status"].as_str() {
                let mut sagas = self.sagas.lock();
                sagas.look_up(order, Instant::now(), status == "confirmed");
            }
        }
    }

    /// Rewrites one line of the terminal until the task is aborted.
    async fn print_progress(self: Arc<Self>) {
        loop {
            let (orders, ended) = (self.load.orders, self.sagas.lock().ended());
            let accepted = self.accepted.load(Ordering::Relaxed);
            let seconds = self.began.elapsed().as_secs();
            // Without a reader there is no one to show progress to; the run continues.
            let _closed = write!(
                std::io::stderr(),
                "\r{seconds:>4} s: {accepted} of {orders} accepted, {ended} ended\x1b[K\r"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
