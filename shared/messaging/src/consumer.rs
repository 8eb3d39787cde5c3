//! The consumer loop: one durable pull consumer per stream that a service subscribes to.
//!
//! - A batch is whatever has arrived while the last batch was being committed, up to [`BATCH`]: under
//!   load many events share a commit, without load an event does not wait for others.
//! - Events are acknowledged only after the commit. A process that dies in between gets them again;
//!   the inbox drops them.
//! - A stalled loop (events pending, none arriving) is detected and restarted.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{
    AckKind, Message,
    consumer::{PullConsumer, pull},
};
use backon::ExponentialBackoff;
use contracts::{Service, header};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::{
    Handler, Outcome, Participant, backoff, batch::Batches, dead_letter, headers, topology,
};

/// Most events in one transaction. Larger batches gain little and hold locks for longer.
const BATCH: usize = 256;
/// A pull request ends by itself after this time, so that one the broker has forgotten is renewed.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// How often the broker confirms that an idle pull request is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long without an event before the loop asks the broker whether there is really none.
const WATCHDOG: Duration = Duration::from_secs(5);

/// Consumes the events of one publisher for one service.
pub(crate) struct Consumer<H> {
    participant: Participant,
    batches: Batches<H>,
    /// The publisher whose stream is consumed.
    owner: Service,
    /// Failed attempts by stream sequence, only of events that have failed. Kept in memory on
    /// purpose: the broker counts *deliveries*, and a delivery that a restart or a database outage cut
    /// short says nothing about the event. Losing the map costs a few extra attempts.
    attempts: HashMap<u64, u32>,
}

impl<H: Handler> Consumer<H> {
    pub(crate) fn new(participant: Participant, handler: Arc<H>, owner: Service) -> Self {
        Self {
            batches: Batches {
                participant: participant.clone(),
                handler,
            },
            participant,
            owner,
            attempts: HashMap::new(),
        }
    }

    /// Consumes until `shutdown`. Any failure of the broker restarts the loop after a back-off.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut delays = backoff::delays(backoff::MIN, backoff::MAX);
        loop {
            let error = match self.consume(&shutdown, &mut delays).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let delay = delays.next().unwrap_or(backoff::MAX);
            tracing::warn!(service = %self.participant.service, stream = self.owner.stream(),
                error = format!("{error:#}"), "the consumer was interrupted; it restarts in {delay:?}");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Consumes until `shutdown` or a failure. A first event resets `delays`: the broker works again.
    async fn consume(
        &mut self,
        shutdown: &CancellationToken,
        delays: &mut ExponentialBackoff,
    ) -> anyhow::Result<()> {
        let part = format!("consumer of {}", self.owner.stream().unwrap_or_default());
        // Again at each restart: somebody may have deleted a stream or a consumer meanwhile.
        topology::reconcile_streams(&self.participant.broker).await?;
        let (broker, service) = (&self.participant.broker, self.participant.service);
        let consumer = topology::reconcile_consumer(broker, service, self.owner).await?;
        let mut stream = open(&consumer).await?;
        self.participant.progress.touch(&part);
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
                    *delays = backoff::delays(backoff::MIN, backoff::MAX);
                    self.process(&messages, shutdown).await;
                }
                Ok(None) => anyhow::bail!("the subscription ended"),
                Err(_quiet) => check_quiet(&consumer).await?,
            }
            self.participant.progress.touch(&part);
        }
    }

    /// Applies one batch and tells the broker the outcome of each message.
    async fn process(&mut self, messages: &[Message], shutdown: &CancellationToken) {
        self.participant.metrics.batch(messages.len());
        let Some(outcomes) = self.batches.apply(messages, shutdown).await else {
            return;
        };
        for (message, outcome) in messages.iter().zip(outcomes) {
            if let Err(error) = self.acknowledge(message, outcome).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    event.id = event_id(message),
                    "could not acknowledge an event; the broker redelivers it"
                );
            }
        }
    }

    async fn acknowledge(&mut self, message: &Message, outcome: Outcome) -> anyhow::Result<()> {
        let sequence = message.info().map(|info| info.stream_sequence);
        let sequence = sequence.unwrap_or_default();
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
            Outcome::Retry(error) => return self.retry(message, sequence, error).await,
            Outcome::Poison(error) => return self.give_up(message, sequence, error).await,
        }
        self.attempts.remove(&sequence);
        message.ack().await.map_err(anyhow::Error::from_boxed)
    }

    /// Counts an attempt and asks for redelivery after a back-off, or gives up.
    async fn retry(
        &mut self,
        message: &Message,
        sequence: u64,
        error: anyhow::Error,
    ) -> anyhow::Result<()> {
        let attempt = self.attempts.get(&sequence).copied().unwrap_or(0) + 1;
        self.attempts.insert(sequence, attempt);
        if attempt >= self.participant.max_attempts {
            let error = error.context(format!("gave up after {attempt} attempts"));
            return self.give_up(message, sequence, error).await;
        }
        self.participant.metrics.handled(1, "retry");
        let delay = backoff::delay_after(attempt, backoff::MIN, backoff::MAX);
        tracing::warn!(service = %self.participant.service, event.id = event_id(message),
            order.id = order_id(message), event.r#type = message.subject.as_str(), attempt,
            error = format!("{error:#}"), "an event failed; it is retried in {delay:?}");
        let negative = message.ack_with(AckKind::Nak(Some(delay))).await;
        negative.map_err(anyhow::Error::from_boxed)
    }

    /// Publishes the event as a dead letter. An error leaves the event with the broker, which
    /// redelivers it.
    async fn give_up(
        &mut self,
        message: &Message,
        sequence: u64,
        error: anyhow::Error,
    ) -> anyhow::Result<()> {
        let attempts = self.attempts.get(&sequence).copied().unwrap_or(1);
        let (broker, service) = (&self.participant.broker, self.participant.service);
        dead_letter::publish(broker, service, message, attempts, &error).await?;
        self.participant.metrics.handled(1, "dead_letter");
        tracing::error!(%service, event.id = event_id(message), order.id = order_id(message),
            event.r#type = message.subject.as_str(), attempts,
            error = dead_letter::one_line(&error),
            "an event became a dead letter; it waits for an operator in stream {}",
            topology::DEAD_LETTERS);
        self.attempts.remove(&sequence);
        Ok(())
    }
}

async fn open(consumer: &PullConsumer) -> anyhow::Result<pull::Stream> {
    let stream = consumer.stream().max_messages_per_batch(BATCH);
    let stream = stream.expires(PULL_EXPIRES).heartbeat(HEARTBEAT);
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
async fn check_quiet(consumer: &PullConsumer) -> anyhow::Result<()> {
    let info = consumer.get_info().await;
    let pending = info
        .context("ask for the state of the consumer")?
        .num_pending;
    anyhow::ensure!(
        pending == 0,
        "{pending} events are pending but none arrives"
    );
    Ok(())
}

fn event_id(message: &Message) -> &str {
    headers::text(message.headers.as_ref(), header::ID).unwrap_or_default()
}

fn order_id(message: &Message) -> &str {
    headers::text(message.headers.as_ref(), header::SUBJECT).unwrap_or_default()
}
