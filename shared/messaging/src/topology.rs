//! Streams and durable consumers, declared in code and reconciled at start.
//! One stream per publisher plus the dead letters. Every service declares all streams, so that
//! services start in any order. Streams keep events that no consumer has seen yet, so a consumer that
//! is created late misses nothing.

use std::time::Duration;

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use contracts::{Service, Subject, choreography::subscriptions};

use crate::Broker;

/// The stream of dead letters.
pub const DEAD_LETTERS: &str = "DEAD_LETTER";
/// How long streams keep events. Inboxes remember them for longer.
pub const STREAM_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a delivered event may stay unacknowledged before the broker redelivers it. Short, so that
/// another replica soon gets the events of a killed process; longer work reports progress.
pub const ACK_WAIT: Duration = Duration::from_secs(10);
/// How long the broker drops a repeated `Nats-Msg-Id` by itself. A convenience: correctness comes
/// from the inbox.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Events that a service may hold unacknowledged, all replicas together: sixteen full batches.
const MAX_ACK_PENDING: i64 = 4096;

/// Why streams or consumers could not be reconciled.
#[derive(Debug, thiserror::Error)]
#[error("cannot reconcile {what}")]
pub struct TopologyError {
    what: String,
    source: async_nats::Error,
}

/// Declares all streams.
///
/// # Errors
/// [`TopologyError`] when the broker is unavailable or refuses.
pub async fn reconcile_streams(broker: &Broker) -> Result<(), TopologyError> {
    for config in streams() {
        let what = format!("stream {}", config.name);
        broker
            .jetstream
            .create_or_update_stream(config)
            .await
            .map_err(|source| TopologyError {
                what,
                source: source.into(),
            })?;
    }
    Ok(())
}

/// Declares the durable consumers of `service`, one per stream that it subscribes to.
///
/// # Errors
/// [`TopologyError`] when the broker is unavailable or refuses.
pub async fn reconcile_consumers(
    broker: &Broker,
    service: Service,
) -> Result<Vec<PullConsumer>, TopologyError> {
    let mut consumers = Vec::new();
    for owner in Service::ALL {
        if !subscriptions(service, owner).is_empty() {
            consumers.push(reconcile_consumer(broker, service, owner).await?);
        }
    }
    Ok(consumers)
}

/// Declares the durable consumer of `service` on the stream of `owner`.
pub(crate) async fn reconcile_consumer(
    broker: &Broker,
    service: Service,
    owner: Service,
) -> Result<PullConsumer, TopologyError> {
    let stream = owner.stream().unwrap_or_default();
    let config = consumer(service, &subscriptions(service, owner));
    broker
        .jetstream
        .create_consumer_on_stream(config, stream)
        .await
        .map_err(|source| TopologyError {
            what: format!("consumer {service} on {stream}"),
            source: source.into(),
        })
}

fn streams() -> Vec<Config> {
    let mut streams: Vec<Config> = Service::ALL
        .into_iter()
        .filter_map(|owner| {
            Some(stream(
                owner.stream()?,
                Subject::ALL.into_iter().filter(|s| s.owner() == owner),
            ))
        })
        .collect();
    streams.push(Config {
        subjects: vec!["dlq.>".to_owned()],
        max_age: Duration::ZERO,
        ..base(DEAD_LETTERS)
    });
    streams
}

fn stream(name: &str, subjects: impl Iterator<Item = Subject>) -> Config {
    let mut first_parts: Vec<String> = subjects
        .map(|subject| format!("{}.>", subject.owner()))
        .collect();
    first_parts.dedup();
    Config {
        subjects: first_parts,
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

fn consumer(service: Service, subjects: &[Subject]) -> pull::Config {
    pull::Config {
        durable_name: Some(service.name().to_owned()),
        description: Some(format!("subscriptions of the {service} service")),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // The consumer counts attempts itself: a delivery during a database outage must not count.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        filter_subjects: subjects
            .iter()
            .map(|subject| subject_filter(*subject))
            .collect(),
        ..pull::Config::default()
    }
}

/// All major versions of a fact: an unknown version must become a dead letter. A narrower filter would
/// skip it silently.
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
    fn every_subject_has_one_stream() {
        let streams = streams();
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
        let config = consumer(
            Service::Inventory,
            &subscriptions(Service::Inventory, Service::Order),
        );
        assert_eq!(config.filter_subjects, ["order.cancelled.*"]);
    }
}
