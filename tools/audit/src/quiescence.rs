//! Waiting until nothing is in flight: what is still on its way breaks no invariant yet.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use contracts::{Service, choreography::subscriptions};
use tokio::time::Instant;

use crate::sources::Sources;

const OPEN_ORDERS: &str = "SELECT count(*) FROM orders WHERE status IN ('pending', 'paid')";
const OPEN_PAYMENTS: &str =
    "SELECT count(*) FROM payments WHERE status IN ('pending', 'refunding')";
const UNSENT: &str = "SELECT count(*) FROM outbox
    WHERE position > (SELECT position FROM outbox_checkpoint ORDER BY id DESC LIMIT 1)";

/// Waits until nothing is in flight, at most for `patience`. Returns what still is.
pub(super) async fn wait_until_quiescent(
    sources: &mut Sources,
    patience: Duration,
) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + patience;
    loop {
        let in_flight = in_flight(sources).await?;
        if in_flight.is_empty() || Instant::now() > deadline {
            return Ok(in_flight);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn in_flight(sources: &mut Sources) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let orders = count(sources, Service::Order, OPEN_ORDERS).await?;
    found.extend(orders.map(|count| format!("{count} orders")));
    let payments = count(sources, Service::Payment, OPEN_PAYMENTS).await?;
    found.extend(payments.map(|count| format!("{count} payments")));
    for service in Service::ALL {
        let unsent = count(sources, service, UNSENT).await?;
        found.extend(unsent.map(|count| format!("{count} unsent events of {service}")));
        for owner in Service::ALL {
            found.extend(undelivered(sources, owner, service).await?);
        }
    }
    Ok(found)
}

/// The result of a query for a number, unless it is zero.
async fn count(
    sources: &mut Sources,
    service: Service,
    query: &'static str,
) -> anyhow::Result<Option<i64>> {
    let count: i64 = sqlx::query_scalar(query)
        .fetch_one(sources.database(service)?)
        .await?;
    Ok(Some(count).filter(|count| *count > 0))
}

/// The events of `owner` that `subscriber` has not acknowledged, if there are any.
async fn undelivered(
    sources: &mut Sources,
    owner: Service,
    subscriber: Service,
) -> anyhow::Result<Option<String>> {
    let stream = match owner.stream() {
        Some(stream) if !subscriptions(subscriber, owner).is_empty() => stream,
        _ => return Ok(None),
    };
    let stream = sources.jetstream.get_stream(stream).await?;
    let mut consumer: PullConsumer = stream
        .get_consumer(subscriber.name())
        .await
        .map_err(anyhow::Error::from_boxed)?;
    let info = consumer.info().await?;
    let (pending, unacknowledged) = (info.num_pending, info.num_ack_pending);
    let in_flight = pending > 0 || unacknowledged > 0;
    Ok(in_flight.then(|| {
        format!(
            "events of {owner} for {subscriber}: {pending} not delivered, \
             {unacknowledged} not acknowledged"
        )
    }))
}
