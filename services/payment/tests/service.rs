//! The payment service as processes, with a real database and broker and the sandbox provider. The
//! test publishes as the order service.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use async_nats::jetstream;
use contracts::{Cause, CorrelationId, CustomerId, Envelope, Event, EventId, OrderId, Service};
use devstack::{
    NatsServer, Reaper, TemporaryDirectory,
    test::{self, Program, eventually},
};
use proto::{
    common::v1::{Money, OrderLine},
    order::v1::{OrderCancelled, OrderCreated},
    payment::v1::{GetPaymentRequest, payment_service_client::PaymentServiceClient},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tonic::Code;
use uuid::Uuid;

struct Fixture {
    _memory: TemporaryDirectory,
    broker: NatsServer,
    database: PgPool,
    database_url: String,
    provider: Program,
    http: reqwest::Client,
    jetstream: jetstream::Context,
}

impl Fixture {
    async fn new() -> Self {
        let broker = test::broker().await.unwrap();
        let settings = [("PROVIDER_API_KEY", "sk_test_sagacity")];
        let database = test::service_database(env!("CARGO_BIN_EXE_payment"), &settings);
        let database = database.await.unwrap();
        let memory = TemporaryDirectory::new(&Reaper::new().unwrap()).unwrap();
        let program = test::programs().await.unwrap().join("psp-sandbox");
        let settings = [("DATA_DIR", memory.path().to_str().unwrap())];
        let provider = Program::start(program.to_str().unwrap(), &settings)
            .await
            .unwrap();
        let jetstream = devstack::jetstream::open(&broker.url()).await.unwrap();
        Self {
            _memory: memory,
            broker,
            database: database.pool,
            database_url: database.url,
            provider,
            http: client::http_client().unwrap(),
            jetstream,
        }
    }

    async fn start(&self) -> Program {
        let broker = self.broker.url();
        let settings = [
            ("DATABASE_URL", self.database_url.as_str()),
            ("MIGRATIONS", "check"),
            ("NATS_URL", &broker),
            ("PROVIDER_URL", &self.provider.url),
            ("PROVIDER_API_KEY", "sk_test_sagacity"),
        ];
        Program::start(env!("CARGO_BIN_EXE_payment"), &settings)
            .await
            .unwrap()
    }

    /// Publishes an accepted order over 19.99 EUR.
    async fn publish_order(&self) -> OrderId {
        let later = SystemTime::now() + Duration::from_secs(3600);
        self.publish_order_until(later).await
    }

    async fn publish_order_until(&self, deadline: SystemTime) -> OrderId {
        let order = OrderId::new();
        let price = Money {
            amount: 1999,
            currency: "EUR".to_owned(),
        };
        let created = OrderCreated {
            order_id: order.to_string(),
            customer_id: CustomerId::new().to_string(),
            lines: vec![OrderLine {
                sku: "SKU-0001".to_owned(),
                quantity: 1,
                unit_price: Some(price.clone()),
            }],
            total: Some(price),
            payment_method: "tok_visa".to_owned(),
            deadline: Some(deadline.into()),
        };
        self.publish(order, Event::OrderCreated(created)).await;
        order
    }

    async fn publish_cancellation(&self, order: OrderId) {
        let cancelled = OrderCancelled {
            order_id: order.to_string(),
            customer_id: CustomerId::new().to_string(),
            reason: 4,
        };
        self.publish(order, Event::OrderCancelled(cancelled)).await;
    }

    async fn publish(&self, order: OrderId, event: Event) {
        let envelope = Envelope {
            event_id: EventId::new(),
            subject: event.subject(),
            order_id: order,
            time: time::OffsetDateTime::now_utc(),
            cause: Cause {
                correlation_id: CorrelationId::new(),
                causation_id: EventId::new(),
                traceparent: None,
            },
        };
        let headers = messaging::headers::to_headers(&envelope, Service::Order);
        let (jetstream, subject) = (&self.jetstream, event.subject().to_string());
        let published = devstack::jetstream::publish(jetstream, subject, headers, event.encode());
        published.await.unwrap();
    }

    async fn inject(&self, fault: Value) {
        self.inject_at("tok_visa", fault).await;
    }

    async fn inject_at(&self, name: &str, fault: Value) {
        let url = format!("{}/sandbox/faults/{name}", self.provider.url);
        let injected = self.http.put(url).json(&fault).send().await.unwrap();
        injected.error_for_status().unwrap();
    }

    /// Captures at the provider, by order.
    async fn captures(&self, order: OrderId) -> i64 {
        self.balance(order).await["captures"].as_i64().unwrap_or(0)
    }

    /// What the provider has captured and refunded for an order.
    async fn balance(&self, order: OrderId) -> Value {
        let url = format!("{}/sandbox/ledger", self.provider.url);
        let ledger = self
            .http
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let balances = ledger
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut of_order = balances.filter(|balance| balance["order_id"] == order.to_string());
        of_order.next().unwrap_or_default()
    }

    async fn status(&self, order: OrderId) -> (String, i32) {
        let row = sqlx::query_as("SELECT status, attempts FROM payments WHERE order_id = $1");
        let row = row.bind(order.0).fetch_optional(&self.database).await;
        row.unwrap_or_default().unwrap_or_default()
    }

    async fn until_status(&self, order: OrderId, status: &str) {
        eventually(status, async || self.status(order).await.0 == status).await;
    }

    /// The worker has begun its first call, which may not have reached the provider yet.
    async fn until_called(&self, order: OrderId) {
        eventually("the call", async || {
            let (status, attempts) = self.status(order).await;
            status == "pending" && attempts > 0
        })
        .await;
    }

    /// The provider executes the first call: from here on a worker that dies stops nothing there.
    async fn until_executing(&self, order: OrderId) {
        let url = format!("{}/sandbox/keys-in-use", self.provider.url);
        eventually("the execution", async || {
            let id = sqlx::query_scalar("SELECT payment_id FROM payments WHERE order_id = $1");
            let id = id.bind(order.0).fetch_optional(&self.database).await;
            let in_use = self.http.get(&url).send().await.unwrap();
            let in_use: Vec<Uuid> = in_use.json().await.unwrap();
            id.unwrap().is_some_and(|id: Uuid| in_use.contains(&id))
        })
        .await;
    }

    /// Lets the lease of a payment expire now instead of after its time.
    async fn expire_lease(&self, order: OrderId) {
        let expire =
            "UPDATE payments SET due_at = now() WHERE order_id = $1 AND status = 'pending'";
        let expire = sqlx::query(expire);
        expire.bind(order.0).execute(&self.database).await.unwrap();
    }

    async fn move_deadline(&self, order: OrderId, seconds: f64) {
        let moved = sqlx::query(
            "UPDATE payments SET deadline = now() + make_interval(secs => $2) WHERE order_id = $1",
        );
        let moved = moved.bind(order.0).bind(seconds).execute(&self.database);
        moved.await.unwrap();
    }

    async fn key_number(&self, order: OrderId) -> i32 {
        let number = sqlx::query_scalar("SELECT key_number FROM payments WHERE order_id = $1");
        let number = number.bind(order.0).fetch_optional(&self.database).await;
        number.unwrap_or_default().unwrap_or_default()
    }

    /// The provider has stored a failure under the first key, and the payment has the next one.
    async fn until_next_key(&self, order: OrderId) {
        eventually("a new key", async || self.key_number(order).await > 0).await;
    }

    async fn post(&self, path: &str, key: &str, body: &str) -> Value {
        let request = self.http.post(format!("{}{path}", self.provider.url));
        let request = request
            .bearer_auth("sk_test_x")
            .header("idempotency-key", key)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.to_owned());
        request.send().await.unwrap().json().await.unwrap()
    }

    /// Writes a payment that has been asked for once, with this stored body.
    async fn write_asked(&self, order: OrderId, payment: Uuid, body: Option<String>) {
        let written = sqlx::query(
            "INSERT INTO payments (order_id, payment_id, customer_id, status, amount, currency,
                                   method, lines, charge_correlation_id, charge_causation_id, attempts,
                                   deadline, request)
             VALUES ($1, $2, $3, 'pending', 1999, 'EUR', 'tok_visa', '[]', $3, $3, 1,
                     now() + interval '1 hour', $4)",
        );
        let written = written.bind(order.0).bind(payment).bind(Uuid::now_v7());
        written.bind(body).execute(&self.database).await.unwrap();
    }

    async fn published(&self, order: OrderId, subject: &str) -> i64 {
        let count = "SELECT count(*) FROM outbox WHERE order_id = $1 AND subject = $2";
        let count = sqlx::query_scalar(count).bind(order.0).bind(subject);
        count.fetch_one(&self.database).await.unwrap()
    }

    async fn assert_charged_once(&self, order: OrderId) {
        self.until_status(order, "completed").await;
        assert_eq!(self.captures(order).await, 1);
        assert_eq!(self.published(order, "payment.completed.v1").await, 1);
    }
}

#[tokio::test]
async fn two_workers_charge_a_payment_once() {
    let fixture = Fixture::new().await;
    let _replicas = [fixture.start().await, fixture.start().await];
    fixture.inject(json!({ "latency_ms": 4000 })).await;
    // On a machine that pauses the first call may end before there is a second one.
    for _ in 0..10 {
        let order = fixture.publish_order().await;
        fixture.until_called(order).await;
        // While the first worker waits for the response, the payment is due for the second. Until
        // that has looked, the first may renew its lease.
        let mut calls = 0;
        eventually("the second call, or the end", async || {
            fixture.expire_lease(order).await;
            let (status, attempts) = fixture.status(order).await;
            calls = calls.max(attempts);
            calls > 1 || status == "completed"
        })
        .await;
        fixture.assert_charged_once(order).await;
        if calls > 1 {
            return;
        }
    }
    panic!("no payment was called for twice");
}

#[tokio::test]
async fn a_lease_is_renewed_during_a_long_call() {
    let fixture = Fixture::new().await;
    let _replicas = [fixture.start().await, fixture.start().await];
    // Longer than a lease.
    fixture.inject(json!({ "latency_ms": 4500 })).await;
    // On a machine that pauses a lease may end before it is renewed.
    for _ in 0..10 {
        let order = fixture.publish_order().await;
        let mut calls = 0;
        eventually("the charge is recorded", async || {
            let (status, attempts) = fixture.status(order).await;
            calls = calls.max(attempts);
            status == "completed"
        })
        .await;
        if calls <= 1 {
            return;
        }
    }
    panic!("a lease ended during every call");
}

#[tokio::test]
async fn a_payment_that_is_locked_holds_up_no_other() {
    let fixture = Fixture::new().await;
    fixture.start().await.kill().await.unwrap();
    let locked = OrderId::new();
    fixture.write_asked(locked, Uuid::now_v7(), None).await;
    let mut transaction = fixture.database.begin().await.unwrap();
    let lock = sqlx::query("SELECT FROM payments WHERE order_id = $1 FOR UPDATE").bind(locked.0);
    lock.execute(&mut *transaction).await.unwrap();
    let _payment = fixture.start().await;
    // It is due after the one that is locked.
    let other = fixture.publish_order().await;
    fixture.assert_charged_once(other).await;
    transaction.rollback().await.unwrap();
    fixture.assert_charged_once(locked).await;
}

#[tokio::test]
async fn a_refusal_that_is_not_about_the_charge_declines_nothing() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    fixture.inject(json!({ "refused_rate": 1.0 })).await;
    let order = fixture.publish_order().await;
    // From the third attempt on the charge is also searched for.
    eventually("four attempts, or the end", async || {
        let (status, attempts) = fixture.status(order).await;
        attempts >= 4 || status == "failed"
    })
    .await;
    assert_eq!(fixture.status(order).await.0, "pending");
    fixture.inject(json!({})).await;
    fixture.assert_charged_once(order).await;
}

#[tokio::test]
async fn a_payment_that_cannot_be_read_holds_up_no_other() {
    let fixture = Fixture::new().await;
    fixture.start().await.kill().await.unwrap();
    let (currency, lines, other) = (OrderId::new(), OrderId::new(), OrderId::new());
    for order in [currency, lines, other] {
        fixture.write_asked(order, Uuid::now_v7(), None).await;
    }
    // They are due together.
    let set = async |of_one: &str, of_the_other: &str| {
        let set = "UPDATE payments SET due_at = now(),
                currency = CASE order_id WHEN $1 THEN $3 ELSE currency END,
                lines = CASE order_id WHEN $2 THEN $4::jsonb ELSE lines END
            WHERE status = 'pending'";
        let set = sqlx::query(set).bind(currency.0).bind(lines.0);
        let set = set.bind(of_one).bind(of_the_other);
        set.execute(&fixture.database).await.unwrap();
    };
    set("eur", "[{}]").await;
    let _payment = fixture.start().await;
    fixture.assert_charged_once(other).await;
    for unreadable in [currency, lines] {
        assert_eq!(fixture.captures(unreadable).await, 0);
    }
    set("EUR", "[]").await;
    for repaired in [currency, lines] {
        fixture.assert_charged_once(repaired).await;
    }
}

#[tokio::test]
async fn an_expired_lease_is_taken_over() {
    let fixture = Fixture::new().await;
    let first = fixture.start().await;
    // The worker dies during its call; the provider has done nothing yet.
    fixture.inject(json!({ "latency_ms": 60_000 })).await;
    let order = fixture.publish_order().await;
    fixture.until_called(order).await;
    first.kill().await.unwrap();
    fixture.inject(json!({})).await;
    let _second = fixture.start().await;
    fixture.expire_lease(order).await;
    fixture.assert_charged_once(order).await;
}

#[tokio::test]
async fn a_crash_between_capture_and_record_charges_once() {
    let fixture = Fixture::new().await;
    fixture
        .inject(json!({ "stall_after_charge_ms": 60_000 }))
        .await;
    // On a machine that pauses the worker may ask again, and record the capture, before it dies.
    for _ in 0..5 {
        let first = fixture.start().await;
        let order = fixture.publish_order().await;
        eventually("the capture", async || fixture.captures(order).await == 1).await;
        first.kill().await.unwrap();
        if fixture.status(order).await.0 == "pending" {
            let _second = fixture.start().await;
            fixture.expire_lease(order).await;
            fixture.assert_charged_once(order).await;
            return;
        }
    }
    panic!("every capture was recorded");
}

#[tokio::test]
async fn a_cancelled_payment_is_refunded_and_can_be_queried() {
    let fixture = Fixture::new().await;
    let program = fixture.start().await;
    let order = fixture.publish_order().await;
    fixture.assert_charged_once(order).await;
    fixture.publish_cancellation(order).await;
    fixture.until_status(order, "refunded").await;
    assert_eq!(fixture.published(order, "payment.refunded.v1").await, 1);
    let mut client = PaymentServiceClient::connect(program.url.clone())
        .await
        .unwrap();
    let mut get = async |order_id: String| client.get_payment(GetPaymentRequest { order_id }).await;
    let payment = get(order.to_string())
        .await
        .unwrap()
        .into_inner()
        .payment
        .unwrap();
    assert_eq!(payment.amount.unwrap().amount, 1999);
    let unknown = get(OrderId::new().to_string()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let invalid = get("mine".to_owned()).await.unwrap_err();
    assert_eq!(
        (invalid.code(), invalid.message()),
        (Code::InvalidArgument, "order_id: expected a UUID")
    );
}

#[tokio::test]
async fn orders_that_timed_out_while_payment_was_away_are_never_charged() {
    const TIMED_OUT: usize = 1500;
    let fixture = Fixture::new().await;
    let payment = fixture.start().await;
    payment.kill().await.unwrap();
    let mut timed_out = Vec::with_capacity(TIMED_OUT);
    for _ in 0..TIMED_OUT {
        let order = fixture.publish_order_until(SystemTime::UNIX_EPOCH).await;
        timed_out.push(order);
    }
    // Later in the stream than all others: when it is charged, they have had their turn.
    let last = fixture.publish_order().await;
    let _payment = fixture.start().await;
    let count = async |status: &str| {
        let count = "SELECT count(*) FROM payments WHERE status = $1";
        let count = sqlx::query_scalar::<_, i64>(count).bind(status);
        count.fetch_one(&fixture.database).await.unwrap() as usize
    };
    eventually("the last order is charged", async || {
        count("completed").await == 1
    })
    .await;
    assert_eq!(fixture.captures(last).await, 1);
    // One that was on its way to the killed process is delivered again later than the others.
    eventually("none was charged", async || {
        count("pending").await == TIMED_OUT
    })
    .await;
    let asked = "SELECT count(*) FROM payments WHERE status = 'pending' AND attempts > 0";
    let asked = sqlx::query_scalar::<_, i64>(asked);
    assert_eq!(asked.fetch_one(&fixture.database).await.unwrap(), 0);
    for order in timed_out {
        fixture.publish_cancellation(order).await;
    }
    eventually("all others are voided", async || {
        count("voided").await == TIMED_OUT
    })
    .await;
}

#[tokio::test]
async fn a_charge_that_was_executed_and_answered_with_a_500_is_found() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    fixture
        .inject(json!({ "error_after_execution_rate": 1.0 }))
        .await;
    let order = fixture.publish_order().await;
    // Whatever is asked for under this key gets the stored 500: only the provider's list tells.
    fixture.assert_charged_once(order).await;
    assert_eq!(fixture.key_number(order).await, 0);
}

#[tokio::test]
async fn a_500_in_place_of_a_charge_is_charged_once_under_a_new_key() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    fixture.inject(json!({ "error_rate": 1.0 })).await;
    let order = fixture.publish_order().await;
    fixture.until_next_key(order).await;
    fixture.inject(json!({})).await;
    fixture.assert_charged_once(order).await;
}

#[tokio::test]
async fn a_charge_that_failed_until_its_deadline_is_never_made() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    fixture.inject(json!({ "error_rate": 1.0 })).await;
    let order = fixture.publish_order().await;
    fixture.until_next_key(order).await;
    fixture.move_deadline(order, 0.0).await;
    // Found to be nowhere at the provider, and waiting for the cancellation.
    eventually("no call is open", async || {
        fixture.status(order).await == ("pending".to_owned(), 0)
    })
    .await;
    fixture.inject(json!({})).await;
    fixture.expire_lease(order).await;
    // When this one is charged, the worker has passed over the other.
    let other = fixture.publish_order().await;
    fixture.assert_charged_once(other).await;
    fixture.publish_cancellation(order).await;
    fixture.until_status(order, "voided").await;
    assert_eq!(fixture.captures(order).await, 0);
    assert_eq!(fixture.published(order, "payment.completed.v1").await, 0);
}

#[tokio::test]
async fn a_cancelled_payment_of_which_nothing_is_at_the_provider_is_voided() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    fixture.inject(json!({ "error_rate": 1.0 })).await;
    let order = fixture.publish_order().await;
    fixture.until_next_key(order).await;
    fixture.publish_cancellation(order).await;
    fixture.until_status(order, "voided").await;
    assert_eq!(fixture.captures(order).await, 0);
}

#[tokio::test]
async fn a_search_that_fails_does_not_make_a_cancelled_order_be_charged() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    fixture.inject(json!({ "unavailable_rate": 1.0 })).await;
    fixture
        .inject_at("list", json!({ "latency_ms": 60_000 }))
        .await;
    let order = fixture.publish_order().await;
    eventually("a call", async || fixture.status(order).await.1 > 0).await;
    fixture.publish_cancellation(order).await;
    eventually("the cancellation", async || {
        let cancelled = "SELECT cancel_causation_id IS NOT NULL FROM payments WHERE order_id = $1";
        let cancelled = sqlx::query_scalar(cancelled).bind(order.0);
        cancelled.fetch_one(&fixture.database).await.unwrap()
    })
    .await;
    let calls = fixture.status(order).await.1;
    // The second of these is a search at the latest.
    eventually("a search", async || {
        fixture.status(order).await.1 > calls + 1
    })
    .await;
    fixture.inject(json!({})).await;
    fixture.inject_at("list", json!({})).await;
    fixture.until_status(order, "voided").await;
    assert_eq!(fixture.captures(order).await, 0);
}

#[tokio::test]
async fn after_the_deadline_a_lost_charge_is_searched_for_and_not_asked_for() {
    let fixture = Fixture::new().await;
    let first = fixture.start().await;
    // The worker dies during its call; the provider has done nothing yet.
    fixture.inject(json!({ "latency_ms": 60_000 })).await;
    let order = fixture.publish_order().await;
    fixture.until_called(order).await;
    first.kill().await.unwrap();
    fixture.inject(json!({})).await;
    fixture.move_deadline(order, 0.0).await;
    let _second = fixture.start().await;
    fixture.expire_lease(order).await;
    // The lost call could still arrive there: nothing is concluded.
    eventually("some searches", async || fixture.status(order).await.1 > 3).await;
    assert_eq!(fixture.status(order).await.0, "pending");
    assert_eq!(fixture.captures(order).await, 0);
    fixture.move_deadline(order, -3600.0).await;
    eventually("no call is open", async || {
        fixture.status(order).await.1 == 0
    })
    .await;
    fixture.publish_cancellation(order).await;
    fixture.until_status(order, "voided").await;
    assert_eq!(fixture.captures(order).await, 0);
}

#[tokio::test]
async fn a_charge_that_is_still_being_executed_is_waited_for() {
    let fixture = Fixture::new().await;
    for is_late in [false, true] {
        let first = fixture.start().await;
        fixture.inject(json!({ "execution_ms": 3000 })).await;
        let order = fixture.publish_order().await;
        fixture.until_executing(order).await;
        first.kill().await.unwrap();
        if is_late {
            fixture.move_deadline(order, 0.0).await;
        }
        let second = fixture.start().await;
        fixture.expire_lease(order).await;
        fixture.assert_charged_once(order).await;
        assert_eq!(fixture.key_number(order).await, 0);
        second.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_stored_request_is_sent_as_it_is_also_after_an_upgrade() {
    let fixture = Fixture::new().await;
    let payment = fixture.start().await;
    payment.kill().await.unwrap();
    let body = |order: OrderId, more: &str| {
        format!(
            "amount=1999&currency=eur&confirm=true&metadata[order_id]={order}\
             &payment_method=pm_card_visa{more}"
        )
    };
    // An older version has asked for it in its own words, and died.
    let (asked, asked_key) = (OrderId::new(), Uuid::now_v7());
    let request = body(asked, "&description=older");
    let url = "/v1/payment_intents";
    fixture.post(url, &asked_key.to_string(), &request).await;
    fixture.write_asked(asked, asked_key, Some(request)).await;
    // It has not stored this one; the body is that of today.
    let without = OrderId::new();
    fixture.write_asked(without, Uuid::now_v7(), None).await;
    // And here it has stored another body than it has sent: a key that can never be used again.
    let (other, other_key) = (OrderId::new(), Uuid::now_v7());
    let request = body(other, "");
    fixture.post(url, &other_key.to_string(), &request).await;
    let changed = body(other, "&description=changed");
    fixture.write_asked(other, other_key, Some(changed)).await;
    // Only the body of today has a token.
    fixture.inject(json!({ "latency_ms": 4500 })).await;
    let _payment = fixture.start().await;
    eventually(
        "the body of today is stored before its call ends",
        async || {
            let (_, request) = stored(&fixture, without).await;
            request.is_some_and(|request| request.starts_with("amount=1999&"))
        },
    )
    .await;
    for order in [asked, without, other] {
        fixture.assert_charged_once(order).await;
        assert_eq!(fixture.key_number(order).await, 0);
    }
}

impl Fixture {
    /// An order that is charged, then cancelled while this goes wrong with refunds.
    async fn cancelled_order(&self, fault: Value) -> OrderId {
        self.inject_at("refund", fault).await;
        let order = self.publish_order().await;
        self.assert_charged_once(order).await;
        self.publish_cancellation(order).await;
        order
    }

    async fn assert_refunded_once(&self, order: OrderId) {
        self.until_status(order, "refunded").await;
        assert_eq!(self.published(order, "payment.refunded.v1").await, 1);
        assert_eq!(self.balance(order).await["refunded"], 1999);
    }
}

#[tokio::test]
async fn a_pending_refund_is_followed_until_it_has_succeeded() {
    const PENDING: Duration = Duration::from_secs(2);
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    let cancelled_at = time::OffsetDateTime::now_utc();
    let fault = json!({ "refund_pending_ms": PENDING.as_millis() as u64 });
    let order = fixture.cancelled_order(fault).await;
    fixture.assert_refunded_once(order).await;
    let published =
        "SELECT recorded_at FROM outbox WHERE order_id = $1 AND subject LIKE '%refunded%'";
    let published = sqlx::query_scalar(published).bind(order.0);
    let published: time::OffsetDateTime = published.fetch_one(&fixture.database).await.unwrap();
    assert!(
        published > cancelled_at + PENDING,
        "published while pending"
    );
    assert_eq!(fixture.key_number(order).await, 0);
}

#[tokio::test]
async fn a_refund_that_fails_later_is_made_again() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    let fault = json!({ "refund_pending_ms": 500, "refund_failure_rate": 1.0 });
    let order = fixture.cancelled_order(fault).await;
    fixture.until_next_key(order).await;
    assert_eq!(fixture.published(order, "payment.refunded.v1").await, 0);
    fixture.inject_at("refund", json!({})).await;
    fixture.assert_refunded_once(order).await;
}

#[tokio::test]
async fn a_refund_that_was_answered_with_a_500_is_found_or_made_again() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    let fault = json!({ "error_after_execution_rate": 1.0 });
    let executed = fixture.cancelled_order(fault).await;
    fixture.assert_refunded_once(executed).await;
    assert_eq!(fixture.key_number(executed).await, 0);
    let order = fixture.cancelled_order(json!({ "error_rate": 1.0 })).await;
    fixture.until_next_key(order).await;
    fixture.inject_at("refund", json!({})).await;
    fixture.assert_refunded_once(order).await;
}

/// A key that may charge and not refund, for example.
#[tokio::test]
async fn refunds_that_fail_stop_no_charge() {
    let fixture = Fixture::new().await;
    let _payment = fixture.start().await;
    // Refunds are also searched for.
    let fault = json!({ "unavailable_rate": 1.0 });
    fixture.inject_at("list", fault).await;
    let mut cancelled = Vec::new();
    for _ in 0..30 {
        let fault = json!({ "unavailable_rate": 1.0 });
        cancelled.push(fixture.cancelled_order(fault).await);
    }
    let failed = "SELECT sum(attempts) FROM payments WHERE status = 'refunding'";
    eventually("the circuit of refunds is open", async || {
        let failed = sqlx::query_scalar::<_, Option<i64>>(failed);
        let failed = failed.fetch_one(&fixture.database).await.unwrap();
        failed.unwrap_or_default() >= 10
    })
    .await;
    // All are due: one of them is the call that the circuit lets through.
    let due = "UPDATE payments SET due_at = now() - interval '1 second' WHERE status = 'refunding'";
    sqlx::query(due).execute(&fixture.database).await.unwrap();
    let order = fixture.publish_order().await;
    fixture.assert_charged_once(order).await;
    assert_ne!(fixture.status(cancelled[0]).await.0, "refunded");
    fixture.inject_at("refund", json!({})).await;
    fixture.inject_at("list", json!({})).await;
    for order in cancelled {
        fixture.assert_refunded_once(order).await;
    }
}

/// The method and the request of a payment.
async fn stored(fixture: &Fixture, order: OrderId) -> (Option<String>, Option<String>) {
    let stored = sqlx::query_as("SELECT method, request FROM payments WHERE order_id = $1");
    let stored = stored.bind(order.0).fetch_optional(&fixture.database).await;
    stored.unwrap().unwrap_or_default()
}

#[tokio::test]
async fn a_payment_method_is_stored_only_until_its_charge_is_settled() {
    let fixture = Fixture::new().await;
    let _replica = fixture.start().await;
    let forgotten = (Some("forgotten".to_owned()), None);
    fixture.inject(json!({ "latency_ms": 60_000 })).await;
    let captured = fixture.publish_order().await;
    fixture.until_called(captured).await;
    let (method, request) = stored(&fixture, captured).await;
    assert_eq!(method.as_deref(), Some("tok_visa"));
    assert!(request.unwrap().contains("tok_visa"));
    fixture.inject(json!({})).await;
    fixture.assert_charged_once(captured).await;
    assert_eq!(stored(&fixture, captured).await, forgotten);
    // The refund needs none.
    fixture.publish_cancellation(captured).await;
    fixture.until_status(captured, "refunded").await;
    assert_eq!(stored(&fixture, captured).await, forgotten);

    let voided = fixture.publish_order_until(SystemTime::now()).await;
    fixture.until_status(voided, "pending").await;
    fixture.publish_cancellation(voided).await;
    fixture.until_status(voided, "voided").await;
    assert_eq!(stored(&fixture, voided).await, forgotten);
}

#[tokio::test]
async fn payment_methods_of_charges_that_the_version_before_has_settled_are_forgotten() {
    let fixture = Fixture::new().await;
    drop(fixture.start().await);
    let (settled, open) = (OrderId::new(), OrderId::new());
    for order in [settled, open] {
        let body = Some("payment_method=tok_visa".to_owned());
        fixture.write_asked(order, Uuid::now_v7(), body).await;
    }
    let settle = "UPDATE payments SET due_at = now() + interval '1 day',
            status = CASE order_id WHEN $1 THEN 'failed' ELSE status END";
    let settle = sqlx::query(settle).bind(settled.0);
    settle.execute(&fixture.database).await.unwrap();
    let _replica = fixture.start().await;
    let forgotten = (Some("forgotten".to_owned()), None);
    eventually("it is forgotten", async || {
        stored(&fixture, settled).await == forgotten
    })
    .await;
    assert_eq!(stored(&fixture, open).await.0.as_deref(), Some("tok_visa"));
}
