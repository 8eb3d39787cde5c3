//! What the README promises, shown on a real PostgreSQL and a real nats-server.

mod rig;

use std::time::Duration;

use contracts::{OrderId, choreography::Service};
use devstack::{Durability, Logs, Postgres, Reaper, TemporaryDirectory, free_port, test};
use messaging::{Broker, outbox};
use rig::{Rig, eventually};

#[tokio::test]
async fn an_event_is_said_when_its_state_is_committed_and_only_then() {
    let rig = Rig::new().await;
    let (committed, rolled_back) = (OrderId::new(), OrderId::new());
    let mut tx = rig.publisher.pool.begin().await.unwrap();
    rig.append(&mut tx, rolled_back).await;
    tx.rollback().await.unwrap();
    rig.say(committed).await;
    let running = rig.run_publisher();
    eventually("the committed event is in the stream", async || {
        rig.stream("ORDER").await.len() == 1
    })
    .await;
    assert_eq!(rig.stream("ORDER").await, [committed]);
    // The row knows where the stream has it, once the broker's acknowledgement has come.
    eventually("the outbox is empty", async || rig.unsent().await == 0).await;
    let history = outbox::history(&rig.publisher.pool, committed)
        .await
        .unwrap();
    assert_eq!(
        history
            .iter()
            .map(|event| event.stream_sequence)
            .collect::<Vec<_>>(),
        [Some(1)]
    );
    running.stop().await;
}

#[tokio::test]
async fn what_is_in_the_outbox_when_the_process_starts_is_said() {
    let rig = Rig::new().await;
    for _ in 0..600 {
        rig.say(OrderId::new()).await;
    }
    let running = rig.run_publisher();
    eventually("all events are in the stream", async || {
        rig.stream("ORDER").await.len() == 600
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn two_relays_share_an_outbox_and_say_everything_once() {
    let rig = Rig::new().await;
    let relays = [rig.run_publisher(), rig.run_publisher()];
    for _ in 0..300 {
        rig.say(OrderId::new()).await;
    }
    eventually("the outbox is empty", async || rig.unsent().await == 0).await;
    assert_eq!(rig.stream("ORDER").await.len(), 300);
    for relay in relays {
        relay.stop().await;
    }
}

#[tokio::test]
async fn events_wait_for_a_broker_that_is_away() {
    let mut rig = Rig::new().await;
    let running = rig.run_publisher();
    rig.say(OrderId::new()).await;
    eventually("the first event is said", async || rig.unsent().await == 0).await;
    let (logs, reaper) = test::broker_environment().await.unwrap();
    let server = rig.server.take().unwrap();
    for _ in 0..20 {
        rig.say(OrderId::new()).await;
    }
    rig.server = Some(server.crash_and_restart(&logs, &reaper).await.unwrap());
    eventually("all events are said", async || rig.unsent().await == 0).await;
    assert_eq!(rig.stream("ORDER").await.len(), 21);
    running.stop().await;
}

#[tokio::test]
async fn an_event_that_is_delivered_twice_is_applied_once() {
    let rig = Rig::new().await;
    let order = OrderId::new();
    rig.say(order).await;
    let (publisher, consumer) = (rig.run_publisher(), rig.run_consumer());
    eventually("the event is applied", async || {
        rig.applied().await == [order]
    })
    .await;
    // The broker forgets what it has delivered, and delivers everything again.
    consumer.stop().await;
    rig.forget_consumer("ORDER").await;
    let after = OrderId::new();
    rig.say(after).await;
    let consumer = rig.run_consumer();
    eventually("the next event is applied", async || {
        rig.applied().await.contains(&after)
    })
    .await;
    assert_eq!(rig.applied().await, [order, after]);
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn copies_within_one_batch_are_applied_once() {
    let rig = Rig::new().await;
    let order = OrderId::new();
    rig.declare().await;
    for _ in 0..5 {
        rig.publish_copy_of(order).await;
    }
    let consumer = rig.run_consumer();
    eventually("everything is acknowledged", async || {
        rig.is_idle("ORDER").await
    })
    .await;
    assert_eq!(rig.applied().await, [order]);
    consumer.stop().await;
}

#[tokio::test]
async fn a_poison_event_becomes_a_dead_letter_and_its_neighbours_are_applied() {
    let rig = Rig::new().await;
    let orders = [OrderId::new(), OrderId::new(), OrderId::new()];
    rig.handler.poison(orders[1]);
    for order in orders {
        rig.say(order).await;
    }
    let (publisher, consumer) = (rig.run_publisher(), rig.run_consumer());
    eventually("the letter is written", async || {
        rig.dead_letters().await.len() == 1
    })
    .await;
    eventually("the others are applied", async || {
        rig.applied().await == [orders[0], orders[2]]
    })
    .await;
    let letter = rig.dead_letters().await.remove(0);
    let text = |name| {
        letter
            .headers
            .as_ref()
            .and_then(|headers| headers.get(name))
            .map(ToString::to_string)
    };
    use messaging::dead_letter_header as header;
    assert_eq!(
        letter.subject.as_str(),
        "dlq.notification.order.confirmed.v1"
    );
    assert_eq!(text(header::REASON).as_deref(), Some("poisoned"));
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
async fn an_event_that_fails_is_tried_again_and_sinks_nobody_else() {
    let rig = Rig::new().await;
    let orders = [OrderId::new(), OrderId::new(), OrderId::new()];
    rig.handler.fail(orders[0], 2);
    for order in orders {
        rig.say(order).await;
    }
    let (publisher, consumer) = (rig.run_publisher(), rig.run_consumer());
    eventually("all are applied", async || rig.applied().await.len() == 3).await;
    assert_eq!(
        rig.applied().await,
        [orders[1], orders[2], orders[0]],
        "the failed one comes last"
    );
    assert!(rig.dead_letters().await.is_empty());
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn an_event_that_never_succeeds_becomes_a_dead_letter_after_its_attempts() {
    let mut rig = Rig::new().await;
    rig.consumer.max_attempts = 3;
    let (failing, after) = (OrderId::new(), OrderId::new());
    rig.handler.fail(failing, u32::MAX);
    rig.say(failing).await;
    rig.say(after).await;
    let (publisher, consumer) = (rig.run_publisher(), rig.run_consumer());
    eventually("the letter is written", async || {
        rig.dead_letters().await.len() == 1
    })
    .await;
    eventually("its neighbour is applied", async || {
        rig.applied().await == [after]
    })
    .await;
    let letter = format!("{:?}", rig.dead_letters().await);
    assert!(
        letter.contains("gave up after 3 attempts: asked to fail"),
        "{letter}"
    );
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn consumption_pauses_while_the_own_database_is_away_and_no_attempt_is_counted() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    let logs = Logs::Directory(devstack::tools::target_directory().join("test-logs/away"));
    let port = free_port().unwrap();
    let place = directory.path().join("postgres");
    let start = async || {
        Postgres::start(&place, port, Durability::Ephemeral, &logs, &reaper)
            .await
            .unwrap()
    };
    let server = start().await;
    let mut rig = Rig::new().await;
    rig.consume_from(&server.url("postgres", "postgres")).await;
    rig.consumer.max_attempts = 1;
    let (publisher, consumer) = (rig.run_publisher(), rig.run_consumer());
    let first = OrderId::new();
    rig.say(first).await;
    eventually("the first event is applied", async || {
        rig.applied().await == [first]
    })
    .await;
    server.stop().await.unwrap();
    let while_away = OrderId::new();
    rig.say(while_away).await;
    eventually("the event waits at the consumer", async || {
        rig.is_waiting("ORDER").await
    })
    .await;
    let server = start().await;
    eventually("it is applied after all", async || {
        rig.applied().await == [first, while_away]
    })
    .await;
    assert!(
        rig.dead_letters().await.is_empty(),
        "one failed attempt would have been too many"
    );
    publisher.stop().await;
    consumer.stop().await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_committed_before_shutdown_is_said_before_the_process_ends() {
    let rig = Rig::new().await;
    let running = rig.run_publisher();
    eventually("streams are there", async || {
        rig.stream_exists("ORDER").await
    })
    .await;
    for _ in 0..200 {
        rig.append_quietly(OrderId::new()).await;
    }
    running.stop().await;
    assert_eq!(rig.unsent().await, 0);
    assert_eq!(rig.stream("ORDER").await.len(), 200);
}

#[tokio::test]
async fn cause_correlation_and_trace_reach_the_handler_and_what_it_says() {
    let rig = Rig::new().await;
    let order = OrderId::new();
    let said = rig.say(order).await;
    let (publisher, consumer) = (rig.run_publisher(), rig.run_consumer());
    eventually("the event is applied", async || {
        rig.applied().await == [order]
    })
    .await;
    let heard = rig.handler.causes();
    assert_eq!(
        heard[0].causation_id, said.event_id,
        "what follows is caused by the event"
    );
    assert_eq!(heard[0].correlation_id, said.cause.correlation_id);
    assert_eq!(heard[0].traceparent, said.cause.traceparent);
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn streams_and_consumers_are_declared_again_without_harm() {
    let rig = Rig::new().await;
    rig.declare().await;
    rig.publish_copy_of(OrderId::new()).await;
    rig.declare().await;
    assert_eq!(rig.stream("ORDER").await.len(), 1);
    for service in Service::ALL {
        messaging::topology::reconcile_consumers(&rig.consumer.broker, service)
            .await
            .unwrap();
        messaging::topology::reconcile_consumers(&rig.consumer.broker, service)
            .await
            .unwrap();
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
async fn a_broker_that_does_not_exist_is_named() {
    let refused = tokio::time::timeout(
        Duration::from_secs(5),
        Broker::connect("nats://user@", "test"),
    )
    .await;
    let message = format!(
        "{:?}",
        refused
            .expect("an address that is none is no reason to wait")
            .unwrap_err()
    );
    assert!(message.contains("nats://user@"), "{message}");
}

#[tokio::test]
async fn the_history_of_an_order_is_what_was_said_about_it_in_order() {
    let rig = Rig::new().await;
    let order = OrderId::new();
    rig.say(order).await;
    rig.say(OrderId::new()).await;
    rig.say(order).await;
    let history = outbox::history(&rig.publisher.pool, order).await.unwrap();
    assert_eq!(history.len(), 2);
    assert!(
        history
            .iter()
            .all(|event| event.order_id == order && event.subject == "order.confirmed.v1")
    );
}
