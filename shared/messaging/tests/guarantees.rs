//! The guarantees of the README, on a real PostgreSQL and a real nats-server.

mod faults;
mod fixture;

use std::time::Duration;

use contracts::{OrderId, Service};
use devstack::{
    Durability, Logs, Postgres, Reaper, TemporaryDirectory, free_port,
    test::{self, eventually},
};
use fixture::Fixture;
use futures::future::try_join_all;
use messaging::{Broker, DedicatedConnection, Login, outbox};
use sqlx::PgConnection;

#[tokio::test]
async fn an_event_is_published_if_and_only_if_its_state_is_committed() {
    let fixture = Fixture::new().await;
    let (committed, rolled_back) = (OrderId::new(), OrderId::new());
    let mut tx = fixture.publisher.pool.begin().await.unwrap();
    fixture.append(&mut tx, rolled_back).await;
    tx.rollback().await.unwrap();
    fixture.publish(committed).await;
    let running = fixture.run_publisher();
    eventually("the committed event is in the stream", async || {
        fixture.stream("ORDER").await.len() == 1
    })
    .await;
    assert_eq!(fixture.stream("ORDER").await, [committed]);
    running.stop().await;
}

#[tokio::test]
async fn an_outbox_is_published_after_a_restart() {
    let fixture = Fixture::new().await;
    for _ in 0..600 {
        fixture.publish(OrderId::new()).await;
    }
    let running = fixture.run_publisher();
    eventually("all events are in the stream", async || {
        fixture.stream("ORDER").await.len() == 600
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn events_wait_for_an_unavailable_broker() {
    let mut fixture = Fixture::new().await;
    let running = fixture.run_publisher();
    fixture.publish(OrderId::new()).await;
    eventually("the first event is published", async || {
        fixture.unsent().await == 0
    })
    .await;
    let (logs, reaper) = test::broker_environment().await.unwrap();
    let server = fixture.server.take().unwrap();
    for _ in 0..20 {
        fixture.publish(OrderId::new()).await;
    }
    fixture.server = Some(server.crash_and_restart(&logs, &reaper).await.unwrap());
    eventually("all events are published", async || {
        fixture.unsent().await == 0
    })
    .await;
    assert_eq!(fixture.stream("ORDER").await.len(), 21);
    running.stop().await;
}

#[tokio::test]
async fn an_event_that_is_delivered_twice_is_applied_once() {
    let fixture = Fixture::new().await;
    let order = OrderId::new();
    fixture.publish(order).await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    eventually("the event is applied", async || {
        fixture.applied().await == [order]
    })
    .await;
    // A new consumer knows no position: the broker delivers everything again.
    consumer.stop().await;
    fixture.delete_consumer("ORDER").await;
    let after = OrderId::new();
    fixture.publish(after).await;
    let consumer = fixture.run_consumer();
    eventually("the next event is applied", async || {
        fixture.applied().await.contains(&after)
    })
    .await;
    assert_eq!(fixture.applied().await, [order, after]);
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn copies_within_one_batch_are_applied_once() {
    let fixture = Fixture::new().await;
    let order = OrderId::new();
    fixture.declare().await;
    for _ in 0..5 {
        fixture.publish_copy_of(order).await;
    }
    let consumer = fixture.run_consumer();
    eventually("everything is acknowledged", async || {
        fixture.is_idle("ORDER").await
    })
    .await;
    assert_eq!(fixture.applied().await, [order]);
    consumer.stop().await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_consumed_holds_up_no_other() {
    let fixture = Fixture::new().await;
    fixture.declare().await;
    let consumer = fixture.run_consumer();
    eventually("it consumes", async || fixture.is_idle("PAYMENT").await).await;
    fixture.break_consumer("PAYMENT").await;
    eventually("readiness names the stream", async || {
        let check = fixture.consumer.progress.check();
        check.is_err_and(|reason| reason.starts_with("consumer of PAYMENT"))
    })
    .await;
    let order = OrderId::new();
    fixture.publish_copy_of(order).await;
    eventually("another stream is consumed", async || {
        fixture.applied().await == [order]
    })
    .await;
    fixture.delete_consumer("PAYMENT").await;
    eventually("readiness is back", async || {
        fixture.consumer.progress.check().is_ok()
    })
    .await;
    consumer.stop().await;
}

#[tokio::test]
async fn a_poison_event_becomes_a_dead_letter_and_its_neighbours_are_applied() {
    let fixture = Fixture::new().await;
    let orders = [OrderId::new(), OrderId::new(), OrderId::new()];
    fixture.handler.poison(orders[1]);
    for order in orders {
        fixture.publish(order).await;
    }
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    eventually("the dead letter is published", async || {
        fixture.dead_letters().await.len() == 1
    })
    .await;
    eventually("the others are applied", async || {
        fixture.applied().await == [orders[0], orders[2]]
    })
    .await;
    let letter = fixture.dead_letters().await.remove(0);
    let text = |name| {
        letter
            .headers
            .as_ref()
            .and_then(|headers| headers.get(name))
            .map(ToString::to_string)
    };
    use contracts::dead_letter::header;
    assert_eq!(
        letter.subject.as_str(),
        "dlq.notification.order.confirmed.v1"
    );
    assert_eq!(text(header::REASON).as_deref(), Some("injected poison"));
    assert_eq!(text(header::ATTEMPTS).as_deref(), Some("1"));
    assert_eq!(
        (
            text(header::STREAM).as_deref(),
            text(header::SEQUENCE).as_deref()
        ),
        (Some("ORDER"), Some("2"))
    );
    assert_eq!(
        text(contracts::header::SUBJECT),
        Some(orders[1].to_string())
    );
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn a_failing_event_is_retried_and_does_not_fail_its_batch() {
    let fixture = Fixture::new().await;
    let orders = [OrderId::new(), OrderId::new(), OrderId::new()];
    fixture.handler.fail(orders[0], 2);
    for order in orders {
        fixture.publish(order).await;
    }
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    eventually("all are applied", async || {
        fixture.applied().await.len() == 3
    })
    .await;
    assert_eq!(
        fixture.applied().await,
        [orders[1], orders[2], orders[0]],
        "the failed one comes last"
    );
    assert!(fixture.dead_letters().await.is_empty());
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn a_consumer_keeps_its_connection_until_a_transaction_fails() {
    let fixture = Fixture::new().await;
    let pool = &fixture.consumer.pool;
    // The pool hands out the one that was idle for the longest time: all are open, so that the
    // same one twice in a row is no coincidence.
    let size = pool.options().get_max_connections();
    let open = try_join_all((0..size).map(|_| pool.acquire())).await;
    drop(open.unwrap());
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    let apply = async |events| {
        fixture.publish(OrderId::new()).await;
        eventually("the event is applied", async || {
            fixture.applied().await.len() == events
        })
        .await;
    };
    // A connection that did not respond for a second, on a machine that pauses, is replaced.
    let mut events = 0;
    let kept = loop {
        events += 1;
        apply(events).await;
        let backends = fixture.backends().await;
        if let [.., first, second, third, last] = backends[..]
            && [first, second, third] == [last; 3]
        {
            break last;
        }
        assert!(events < 40, "{backends:?}");
    };

    let failing = OrderId::new();
    fixture.handler.fail(failing, 1);
    fixture.publish(failing).await;
    eventually("the event is applied in the second attempt", async || {
        fixture.applied().await.len() == events + 1
    })
    .await;
    assert_ne!(fixture.backends().await.last(), Some(&kept));
    assert!(fixture.dead_letters().await.is_empty());
    publisher.stop().await;
    consumer.stop().await;
}

/// A service that has had nothing to do since the database was restarted refuses nobody.
#[tokio::test]
async fn a_connection_that_has_ended_while_it_was_idle_is_replaced() {
    async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
        let backend = sqlx::query_scalar("SELECT pg_backend_pid()");
        backend.fetch_one(connection).await
    }

    let (pool, _) = test::database(&[]).await.unwrap();
    let dedicated = DedicatedConnection::new(pool.clone());
    let mut connection = dedicated.take().await.unwrap();
    let ended = backend(&mut connection).await.unwrap();
    dedicated.put_back(connection);
    let kill = sqlx::query("SELECT pg_terminate_backend($1, 300000)").bind(ended);
    kill.execute(&pool).await.unwrap();
    // From then on it is tested.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut connection = dedicated.take().await.unwrap();
    assert_ne!(backend(&mut connection).await.unwrap(), ended);
}

#[tokio::test]
async fn an_event_that_never_succeeds_becomes_a_dead_letter_after_its_attempts() {
    let mut fixture = Fixture::new().await;
    fixture.consumer.max_attempts = 3;
    let (failing, after) = (OrderId::new(), OrderId::new());
    fixture.handler.fail(failing, u32::MAX);
    fixture.publish(failing).await;
    fixture.publish(after).await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    eventually("the dead letter is published", async || {
        fixture.dead_letters().await.len() == 1
    })
    .await;
    eventually("its neighbour is applied", async || {
        fixture.applied().await == [after]
    })
    .await;
    let letter = format!("{:?}", fixture.dead_letters().await);
    assert!(
        letter.contains("gave up after 3 attempts: injected failure"),
        "{letter}"
    );
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn consumption_pauses_while_the_database_is_unavailable_and_no_attempt_is_counted() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    let logs = Logs::Directory(devstack::tools::target_directory().join("test-logs/unavailable"));
    let port = free_port().unwrap();
    let place = directory.path().join("postgres");
    let start = async || {
        Postgres::start(&place, port, Durability::Ephemeral, &logs, &reaper)
            .await
            .unwrap()
    };
    let server = start().await;
    let mut fixture = Fixture::new().await;
    fixture
        .consume_from(&server.url("postgres", "postgres"))
        .await;
    fixture.consumer.max_attempts = 1;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    let first = OrderId::new();
    fixture.publish(first).await;
    eventually("the first event is applied", async || {
        fixture.applied().await == [first]
    })
    .await;
    server.stop().await.unwrap();
    let while_away = OrderId::new();
    fixture.publish(while_away).await;
    eventually("the event waits at the consumer", async || {
        fixture.is_waiting("ORDER").await
    })
    .await;
    let server = start().await;
    eventually("it is applied", async || {
        fixture.applied().await == [first, while_away]
    })
    .await;
    assert!(
        fixture.dead_letters().await.is_empty(),
        "one failed attempt would have been too many"
    );
    publisher.stop().await;
    consumer.stop().await;
    server.stop().await.unwrap();
}

/// Another transaction has inserted the same row meanwhile; at the second attempt it is found.
#[tokio::test]
async fn a_lost_race_between_two_insertions_counts_no_attempt() {
    let mut fixture = Fixture::new().await;
    fixture.consumer.max_attempts = 1;
    let lose_once = "
        CREATE SEQUENCE races;
        CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('races') = 1 THEN
                RAISE EXCEPTION 'it exists' USING ERRCODE = 'unique_violation';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER lose BEFORE INSERT ON applied FOR EACH ROW EXECUTE FUNCTION lose()";
    let lose_once = sqlx::raw_sql(lose_once).execute(&fixture.consumer.pool);
    lose_once.await.unwrap();
    let order = OrderId::new();
    fixture.publish(order).await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    eventually("the event is applied or a dead letter", async || {
        !fixture.applied().await.is_empty() || !fixture.dead_letters().await.is_empty()
    })
    .await;
    assert_eq!(fixture.applied().await, [order]);
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn the_outbox_is_flushed_at_shutdown() {
    let fixture = Fixture::new().await;
    let running = fixture.run_publisher();
    eventually("streams are there", async || {
        fixture.stream_exists("ORDER").await
    })
    .await;
    // On a machine that pauses the time for it may be over too soon.
    let (mut running, mut appended) = (running, 0);
    for _ in 0..5 {
        for _ in 0..200 {
            fixture.append_quietly(OrderId::new()).await;
        }
        appended += 200;
        running.stop().await;
        if fixture.unsent().await == 0 {
            assert_eq!(fixture.stream("ORDER").await.len(), appended);
            return;
        }
        running = fixture.run_publisher();
        eventually("they are published", async || fixture.unsent().await == 0).await;
    }
    panic!("{} events are not published", fixture.unsent().await);
}

#[tokio::test]
async fn cause_correlation_and_trace_reach_the_handler_and_its_events() {
    let fixture = Fixture::new().await;
    let order = OrderId::new();
    let published = fixture.publish(order).await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    eventually("the event is applied", async || {
        fixture.applied().await == [order]
    })
    .await;
    let causes = fixture.handler.causes();
    assert_eq!(
        causes[0].causation_id, published.event_id,
        "events that follow name this event as their cause"
    );
    assert_eq!(causes[0].correlation_id, published.cause.correlation_id);
    assert_eq!(causes[0].traceparent, published.cause.traceparent);
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn streams_and_consumers_can_be_declared_again() {
    let fixture = Fixture::new().await;
    fixture.declare().await;
    fixture.publish_copy_of(OrderId::new()).await;
    fixture.declare().await;
    assert_eq!(fixture.stream("ORDER").await.len(), 1);
    for service in Service::ALL {
        fixture.declare_consumers_of(service).await;
        fixture.declare_consumers_of(service).await;
    }
}

#[tokio::test]
async fn several_replicas_may_migrate_at_once() {
    let (pool, _) = test::database(&[]).await.unwrap();
    let migrate = || async { messaging::migrator().run(&pool).await };
    let (one, two, three) = tokio::join!(migrate(), migrate(), migrate());
    assert!(
        one.is_ok() && two.is_ok() && three.is_ok(),
        "{one:?} {two:?} {three:?}"
    );
}

#[tokio::test]
async fn an_invalid_broker_address_fails_at_once_and_is_named() {
    let refused = tokio::time::timeout(
        test::TIMEOUT,
        Broker::connect("nats://user@", Login::default()),
    )
    .await;
    let message = format!(
        "{:?}",
        refused
            .expect("an invalid address must fail at once")
            .unwrap_err()
    );
    assert!(message.contains("nats://user@"), "{message}");
}

#[tokio::test]
async fn the_history_of_an_order_is_its_events_in_order() {
    let fixture = Fixture::new().await;
    let order = OrderId::new();
    fixture.publish(order).await;
    fixture.publish(OrderId::new()).await;
    fixture.publish(order).await;
    let history = outbox::history(&fixture.publisher.pool, order)
        .await
        .unwrap();
    assert_eq!(history.len(), 2);
    assert!(
        history
            .iter()
            .all(|event| event.order_id == order && event.subject == "order.confirmed.v1")
    );
}
