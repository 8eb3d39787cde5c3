//! The HTTP API: idempotency, bad input, lists, parts that are away.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use devstack::{Reaper, TemporaryDirectory};
use e2e::{Pair, Shop};
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::close;

type Result = anyhow::Result<BTreeSet<Pair>>;

pub(crate) async fn same_key_twice() -> Result {
    let shop = Shop::open("same_key", &[]).await?;
    let first = shop
        .customer
        .try_place(&[("SKU-0001", 1)], "tok_visa", "one")
        .await?;
    let location = first.headers().get("location").cloned();
    let (status, first): (_, Value) = (first.status(), first.json().await?);
    shop.until_status(first["id"].as_str().unwrap_or_default(), "confirmed", None)
        .await?;
    let again = shop
        .customer
        .try_place(&[("SKU-0001", 1)], "tok_visa", "one")
        .await?;
    ensure!(again.headers().get("location").cloned() == location && location.is_some());
    ensure!(again.headers().contains_key("idempotent-replayed"));
    let (again_status, again): (_, Value) = (again.status(), again.json().await?);
    ensure!(
        (status.as_u16(), &first) == (201, &again) && status == again_status,
        "{first} {again}"
    );
    let other = shop
        .customer
        .try_place(&[("SKU-0001", 2)], "tok_visa", "one")
        .await?;
    ensure!(other.status() == 422, "{other:?}");
    let problem: Value = other.json().await?;
    ensure!(
        problem["type"] == "urn:sagacity:problem:idempotency-key-reused",
        "{problem}"
    );
    // Keys belong to the customer who sent them.
    let stranger = shop.customer.another(contracts::CustomerId::new());
    let elsewhere = stranger
        .try_place(&[("SKU-0001", 2)], "tok_visa", "one")
        .await?;
    ensure!(elsewhere.status() == 201, "{elsewhere:?}");
    close(shop).await
}

pub(crate) async fn same_key_from_fifty_clients() -> Result {
    let shop = Shop::open("fifty_clients", &[]).await?;
    let ask = async || {
        loop {
            let answer = shop
                .customer
                .try_place(&[("SKU-0002", 1)], "tok_visa", "fifty")
                .await?;
            match answer.status().as_u16() {
                201 => return anyhow::Ok(answer.json::<Value>().await?["id"].clone()),
                409 => tokio::time::sleep(Duration::from_millis(10)).await,
                other => anyhow::bail!("{other}: {}", answer.text().await?),
            }
        }
    };
    let ids = try_join_all((0..50).map(|_| ask())).await?;
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

pub(crate) async fn bad_input_is_refused_by_name() -> Result {
    let shop = Shop::open("bad_input", &[]).await?;
    let item = |sku: &str, quantity: Value| json!({ "sku": sku, "quantity": quantity });
    let order = |items: Value| json!({ "items": items, "payment_method": "tok_visa" }).to_string();
    let many: Vec<Value> = (1..=101)
        .map(|number| item(&format!("SKU-{number:04}"), json!(1)))
        .collect();
    for (what, body, field) in [
        ("malformed JSON", "{\"items\": [".to_owned(), "items"),
        (
            "trailing text",
            format!("{} x", order(json!([item("SKU-0001", json!(1))]))),
            "body",
        ),
        ("no object", "[]".to_owned(), "body"),
        (
            "fields in order",
            r#"[[{"sku":"SKU-0001","quantity":1}],"tok_visa"]"#.to_owned(),
            "body",
        ),
        (
            "fields of an item in order",
            order(json!([["SKU-0001", 1]])),
            "items[0]",
        ),
        (
            "a wrong type",
            order(json!([item("SKU-0001", json!("two"))])),
            "items[0].quantity",
        ),
        (
            "a negative quantity",
            order(json!([item("SKU-0001", json!(-1))])),
            "items[0].quantity",
        ),
        (
            "a quantity of zero",
            order(json!([item("SKU-0001", json!(0))])),
            "items[0].quantity",
        ),
        (
            "a huge quantity",
            order(json!([item("SKU-0001", json!(1000))])),
            "items[0].quantity",
        ),
        (
            "a fraction",
            order(json!([item("SKU-0001", json!(1.5))])),
            "items[0].quantity",
        ),
        (
            "an unknown SKU",
            order(json!([
                item("SKU-0001", json!(1)),
                item("SKU-9999", json!(1))
            ])),
            "items[1].sku",
        ),
        (
            "an unknown field",
            r#"{"items":[{"sku":"SKU-0001","quantity":1,"price":1}],"payment_method":"tok_visa"}"#
                .to_owned(),
            "items[0].price",
        ),
        ("no items", order(json!([])), "items"),
        (
            "a line twice",
            order(json!([
                item("SKU-0001", json!(1)),
                item("SKU-0001", json!(1))
            ])),
            "items[1].sku",
        ),
        ("too many lines", order(json!(many)), "items"),
        (
            "no payment method",
            r#"{"items":[{"sku":"SKU-0001","quantity":1}],"payment_method":""}"#.to_owned(),
            "payment_method",
        ),
        (
            "what no database can hold",
            r#"{"items":[{"sku":"SKU-0001","quantity":1}],"payment_method":"tok_\u0000"}"#
                .to_owned(),
            "payment_method",
        ),
        (
            "a SKU that no database can hold",
            order(json!([item("SKU\0", json!(1))])),
            "items[0].sku",
        ),
    ] {
        let request = shop
            .customer
            .request("POST", "/api/v1/orders")
            .header("content-type", "application/json");
        let answer = request
            .header("idempotency-key", what)
            .body(body)
            .send()
            .await?;
        let (status, kind) = (
            answer.status(),
            answer.headers().get("content-type").cloned(),
        );
        let problem: Value = answer.json().await?;
        ensure!(
            status == 400 && kind.is_some_and(|kind| kind == "application/problem+json"),
            "{what}: {problem}"
        );
        ensure!(
            problem["field"] == field && problem["retry_safe"] == false,
            "{what}: {problem}"
        );
    }
    let fine = order(json!([item("SKU-0001", json!(1))]));
    let post = |path: &str| shop.customer.request("POST", path);
    let place = || post("/api/v1/orders").header("idempotency-key", "k");
    let json_place = || place().header("content-type", "application/json");
    let nobody = client::http_client()?;
    let gateway = &shop.endpoints().gateway;
    for (what, request, status, field) in [
        (
            "an oversized body",
            json_place().body("x".repeat(100_000)),
            413,
            Some("body"),
        ),
        (
            "another content type",
            place()
                .header("content-type", "text/plain")
                .body(fine.clone()),
            415,
            Some("content-type"),
        ),
        (
            "no content type",
            place().body(fine.clone()),
            415,
            Some("content-type"),
        ),
        (
            "no key",
            post("/api/v1/orders")
                .header("content-type", "application/json")
                .body(fine.clone()),
            400,
            Some("idempotency-key"),
        ),
        (
            "a key too long",
            post("/api/v1/orders")
                .header("content-type", "application/json")
                .header("idempotency-key", "k".repeat(256))
                .body(fine.clone()),
            400,
            Some("idempotency-key"),
        ),
        (
            "no customer",
            nobody.get(format!("{gateway}/api/v1/orders")),
            400,
            Some("x-customer-id"),
        ),
        (
            "a malformed customer",
            nobody
                .get(format!("{gateway}/api/v1/orders"))
                .header("x-customer-id", "me"),
            400,
            Some("x-customer-id"),
        ),
        (
            "a malformed id",
            shop.customer.request("GET", "/api/v1/orders/1"),
            400,
            Some("id"),
        ),
        (
            "an unknown id",
            shop.customer
                .request("GET", &format!("/api/v1/orders/{}", uuid::Uuid::now_v7())),
            404,
            None,
        ),
        (
            "a wrong method",
            shop.customer.request("DELETE", "/api/v1/orders"),
            405,
            None,
        ),
        (
            "an unknown path",
            shop.customer.request("GET", "/api/v1/nothing"),
            404,
            None,
        ),
        (
            "a limit of zero",
            shop.customer.request("GET", "/api/v1/orders?limit=0"),
            400,
            Some("limit"),
        ),
        (
            "a limit too large",
            shop.customer.request("GET", "/api/v1/products?limit=101"),
            400,
            Some("limit"),
        ),
        (
            "no number as limit",
            shop.customer.request("GET", "/api/v1/products?limit=x"),
            400,
            Some("limit"),
        ),
        (
            "a broken cursor",
            shop.customer.request("GET", "/api/v1/orders?cursor=!!"),
            400,
            Some("cursor"),
        ),
        (
            "a foreign cursor",
            shop.customer.request("GET", "/api/v1/orders?cursor=U0tV"),
            400,
            Some("cursor"),
        ),
        (
            "an unknown parameter",
            shop.customer.request("GET", "/api/v1/orders?page=2"),
            400,
            Some("query"),
        ),
        (
            "a cursor with NUL",
            shop.customer
                .request("GET", "/api/v1/products?cursor=U0tVAA"),
            400,
            Some("cursor"),
        ),
        (
            "a product with NUL",
            shop.customer.request("GET", "/api/v1/products/%00"),
            400,
            Some("sku"),
        ),
        (
            "a product that is no text",
            shop.customer.request("GET", "/api/v1/products/%FF"),
            400,
            Some("sku"),
        ),
        (
            "an unknown product",
            shop.customer.request("GET", "/api/v1/products/SKU-9999"),
            404,
            None,
        ),
    ] {
        let answer = request.send().await?;
        ensure!(answer.headers().contains_key("x-correlation-id"), "{what}");
        let (found, problem): (_, Value) = (answer.status().as_u16(), answer.json().await?);
        ensure!(
            found == status && problem["field"].as_str() == field,
            "{what}: {found} {problem}"
        );
    }
    let list = shop.customer.get("/api/v1/orders").await?;
    ensure!(list["orders"] == json!([]), "half an order: {list}");
    close(shop).await
}

pub(crate) async fn lists_and_strangers() -> Result {
    let shop = Shop::open("lists", &[]).await?;
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
    let stranger = shop.customer.another(contracts::CustomerId::new());
    for path in ["", "/timeline", "/events"] {
        let answer = stranger
            .request("GET", &format!("/api/v1/orders/{}{path}", placed[0]))
            .send()
            .await?;
        ensure!(answer.status() == 404, "{path}: {answer:?}");
    }
    ensure!(stranger.cancel(&placed[0]).await?.status() == 404);
    let products = shop.customer.get("/api/v1/products?limit=3").await?;
    ensure!(
        products["products"][2]["sku"] == "SKU-0003" && products["next_cursor"].is_string(),
        "{products}"
    );
    close(shop).await
}

pub(crate) async fn composed_order_degrades() -> Result {
    let mut shop = Shop::open("degrades", &[]).await?;
    let order = shop
        .order_until(&[("SKU-0001", 1)], "tok_visa", "confirmed")
        .await?;
    let id = order["id"].as_str().unwrap_or_default();
    for service in ["payment", "inventory", "notification"] {
        shop.site.kill(service).await?;
    }
    let order = shop.customer.order(id).await?;
    ensure!(order["status"] == "confirmed", "{order}");
    ensure!(
        order["unavailable"] == json!(["payment", "reservation", "notifications"]),
        "{order}"
    );
    let timeline = shop
        .customer
        .get(&format!("/api/v1/orders/{id}/timeline"))
        .await?;
    ensure!(
        timeline["unavailable"] == json!(["payment", "inventory"]),
        "{timeline}"
    );
    shop.site.kill("order").await?;
    let answer = shop
        .customer
        .try_place(&[("SKU-0001", 1)], "tok_visa", "later")
        .await?;
    ensure!(
        answer.status() == 503 && answer.headers().contains_key("retry-after"),
        "{answer:?}"
    );
    for service in ["inventory", "payment", "notification", "order"] {
        shop.site.start_service(service).await?;
        shop.site.wait_until_ready(service).await?;
    }
    shop.until(id, "everything", |order| order["unavailable"] == json!([]))
        .await?;
    close(shop).await
}

pub(crate) async fn documentation_is_served() -> Result {
    let shop = Shop::open("documentation", &[]).await?;
    let document = shop.customer.get("/openapi.json").await?;
    ensure!(
        document["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1")),
        "{document}"
    );
    for path in [
        "/api/v1/orders",
        "/api/v1/orders/{id}",
        "/api/v1/orders/{id}/cancel",
        "/api/v1/orders/{id}/events",
        "/api/v1/orders/{id}/timeline",
        "/api/v1/products",
        "/api/v1/products/{sku}",
    ] {
        ensure!(
            document["paths"][path].is_object(),
            "{path} is not documented"
        );
    }
    let page = shop
        .customer
        .request("GET", "/docs/")
        .send()
        .await?
        .error_for_status()?
        .text()
        .await?;
    ensure!(
        !page.contains("https://") && !page.contains("//cdn"),
        "the page needs the internet: {page}"
    );
    let scripts = page
        .split("src=\"./")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    for script in scripts {
        shop.customer
            .request("GET", &format!("/docs/{script}"))
            .send()
            .await?
            .error_for_status()?;
    }
    close(shop).await
}

/// The browser that this machine has, if any.
pub(crate) fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    ];
    std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .find(|path| path.is_file())
}

/// The page shows every call in a browser that cannot reach anything but the gateway.
pub(crate) async fn documentation_in_a_browser() -> Result {
    let shop = Shop::open("browser", &[]).await?;
    let profile = TemporaryDirectory::new(&Reaper::new()?)?;
    let browser = tokio::process::Command::new(browser().context("no browser on the PATH")?)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-sync",
            "--disable-quic",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--virtual-time-budget=30000",
        ])
        .args([
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("{}/docs/", shop.endpoints().gateway))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), browser)
        .await
        .context("the browser hangs")??;
    let page = String::from_utf8_lossy(&output.stdout);
    let document = shop.customer.get("/openapi.json").await?;
    for path in document["paths"]
        .as_object()
        .context("the document has paths")?
        .keys()
    {
        ensure!(
            page.contains(&format!("data-path=\"{path}\"")),
            "{path} is not shown: {page}"
        );
    }
    close(shop).await
}

/// A missing or wrong setting stops the process at once, with the setting's name and what is
/// expected.
pub(crate) async fn wrong_settings_are_named() -> Result {
    let programs = devstack::test::programs().await?;
    let database = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
    for (program, settings, expected) in [
        ("order", vec![], "DATABASE_URL"),
        (
            "order",
            vec![("DATABASE_URL", "postgres//order:do-not-tell@x/y")],
            "invalid value '(hidden)'",
        ),
        (
            "order",
            vec![("DATABASE_URL", "mysql://x")],
            "expected postgres://user:password@host:port/database",
        ),
        (
            "order",
            vec![database, ("NATS_URL", "localhost")],
            "expected nats://host:port",
        ),
        (
            "order",
            vec![database, ("INVENTORY_URL", "inventory")],
            "expected http://host:port",
        ),
        (
            "order",
            vec![database, ("ORDER_DEADLINE_SECONDS", "0")],
            "--deadline-seconds",
        ),
        ("payment", vec![database], "PROVIDER_API_KEY"),
        (
            "payment",
            vec![database, ("PROVIDER_API_KEY", "do-not-tell")],
            "expected a secret key of the provider",
        ),
        (
            "payment",
            vec![
                database,
                ("PROVIDER_API_KEY", "sk_test_sagacity"),
                ("ENVIRONMENT", "production"),
            ],
            "production needs one of its own",
        ),
        (
            "order",
            vec![
                ("DATABASE_URL", "postgres://order:sagacity@db:5432/order"),
                ("ENVIRONMENT", "production"),
            ],
            "production needs one of its own",
        ),
        (
            "inventory",
            vec![database, ("INITIAL_STOCK", "-1")],
            "--initial-stock",
        ),
        (
            "notification",
            vec![database, ("LISTEN", "everywhere")],
            "--listen",
        ),
        (
            "gateway",
            vec![("ORDER_URL", "ftp://order")],
            "expected http://host:port",
        ),
        ("psp-sandbox", vec![], "DATA_DIR"),
    ] {
        let mut command = tokio::process::Command::new(programs.join(program));
        let output = command
            .env_clear()
            .envs(settings.iter().copied())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(10), output).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2),
            "{program} {settings:?} went on: {said}"
        );
        ensure!(
            said.contains(expected),
            "{program} {settings:?}: expected {expected:?} in {said}"
        );
        ensure!(
            !said.contains("do-not-tell"),
            "{program} shows a secret: {said}"
        );
    }
    Ok(BTreeSet::new())
}
