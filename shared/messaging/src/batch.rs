//! One batch of messages: decode, claim, handle, commit.
//!
//! A batch is all or nothing, because it is one transaction. One that another transaction has
//! overtaken with a row is attempted once more. When the transaction fails otherwise, its
//! messages are tried one by one, so that one poison message neither blocks nor fails its
//! neighbours. An error that is not the data's (see `database`) is no message's fault: the whole
//! batch waits, and is not taken apart.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{AckKind, Message};
use contracts::{Cause, DecodeError, Event, EventId, Inbound};
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use crate::{
    DedicatedConnection, Delivery, Handler, Outcome, Participant, backoff, database,
    headers::{self, EnvelopeError},
    inbox,
    topology::{self, ACK_WAIT},
    trace,
};

/// Far above any event we publish; anything larger did not come from an outbox.
const MAX_EVENT_BYTES: usize = 256 * 1024;
/// While a batch waits it reports progress this often at least. A third of `ACK_WAIT`,
/// so that one lost report does not cause a redelivery.
const REPORT_PROGRESS: Duration = Duration::from_millis(ACK_WAIT.as_millis() as u64 / 3);

/// Applies batches for one consumer.
pub(crate) struct Batches<H> {
    pub(crate) participant: Participant,
    pub(crate) handler: Arc<H>,
    pub(crate) connection: DedicatedConnection,
    /// The consumer's name in readiness and metrics.
    pub(crate) part: String,
}

impl<H: Handler> Batches<H> {
    /// Applies `messages` and returns one outcome per message, in order. `None` when shutdown came
    /// while the batch waited for the database, or was tried one by one: the broker redelivers what
    /// was not acknowledged.
    pub(crate) async fn apply(
        &self,
        messages: &[Message],
        shutdown: &CancellationToken,
    ) -> Option<Vec<Outcome>> {
        let mut attempted = self.attempt(messages, messages, shutdown).await?;
        if attempted.as_ref().is_err_and(database::is_lost_race) {
            attempted = self.attempt(messages, messages, shutdown).await?;
        }
        let error = match attempted {
            Ok(outcomes) => return Some(outcomes),
            Err(error) => error,
        };
        if messages.len() == 1 {
            return Some(vec![Outcome::Retry(error)]);
        }
        tracing::warn!(service = %self.participant.service, error = format!("{error:#}"),
            batch = messages.len(), "a batch failed; its events are tried one by one");
        let mut outcomes = Vec::with_capacity(messages.len());
        for message in messages {
            if shutdown.is_cancelled() {
                return None;
            }
            let alone = std::slice::from_ref(message);
            match self.attempt(alone, messages, shutdown).await? {
                Ok(outcome) => outcomes.extend(outcome),
                Err(error) => outcomes.push(Outcome::Retry(error)),
            }
        }
        Some(outcomes)
    }

    /// Runs the transaction until its result is not the database's fault; an error is then the
    /// fault of `messages`. Meanwhile the broker learns that all of `batch` is still being worked
    /// on.
    async fn attempt(
        &self,
        messages: &[Message],
        batch: &[Message],
        shutdown: &CancellationToken,
    ) -> Option<anyhow::Result<Vec<Outcome>>> {
        let Participant {
            service,
            metrics,
            progress,
            ..
        } = &self.participant;
        let mut delays = backoff::outage();
        let began = Instant::now();
        loop {
            let transaction = reporting_progress(batch, self.transaction(messages));
            let error = match database::in_time(transaction).await {
                Err(error) if database::is_databases_fault(&error) => error,
                result => {
                    metrics.paused(&self.part, 0.0);
                    return Some(result);
                }
            };
            let delay = delays.next_delay();
            let error = format!("{error:#}");
            tracing::warn!(%service, error, batch = batch.len(),
                "the database cannot apply events; consumption pauses for {delay:?}, \
                 no attempt is counted");
            metrics.paused(&self.part, began.elapsed().as_secs_f64());
            progress.obstruct(&self.part, error);
            tokio::select! {
                () = reporting_progress(batch, tokio::time::sleep(delay)) => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    async fn transaction(&self, messages: &[Message]) -> anyhow::Result<Vec<Outcome>> {
        let decoded: Vec<_> = messages.iter().map(decode::<H::Inbound>).collect();
        let ids: Vec<EventId> = decoded.iter().flatten().map(Delivery::event_id).collect();
        let mut connection = self.connection.take().await.context("connect")?;
        let mut tx = connection.begin().await.context("begin")?;
        let claimed = inbox::claim(&mut tx, &ids).await;
        let mut unseen = claimed.context("claim events in the inbox")?;

        // One slot per message: its outcome if it is known by now, else `None` for the handler's.
        let mut slots = Vec::with_capacity(messages.len());
        let mut deliveries = Vec::with_capacity(ids.len());
        for decoded in decoded {
            slots.push(match decoded {
                Err(error) if is_unknown(&error) => Some(Outcome::Unknown(error)),
                Err(error) => Some(Outcome::Poison(error)),
                // Removing the id makes a second copy within this batch a duplicate, too.
                Ok(delivery) if unseen.remove(&delivery.event_id()) => {
                    deliveries.push(delivery);
                    None
                }
                Ok(_) => Some(Outcome::Duplicate),
            });
        }

        let handled = if deliveries.is_empty() {
            Vec::new()
        } else {
            self.handle(&mut tx, &deliveries).await?
        };
        // Nothing is acknowledged before this commit: a process that dies here gets the events
        // again.
        tx.commit().await.context("commit")?;
        self.connection.put_back(connection);
        self.participant.wake.wake();
        self.handler.committed();
        let mut handled = handled.into_iter();
        let outcomes = slots
            .into_iter()
            .map(|slot| slot.or_else(|| handled.next()));
        outcomes
            .collect::<Option<Vec<_>>>()
            .context("an event has no outcome")
    }

    async fn handle(
        &self,
        tx: &mut sqlx::PgConnection,
        deliveries: &[Delivery<H::Inbound>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let outcomes = self.handler.handle(tx, deliveries).await?;
        ensure!(
            outcomes.len() == deliveries.len(),
            "the handler must return one outcome per delivery"
        );
        let unapplied = |outcome: &Outcome| !matches!(outcome, Outcome::Done | Outcome::Ignored(_));
        let ids: Vec<EventId> = std::iter::zip(&outcomes, deliveries)
            .filter(|(outcome, _)| unapplied(outcome))
            .map(|(_, delivery)| delivery.event_id())
            .collect();
        // A claim that stayed would make the next attempt a duplicate, and the event would be lost.
        inbox::release(tx, &ids)
            .await
            .context("release events that were not applied")?;
        Ok(outcomes)
    }
}

fn decode<I: Inbound>(message: &Message) -> anyhow::Result<Delivery<I>> {
    let size = message.payload.len();
    ensure!(
        size <= MAX_EVENT_BYTES,
        "the event is oversized: {size} bytes, at most {MAX_EVENT_BYTES} are allowed"
    );
    let envelope = headers::from_headers(message.headers.as_ref())?;
    let arrived = topology::original_subject(&message.subject);
    ensure!(
        arrived == envelope.subject.as_str(),
        "header ce-type is {}, but the event arrived on subject {arrived}",
        envelope.subject,
    );
    let event = I::from_event(Event::decode(envelope.subject, &message.payload)?)?;
    let (span, traceparent) = trace::handling(&envelope);
    let cause = Cause {
        correlation_id: envelope.cause.correlation_id,
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

/// Whether a newer version of this service may be able to read the event.
fn is_unknown(error: &anyhow::Error) -> bool {
    use DecodeError::{NotSubscribed, UnknownSubject};
    let decode = error.downcast_ref::<DecodeError>();
    let decode = decode.or_else(|| match error.downcast_ref::<EnvelopeError>() {
        Some(EnvelopeError::Invalid(error)) => Some(error),
        _ => None,
    });
    matches!(decode, Some(UnknownSubject(_) | NotSubscribed(_)))
}

/// Does `work`, and meanwhile tells the broker that the messages are being worked on, so that it
/// does not redeliver them.
async fn reporting_progress<T>(messages: &[Message], work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            () = tokio::time::sleep(REPORT_PROGRESS) => report_progress(messages).await,
        }
    }
}

async fn report_progress(messages: &[Message]) {
    for message in messages {
        if let Err(error) = message.ack_with(AckKind::Progress).await {
            tracing::debug!(error, "could not report progress; the broker may redeliver");
        }
    }
}
