//! Every way in which a request can be invalid: the status, and the field that the problem names.

use axum::{
    body::Body,
    http::{Request, request::Builder},
};
use serde_json::{Value, json};

use super::{Api, CUSTOMER, ORDER, Stub, VALID_ORDER, authorization, create_order, get};

fn order(items: Value) -> String {
    json!({ "items": items, "payment_method": "tok_visa" }).to_string()
}

fn order_with(sku: Value, quantity: Value) -> String {
    order(json!([{ "sku": sku, "quantity": quantity }]))
}

fn paid_with(payment_method: &str) -> String {
    let items = json!([{ "sku": "SKU-0001", "quantity": 1 }]);
    json!({ "items": items, "payment_method": payment_method }).to_string()
}

async fn assert_problems(rows: Vec<(&str, Request<Body>, u16, Option<&str>)>) {
    let api = Api::new(Stub::default()).await;
    for (what, request, status, field) in rows {
        let response = api.send(request).await;
        assert_eq!(response.status, status, "{what}: {}", response.text);
        let problem = response.problem();
        assert_eq!(problem["field"].as_str(), field, "{what}: {problem}");
        assert_eq!(problem["retry_safe"], false, "{what}: {problem}");
    }
}

#[tokio::test]
async fn a_wrong_part_of_an_order_is_named() {
    let line = json!({ "sku": "SKU-0001", "quantity": 1 });
    let rows = [
        ("malformed JSON", r#"{"items": ["#.to_owned(), "items"),
        ("no JSON", String::new(), "body"),
        ("text after the order", format!("{VALID_ORDER} x"), "body"),
        ("an array", "[]".to_owned(), "body"),
        (
            "an array of the order's fields",
            json!([[line], "tok_visa"]).to_string(),
            "body",
        ),
        (
            "an array of a line's fields",
            order(json!([["SKU-0001", 1]])),
            "items[0]",
        ),
        ("no lines", order(json!([])), "items"),
        ("101 lines", order(json!(vec![line.clone(); 101])), "items"),
        ("lines that are no list", order(line.clone()), "items"),
        (
            "a quantity of the wrong type",
            order_with(json!("SKU-0001"), json!("two")),
            "items[0].quantity",
        ),
        (
            "a negative quantity",
            order_with(json!("SKU-0001"), json!(-1)),
            "items[0].quantity",
        ),
        (
            "a quantity of 0",
            order_with(json!("SKU-0001"), json!(0)),
            "items[0].quantity",
        ),
        (
            "a quantity of 1000",
            order_with(json!("SKU-0001"), json!(1000)),
            "items[0].quantity",
        ),
        (
            "a quantity beyond all integers",
            order_with(json!("SKU-0001"), json!(1e300)),
            "items[0].quantity",
        ),
        (
            "a fraction",
            order_with(json!("SKU-0001"), json!(1.5)),
            "items[0].quantity",
        ),
        (
            "a quantity of null",
            order_with(json!("SKU-0001"), Value::Null),
            "items[0].quantity",
        ),
        (
            "an empty SKU",
            order_with(json!(""), json!(1)),
            "items[0].sku",
        ),
        (
            "a SKU with NUL",
            order_with(json!("SKU\0"), json!(1)),
            "items[0].sku",
        ),
        (
            "a SKU that is not ASCII",
            order_with(json!("SKÜ"), json!(1)),
            "items[0].sku",
        ),
        (
            "a long SKU",
            order_with(json!("S".repeat(256)), json!(1)),
            "items[0].sku",
        ),
        (
            "an unknown field of a line",
            order(json!([{ "sku": "SKU-0001", "quantity": 1, "price": 1 }])),
            "items[0].price",
        ),
        (
            "an unknown field of the order",
            json!({ "items": [line], "payment_method": "tok_visa", "total": 1 }).to_string(),
            "total",
        ),
        (
            "a field twice",
            r#"{"payment_method":"a","payment_method":"b"}"#.to_owned(),
            "body",
        ),
        ("an empty payment method", paid_with(""), "payment_method"),
        (
            "a payment method with NUL",
            paid_with("tok_\0"),
            "payment_method",
        ),
        (
            "a long payment method",
            paid_with(&"t".repeat(256)),
            "payment_method",
        ),
    ];
    let request = |body: String| create_order().body(body.into()).unwrap();
    let rows = rows.map(|(what, body, field)| (what, request(body), 400, Some(field)));
    assert_problems(rows.into()).await;
}

#[tokio::test]
async fn a_wrong_header_is_named() {
    let without_key = || {
        Request::post("/api/v1/orders")
            .header("authorization", authorization(CUSTOMER))
            .header("content-type", "application/json")
    };
    let without_type = || {
        Request::post("/api/v1/orders")
            .header("authorization", authorization(CUSTOMER))
            .header("idempotency-key", "one")
    };
    let valid = |builder: Builder| builder.body(Body::from(VALID_ORDER)).unwrap();
    let (key, content) = ("idempotency-key", "content-type");
    let rows = vec![
        ("no key", without_key(), 400, key),
        ("an empty key", without_key().header(key, ""), 400, key),
        (
            "a long key",
            without_key().header(key, "k".repeat(256)),
            400,
            key,
        ),
        (
            "a key with a tab",
            without_key().header(key, "a\tb"),
            400,
            key,
        ),
        (
            "a key that is not ASCII",
            without_key().header(key, "ü"),
            400,
            key,
        ),
        (
            "two keys",
            without_key().header(key, "a").header(key, "b"),
            400,
            key,
        ),
        ("no content type", without_type(), 415, content),
        (
            "text",
            without_type().header(content, "text/plain"),
            415,
            content,
        ),
        (
            "another JSON format",
            without_type().header(content, "application/vnd.api+json"),
            415,
            content,
        ),
    ];
    let rows = rows
        .into_iter()
        .map(|(what, builder, status, field)| (what, valid(builder), status, Some(field)));
    assert_problems(rows.collect()).await;
}

#[tokio::test]
async fn a_wrong_part_of_the_url_is_named() {
    let rows = vec![
        ("an id that is no UUID", "/api/v1/orders/1", 400, Some("id")),
        (
            "an id that is no text",
            "/api/v1/orders/%FF/events",
            400,
            Some("id"),
        ),
        ("a limit of 0", "/api/v1/orders?limit=0", 400, Some("limit")),
        (
            "a limit of 101",
            "/api/v1/products?limit=101",
            400,
            Some("limit"),
        ),
        (
            "a limit that is no number",
            "/api/v1/products?limit=x",
            400,
            Some("limit"),
        ),
        (
            "a limit with a sign",
            "/api/v1/products?limit=%2B1",
            400,
            Some("limit"),
        ),
        (
            "an empty limit",
            "/api/v1/products?limit=",
            400,
            Some("limit"),
        ),
        (
            "two limits",
            "/api/v1/products?limit=1&limit=2",
            400,
            Some("query"),
        ),
        (
            "an unknown parameter",
            "/api/v1/orders?page=2",
            400,
            Some("query"),
        ),
        (
            "a broken cursor",
            "/api/v1/orders?cursor=!!",
            400,
            Some("cursor"),
        ),
        (
            "a cursor of another list",
            "/api/v1/orders?cursor=534b552d30303031",
            400,
            Some("cursor"),
        ),
        (
            "a cursor with NUL",
            "/api/v1/products?cursor=534b5500",
            400,
            Some("cursor"),
        ),
        (
            "a product with NUL",
            "/api/v1/products/%00",
            400,
            Some("sku"),
        ),
        (
            "a product that is no text",
            "/api/v1/products/%FF",
            400,
            Some("sku"),
        ),
        ("an unknown path", "/api/v1/nothing", 404, None),
        ("an empty product", "/api/v1/products/", 404, None),
    ];
    let rows = rows.into_iter().map(|(what, path, status, field)| {
        let request = get(path).body(Body::empty()).unwrap();
        (what, request, status, field)
    });
    assert_problems(rows.collect()).await;
}

#[tokio::test]
async fn an_oversized_body_is_refused() {
    let oversized = create_order().body("x".repeat(100_000).into()).unwrap();
    assert_problems(vec![("an oversized body", oversized, 413, Some("body"))]).await;
}

#[tokio::test]
async fn an_unsupported_method_is_refused_with_those_that_are_supported() {
    let api = Api::new(Stub::default()).await;
    let orders = "/api/v1/orders".to_owned();
    let cancel = format!("/api/v1/orders/{ORDER}/cancel");
    for (method, path, allowed) in [
        ("DELETE", &orders, "GET,HEAD,POST"),
        ("OPTIONS", &orders, "GET,HEAD,POST"),
        ("TRACE", &orders, "GET,HEAD,POST"),
        ("GET", &cancel, "POST"),
        ("HEAD", &cancel, "POST"),
    ] {
        let request = Request::builder().method(method).uri(path);
        let response = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status, 405, "{method} {path}");
        let mut allow: Vec<&str> = response.headers["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .collect();
        allow.sort_unstable();
        assert_eq!(allow.join(","), allowed, "{method} {path}");
        if method != "HEAD" {
            response.problem();
        }
    }
}

#[tokio::test]
async fn the_largest_and_the_most_unusual_valid_requests_are_accepted() {
    let api = Api::new(Stub::default()).await;
    let lines: Vec<Value> = (1..=100)
        .map(|number| json!({ "sku": format!("{number:0>255}"), "quantity": 999.0 }))
        .collect();
    let largest = json!({ "items": lines, "payment_method": "~".repeat(255) }).to_string();
    let text = Request::post("/api/v1/orders")
        .header(
            "authorization",
            authorization(CUSTOMER).replace("Bearer", "bEARER"),
        )
        .header("content-type", "Application/JSON; charset=utf-8");
    for (what, request) in [
        ("the largest order", create_order().body(largest.into())),
        (
            "the longest key",
            text.header("idempotency-key", "k".repeat(255))
                .body(VALID_ORDER.into()),
        ),
    ] {
        let response = api.send(request.unwrap()).await;
        assert_eq!(response.status, 201, "{what}: {}", response.text);
    }
    for path in [
        "/api/v1/orders?limit=100&cursor=",
        "/api/v1/products?limit=1",
        "/api/v1/products?cursor=20",
        "/api/v1/products/%20",
    ] {
        let response = api.get(path).await;
        assert_eq!(response.status, 200, "{path}: {}", response.text);
    }
}
