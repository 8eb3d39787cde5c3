//! Why there is an outbox: a process that dies between its commit and its publish loses the event,
//! unless the event was part of the commit.

use std::{collections::BTreeSet, ffi::OsStr, process::Command, sync::Arc};

use anyhow::{Context as _, ensure};
use contracts::{
    CorrelationId, DecodeError, Event, EventId, Inbound, OrderId, choreography::Service,
};
use devstack::test;
use e2e::{Pair, adversary, wait_for};
use messaging::{
    Broker, Delivery, Handler, Node, Outcome,
    outbox::{self, Cause, Outgoing},
};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

/// Names the child's part: this program starts itself as the process that dies.
pub(crate) const CHILD: &str = "SAGACITY_DIES_AFTER_COMMIT";

pub(crate) async fn naive_publish_loses_what_the_outbox_keeps() -> anyhow::Result<BTreeSet<Pair>> {
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
    // ... and when the service is back, only one of them is ever told.
    let node = Node::new(
        Service::Inventory,
        pool,
        Broker::connect(&broker.url(), "test").await?,
    );
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(messaging::run(node, Arc::new(Deaf), shutdown.clone()));
    let jetstream = async_nats::jetstream::new(async_nats::connect(broker.url()).await?);
    let told = wait_for("the event of the outbox", async || {
        let messages = adversary::read(&jetstream, "INVENTORY").await?;
        Ok((!messages.is_empty()).then_some(messages))
    })
    .await?;
    shutdown.cancel();
    running.await??;
    let about: Vec<String> = told
        .iter()
        .map(|message| format!("{:?}", message.headers))
        .collect();
    ensure!(
        told.len() == 1 && about[0].contains(&kept.to_string()),
        "{about:?}"
    );
    broker.stop().await?;
    Ok(BTreeSet::new())
}

/// The process that dies right after its commit.
pub(crate) fn child(part: &OsStr) -> ! {
    let part = part.to_str().unwrap_or_default().to_owned();
    let result = crate::run(async {
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
                &[Outgoing::new(
                    order,
                    Event::InventoryReserved(event),
                    &cause,
                )],
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

/// Hears nothing: only the relay is of interest.
struct Deaf;

enum Nothing {}

impl Inbound for Nothing {
    const SERVICE: Service = Service::Inventory;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        Err(DecodeError::NotForUs(event.subject()))
    }
}

impl Handler for Deaf {
    type Inbound = Nothing;

    async fn handle(
        &self,
        _: &mut PgConnection,
        batch: &[Delivery<Nothing>],
    ) -> anyhow::Result<Vec<Outcome>> {
        Ok(batch.iter().map(|_| Outcome::Done).collect())
    }
}
