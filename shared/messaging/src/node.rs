//! A service as a participant of the saga: its database, its broker connection, its outbox and its
//! consumers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use contracts::{
    Inbound,
    choreography::{Service, listens_to},
};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Broker, Handler, Progress, batch::Batches, consumer::Consumer, metrics::Metrics, outbox::Wake,
    prune, relay::Relay, topology,
};

/// What a participant has; cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    /// Who this is.
    pub service: Service,
    /// The service's own database.
    pub pool: PgPool,
    /// The connection to the broker.
    pub broker: Broker,
    /// Wake after committing an outbox row outside of a handler.
    pub wake: Wake,
    /// For readiness.
    pub progress: Progress,
    /// How long published events stay in the outbox; `None` keeps them for ever.
    pub keep_outbox: Option<Duration>,
    /// How often an event is tried before it becomes a dead letter.
    pub max_attempts: u32,
    pub(crate) metrics: Metrics,
}

/// With the back-off between attempts that is about a minute.
const MAX_ATTEMPTS: u32 = 8;

impl Node {
    /// A participant that keeps its outbox for as long as the streams keep events.
    pub fn new(service: Service, pool: PgPool, broker: Broker) -> Self {
        Self {
            service,
            pool,
            broker,
            wake: Wake::default(),
            progress: Progress::default(),
            keep_outbox: Some(topology::STREAM_MAX_AGE),
            max_attempts: MAX_ATTEMPTS,
            metrics: Metrics::new(service),
        }
    }

    /// Keeps published events for ever: for a service whose outbox is its event log.
    pub fn keep_outbox_for_ever(mut self) -> Self {
        self.keep_outbox = None;
        self
    }
}

/// Takes part in the saga until `shutdown`: declares streams and consumers, relays the outbox,
/// hands events to `handler`, prunes. At shutdown consumers finish the batch in hand, then the
/// outbox is flushed.
///
/// # Errors
/// When the topology cannot be declared at start, or a part dies, which is a bug: the process
/// should then end.
pub async fn run<H: Handler>(
    node: Node,
    handler: Arc<H>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    topology::reconcile_streams(&node.broker).await?;
    topology::reconcile_consumers(&node.broker, node.service).await?;
    let mut consumers = JoinSet::new();
    for owner in Service::ALL {
        if !listens_to(H::Inbound::SERVICE, owner).is_empty() {
            let batches = Batches {
                node: node.clone(),
                handler: Arc::clone(&handler),
            };
            let consumer = Consumer {
                batches,
                owner,
                attempts: HashMap::new(),
            };
            consumers.spawn(consumer.run(shutdown.clone()));
        }
    }
    let after_consumers = CancellationToken::new();
    let mut relay = JoinSet::new();
    if node.service.stream().is_some() {
        relay.spawn(relay_of(&node).run(after_consumers.clone()));
    }
    consumers.spawn(prune::run(
        node.pool.clone(),
        node.keep_outbox,
        shutdown.clone(),
    ));
    let finished = async {
        while let Some(part) = consumers.join_next().await {
            part.context("a consumer died")?;
            anyhow::ensure!(shutdown.is_cancelled(), "a consumer ended by itself");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = finished => result?,
        Some(result) = relay.join_next() => { result.context("the relay died")?; anyhow::bail!("the relay ended by itself") }
    }
    after_consumers.cancel();
    while let Some(part) = relay.join_next().await {
        part.context("the relay died")?;
    }
    node.broker
        .client
        .flush()
        .await
        .context("flush the broker connection")
}

fn relay_of(node: &Node) -> Relay {
    Relay {
        service: node.service,
        pool: node.pool.clone(),
        broker: node.broker.clone(),
        wake: node.wake.clone(),
        progress: node.progress.clone(),
        metrics: node.metrics.clone(),
    }
}
