//! Placing orders: the workers of a run.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use client::Customer;
use contracts::OrderId;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Run;

/// How long an order is repeated. An overloaded system refuses new ones until accepted ones move.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(120);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Places orders until there are enough.
pub(super) async fn work(run: Arc<Run>) -> anyhow::Result<()> {
    loop {
        let number = run.next.fetch_add(1, Ordering::Relaxed);
        if number >= run.load.orders {
            return Ok(());
        }
        // With a rate, latency counts from when the order was due: a gateway that makes the workers
        // wait must not look faster for it.
        let due = run
            .load
            .rate
            .map(|rate| run.began + Duration::from_secs_f64(number as f64 / rate));
        if let Some(due) = due {
            tokio::time::sleep_until(due.into()).await;
        }
        let from = due.unwrap_or_else(Instant::now);
        let customer = &run.customers[number as usize % run.customers.len()];
        let order = place(&run, customer).await?;
        let accepted = Instant::now();
        let latency = accepted - from;
        let mut sagas = run.sagas.lock();
        sagas.accepted(order, customer.id, accepted, latency);
        drop(sagas);
        run.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

/// Places one order, retrying with the same key until it is accepted.
async fn place(run: &Run, customer: &Customer) -> anyhow::Result<OrderId> {
    let lines = random_lines(&run.skus);
    let payment_method = match rand::random_bool(run.load.declined) {
        true => "tok_chargeDeclined",
        false => "tok_visa",
    };
    let key = Uuid::now_v7().to_string();
    let began = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let failure = match customer.try_place(&lines, payment_method, &key).await {
            Ok(response) if response.status().as_u16() == 201 => {
                let order: Value = response.json().await?;
                let id = order["id"].as_str().and_then(|id| id.parse().ok());
                return id.context("the order has no id");
            }
            Ok(response) => {
                let status = response.status();
                let problem: Value = response.json().await.unwrap_or_default();
                ensure!(
                    !status.is_client_error() || problem["retry_safe"] == json!(true),
                    "the gateway rejected an order: {status} {problem}"
                );
                format!("{status} {problem}")
            }
            Err(error) => format!("{error:#}"),
        };
        ensure!(
            began.elapsed() < ACCEPT_TIMEOUT,
            "an order was not accepted within {ACCEPT_TIMEOUT:?}; last failure: {failure}"
        );
        run.retries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One to three products, one to three units of each.
fn random_lines(skus: &[String]) -> Vec<(&str, u32)> {
    let first = rand::random_range(0..skus.len());
    (0..rand::random_range(1..=3))
        .map(|nth| {
            let sku = &skus[(first + nth * 7) % skus.len()];
            (sku.as_str(), rand::random_range(1..=3))
        })
        .collect()
}

/// All SKUs of the catalogue.
pub(super) async fn catalogue(customer: &Customer) -> anyhow::Result<Vec<String>> {
    let mut skus = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/v1/products?limit=100&cursor={cursor}");
        let page = customer.get(&path).await?;
        let products = page["products"].as_array().into_iter().flatten();
        skus.extend(products.filter_map(|product| product["sku"].as_str().map(str::to_owned)));
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    ensure!(!skus.is_empty(), "the catalogue is empty");
    Ok(skus)
}
