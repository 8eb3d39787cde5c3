//! `sagacity timeline ORDER`: the order's events with cause, time offsets and trace id.

use anyhow::Context as _;
use clap::Args;
use contracts::{CustomerId, OrderId};
use devstack::Endpoints;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use client::{Customer, http_client};

/// Whose timeline.
#[derive(Args, Clone, Debug)]
pub struct Timeline {
    /// The order's id
    pub order: OrderId,
}

impl Timeline {
    /// Prints it.
    pub async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<()> {
        // The API answers customers only; as operators we look up whose order it is.
        let database = endpoints
            .databases
            .get("order")
            .context("no database of order")?;
        let mut database = PgConnection::connect(database).await?;
        let customer: Option<Uuid> =
            sqlx::query_scalar("SELECT customer_id FROM orders WHERE order_id = $1")
                .bind(self.order.0)
                .fetch_optional(&mut database)
                .await?;
        let customer = customer.with_context(|| format!("there is no order {}", self.order))?;
        let customer =
            Customer::new(http_client()?, &endpoints.gateway).another(CustomerId(customer));
        let timeline = customer
            .get(&format!("/api/v1/orders/{}/timeline", self.order))
            .await?;
        for event in timeline["events"].as_array().into_iter().flatten() {
            println!("{}", line(event));
        }
        if let Some(missing) = timeline["unavailable"]
            .as_array()
            .filter(|missing| !missing.is_empty())
        {
            println!("not available now: {missing:?}");
        }
        Ok(())
    }
}

/// One event of a timeline as a line of text.
pub fn line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let cause = event["cause"].as_str().unwrap_or("command");
    format!(
        "{:>+7} ms  {:<22} {:<10} because of {:<22} trace {}",
        event["offset_ms"].as_i64().unwrap_or_default(),
        text("type"),
        text("service"),
        cause,
        text("trace_id")
    )
}
