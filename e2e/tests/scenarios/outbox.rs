//! Why there is an outbox: a process that dies between its commit and its publish loses the event,
//! unless the event was part of the commit.

use std::{collections::BTreeSet, ffi::OsStr, process::Command, sync::Arc};

use anyhow::{Context as _, ensure};
use contracts::{Cause, CorrelationId, DecodeError, Event, EventId, Inbound, OrderId, Service};
use devstack::test;
use e2e::{Harness, read_stream, wait_for};
use messaging::{
    Broker, Delivery, Handler, Login, Participant,
    outbox::{self, Outgoing},
};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::Outcome;

/// The environment variable with the child's task: this program starts itself as the process that
/// dies.
pub const CHILD: &str = "SAGACITY_DIES_AFTER_COMMIT";

pub async fn naive_publish_loses_what_the_outbox_keeps(_: &Harness) -> Outcome {
    let (pool, url) = test::database(&[messaging::migrator()]).await?;
    let broker = test::broker().await?;
    sqlx::query("CREATE TABLE reserved (order_id uuid PRIMARY KEY)")
        .execute(&pool)
        .await?;
    let (naive, kept) = (OrderId::new(), OrderId::new());
    for (how, order) in [("naive", naive), ("outbox", kept)] {
        let died = Command::new(std::env::current_exe()?)
            .env(CHILD, format!("{how} {order} {url}"))
            .stderr(std::process::Stdio::null())
            .status()?;
        ensure!(!died.success(), "the child should have died");
    }
    // Both states were committed ...
    let committed: i64 = sqlx::query_scalar("SELECT count(*) FROM reserved")
        .fetch_one(&pool)
        .await?;
    ensure!(committed == 2, "{committed}");
    // ... and after the restart, only one of the two events is published.
    let participant = Participant::new(
        Service::Inventory,
        pool,
        Broker::connect(
            &broker.url(),
            Login {
                user: "test",
                ..Login::default()
            },
        )
        .await?,
    );
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(messaging::run::run(
        participant,
        Arc::new(PublishOnly),
        shutdown.clone(),
    ));
    let jetstream = devstack::jetstream::open(&broker.url()).await?;
    let published = wait_for("the event of the outbox", async || {
        let messages = read_stream(&jetstream, "INVENTORY").await?;
        Ok((!messages.is_empty()).then_some(messages))
    })
    .await?;
    shutdown.cancel();
    running.await??;
    let about: Vec<String> = published
        .iter()
        .map(|message| format!("{:?}", message.headers))
        .collect();
    ensure!(
        published.len() == 1 && about[0].contains(&kept.to_string()),
        "{about:?}"
    );
    broker.stop().await?;
    Ok(BTreeSet::new())
}

/// The process that dies right after its commit.
pub fn child(part: &OsStr) -> ! {
    let part = part.to_str().unwrap_or_default().to_owned();
    let result = crate::block_on(async {
        let mut words = part.splitn(3, ' ');
        let (how, order, url) = (words.next(), words.next(), words.next());
        let order: OrderId = order.context("order")?.parse()?;
        let pool = PgPool::connect(url.context("url")?).await?;
        let mut tx = pool.begin().await?;
        sqlx::query("INSERT INTO reserved VALUES ($1)")
            .bind(order.0)
            .execute(&mut *tx)
            .await?;
        if how == Some("outbox") {
            let cause = Cause {
                correlation_id: CorrelationId::new(),
                causation_id: EventId::new(),
                traceparent: None,
            };
            let event = proto::inventory::v1::InventoryReserved {
                order_id: order.to_string(),
            };
            outbox::append(
                &mut tx,
                &[Outgoing::new(order, Event::InventoryReserved(event), cause)],
            )
            .await?;
        }
        tx.commit().await?;
        anyhow::Ok(())
    });
    match result {
        // Here the naive service would publish.
        Ok(()) => std::process::abort(),
        Err(error) => panic!("{error:#}"),
    }
}

/// Subscribes to nothing: only the relay matters here.
struct PublishOnly;

enum NoEvents {}

impl Inbound for NoEvents {
    const SERVICE: Service = Service::Inventory;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        Err(DecodeError::NotSubscribed(event.subject()))
    }
}

impl Handler for PublishOnly {
    type Inbound = NoEvents;

    async fn handle(
        &self,
        _: &mut PgConnection,
        batch: &[Delivery<NoEvents>],
    ) -> anyhow::Result<Vec<messaging::Outcome>> {
        Ok(batch.iter().map(|_| messaging::Outcome::Done).collect())
    }
}
