//! `sagacity order`: places one order and prints its events until it ends.

use anyhow::Context as _;
use clap::Args;
use client::{Customer, http_client};
use devstack::Endpoints;
use futures::TryStreamExt as _;
use serde_json::Value;

use crate::timeline;

#[derive(Args, Clone, Debug)]
pub(crate) struct Order {
    /// Pay with a card that is declined
    #[arg(long)]
    decline: bool,
    /// What to order, as SKU or SKU:QUANTITY; may be repeated
    #[arg(
        long = "sku",
        value_name = "SKU[:QUANTITY]",
        default_value = "SKU-0001:2",
        value_parser = line
    )]
    lines: Vec<(String, u32)>,
}

fn line(text: &str) -> Result<(String, u32), String> {
    let (sku, quantity) = text.split_once(':').unwrap_or((text, "1"));
    let quantity = quantity
        .parse()
        .map_err(|_| "expected SKU or SKU:QUANTITY, for example SKU-0001:2".to_owned())?;
    Ok((sku.to_owned(), quantity))
}

impl Order {
    pub(crate) async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<()> {
        let customer = Customer::new(http_client()?, &endpoints.gateway);
        let lines: Vec<(&str, u32)> = self
            .lines
            .iter()
            .map(|(sku, quantity)| (sku.as_str(), *quantity))
            .collect();
        let payment_method = match self.decline {
            true => "tok_chargeDeclined",
            false => "tok_visa",
        };
        let id = customer.place(&lines, payment_method).await?;
        println!("order    {id}\ncustomer {}\n", customer.id);
        let mut events = customer.watch(&id).await?;
        while let Some(event) = events.try_next().await? {
            if event.event == "end" {
                println!("\n{}", outcome(&customer.order(&id).await?));
                return Ok(());
            }
            println!("{}", timeline::line(&event.data));
        }
        Err(anyhow::anyhow!("the live stream ended before the order"))
            .with_context(|| format!("run `cargo sagacity timeline {id}` to see how it went on"))
    }
}

/// For example "cancelled (out_of_stock), refund completed".
fn outcome(order: &Value) -> String {
    let mut text = order["status"].as_str().unwrap_or_default().to_owned();
    if let Some(reason) = order["reason"].as_str() {
        text.push_str(&format!(" ({reason})"));
    }
    if let Some(refund) = order["refund"].as_str().filter(|refund| *refund != "none") {
        text.push_str(&format!(", refund {refund}"));
    }
    text
}
