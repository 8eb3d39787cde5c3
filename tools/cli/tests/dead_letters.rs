//! `sagacity dlq` with a real broker and a service whose handler fails for a while.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::ensure;
use async_nats::jetstream;
use contracts::{
    Cause, CorrelationId, CustomerId, DecodeError, Envelope, Event, EventId, Inbound, Money,
    OrderId, Service,
};
use devstack::{
    jetstream::read_stream,
    test::{self, eventually},
};
use messaging::{Broker, Delivery, Handler, Outcome, Participant, headers};
use proto::order::v1::OrderConfirmed;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

struct Confirmed;

impl Inbound for Confirmed {
    const SERVICE: Service = Service::Notification;

    fn from_event(_: Event) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

/// Fails until it is repaired, then counts.
#[derive(Default)]
struct Repairable {
    is_repaired: AtomicBool,
}

impl Handler for Repairable {
    type Inbound = Confirmed;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Confirmed>],
    ) -> anyhow::Result<Vec<Outcome>> {
        ensure!(self.is_repaired.load(Ordering::SeqCst), "a bug");
        for delivery in batch {
            let insert = sqlx::query("INSERT INTO applied VALUES ($1)");
            insert.bind(delivery.event_id().0).execute(&mut *tx).await?;
        }
        Ok(batch.iter().map(|_| Outcome::Done).collect())
    }
}

async fn publish(jetstream: &jetstream::Context) -> EventId {
    let order_id = OrderId::new();
    let event = Event::OrderConfirmed(OrderConfirmed {
        order_id: order_id.to_string(),
        customer_id: CustomerId::new().to_string(),
        total: Some(Money::new(100, "EUR".parse().unwrap()).into()),
    });
    let envelope = Envelope {
        event_id: EventId::new(),
        subject: event.subject(),
        order_id,
        time: time::OffsetDateTime::now_utc(),
        cause: Cause {
            correlation_id: CorrelationId::new(),
            causation_id: EventId::new(),
            traceparent: None,
        },
    };
    let headers = headers::to_headers(&envelope, Service::Order);
    let subject = event.subject().to_string();
    let published = devstack::jetstream::publish(jetstream, subject, headers, event.encode());
    published.await.unwrap();
    envelope.event_id
}

async fn dlq(nats: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sagacity"));
    command.args(["dlq", "--nats-url", nats]).args(arguments);
    command.env("USER", "an operator").output().await.unwrap()
}

async fn letters(nats: &str) -> Vec<Value> {
    let listed = dlq(nats, &["list", "--json"]).await;
    assert!(listed.status.success(), "{listed:?}");
    serde_json::from_slice(&listed.stdout).unwrap()
}

async fn applied(pool: &PgPool) -> i64 {
    let applied = sqlx::query_scalar("SELECT count(*) FROM applied");
    applied.fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_dead_letter_comes_back_to_the_service_that_gave_up_and_is_applied_once() {
    let server = test::broker().await.unwrap();
    let nats = server.url();
    let (pool, _) = test::database(&[messaging::migrator()]).await.unwrap();
    let create = sqlx::query("CREATE TABLE applied (event_id uuid NOT NULL)");
    create.execute(&pool).await.unwrap();
    let broker = Broker::connect(&nats, "notification").await.unwrap();
    let mut participant = Participant::new(Service::Notification, pool.clone(), broker);
    participant.max_attempts = 1;
    let handler = Arc::new(Repairable::default());
    let shutdown = CancellationToken::new();
    let run = messaging::run::run(participant, Arc::clone(&handler), shutdown.clone());
    let running = tokio::spawn(run);
    let jetstream = jetstream::new(async_nats::connect(&nats).await.unwrap());
    eventually("the streams exist", async || {
        jetstream.get_stream("AUDIT").await.is_ok()
    })
    .await;
    let (first, second) = (publish(&jetstream).await, publish(&jetstream).await);
    eventually("both events are dead letters", async || {
        letters(&nats).await.len() == 2
    })
    .await;
    let listed = letters(&nats).await;
    assert_eq!(listed[0]["service"], "notification");
    assert_eq!(listed[0]["subject"], "order.confirmed.v1");
    assert_eq!(listed[0]["event_id"], first.to_string());
    assert_eq!(listed[0]["reason"], "gave up after 1 attempts: a bug");
    let shown = dlq(&nats, &["show", "1"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("OrderConfirmed"), "{shown}");

    // No selection, and a dry run, change nothing.
    let unselected = dlq(&nats, &["redrive"]).await;
    assert_eq!(unselected.status.code(), Some(1));
    let unselected = String::from_utf8(unselected.stderr).unwrap();
    assert!(unselected.contains("--all"), "{unselected}");
    let dry = dlq(&nats, &["redrive", "--all", "--dry-run"]).await;
    assert!(dry.status.success());
    assert_eq!(letters(&nats).await.len(), 2);

    // As long as the bug is there, it becomes a dead letter again.
    let by_id = ["redrive", "--id", &first.to_string()];
    assert!(dlq(&nats, &by_id).await.status.success());
    eventually("it is a dead letter again", async || {
        let letters = letters(&nats).await;
        letters.len() == 2 && letters[1]["event_id"] == first.to_string()
    })
    .await;
    assert_eq!(letters(&nats).await[1]["subject"], "order.confirmed.v1");
    handler.is_repaired.store(true, Ordering::SeqCst);
    assert!(dlq(&nats, &by_id).await.status.success());
    eventually("the event is applied", async || applied(&pool).await == 1).await;

    let by_reason = ["discard", "--service", "notification", "--reason", "a bug"];
    assert!(dlq(&nats, &by_reason).await.status.success());
    assert_eq!(letters(&nats).await.len(), 0);
    let acts = read_stream(&jetstream, "AUDIT").await.unwrap();
    let acts: Vec<Value> = acts
        .iter()
        .map(|act| serde_json::from_slice(&act.payload).unwrap())
        .collect();
    let acts: Vec<_> = acts
        .iter()
        .map(|act| {
            (
                act["act"].as_str(),
                act["by"].as_str(),
                &act["dead_letter"]["event_id"],
            )
        })
        .collect();
    let (first, second) = (
        Value::from(first.to_string()),
        Value::from(second.to_string()),
    );
    let by = Some("an operator");
    assert_eq!(
        acts,
        [
            (Some("redrive"), by, &first),
            (Some("redrive"), by, &first),
            (Some("discard"), by, &second)
        ]
    );
    // Other consumers of the event do not get it again.
    assert_eq!(read_stream(&jetstream, "ORDER").await.unwrap().len(), 2);
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(applied(&pool).await, 1);
}
