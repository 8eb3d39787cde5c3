//! A whole shop for one scenario.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use audit::{Expectations, audit};
use client::{Customer, Lines, http_client};
use devstack::Endpoints;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;

use crate::{Pair, Site, edges};

/// How long a scenario waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The parts of a shop, and a customer in it.
#[derive(Debug)]
pub struct Shop {
    /// Its parts.
    pub site: Site,
    /// Somebody who orders.
    pub customer: Customer,
}

/// Waits until `condition` gives something.
pub async fn wait_for<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        let last = match condition().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(format!("{error:#}")),
        };
        ensure!(
            Instant::now() < until,
            "{what} did not happen within {PATIENCE:?}; last error: {last:?}"
        );
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

impl Shop {
    /// Opens a shop; `settings` are (service, name, value). In containers it may hold the settled
    /// orders of earlier scenarios.
    pub async fn open(name: &str, settings: &[(&str, &str, &str)]) -> anyhow::Result<Self> {
        Self::on(Site::open(name, settings, false).await?).await
    }

    /// Opens a shop that nobody has been in.
    pub async fn open_new(name: &str) -> anyhow::Result<Self> {
        Self::on(Site::open(name, &[], true).await?).await
    }

    async fn on(site: Site) -> anyhow::Result<Self> {
        let customer = Customer::new(http_client()?, &site.endpoints().gateway);
        let shop = Self { site, customer };
        shop.no_faults().await?;
        Ok(shop)
    }

    /// Where everything is.
    pub fn endpoints(&self) -> &Endpoints {
        self.site.endpoints()
    }

    /// Waits until the order is as `condition` wants it, and returns it.
    pub async fn until(
        &self,
        order: &str,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let found = wait_for(what, async || {
            last = self.customer.order(order).await?;
            Ok(condition(&last).then(|| last.clone()))
        });
        found.await.with_context(|| format!("order {order}"))
    }

    /// Waits for a status and its reason.
    pub async fn until_status(
        &self,
        order: &str,
        status: &str,
        reason: Option<&str>,
    ) -> anyhow::Result<Value> {
        let order = self
            .until(order, status, |order| order["status"] == status)
            .await?;
        ensure!(
            order["reason"].as_str() == reason,
            "expected reason {reason:?}: {order}"
        );
        Ok(order)
    }

    /// Places an order and waits for its end.
    pub async fn order_until(
        &self,
        lines: Lines<'_>,
        method: &str,
        status: &str,
    ) -> anyhow::Result<Value> {
        let id = self.customer.place(lines, method).await?;
        self.until(&id, status, |order| order["status"] == status)
            .await
    }

    /// Makes something go wrong at the provider: see `payment::sandbox::Fault`.
    pub async fn fault(&self, token: &str, fault: Value) -> anyhow::Result<()> {
        let url = format!("{}/sandbox/faults/{token}", self.endpoints().provider);
        http_client()?
            .put(url)
            .json(&fault)
            .send()
            .await?
            .error_for_status()?;
        Ok(())
    }

    /// Nothing goes wrong at the provider any more.
    pub async fn no_faults(&self) -> anyhow::Result<()> {
        let url = format!("{}/sandbox/faults", self.endpoints().provider);
        http_client()?
            .delete(url)
            .send()
            .await?
            .error_for_status()?;
        Ok(())
    }

    /// A connection to a service's database.
    pub async fn database(&self, service: &str) -> anyhow::Result<PgConnection> {
        let url = self
            .endpoints()
            .databases
            .get(service)
            .with_context(|| format!("no database of {service}"))?;
        Ok(PgConnection::connect(url).await?)
    }

    /// Leaves so many units of a product.
    pub async fn leave_stock(&self, sku: &str, units: i64) -> anyhow::Result<()> {
        let update =
            sqlx::query("UPDATE stock SET initial = reserved + $2, on_hand = $2 WHERE sku = $1");
        update
            .bind(sku)
            .bind(units)
            .execute(&mut self.database("inventory").await?)
            .await?;
        Ok(())
    }

    /// The broker.
    pub async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        Ok(jetstream::new(
            async_nats::connect(&self.endpoints().nats).await?,
        ))
    }

    /// Waits until the provider was asked about an order.
    pub async fn until_charging(&self, order: &str) -> anyhow::Result<()> {
        let mut database = self.database("payment").await?;
        let order: uuid::Uuid = order.parse()?;
        wait_for("the provider was asked", async || {
            let query =
                sqlx::query_scalar::<_, i32>("SELECT attempts FROM payments WHERE order_id = $1");
            let attempts = query.bind(order).fetch_optional(&mut database).await?;
            Ok(attempts.filter(|attempts| *attempts > 0).map(drop))
        })
        .await
    }

    /// The services' log lines that are warnings or errors.
    pub async fn complaints(&self) -> anyhow::Result<Vec<String>> {
        let mut complaints = Vec::new();
        for service in devstack::SERVICES {
            let log = self.site.log(service).await?;
            let is_complaint = |line: &&str| {
                line.contains("\"WARN\"") || line.contains("\"ERROR\"") || !line.starts_with('{')
            };
            complaints.extend(
                log.lines()
                    .filter(is_complaint)
                    .map(|line| format!("{service}: {line}")),
            );
        }
        Ok(complaints)
    }

    /// Audits the shop, checks the edges that were taken, and stops every process of it. Returns
    /// the edges. Containers go on, and the next scenario gets them if they are as the audit
    /// expects when nobody has tampered with them.
    pub async fn close(self, expectations: Expectations) -> anyhow::Result<BTreeSet<Pair>> {
        let report = audit(self.endpoints(), expectations).await?;
        ensure!(report.holds(), "invariants are broken:\n{}", report.table());
        let pairs = edges::observe(&self.jetstream().await?).await?;
        match expectations == Expectations::default() {
            true => self.site.close().await?,
            false => self.site.abandon().await?,
        }
        Ok(pairs)
    }
}
