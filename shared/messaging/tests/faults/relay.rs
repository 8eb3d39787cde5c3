//! The relay reads a log: nothing is missed that is committed late, nothing is published without
//! need, and one process goes on where another has ended.
#![expect(clippy::unwrap_used, reason = "test support")]

use std::time::Duration;

use contracts::OrderId;
use devstack::test::eventually;
use futures::StreamExt as _;
use messaging::headers;
use serde_json::Value;
use sqlx::{PgPool, Row as _};

use crate::fixture::Fixture;

async fn published(fixture: &Fixture, orders: &[OrderId]) {
    eventually("the events are in the stream, in this order", async || {
        fixture.stream("ORDER").await == orders
    })
    .await;
}

#[tokio::test]
async fn an_event_that_is_committed_late_is_published_and_holds_up_nobody() {
    let fixture = Fixture::new().await;
    let publisher = fixture.run_publisher();
    let (late, early) = (OrderId::new(), OrderId::new());
    let mut tx = fixture.publisher.pool.begin().await.unwrap();
    fixture.append(&mut tx, late).await;
    fixture.publish(early).await;
    published(&fixture, &[early]).await;
    // Longer than the relay waits before it asks who may still fill the gap.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let next = OrderId::new();
    fixture.publish(next).await;
    published(&fixture, &[early, next]).await;
    tx.commit().await.unwrap();
    published(&fixture, &[early, next, late]).await;
    eventually("the relay has noted it", async || {
        fixture.unsent().await == 0
    })
    .await;
    publisher.stop().await;
}

#[tokio::test]
async fn a_rolled_back_event_leaves_no_gap_and_a_forgotten_transaction_stops_no_relay() {
    let fixture = Fixture::new().await;
    // It has a transaction id, and never ends: a horizon of transaction ids would wait for it.
    let mut forgotten = fixture.publisher.pool.begin().await.unwrap();
    sqlx::query("CREATE TABLE forgotten ()")
        .execute(&mut *forgotten)
        .await
        .unwrap();
    let publisher = fixture.run_publisher();
    let mut tx = fixture.publisher.pool.begin().await.unwrap();
    fixture.append(&mut tx, OrderId::new()).await;
    let committed = OrderId::new();
    fixture.publish(committed).await;
    published(&fixture, &[committed]).await;
    tx.rollback().await.unwrap();
    eventually("the relay has passed the gap for good", async || {
        fixture.unsent().await == 0
    })
    .await;
    publisher.stop().await;
    forgotten.rollback().await.unwrap();
}

/// Counts what is published, also what the broker drops as a repetition.
#[tokio::test]
async fn any_number_of_relays_publish_every_event_once() {
    let fixture = Fixture::new().await;
    let publications = fixture.publications().await;
    let relays = [
        fixture.run_publisher(),
        fixture.run_publisher(),
        fixture.run_publisher(),
    ];
    for _ in 0..300 {
        fixture.publish(OrderId::new()).await;
    }
    eventually("the outbox is empty", async || fixture.unsent().await == 0).await;
    for relay in relays {
        relay.stop().await;
    }
    // The last one: everything that was published before has arrived before it.
    let last = OrderId::new();
    fixture.publish_copy_of(last).await;
    let counted = publications.take_while(|message| {
        let envelope = headers::from_headers(message.headers.as_ref()).unwrap();
        std::future::ready(envelope.order_id != last)
    });
    // A relay whose acknowledgement is late publishes again, and the stream drops the repetition.
    // Three that do not exclude each other publish three times as many.
    let counted = counted.count().await;
    assert!((300..900).contains(&counted), "{counted} publications");
}

#[tokio::test]
async fn another_process_relays_when_the_session_of_one_ends() {
    let fixture = Fixture::new().await;
    let relays = [fixture.run_publisher(), fixture.run_publisher()];
    let first = OrderId::new();
    fixture.publish(first).await;
    published(&fixture, &[first]).await;
    for _ in 0..3 {
        let end = "SELECT bool_or(pg_terminate_backend(pid)) FROM pg_locks
             WHERE locktype = 'advisory' AND granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        eventually("a process holds the lock", async || {
            let ended = sqlx::query_scalar::<_, Option<bool>>(end);
            let ended = ended.fetch_one(&fixture.publisher.pool).await.unwrap();
            ended.unwrap_or_default()
        })
        .await;
        let order = OrderId::new();
        fixture.publish(order).await;
        eventually("the next event is published", async || {
            fixture.stream("ORDER").await.contains(&order)
        })
        .await;
    }
    for relay in relays {
        relay.stop().await;
    }
}

/// What every subscriber has handled is not published again, however much it is.
#[tokio::test]
async fn a_broker_without_its_disk_gets_only_what_a_subscriber_may_have_missed() {
    let mut fixture = Fixture::new().await;
    fixture.declare().await;
    fixture.declare_consumers().await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    for _ in 0..50 {
        fixture.publish(OrderId::new()).await;
    }
    eventually("all events are applied", async || {
        fixture.applied().await.len() == 50
    })
    .await;
    // The others subscribe to nothing of what was published, and so have handled it.
    eventually("the relay knows", async || fixture.unhandled().await == 0).await;
    consumer.stop().await;
    let missed = OrderId::new();
    fixture.publish(missed).await;
    eventually("the relay has noted it", async || {
        fixture.unsent().await == 0
    })
    .await;
    fixture
        .crash_broker(|store| std::fs::remove_dir_all(store))
        .await;
    published(&fixture, &[missed]).await;
    let consumer = fixture.run_consumer();
    eventually("it is applied", async || {
        fixture.applied().await.contains(&missed)
    })
    .await;
    publisher.stop().await;
    consumer.stop().await;
}

#[tokio::test]
async fn a_subscriber_that_was_away_for_too_long_gets_what_the_stream_has_dropped() {
    let fixture = Fixture::new().await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    let mut orders = vec![OrderId::new()];
    fixture.publish(orders[0]).await;
    eventually("the first event is applied", async || {
        fixture.applied().await.len() == 1
    })
    .await;
    consumer.stop().await;
    orders.extend(fixture.publish_until_noted(30).await);
    // As by age or size: the stream counts on, without its oldest events.
    fixture.purge_stream("ORDER").await;
    let consumer = fixture.run_consumer();
    eventually("all events are applied", async || {
        fixture.applied().await.len() == orders.len()
    })
    .await;
    // The others have never been there: the replay has not waited for them, and has not ended.
    assert_eq!(fixture.replays().await, 1);
    assert!(fixture.unhandled().await > 0);
    fixture.declare_consumers().await;
    eventually("all subscribers have handled all", async || {
        fixture.unhandled().await == 0
    })
    .await;
    assert_eq!(fixture.applied().await.len(), orders.len());
    publisher.stop().await;
    consumer.stop().await;
}

/// What it has missed is far more than the stream holds: all of it at once would push itself out.
#[tokio::test]
async fn what_a_subscriber_has_missed_arrives_although_the_stream_cannot_hold_it_all() {
    let mut fixture = Fixture::new().await;
    fixture.limit_streams(64 * 1024);
    fixture.declare().await;
    fixture.declare_consumers().await;
    let (publisher, consumer) = (fixture.run_publisher(), fixture.run_consumer());
    let first = OrderId::new();
    fixture.publish(first).await;
    eventually("the first event is applied", async || {
        fixture.applied().await == [first]
    })
    .await;
    consumer.stop().await;
    for _ in 0..1_000 {
        fixture.append_quietly(OrderId::new()).await;
    }
    eventually("the relay has noted them", async || {
        fixture.unsent().await == 0
    })
    .await;
    let held = fixture.stream("ORDER").await.len();
    assert!(held < 250, "the stream holds few of them: {held}");

    let consumer = fixture.run_consumer();
    eventually("all events are applied", async || {
        fixture.applied().await.len() == 1_001
    })
    .await;
    eventually("the relay knows", async || fixture.unhandled().await == 0).await;
    assert_eq!(fixture.replays().await, 1);
    publisher.stop().await;
    consumer.stop().await;
}

/// A backup holds its snapshot for hours. What the relay reads must not grow with what was
/// published meanwhile.
#[tokio::test]
async fn a_snapshot_that_is_held_makes_no_statement_of_the_relay_slower() {
    let fixture = Fixture::new().await;
    let pool = &fixture.publisher.pool;
    let mut backup = pool.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        .execute(&mut *backup)
        .await
        .unwrap();
    sqlx::query("SELECT count(*) FROM outbox")
        .execute(&mut *backup)
        .await
        .unwrap();
    let publisher = fixture.run_publisher();
    let mut costs = Vec::new();
    for _ in 0..2 {
        for _ in 0..2_000 {
            fixture.append_quietly(OrderId::new()).await;
        }
        eventually("the outbox is empty", async || fixture.unsent().await == 0).await;
        costs.push(blocks_read(pool).await);
    }
    publisher.stop().await;
    backup.rollback().await.unwrap();
    assert!(costs[1] <= costs[0] + 5, "blocks per read: {costs:?}");
}

/// Blocks that a read at the end of the outbox touches.
async fn blocks_read(pool: &PgPool) -> i64 {
    let explain = format!(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}",
        statement("outbox_read")
    );
    let mut connection = pool.acquire().await.unwrap();
    sqlx::query("SET enable_seqscan = off")
        .execute(&mut *connection)
        .await
        .unwrap();
    let head: i64 = sqlx::query_scalar("SELECT max(position) FROM outbox")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let none: Vec<i64> = Vec::new();
    let explain = sqlx::query(sqlx::AssertSqlSafe(explain));
    let explained = explain.bind(head).bind(512_i64).bind(&none).bind(&none);
    let plan = explained.fetch_one(&mut *connection).await.unwrap();
    let plan: Value = plan.get(0);
    let blocks = |name: &str| plan[0]["Plan"][name].as_i64().unwrap();
    blocks("Shared Hit Blocks") + blocks("Shared Read Blocks")
}

/// The text of a statement of this crate, from its query metadata.
fn statement(name: &str) -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx");
    let first_line = format!("-- {name}\n");
    let files = std::fs::read_dir(directory).unwrap();
    let mut statements = files.map(|file| {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let metadata: Value = serde_json::from_str(&text).unwrap();
        metadata["query"].as_str().unwrap().to_owned()
    });
    statements
        .find(|query| query.starts_with(&first_line))
        .unwrap()
}

#[tokio::test]
async fn a_subscriber_that_cannot_be_looked_at_holds_up_no_publication() {
    let fixture = Fixture::with_unseen_consumer().await;
    let publisher = fixture.run_publisher();
    let (first, second) = (OrderId::new(), OrderId::new());
    fixture.publish(first).await;
    published(&fixture, &[first]).await;
    publisher.stop().await;
    // A relay that starts looks at the subscribers before it publishes.
    let publisher = fixture.run_publisher();
    fixture.publish(second).await;
    published(&fixture, &[first, second]).await;
    // They may not have handled the events.
    assert_eq!(fixture.unhandled().await, 2);
    publisher.stop().await;
}

#[tokio::test]
async fn a_relay_that_cannot_publish_is_not_ready() {
    let fixture = Fixture::new().await;
    fixture.declare_stream_that_takes_nothing().await;
    let publisher = fixture.run_publisher();
    fixture.publish(OrderId::new()).await;
    let progress = fixture.publisher.progress.clone();
    eventually("readiness tells that nothing is published", async || {
        let check = progress.check();
        check.is_err_and(|reason| reason.contains("relay has made no progress"))
    })
    .await;
    publisher.stop().await;
}
