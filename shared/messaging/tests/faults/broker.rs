//! The broker forgets: its disk is deleted or replaced by an older copy, or a stream is deleted.
//! Every event is published again, and applied once.

use std::{collections::HashSet, fs, io, path::Path};

use async_nats::ConnectOptions;
use contracts::OrderId;
use devstack::{Logs, NatsCluster, Reaper, TemporaryDirectory, test::eventually};
use messaging::{
    Broker, Login, StreamSettings, permissions::OPERATOR, topology::reconcile_streams,
};

use crate::fixture::{Fixture, Running};

/// A publisher and a consumer that run, and the orders of all events so far.
struct Traffic {
    fixture: Fixture,
    publisher: Running,
    consumer: Running,
    orders: Vec<OrderId>,
}

impl Traffic {
    /// Starts both, and waits until `events` have arrived and the relay has noted that: it would
    /// begin there after a failure.
    async fn start(events: usize) -> Self {
        let fixture = Fixture::new().await;
        let mut traffic = Self {
            publisher: fixture.run_publisher(),
            consumer: fixture.run_consumer(),
            orders: Vec::new(),
            fixture,
        };
        traffic.publish(events).await;
        traffic.all_arrive().await;
        eventually("a checkpoint is noted", async || {
            traffic.fixture.unsent().await == 0
        })
        .await;
        traffic
    }

    /// The same, after which the broker's store is copied and 30 more events arrive, which the copy
    /// does not have.
    async fn start_and_keep_a_copy() -> Self {
        let mut traffic = Self::start(20).await;
        traffic.fixture.crash_broker(keep).await;
        traffic.publish(30).await;
        traffic.all_arrive().await;
        traffic
    }

    async fn publish(&mut self, events: usize) {
        for _ in 0..events {
            let order = OrderId::new();
            self.fixture.publish(order).await;
            self.orders.push(order);
        }
    }

    /// Waits until all events are applied and in the stream; each must have been applied once.
    async fn all_arrive(&self) {
        let (fixture, orders) = (&self.fixture, &self.orders);
        eventually("all events are applied", async || {
            fixture.applied().await.len() >= orders.len()
        })
        .await;
        let expected: HashSet<_> = orders.iter().copied().collect();
        eventually("all events are in the stream", async || {
            let held: HashSet<_> = fixture.stream("ORDER").await.into_iter().collect();
            held.is_superset(&expected)
        })
        .await;
        let applied = fixture.applied().await;
        assert_eq!(applied.len(), orders.len(), "each is applied once");
        assert_eq!(applied.into_iter().collect::<HashSet<_>>(), expected);
    }

    async fn stop(self) {
        self.publisher.stop().await;
        self.consumer.stop().await;
    }
}

/// Keeps a copy of the broker's store.
fn keep(store: &Path) -> io::Result<()> {
    copy(store, &store.with_extension("copy"))
}

/// Replaces the broker's store by the copy.
fn restore(store: &Path) -> io::Result<()> {
    fs::remove_dir_all(store)?;
    fs::rename(store.with_extension("copy"), store)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_broker_whose_disk_was_deleted_gets_every_event_again() {
    let mut traffic = Traffic::start(30).await;
    let delete = |store: &Path| fs::remove_dir_all(store);
    traffic.fixture.crash_broker(delete).await;
    traffic.publish(10).await;
    traffic.all_arrive().await;
    traffic.stop().await;
}

#[tokio::test]
async fn a_broker_that_went_back_in_time_gets_what_it_lost_again() {
    let mut traffic = Traffic::start_and_keep_a_copy().await;
    traffic.fixture.crash_broker(restore).await;
    traffic.publish(10).await;
    traffic.all_arrive().await;
    traffic.stop().await;
}

#[tokio::test]
async fn a_stream_that_has_used_its_sequences_again_gets_what_it_lost_again() {
    let Traffic {
        mut fixture,
        publisher,
        consumer,
        mut orders,
    } = Traffic::start_and_keep_a_copy().await;
    publisher.stop().await;
    fixture.crash_broker(restore).await;
    // The stream is as long as before when the relay looks at it, but with other events.
    for _ in 0..40 {
        let other = OrderId::new();
        fixture.publish_copy_of(other).await;
        orders.push(other);
    }
    let traffic = Traffic {
        publisher: fixture.run_publisher(),
        fixture,
        consumer,
        orders,
    };
    traffic.all_arrive().await;
    traffic.stop().await;
}

#[tokio::test]
async fn a_deleted_stream_comes_back_with_every_event() {
    let mut traffic = Traffic::start(30).await;
    traffic.fixture.delete_stream("ORDER").await;
    traffic.publish(10).await;
    traffic.all_arrive().await;
    traffic.stop().await;
}

/// What comes before the end that the broker has lost is in the stream. It is missed all the same
/// when the stream drops it before a subscriber is back.
#[tokio::test]
async fn an_event_from_before_a_lost_end_is_kept_for_a_subscriber_that_is_away() {
    let Traffic {
        mut fixture,
        publisher,
        consumer,
        mut orders,
    } = Traffic::start(20).await;
    fixture.declare_consumers().await;
    eventually("the relay knows that all have handled all", async || {
        fixture.unhandled().await == 0
    })
    .await;
    consumer.stop().await;
    orders.extend(fixture.publish_until_noted(10).await);
    fixture.crash_broker(keep).await;
    orders.extend(fixture.publish_until_noted(10).await);
    fixture.crash_broker(restore).await;
    eventually("the lost end is in the stream again", async || {
        fixture.replays().await == 1 && fixture.stream("ORDER").await.ends_with(&orders[30..])
    })
    .await;
    fixture.purge_stream("ORDER").await;
    let traffic = Traffic {
        consumer: fixture.run_consumer(),
        fixture,
        publisher,
        orders,
    };
    eventually("all events are applied", async || {
        traffic.fixture.applied().await.len() == traffic.orders.len()
    })
    .await;
    traffic.stop().await;
}

/// An operator has added some, or another service is configured to have more.
#[tokio::test]
async fn a_stream_keeps_the_replicas_that_it_has() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    let logs = Logs::Directory(devstack::tools::target_directory().join("test-logs/replicas"));
    let cluster = NatsCluster::start(directory.path(), None, &logs, &reaper);
    let cluster = cluster.await.unwrap();
    let url = cluster.url();
    let broker = Broker::connect(
        &url,
        Login {
            user: OPERATOR,
            password: Some("sagacity"),
            tls_dir: None,
        },
    )
    .await
    .unwrap();
    let with = |replicas| {
        broker.clone().with_streams(StreamSettings {
            replicas,
            ..StreamSettings::default()
        })
    };
    eventually(
        "the servers have a leader and take the streams",
        async || reconcile_streams(&with(3)).await.is_ok(),
    )
    .await;
    eventually("a replica that knows of one server starts", async || {
        reconcile_streams(&with(1)).await.is_ok()
    })
    .await;
    let options = ConnectOptions::with_user_and_password(OPERATOR.into(), "sagacity".into());
    let client = devstack::jetstream::connect(options, &url);
    let jetstream = devstack::jetstream::context(client.await.unwrap());
    let stream = jetstream.get_stream("ORDER").await.unwrap();
    assert_eq!(stream.cached_info().config.num_replicas, 3);
    cluster.stop().await.unwrap();
}

/// A newer version has written it, and was rolled back.
#[tokio::test]
async fn an_event_that_this_version_does_not_know_is_published_as_it_is() {
    let fixture = Fixture::new().await;
    let order = OrderId::new();
    fixture.append_quietly(order).await;
    sqlx::query("UPDATE outbox SET subject = 'order.archived.v9'")
        .execute(&fixture.publisher.pool)
        .await
        .unwrap();
    let publisher = fixture.run_publisher();
    eventually("it is in the stream", async || {
        let published = fixture.messages("ORDER").await;
        let subjects: Vec<_> = published
            .iter()
            .map(|message| message.subject.as_str())
            .collect();
        subjects == ["order.archived.v9"]
    })
    .await;
    publisher.stop().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_published_does_not_hold_up_the_others() {
    let fixture = Fixture::new().await;
    fixture.append_quietly(OrderId::new()).await;
    let spoil = "UPDATE outbox SET subject = 'order. confirmed'";
    sqlx::query(spoil)
        .execute(&fixture.publisher.pool)
        .await
        .unwrap();
    let publisher = fixture.run_publisher();
    let orders = [OrderId::new(), OrderId::new(), OrderId::new()];
    for order in orders {
        fixture.publish(order).await;
    }
    eventually("the others are published", async || {
        fixture.stream("ORDER").await == orders
    })
    .await;
    let set_aside = "SELECT count(*) FROM outbox_set_aside";
    eventually("the event is set aside", async || {
        let set_aside = sqlx::query_scalar::<_, i64>(set_aside);
        set_aside.fetch_one(&fixture.publisher.pool).await.unwrap() == 1
    })
    .await;
    publisher.stop().await;
}
