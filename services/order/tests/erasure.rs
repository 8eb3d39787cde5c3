//! The erasure of a customer by the order service, with a real database and broker. The test writes
//! the event log, and lets the service build the orders from it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use contracts::{CustomerId, Event, EventId, OrderId};
use devstack::test::{ServiceFixture, eventually, read_stream};
use proto::{
    common::v1::Money,
    order::v1::{OrderCancelled, OrderConfirmed, OrderCreated, OrderPaid},
};
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use tokio::process::Command;

const ORDER: &str = env!("CARGO_BIN_EXE_order");

struct System {
    fixture: ServiceFixture,
}

impl System {
    async fn start() -> Self {
        Self {
            fixture: ServiceFixture::start(ORDER, &[], 1).await.unwrap(),
        }
    }

    async fn post(&self, customer: &str, body: Value) -> (u16, Value) {
        let admin = &self.fixture.replicas[0].admin;
        let request = client::http_client()
            .unwrap()
            .post(format!("{admin}/customers/{customer}/erase"));
        let response = request.json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn erase(&self, customer: CustomerId, dry_run: bool) -> (u16, Value) {
        let body = json!({ "by": "an operator", "dry_run": dry_run });
        self.post(&customer.to_string(), body).await
    }

    /// Appends the events of an order whose last one was `hours` ago, and its idempotency key.
    async fn order(&self, customer: CustomerId, rest: &[&str], hours: f64) -> OrderId {
        let order = OrderId::new();
        self.append(order, &created(order, customer), hours).await;
        for subject in rest {
            let event = event(subject, order, customer);
            self.append(order, &event, hours).await;
        }
        let key = "INSERT INTO idempotency_keys VALUES ($1, $2, '', $3)";
        let key = sqlx::query(key).bind(customer.0).bind(order.to_string());
        let key = key.bind(order.0).execute(&self.fixture.database).await;
        key.unwrap();
        assert!(self.rebuild(&["--write"]).await);
        order
    }

    async fn append(&self, order: OrderId, event: &Event, hours: f64) {
        let append = sqlx::query(
            "INSERT INTO outbox (event_id, subject, order_id, payload, correlation_id, causation_id,
                                 recorded_at, sent_at)
             VALUES ($1, $2, $3, $4, $1, $1, now() - make_interval(hours => 1) * $5, now())",
        );
        let append = append.bind(EventId::new().0).bind(event.subject().as_str());
        let append = append.bind(order.0).bind(event.encode()).bind(hours);
        append.execute(&self.fixture.database).await.unwrap();
    }

    /// As if every subscriber had handled all events.
    async fn mark_all_as_handled(&self) {
        let mark = "UPDATE outbox_checkpoint SET position = (SELECT max(position) FROM outbox)
                    WHERE id = (SELECT min(id) FROM outbox_checkpoint)";
        let marked = sqlx::query(mark).execute(&self.fixture.database).await;
        marked.unwrap();
    }

    /// Whether the orders are what their log says.
    async fn rebuild(&self, arguments: &[&str]) -> bool {
        let url = self.fixture.database.connect_options().to_url_lossy();
        let mut rebuild = Command::new(ORDER);
        rebuild
            .arg("rebuild")
            .args(arguments)
            .env("DATABASE_URL", url.as_str())
            .env("MIGRATIONS", "check");
        let ended = rebuild.kill_on_drop(true).output().await.unwrap();
        ended.status.success()
    }

    async fn until_one_is_left(&self) {
        eventually("all payment methods but one are forgotten", async || {
            self.mentions("tok_visa").await == 1
        })
        .await;
    }

    /// How many rows of all tables have a text, also within a payload.
    async fn mentions(&self, text: &str) -> i64 {
        let mut mentions = 0;
        for table in ["orders", "outbox", "idempotency_keys"] {
            let count = format!(
                "SELECT count(*) FROM {table} AS t
                 WHERE t::text LIKE '%' || $1 || '%' OR t::text LIKE '%' || encode($1::bytea, 'hex') || '%'"
            );
            let count = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(count)).bind(text);
            mentions += count.fetch_one(&self.fixture.database).await.unwrap();
        }
        mentions
    }
}

fn created(order: OrderId, customer: CustomerId) -> Event {
    // In the year 2100: the sweep leaves it alone.
    let deadline = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    Event::OrderCreated(OrderCreated {
        order_id: order.to_string(),
        customer_id: customer.to_string(),
        lines: vec![],
        total: Some(euros()),
        payment_method: "tok_visa".to_owned(),
        deadline: Some(deadline.into()),
    })
}

fn event(subject: &str, order: OrderId, customer: CustomerId) -> Event {
    let (order_id, customer_id) = (order.to_string(), customer.to_string());
    match subject {
        "paid" => Event::OrderPaid(OrderPaid { order_id }),
        "confirmed" => Event::OrderConfirmed(OrderConfirmed {
            order_id,
            customer_id,
            total: Some(euros()),
        }),
        _ => Event::OrderCancelled(OrderCancelled {
            order_id,
            customer_id,
            reason: 4,
        }),
    }
}

fn euros() -> Money {
    Money {
        amount: 0,
        currency: "EUR".to_owned(),
    }
}

#[tokio::test]
async fn a_customer_is_erased_from_orders_log_and_keys() {
    let system = System::start().await;
    let (customer, other) = (CustomerId::new(), CustomerId::new());
    system.order(customer, &["paid", "confirmed"], 73.0).await;
    system.order(customer, &["cancelled"], 73.0).await;
    system.order(other, &["cancelled"], 73.0).await;
    system.mark_all_as_handled().await;
    let (id, other) = (customer.to_string(), other.to_string());
    // Two orders, two keys, and four events with a customer.
    assert_eq!(system.mentions(&id).await, 8);
    let of_other = system.mentions(&other).await;
    let counts = json!({ "orders": 2, "outbox": 4, "idempotency_keys": 2 });

    let (status, report) = system.erase(customer, true).await;
    assert_eq!((status, &report["erased"]), (200, &counts), "{report}");
    assert_eq!(system.mentions(&id).await, 8, "a dry run changes nothing");
    let (status, report) = system.erase(customer, false).await;
    assert_eq!((status, &report["erased"]), (200, &counts), "{report}");
    assert_eq!(system.mentions(&id).await, 0);
    assert_eq!(system.mentions(&other).await, of_other);
    let unlinked = "SELECT count(*) FROM orders WHERE customer_id = order_id";
    assert_eq!(system.fixture.count(unlinked).await.unwrap(), 2);
    assert_eq!(
        system.mentions("tok_visa").await,
        1,
        "of the other customer"
    );
    assert!(system.rebuild(&[]).await, "rows and log agree");

    let (status, again) = system.erase(customer, false).await;
    assert_eq!(
        (status, &again["erased"]["orders"]),
        (200, &json!(0)),
        "{again}"
    );
    let audit = read_stream(&system.fixture.jetstream, "AUDIT")
        .await
        .unwrap();
    let lines: Vec<Value> = audit
        .iter()
        .map(|line| serde_json::from_slice(&line.payload).unwrap())
        .collect();
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["started", "done", "started", "done"].map(Some));
    for line in &lines {
        let said = [&line["act"], &line["by"], &line["service"]];
        assert_eq!(said, ["erase", "an operator", "order"]);
        assert_eq!(line["customer_sha256"], report["customer_sha256"]);
        assert!(!line.to_string().contains(&id), "{line}");
    }
    assert_eq!(lines[1]["erased"], counts);
}

#[tokio::test]
async fn payment_methods_in_the_log_are_forgotten_when_no_event_comes_again() {
    let mut system = System::start().await;
    let customer = CustomerId::new();
    let all = &["paid", "confirmed"];
    for hours in [75.0, 74.0, 73.0] {
        system.order(customer, all, hours).await;
    }
    system.mark_all_as_handled().await;
    system.order(customer, all, 73.0).await;
    // A replica looks as soon as it starts.
    system.fixture.add_replicas(1).await.unwrap();
    system.until_one_is_left().await;
    system.order(customer, all, 71.0).await;
    system.mark_all_as_handled().await;
    // The one before is settled now; this one is too young.
    system.fixture.add_replicas(1).await.unwrap();
    system.until_one_is_left().await;
    let young = "SELECT count(*) FROM outbox WHERE recorded_at > now() - interval '72 hours'
                 AND position(convert_to('tok_visa', 'UTF8') IN payload) > 0";
    assert_eq!(system.fixture.count(young).await.unwrap(), 1);
    assert!(system.rebuild(&[]).await, "rows and log agree");
}

#[tokio::test]
async fn an_erasure_is_not_undone_by_a_payment_method_that_is_forgotten_meanwhile() {
    let mut system = System::start().await;
    let customer = CustomerId::new();
    let order = system.order(customer, &["cancelled"], 73.0).await;
    system.mark_all_as_handled().await;
    let mut erased = created(order, customer);
    erased.erase_customer(order);
    let mut erasure = system.fixture.database.begin().await.unwrap();
    let erase = "UPDATE outbox SET payload = $2
                 WHERE order_id = $1 AND subject = 'order.created.v1'";
    let erase = sqlx::query(erase).bind(order.0).bind(erased.encode());
    erase.execute(&mut *erasure).await.unwrap();
    // It has read the payload as it was before.
    system.fixture.add_replicas(1).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'
                   AND query LIKE '%outbox_erase%'";
    eventually("it waits for the erasure", async || {
        system.fixture.count(waits).await.unwrap() == 1
    })
    .await;
    erasure.commit().await.unwrap();
    let position = "SELECT position FROM methods_forgotten";
    eventually("the position moves on", async || {
        system.fixture.count(position).await.unwrap() > 0
    })
    .await;
    let payload = "SELECT payload FROM outbox
                   WHERE order_id = $1 AND subject = 'order.created.v1'";
    let payload = sqlx::query_scalar::<_, Vec<u8>>(payload).bind(order.0);
    let payload = payload.fetch_one(&system.fixture.database).await.unwrap();
    assert_eq!(payload, erased.encode());
}

#[tokio::test]
async fn an_order_that_something_could_bring_back_is_not_erased() {
    let system = System::start().await;
    let customer = CustomerId::new();
    let id = customer.to_string();
    for (events, hours, is_settled) in [
        (&[][..], 73.0, true),
        (&["paid"], 73.0, true),
        (&["paid", "cancelled"], 73.0, true),
        (&["paid", "confirmed"], 71.0, true),
        (&["paid", "confirmed"], 73.0, false),
    ] {
        let order = system.order(customer, events, hours).await;
        if is_settled {
            system.mark_all_as_handled().await;
        }
        let before = system.mentions(&id).await;
        let (status, report) = system.erase(customer, false).await;
        assert_eq!(status, 409, "{events:?}: {report}");
        let obstacle = report["obstacles"][0].as_str().unwrap();
        assert!(obstacle.starts_with("1 rows"), "{events:?}: {report}");
        assert_eq!(system.mentions(&id).await, before, "{events:?}");
        for table in ["outbox", "orders", "idempotency_keys"] {
            let delete = format!("DELETE FROM {table} WHERE order_id = $1");
            let delete = sqlx::query(sqlx::AssertSqlSafe(delete)).bind(order.0);
            delete.execute(&system.fixture.database).await.unwrap();
        }
    }
    // Nothing was begun.
    let audit = read_stream(&system.fixture.jetstream, "AUDIT").await;
    assert!(audit.unwrap().is_empty());
}

#[tokio::test]
async fn a_wrong_request_for_an_erasure_is_refused_with_a_reason() {
    let system = System::start().await;
    let id = CustomerId::new().to_string();
    for (customer, body, expected, reason) in [
        ("me", json!({ "by": "me" }), 400, "a UUID"),
        (&*id, json!({ "by": "" }), 400, "by"),
        (&*id, json!({}), 422, "by"),
        (&*id, json!({ "by": "me", "all": true }), 422, "all"),
    ] {
        let (status, error) = system.post(customer, body).await;
        assert_eq!(status, expected, "{error}");
        assert!(error["error"].as_str().unwrap().contains(reason), "{error}");
    }
}
