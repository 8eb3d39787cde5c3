//! What the guarantees are worth when the database or the broker is in trouble, and while two
//! versions of a service run beside each other.

mod broker;
mod relay;
mod retention;

use std::time::Duration;

use contracts::{OrderId, Service};
use devstack::test::{self, eventually};
use sqlx::postgres::PgPoolOptions;

use crate::fixture::Fixture;

#[tokio::test]
async fn a_locked_table_makes_no_dead_letter_and_consumption_resumes_by_itself() {
    let mut fixture = Fixture::new().await;
    fixture.consumer.max_attempts = 1;
    let impatient = [("lock_timeout", "50")];
    let options = (*fixture.consumer.pool.connect_options()).clone();
    let locking = fixture.consumer.pool.clone();
    fixture.consumer.pool = PgPoolOptions::new().connect_lazy_with(options.options(impatient));
    let mut lock = locking.begin().await.unwrap();
    sqlx::query("LOCK TABLE applied")
        .execute(&mut *lock)
        .await
        .unwrap();
    let orders: Vec<OrderId> = (0..5).map(|_| OrderId::new()).collect();
    for order in &orders {
        fixture.publish(*order).await;
    }
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    let progress = fixture.consumer.progress.clone();
    eventually("readiness tells why consumption pauses", async || {
        let check = progress.check();
        check.is_err_and(|reason| reason.contains("lock timeout"))
    })
    .await;
    lock.rollback().await.unwrap();
    eventually("all events are applied", async || {
        fixture.applied().await.len() == orders.len()
    })
    .await;
    eventually("readiness is back", async || progress.check().is_ok()).await;
    assert_eq!(fixture.dead_letters().await.len(), 0);
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn a_schema_that_does_not_fit_makes_no_dead_letter_and_consumption_resumes_by_itself() {
    let mut fixture = Fixture::new().await;
    fixture.consumer.max_attempts = 1;
    let pool = fixture.consumer.pool.clone();
    let rename = async |statement: &'static str| {
        sqlx::query(statement).execute(&pool).await.unwrap();
    };
    rename("ALTER TABLE applied RENAME TO applied_later").await;
    let orders: Vec<OrderId> = (0..5).map(|_| OrderId::new()).collect();
    for order in &orders {
        fixture.publish(*order).await;
    }
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    let progress = fixture.consumer.progress.clone();
    eventually("readiness tells what is missing", async || {
        let check = progress.check();
        check.is_err_and(|reason| reason.contains("\"applied\" does not exist"))
    })
    .await;
    rename("ALTER TABLE applied_later RENAME TO applied").await;
    eventually("all events are applied", async || {
        fixture.applied().await.len() == orders.len()
    })
    .await;
    assert_eq!(fixture.dead_letters().await.len(), 0);
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn shutdown_ends_well_while_the_broker_is_away() {
    let mut fixture = Fixture::new().await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    fixture.publish(OrderId::new()).await;
    eventually("the first event is applied", async || {
        fixture.applied().await.len() == 1
    })
    .await;
    drop(fixture.server.take());
    for _ in 0..20 {
        fixture.publish(OrderId::new()).await;
    }
    let stop = async {
        publisher.stop().await;
        consumer.stop().await;
    };
    let stopped = tokio::time::timeout(test::TIMEOUT, stop).await;
    assert!(stopped.is_ok(), "the tasks wait for the broker");
}

#[tokio::test]
async fn an_unknown_version_waits_for_a_newer_replica_and_then_becomes_a_dead_letter() {
    let mut fixture = Fixture::new().await;
    fixture.declare().await;
    fixture.publish_unknown_version().await;
    let consumer = fixture.run_consumer();
    eventually("the event is in hand", async || {
        fixture.is_waiting("ORDER").await
    })
    .await;
    assert_eq!(fixture.dead_letters().await.len(), 0);
    consumer.stop().await;

    fixture.consumer.unknown_timeout = Duration::ZERO;
    let consumer = fixture.run_consumer();
    eventually("the event is a dead letter", async || {
        fixture.dead_letters().await.len() == 1
    })
    .await;
    consumer.stop().await;
}

/// They take every place that the broker grants a consumer.
#[tokio::test]
async fn any_number_of_unknown_versions_end_as_dead_letters_and_other_events_are_applied() {
    let mut fixture = Fixture::new().await;
    fixture.consumer.unknown_timeout = Duration::from_secs(4);
    fixture.declare().await;
    let more_than_are_in_flight = 4096 + 50;
    for _ in 0..more_than_are_in_flight {
        fixture.publish_unknown_version().await;
    }
    let order = OrderId::new();
    fixture.publish_copy_of(order).await;
    let consumer = fixture.run_consumer();
    eventually("an event that is known is applied", async || {
        fixture.applied().await == [order]
    })
    .await;
    eventually("all others are dead letters", async || {
        fixture.count_of("DEAD_LETTER").await >= more_than_are_in_flight
    })
    .await;
    consumer.stop().await;
}

#[tokio::test]
async fn a_consumer_never_narrows_what_a_newer_replica_subscribes_to() {
    let fixture = Fixture::new().await;
    fixture.declare().await;
    fixture.widen_consumer("order.shipped.*").await;
    let consumer = fixture.run_consumer();
    fixture.publish_copy_of(OrderId::new()).await;
    eventually("the consumer runs", async || {
        fixture.applied().await.len() == 1
    })
    .await;
    let filters = fixture.filters("ORDER").await;
    assert!(
        filters.contains(&"order.shipped.*".to_owned()),
        "{filters:?}"
    );
    assert!(
        filters.contains(&"order.confirmed.*".to_owned()),
        "{filters:?}"
    );
    consumer.stop().await;
}

/// It may exist, with filters that a newer replica has widened.
#[tokio::test]
async fn a_consumer_that_cannot_be_looked_at_is_left_as_it_is() {
    let fixture = Fixture::with_unseen_consumer().await;
    fixture.declare().await;
    fixture.widen_consumer("order.shipped.*").await;
    let broker = &fixture.consumer.broker;
    let reconciled = messaging::topology::reconcile_consumers(broker, Service::Notification);
    let error = reconciled.await.unwrap_err().to_string();
    assert!(error.contains("consumer notification on ORDER"), "{error}");
    let filters = fixture.filters("ORDER").await;
    assert!(
        filters.contains(&"order.shipped.*".to_owned()),
        "{filters:?}"
    );
}
