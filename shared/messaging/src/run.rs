//! Runs a participant: its consumers, its relay and the upkeep of its tables, in the right order at
//! shutdown.

use std::sync::Arc;

use anyhow::Context as _;
use contracts::Inbound;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Handler, Participant, backoff,
    consumer::Consumer,
    partitions, relay, storage,
    topology::{self, Source},
};

/// Takes part in the saga until `shutdown`: declares streams and consumers, relays the outbox,
/// hands events to `handler`, drops what is old.
///
/// # Errors
/// When a part ends by itself. That is a bug; the process should then end.
pub async fn run<H: Handler>(
    participant: Participant,
    handler: Arc<H>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = declare(&participant) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let mut tasks = JoinSet::new();
    for source in Source::all(H::Inbound::SERVICE) {
        let consumer = Consumer::new(participant.clone(), Arc::clone(&handler), source);
        tasks.spawn(consumer.run(shutdown.clone()));
    }
    let upkeep = partitions::run(
        participant.pool.clone(),
        participant.outbox_retention,
        shutdown.clone(),
    );
    tasks.spawn(upkeep);
    tasks.spawn(storage::run(participant.clone(), shutdown.clone()));

    // The relay outlives the consumers: the last batch may still append to the outbox, and those
    // events should leave before the process does.
    let tasks_done = CancellationToken::new();
    let mut relay = JoinSet::new();
    if let Some(stream) = participant.service.stream() {
        relay.spawn(relay::run(participant.clone(), stream, tasks_done.clone()));
    }
    let all_tasks = async {
        while let Some(task) = tasks.join_next().await {
            task.context("a consumer or a periodic task panicked")?;
            let ended = "a consumer or a periodic task ended by itself";
            anyhow::ensure!(shutdown.is_cancelled(), ended);
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = all_tasks => result?,
        Some(result) = relay.join_next() => {
            result.context("the relay panicked")?;
            anyhow::bail!("the relay ended by itself");
        }
    }
    tasks_done.cancel();
    while let Some(part) = relay.join_next().await {
        part.context("the relay panicked")?;
    }
    // Acknowledgements are sent without waiting for an answer; without the flush the last ones
    // would be lost, and their events delivered again.
    participant.broker.flush().await;
    Ok(())
}

/// Declares streams and consumers, and waits for a broker that cannot take them yet: a cluster that
/// has no leader, a store without room. Until then no part makes progress, so that the process is
/// not ready.
async fn declare(participant: &Participant) {
    let Participant {
        service, broker, ..
    } = participant;
    let mut delays = backoff::outage();
    loop {
        let declared = async {
            topology::reconcile_streams(broker).await?;
            topology::reconcile_consumers(broker, *service).await
        };
        let Err(error) = declared.await else { return };
        let delay = delays.next_delay();
        tracing::warn!(%service, error = format!("{:#}", anyhow::Error::from(error)),
            "the broker does not take the streams; the next attempt is in {delay:?}");
        broker.pause(delay).await;
    }
}
