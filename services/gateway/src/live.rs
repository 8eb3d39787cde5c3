//! Notifies watchers of an order when one of its events is published.
//!
//! A plain NATS subscription beside the streams, which exists only while there are watchers. It may
//! miss messages. Watchers therefore also poll, and what they show always comes from the event
//! logs.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::ConnectOptions;
use bootstrap::settings::BrokerSettings;
use contracts::{CustomerId, OrderId, header};
use futures::{StreamExt as _, stream::select_all};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    backends::publishers,
    per_customer::{Counted, PerCustomer},
};

/// How long the subscription outlives its last watcher, and how long a lost one waits for its next
/// attempt. Watchers that follow each other closely share one subscription.
const LINGER: Duration = Duration::from_secs(5);

/// The gateway's user at NATS.
const USER: &str = "gateway";
/// Live streams of a customer at a time: a stream costs memory and polls for minutes.
pub const MAX_STREAMS: usize = 32;

/// The watchers; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Those that nobody watches are not kept.
    watched: Arc<Mutex<HashMap<OrderId, Watched>>>,
    streams: PerCustomer,
    /// Starts the subscription.
    needed: Arc<Notify>,
}

/// An order that is watched.
#[derive(Debug, Default)]
struct Watched {
    watches: usize,
    /// For all of its watches.
    changed: Arc<Notify>,
}

/// Watches an order until dropped.
pub struct Watch {
    live: Live,
    order: OrderId,
    _stream: Counted,
    changed: Arc<Notify>,
}

impl Live {
    /// `None` when the customer has [`MAX_STREAMS`] already.
    pub fn watch(&self, customer: CustomerId, order: OrderId) -> Option<Watch> {
        let stream = self.streams.count(customer, MAX_STREAMS)?;
        let mut watched = self.watched.lock();
        let of_order = watched.entry(order).or_default();
        of_order.watches += 1;
        let changed = Arc::clone(&of_order.changed);
        drop(watched);
        self.needed.notify_one();
        Some(Watch {
            live: self.clone(),
            order,
            changed,
            _stream: stream,
        })
    }

    /// Subscribes while there are watchers, until `stopping`.
    pub async fn run(
        self,
        broker: BrokerSettings,
        tls_dir: Option<PathBuf>,
        stopping: CancellationToken,
    ) -> anyhow::Result<()> {
        let subscribe = async {
            loop {
                self.needed.notified().await;
                if let Err(error) = self.subscribe(&broker, tls_dir.as_deref()).await {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "NATS is unavailable; live streams poll until it is back"
                    );
                    tokio::time::sleep(LINGER).await;
                    self.needed.notify_one();
                }
            }
        };
        tokio::select! {
            () = subscribe => Ok(()),
            () = stopping.cancelled() => Ok(()),
        }
    }

    /// Returns when there are no watchers.
    async fn subscribe(
        &self,
        broker: &BrokerSettings,
        tls_dir: Option<&Path>,
    ) -> anyhow::Result<()> {
        let mut options = match broker.password() {
            Some(password) => {
                ConnectOptions::with_user_and_password(USER.to_owned(), password.to_owned())
            }
            None => ConnectOptions::new(),
        };
        if let Some(directory) = tls_dir {
            options = options
                .require_tls(true)
                .add_root_certificates(directory.join("ca.crt"))
                .add_client_certificate(directory.join("tls.crt"), directory.join("tls.key"));
        }
        let servers: Vec<&str> = broker.url.split(',').collect();
        let client = options.name(USER).connect(servers).await?;
        let mut subscriptions = Vec::new();
        for service in publishers() {
            subscriptions.push(client.subscribe(format!("{service}.>")).await?);
        }
        let mut messages = select_all(subscriptions);
        let mut check = tokio::time::interval(LINGER);
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.notify(&message),
                    None => anyhow::bail!("the subscription ended"),
                },
                _ = check.tick() => if self.watched.lock().is_empty() { return Ok(()) },
            }
        }
    }

    fn notify(&self, message: &async_nats::Message) {
        let headers = message.headers.as_ref();
        let order = headers
            .and_then(|headers| headers.get(header::SUBJECT))
            .and_then(|order| order.as_str().parse().ok());
        let watched = self.watched.lock();
        if let Some(watched) = order.and_then(|order| watched.get(&order)) {
            watched.changed.notify_waiters();
        }
    }
}

impl Watch {
    /// Waits until an event of the order is published, or for `timeout`.
    pub async fn changed(&self, timeout: Duration) {
        // Either way the caller polls next.
        let _elapsed = tokio::time::timeout(timeout, self.changed.notified()).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Entry::Occupied(mut watched) = self.live.watched.lock().entry(self.order) {
            watched.get_mut().watches -= 1;
            if watched.get().watches == 0 {
                watched.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_ends_while_watchers_are_notified_leaves_nothing() {
        let live = Live::default();
        let (customer, order) = (CustomerId::new(), OrderId::new());
        let watches = [(); 2].map(|()| live.watch(customer, order).unwrap());
        let being_notified = Arc::clone(&watches[0].changed);
        drop(watches);
        assert!(live.watched.lock().is_empty());
        assert!(live.streams.is_empty());
        drop(being_notified);
    }
}
