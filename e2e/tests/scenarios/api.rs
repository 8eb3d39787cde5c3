//! The HTTP API: idempotency, bad input, lists, unavailable parts.

use anyhow::ensure;
use client::Customer;
use e2e::{Harness, wait_for};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Duration;

use crate::{Outcome, close};

pub async fn a_repeated_key_returns_the_same_order(harness: &Harness) -> Outcome {
    let shop = harness.open("same_key", &[]).await?;
    let place = async |customer: &Customer, quantity| {
        let request = customer.order_request(&[("SKU-0001", quantity)], "tok_visa", "one");
        customer.send(request).await
    };
    let first = place(&shop.customer, 1).await?;
    let location = first.headers().get("location").cloned();
    let (status, first): (_, Value) = (first.status(), first.json().await?);
    shop.until_status(first["id"].as_str().unwrap_or_default(), "confirmed", None)
        .await?;
    let again = place(&shop.customer, 1).await?;
    ensure!(again.headers().get("location").cloned() == location && location.is_some());
    ensure!(again.headers().contains_key("idempotent-replayed"));
    let (again_status, again): (_, Value) = (again.status(), again.json().await?);
    ensure!(
        (status.as_u16(), &first) == (201, &again) && status == again_status,
        "{first} {again}"
    );
    let other = place(&shop.customer, 2).await?;
    ensure!(other.status() == 422, "{other:?}");
    let problem: Value = other.json().await?;
    ensure!(
        problem["type"] == "urn:sagacity:problem:idempotency-key-reused",
        "{problem}"
    );
    // A key belongs to the customer who sent it.
    let other = shop.customer.another(contracts::CustomerId::new());
    let elsewhere = place(&other, 2).await?;
    ensure!(elsewhere.status() == 201, "{elsewhere:?}");
    close(shop).await
}

pub async fn fifty_clients_with_one_key_create_one_order(harness: &Harness) -> Outcome {
    let shop = harness.open("fifty_clients", &[]).await?;
    let place = async || {
        loop {
            let lines = [("SKU-0002", 1)];
            let request = shop.customer.order_request(&lines, "tok_visa", "fifty");
            let response = shop.customer.send(request).await?;
            match response.status().as_u16() {
                201 => return anyhow::Ok(response.json::<Value>().await?["id"].clone()),
                409 => tokio::time::sleep(Duration::from_millis(10)).await,
                other => anyhow::bail!("{other}: {}", response.text().await?),
            }
        }
    };
    let ids = try_join_all((0..50).map(|_| place())).await?;
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let list = shop.customer.get("/api/v1/orders").await?;
    ensure!(
        list["orders"]
            .as_array()
            .is_some_and(|orders| orders.len() == 1),
        "{list}"
    );
    close(shop).await
}

/// Invalid orders, each with the field that the problem names. Most rules need the order service or
/// the catalogue. All rules of the gateway have their rows in its router tests; the last rows here
/// only show that they hold in a running system.
fn invalid_orders() -> Vec<(&'static str, String, &'static str)> {
    let item = |sku: &str, quantity: u32| json!({ "sku": sku, "quantity": quantity });
    let order = |items: Value| json!({ "items": items, "payment_method": "tok_visa" }).to_string();
    let paid_with = |payment_method: &str| {
        json!({ "items": [item("SKU-0001", 1)], "payment_method": payment_method }).to_string()
    };
    let many: Vec<Value> = (1..=101)
        .map(|nth| item(&format!("SKU-{nth:04}"), 1))
        .collect();
    let twice = order(json!([item("SKU-0001", 1), item("SKU-0001", 2)]));
    let lines = |sku: &str, quantity: u32| order(json!([item(sku, quantity)]));
    vec![
        ("a product twice", twice, "items[1].sku"),
        ("no lines", order(json!([])), "items"),
        ("101 lines", order(json!(many)), "items"),
        ("quantity 0", lines("SKU-0001", 0), "items[0].quantity"),
        (
            "quantity 1000",
            lines("SKU-0001", 1000),
            "items[0].quantity",
        ),
        ("a SKU with NUL", lines("SKU\0", 1), "items[0].sku"),
        ("a SKU with a line feed", lines("SKU\n", 1), "items[0].sku"),
        ("no payment method", paid_with(""), "payment_method"),
        (
            "a payment method with NUL",
            paid_with("tok_\0"),
            "payment_method",
        ),
        (
            "a payment method with a tab",
            paid_with("tok_\t"),
            "payment_method",
        ),
        ("malformed JSON", "{\"items\": [".to_owned(), "items"),
        (
            "an unknown field",
            json!({ "price": 1 }).to_string(),
            "price",
        ),
    ]
}

pub async fn bad_input_is_rejected_and_the_field_is_named(harness: &Harness) -> Outcome {
    let shop = harness.open("bad_input", &[]).await?;
    for (what, body, field) in invalid_orders() {
        let request = shop.customer.request("POST", "/api/v1/orders");
        let request = request
            .header("content-type", "application/json")
            .header("idempotency-key", what)
            .body(body);
        let response = shop.customer.send(request).await?;
        let status = response.status();
        let kind = response.headers().get("content-type").cloned();
        let problem: Value = response.json().await?;
        let is_problem = kind.is_some_and(|kind| kind == "application/problem+json");
        ensure!(status == 400 && is_problem, "{what}: {status} {problem}");
        ensure!(problem["field"] == field, "{what}: {problem}");
        ensure!(problem["retry_safe"] == false, "{what}: {problem}");
    }
    // The order service writes the reason, and the gateway passes it on.
    let lines = [("SKU-0001", 1), ("SKU-9999", 1)];
    let request = shop.customer.order_request(&lines, "tok_visa", "unknown");
    let problem: Value = shop.customer.send(request).await?.json().await?;
    let is_named = problem["status"] == 400 && problem["field"] == "items[1].sku";
    let detail = &problem["detail"];
    ensure!(
        is_named && detail == "there is no product SKU-9999",
        "{problem}"
    );
    for (path, status) in [
        (format!("/api/v1/orders/{}", uuid::Uuid::now_v7()), 404),
        ("/api/v1/products/SKU-9999".to_owned(), 404),
        ("/api/v1/products/%00".to_owned(), 400),
        ("/api/v1/orders?limit=0".to_owned(), 400),
    ] {
        let request = shop.customer.request("GET", &path);
        let response = shop.customer.send(request).await?;
        let has_id = response.headers().contains_key("x-correlation-id");
        ensure!(
            response.status() == status && has_id,
            "{path}: {response:?}"
        );
    }
    let list = shop.customer.get("/api/v1/orders").await?;
    let is_empty = list["orders"] == json!([]);
    ensure!(is_empty, "a rejected order exists: {list}");
    close(shop).await
}

pub async fn another_customer_sees_nothing(harness: &Harness) -> Outcome {
    let shop = harness.open("lists", &[]).await?;
    let mut placed = Vec::new();
    for _ in 0..5 {
        placed.push(shop.customer.place(&[("SKU-0001", 1)], "tok_visa").await?);
    }
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = shop
            .customer
            .get(&format!("/api/v1/orders?limit=2&cursor={cursor}"))
            .await?;
        listed.extend(
            page["orders"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|order| order["id"].clone()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    placed.reverse();
    ensure!(listed == placed, "newest first: {listed:?} {placed:?}");
    let other = shop.customer.another(contracts::CustomerId::new());
    // Every operation on an order that the document names, so that a new one is tried, too.
    let document = other.get("/openapi.json").await?;
    let mut tried = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let operations = item.as_object().into_iter().flatten();
        for (method, _) in operations.filter(|_| path.contains("{id}")) {
            let path = path.replace("{id}", &placed[0]);
            let request = other.request(&method.to_uppercase(), &path);
            let response = other.send(request).await?;
            ensure!(response.status() == 404, "{method} {path}: {response:?}");
            tried.push(path);
        }
    }
    ensure!(tried.len() >= 4, "{tried:?}");
    let products = shop.customer.get("/api/v1/products?limit=3").await?;
    ensure!(
        products["products"][2]["sku"] == "SKU-0003" && products["next_cursor"].is_string(),
        "{products}"
    );
    close(shop).await
}

pub async fn an_order_is_shown_even_if_parts_are_unavailable(harness: &Harness) -> Outcome {
    let mut shop = harness.open("degrades", &[]).await?;
    let order = shop
        .order_until(&[("SKU-0001", 1)], "tok_visa", "confirmed")
        .await?;
    let id = order["id"].as_str().unwrap_or_default();
    for service in ["payment", "inventory", "notification"] {
        shop.deployment.kill(service).await?;
    }
    let order = shop.customer.order(id).await?;
    ensure!(order["status"] == "confirmed", "{order}");
    ensure!(
        order["unavailable"] == json!(["payment", "reservation", "notifications"]),
        "{order}"
    );
    let path = format!("/api/v1/orders/{id}/timeline");
    wait_for("the timeline lacks two logs", async || {
        let timeline = shop.customer.get(&path).await?;
        Ok((timeline["unavailable"] == json!(["payment", "inventory"])).then_some(()))
    })
    .await?;
    shop.deployment.kill("order").await?;
    let lines = [("SKU-0001", 1)];
    wait_for("an order is refused", async || {
        let response = shop.customer.try_place(&lines, "tok_visa", "later").await?;
        let may_retry = response.headers().contains_key("retry-after");
        Ok((response.status() == 503 && may_retry).then_some(()))
    })
    .await?;
    for service in ["inventory", "payment", "notification", "order"] {
        shop.deployment.start_service(service).await?;
        shop.deployment.wait_until_ready(service).await?;
    }
    shop.until(id, "every part is available", |order| {
        order["unavailable"] == json!([])
    })
    .await?;
    close(shop).await
}
