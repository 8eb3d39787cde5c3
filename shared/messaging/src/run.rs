//! Runs a participant: its consumers, its relay and the upkeep of its tables, in the right order at shutdown.

use std::sync::Arc;

use anyhow::Context as _;
use contracts::Inbound;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Handler, Participant,
    consumer::Consumer,
    partitions, relay, storage,
    topology::{self, Source},
};

/// Takes part in the saga until `shutdown`: declares streams and consumers, relays the outbox, hands
/// events to `handler`, drops what is old.
///
/// # Errors
/// When the topology cannot be declared at start, or a part ends by itself. That is a bug; the
/// process should then end.
pub async fn run<H: Handler>(
    participant: Participant,
    handler: Arc<H>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    topology::reconcile_streams(&participant.broker).await?;
    topology::reconcile_consumers(&participant.broker, participant.service).await?;
    let mut consumers = JoinSet::new();
    for source in Source::all(H::Inbound::SERVICE) {
        let consumer = Consumer::new(participant.clone(), Arc::clone(&handler), source);
        consumers.spawn(consumer.run(shutdown.clone()));
    }
    let upkeep = partitions::run(
        participant.pool.clone(),
        participant.outbox_retention,
        shutdown.clone(),
    );
    consumers.spawn(upkeep);
    consumers.spawn(storage::run(participant.clone(), shutdown.clone()));

    // The relay outlives the consumers: the last batch may still append to the outbox, and those
    // events should leave before the process does.
    let consumers_done = CancellationToken::new();
    let mut relay = JoinSet::new();
    if let Some(stream) = participant.service.stream() {
        relay.spawn(relay::run(
            participant.clone(),
            stream,
            consumers_done.clone(),
        ));
    }
    let all_consumers = async {
        while let Some(part) = consumers.join_next().await {
            part.context("a consumer panicked")?;
            anyhow::ensure!(shutdown.is_cancelled(), "a consumer ended by itself");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = all_consumers => result?,
        Some(result) = relay.join_next() => {
            result.context("the relay panicked")?;
            anyhow::bail!("the relay ended by itself");
        }
    }
    consumers_done.cancel();
    while let Some(part) = relay.join_next().await {
        part.context("the relay panicked")?;
    }
    // Acknowledgements are sent without waiting for an answer; without the flush the last ones would
    // be lost, and their events delivered again.
    participant.broker.flush().await;
    Ok(())
}
