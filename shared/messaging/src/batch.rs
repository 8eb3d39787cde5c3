//! One batch of messages: decode, claim, apply, commit.
//!
//! A batch whose transaction fails is tried again message by message, so that one poison message
//! neither blocks nor sinks its neighbours. When the database is away, nobody is to blame: the
//! batch waits.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{AckKind, Message};
use contracts::{Envelope, Event, EventId, Inbound};
use tokio_util::sync::CancellationToken;

use crate::{
    Delivery, Handler, Node, Outcome, backoff::backoff, database, inbox, outbox::Cause,
    topology::ACK_WAIT, trace,
};

/// No event of ours comes near; what is larger was not made by an outbox.
const MAX_EVENT_BYTES: usize = 256 * 1024;

/// Applies batches for one service.
pub(crate) struct Batches<H> {
    pub(crate) node: Node,
    pub(crate) handler: Arc<H>,
}

impl<H: Handler> Batches<H> {
    /// Applies `messages` and returns what became of each; `None` when shutdown came while the
    /// database was away: then nothing was applied and the broker will deliver the messages
    /// again.
    pub(crate) async fn apply(
        &self,
        messages: &[Message],
        shutdown: &CancellationToken,
    ) -> Option<Vec<Outcome>> {
        let mut delays = backoff();
        loop {
            let error = match self.transaction(messages).await {
                Ok(outcomes) => return Some(outcomes),
                Err(error) => error,
            };
            if database::is_unavailable(&error) {
                let delay = delays.next().unwrap_or(ACK_WAIT / 3).min(ACK_WAIT / 3);
                tracing::warn!(service = %self.node.service, error = format!("{error:#}"), ?delay,
                    "the database is away; consumption pauses, no attempt is counted");
                tokio::select! {
                    () = tokio::time::sleep(delay) => hold(messages).await,
                    () = shutdown.cancelled() => return None,
                }
            } else if messages.len() == 1 {
                return Some(vec![Outcome::Retry(error)]);
            } else {
                tracing::warn!(service = %self.node.service, error = format!("{error:#}"), batch = messages.len(),
                    "a batch failed; trying its events one by one");
                return self.one_by_one(messages, shutdown).await;
            }
        }
    }

    async fn one_by_one(
        &self,
        messages: &[Message],
        shutdown: &CancellationToken,
    ) -> Option<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(messages.len());
        for message in messages {
            let one = std::slice::from_ref(message);
            outcomes.extend(Box::pin(self.apply(one, shutdown)).await?);
        }
        Some(outcomes)
    }

    async fn transaction(&self, messages: &[Message]) -> anyhow::Result<Vec<Outcome>> {
        let (mut outcomes, mut deliveries) = decode_all::<H::Inbound>(messages);
        if deliveries.is_empty() {
            return Ok(outcomes);
        }
        let ids: Vec<EventId> = deliveries
            .iter()
            .map(|(_, delivery)| delivery.event_id())
            .collect();
        let mut tx = self.node.pool.begin().await.context("begin")?;
        let mut fresh = inbox::claim(&mut tx, &ids)
            .await
            .context("claim events in the inbox")?;
        // An id leaves the set with its first delivery, so that a second one in the same batch is a
        // duplicate, too.
        deliveries.retain(|(_, delivery)| fresh.remove(&delivery.event_id()));
        let (places, deliveries): (Vec<usize>, Vec<Delivery<H::Inbound>>) =
            deliveries.into_iter().unzip();
        if deliveries.is_empty() {
            return Ok(outcomes);
        }
        let applied = self.handler.handle(&mut tx, &deliveries).await?;
        ensure!(
            applied.len() == deliveries.len(),
            "the handler must return one outcome per delivery"
        );
        let unapplied: Vec<EventId> = applied
            .iter()
            .zip(&deliveries)
            .filter(|(outcome, _)| matches!(outcome, Outcome::Retry(_) | Outcome::Poison(_)))
            .map(|(_, delivery)| delivery.event_id())
            .collect();
        if !unapplied.is_empty() {
            inbox::release(&mut tx, &unapplied)
                .await
                .context("release unapplied events")?;
        }
        tx.commit().await.context("commit")?;
        self.node.wake.wake();
        self.handler.committed();
        for (place, outcome) in places.into_iter().zip(applied) {
            outcomes[place] = outcome;
        }
        Ok(outcomes)
    }
}

/// Reads all messages. Those that cannot be read have their outcome at once; the others come with
/// their place in the batch, and count as duplicates until the inbox says otherwise.
fn decode_all<I: Inbound>(messages: &[Message]) -> (Vec<Outcome>, Vec<(usize, Delivery<I>)>) {
    let mut outcomes = Vec::with_capacity(messages.len());
    let mut deliveries = Vec::with_capacity(messages.len());
    for (place, message) in messages.iter().enumerate() {
        match decode(message) {
            Ok(delivery) => {
                deliveries.push((place, delivery));
                outcomes.push(Outcome::Duplicate);
            }
            Err(error) => outcomes.push(Outcome::Poison(error)),
        }
    }
    (outcomes, deliveries)
}

fn decode<I: Inbound>(message: &Message) -> anyhow::Result<Delivery<I>> {
    let size = message.payload.len();
    ensure!(
        size <= MAX_EVENT_BYTES,
        "the event is oversized: {size} bytes, at most {MAX_EVENT_BYTES} are allowed"
    );
    let envelope = Envelope::from_headers(message.headers.as_ref())?;
    ensure!(
        message.subject.as_str() == envelope.subject.as_str(),
        "header ce-type says {}, but the event came on subject {}",
        envelope.subject,
        message.subject
    );
    let event = I::from_event(Event::decode(envelope.subject, &message.payload)?)?;
    let (span, traceparent) = trace::handling(&envelope);
    let cause = Cause {
        correlation_id: envelope.correlation_id,
        causation_id: envelope.event_id,
        traceparent,
    };
    Ok(Delivery {
        envelope,
        event,
        span,
        cause,
    })
}

/// Tells the broker that the messages are still in hand, so that it does not deliver them again.
async fn hold(messages: &[Message]) {
    for message in messages {
        if let Err(error) = message.ack_with(AckKind::Progress).await {
            tracing::debug!(
                error,
                "could not report progress; the message may be delivered again"
            );
        }
    }
}
