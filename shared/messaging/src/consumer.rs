//! The consumer loop: one durable pull consumer per stream that a service listens to.
//!
//! - A batch is whatever has arrived while the last batch was being committed, up to [`BATCH`]:
//!   under load commits are shared by many events, without load an event does not wait for others.
//! - Acknowledged only after the commit. A process that dies in between gets the events again; the
//!   inbox drops them.
//! - A loop that stands still while the broker has something for it is noticed and made anew.

use std::{collections::HashMap, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{
    AckKind, Message,
    consumer::{PullConsumer, pull},
};
use contracts::{choreography::Service, header};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::{Handler, Outcome, backoff::backoff, batch::Batches, dead_letter, topology};

/// Most events in one transaction.
const BATCH: usize = 256;
const PULL_EXPIRES: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long without an event before we ask the broker whether there is really nothing.
const WATCHDOG: Duration = Duration::from_secs(5);

/// Consumes the events of `owner` for one service.
pub(crate) struct Consumer<H> {
    pub(crate) batches: Batches<H>,
    pub(crate) owner: Service,
    /// Failed attempts by message, only of messages that have failed. In memory on purpose:
    /// deliveries that were cut short by a restart or an absent database are no attempts.
    pub(crate) attempts: HashMap<u64, u32>,
}

impl<H: Handler> Consumer<H> {
    /// Consumes until `shutdown`; whatever fails with the broker is begun anew with back-off.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut delays = backoff();
        loop {
            let error = match self.consume(&shutdown, &mut delays).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let delay = delays.next().unwrap_or(WATCHDOG);
            tracing::warn!(service = %self.batches.node.service, stream = self.owner.stream(), ?delay,
                error = format!("{error:#}"), "consumption interrupted; beginning anew");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn consume(
        &mut self,
        shutdown: &CancellationToken,
        delays: &mut impl Resettable,
    ) -> anyhow::Result<()> {
        let node = self.batches.node.clone();
        let part = format!("consumer of {}", self.owner.stream().unwrap_or_default());
        topology::reconcile_streams(&node.broker).await?;
        let consumer = topology::reconcile_consumer(&node.broker, node.service, self.owner).await?;
        let mut stream = open(&consumer).await?;
        node.progress.touch(&part);
        loop {
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => { give_back(&mut stream).await; return Ok(()) }
                next = tokio::time::timeout(WATCHDOG, stream.next()) => next,
            };
            match next {
                Ok(Some(first)) => {
                    delays.reset();
                    let messages = gather(first.context("pull")?, &mut stream);
                    self.work(&messages, shutdown).await;
                }
                Ok(None) => anyhow::bail!("the subscription ended"),
                Err(_quiet) => check_quiet(&consumer).await?,
            }
            node.progress.touch(&part);
        }
    }

    /// Applies one batch and tells the broker what became of each message.
    async fn work(&mut self, messages: &[Message], shutdown: &CancellationToken) {
        self.batches.node.metrics.batch(messages.len());
        let Some(outcomes) = self.batches.apply(messages, shutdown).await else {
            return;
        };
        for (message, outcome) in messages.iter().zip(outcomes) {
            if let Err(error) = self.settle(message, outcome).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    event.id = event_id(message),
                    "could not settle; the broker delivers the message again"
                );
            }
        }
    }

    async fn settle(&mut self, message: &Message, outcome: Outcome) -> anyhow::Result<()> {
        let sequence = message
            .info()
            .map(|info| info.stream_sequence)
            .unwrap_or_default();
        let node = &self.batches.node;
        match outcome {
            Outcome::Done => node.metrics.handled(1, "done"),
            Outcome::Duplicate => node.metrics.handled(1, "duplicate"),
            Outcome::Ignored(reason) => {
                node.metrics.handled(1, "ignored");
                tracing::debug!(
                    event.id = event_id(message),
                    order.id = order_id(message),
                    reason,
                    "ignored"
                );
            }
            Outcome::Retry(error) => return self.retry(message, sequence, error).await,
            Outcome::Poison(error) => return self.bury(message, sequence, error).await,
        }
        if !self.attempts.is_empty() {
            self.attempts.remove(&sequence);
        }
        message.ack().await.map_err(anyhow::Error::from_boxed)
    }

    async fn retry(
        &mut self,
        message: &Message,
        sequence: u64,
        error: anyhow::Error,
    ) -> anyhow::Result<()> {
        let attempt = self.attempts.get(&sequence).copied().unwrap_or(0) + 1;
        self.attempts.insert(sequence, attempt);
        if attempt >= self.batches.node.max_attempts {
            return self
                .bury(
                    message,
                    sequence,
                    error.context(format!("gave up after {attempt} attempts")),
                )
                .await;
        }
        let node = &self.batches.node;
        node.metrics.handled(1, "retry");
        let delay = backoff()
            .nth(attempt as usize - 1)
            .unwrap_or(topology::ACK_WAIT);
        tracing::warn!(service = %node.service, event.id = event_id(message), order.id = order_id(message),
            event.r#type = message.subject.as_str(), attempt, ?delay, error = format!("{error:#}"),
            "an event could not be applied; trying again");
        message
            .ack_with(AckKind::Nak(Some(delay)))
            .await
            .map_err(anyhow::Error::from_boxed)
    }

    async fn bury(
        &mut self,
        message: &Message,
        sequence: u64,
        error: anyhow::Error,
    ) -> anyhow::Result<()> {
        let node = &self.batches.node;
        let attempts = self.attempts.get(&sequence).copied().unwrap_or(1);
        dead_letter::bury(&node.broker, node.service, message, attempts, &error).await?;
        node.metrics.handled(1, "dead_letter");
        tracing::error!(service = %node.service, event.id = event_id(message), order.id = order_id(message),
            event.r#type = message.subject.as_str(), attempts, error = dead_letter::one_line(&error),
            "an event became a dead letter");
        self.attempts.remove(&sequence);
        Ok(())
    }
}

/// A sequence of delays that begins anew after a success.
pub(crate) trait Resettable: Iterator<Item = Duration> {
    fn reset(&mut self);
}

impl Resettable for backon::ExponentialBackoff {
    fn reset(&mut self) {
        *self = backoff();
    }
}

async fn open(consumer: &PullConsumer) -> anyhow::Result<pull::Stream> {
    let stream = consumer
        .stream()
        .max_messages_per_batch(BATCH)
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

/// At shutdown: what has arrived but was not begun goes back at once instead of after the
/// acknowledgement wait.
async fn give_back(stream: &mut pull::Stream) {
    while let Some(Some(Ok(message))) = stream.next().now_or_never() {
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::debug!(
                error,
                "could not give a message back; the broker waits for it to expire"
            );
        }
    }
}

/// Fails when the broker has events for us that do not arrive.
async fn check_quiet(consumer: &PullConsumer) -> anyhow::Result<()> {
    let info = consumer
        .get_info()
        .await
        .context("ask for the consumer's state")?;
    anyhow::ensure!(
        info.num_pending == 0,
        "{} events are waiting but none arrives",
        info.num_pending
    );
    Ok(())
}

fn event_id(message: &Message) -> &str {
    header_text(message, header::ID)
}

fn order_id(message: &Message) -> &str {
    header_text(message, header::SUBJECT)
}

fn header_text<'a>(message: &'a Message, name: &str) -> &'a str {
    message
        .headers
        .as_ref()
        .and_then(|headers| headers.get(name))
        .map_or("", |value| value.as_str())
}
