//! Reading dead letters: by headers only, so that the cost of a list is not that of all payloads.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, pull},
        message::StreamMessage,
    },
};
use contracts::{
    Event, Service, Subject,
    dead_letter::{REDRIVE, STREAM, header},
    header as event_header,
};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{ANSWER_TIMEOUT, NOT_FOUND, text};

/// Messages per request.
const PAGE: usize = 256;
/// After this time the broker forgets a reader that has ended without saying so.
const READER_EXPIRES: Duration = Duration::from_secs(30);

/// The dead letters of one service, or of all.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    pub(crate) jetstream: jetstream::Context,
    /// The subjects of the dead letters.
    subjects: String,
}

/// A dead letter without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Letter {
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// The service that gave up.
    pub service: String,
    /// The subject that the event was published on.
    pub subject: String,
    /// The event; empty when the message had no id.
    pub event_id: String,
    /// The order that the event is about.
    pub order_id: String,
    /// Failed attempts since the event was published, or redriven last.
    pub attempts: u32,
    /// How often the event had been redriven before.
    pub redrives: u32,
    /// The error with its causes.
    pub reason: String,
    /// The stream that the event was published to.
    pub stream: String,
    /// Its sequence there.
    pub stream_sequence: u64,
    /// The length of a payload that was too large to keep, in bytes; 0 when all of it was kept.
    pub truncated_from: u64,
}

/// A dead letter with all that it keeps.
#[derive(Clone, Debug)]
pub struct FullLetter {
    /// What a list shows of it.
    pub letter: Letter,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its payload; the beginning of it, when it was truncated.
    pub payload: Vec<u8>,
}

/// Which dead letters; all conditions must hold, and one without conditions selects all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Sequences or event ids, of which one must be the dead letter's.
    pub ids: Vec<String>,
    /// Text that the reason contains.
    pub reason: Option<String>,
}

impl Filter {
    /// Whether it has no condition.
    pub fn selects_all(&self) -> bool {
        self.ids.is_empty() && self.reason.is_none()
    }

    /// Refuses conditions that are empty: an unset variable of a script would select too much.
    ///
    /// # Errors
    /// Names the condition.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.ids.iter().all(|id| !id.is_empty()), "id is empty");
        ensure!(self.reason.as_deref() != Some(""), "reason is empty");
        Ok(())
    }

    fn matches(&self, letter: &Letter) -> bool {
        let reason = |reason: &String| letter.reason.contains(reason.as_str());
        (self.ids.is_empty() || self.ids.iter().any(|id| letter.is_named(id)))
            && self.reason.as_ref().is_none_or(reason)
    }
}

impl Letter {
    fn new(sequence: u64, subject: &str, headers: Option<&HeaderMap>) -> Self {
        let rest = subject.strip_prefix("dlq.").unwrap_or_default();
        let (service, subject) = rest.split_once('.').unwrap_or_default();
        let header = |name| text(headers, name).unwrap_or_default();
        Self {
            sequence,
            service: service.to_owned(),
            subject: subject.to_owned(),
            event_id: header(event_header::ID).to_owned(),
            order_id: header(event_header::SUBJECT).to_owned(),
            attempts: header(header::ATTEMPTS).parse().unwrap_or_default(),
            redrives: header(header::REDRIVES).parse().unwrap_or_default(),
            reason: header(header::REASON).to_owned(),
            stream: header(header::STREAM).to_owned(),
            stream_sequence: header(header::SEQUENCE).parse().unwrap_or_default(),
            truncated_from: header(header::TRUNCATED).parse().unwrap_or_default(),
        }
    }

    /// Whether `id` is its sequence or the id of its event.
    pub fn is_named(&self, id: &str) -> bool {
        id == self.sequence.to_string() || (id == self.event_id && !id.is_empty())
    }
}

impl FullLetter {
    /// The event as this version reads it; `None` when it cannot.
    pub fn event(&self) -> Option<Event> {
        let subject: Subject = self.letter.subject.parse().ok()?;
        Event::decode(subject, &self.payload).ok()
    }
}

impl DeadLetters {
    /// The dead letters of `service`, or of all services.
    pub fn new(jetstream: jetstream::Context, service: Option<Service>) -> Self {
        let subjects = match service {
            Some(service) => format!("dlq.{service}.>"),
            None => "dlq.>".to_owned(),
        };
        Self {
            jetstream,
            subjects,
        }
    }

    pub(crate) async fn stream(&self) -> anyhow::Result<jetstream::stream::Stream> {
        let stream = self.jetstream.get_stream(STREAM).await;
        stream.with_context(|| format!("open the stream {STREAM}"))
    }

    /// At most `limit` dead letters with a sequence above `after`, oldest first.
    ///
    /// # Errors
    /// When the filter is not valid or the broker does not answer.
    pub async fn select(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
    ) -> anyhow::Result<Vec<Letter>> {
        filter.check()?;
        let stream = self.stream().await?;
        let last = stream.cached_info().state.last_sequence;
        if after >= last || limit == 0 {
            return Ok(Vec::new());
        }
        let reader = pull::Config {
            // With a name the broker can check what the reader reads: see `messaging::permissions`.
            name: Some(format!("reader-{}", Uuid::now_v7().simple())),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: after + 1,
            },
            ack_policy: AckPolicy::None,
            filter_subject: self.subjects.clone(),
            headers_only: true,
            memory_storage: true,
            inactive_threshold: READER_EXPIRES,
            ..pull::Config::default()
        };
        let reader = stream.create_consumer(reader).await;
        let reader = reader.context("read the dead letters")?;
        let found = read(&reader, last, filter, limit).await;
        // Without this the broker drops it when it expires.
        let _dropped = stream.delete_consumer(&reader.cached_info().name).await;
        found.context("read the dead letters")
    }

    /// A dead letter with its payload; `None` when there is none with this sequence.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn get(&self, sequence: u64) -> anyhow::Result<Option<FullLetter>> {
        if sequence == 0 {
            return Ok(None);
        }
        let found = self.stream().await?.get_raw_message(sequence).await;
        match found {
            Ok(found) if self.has(&found) => Ok(Some(FullLetter {
                letter: Letter::new(sequence, &found.subject, Some(&found.headers)),
                headers: found.headers,
                payload: found.payload.to_vec(),
            })),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == NOT_FOUND => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read dead letter {sequence}")),
        }
    }

    /// The dead letters that a sequence or an event id names; an event may have several.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn find(&self, id: &str) -> anyhow::Result<Vec<FullLetter>> {
        let sequence = id.parse::<u64>();
        let sequences = match sequence {
            Ok(sequence) => vec![sequence],
            Err(_) => {
                let filter = Filter {
                    ids: vec![id.to_owned()],
                    reason: None,
                };
                let named = self.select(&filter, 0, PAGE).await?;
                named.iter().map(|letter| letter.sequence).collect()
            }
        };
        let mut found = Vec::new();
        for sequence in sequences {
            found.extend(self.get(sequence).await?);
        }
        Ok(found)
    }

    /// The dead letters that contain a text, for example the id of a customer. Reads every payload;
    /// of an event that was too large to keep, its beginning.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn containing(&self, text: &str) -> anyhow::Result<Vec<Letter>> {
        let mut found = Vec::new();
        for letter in self.select(&Filter::default(), 0, usize::MAX).await? {
            let full = self.get(letter.sequence).await?;
            let mut payload = full
                .iter()
                .flat_map(|full| full.payload.windows(text.len()));
            if payload.any(|part| part == text.as_bytes()) {
                found.push(letter);
            }
        }
        Ok(found)
    }

    /// How many redriven events `service` has not handled yet.
    ///
    /// # Errors
    /// When the broker does not answer, or the service has never been there.
    pub async fn redriven(&self, service: Service) -> anyhow::Result<u64> {
        let stream = self.jetstream.get_stream(REDRIVE).await;
        let stream = stream.with_context(|| format!("open the stream {REDRIVE}"))?;
        let consumer = stream.consumer_info(service.name()).await;
        let consumer = consumer.with_context(|| format!("look at {service} on {REDRIVE}"))?;
        Ok(consumer.num_pending + consumer.num_ack_pending as u64)
    }

    /// Deletes redriven events that their services have handled, so that others find room. It
    /// needs the rights of an operator.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn make_room(&self) -> anyhow::Result<()> {
        let stream = self.jetstream.get_stream(REDRIVE).await;
        let stream = stream.with_context(|| format!("open the stream {REDRIVE}"))?;
        let consumers = stream.consumers().try_collect::<Vec<_>>().await;
        for consumer in consumers.with_context(|| format!("list the consumers of {REDRIVE}"))? {
            let handled = consumer.ack_floor.stream_sequence;
            // nats-server before 2.14.2 takes 1, the sequence behind it, for no limit.
            if handled == 0 {
                continue;
            }
            let subjects = format!("redrive.{}.>", consumer.name);
            let purged = stream.purge().filter(subjects).sequence(handled + 1).await;
            purged.with_context(|| format!("delete what {} has handled", consumer.name))?;
        }
        Ok(())
    }

    /// How many there are, and when the oldest was written. The cost does not depend on their
    /// number: the broker counts by subject.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn depth(&self) -> anyhow::Result<(u64, Option<OffsetDateTime>)> {
        let stream = self.stream().await?;
        let by_subject = stream.info_builder().subjects(&self.subjects);
        let counts = by_subject.fetch().await?;
        let depth = counts.try_fold(0, async |sum, (_, count)| Ok(sum + count as u64));
        let depth = depth.await?;
        if depth == 0 {
            return Ok((0, None));
        }
        // Not a direct read: see `messaging::permissions`.
        match stream
            .get_first_raw_message_by_subject(&self.subjects, 1)
            .await
        {
            Ok(oldest) => Ok((depth, Some(oldest.time))),
            // The last one was deleted meanwhile.
            Err(error) if error.kind() == NOT_FOUND => Ok((0, None)),
            Err(error) => Err(error.into()),
        }
    }

    fn has(&self, message: &StreamMessage) -> bool {
        let prefix = self.subjects.strip_suffix('>').unwrap_or(&self.subjects);
        message.subject.starts_with(prefix)
    }
}

/// Reads up to the sequence `last`. Others may delete dead letters meanwhile: the end is an empty
/// page, not a number of messages.
async fn read(
    reader: &jetstream::consumer::PullConsumer,
    last: u64,
    filter: &Filter,
    limit: usize,
) -> anyhow::Result<Vec<Letter>> {
    let (mut found, mut delivered) = (Vec::new(), 0);
    loop {
        let mut page = reader.fetch().max_messages(PAGE).messages().await?;
        let mut is_empty = true;
        loop {
            let Ok(next) = tokio::time::timeout(ANSWER_TIMEOUT, page.next()).await else {
                bail!("the broker does not answer");
            };
            let Some(message) = next else { break };
            let message = message.map_err(anyhow::Error::from_boxed)?;
            is_empty = false;
            let info = message.info().map_err(anyhow::Error::from_boxed)?;
            let sequence = info.stream_sequence;
            delivered += 1;
            // Nothing is delivered a second time to a reader that does not acknowledge.
            ensure!(
                info.consumer_sequence == delivered,
                "a dead letter was lost on its way"
            );
            if sequence > last {
                return Ok(found);
            }
            let letter = Letter::new(sequence, &message.subject, message.headers.as_ref());
            if filter.matches(&letter) {
                found.push(letter);
            }
            if sequence == last || found.len() >= limit {
                return Ok(found);
            }
        }
        if is_empty {
            return Ok(found);
        }
    }
}
