//! The dead letters of a service on the admin listener of its process, here the inventory service.
#![expect(clippy::unwrap_used, reason = "a test")]

use api_keys::Scope;
use contracts::{
    Cause, CorrelationId, CustomerId, Envelope, Event, EventId, OrderId, Service, Subject,
};
use devstack::{
    Reaper, TemporaryDirectory,
    test::{ServiceFixture, eventually},
};
use messaging::headers;
use proto::order::v1::{CancelReason, OrderCancelled};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use time::OffsetDateTime;

struct System {
    fixture: ServiceFixture,
    client: reqwest::Client,
    admin: String,
}

impl System {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(settings: &[(&str, &str)]) -> Self {
        let program = env!("CARGO_BIN_EXE_inventory");
        let fixture = ServiceFixture::start(program, settings, 1).await.unwrap();
        Self {
            client: client::http_client().unwrap(),
            admin: fixture.replicas[0].admin.clone(),
            fixture,
        }
    }

    /// Leaves a dead letter of `service`.
    async fn leave(&self, service: &str, event: EventId, order: OrderId) {
        let cancelled = Event::OrderCancelled(OrderCancelled {
            order_id: order.to_string(),
            customer_id: CustomerId::new().to_string(),
            reason: CancelReason::TimedOut.into(),
        });
        let envelope = Envelope {
            event_id: event,
            subject: Subject::OrderCancelled,
            order_id: order,
            time: OffsetDateTime::now_utc(),
            cause: Cause {
                correlation_id: CorrelationId::new(),
                causation_id: EventId::new(),
                traceparent: None,
            },
        };
        let mut headers = headers::to_headers(&envelope, Service::Order);
        headers.insert("Nats-Msg-Id", EventId::new().to_string());
        headers.insert("dead-letter-reason", "a bug");
        let subject = format!("dlq.{service}.order.cancelled.v1");
        let jetstream = &self.fixture.jetstream;
        let published =
            devstack::jetstream::publish(jetstream, subject, headers, cancelled.encode());
        published.await.unwrap();
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(format!("{}{path}", self.admin)).send();
        parts(response.await.unwrap()).await
    }

    async fn post(&self, act: &str, body: Value) -> (u16, Value) {
        let url = format!("{}/dead-letters/{act}", self.admin);
        let request = self.client.post(url).body(body.to_string());
        let request = request.header("content-type", "application/json");
        parts(request.send().await.unwrap()).await
    }

    /// The value of a metric of the service, if it is served.
    async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.client.get(format!("{}/metrics", self.admin)).send();
        let text = text.await.unwrap().text().await.unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")));
        line?.rsplit_once(' ')?.1.parse().ok()
    }
}

async fn parts(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.text().await.unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

fn sequences(page: &Value) -> Vec<u64> {
    let letters = page["dead_letters"].as_array().unwrap();
    let sequence = |letter: &Value| letter["sequence"].as_u64().unwrap();
    letters.iter().map(sequence).collect()
}

#[tokio::test]
async fn a_service_serves_its_own_dead_letters_and_applies_once_what_is_redriven() {
    let system = System::start().await;
    let (event, order) = (EventId::new(), OrderId::new());
    system.leave("inventory", event, order).await;
    system.leave("payment", event, order).await;
    system.leave("inventory", event, order).await;
    system
        .leave("inventory", EventId::new(), OrderId::new())
        .await;

    let (status, page) = system.get("/dead-letters").await;
    assert_eq!((status, sequences(&page)), (200, vec![1, 3, 4]));
    assert_eq!(page["next"], Value::Null);
    let (_, page) = system.get("/dead-letters?limit=2&reason=bug").await;
    assert_eq!((sequences(&page), &page["next"]), (vec![1, 3], &json!(3)));
    let (_, page) = system.get("/dead-letters?limit=2&after=3").await;
    assert_eq!(sequences(&page), [4]);
    let (_, shown) = system.get(&format!("/dead-letters/{event}")).await;
    assert_eq!(shown["dead_letters"].as_array().unwrap().len(), 2);
    assert!(shown["dead_letters"][0]["event"].is_string(), "{shown}");
    // The dead letter of another service.
    let (status, absent) = system.get("/dead-letters/2").await;
    assert_eq!(status, 404, "{absent}");

    let body = json!({ "id": [event], "by": "an operator", "dry_run": true });
    let (status, report) = system.post("redrive", body).await;
    assert_eq!((status, report["done"].as_array().unwrap().len()), (200, 2));
    assert_eq!(
        system
            .fixture
            .count("SELECT count(*) FROM inbox")
            .await
            .unwrap(),
        0
    );
    let body = json!({ "id": [event], "by": "an operator" });
    let (status, report) = system.post("redrive", body.clone()).await;
    assert_eq!((status, report["done"].as_array().unwrap().len()), (200, 2));
    eventually("both are handled", async || {
        let stream = system
            .fixture
            .jetstream
            .get_stream("REDRIVE")
            .await
            .unwrap();
        let consumer = stream.consumer_info("inventory").await.unwrap();
        consumer.ack_floor.stream_sequence == 2
    })
    .await;
    let applied = "SELECT count(*) FROM reservations WHERE status = 'released'";
    assert_eq!(system.fixture.count(applied).await.unwrap(), 1);
    assert_eq!(
        system
            .fixture
            .count("SELECT count(*) FROM inbox")
            .await
            .unwrap(),
        1
    );

    let (status, report) = system.post("redrive", body).await;
    assert_eq!(status, 404, "{report}");
    assert_eq!(report["not_found"], json!([event]));
    let body = json!({ "all": true, "by": "an operator" });
    let (status, report) = system.post("discard", body).await;
    assert_eq!((status, &report["done"][0]["sequence"]), (200, &json!(4)));
    let audit = devstack::test::read_stream(&system.fixture.jetstream, "AUDIT");
    let last = audit.await.unwrap().pop().unwrap();
    let last: Value = serde_json::from_slice(&last.payload).unwrap();
    let said = [&last["act"], &last["outcome"], &last["by"]];
    assert_eq!(said, ["discard", "done", "an operator"]);
    // That of payment is still there.
    let stream = system
        .fixture
        .jetstream
        .get_stream("DEAD_LETTER")
        .await
        .unwrap();
    assert_eq!(stream.cached_info().state.messages, 1);
}

#[tokio::test]
async fn operators_need_an_api_key_whose_id_is_in_the_audit() {
    let directory = TemporaryDirectory::new(&Reaper::new().unwrap()).unwrap();
    let path = directory.path().join("keys.json");
    let key = |scope: Scope| {
        let end = OffsetDateTime::now_utc() + time::Duration::HOUR;
        let note = String::new();
        let created = api_keys::create(&path, CustomerId::new(), vec![scope], end, note);
        let (entry, key) = created.unwrap();
        (entry.id, key.expose_secret().to_owned())
    };
    let ((_, customer), (id, operator)) = (key(Scope::OrdersWrite), key(Scope::Operations));
    let file = path.to_str().unwrap();
    let system = System::start_with(&[("API_KEYS_FILE", file)]).await;
    let (event, order) = (EventId::new(), OrderId::new());
    system.leave("inventory", event, order).await;
    let discard = async |key: Option<&str>| {
        let url = format!("{}/dead-letters/discard", system.admin);
        let body = json!({ "all": true, "by": "an operator" });
        let mut request = system.client.post(url).json(&body);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        parts(request.send().await.unwrap()).await
    };
    for (key, status) in [(None, 401), (Some("x"), 401), (Some(&*customer), 403)] {
        let (refused, error) = discard(key).await;
        assert_eq!(refused, status, "{error}");
        assert!(error["error"].as_str().unwrap().contains("operations"));
    }
    for path in ["/dead-letters", "/dead-letters/1"] {
        assert_eq!(system.get(path).await.0, 401, "{path}");
    }
    assert_eq!(system.post("redrive", json!({})).await.0, 401);
    let (status, report) = discard(Some(&operator)).await;
    assert_eq!((status, report["done"].as_array().unwrap().len()), (200, 1));
    let audit = devstack::test::read_stream(&system.fixture.jetstream, "AUDIT");
    let audit = audit.await.unwrap();
    assert_eq!(audit.len(), 2, "before and after");
    for line in audit {
        let line: Value = serde_json::from_slice(&line.payload).unwrap();
        assert_eq!(line["key"], id.to_string(), "{line}");
    }
    api_keys::revoke(&path, id).unwrap();
    eventually("the key is refused", async || {
        discard(Some(&operator)).await.0 == 401
    })
    .await;
    eventually("the metric needs no key", async || {
        system.metric("messaging_dead_letters").await.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_wrong_request_about_dead_letters_is_refused_with_a_reason() {
    let system = System::start().await;
    for (path, reason) in [
        ("/dead-letters?service=payment", "only its own"),
        ("/dead-letters?limit=0", "limit"),
        ("/dead-letters?after=x", "after"),
        ("/dead-letters?reason=", "reason is empty"),
    ] {
        let (status, error) = system.get(path).await;
        assert_eq!(status, 400, "{path}");
        assert!(error["error"].as_str().unwrap().contains(reason), "{error}");
    }
    for (body, expected, reason) in [
        (json!({ "by": "me" }), 400, "or else all"),
        (
            json!({ "by": "me", "all": true, "id": ["1"] }),
            400,
            "or else all",
        ),
        (json!({ "by": "", "all": true }), 400, "by"),
        (json!({ "all": true }), 422, "by"),
        (json!({ "by": "me", "service": "payment" }), 422, "service"),
    ] {
        let (status, error) = system.post("discard", body).await;
        assert_eq!(status, expected, "{error}");
        assert!(error["error"].as_str().unwrap().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn dead_letters_are_counted_and_their_age_grows() {
    let system = System::start().await;
    let (depth, age) = (
        "messaging_dead_letters",
        "messaging_dead_letters_age_seconds",
    );
    eventually("no dead letters", async || {
        system.metric(depth).await == Some(0.0)
    })
    .await;
    assert_eq!(system.metric(age).await, Some(0.0));
    for service in ["inventory", "inventory", "payment"] {
        system.leave(service, EventId::new(), OrderId::new()).await;
    }
    eventually("two dead letters", async || {
        system.metric(depth).await == Some(2.0)
    })
    .await;
    let before = system.metric(age).await.unwrap();
    assert!(before > 0.0);
    // It is computed for each scrape, not when the dead letters are counted.
    assert!(system.metric(age).await.unwrap() > before);
    let body = json!({ "all": true, "by": "an operator" });
    assert_eq!(system.post("discard", body).await.0, 200);
    eventually("none again", async || {
        (system.metric(depth).await, system.metric(age).await) == (Some(0.0), Some(0.0))
    })
    .await;
}
