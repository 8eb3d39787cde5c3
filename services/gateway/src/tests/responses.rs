//! What clients get: headers, composed responses, errors of services, the document.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, StatusCode},
    routing,
};
use contracts::{MAX_TEXT, OrderLine, Quantity};
use devstack::test::eventually;
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tonic::Code;
use tower::ServiceExt as _;

use super::{Api, CUSTOMER, ORDER, Response, Stub, authorization, create_order, edge, get};
use crate::{
    edge::{MAX_CUSTOMER_REQUESTS, MAX_REQUESTS},
    live::MAX_STREAMS,
    with_layers,
};

fn order_path() -> String {
    format!("/api/v1/orders/{ORDER}")
}

#[tokio::test]
async fn a_created_order_has_a_location_and_only_a_replayed_one_says_that_it_is() {
    let first = Api::new(Stub::default()).await.create_order().await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.headers["location"], order_path().as_str());
    assert!(!first.headers.contains_key("idempotent-replayed"));
    let replayed = Api::new(Stub::default().replaying()).await;
    let replayed = replayed.create_order().await;
    assert_eq!(replayed.status, StatusCode::CREATED);
    assert_eq!(replayed.headers["idempotent-replayed"], "true");
    assert_eq!(replayed.json(), first.json());
}

#[tokio::test]
async fn a_valid_correlation_id_comes_back_and_any_other_is_replaced() {
    let api = Api::new(Stub::default()).await;
    for (sent, kept) in [(CUSTOMER, true), ("mine", false)] {
        let request = get("/api/v1/products").header("x-correlation-id", sent);
        let response = api.send(request.body(Body::empty()).unwrap()).await;
        let received = response.headers["x-correlation-id"].to_str().unwrap();
        assert_eq!(received == sent, kept, "{received}");
        assert_eq!(response.headers["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn the_cursor_of_a_page_leads_to_the_next_until_the_last() {
    let api = Api::new(Stub::default()).await;
    let first = api.get("/api/v1/products").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let last = api.get(&format!("/api/v1/products?cursor={cursor}")).await;
    assert_eq!(last.json()["next_cursor"], Value::Null);
    let orders = api.get("/api/v1/orders").await.json();
    let cursor = orders["next_cursor"].as_str().unwrap();
    let next = api.get(&format!("/api/v1/orders?cursor={cursor}")).await;
    assert_eq!(next.status, StatusCode::OK);
}

#[tokio::test]
async fn a_composed_order_lists_the_parts_that_are_unavailable() {
    for (method, code, part, unavailable) in [
        ("none", Code::Ok, "none", json!([])),
        (
            "get_payment",
            Code::Unavailable,
            "payment",
            json!(["payment"]),
        ),
        (
            "get_reservation",
            Code::Internal,
            "reservation",
            json!(["reservation"]),
        ),
        (
            "list_notifications",
            Code::DeadlineExceeded,
            "notifications",
            json!(["notifications"]),
        ),
        // There is no payment yet: that is not an error.
        ("get_payment", Code::NotFound, "payment", json!([])),
    ] {
        let api = Api::new(Stub::default().failing(method, code, "no")).await;
        let response = api.get(&order_path()).await;
        assert_eq!(response.status, StatusCode::OK, "{method}");
        let order = response.json();
        assert_eq!(order["unavailable"], unavailable, "{method}");
        for (name, value) in [
            ("payment", "completed"),
            ("reservation", "reserved"),
            ("notifications", "order_confirmed"),
        ] {
            let shown = order[name].to_string().contains(value);
            assert_eq!(shown, name != part, "{method} {name}: {order}");
        }
    }
}

#[tokio::test]
async fn a_part_that_does_not_respond_costs_one_second() {
    let api = Api::new(Stub::default().hanging("get_payment")).await;
    eventually(
        "the rest comes before the time of a request is over",
        async || {
            let began = Instant::now();
            let order = api.get(&order_path()).await.json();
            order["unavailable"] == json!(["payment"]) && began.elapsed() < Duration::from_secs(4)
        },
    )
    .await;
}

#[tokio::test]
async fn a_timeline_is_sorted_and_shows_causes_and_unavailable_services() {
    let path = format!("{}/timeline", order_path());
    let timeline = Api::new(Stub::default()).await.get(&path).await.json();
    // The stub's two events, from each of three logs.
    let events = timeline["events"].as_array().unwrap();
    let shown: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event["id"].as_str().unwrap(),
                &event["cause"],
                &event["offset_ms"],
            )
        })
        .collect();
    assert_eq!(shown.len(), 6);
    assert_eq!(shown[0], ("cause", &Value::Null, &json!(0)));
    assert_eq!(
        shown[5],
        ("effect", &json!("order.created.v1"), &json!(2000))
    );
    let failing = Stub::default().failing("list_events", Code::Unavailable, "no");
    let timeline = Api::new(failing).await.get(&path).await.json();
    assert_eq!(
        timeline["unavailable"],
        json!(["order", "payment", "inventory"])
    );
}

/// The ids of a live stream, in order, without the end.
fn ids(stream: &str) -> Vec<&str> {
    let lines = stream.lines();
    lines.filter_map(|line| line.strip_prefix("id: ")).collect()
}

const END: &str = "event: end\ndata: {\"status\":\"confirmed\"}\n\n";

#[tokio::test]
async fn a_live_stream_resumes_after_any_event_and_ends_with_the_order() {
    let api = Api::new(Stub::default()).await;
    let path = format!("{}/events", order_path());
    let all = api.get(&path).await;
    assert_eq!(all.headers["content-type"], "text/event-stream");
    assert!(all.text.ends_with(END), "{}", all.text);
    let all = ids(&all.text);
    // Three services with two events each.
    assert_eq!(all.len(), 6);
    assert_eq!(all[5], "inventory:2,order:2,payment:2");
    for (received, last) in all.iter().enumerate() {
        let resumed = get(&path).header("last-event-id", *last);
        let resumed = api.send(resumed.body(Body::empty()).unwrap()).await;
        assert_eq!(ids(&resumed.text), all[received + 1..], "after {last}");
        assert!(resumed.text.ends_with(END), "{}", resumed.text);
    }
    let unknown = get(&path).header("last-event-id", "not a position");
    let unknown = api.send(unknown.body(Body::empty()).unwrap()).await;
    assert_eq!(ids(&unknown.text), all);
}

#[tokio::test]
async fn a_live_stream_does_not_end_before_every_log_could_be_read() {
    // Both reads of the first look meet a log that is unavailable.
    let api = Api::new(Stub::default().with_unreadable_logs(2)).await;
    let all = api.get(&format!("{}/events", order_path())).await;
    assert_eq!(ids(&all.text).len(), 6, "{}", all.text);
    assert!(all.text.ends_with(END), "{}", all.text);
}

#[tokio::test]
async fn errors_of_services_become_problems() {
    for (code, message, status, kind, field, retry_safe) in [
        (
            Code::InvalidArgument,
            "items[0].sku: there is no product \"SKU-0001\"",
            400,
            "invalid-request",
            Some("items[0].sku"),
            false,
        ),
        (Code::NotFound, "no", 404, "not-found", None, false),
        (Code::Aborted, "no", 409, "request-in-flight", None, true),
        (Code::FailedPrecondition, "no", 409, "conflict", None, false),
        (
            Code::AlreadyExists,
            "no",
            422,
            "idempotency-key-reused",
            Some("idempotency-key"),
            false,
        ),
        (Code::Internal, "secret", 500, "internal", None, false),
        (Code::Unavailable, "secret", 503, "unavailable", None, true),
        (
            Code::ResourceExhausted,
            "secret",
            503,
            "unavailable",
            None,
            true,
        ),
        (Code::DeadlineExceeded, "secret", 504, "timeout", None, true),
    ] {
        let api = Api::new(Stub::default().failing("create_order", code, message)).await;
        let response = api.create_order().await;
        assert_eq!(response.status, status, "{code:?}: {}", response.text);
        let problem = response.problem();
        assert_eq!(problem["type"], format!("urn:sagacity:problem:{kind}"));
        assert_eq!(problem["field"].as_str(), field, "{problem}");
        assert_eq!(problem["retry_safe"], retry_safe, "{problem}");
        assert_eq!(response.headers.contains_key("retry-after"), status == 503);
        assert!(!response.text.contains("secret"), "{problem}");
    }
}

#[tokio::test]
async fn more_requests_than_the_gateway_works_on_are_refused_until_one_ends() {
    let end = Arc::new(Notify::new());
    let waits = {
        let end = Arc::clone(&end);
        async move || end.notified().await
    };
    let router = with_layers(Router::new().route("/", routing::get(waits)), edge());
    let request = || {
        let request = Request::new(Body::empty());
        tokio::spawn(router.clone().oneshot(request))
    };
    let waiting: Vec<_> = (0..MAX_REQUESTS).map(|_| request()).collect();
    // On one thread, in the order in which they were spawned.
    let refused = Response::read(request().await.unwrap().unwrap()).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.problem()["retry_safe"], true);
    end.notify_waiters();
    for response in waiting {
        assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    end.notify_one();
    let admitted = request().await.unwrap().unwrap();
    assert_eq!(admitted.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_customer_takes_only_a_part_of_the_room() {
    let (begun, mut begins) = mpsc::unbounded_channel();
    let waits = async move || {
        begun.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    let routes = Router::new()
        .route("/waits", routing::get(waits))
        .route("/", routing::get(async || ()));
    let router = with_layers(routes, edge());
    let request = |customer: &str, path: &str| {
        let request = Request::get(path).header("authorization", authorization(customer));
        let request = request.body(Body::empty()).unwrap();
        tokio::spawn(router.clone().oneshot(request))
    };
    let waiting: Vec<_> = (0..MAX_CUSTOMER_REQUESTS)
        .map(|_| request(CUSTOMER, "/waits"))
        .collect();
    for _ in &waiting {
        begins.recv().await.unwrap();
    }
    let refused = Response::read(request(CUSTOMER, "/").await.unwrap().unwrap()).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.problem()["retry_safe"], true);
    let other = request(ORDER, "/").await.unwrap().unwrap();
    assert_eq!(other.status(), StatusCode::OK);
    // A client that is gone makes room.
    waiting[0].abort();
    while !waiting[0].is_finished() {
        tokio::task::yield_now().await;
    }
    let admitted = request(CUSTOMER, "/").await.unwrap().unwrap();
    assert_eq!(admitted.status(), StatusCode::OK);
}

#[tokio::test]
async fn browsers_show_no_response_of_the_api_as_a_page() {
    let api = Api::new(Stub::default()).await;
    let order = order_path();
    for (path, may_run) in [
        (order.as_str(), false),
        ("/nothing", false),
        ("/openapi.json", false),
        ("/docs/", true),
    ] {
        let headers = api.get(path).await.headers;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; "),
            "{path}: {policy}"
        );
        assert!(
            policy.ends_with("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert_eq!(policy.contains("script-src 'self'"), may_run, "{path}");
        assert!(
            !headers.contains_key("access-control-allow-origin"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_customer_has_a_limited_number_of_live_streams() {
    let api = Api::new(Stub::default()).await;
    let open = async |customer: &str| {
        let request = Request::get(format!("{}/events", order_path()));
        let request = request.header("authorization", authorization(customer));
        let request = request.body(Body::empty()).unwrap();
        api.router.clone().oneshot(request).await.unwrap()
    };
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS {
        streams.push(open(CUSTOMER).await);
    }
    assert!(
        streams
            .iter()
            .all(|stream| stream.status() == StatusCode::OK)
    );
    let refused = Response::read(open(CUSTOMER).await).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.problem()["retry_safe"], true);
    assert_eq!(
        open(ORDER).await.status(),
        StatusCode::OK,
        "another customer"
    );
    streams.pop();
    assert_eq!(open(CUSTOMER).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn clients_that_send_slowly_are_cut_off_and_hold_up_nobody() {
    let router = with_layers(
        Router::new().route("/", routing::post(async |_: Bytes| ())),
        edge(),
    );
    let send = |body| {
        let request = Request::post("/").body(body).unwrap();
        tokio::spawn(router.clone().oneshot(request))
    };
    let endless = || Body::from_stream(stream::pending::<io::Result<Bytes>>());
    let slow: Vec<_> = (0..MAX_REQUESTS).map(|_| send(endless())).collect();
    // On one thread, in the order in which they were spawned.
    let quick = send(Body::from("{}")).await.unwrap().unwrap();
    assert_eq!(quick.status(), StatusCode::OK);
    for response in slow {
        let response = Response::read(response.await.unwrap().unwrap()).await;
        assert_eq!(response.status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(response.problem()["field"], "body");
        assert_eq!(response.problem()["retry_safe"], true);
    }
}

#[tokio::test]
async fn a_panic_is_a_problem_and_not_safe_to_retry() {
    async fn panics() {
        panic!("a bug");
    }
    let router = with_layers(Router::new().route("/", routing::get(panics)), edge());
    let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
    let response = Response::read(response).await;
    assert_eq!(response.status, StatusCode::INTERNAL_SERVER_ERROR);
    let problem = response.problem();
    assert_eq!(problem["retry_safe"], false, "{problem}");
    assert!(!response.text.contains("a bug"), "{problem}");
}

#[tokio::test]
async fn every_documented_response_has_a_correlation_id_and_every_error_is_a_problem() {
    let document = Api::new(Stub::default())
        .await
        .get("/openapi.json")
        .await
        .json();
    let operations = document["paths"].as_object().unwrap().values();
    let operations = operations.flat_map(|path| path.as_object().unwrap().values());
    let mut count = 0;
    for operation in operations {
        count += 1;
        let responses = operation["responses"].as_object().unwrap();
        for common in ["400", "401", "408", "429", "500", "503", "504"] {
            assert!(responses.contains_key(common), "{operation}");
        }
        for (status, response) in responses {
            assert!(
                response["headers"]["x-correlation-id"].is_object(),
                "{operation}"
            );
            let problem = response["content"]["application/problem+json"].is_object();
            assert_eq!(problem, status.as_str() >= "400", "{operation}");
        }
    }
    assert_eq!(count, 8);
}

#[tokio::test]
async fn both_spellings_of_a_key_are_accepted() {
    let api = Api::new(Stub::default()).await;
    for key in ["one", "\"one\"", "\"\"", "with space"] {
        let mut request = create_order().body(super::VALID_ORDER.into()).unwrap();
        let key = key.parse().unwrap();
        request.headers_mut().insert("idempotency-key", key);
        assert_eq!(api.send(request).await.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn the_document_states_the_limits_of_the_contracts() {
    let api = Api::new(Stub::default()).await;
    let document = api.get("/openapi.json").await.json();
    let schemas = &document["components"]["schemas"];
    let order = &schemas["NewOrder"]["properties"];
    let item = &schemas["NewItem"]["properties"];
    assert_eq!(order["items"]["maxItems"], OrderLine::MAX_PER_ORDER);
    assert_eq!(item["quantity"]["maximum"], Quantity::MAX);
    let sku = &document["paths"]["/api/v1/products/{sku}"]["get"]["parameters"][0]["schema"];
    for text in [&order["payment_method"], &item["sku"], sku] {
        assert_eq!(text["maxLength"], MAX_TEXT, "{text}");
    }
}
