//! The choreography as it happened: which event followed from which.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use contracts::{
    Envelope, EventId, Subject,
    choreography::{COMMANDS, EDGES, Service, allows},
};

use crate::adversary;

/// An event and what caused it; nothing stands for a command.
pub type Pair = (Option<Subject>, Subject);

/// Every pair that the choreography declares.
pub fn expected_pairs() -> BTreeSet<Pair> {
    let from_edges = EDGES
        .iter()
        .flat_map(|edge| edge.emits.iter().map(|emitted| (Some(edge.on), *emitted)));
    from_edges
        .chain(COMMANDS.iter().map(|command| (None, command.emits)))
        .collect()
}

/// Reads all streams and returns the pairs in them.
pub(crate) async fn observe(jetstream: &jetstream::Context) -> anyhow::Result<BTreeSet<Pair>> {
    let mut envelopes = Vec::new();
    for stream in Service::ALL.into_iter().filter_map(Service::stream) {
        for message in adversary::read(jetstream, stream).await? {
            let envelope = Envelope::from_headers(message.headers.as_ref());
            envelopes.push(envelope.with_context(|| format!("a message on {}", message.subject))?);
        }
    }
    let subjects: HashMap<EventId, Subject> = envelopes
        .iter()
        .map(|envelope| (envelope.event_id, envelope.subject))
        .collect();
    let mut pairs = BTreeSet::new();
    for envelope in &envelopes {
        let cause = subjects.get(&envelope.causation_id).copied();
        ensure!(
            allows(cause, envelope.subject),
            "{} followed from {cause:?}, which is not in the choreography",
            envelope.subject
        );
        pairs.insert((cause, envelope.subject));
    }
    Ok(pairs)
}
