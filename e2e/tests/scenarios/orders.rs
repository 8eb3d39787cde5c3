//! Orders from the first request to their end.

use std::pin::pin;

use anyhow::ensure;
use e2e::{Harness, Shop, wait_for};
use futures::TryStreamExt as _;
use serde_json::json;

use crate::{Outcome, close};

/// The live stream shows every event, and neither a clean start nor an order logs a warning.
pub async fn an_order_is_confirmed_and_streamed_live(harness: &Harness) -> Outcome {
    let shop = harness.open_new("confirmed").await?;
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
    let order = shop
        .until(&id, "the notification", |order| {
            order["notifications"]
                .as_array()
                .is_some_and(|n| n.len() == 1)
        })
        .await?;
    ensure!(
        order["status"] == "confirmed" && order["refund"] == "none",
        "{order}"
    );
    ensure!(
        order["payment"]["status"] == "completed" && order["payment"]["amount"] == order["total"],
        "{order}"
    );
    ensure!(
        order["reservation"] == "reserved" && order["unavailable"] == json!([]),
        "{order}"
    );
    ensure!(
        order["notifications"][0]["kind"] == "order_confirmed",
        "{order}"
    );
    check_timeline(&shop, &id).await?;
    let warnings = shop.warnings().await?;
    ensure!(warnings.is_empty(), "{warnings:#?}");
    close(shop).await
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
        Ok((events.len() >= EVENTS.len()).then_some((timeline, events)))
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
    ] {
        let order = shop
            .order_until(&[("SKU-0003", 1)], method, "cancelled")
            .await?;
        ensure!(
            order["reason"] == "payment_failed" && order["refund"] == "none",
            "{order}"
        );
        ensure!(order["payment"]["failure_code"] == code, "{order}");
        ensure!(
            order["reservation"].is_null() || order["reservation"] == "released",
            "{order}"
        );
    }
    let unknown = shop
        .order_until(&[("SKU-0003", 1)], "tok_nonsense", "cancelled")
        .await?;
    ensure!(
        unknown["payment"]["failure_code"] == "resource_missing",
        "{unknown}"
    );
    close(shop).await
}

pub async fn an_order_that_is_out_of_stock_is_refunded(harness: &Harness) -> Outcome {
    let shop = harness.open("out_of_stock", &[]).await?;
    shop.leave_stock("SKU-0007", 1).await?;
    let id = shop
        .customer
        .place(&[("SKU-0008", 1), ("SKU-0007", 2)], "tok_visa")
        .await?;
    let order = shop
        .until(&id, "the refund", |order| order["refund"] == "done")
        .await?;
    ensure!(
        order["status"] == "cancelled" && order["reason"] == "out_of_stock",
        "{order}"
    );
    ensure!(
        order["payment"]["status"] == "refunded" && order["reservation"] == "rejected",
        "{order}"
    );
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

/// The provider has charged, but its response misses the deadline: the order is cancelled and the
/// charge refunded.
pub async fn a_capture_after_the_deadline_is_refunded(harness: &Harness) -> Outcome {
    let shop = harness
        .open("late_capture", &[("order", "ORDER_DEADLINE_SECONDS", "1")])
        .await?;
    shop.fault("tok_visa", json!({ "stall_after_charge_ms": 7000 }))
        .await?;
    let id = shop.customer.place(&[("SKU-0005", 1)], "tok_visa").await?;
    shop.until_status(&id, "cancelled", Some("timed_out"))
        .await?;
    let order = shop
        .until(&id, "the refund", |order| order["refund"] == "done")
        .await?;
    ensure!(order["payment"]["status"] == "refunded", "{order}");
    close(shop).await
}

/// Refund and release are independent reactions to the cancellation; either may come first.
fn is_undone(order: &serde_json::Value) -> bool {
    order["refund"] == "done" && order["reservation"] == "released"
}

pub async fn a_cancellation_before_the_charge_voids_the_payment(harness: &Harness) -> Outcome {
    let mut shop = harness.open("cancelled_before", &[]).await?;
    shop.deployment.kill("payment").await?;
    let id = shop.customer.place(&[("SKU-0006", 1)], "tok_visa").await?;
    ensure!(shop.customer.cancel(&id).await?.status() == 202);
    // A second request changes nothing and is not an error.
    ensure!(shop.customer.cancel(&id).await?.status() == 202);
    shop.deployment.start_service("payment").await?;
    let order = shop
        .until(&id, "voided", |order| {
            order["payment"]["status"] == "voided"
        })
        .await?;
    ensure!(
        order["reason"] == "customer_request" && order["refund"] == "none",
        "{order}"
    );
    close(shop).await
}

pub async fn a_cancellation_during_the_charge_is_refunded(harness: &Harness) -> Outcome {
    let shop = harness.open("cancelled_during", &[]).await?;
    shop.fault("tok_visa", json!({ "latency_ms": 1500 }))
        .await?;
    let id = shop.customer.place(&[("SKU-0006", 1)], "tok_visa").await?;
    shop.until_charging(&id).await?;
    ensure!(shop.customer.cancel(&id).await?.status() == 202);
    let order = shop.until(&id, "refund and release", is_undone).await?;
    ensure!(order["payment"]["status"] == "refunded", "{order}");
    close(shop).await
}

pub async fn a_confirmed_order_can_be_cancelled_and_is_refunded(harness: &Harness) -> Outcome {
    let shop = harness.open("cancelled_after", &[]).await?;
    let order = shop
        .order_until(&[("SKU-0006", 3)], "tok_visa", "confirmed")
        .await?;
    let id = order["id"].as_str().unwrap_or_default();
    ensure!(shop.customer.cancel(id).await?.status() == 202);
    let order = shop.until(id, "refund and release", is_undone).await?;
    ensure!(order["payment"]["status"] == "refunded", "{order}");
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
        let ended = |order: &serde_json::Value| {
            matches!(order["status"].as_str(), Some("confirmed" | "cancelled"))
        };
        let (one, other) = tokio::try_join!(
            shop.until(&one, "the end", ended),
            shop.until(&other, "the end", ended)
        )?;
        let statuses = [one["status"].as_str(), other["status"].as_str()];
        ensure!(
            statuses.contains(&Some("confirmed")) && statuses.contains(&Some("cancelled")),
            "{one} {other}"
        );
    }
    close(shop).await
}
