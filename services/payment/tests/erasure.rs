//! The erasure of a customer by the payment service, with a real database and broker. The test
//! writes payments and events.
#![expect(clippy::unwrap_used, reason = "a test")]

use contracts::{CustomerId, Event, EventId, OrderId};
use devstack::test::ServiceFixture;
use proto::payment::v1::PaymentRefunded;
use serde_json::{Value, json};

struct System {
    fixture: ServiceFixture,
}

impl System {
    async fn start() -> Self {
        let program = env!("CARGO_BIN_EXE_payment");
        // Nothing is asked of the provider.
        let settings = [
            ("PROVIDER_URL", "http://127.0.0.1:1"),
            ("PROVIDER_API_KEY", "sk_test_sagacity"),
        ];
        Self {
            fixture: ServiceFixture::start(program, &settings, 1).await.unwrap(),
        }
    }

    async fn erase(&self, customer: CustomerId) -> (u16, Value) {
        let admin = &self.fixture.replicas[0].admin;
        let request = client::http_client()
            .unwrap()
            .post(format!("{admin}/customers/{customer}/erase"));
        let request = request.json(&json!({ "by": "an operator" }));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// A payment that changed last so many hours ago, as the version before this one left it, with
    /// the event of its refund.
    async fn payment(&self, customer: CustomerId, status: &str, hours: f64) {
        let order = OrderId::new();
        let insert = sqlx::query(
            "INSERT INTO payments (order_id, payment_id, customer_id, status, amount, currency, method, lines,
                                   charge_correlation_id, charge_causation_id, cancel_correlation_id,
                                   cancel_causation_id, updated_at, request, reference, due_at)
             VALUES ($1, $1, $2, $3, 1999, 'EUR', 'tok_visa', '[]', $1, $1, $1, $1,
                     now() - make_interval(hours => 1) * $4, 'token=tok_visa', $5, now() + interval '1 day')",
        );
        let insert = insert.bind(order.0).bind(customer.0).bind(status);
        let reference = (status != "pending").then_some("pi_1");
        let insert = insert.bind(hours).bind(reference);
        insert.execute(&self.fixture.database).await.unwrap();
        let refunded = Event::PaymentRefunded(PaymentRefunded {
            order_id: order.to_string(),
            payment_id: order.to_string(),
            amount: None,
            customer_id: customer.to_string(),
        });
        let append = sqlx::query(
            "INSERT INTO outbox (event_id, subject, order_id, payload, correlation_id, causation_id,
                                 recorded_at, sent_at)
             VALUES ($1, $2, $3, $4, $1, $1, now(), now())",
        );
        let append = append
            .bind(EventId::new().0)
            .bind(refunded.subject().as_str());
        let append = append.bind(order.0).bind(refunded.encode());
        append.execute(&self.fixture.database).await.unwrap();
    }

    /// As if every subscriber had handled all events.
    async fn mark_all_as_handled(&self) {
        let mark = "UPDATE outbox_checkpoint SET position = (SELECT max(position) FROM outbox)
                    WHERE id = (SELECT min(id) FROM outbox_checkpoint)";
        let marked = sqlx::query(mark).execute(&self.fixture.database).await;
        marked.unwrap();
    }

    /// How many rows have a text, also within a payload.
    async fn mentions(&self, text: &str) -> i64 {
        let count = "SELECT (SELECT count(*) FROM payments AS t WHERE t::text LIKE '%' || $1 || '%')
            + (SELECT count(*) FROM outbox AS t WHERE t::text LIKE '%' || encode($1::bytea, 'hex') || '%')";
        let count = sqlx::query_scalar(count).bind(text);
        count.fetch_one(&self.fixture.database).await.unwrap()
    }
}

#[tokio::test]
async fn a_customer_is_erased_from_payments_and_events() {
    let system = System::start().await;
    let (customer, other) = (CustomerId::new(), CustomerId::new());
    system.payment(customer, "refunded", 73.0).await;
    system.payment(customer, "completed", 73.0).await;
    system.payment(other, "refunded", 73.0).await;
    let (status, report) = system.erase(customer).await;
    assert_eq!(status, 409, "a subscriber has not handled it: {report}");
    system.mark_all_as_handled().await;
    let of_other = system.mentions(&other.to_string()).await;
    assert_eq!(system.mentions(&customer.to_string()).await, 4);
    let (status, report) = system.erase(customer).await;
    let counts = json!({ "payments": 2, "outbox": 2 });
    assert_eq!((status, &report["erased"]), (200, &counts), "{report}");
    assert_eq!(system.mentions(&customer.to_string()).await, 0);
    assert_eq!(system.mentions(&other.to_string()).await, of_other);
    let unlinked = "SELECT count(*) FROM payments
        WHERE customer_id = order_id AND method = 'forgotten' AND request IS NULL";
    assert_eq!(system.fixture.count(unlinked).await.unwrap(), 2);
    let (status, again) = system.erase(customer).await;
    assert_eq!(
        (status, &again["erased"]["payments"]),
        (200, &json!(0)),
        "{again}"
    );
}

#[tokio::test]
async fn a_payment_that_has_not_ended_is_not_erased() {
    let system = System::start().await;
    for (status, hours) in [("pending", 73.0), ("refunding", 73.0), ("refunded", 71.0)] {
        let customer = CustomerId::new();
        system.payment(customer, status, hours).await;
        system.mark_all_as_handled().await;
        let (code, report) = system.erase(customer).await;
        assert_eq!(code, 409, "{status}: {report}");
        assert_eq!(system.mentions(&customer.to_string()).await, 2, "{status}");
    }
}
