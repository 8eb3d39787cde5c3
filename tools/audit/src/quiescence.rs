//! Waiting until nothing is in flight: what is still on its way breaks no invariant yet.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use contracts::{Service, choreography::subscriptions, dead_letter::REDRIVE};
use tokio::time::Instant;

use crate::sources::Sources;

const OPEN_ORDERS: &str = "SELECT count(*) FROM orders WHERE status IN ('pending', 'paid')";
const OPEN_PAYMENTS: &str =
    "SELECT count(*) FROM payments WHERE status IN ('pending', 'refunding')";
const OPEN_MAILS: &str = "SELECT count(*) FROM notifications WHERE mail_due_at IS NOT NULL";
const UNSENT: &str = "SELECT count(*) FROM outbox
    WHERE position > (SELECT position FROM outbox_checkpoint ORDER BY id DESC LIMIT 1)
        AND NOT EXISTS (
            SELECT FROM outbox_set_aside AS aside WHERE aside.position = outbox.position)";
const REPLAYS: &str = "SELECT count(*) FROM outbox_replay WHERE reached_position < until_position";
/// Whether the stream may have dropped events that a subscriber has not handled.
const UNCOMPARED: &str =
    "SELECT (SELECT position FROM outbox_checkpoint ORDER BY id DESC LIMIT 1) > position
        AND stream_sequence + 1 < $1
    FROM outbox_checkpoint ORDER BY id LIMIT 1";

/// Waits until nothing is in flight, at most for `timeout`. Returns what still is.
pub(super) async fn wait_until_quiescent(sources: &mut Sources, timeout: Duration) -> Vec<String> {
    let deadline = Instant::now() + timeout;
    loop {
        // A stream or its leader may be away for a moment.
        let in_flight = look(sources).await;
        let in_flight = in_flight
            .unwrap_or_else(|error| vec![format!("what is in flight cannot be seen: {error:#}")]);
        if in_flight.is_empty() || Instant::now() > deadline {
            return in_flight;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What is in flight. One look asks one part after the other, and an event may move meanwhile from
/// a part that is yet to be asked to one that was: it must lead to work that a second look finds,
/// or to an event, and then a stream has grown.
async fn look(sources: &mut Sources) -> anyhow::Result<Vec<String>> {
    let before = sources.last_sequences().await?;
    for _ in 0..2 {
        let found = in_flight(sources).await?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let unchanged = before == sources.last_sequences().await?;
    let moving = "events are being published".to_owned();
    Ok(if unchanged { Vec::new() } else { vec![moving] })
}

async fn in_flight(sources: &mut Sources) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let orders = count(sources, Service::Order, OPEN_ORDERS).await?;
    found.extend(orders.map(|count| format!("{count} orders")));
    let payments = count(sources, Service::Payment, OPEN_PAYMENTS).await?;
    found.extend(payments.map(|count| format!("{count} payments")));
    let mails = count(sources, Service::Notification, OPEN_MAILS).await?;
    found.extend(mails.map(|count| format!("{count} mails")));
    for service in Service::ALL {
        let unsent = count(sources, service, UNSENT).await?;
        found.extend(unsent.map(|count| format!("{count} unsent events of {service}")));
        let replays = count(sources, service, REPLAYS).await?;
        found.extend(replays.map(|_| format!("a replay of {service}")));
        found.extend(dropped(sources, service).await?);
        for owner in Service::ALL {
            if let Some(stream) = owner.stream()
                && !subscriptions(service, owner).is_empty()
            {
                found.extend(undelivered(sources, stream, service).await?);
            }
        }
        found.extend(undelivered(sources, REDRIVE, service).await?);
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

/// Whether the stream of a publisher has dropped events before its relay has noted that every
/// subscriber has handled them. It notes that, or begins a replay, within ten seconds.
async fn dropped(sources: &mut Sources, owner: Service) -> anyhow::Result<Option<String>> {
    let Some(stream) = owner.stream() else {
        return Ok(None);
    };
    // `undelivered` reports a stream that is not there.
    let Ok(found) = sources.jetstream.get_stream(stream).await else {
        return Ok(None);
    };
    let first = i64::try_from(found.cached_info().state.first_sequence)?;
    let is_uncompared: bool = sqlx::query_scalar(UNCOMPARED)
        .bind(first)
        .fetch_one(sources.database(owner)?)
        .await?;
    Ok(is_uncompared
        .then(|| format!("{stream} has dropped events that its relay has yet to compare")))
}

/// The events of a stream that `subscriber` has not acknowledged, if there are any.
async fn undelivered(
    sources: &mut Sources,
    stream: &str,
    subscriber: Service,
) -> anyhow::Result<Option<String>> {
    // A broker that has lost its disk gets streams and consumers back in a moment.
    let Ok(found) = sources.jetstream.get_stream(stream).await else {
        return Ok(Some(format!("there is no stream {stream}")));
    };
    let consumer = found.get_consumer(subscriber.name()).await;
    let Ok(mut consumer): Result<PullConsumer, _> = consumer else {
        return Ok(Some(format!(
            "there is no consumer of {subscriber} on {stream}"
        )));
    };
    let info = consumer.info().await?;
    let (pending, unacknowledged) = (info.num_pending, info.num_ack_pending);
    let in_flight = pending > 0 || unacknowledged > 0;
    Ok(in_flight.then(|| {
        format!(
            "events of {stream} for {subscriber}: {pending} not delivered, \
             {unacknowledged} not acknowledged"
        )
    }))
}
