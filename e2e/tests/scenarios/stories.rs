//! What customers live through.

use std::{collections::BTreeSet, pin::pin};

use anyhow::ensure;
use e2e::{Pair, Shop};
use futures::TryStreamExt as _;
use serde_json::json;

use crate::close;

type Result = anyhow::Result<BTreeSet<Pair>>;

/// Told live to the end; and neither a clean start nor an order leaves a complaint in any log.
pub(crate) async fn confirmed() -> Result {
    let shop = Shop::open_new("confirmed").await?;
    let id = shop
        .customer
        .place(&[("SKU-0001", 2), ("SKU-0002", 1)], "tok_visa")
        .await?;
    let story: Vec<_> = pin!(shop.customer.watch(&id).await?).try_collect().await?;
    let told: Vec<&str> = story.iter().map(|told| told.event.as_str()).collect();
    ensure!(
        told.first() == Some(&"order.created.v1") && told.last() == Some(&"end"),
        "{told:?}"
    );
    ensure!(
        told.contains(&"payment.completed.v1") && told.contains(&"order.confirmed.v1"),
        "{told:?}"
    );
    let order = shop
        .until(&id, "told", |order| {
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
    let timeline = shop
        .customer
        .get(&format!("/api/v1/orders/{id}/timeline"))
        .await?;
    let events = timeline["events"].as_array().cloned().unwrap_or_default();
    ensure!(events.len() == 5, "{timeline}");
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
    let complaints = shop.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:#?}");
    close(shop).await
}

pub(crate) async fn declined() -> Result {
    let shop = Shop::open("declined", &[]).await?;
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

pub(crate) async fn out_of_stock_is_refunded() -> Result {
    let shop = Shop::open("out_of_stock", &[]).await?;
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
    // Nothing of a rejected order is set aside, not even what there is enough of.
    let product = shop.customer.get("/api/v1/products/SKU-0008").await?;
    ensure!(product["available"] == 1_000_000, "{product}");
    close(shop).await
}

/// The provider has not been asked when the deadline passes: nothing is ever charged.
pub(crate) async fn deadline_passes() -> Result {
    let mut shop = Shop::open("deadline", &[("order", "ORDER_DEADLINE_SECONDS", "1")]).await?;
    shop.site.kill("payment").await?;
    let id = shop.customer.place(&[("SKU-0004", 1)], "tok_visa").await?;
    shop.until_status(&id, "cancelled", Some("timed_out"))
        .await?;
    shop.site.start_service("payment").await?;
    let order = shop
        .until(&id, "voided", |order| {
            order["payment"]["status"] == "voided"
        })
        .await?;
    ensure!(order["refund"] == "none", "{order}");
    close(shop).await
}

/// The provider has charged, but its answer does not come before the deadline: everything goes
/// back.
pub(crate) async fn late_capture_is_refunded() -> Result {
    let shop = Shop::open("late_capture", &[("order", "ORDER_DEADLINE_SECONDS", "1")]).await?;
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

pub(crate) async fn cancelled_before_payment() -> Result {
    let mut shop = Shop::open("cancelled_before", &[]).await?;
    shop.site.kill("payment").await?;
    let id = shop.customer.place(&[("SKU-0006", 1)], "tok_visa").await?;
    ensure!(shop.customer.cancel(&id).await?.status() == 202);
    // Asking again changes nothing and is no error.
    ensure!(shop.customer.cancel(&id).await?.status() == 202);
    shop.site.start_service("payment").await?;
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

pub(crate) async fn cancelled_during_payment() -> Result {
    let shop = Shop::open("cancelled_during", &[]).await?;
    shop.fault("tok_visa", json!({ "latency_ms": 1500 }))
        .await?;
    let id = shop.customer.place(&[("SKU-0006", 1)], "tok_visa").await?;
    shop.until_charging(&id).await?;
    ensure!(shop.customer.cancel(&id).await?.status() == 202);
    let order = shop
        .until(&id, "the refund", |order| order["refund"] == "done")
        .await?;
    ensure!(
        order["payment"]["status"] == "refunded" && order["reservation"] == "released",
        "{order}"
    );
    close(shop).await
}

pub(crate) async fn cancelled_after_confirmation() -> Result {
    let shop = Shop::open("cancelled_after", &[]).await?;
    let order = shop
        .order_until(&[("SKU-0006", 3)], "tok_visa", "confirmed")
        .await?;
    let id = order["id"].as_str().unwrap_or_default();
    ensure!(shop.customer.cancel(id).await?.status() == 202);
    let order = shop
        .until(id, "the refund", |order| order["refund"] == "done")
        .await?;
    ensure!(
        order["reservation"] == "released" && order["payment"]["status"] == "refunded",
        "{order}"
    );
    // What failed by itself cannot be cancelled.
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

pub(crate) async fn two_orders_for_the_last_unit() -> Result {
    let shop = Shop::open("last_unit", &[]).await?;
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
