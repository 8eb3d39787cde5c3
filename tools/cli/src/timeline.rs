//! `sagacity timeline ORDER`: the order's events with cause, time offset and trace id.

use anyhow::Context as _;
use clap::Args;
use client::{Customer, http_client};
use contracts::{CustomerId, OrderId};
use devstack::Endpoints;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

#[derive(Args, Clone, Debug)]
pub(crate) struct Timeline {
    /// The order's id
    order: OrderId,
}

impl Timeline {
    pub(crate) async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<()> {
        let customer = self.customer(endpoints).await?;
        let path = format!("/api/v1/orders/{}/timeline", self.order);
        let timeline = customer.get(&path).await?;
        for event in timeline["events"].as_array().into_iter().flatten() {
            println!("{}", line(event));
        }
        let unavailable: Vec<&str> = timeline["unavailable"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !unavailable.is_empty() {
            println!("unavailable now: {}", unavailable.join(", "));
        }
        Ok(())
    }

    /// The API shows an order only to its customer, so the customer is looked up in the database.
    async fn customer(&self, endpoints: &Endpoints) -> anyhow::Result<Customer> {
        let url = endpoints.databases.get("order");
        let url = url.context("the address of the order database is unknown")?;
        let mut database = PgConnection::connect(url).await?;
        let query = sqlx::query_scalar("SELECT customer_id FROM orders WHERE order_id = $1");
        let id: Option<Uuid> = query
            .bind(self.order.0)
            .fetch_optional(&mut database)
            .await?;
        let id = id.with_context(|| format!("there is no order {}", self.order))?;
        let anyone = Customer::new(http_client()?, &endpoints.gateway);
        Ok(anyone.another(CustomerId(id)))
    }
}

/// One event of a timeline as a line of text.
pub(crate) fn line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let cause = event["cause"].as_str().unwrap_or("command");
    format!(
        "{:>+7} ms  {:<22} {:<12} caused by {:<22} trace {}",
        event["offset_ms"].as_i64().unwrap_or_default(),
        text("type"),
        text("service"),
        cause,
        text("trace_id")
    )
}
