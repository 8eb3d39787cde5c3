//! Streams and durable consumers, declared in code and reconciled at start. One stream per
//! publisher plus the dead letters. Every service declares all streams, so that services start in
//! any order. Streams keep events that no consumer has seen yet, so a consumer that is created late
//! misses nothing.

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::{
    self, ErrorCode,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    context::{GetStreamError, GetStreamErrorKind},
    stream::{
        Config, ConsumerError, ConsumerErrorKind, DiscardPolicy, Info, RetentionPolicy, StorageType,
    },
};
use contracts::{
    Service, Subject,
    choreography::subscriptions,
    dead_letter::{AUDIT, REDRIVE, STREAM as DEAD_LETTERS},
};
use parking_lot::Mutex;

use crate::{Broker, StreamSettings};

const AUDIT_MAX_AGE: Duration = Duration::from_secs(90 * 24 * 3600);
const AUDIT_MAX_BYTES: i64 = 16 * 1024 * 1024;
/// How long streams keep events. The outboxes keep them for longer, and publish again what a
/// subscriber has missed.
pub const STREAM_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of dead letters, and of those that are redriven. These streams refuse what does not fit.
const DEAD_LETTERS_MAX_BYTES: i64 = 512 * 1024 * 1024;
const REDRIVE_MAX_BYTES: i64 = 256 * 1024 * 1024;
/// How long a delivered event may stay unacknowledged before the broker redelivers it. Short, so
/// that the events of a killed process are soon with another one; longer work reports progress.
pub const ACK_WAIT: Duration = Duration::from_secs(2);
/// How long the broker drops a repeated `Nats-Msg-Id` by itself. A convenience: correctness comes
/// from the inbox. Longer than another replica takes to go on where a killed relay was; not much
/// longer, because the broker keeps every id of this time in memory.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);
/// Events that a service may hold unacknowledged, all replicas together: sixteen full batches.
pub(crate) const MAX_ACK_PENDING: usize = 4096;

/// The streams whose limits were found to be others.
static REPORTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// What a consumer consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The events of a publisher.
    Publisher(Service),
    /// The service's own dead letters that an operator has redriven.
    Redrive,
}

impl Source {
    /// All sources of a service.
    pub(crate) fn all(service: Service) -> Vec<Self> {
        let publishers = Service::ALL.into_iter();
        let publishers = publishers.filter(|owner| !subscriptions(service, *owner).is_empty());
        let mut sources: Vec<_> = publishers.map(Self::Publisher).collect();
        if !sources.is_empty() {
            sources.push(Self::Redrive);
        }
        sources
    }

    pub(crate) fn stream(self) -> &'static str {
        match self {
            Self::Publisher(owner) => owner.stream().unwrap_or_default(),
            Self::Redrive => REDRIVE,
        }
    }

    fn filters(self, service: Service) -> Vec<String> {
        match self {
            Self::Publisher(owner) => {
                let subjects = subscriptions(service, owner);
                subjects.into_iter().map(subject_filter).collect()
            }
            Self::Redrive => vec![format!("redrive.{service}.>")],
        }
    }
}

/// The subject that an event was first published on: a redriven one arrives as
/// `redrive.<service>.<subject>`.
pub(crate) fn original_subject(subject: &str) -> &str {
    let redriven = subject.strip_prefix("redrive.");
    let original = redriven.and_then(|rest| rest.split_once('.'));
    original.map_or(subject, |(_service, subject)| subject)
}

/// Why streams or consumers could not be reconciled.
#[derive(Debug, thiserror::Error)]
#[error("cannot reconcile {what}")]
pub struct TopologyError {
    what: String,
    source: async_nats::Error,
}

/// Declares all streams, and returns what they are.
///
/// # Errors
/// [`TopologyError`] when the broker is unavailable or refuses.
pub async fn reconcile_streams(broker: &Broker) -> Result<Vec<Info>, TopologyError> {
    let mut found = Vec::new();
    for wanted in streams(broker.streams) {
        found.push(declare(broker, wanted).await?);
    }
    Ok(found)
}

/// Declares one of the streams.
pub(crate) async fn reconcile_stream(broker: &Broker, name: &str) -> Result<(), TopologyError> {
    let streams = streams(broker.streams).into_iter();
    for wanted in streams.filter(|stream| stream.name == name) {
        declare(broker, wanted).await?;
    }
    Ok(())
}

/// Declares one stream. It keeps the replicas that it has, if they are more than wanted: an
/// operator may have added some, and a service that is configured otherwise must not take them
/// away.
async fn declare(broker: &Broker, mut wanted: Config) -> Result<Info, TopologyError> {
    let (name, max_bytes, replicas) = (&wanted.name, wanted.max_bytes, wanted.num_replicas);
    let what = format!("stream {name} of {max_bytes} bytes in {replicas} copies");
    let failed = |source: async_nats::Error| TopologyError { what, source };
    let found = match broker.jetstream.get_stream(&wanted.name).await {
        Ok(found) => Some(found),
        Err(error) if is_missing_stream(&error) => None,
        // What cannot be looked at may exist, with more replicas than are wanted here.
        Err(error) => return Err(failed(error.into())),
    };
    if let Some(found) = &found {
        let found = found.cached_info();
        wanted.num_replicas = wanted.num_replicas.max(found.config.num_replicas);
        if is_as_wanted(&found.config, &wanted) {
            return Ok(found.clone());
        }
        if broker.has_user {
            // Once: this is looked at all the time.
            if REPORTED.lock().insert(wanted.name.clone()) {
                tracing::warn!(
                    stream = wanted.name,
                    bytes = found.config.max_bytes,
                    wanted.bytes = wanted.max_bytes,
                    replicas = found.config.num_replicas,
                    wanted.replicas = wanted.num_replicas,
                    "the stream has other limits than this version declares, and only operators may \
                     change it; it is used as it is"
                );
            }
            return Ok(found.clone());
        }
    }
    // Users may not update; another service may have created it meanwhile, with the same limits.
    if broker.has_user {
        let created = broker.jetstream.create_stream(wanted).await;
        let created = created.map_err(|error| failed(error.into()))?;
        return Ok(created.cached_info().clone());
    }
    let declared = broker.jetstream.create_or_update_stream(wanted).await;
    declared.map_err(|error| failed(error.into()))
}

fn is_as_wanted(found: &Config, wanted: &Config) -> bool {
    found.subjects == wanted.subjects
        && found.num_replicas == wanted.num_replicas
        && found.max_bytes == wanted.max_bytes
        && found.max_age == wanted.max_age
        && found.discard == wanted.discard
        && found.duplicate_window == wanted.duplicate_window
        && found.allow_direct == wanted.allow_direct
}

/// Declares the durable consumers of `service`, one per stream that it consumes.
///
/// # Errors
/// [`TopologyError`] when the broker is unavailable or refuses.
pub async fn reconcile_consumers(
    broker: &Broker,
    service: Service,
) -> Result<Vec<PullConsumer>, TopologyError> {
    let mut consumers = Vec::new();
    for source in Source::all(service) {
        consumers.push(reconcile_consumer(broker, service, source).await?);
    }
    Ok(consumers)
}

/// Declares the durable consumer of `service` on one stream. Its filters only ever widen: a newer
/// replica may subscribe to more than this one knows, and what a narrower filter has passed over
/// never comes back (nats-server #7268).
pub(crate) async fn reconcile_consumer(
    broker: &Broker,
    service: Service,
    source: Source,
) -> Result<PullConsumer, TopologyError> {
    let stream = source.stream();
    let failed = |source: async_nats::Error| TopologyError {
        what: format!("consumer {service} on {stream}"),
        source,
    };
    let mut wanted = consumer(service, source);
    let jetstream = &broker.jetstream;
    let existing = jetstream.get_consumer_from_stream::<pull::Config, _, _>(service.name(), stream);
    let existing = match existing.await {
        Ok(existing) => existing,
        Err(error) if is_missing_consumer(&error) => {
            // Fails when another version has created it meanwhile, with other filters.
            let created = jetstream.create_consumer_strict_on_stream(wanted, stream);
            return created.await.map_err(|error| failed(error.into()));
        }
        // What cannot be looked at may exist, with wider filters.
        Err(error) => return Err(failed(error.into())),
    };
    let found = &existing.cached_info().config;
    let news = |filter: &String| !found.filter_subjects.contains(filter);
    let widens = wanted.filter_subjects.iter().any(news);
    if !widens && agrees(found, &wanted) {
        return Ok(existing);
    }
    let kept = found.filter_subjects.iter();
    let kept = kept.filter(|filter| !wanted.filter_subjects.contains(filter));
    wanted.filter_subjects = wanted.filter_subjects.iter().chain(kept).cloned().collect();
    let reconciled = jetstream.create_consumer_on_stream(wanted, stream).await;
    reconciled.map_err(|error| failed(error.into()))
}

fn is_missing_stream(error: &GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NOT_FOUND,
        _ => false,
    }
}

fn is_missing_consumer(error: &ConsumerError) -> bool {
    match error.kind() {
        ConsumerErrorKind::JetStream(error) => error.error_code() == ErrorCode::CONSUMER_NOT_FOUND,
        _ => false,
    }
}

/// Whether a consumer has the limits that this version wants.
fn agrees(found: &jetstream::consumer::Config, wanted: &pull::Config) -> bool {
    found.ack_wait == wanted.ack_wait
        && found.max_ack_pending == wanted.max_ack_pending
        && found.max_deliver == wanted.max_deliver
}

/// Bytes of all streams together, when each publisher has `max_bytes`: what the broker's store must
/// hold.
pub fn store_bytes(max_bytes: i64) -> i64 {
    let settings = StreamSettings {
        max_bytes,
        ..StreamSettings::default()
    };
    let streams = streams(settings).into_iter();
    streams.map(|stream| stream.max_bytes).sum()
}

pub(crate) fn stream_names() -> impl Iterator<Item = String> {
    let streams = streams(StreamSettings::default()).into_iter();
    streams.map(|stream| stream.name)
}

fn streams(settings: StreamSettings) -> Vec<Config> {
    let mut streams: Vec<Config> = Service::ALL
        .into_iter()
        .filter_map(|owner| {
            Some(stream(
                owner.stream()?,
                Subject::ALL.into_iter().filter(|s| s.owner() == owner),
                settings.max_bytes,
            ))
        })
        .collect();
    streams.push(Config {
        subjects: vec!["dlq.>".to_owned()],
        max_age: Duration::ZERO,
        max_bytes: DEAD_LETTERS_MAX_BYTES,
        ..base(DEAD_LETTERS)
    });
    streams.push(Config {
        subjects: vec!["redrive.>".to_owned()],
        // It may hold the only copy: its service may be away for longer than streams keep events.
        max_age: Duration::ZERO,
        max_bytes: REDRIVE_MAX_BYTES,
        ..base(REDRIVE)
    });
    streams.push(Config {
        subjects: vec!["audit.>".to_owned()],
        discard: DiscardPolicy::Old,
        max_age: AUDIT_MAX_AGE,
        max_bytes: AUDIT_MAX_BYTES,
        ..base(AUDIT)
    });
    for stream in &mut streams {
        stream.num_replicas = settings.replicas;
    }
    streams
}

/// A stream of events: a window over the publisher's outbox. It drops its oldest events when it is
/// full, so that it never stops the publisher; the relay publishes again what a subscriber has not
/// handled by then.
fn stream(name: &str, subjects: impl Iterator<Item = Subject>, max_bytes: i64) -> Config {
    let mut first_parts: Vec<String> = subjects
        .map(|subject| format!("{}.>", subject.owner()))
        .collect();
    first_parts.dedup();
    Config {
        subjects: first_parts,
        discard: DiscardPolicy::Old,
        max_bytes,
        ..base(name)
    }
}

fn base(name: &str) -> Config {
    Config {
        name: name.to_owned(),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_age: STREAM_MAX_AGE,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Config::default()
    }
}

fn consumer(service: Service, source: Source) -> pull::Config {
    pull::Config {
        durable_name: Some(service.name().to_owned()),
        description: Some(format!("subscriptions of the {service} service")),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // The consumer counts attempts itself: a delivery during a database outage must not count.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING as i64,
        filter_subjects: source.filters(service),
        ..pull::Config::default()
    }
}

/// All major versions of a fact: an unknown version waits for a newer replica. A narrower filter
/// would skip it silently.
fn subject_filter(subject: Subject) -> String {
    let fact = subject
        .as_str()
        .rsplit_once('.')
        .map_or(subject.as_str(), |(fact, _version)| fact);
    format!("{fact}.*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redriven_event_keeps_its_subject() {
        let original = "order.created.v1";
        assert_eq!(original_subject(original), original);
        assert_eq!(
            original_subject("redrive.payment.order.created.v1"),
            original
        );
    }

    #[test]
    fn every_subject_has_one_stream() {
        let streams = streams(StreamSettings::default());
        for subject in Subject::ALL {
            let prefix = format!("{}.>", subject.owner());
            assert_eq!(
                streams
                    .iter()
                    .filter(|stream| stream.subjects.contains(&prefix))
                    .count(),
                1,
                "{subject}"
            );
        }
    }

    #[test]
    fn filters_come_from_the_choreography_and_cover_later_versions() {
        let config = consumer(Service::Inventory, Source::Publisher(Service::Order));
        assert_eq!(config.filter_subjects, ["order.cancelled.*"]);
    }
}
