//! The consumer loop: one durable pull consumer per stream that a service subscribes to.
//!
//! - A batch is whatever has arrived while the last batch was being committed, up to [`BATCH`]:
//!   under load many events share a commit, without load an event does not wait for others.
//! - Events are acknowledged only after the commit. A process that dies in between gets them again;
//!   the inbox drops them.
//! - A stalled loop (events pending, none arriving) is detected and restarted.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_nats::jetstream::{
    AckKind, Message,
    consumer::{PullConsumer, pull},
};
use contracts::header;
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::{
    DedicatedConnection, Handler, Outcome, Participant, backoff,
    backoff::Outage,
    batch::Batches,
    dead_letter, headers,
    topology::{self, Source},
};

/// Most events in one transaction. Larger batches gain little and hold locks for longer.
const BATCH: usize = 256;
/// Most bytes of events in memory, whatever their number.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// A pull request ends by itself after this time, so that one the broker has forgotten is renewed.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// How often the broker confirms that an idle pull request is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long without an event before the loop asks the broker whether there is really none.
const WATCHDOG: Duration = Duration::from_secs(5);
/// How long the attempts of an event are remembered after the last one. A redelivery to this
/// replica comes sooner.
const FORGET_FAILED: Duration = backoff::MAX.saturating_mul(4);
/// How often an event of an unknown version is delivered again while it waits for a newer replica.
const UNKNOWN_DELAY: Duration = Duration::from_secs(5);

/// Consumes the events of one stream for one service.
pub(crate) struct Consumer<H> {
    participant: Participant,
    batches: Batches<H>,
    source: Source,
    /// Events that have failed. Kept in memory on purpose: the broker counts *deliveries*,
    /// and a delivery that a restart or a database outage cut short says nothing about the event.
    /// Losing the map costs a few extra attempts.
    failed: HashMap<Key, Failed>,
    /// The size of that map at which it is pruned next.
    prune_at: usize,
}

/// The event's id, and its sequence in the stream: a stream that was deleted begins at 1 again,
/// and one may hold an event twice.
type Key = (String, u64);

struct Failed {
    attempts: u32,
    since: Instant,
    /// The last delivery.
    seen: Instant,
}

impl<H: Handler> Consumer<H> {
    pub(crate) fn new(participant: Participant, handler: Arc<H>, source: Source) -> Self {
        Self {
            batches: Batches {
                connection: DedicatedConnection::new(participant.pool.clone()),
                participant: participant.clone(),
                handler,
                part: format!("consumer of {}", source.stream()),
            },
            participant,
            source,
            failed: HashMap::new(),
            prune_at: topology::MAX_ACK_PENDING,
        }
    }

    /// Consumes until `shutdown`. Any failure of the broker restarts the loop after a back-off.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut delays = backoff::outage();
        let broker = self.participant.broker.clone();
        loop {
            let consumed = tokio::select! {
                consumed = self.consume(&shutdown, &mut delays) => consumed,
                () = broker.cut_off(&shutdown) => return,
            };
            let Err(error) = consumed else { return };
            let delay = delays.next_delay();
            let error = format!("{error:#}");
            let (service, stream) = (self.participant.service, self.source.stream());
            tracing::warn!(%service, stream, error,
                "the consumer was interrupted; it restarts in {delay:?}");
            self.participant
                .progress
                .obstruct(&self.batches.part, error);
            tokio::select! {
                () = broker.pause(delay) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Consumes until `shutdown` or a failure. A first event resets `delays`: the broker works
    /// again.
    async fn consume(
        &mut self,
        shutdown: &CancellationToken,
        delays: &mut Outage,
    ) -> anyhow::Result<()> {
        // Again at each restart: somebody may have deleted a stream or a consumer meanwhile.
        let (broker, service) = (&self.participant.broker, self.participant.service);
        topology::reconcile_stream(broker, self.source.stream()).await?;
        let consumer = topology::reconcile_consumer(broker, service, self.source).await?;
        let mut stream = open(&consumer).await?;
        if consumer.cached_info().num_pending == 0 {
            self.participant.progress.touch(&self.batches.part);
        }
        let mut arrived = Instant::now();
        loop {
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    return_unstarted(&mut stream).await;
                    return Ok(());
                }
                next = tokio::time::timeout(WATCHDOG, stream.next()) => next,
            };
            match next {
                Ok(Some(first)) => {
                    let messages = gather(first.context("pull")?, &mut stream);
                    *delays = backoff::outage();
                    arrived = Instant::now();
                    if self.process(&messages, shutdown).await.is_none() {
                        return Ok(());
                    }
                }
                Ok(None) => anyhow::bail!("the subscription ended"),
                Err(_quiet) => check_quiet(&consumer, arrived.elapsed()).await?,
            }
            self.participant.progress.touch(&self.batches.part);
        }
    }

    /// Applies one batch and tells the broker the outcome of each message. `None` when shutdown
    /// came while the batch waited, or was tried one by one.
    async fn process(&mut self, messages: &[Message], shutdown: &CancellationToken) -> Option<()> {
        self.participant.metrics.batch(messages.len());
        let outcomes = self.batches.apply(messages, shutdown).await?;
        for (message, outcome) in messages.iter().zip(outcomes) {
            if let Err(error) = self.acknowledge(message, outcome).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    event.id = event_id(message),
                    "could not acknowledge an event; the broker redelivers it"
                );
            }
        }
        Some(())
    }

    async fn acknowledge(&mut self, message: &Message, outcome: Outcome) -> anyhow::Result<()> {
        let metrics = &self.participant.metrics;
        match outcome {
            Outcome::Done => metrics.handled(1, "done"),
            Outcome::Duplicate => metrics.handled(1, "duplicate"),
            Outcome::Ignored(reason) => {
                metrics.handled(1, "ignored");
                tracing::debug!(
                    event.id = event_id(message),
                    order.id = order_id(message),
                    reason,
                    "an event changes nothing; it is acknowledged"
                );
            }
            Outcome::Retry(error) => return self.retry(message, error).await,
            Outcome::Unknown(error) => return self.postpone(message, error).await,
            Outcome::Poison(error) => return self.give_up(message, error).await,
        }
        self.forget_failed(message);
        message.ack().await.map_err(anyhow::Error::from_boxed)
    }

    /// Counts an attempt and asks for redelivery after a back-off, or gives up.
    async fn retry(&mut self, message: &Message, error: anyhow::Error) -> anyhow::Result<()> {
        let failed = self.failed(message);
        failed.attempts += 1;
        let attempt = failed.attempts;
        if attempt >= self.participant.max_attempts {
            let error = error.context(format!("gave up after {attempt} attempts"));
            return self.give_up(message, error).await;
        }
        self.participant.metrics.handled(1, "retry");
        let delay = backoff::delay_after(attempt, backoff::MIN, backoff::MAX);
        tracing::warn!(service = %self.participant.service, event.id = event_id(message),
            order.id = order_id(message), event.r#type = message.subject.as_str(), attempt,
            error = format!("{error:#}"), "an event failed; it is retried in {delay:?}");
        let negative = message.ack_with(AckKind::Nak(Some(delay))).await;
        negative.map_err(anyhow::Error::from_boxed)
    }

    /// Leaves an event that this version cannot read to a newer replica, or gives up.
    async fn postpone(&mut self, message: &Message, error: anyhow::Error) -> anyhow::Result<()> {
        let waits = self.failed(message).since.elapsed();
        if waits >= self.participant.unknown_timeout {
            let error = error.context("no newer replica has handled the event");
            return self.give_up(message, error).await;
        }
        self.participant.metrics.handled(1, "unknown");
        tracing::warn!(service = %self.participant.service, event.id = event_id(message),
            event.r#type = message.subject.as_str(), error = format!("{error:#}"),
            "this version cannot read an event; it waits for a newer replica and is delivered again \
             in {UNKNOWN_DELAY:?}");
        let negative = message.ack_with(AckKind::Nak(Some(UNKNOWN_DELAY))).await;
        negative.map_err(anyhow::Error::from_boxed)
    }

    fn failed(&mut self, message: &Message) -> &mut Failed {
        let now = Instant::now();
        // Events that another replica has handled meanwhile do not come again.
        if self.failed.len() >= self.prune_at {
            self.failed
                .retain(|_, failed| now.duration_since(failed.seen) < FORGET_FAILED);
            self.prune_at = topology::MAX_ACK_PENDING.max(2 * self.failed.len());
        }
        let failed = self.failed.entry(key(message));
        let failed = failed.or_insert_with(|| Failed {
            attempts: 0,
            since: now,
            seen: now,
        });
        failed.seen = now;
        failed
    }

    fn forget_failed(&mut self, message: &Message) {
        if !self.failed.is_empty() {
            self.failed.remove(&key(message));
        }
    }

    /// Publishes the event as a dead letter. An error leaves the event with the broker, which
    /// redelivers it.
    async fn give_up(&mut self, message: &Message, error: anyhow::Error) -> anyhow::Result<()> {
        let attempts = self.failed(message).attempts.max(1);
        let (broker, service) = (&self.participant.broker, self.participant.service);
        dead_letter::publish(broker, service, message, attempts, &error).await?;
        self.participant.metrics.handled(1, "dead_letter");
        tracing::error!(%service, event.id = event_id(message), order.id = order_id(message),
            event.r#type = message.subject.as_str(), attempts,
            error = dead_letter::one_line(&error),
            "an event became a dead letter; it waits for an operator in stream {}",
            contracts::dead_letter::STREAM);
        self.forget_failed(message);
        Ok(())
    }
}

async fn open(consumer: &PullConsumer) -> anyhow::Result<pull::Stream> {
    let stream = consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .max_bytes_per_batch(BATCH_BYTES)
        .expires(PULL_EXPIRES)
        .heartbeat(HEARTBEAT);
    stream.messages().await.context("open subscription")
}

/// The first message and all others that have already arrived.
fn gather(first: Message, stream: &mut pull::Stream) -> Vec<Message> {
    let mut messages = vec![first];
    while messages.len() < BATCH {
        match stream.next().now_or_never() {
            Some(Some(Ok(message))) => messages.push(message),
            // An error or the end shows again at the next wait.
            _ => break,
        }
    }
    messages
}

/// At shutdown: hands back what has arrived but was not started, so that another replica gets it at
/// once instead of after [`topology::ACK_WAIT`].
async fn return_unstarted(stream: &mut pull::Stream) {
    while let Some(Some(Ok(message))) = stream.next().now_or_never() {
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::debug!(
                error,
                "could not hand a message back; the broker waits for it to expire"
            );
        }
    }
}

/// Fails when the broker has events for this consumer that do not arrive.
async fn check_quiet(consumer: &PullConsumer, quiet: Duration) -> anyhow::Result<()> {
    let info = consumer.get_info().await;
    let info = info.context("ask for the state of the consumer")?;
    // As many events may wait for their next attempt as the broker delivers at a time.
    let is_full = info.num_ack_pending >= topology::MAX_ACK_PENDING && quiet < FORGET_FAILED;
    let pending = info.num_pending;
    anyhow::ensure!(
        pending == 0 || is_full,
        "{pending} events are pending but none arrives"
    );
    Ok(())
}

fn key(message: &Message) -> Key {
    let sequence = message.info().map(|info| info.stream_sequence);
    (event_id(message).to_owned(), sequence.unwrap_or_default())
}

fn event_id(message: &Message) -> &str {
    headers::text(message.headers.as_ref(), header::ID).unwrap_or_default()
}

fn order_id(message: &Message) -> &str {
    headers::text(message.headers.as_ref(), header::SUBJECT).unwrap_or_default()
}
