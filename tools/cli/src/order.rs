//! `sagacity order`: places one order and prints its story until it ends.

use std::pin::pin;

use anyhow::Context as _;
use clap::Args;
use client::{Customer, http_client};
use devstack::Endpoints;
use futures::TryStreamExt as _;

use crate::timeline;

/// What to order.
#[derive(Args, Clone, Debug)]
pub struct Order {
    /// Pay with a card that is declined
    #[arg(long)]
    pub decline: bool,
    /// What to order, as SKU or SKU:QUANTITY; may be given several times
    #[arg(long = "sku", value_name = "SKU[:QUANTITY]", default_value = "SKU-0001:2", value_parser = line)]
    pub lines: Vec<(String, u32)>,
}

fn line(text: &str) -> Result<(String, u32), String> {
    let (sku, quantity) = text.split_once(':').unwrap_or((text, "1"));
    let quantity = quantity
        .parse()
        .map_err(|_| "expected SKU or SKU:QUANTITY, for example SKU-0001:2".to_owned())?;
    Ok((sku.to_owned(), quantity))
}

impl Order {
    /// Places it and prints what happens.
    pub async fn run(&self, endpoints: &Endpoints) -> anyhow::Result<()> {
        let customer = Customer::new(http_client()?, &endpoints.gateway);
        let lines: Vec<(&str, u32)> = self
            .lines
            .iter()
            .map(|(sku, quantity)| (sku.as_str(), *quantity))
            .collect();
        let method = if self.decline {
            "tok_chargeDeclined"
        } else {
            "tok_visa"
        };
        let id = customer.place(&lines, method).await?;
        println!("order    {id}\ncustomer {}\n", customer.id);
        let mut story = pin!(customer.watch(&id).await?);
        while let Some(told) = story.try_next().await? {
            match told.event.as_str() {
                "end" => {
                    let order = customer.order(&id).await?;
                    let reason = order["reason"]
                        .as_str()
                        .map(|reason| format!(" ({reason})"))
                        .unwrap_or_default();
                    let refund = order["refund"].as_str().filter(|refund| *refund != "none");
                    let refund = refund
                        .map(|refund| format!(", refund {refund}"))
                        .unwrap_or_default();
                    println!(
                        "\n{}{reason}{refund}",
                        order["status"].as_str().unwrap_or_default()
                    );
                    return Ok(());
                }
                _ => println!("{}", timeline::line(&told.data)),
            }
        }
        Err(anyhow::anyhow!(
            "the live stream ended before the order did"
        ))
        .with_context(|| format!("see `cargo sagacity timeline {id}`"))
    }
}
