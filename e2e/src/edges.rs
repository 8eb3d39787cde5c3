//! The choreography as it happened: which event followed from which.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use contracts::{
    EventId, Service, Subject,
    choreography::{COMMANDS, EDGES, allows},
};
use devstack::test::read_stream;
use messaging::headers::from_headers;

/// An event and the event that caused it; `None` stands for a command.
pub type Pair = (Option<Subject>, Subject);

/// Every pair that the choreography declares.
pub fn expected_pairs() -> BTreeSet<Pair> {
    let from_edges = EDGES.iter().flat_map(|edge| {
        let emitted = edge.emits.iter();
        emitted.map(|emitted| (Some(edge.on), *emitted))
    });
    let from_commands = COMMANDS.iter().map(|command| (None, command.emits));
    from_edges.chain(from_commands).collect()
}

/// The pairs in all streams; `recorded` are the events of all outboxes, since a stream may have
/// lost a cause. Fails on a pair that the choreography does not declare.
pub async fn observe(
    jetstream: &jetstream::Context,
    recorded: &HashMap<EventId, Subject>,
) -> anyhow::Result<BTreeSet<Pair>> {
    let mut envelopes = Vec::new();
    for stream in Service::ALL.into_iter().filter_map(Service::stream) {
        for message in read_stream(jetstream, stream).await? {
            let envelope = from_headers(message.headers.as_ref());
            let subject = message.subject;
            envelopes.push(envelope.with_context(|| format!("a message on {subject}"))?);
        }
    }
    let mut pairs = BTreeSet::new();
    for envelope in &envelopes {
        let cause = recorded.get(&envelope.cause.causation_id).copied();
        ensure!(
            allows(cause, envelope.subject),
            "{} followed from {cause:?}, which is not in the choreography",
            envelope.subject
        );
        pairs.insert((cause, envelope.subject));
    }
    Ok(pairs)
}
