//! Orders that are placed while something fails, and the account of every one of them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, bail, ensure};
use client::{Customer, Failure, Placed};
use contracts::CustomerId;
use e2e::wait_for;
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

/// How long an order is retried: longer than any failure that a scenario causes.
const PLACE_TIMEOUT: Duration = Duration::from_secs(300);

/// Orders that a customer keeps placing, several at a time, while a fault is injected. It is a
/// customer of its own: what the API shows of it must be exactly what it was told.
pub struct Load {
    customer: Customer,
    tasks: JoinSet<anyhow::Result<()>>,
    /// The orders that were answered with 201.
    placed: watch::Sender<Vec<Placed>>,
    stop: watch::Sender<bool>,
}

/// What became of a load.
#[derive(Debug)]
pub struct Account {
    pub orders: usize,
    /// What became of the requests that were repeated: an error, or no response. The repetition
    /// under the same key gave the same order.
    pub failures: Vec<Failure>,
}

impl Load {
    /// Four orders at a time, with a pause after each.
    pub fn start(customer: &Customer) -> Self {
        Self::start_many(customer, 4, Duration::from_millis(20))
    }

    /// `concurrency` orders at a time, with this pause after each.
    pub fn start_many(customer: &Customer, concurrency: usize, pause: Duration) -> Self {
        let mut load = Self {
            customer: customer.another(CustomerId::new()),
            tasks: JoinSet::new(),
            placed: watch::Sender::default(),
            stop: watch::Sender::new(false),
        };
        for nth in 0..concurrency {
            let (placed, stop) = (load.placed.clone(), load.stop.subscribe());
            let customer = load.customer.clone();
            load.tasks
                .spawn(place_orders(customer, nth, pause, placed, stop));
        }
        load
    }

    /// The customer of all these orders.
    pub fn customer(&self) -> CustomerId {
        self.customer.id
    }

    /// How many orders have been accepted.
    pub fn accepted(&self) -> usize {
        self.placed.borrow().len()
    }

    /// Waits until so many more orders have been placed. A customer who cannot place an order ends
    /// the wait at once, with the reason.
    pub async fn advance(&mut self, orders: usize) -> anyhow::Result<()> {
        let goal = self.accepted() + orders;
        let what = format!("{orders} more orders");
        let placed = &self.placed;
        let reached = wait_for(&what, async || {
            Ok((placed.borrow().len() >= goal).then_some(()))
        });
        tokio::select! {
            reached = reached => reached,
            Some(task) = self.tasks.join_next() => {
                task??;
                bail!("a customer stopped placing orders")
            }
        }
    }

    /// Stops, and accounts for every order: those that were answered with 201 are those that the
    /// customer finds, no more and no fewer, and each of them ends. So a key whose first requests
    /// got an error, or no response, has one order like every other key.
    pub async fn stop(mut self) -> anyhow::Result<Account> {
        self.stop.send_replace(true);
        while let Some(task) = self.tasks.join_next().await {
            task??;
        }
        let placed = self.placed.borrow().clone();
        let unique: BTreeSet<&String> = placed.iter().map(|placed| &placed.id).collect();
        ensure!(unique.len() == placed.len(), "two keys got one order");
        let found = wait_for("the customer's orders end", async || {
            let orders = all_orders(&self.customer).await?;
            let is_over = |(_, status): &(String, String)| {
                matches!(status.as_str(), "confirmed" | "cancelled")
            };
            Ok(orders.iter().all(is_over).then_some(orders))
        })
        .await?;
        let found: BTreeSet<&String> = found.iter().map(|(id, _)| id).collect();
        let lost: Vec<_> = unique.difference(&found).collect();
        ensure!(
            lost.is_empty(),
            "orders were accepted and are lost: {lost:?}"
        );
        let extra: Vec<_> = found.difference(&unique).collect();
        ensure!(
            extra.is_empty(),
            "orders exist that nobody was told of: {extra:?}"
        );
        let orders = placed.len();
        let failures = placed.into_iter().flat_map(|placed| placed.failures);
        Ok(Account {
            orders,
            failures: failures.collect(),
        })
    }
}

/// Id and status of all orders of a customer, page by page.
pub async fn all_orders(customer: &Customer) -> anyhow::Result<Vec<(String, String)>> {
    let mut orders = Vec::new();
    let mut path = "/api/v1/orders?limit=100".to_owned();
    loop {
        let page = customer.get(&path).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let items = page["orders"].as_array().context("a page has orders")?;
        orders.extend(
            items
                .iter()
                .map(|order| (text(&order["id"]), text(&order["status"]))),
        );
        let Some(cursor) = page["next_cursor"].as_str() else {
            return Ok(orders);
        };
        path = format!("/api/v1/orders?limit=100&cursor={cursor}");
    }
}

async fn place_orders(
    customer: Customer,
    nth: usize,
    pause: Duration,
    placed: watch::Sender<Vec<Placed>>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    for order in nth.. {
        if *stop.borrow() {
            break;
        }
        let is_declined = order % 7 == 0;
        let method = if is_declined {
            "tok_chargeDeclined"
        } else {
            "tok_visa"
        };
        let lines = [("SKU-0001", 1), ("SKU-0500", 2)];
        let key = Uuid::now_v7().to_string();
        let accepted = customer
            .place_with_key(&lines, method, &key, PLACE_TIMEOUT)
            .await?;
        if !accepted.failures.is_empty() {
            let repeated = customer.place_with_key(&lines, method, &key, PLACE_TIMEOUT);
            let again = repeated.await?.id;
            ensure!(
                again == accepted.id,
                "the key {key} has two orders: {again} and {}",
                accepted.id
            );
        }
        if order % 5 == 0 {
            // The service may be down at the moment; then the order is simply not cancelled.
            let customer = customer.clone().with_patience(Duration::ZERO);
            let _response = customer.cancel(&accepted.id).await;
        }
        placed.send_modify(|placed| placed.push(accepted));
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
