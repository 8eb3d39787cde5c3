//! The erasure of a customer in a whole system, from the command line.

use anyhow::{Context as _, ensure};
use contracts::{CustomerId, Service};
use devstack::{
    Reaper, TemporaryDirectory,
    jetstream::publish,
    test::{programs, wait_for},
};
use e2e::{Harness, Shop, read_stream};
use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio::process::Command;

use crate::{Outcome, close};

const STREAMS: [&str; 6] = [
    "ORDER",
    "PAYMENT",
    "INVENTORY",
    "DEAD_LETTER",
    "REDRIVE",
    "AUDIT",
];

/// Orders that were confirmed, declined and refunded are erased; those of others stay.
pub async fn a_customer_who_is_erased_is_found_nowhere(harness: &Harness) -> Outcome {
    let shop = harness.open_new("erased").await?;
    let lines = [("SKU-0001", 1)];
    let (customer, other) = (&shop.customer, shop.customer.another(CustomerId::new()));
    let kept = other.place(&lines, "tok_visa").await?;
    let mut orders = Vec::new();
    for (method, status) in [
        ("tok_visa", "confirmed"),
        ("tok_chargeDeclined", "cancelled"),
        ("tok_visa", "confirmed"),
    ] {
        let order = shop.order_until(&lines, method, status).await?;
        orders.push(
            order["id"]
                .as_str()
                .context("an order has an id")?
                .to_owned(),
        );
    }
    let refunded = &orders[2];
    customer.cancel(refunded).await?.error_for_status()?;
    let is_told = |order: &serde_json::Value| {
        let told = order["notifications"].as_array();
        order["refund"] == "done" && told.is_some_and(|told| told.len() == 3)
    };
    shop.until(refunded, "the refund", is_told).await?;
    redrive(&shop).await?;

    refused(&shop, "order: 3 rows").await?;
    a_day_later(&shop).await?;
    let before = mentions(&shop).await?;
    ensure!(
        before.iter().any(|place| place.contains("outbox")),
        "{before:?}"
    );

    let (is_done, said) = erase(&shop, &[]).await?;
    ensure!(
        is_done && said.contains("erased 3 idempotency_keys, 3 orders"),
        "{said}"
    );
    ensure!(said.contains("deleted 1 redriven events"), "{said}");
    let after = mentions(&shop).await?;
    ensure!(after.is_empty(), "{after:#?}");
    for order in &orders {
        let path = format!("/api/v1/orders/{order}");
        let found = customer.send(customer.request("GET", &path)).await?;
        ensure!(found.status() == 404, "{found:?}");
    }
    let listed = customer.get("/api/v1/orders").await?;
    ensure!(listed["orders"] == json!([]), "{listed}");
    wait_for("the order of another is confirmed", async || {
        Ok((other.order(&kept).await?["status"] == "confirmed").then_some(()))
    })
    .await?;
    let (is_done, said) = erase(&shop, &[]).await?;
    ensure!(
        is_done && said.contains("erased 0 idempotency_keys, 0 orders"),
        "{said}"
    );
    close(shop).await
}

/// Neither while an order is being charged nor while a dead letter could be redriven.
pub async fn a_customer_is_not_erased_while_something_is_under_way(harness: &Harness) -> Outcome {
    let shop = harness.open_new("not_erased").await?;
    shop.fault("tok_visa", json!({ "latency_ms": 5000 }))
        .await?;
    let id = shop.customer.place(&[("SKU-0001", 1)], "tok_visa").await?;
    shop.until_charging(&id).await?;
    age_rows(&shop).await?;
    refused(&shop, "order: 1 rows").await?;
    refused(&shop, "payment: 1 rows").await?;
    shop.no_faults().await?;
    shop.until_status(&id, "confirmed", None).await?;
    age_rows(&shop).await?;

    // Inventory stores nothing about a customer, but its dead letter does.
    let jetstream = shop.jetstream().await?;
    let subject = "dlq.inventory.order.cancelled.v1".to_owned();
    let payload = format!("about {}", shop.customer.id).into_bytes();
    publish(&jetstream, subject, Default::default(), payload).await?;
    refused(&shop, "inventory: dead letter 1").await?;
    let stream = jetstream.get_stream("DEAD_LETTER").await?;
    stream.delete_message(1).await?;
    until_erasable(&shop).await?;
    close(shop).await
}

/// Runs `sagacity erase`; returns whether it succeeded, and what it said.
async fn erase(shop: &Shop, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let state = TemporaryDirectory::new(&Reaper::new()?)?;
    let _in_use = devstack::state::claim(state.path(), false, "a system")?;
    shop.endpoints().write(state.path())?;
    let mut command = Command::new(programs().await?.join("sagacity"));
    command
        .args([
            "erase",
            &shop.customer.id.to_string(),
            "--by",
            "an operator",
        ])
        .arg("--state")
        .arg(state.path())
        .args(arguments);
    let output = command.kill_on_drop(true).output().await?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok((output.status.success(), said))
}

/// Waits until the relays have noted that every subscriber has handled all events.
async fn until_erasable(shop: &Shop) -> anyhow::Result<()> {
    wait_for("the customer can be erased", async || {
        let (is_done, said) = erase(shop, &["--dry-run"]).await?;
        ensure!(is_done, "{said}");
        Ok(Some(()))
    })
    .await
}

async fn refused(shop: &Shop, why: &str) -> anyhow::Result<()> {
    let (is_done, said) = erase(shop, &[]).await?;
    ensure!(!is_done && said.contains(why), "expected {why}: {said}");
    ensure!(said.contains("nothing is erased"), "{said}");
    Ok(())
}

/// Everything becomes a day older, and streams drop what is a day old.
async fn a_day_later(shop: &Shop) -> anyhow::Result<()> {
    age_rows(shop).await?;
    until_erasable(shop).await?;
    let jetstream = shop.jetstream().await?;
    for stream in ["ORDER", "PAYMENT", "INVENTORY"] {
        jetstream.get_stream(stream).await?.purge().await?;
    }
    Ok(())
}

async fn age_rows(shop: &Shop) -> anyhow::Result<()> {
    for (service, table, column) in [
        ("order", "orders", "updated_at"),
        ("payment", "payments", "updated_at"),
        ("notification", "notifications", "created_at"),
    ] {
        let age = format!("UPDATE {table} SET {column} = {column} - interval '73 hours'");
        let mut database = shop.database(service).await?;
        sqlx::query(AssertSqlSafe(age))
            .execute(&mut database)
            .await?;
    }
    Ok(())
}

/// Redrives an event that its service has applied: the inbox drops it, and the stream keeps it.
async fn redrive(shop: &Shop) -> anyhow::Result<()> {
    let jetstream = shop.jetstream().await?;
    let id = shop.customer.id.to_string();
    let events = read_stream(&jetstream, "ORDER").await?.into_iter();
    let mut confirmed = events.filter(|event| event.subject == "order.confirmed.v1");
    let event = confirmed.find(|event| String::from_utf8_lossy(&event.payload).contains(&id));
    let event = event.context("an order was confirmed")?;
    let subject = format!("redrive.notification.{}", event.subject);
    let headers = event.headers.unwrap_or_default();
    publish(&jetstream, subject, headers, event.payload).await
}

/// Where the customer's id is: tables, streams and logs.
async fn mentions(shop: &Shop) -> anyhow::Result<Vec<String>> {
    let id = shop.customer.id.to_string();
    let mut found = Vec::new();
    for service in Service::ALL {
        let mut database = shop.database(service.name()).await?;
        let tables = "SELECT table_name::text FROM information_schema.tables
                      WHERE table_schema = 'public' AND table_type = 'BASE TABLE'";
        let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut database).await?;
        ensure!(!tables.is_empty(), "{service} has no tables");
        for table in tables {
            // As an id, and as the text in a payload.
            let count = format!(
                "SELECT count(*) FROM \"{table}\" AS t WHERE t::text LIKE '%' || $1::text || '%'
                     OR t::text LIKE '%' || encode(convert_to($1::text, 'UTF8'), 'hex') || '%'"
            );
            let count = sqlx::query_scalar::<_, i64>(AssertSqlSafe(count)).bind(&id);
            let rows = count.fetch_one(&mut database).await?;
            found.extend((rows > 0).then(|| format!("{rows} rows of {service}.{table}")));
        }
        let log = shop.deployment.log(service.name()).await?;
        found.extend(log.contains(&id).then(|| format!("the log of {service}")));
    }
    let jetstream = shop.jetstream().await?;
    for stream in STREAMS {
        for message in read_stream(&jetstream, stream).await? {
            let text = format!("{:?}", message.headers);
            let payload = String::from_utf8_lossy(&message.payload);
            if payload.contains(&id) || text.contains(&id) {
                found.push(format!("message {} of {stream}", message.sequence));
            }
        }
    }
    Ok(found)
}
