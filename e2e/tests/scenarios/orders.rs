//! Orders from the first request to their end.

use std::{collections::BTreeSet, pin::pin};

use anyhow::{bail, ensure};
use e2e::{Harness, Shop, wait_for};
use futures::TryStreamExt as _;
use serde_json::json;

use crate::{Outcome, close};

/// The live stream shows every event, and neither a clean start nor an order logs a warning. A
/// process that had to wait for the machine may log one, so that it is tried again.
pub async fn an_order_is_confirmed_and_streamed_live(harness: &Harness) -> Outcome {
    let mut pairs = BTreeSet::new();
    for name in ["confirmed", "confirmed_2", "confirmed_3"] {
        let (shop, warnings) = confirm_an_order(harness, name).await?;
        pairs.extend(close(shop).await?);
        if warnings.is_empty() {
            return Ok(pairs);
        }
        let are_warnings = warnings.iter().all(|line| line.contains("\"WARN\""));
        ensure!(are_warnings, "{warnings:#?}");
        eprintln!("a clean start logged warnings: {warnings:#?}");
    }
    bail!("three clean starts logged warnings");
}

async fn confirm_an_order(harness: &Harness, name: &str) -> anyhow::Result<(Shop, Vec<String>)> {
    let shop = harness.open_new(name).await?;
    let id = shop
        .customer
        .place(&[("SKU-0001", 2), ("SKU-0002", 1)], "tok_visa")
        .await?;
    let events: Vec<_> = pin!(shop.customer.watch(&id).await?).try_collect().await?;
    let names: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
    ensure!(
        names.first() == Some(&"order.created.v1") && names.last() == Some(&"end"),
        "{names:?}"
    );
    ensure!(
        names.contains(&"payment.completed.v1") && names.contains(&"order.confirmed.v1"),
        "{names:?}"
    );
    shop.until(&id, "everything is done, and shown", |order| {
        let told = order["notifications"].as_array();
        order["status"] == "confirmed"
            && order["refund"] == "none"
            && order["payment"]["status"] == "completed"
            && order["payment"]["amount"] == order["total"]
            && order["reservation"] == "reserved"
            && order["unavailable"] == json!([])
            && told.is_some_and(|told| told.len() == 1)
            && order["notifications"][0]["kind"] == "order_confirmed"
    })
    .await?;
    check_timeline(&shop, &id).await?;
    let warnings = shop.warnings().await?;
    Ok((shop, warnings))
}

/// Each event has its cause, and all belong to one request and one trace.
async fn check_timeline(shop: &Shop, id: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/orders/{id}/timeline");
    // A reservation may overtake the payment that it follows from: then the order is never paid
    // only.
    const EVENTS: [&str; 4] = [
        "order.created.v1",
        "payment.completed.v1",
        "inventory.reserved.v1",
        "order.confirmed.v1",
    ];
    let (timeline, events) = wait_for("four events in the timeline", async || {
        let timeline = shop.customer.get(&path).await?;
        let events = timeline["events"].as_array().cloned().unwrap_or_default();
        let is_whole = timeline["unavailable"] == json!([]) && events.len() >= EVENTS.len();
        Ok(is_whole.then_some((timeline, events)))
    })
    .await?;
    let names: Vec<_> = events
        .iter()
        .filter_map(|event| event["type"].as_str())
        .filter(|name| *name != "order.paid.v1")
        .collect();
    ensure!(names == EVENTS, "{timeline}");
    ensure!(
        events[0]["cause"].is_null() && events[1..].iter().all(|event| event["cause"].is_string()),
        "{timeline}"
    );
    ensure!(
        events
            .iter()
            .all(|event| event["trace_id"] == events[0]["trace_id"]),
        "one trace: {timeline}"
    );
    ensure!(
        events
            .iter()
            .all(|event| event["correlation_id"] == events[0]["correlation_id"]),
        "{timeline}"
    );
    Ok(())
}

pub async fn a_declined_card_cancels_the_order(harness: &Harness) -> Outcome {
    let shop = harness.open("declined", &[]).await?;
    for (method, code) in [
        ("tok_chargeDeclined", "generic_decline"),
        ("tok_chargeDeclinedInsufficientFunds", "insufficient_funds"),
        ("tok_nonsense", "resource_missing"),
    ] {
        let id = shop.customer.place(&[("SKU-0003", 1)], method).await?;
        shop.until_status(&id, "cancelled", Some("payment_failed"))
            .await?;
        let order = shop
            .until(&id, "the code of the provider", |order| {
                order["payment"]["failure_code"] == code
            })
            .await?;
        ensure!(order["refund"] == "none", "{order}");
        ensure!(
            order["reservation"].is_null() || order["reservation"] == "released",
            "{order}"
        );
    }
    close(shop).await
}

pub async fn an_order_that_is_out_of_stock_is_refunded(harness: &Harness) -> Outcome {
    let shop = harness.open("out_of_stock", &[]).await?;
    shop.leave_stock("SKU-0007", 1).await?;
    let id = shop
        .customer
        .place(&[("SKU-0008", 1), ("SKU-0007", 2)], "tok_visa")
        .await?;
    shop.until_status(&id, "cancelled", Some("out_of_stock"))
        .await?;
    shop.until(&id, "the refund", |order| {
        order["refund"] == "done"
            && order["payment"]["status"] == "refunded"
            && order["reservation"] == "rejected"
    })
    .await?;
    // Nothing of a rejected order is reserved, not even a product that is in stock.
    let product = shop.customer.get("/api/v1/products/SKU-0008").await?;
    ensure!(product["available"] == 1_000_000, "{product}");
    close(shop).await
}

/// The provider has not been called when the deadline passes: nothing is ever charged.
pub async fn an_order_that_misses_its_deadline_is_cancelled(harness: &Harness) -> Outcome {
    let mut shop = harness
        .open("deadline", &[("order", "ORDER_DEADLINE_SECONDS", "1")])
        .await?;
    shop.deployment.kill("payment").await?;
    let id = shop.customer.place(&[("SKU-0004", 1)], "tok_visa").await?;
    shop.until_status(&id, "cancelled", Some("timed_out"))
        .await?;
    shop.deployment.start_service("payment").await?;
    let order = shop
        .until(&id, "voided", |order| {
            order["payment"]["status"] == "voided"
        })
        .await?;
    ensure!(order["refund"] == "none", "{order}");
    close(shop).await
}

/// The provider has charged, and is away until after the deadline: the order is cancelled and the
/// charge refunded.
pub async fn a_capture_after_the_deadline_is_refunded(harness: &Harness) -> Outcome {
    // Long enough for a busy machine to ask for the charge in time.
    let settings = [("order", "ORDER_DEADLINE_SECONDS", "15")];
    let mut shop = harness.open("late_capture", &settings).await?;
    // On a machine that pauses the service may ask again before the provider is away.
    for _ in 0..5 {
        let stall = json!({ "stall_after_charge_ms": 600_000 });
        shop.fault("tok_visa", stall).await?;
        let id = shop.customer.place(&[("SKU-0005", 1)], "tok_visa").await?;
        shop.until_charged(&id).await?;
        shop.deployment.kill("psp-sandbox").await?;
        let order = shop.until(&id, "the end", has_ended).await?;
        shop.deployment.start_service("psp-sandbox").await?;
        shop.deployment.wait_until_ready("psp-sandbox").await?;
        if order["status"] == "confirmed" {
            continue;
        }
        ensure!(order["reason"] == "timed_out", "{order}");
        shop.until(&id, "the refund", |order| {
            order["refund"] == "done" && order["payment"]["status"] == "refunded"
        })
        .await?;
        return close(shop).await;
    }
    bail!("no charge was late");
}

fn has_ended(order: &serde_json::Value) -> bool {
    matches!(order["status"].as_str(), Some("confirmed" | "cancelled"))
}

/// Refund and release are independent reactions to the cancellation; either may come first. The
/// parts of an order are read from their services at the same time, and may differ for a moment.
fn is_undone(order: &serde_json::Value) -> bool {
    order["refund"] == "done"
        && order["payment"]["status"] == "refunded"
        && order["reservation"] == "released"
}

pub async fn a_cancellation_before_the_charge_voids_the_payment(harness: &Harness) -> Outcome {
    let mut shop = harness.open("cancelled_before", &[]).await?;
    // On a machine that pauses both events may not arrive together, and the first one is charged.
    for _ in 0..10 {
        shop.deployment.kill("payment").await?;
        let id = shop.customer.place(&[("SKU-0006", 1)], "tok_visa").await?;
        ensure!(shop.customer.cancel(&id).await?.status() == 202);
        // A second request changes nothing and is not an error.
        ensure!(shop.customer.cancel(&id).await?.status() == 202);
        shop.deployment.start_service("payment").await?;
        let order = shop
            .until(&id, "voided or refunded", |order| {
                order["payment"]["status"] == "voided" || is_undone(order)
            })
            .await?;
        ensure!(order["reason"] == "customer_request", "{order}");
        if order["payment"]["status"] == "voided" {
            ensure!(order["refund"] == "none", "{order}");
            return close(shop).await;
        }
    }
    anyhow::bail!("every payment was charged before its cancellation arrived")
}

pub async fn a_cancellation_during_the_charge_is_refunded(harness: &Harness) -> Outcome {
    let shop = harness.open("cancelled_during", &[]).await?;
    shop.fault("tok_visa", json!({ "latency_ms": 1500 }))
        .await?;
    let id = shop.customer.place(&[("SKU-0006", 1)], "tok_visa").await?;
    shop.until_charging(&id).await?;
    ensure!(shop.customer.cancel(&id).await?.status() == 202);
    shop.until(&id, "refund and release", is_undone).await?;
    close(shop).await
}

pub async fn a_confirmed_order_can_be_cancelled_and_is_refunded(harness: &Harness) -> Outcome {
    let shop = harness.open("cancelled_after", &[]).await?;
    let order = shop
        .order_until(&[("SKU-0006", 3)], "tok_visa", "confirmed")
        .await?;
    let id = order["id"].as_str().unwrap_or_default();
    ensure!(shop.customer.cancel(id).await?.status() == 202);
    shop.until(id, "refund and release", is_undone).await?;
    // An order that failed cannot be cancelled.
    let declined = shop
        .order_until(&[("SKU-0006", 1)], "tok_chargeDeclined", "cancelled")
        .await?;
    let refused = shop
        .customer
        .cancel(declined["id"].as_str().unwrap_or_default())
        .await?;
    ensure!(refused.status() == 409, "{refused:?}");
    close(shop).await
}

pub async fn the_last_unit_is_sold_once(harness: &Harness) -> Outcome {
    let shop = harness.open("last_unit", &[]).await?;
    for round in 0..5 {
        let sku = format!("SKU-01{round:02}");
        shop.leave_stock(&sku, 1).await?;
        let lines = [(sku.as_str(), 1)];
        let (one, other) = tokio::try_join!(
            shop.customer.place(&lines, "tok_visa"),
            shop.customer.place(&lines, "tok_visa")
        )?;
        let (one, other) = tokio::try_join!(
            shop.until(&one, "the end", has_ended),
            shop.until(&other, "the end", has_ended)
        )?;
        let statuses = [one["status"].as_str(), other["status"].as_str()];
        ensure!(
            statuses.contains(&Some("confirmed")) && statuses.contains(&Some("cancelled")),
            "{one} {other}"
        );
    }
    close(shop).await
}
