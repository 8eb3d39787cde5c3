//! `sagacity load`: places many orders, measures how fast they are accepted and how fast they end,
//! then checks the invariants.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use audit::{Expectations, Report};
use clap::Args;
use client::{Customer, http_client};
use contracts::{CustomerId, OrderId, Subject, header};
use devstack::Endpoints;
use futures::{StreamExt as _, stream::select_all};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet};

use crate::measure::{self, Usage};

/// How much load.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// How many orders
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub orders: u64,
    /// How many are placed at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub concurrency: u64,
    /// Orders per second, evenly spaced; as fast as they are accepted if not given
    #[arg(long)]
    pub rate: Option<f64>,
    /// Share of orders whose card is declined
    #[arg(long, default_value = "0%", value_parser = share)]
    pub declined: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let number = text
        .trim_end_matches('%')
        .parse::<f64>()
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent));
    number
        .map(|percent| percent / 100.0)
        .ok_or_else(|| "expected a share like 5%".to_owned())
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    orders: u64,
    confirmed: u64,
    cancelled: u64,
    /// Answers other than 201, which were tried again.
    retries: u64,
    /// From the first request to the last answer.
    accept_seconds: f64,
    accepted_per_second: f64,
    /// From the first request to the end of the last saga.
    saga_seconds: f64,
    sagas_per_second: f64,
    accept_latency_ms: Latency,
    /// From the answer to the request to the end of the saga.
    saga_latency_ms: Latency,
    /// CPU during the run, and memory, by process.
    processes: std::collections::BTreeMap<String, Usage>,
    /// All processes of the system together, this one excepted.
    cpu_ms_per_order: f64,
    /// The five services together after the run.
    services_resident_mb: f64,
    invariants: Report,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

const GATEWAY_AND_SERVICES: [&str; 5] =
    ["gateway", "order", "payment", "inventory", "notification"];
/// How long the last sagas may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// When each order was accepted and when it ended; whichever comes first waits for the other.
#[derive(Default)]
struct Sagas {
    accepted: HashMap<OrderId, Instant>,
    ended: HashMap<OrderId, (Instant, bool)>,
    latency: Option<Histogram<u64>>,
    confirmed: u64,
    cancelled: u64,
    last: Option<Instant>,
}

impl Sagas {
    fn accepted(&mut self, order: OrderId, at: Instant) {
        match self.ended.remove(&order) {
            Some((ended, confirmed)) => self.complete(at, ended, confirmed),
            None => drop(self.accepted.insert(order, at)),
        }
    }

    fn ended(&mut self, order: OrderId, at: Instant, confirmed: bool) {
        match self.accepted.remove(&order) {
            Some(accepted) => self.complete(accepted, at, confirmed),
            None => drop(self.ended.insert(order, (at, confirmed))),
        }
    }

    fn complete(&mut self, accepted: Instant, ended: Instant, confirmed: bool) {
        record(&mut self.latency, ended.saturating_duration_since(accepted));
        self.last = self.last.max(Some(ended));
        if confirmed {
            self.confirmed += 1
        } else {
            self.cancelled += 1
        }
    }

    fn complete_count(&self) -> u64 {
        self.confirmed + self.cancelled
    }
}

impl Load {
    /// Runs the load; returns whether all invariants hold.
    pub async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<bool> {
        let sagas = Arc::new(Mutex::new(Sagas::default()));
        let listener = tokio::spawn(listen(endpoints.nats.clone(), Arc::clone(&sagas)).await?);
        let client = http_client()?;
        let skus = catalogue(&Customer::new(client.clone(), &endpoints.gateway)).await?;
        let before = measure::usage(&endpoints.pids);
        let bar = self.progress_bar();
        let began = Instant::now();
        let (accept_latency, retries) = self
            .place_all(endpoints, client, &skus, &sagas, &bar)
            .await?;
        let accept_seconds = began.elapsed().as_secs_f64();
        wait(&sagas, self.orders, &bar).await?;
        bar.finish_and_clear();
        let after = measure::usage(&endpoints.pids);
        listener.abort();
        let sagas = std::mem::take(&mut *sagas.lock().unwrap_or_else(PoisonError::into_inner));
        let saga_seconds = sagas
            .last
            .map_or(0.0, |last| last.duration_since(began).as_secs_f64());
        let processes: std::collections::BTreeMap<String, Usage> = after
            .into_iter()
            .map(|(name, usage)| {
                let earlier = before.get(&name).copied().unwrap_or_default().cpu_seconds;
                (
                    name,
                    Usage {
                        cpu_seconds: usage.cpu_seconds - earlier,
                        ..usage
                    },
                )
            })
            .collect();
        let cpu: f64 = processes.values().map(|usage| usage.cpu_seconds).sum();
        let resident = GATEWAY_AND_SERVICES
            .iter()
            .filter_map(|name| processes.get(*name))
            .map(|usage| usage.resident_mb)
            .sum();
        let figures = Figures {
            orders: self.orders,
            confirmed: sagas.confirmed,
            cancelled: sagas.cancelled,
            retries,
            accept_seconds,
            accepted_per_second: self.orders as f64 / accept_seconds,
            saga_seconds,
            sagas_per_second: self.orders as f64 / saga_seconds,
            accept_latency_ms: latency(accept_latency.as_ref()),
            saga_latency_ms: latency(sagas.latency.as_ref()),
            processes,
            cpu_ms_per_order: cpu * 1000.0 / self.orders as f64,
            services_resident_mb: resident,
            invariants: audit::audit(endpoints, Expectations::default()).await?,
        };
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&figures)?),
            false => figures.print(),
        }
        Ok(figures.invariants.holds())
    }

    async fn place_all(
        &self,
        endpoints: &Endpoints,
        client: reqwest::Client,
        skus: &Arc<Vec<String>>,
        sagas: &Arc<Mutex<Sagas>>,
        bar: &ProgressBar,
    ) -> anyhow::Result<(Option<Histogram<u64>>, u64)> {
        let next = Arc::new(AtomicU64::new(0));
        let retries = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let mut workers = JoinSet::new();
        let (latencies, mut measured) = mpsc::unbounded_channel();
        for _ in 0..self.concurrency.min(self.orders) {
            let worker = Worker {
                load: self.clone(),
                customer: Customer::new(client.clone(), &endpoints.gateway),
                skus: Arc::clone(skus),
                sagas: Arc::clone(sagas),
                next: Arc::clone(&next),
                retries: Arc::clone(&retries),
                latencies: latencies.clone(),
                bar: bar.clone(),
                began,
            };
            workers.spawn(worker.run());
        }
        drop(latencies);
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        let mut histogram = None;
        while let Some(taken) = measured.recv().await {
            record(&mut histogram, taken);
        }
        Ok((histogram, retries.load(Ordering::Relaxed)))
    }

    fn progress_bar(&self) -> ProgressBar {
        let bar = if self.json {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(self.orders)
        };
        // A template of ours, so it parses.
        if let Ok(style) = ProgressStyle::with_template(
            "{elapsed} {wide_bar} {pos}/{len} accepted, {per_sec} {msg}",
        ) {
            bar.set_style(style);
        }
        bar
    }
}

struct Worker {
    load: Load,
    customer: Customer,
    skus: Arc<Vec<String>>,
    sagas: Arc<Mutex<Sagas>>,
    next: Arc<AtomicU64>,
    retries: Arc<AtomicU64>,
    latencies: mpsc::UnboundedSender<Duration>,
    bar: ProgressBar,
    began: Instant,
}

impl Worker {
    async fn run(self) -> anyhow::Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.load.orders {
                return Ok(());
            }
            // With a rate, latency counts from when the order should have been placed, so that
            // waiting is not hidden.
            let due = self
                .load
                .rate
                .map(|rate| self.began + Duration::from_secs_f64(number as f64 / rate));
            if let Some(due) = due {
                tokio::time::sleep_until(due.into()).await;
            }
            let from = due.unwrap_or_else(Instant::now);
            let order = self.place().await?;
            let accepted = Instant::now();
            self.sagas
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .accepted(order, accepted);
            self.latencies.send(accepted - from)?;
            self.bar.inc(1);
        }
    }

    async fn place(&self) -> anyhow::Result<OrderId> {
        let customer = self.customer.another(CustomerId::new());
        let picks: Vec<(usize, u32)> = {
            let count = rand::random_range(1..=3);
            let first = rand::random_range(0..self.skus.len());
            (0..count)
                .map(|nth| {
                    (
                        (first + nth * 7) % self.skus.len(),
                        rand::random_range(1..=3),
                    )
                })
                .collect()
        };
        let lines: Vec<(&str, u32)> = picks
            .iter()
            .map(|(at, quantity)| (self.skus[*at].as_str(), *quantity))
            .collect();
        let method = if rand::random_bool(self.load.declined) {
            "tok_chargeDeclined"
        } else {
            "tok_visa"
        };
        let key = uuid::Uuid::now_v7().to_string();
        for attempt in 0_u32.. {
            let answer = customer.try_place(&lines, method, &key).await;
            let failure = match answer {
                Ok(answer) if answer.status().as_u16() == 201 => {
                    let order: serde_json::Value = answer.json().await?;
                    return order["id"]
                        .as_str()
                        .and_then(|id| id.parse().ok())
                        .context("the order has no id");
                }
                Ok(answer) => format!(
                    "{} {}",
                    answer.status(),
                    answer.text().await.unwrap_or_default()
                ),
                Err(error) => format!("{error:#}"),
            };
            ensure!(
                attempt < 50,
                "an order was not accepted after {attempt} attempts; last: {failure}"
            );
            self.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(u64::from(20 * (attempt + 1)))).await;
        }
        bail!("unreachable: the loop above ends by returning")
    }
}

/// All SKUs of the catalogue.
async fn catalogue(customer: &Customer) -> anyhow::Result<Arc<Vec<String>>> {
    let mut skus = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = customer
            .get(&format!("/api/v1/products?limit=100&cursor={cursor}"))
            .await?;
        let products = page["products"].as_array().into_iter().flatten();
        skus.extend(products.filter_map(|product| product["sku"].as_str().map(str::to_owned)));
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    ensure!(!skus.is_empty(), "the catalogue is empty");
    Ok(Arc::new(skus))
}

/// Subscribes to the ends of sagas; the task returned notes them.
async fn listen(
    url: String,
    sagas: Arc<Mutex<Sagas>>,
) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    let client = options.connect(&url).await.context("connect to NATS")?;
    let confirmed = client.subscribe(Subject::OrderConfirmed.as_str()).await?;
    let cancelled = client.subscribe(Subject::OrderCancelled.as_str()).await?;
    client.flush().await?;
    Ok(async move {
        let mut messages = select_all([confirmed, cancelled]);
        while let Some(message) = messages.next().await {
            let order = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(header::SUBJECT));
            if let Some(order) = order.and_then(|order| order.as_str().parse().ok()) {
                let confirmed = message.subject.as_str() == Subject::OrderConfirmed.as_str();
                sagas.lock().unwrap_or_else(PoisonError::into_inner).ended(
                    order,
                    Instant::now(),
                    confirmed,
                );
            }
        }
    })
}

async fn wait(sagas: &Mutex<Sagas>, orders: u64, bar: &ProgressBar) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let complete = sagas
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .complete_count();
        if complete >= orders {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "{} sagas have not ended within {PATIENCE:?}",
            orders - complete
        );
        bar.set_message(format!("{complete} ended"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Microseconds up to two minutes, three digits.
fn record(histogram: &mut Option<Histogram<u64>>, taken: Duration) {
    let histogram = histogram.get_or_insert_with(|| {
        Histogram::new_with_bounds(1, 120_000_000, 3)
            .unwrap_or_else(|_| unreachable!("constant bounds are valid"))
    });
    histogram.saturating_record(u64::try_from(taken.as_micros()).unwrap_or(u64::MAX));
}

fn latency(histogram: Option<&Histogram<u64>>) -> Latency {
    let at = |quantile| {
        histogram.map_or(0.0, |histogram| {
            histogram.value_at_quantile(quantile) as f64 / 1000.0
        })
    };
    Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: at(1.0),
    }
}

impl Figures {
    fn print(&self) {
        println!(
            "orders     {} accepted in {:.1} s: {:.0}/s, {} retries",
            self.orders, self.accept_seconds, self.accepted_per_second, self.retries
        );
        println!(
            "sagas      {} confirmed, {} cancelled in {:.1} s: {:.0}/s",
            self.confirmed, self.cancelled, self.saga_seconds, self.sagas_per_second
        );
        for (name, Latency { p50, p90, p99, max }) in [
            ("accept", &self.accept_latency_ms),
            ("saga", &self.saga_latency_ms),
        ] {
            println!(
                "{name:<10} p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"
            );
        }
        for (name, usage) in &self.processes {
            println!(
                "  {name:<12} {:>7.1} CPU s   {:>6.0} MB resident, peak {:.0} MB",
                usage.cpu_seconds, usage.resident_mb, usage.peak_mb
            );
        }
        // Those of a system elsewhere are not known.
        if !self.processes.is_empty() {
            println!(
                "CPU        {:.2} ms per order; five services {:.0} MB resident",
                self.cpu_ms_per_order, self.services_resident_mb
            );
        }
        println!();
        print!("{}", self.invariants.table());
    }
}
