//! A whole system for one scenario.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use audit::{Expectations, audit};
use client::{Customer, Lines, http_client};
use contracts::{EventId, Service, Subject};
use devstack::{
    Endpoints,
    test::{TIMEOUT, wait_for},
};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::{Deployment, Pair, edges};

/// A running system, and a customer of it.
#[derive(Debug)]
pub struct Shop {
    pub deployment: Deployment,
    pub customer: Customer,
}

impl Shop {
    pub(crate) async fn new(deployment: Deployment) -> anyhow::Result<Self> {
        let customer = Customer::new(http_client()?, &deployment.endpoints().gateway);
        let customer = customer.with_patience(TIMEOUT);
        let shop = Self {
            deployment,
            customer,
        };
        shop.no_faults().await?;
        Ok(shop)
    }

    /// The addresses of all parts.
    pub fn endpoints(&self) -> &Endpoints {
        self.deployment.endpoints()
    }

    /// Waits until the order meets `condition`, and returns it.
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
        let found = found.await;
        found.with_context(|| format!("order {order} was last: {last}"))
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

    /// Injects a fault at the provider: see `Fault` in psp-sandbox.
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

    /// Removes all faults at the provider.
    pub async fn no_faults(&self) -> anyhow::Result<()> {
        let url = format!("{}/sandbox/faults", self.endpoints().provider);
        http_client()?
            .delete(url)
            .send()
            .await?
            .error_for_status()?;
        Ok(())
    }

    /// A connection to a service's database, with the service's rights.
    pub async fn database(&self, service: &str) -> anyhow::Result<PgConnection> {
        let url = self
            .endpoints()
            .databases
            .get(service)
            .with_context(|| format!("no database of {service}"))?;
        Ok(PgConnection::connect(url).await?)
    }

    /// The same with the rights of the owner of its tables.
    pub async fn owned_database(&self, service: &str) -> anyhow::Result<PgConnection> {
        let url = self.endpoints().owners.get(service);
        let url = url.with_context(|| format!("no database of {service}"))?;
        Ok(PgConnection::connect(url).await?)
    }

    /// Sets the units of a product on hand.
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

    /// Every event in an outbox.
    async fn recorded(&self) -> anyhow::Result<HashMap<EventId, Subject>> {
        let mut recorded = HashMap::new();
        for service in Service::ALL {
            let mut database = self.database(service.name()).await?;
            let rows: Vec<(Uuid, String)> = sqlx::query_as("SELECT event_id, subject FROM outbox")
                .fetch_all(&mut database)
                .await?;
            for (id, subject) in rows {
                recorded.insert(EventId(id), subject.parse()?);
            }
        }
        Ok(recorded)
    }

    pub async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        devstack::jetstream::open(&self.endpoints().nats).await
    }

    /// Waits until the admin listener of a service serves `path`.
    pub async fn until_served(&self, service: &str, path: &str) -> anyhow::Result<()> {
        let url = format!("{}/{path}", self.endpoints().admin[service]);
        let client = http_client()?;
        wait_for(&format!("{path} of {service}"), async || {
            let response = client.get(&url).send().await?;
            response.error_for_status()?;
            Ok(Some(()))
        })
        .await
    }

    /// Waits until the provider was called for an order.
    pub async fn until_charging(&self, order: &str) -> anyhow::Result<()> {
        let mut database = self.database("payment").await?;
        let order: uuid::Uuid = order.parse()?;
        wait_for("the provider was called", async || {
            let query =
                sqlx::query_scalar::<_, i32>("SELECT attempts FROM payments WHERE order_id = $1");
            let attempts = query.bind(order).fetch_optional(&mut database).await?;
            Ok(attempts.filter(|attempts| *attempts > 0).map(drop))
        })
        .await
    }

    /// Waits until the provider has charged an order.
    pub async fn until_charged(&self, order: &str) -> anyhow::Result<()> {
        let url = format!("{}/sandbox/ledger", self.endpoints().provider);
        wait_for("the provider has charged", async || {
            let ledger = http_client()?.get(&url).send().await?.text().await?;
            Ok(ledger.contains(order).then_some(()))
        })
        .await
    }

    /// Log lines of all processes that are warnings or errors.
    pub async fn warnings(&self) -> anyhow::Result<Vec<String>> {
        let mut warnings = Vec::new();
        for service in devstack::services() {
            let log = self.deployment.log(service).await?;
            let is_warning = |line: &&str| {
                line.contains("\"WARN\"") || line.contains("\"ERROR\"") || !line.starts_with('{')
            };
            warnings.extend(
                log.lines()
                    .filter(is_warning)
                    .map(|line| format!("{service}: {line}")),
            );
        }
        Ok(warnings)
    }

    /// Audits the system, checks that only declared edges occurred, and stops the processes.
    /// Returns the edges. Containers keep running: the next scenario uses them, unless this one
    /// expects dead letters or copies, which the next audit would find.
    pub async fn close(self, expectations: Expectations) -> anyhow::Result<BTreeSet<Pair>> {
        let report = audit(self.endpoints(), expectations).await?;
        ensure!(report.holds(), "invariants are broken:\n{}", report.table());
        let pairs = edges::observe(&self.jetstream().await?, &self.recorded().await?).await?;
        match expectations == Expectations::default() {
            true => self.deployment.close().await?,
            false => self.deployment.abandon().await?,
        }
        Ok(pairs)
    }
}
