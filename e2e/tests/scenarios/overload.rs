//! More orders than the system can complete: it refuses some, keeps its promise to the others, and
//! does not collapse.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::ensure;
use client::Customer;
use contracts::CustomerId;
use e2e::{Harness, Shop, wait_for};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    Outcome, close,
    load::{Load, all_orders},
};

/// Calls of the provider that one payment service has in flight: `MAX_CALLS` in its `worker.rs`.
const CALLS: f64 = 64.0;
/// No process of an overloaded system may use more, in MB. Debug builds are larger than the 64 MB
/// of a container.
const MEMORY_MB: f64 = 256.0;
const LINES: &[(&str, u32)] = &[("SKU-0001", 1)];

/// The provider takes so long that 26 orders a second can be charged. The load is several times
/// that: new orders are refused while accepted ones wait for too long, and admitted again when
/// these have ended, all without a change of the load. Outside of Compose the services have the
/// smallest pools that they accept.
pub async fn an_overload_is_refused_and_every_accepted_order_ends(harness: &Harness) -> Outcome {
    let smallest_pool = |service| (service, "DATABASE_POOL_SIZE", "6");
    let settings = [
        ("order", "ORDER_DEADLINE_SECONDS", "30"),
        smallest_pool("order"),
        smallest_pool("payment"),
        smallest_pool("inventory"),
        smallest_pool("notification"),
    ];
    let shop = harness.open("overload", &settings).await?;
    shop.fault("*", json!({ "latency_ms": 2500 })).await?;
    let mut load = Load::start_many(&shop.customer, 16, Duration::from_millis(60));
    wait_for("an order is refused", async || {
        let key = Uuid::now_v7().to_string();
        let response = shop.customer.try_place(LINES, "tok_visa", &key).await?;
        if response.status() != 503 {
            return Ok(None);
        }
        let may_retry_after = response.headers().contains_key("retry-after");
        let problem: Value = response.json().await?;
        Ok((may_retry_after && problem["retry_safe"] == json!(true)).then_some(()))
    })
    .await?;
    load.advance(64).await?;
    shop.no_faults().await?;
    let customer = load.customer();
    let account = load.stop().await?;
    ensure!(!account.failures.is_empty(), "the load met no refusal");
    let ends = ends(&shop, customer).await?;
    ensure!(
        ends.get("confirmed")
            .is_some_and(|confirmed| *confirmed > 0),
        "{ends:?}"
    );
    for (process, resident) in peak_memory(&shop) {
        ensure!(
            resident < MEMORY_MB,
            "{process} used {resident} MB at its peak"
        );
    }
    close(shop).await
}

/// How the orders of a customer have ended, and how many in each way.
async fn ends(shop: &Shop, customer: CustomerId) -> anyhow::Result<BTreeMap<String, i64>> {
    let query = "SELECT coalesce(cancel_reason, status), count(*) FROM orders
        WHERE customer_id = $1 GROUP BY 1";
    let ends: Vec<(String, i64)> = sqlx::query_as(query)
        .bind(customer.0)
        .fetch_all(&mut shop.database("order").await?)
        .await?;
    Ok(ends.into_iter().collect())
}

/// The largest resident size of each process so far, in MB, where there is `/proc` (man 5 proc).
fn peak_memory(shop: &Shop) -> BTreeMap<&'static str, f64> {
    let peak = |service: &'static str| {
        let pid = shop.endpoints().pids.get(service)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kilobytes: f64 = peak.split_whitespace().next()?.parse().ok()?;
        Some((service, (kilobytes / 1024.0).round()))
    };
    devstack::services().filter_map(peak).collect()
}

/// A provider that takes 500 ms lets one payment service charge 128 orders a second.
const SLOW_MS: u64 = 500;
const SUSTAINABLE: f64 = CALLS / (SLOW_MS as f64 / 1000.0);

pub async fn a_slow_provider_at_200_orders_a_second(harness: &Harness) -> Outcome {
    overload(harness, "slow_provider", 200.0).await
}

pub async fn three_times_the_sustainable_rate(harness: &Harness) -> Outcome {
    overload(harness, "three_times", 3.0 * SUSTAINABLE).await
}

/// For people and for the night: offers orders at this rate for five minutes, or for
/// `SAGACITY_OVERLOAD_SECONDS`, and prints what came of it. The figures depend on the machine. What
/// must hold on any is that no accepted order is lost. A release build has enough in hand for these
/// rates, and must not collapse: in the last third of the time it confirms at least half as many
/// orders as in the first.
async fn overload(harness: &Harness, name: &str, rate: f64) -> Outcome {
    let seconds = std::env::var("SAGACITY_OVERLOAD_SECONDS").ok();
    let seconds: f64 = seconds.map_or(Ok(300.0), |seconds| seconds.parse())?;
    let settings = [("order", "ORDER_DEADLINE_SECONDS", "30")];
    let shop = harness.open(name, &settings).await?;
    shop.fault("*", json!({ "latency_ms": SLOW_MS })).await?;
    let customer = shop.customer.another(CustomerId::new());
    let end = tokio::time::sleep(Duration::from_secs_f64(seconds));
    let (offered, requests) = offer(&customer, rate, end).await?;
    let memory = peak_memory(&shop);
    account(&customer, &requests).await?;
    let ends = ends(&shop, customer.id).await?;
    let [all, first, last] = confirmed(&shop, customer.id, seconds).await?;
    let goodput = all as f64 / seconds;
    println!("{offered} orders offered in {seconds} s");
    println!("responses: {:?}", requests.responses);
    println!("accepted after (ms): {}", percentiles(requests.latencies));
    println!("ends: {ends:?}");
    println!("goodput: {goodput:.0} confirmed/s of {SUSTAINABLE:.0}/s that can be charged");
    println!(
        "confirmed after (ms): {}",
        confirmed_after(&shop, customer.id).await?
    );
    println!("confirmed in the first third: {first}, in the last: {last}");
    println!("peak memory (MB): {memory:?}");
    ensure!(
        2 * last >= first || cfg!(debug_assertions),
        "goodput collapsed from {first} to {last}"
    );
    close(shop).await
}

/// What the customer was told.
#[derive(Debug, Default)]
pub struct Requests {
    accepted: BTreeSet<String>,
    /// Responses by status, and requests without a response.
    pub responses: BTreeMap<String, usize>,
    pub latencies: Vec<Duration>,
}

/// Offers orders at a rate until `end`, whatever becomes of them, each once; returns how many.
pub async fn offer(
    customer: &Customer,
    rate: f64,
    end: impl Future<Output = ()>,
) -> anyhow::Result<(usize, Requests)> {
    let mut pending = JoinSet::new();
    let mut requests = Requests::default();
    let began = Instant::now();
    let mut offered = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut end => break,
        }
        let due = (began.elapsed().as_secs_f64() * rate) as usize;
        for _ in offered..due {
            let key = Uuid::now_v7().to_string();
            let request = customer.try_place(LINES, "tok_visa", &key);
            pending.spawn(async move {
                let sent = Instant::now();
                let response = request.await?;
                let (status, latency) = (response.status(), sent.elapsed());
                let body: Value = response.json().await.unwrap_or_default();
                anyhow::Ok((status.as_u16(), body, latency))
            });
        }
        offered = due.max(offered);
        while let Some(ended) = pending.try_join_next() {
            requests.note(ended?);
        }
    }
    while let Some(ended) = pending.join_next().await {
        requests.note(ended?);
    }
    Ok((offered, requests))
}

impl Requests {
    fn note(&mut self, ended: anyhow::Result<(u16, Value, Duration)>) {
        let response = match ended {
            Ok((201, order, latency)) => {
                self.latencies.push(latency);
                let id = order["id"].as_str().unwrap_or_default();
                self.accepted.insert(id.to_owned());
                "201".to_owned()
            }
            Ok((status, _, _)) => status.to_string(),
            Err(_) => "none".to_owned(),
        };
        *self.responses.entry(response).or_default() += 1;
    }
}

/// Every order that was accepted exists and ends, and no other exists but for requests whose
/// outcome the customer does not know.
pub async fn account(customer: &Customer, requests: &Requests) -> anyhow::Result<()> {
    let found = wait_for("all orders end", async || {
        let orders = all_orders(customer).await?;
        let is_over =
            |(_, status): &(String, String)| matches!(status.as_str(), "confirmed" | "cancelled");
        Ok(orders.iter().all(is_over).then_some(orders))
    })
    .await?;
    let found: BTreeSet<String> = found.into_iter().map(|(id, _)| id).collect();
    let lost: Vec<_> = requests.accepted.difference(&found).collect();
    ensure!(
        lost.is_empty(),
        "orders were accepted and are lost: {lost:?}"
    );
    let unanswered: usize = requests
        .responses
        .iter()
        .filter(|(response, _)| response.as_str() != "201")
        .map(|(_, count)| count)
        .sum();
    let extra = found.len() - requests.accepted.len();
    ensure!(
        extra <= unanswered,
        "{extra} orders exist that nobody was told of, {unanswered} requests had no success"
    );
    Ok(())
}

/// How many orders were confirmed in the `seconds` since the first one was placed, in their first
/// third and in their last.
async fn confirmed(shop: &Shop, customer: CustomerId, seconds: f64) -> anyhow::Result<[i64; 3]> {
    let query = "WITH own AS (
            SELECT status, extract(epoch FROM updated_at - min(created_at) OVER ()) AS at
            FROM orders WHERE customer_id = $1)
        SELECT count(*),
               count(*) FILTER (WHERE at < $2 / 3),
               count(*) FILTER (WHERE at > $2 * 2 / 3)
        FROM own WHERE status = 'confirmed' AND at < $2";
    let (all, first, last) = sqlx::query_as(query)
        .bind(customer.0)
        .bind(seconds)
        .fetch_one(&mut shop.database("order").await?)
        .await?;
    Ok([all, first, last])
}

/// The time from an order to its confirmation.
async fn confirmed_after(shop: &Shop, customer: CustomerId) -> anyhow::Result<String> {
    let query = "SELECT extract(epoch FROM updated_at - created_at)::float8 FROM orders
        WHERE customer_id = $1 AND status = 'confirmed'";
    let seconds: Vec<f64> = sqlx::query_scalar(query)
        .bind(customer.0)
        .fetch_all(&mut shop.database("order").await?)
        .await?;
    let times = seconds.into_iter().map(|seconds| seconds.max(0.0));
    Ok(percentiles(times.map(Duration::from_secs_f64).collect()))
}

pub fn percentiles(mut samples: Vec<Duration>) -> String {
    samples.sort_unstable();
    let percentile = |percent: usize| {
        let rank = (samples.len() * percent).div_ceil(100);
        let sample = samples.get(rank.saturating_sub(1));
        sample.map_or(0, |sample| sample.as_millis())
    };
    let [median, most, max] = [50, 99, 100].map(percentile);
    format!("p50 {median}, p99 {most}, max {max}")
}
