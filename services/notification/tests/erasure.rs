//! The erasure of a customer by the notification service, with a real database and broker. The test
//! writes notifications and dead letters.
#![expect(clippy::unwrap_used, reason = "a test")]

use async_nats::HeaderMap;
use contracts::{CustomerId, NotificationId, OrderId};
use devstack::test::ServiceFixture;
use serde_json::{Value, json};

struct System {
    fixture: ServiceFixture,
}

impl System {
    async fn start() -> Self {
        let program = env!("CARGO_BIN_EXE_notification");
        Self {
            fixture: ServiceFixture::start(program, &[], 1).await.unwrap(),
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

    /// A notification of so many hours ago, with this reason why its mail was given up.
    async fn notification(&self, customer: CustomerId, hours: f64, given_up: Option<String>) {
        let insert = sqlx::query(
            "INSERT INTO notifications (notification_id, order_id, customer_id, kind, created_at,
                                        mail_due_at, mail_given_up_at, mail_given_up_reason)
             VALUES ($1, $2, $3, 'order_confirmed', now() - make_interval(hours => 1) * $4,
                     CASE WHEN $5::text IS NULL THEN now() + interval '1 hour' END,
                     CASE WHEN $5 IS NOT NULL THEN now() END, $5)",
        );
        let insert = insert.bind(NotificationId::new().0).bind(OrderId::new().0);
        let insert = insert.bind(customer.0).bind(hours).bind(given_up);
        insert.execute(&self.fixture.database).await.unwrap();
    }

    async fn mentions(&self, customer: CustomerId) -> i64 {
        let count = "SELECT count(*) FROM notifications AS t WHERE t::text LIKE '%' || $1 || '%'";
        let count = sqlx::query_scalar(count).bind(customer.to_string());
        count.fetch_one(&self.fixture.database).await.unwrap()
    }
}

#[tokio::test]
async fn a_customer_is_erased_from_notifications_and_mails_that_wait_are_given_up() {
    let system = System::start().await;
    let (customer, other) = (CustomerId::new(), CustomerId::new());
    let refused = format!("550 <{customer}@customers.sagacity.example> is unknown");
    system.notification(customer, 73.0, Some(refused)).await;
    system.notification(customer, 73.0, None).await;
    system.notification(other, 73.0, None).await;
    let (status, report) = system.erase(customer).await;
    let counts = json!({ "notifications": 2 });
    assert_eq!((status, &report["erased"]), (200, &counts), "{report}");
    assert_eq!(system.mentions(customer).await, 0);
    assert_eq!(system.mentions(other).await, 1);
    let given_up = "SELECT count(*) FROM notifications
        WHERE customer_id = order_id AND mail_due_at IS NULL AND mail_given_up_at IS NOT NULL
            AND mail_given_up_reason = 'the customer was erased'";
    assert_eq!(system.fixture.count(given_up).await.unwrap(), 2);
    let (status, again) = system.erase(customer).await;
    let counts = json!({ "notifications": 0 });
    assert_eq!((status, &again["erased"]), (200, &counts), "{again}");
}

#[tokio::test]
async fn a_notification_that_is_young_is_not_erased() {
    let system = System::start().await;
    let customer = CustomerId::new();
    system.notification(customer, 71.0, None).await;
    let (status, report) = system.erase(customer).await;
    assert_eq!(status, 409, "{report}");
    assert_eq!(system.mentions(customer).await, 1);
}

#[tokio::test]
async fn a_customer_with_a_dead_letter_is_not_erased_until_an_operator_has_decided() {
    let system = System::start().await;
    let (customer, other) = (CustomerId::new(), CustomerId::new());
    let jetstream = &system.fixture.jetstream;
    for (service, id) in [
        ("notification", other),
        ("payment", customer),
        ("notification", customer),
    ] {
        let subject = format!("dlq.{service}.order.confirmed.v1");
        let payload = format!("an event about {id} that nobody can read").into_bytes();
        let published = devstack::jetstream::publish(jetstream, subject, HeaderMap::new(), payload);
        published.await.unwrap();
    }
    let (status, report) = system.erase(customer).await;
    assert_eq!(status, 409, "{report}");
    // The second is another service's.
    let obstacles = json!(["dead letter 3 is about the customer: redrive or discard it"]);
    assert_eq!(report["obstacles"], obstacles);
    let stream = jetstream.get_stream("DEAD_LETTER").await.unwrap();
    stream.delete_message(3).await.unwrap();
    assert_eq!(system.erase(customer).await.0, 200);
}
