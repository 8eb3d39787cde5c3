//! Wakes whoever watches an order when something happens to it.
//!
//! A plain subscription beside the streams, made only while somebody watches. It may miss messages;
//! watchers therefore also look by themselves from time to time, and what they show is always read
//! from the event logs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::ConnectOptions;
use contracts::{OrderId, choreography::Service, header};
use futures::{StreamExt as _, stream::select_all};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long the subscription outlives its last watcher.
const LINGER: Duration = Duration::from_secs(5);

/// The watchers; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    watchers: Arc<Mutex<HashMap<OrderId, Arc<Notify>>>>,
    first: Arc<Notify>,
}

/// Somebody who watches an order, until dropped.
pub(crate) struct Watch {
    live: Live,
    order: OrderId,
    woken: Arc<Notify>,
}

impl Live {
    /// Begins to watch.
    pub(crate) fn watch(&self, order: OrderId) -> Watch {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = Arc::clone(watchers.entry(order).or_default());
        self.first.notify_one();
        Watch {
            live: self.clone(),
            order,
            woken,
        }
    }

    fn is_watched(&self) -> bool {
        !self
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    fn wake(&self, order: OrderId) {
        if let Some(watcher) = self
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&order)
        {
            watcher.notify_waiters();
        }
    }

    /// Subscribes while somebody watches, until `shutdown`.
    pub(crate) async fn run(self, url: String, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = self.first.notified() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            tokio::select! {
                result = self.listen(&url) => if let Err(error) = result {
                    tracing::warn!(error = format!("{error:#}"), "live streams look by themselves until NATS is back");
                    tokio::select! {
                        () = tokio::time::sleep(LINGER) => self.first.notify_one(),
                        () = shutdown.cancelled() => return Ok(()),
                    }
                },
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    async fn listen(&self, url: &str) -> anyhow::Result<()> {
        let client = ConnectOptions::new().name("gateway").connect(url).await?;
        let mut subscriptions = Vec::new();
        for owner in Service::ALL
            .into_iter()
            .filter(|owner| owner.stream().is_some())
        {
            subscriptions.push(client.subscribe(format!("{owner}.>")).await?);
        }
        let mut messages = select_all(subscriptions);
        let mut check = tokio::time::interval(LINGER);
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => {
                        let order = message.headers.as_ref().and_then(|headers| headers.get(header::SUBJECT));
                        if let Some(order) = order.and_then(|order| order.as_str().parse().ok()) {
                            self.wake(order);
                        }
                    }
                    None => anyhow::bail!("the subscription ended"),
                },
                _ = check.tick() => if !self.is_watched() { return Ok(()) },
            }
        }
    }
}

impl Watch {
    /// Waits until something happens to the order, or for `most`.
    pub(crate) async fn changed(&self, most: Duration) {
        // Nothing to do about a timeout but to look.
        let _timeout = tokio::time::timeout(most, self.woken.notified()).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watchers = self
            .live
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The map and this watch hold one each.
        if watchers
            .get(&self.order)
            .is_some_and(|woken| Arc::strong_count(woken) <= 2)
        {
            watchers.remove(&self.order);
        }
    }
}
