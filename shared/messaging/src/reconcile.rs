//! Compares the broker's stream with the outbox, and finds where publication must begin again.
//!
//! JetStream acknowledges before it writes to its disk. A broker that loses power, whose disk is
//! replaced by an older copy, or whose stream an operator deletes, forgets events that it has
//! acknowledged. A stream also drops events by age and size that a subscriber has not seen while it
//! was away. The outbox, committed with fsync, forgets neither.
//!
//! - A stream that forgets loses its end: up to some checkpoint it holds what was published there,
//!   after that it holds nothing, or other events, because the broker counts on from there.
//! - A stream that drops loses its beginning: its first event is beyond what every subscriber has
//!   handled.
//!
//! In the first case the relay goes back to a checkpoint and publishes again what comes after it.
//! In the second it publishes again what may have been missed, beside new events ([`replay`]).
//! Inboxes drop what subscribers had applied before.

use anyhow::Context as _;
use async_nats::jetstream::{
    consumer::Info,
    stream::{self, RawMessageErrorKind, State, Stream},
};
use contracts::{Service, choreography::subscriptions, header};
use futures::future::join_all;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Participant,
    checkpoint::{self, Checkpoint},
    replay,
};

/// Compares, and notes what every subscriber has handled. Returns whether the relay must begin
/// again at the newest checkpoint; `published` is the highest position that it has published.
///
/// # Errors
/// Those of the database and the broker; nothing is lost by trying again.
pub(crate) async fn reconcile(
    participant: &Participant,
    connection: &mut PgConnection,
    name: &str,
    published: i64,
) -> anyhow::Result<bool> {
    let stream = participant.broker.jetstream.get_stream(name).await;
    let stream = stream.context("look at the stream")?;
    let state = &stream.cached_info().state;
    let newest = checkpoint::newest(connection).await?;
    let last = i64::try_from(state.last_sequence)?;
    if !agrees(&stream, &newest).await? {
        let begin = last_intact(connection, &stream, &newest).await?;
        let until = published.max(newest.position);
        let reason = "the broker has lost the end of the stream";
        checkpoint::rewind(connection, &begin, until, last, reason).await?;
        let events = until - begin.position;
        let metrics = &participant.metrics;
        metrics.replayed(usize::try_from(events).unwrap_or_default());
        tracing::error!(service = %participant.service, stream = name, reason,
            after = begin.position, until,
            "events are published again, from one position of the outbox to another");
        return Ok(true);
    }
    if let Some(missed) = replay::missed(connection).await? {
        if is_dropped_after(missed.stream_sequence, state) {
            replay::extend(connection, missed, last).await?;
        }
        return Ok(false);
    }
    let oldest = checkpoint::oldest(connection).await?;
    if newest.position > oldest.position && is_dropped_after(oldest.stream_sequence, state) {
        let reason = "the stream has dropped events that a subscriber has not handled";
        replay::begin(connection, oldest.position, last, reason).await?;
        tracing::error!(service = %participant.service, stream = name, reason,
            after = oldest.position,
            "events are published again, from one position of the outbox to its end");
        return Ok(false);
    }
    let handled = handled_by_all(participant.service, &stream).await;
    checkpoint::forget_handled(connection, i64::try_from(handled)?).await?;
    Ok(false)
}

/// Whether the stream has dropped what comes next after one of its places.
fn is_dropped_after(sequence: i64, state: &State) -> bool {
    i64::try_from(state.first_sequence).is_ok_and(|first| first > sequence + 1)
}

/// The last checkpoint found at which the stream holds what was published there, or the oldest one.
/// Goes back in steps that double: it may go back a little too far, which only repeats events.
async fn last_intact(
    connection: &mut PgConnection,
    stream: &Stream,
    newest: &Checkpoint,
) -> anyhow::Result<Checkpoint> {
    let oldest = checkpoint::oldest(connection).await?;
    let mut steps = 1;
    loop {
        let candidate = checkpoint::at(connection, newest.id - steps).await?;
        if candidate.id <= oldest.id || agrees(stream, &candidate).await? {
            return Ok(candidate);
        }
        steps *= 2;
    }
}

/// Whether the stream holds at a checkpoint what was published there. By id: a stream that went
/// back gives its sequences to other events. What the stream has dropped by age counts as there.
async fn agrees(stream: &Stream, checkpoint: &Checkpoint) -> anyhow::Result<bool> {
    let state = &stream.cached_info().state;
    let sequence = u64::try_from(checkpoint.stream_sequence)?;
    if sequence > state.last_sequence {
        return Ok(false);
    }
    let Some(event_id) = checkpoint.event_id else {
        return Ok(true);
    };
    if sequence < state.first_sequence {
        return Ok(true);
    }
    let message = match stream.get_raw_message(sequence).await {
        Ok(message) => message,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(false),
        Err(error) => return Err(error).context("read a message of the stream"),
    };
    let id = message.headers.get(header::ID);
    let id: Option<Uuid> = id.and_then(|id| id.as_str().parse().ok());
    Ok(id == Some(event_id))
}

/// The sequence up to which every subscriber has handled the stream.
async fn handled_by_all(service: Service, stream: &Stream) -> u64 {
    let subscribers = subscribers(service, stream).await;
    let handled = subscribers.iter().map(|subscriber| subscriber.handled);
    let last = stream.cached_info().state.last_sequence;
    handled.min().unwrap_or(last)
}

/// A service that subscribes to the stream.
pub(crate) struct Subscriber {
    pub(crate) service: Service,
    /// The sequence up to which it has handled the stream: applied, or kept as a dead letter. 0
    /// while it has never been there, or cannot be looked at.
    pub(crate) handled: u64,
    /// Whether it has a request for events open, or nothing to ask for.
    pub(crate) is_there: bool,
}

/// All subscribers of `service`, whose stream was looked at before: what arrives in between is not
/// counted as handled.
pub(crate) async fn subscribers(service: Service, stream: &Stream) -> Vec<Subscriber> {
    let stream_info = stream.cached_info();
    let subscribers = Service::ALL.into_iter();
    let subscribers = subscribers.filter(|other| !subscriptions(*other, service).is_empty());
    join_all(subscribers.map(async |subscriber| {
        let info = stream.consumer_info(subscriber.name()).await;
        // Whatever the reason is: others wait for the time limit of the request at the longest.
        let info = info.inspect_err(|error| {
            tracing::debug!(%service, %subscriber, %error,
                "a consumer cannot be looked at; it counts as away");
        });
        let info = info.ok().filter(|info| is_known(info, stream_info));
        let last = stream_info.state.last_sequence;
        let handled = info.as_ref().map_or(0, |info| handled_by(info, last));
        let asks = info.is_some_and(|info| info.num_waiting > 0);
        Subscriber {
            service: subscriber,
            handled,
            is_there: asks || handled == last,
        }
    }))
    .await
}

/// Whether a server of a cluster knows the consumer's state: one that is starting answers with
/// zeros, and names no leader.
fn is_known(info: &Info, stream: &stream::Info) -> bool {
    let leader = info
        .cluster
        .as_ref()
        .and_then(|cluster| cluster.leader.as_ref());
    // A server without a cluster names itself as the leader of a stream, and none of a consumer.
    let cluster = stream.cluster.as_ref();
    cluster.is_none_or(|cluster| cluster.name.is_none()) || leader.is_some()
}

/// The broker's own floor stops at the last event that a consumer subscribes to.
fn handled_by(info: &Info, last: u64) -> u64 {
    if info.num_pending == 0 && info.num_ack_pending == 0 {
        last
    } else {
        info.ack_floor.stream_sequence
    }
}
