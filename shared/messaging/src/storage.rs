//! How much room the broker's streams have left, and how many dead letters the service has.
//!
//! The streams of publishers never fill: they drop their oldest events. That of dead letters
//! refuses what does not fit, because it may hold the only copy. When it is nearly full, the events
//! that fail next would be stuck, and new orders should wait until an operator has made
//! room. That of redriven events refuses, too, but then its dead letters stay where they are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use contracts::dead_letter::{AUDIT, STREAM as DEAD_LETTERS};
use tokio_util::sync::CancellationToken;

use crate::{Participant, topology};

const INTERVAL: Duration = Duration::from_secs(10);
/// The share of its bytes above which the stream counts as nearly full.
const FULL: f64 = 0.9;

/// What is known of the broker's room; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Storage(Arc<AtomicBool>);

impl Storage {
    /// Whether the broker will soon refuse what it must keep.
    pub fn is_nearly_full(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Observes until `shutdown`: regularly, and over each new connection, because the broker may have
/// lost its streams.
pub(crate) async fn run(participant: Participant, shutdown: CancellationToken) {
    let broker = &participant.broker;
    loop {
        let connections = broker.connections();
        let observed = tokio::select! {
            (observed, ()) = async { tokio::join!(observe(&participant), count(&participant)) } =>
                observed,
            () = shutdown.cancelled() => return,
        };
        // Otherwise the relay and the consumers report a broker that is away.
        if let Ok(is_nearly_full) = observed {
            note(&participant, is_nearly_full);
        }
        if broker.connections() != connections {
            continue;
        }
        tokio::select! {
            () = broker.pause(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn note(participant: &Participant, is_nearly_full: bool) {
    let flag = &participant.storage.0;
    let before = flag.swap(is_nearly_full, Ordering::Relaxed);
    if is_nearly_full && !before {
        tracing::error!(
            "the stream of dead letters is nearly full, and an event that fails next could not be \
             kept; new orders are refused until an operator redrives or discards some"
        );
    }
}

/// Measures the dead letters of the service. While the broker is away the metrics stay as they are.
async fn count(participant: &Participant) {
    let own = participant.dead_letters();
    if let Ok((depth, oldest)) = own.depth().await {
        participant.metrics.dead_letters(depth, oldest);
    }
}

/// Returns whether the stream of dead letters is nearly full. Declares the streams again: an
/// operator may have deleted one that has no publisher, such as that of the dead letters.
async fn observe(participant: &Participant) -> anyhow::Result<bool> {
    let mut is_nearly_full = false;
    let streams = topology::reconcile_streams(&participant.broker).await?;
    // The audit of acts on dead letters drops its oldest lines, and is always small.
    for info in streams.iter().filter(|info| info.config.name != AUDIT) {
        let Ok(limit @ 1..) = u64::try_from(info.config.max_bytes) else {
            continue;
        };
        let share = info.state.bytes as f64 / limit as f64;
        participant.metrics.stream_use(&info.config.name, share);
        is_nearly_full |= info.config.name == DEAD_LETTERS && share >= FULL;
    }
    Ok(is_nearly_full)
}
