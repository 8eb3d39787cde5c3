//! When each order was accepted and when its saga ended.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use contracts::{CustomerId, OrderId, Subject, header};
use futures::{StreamExt as _, stream::select_all};

use super::Run;

/// A saga may end before the response to the order has arrived. Whichever is seen first waits here
/// for the other.
#[derive(Debug, Default)]
pub(super) struct Sagas {
    accepted: HashMap<OrderId, (CustomerId, Instant)>,
    /// With whether the order was confirmed.
    ended: HashMap<OrderId, (Instant, bool)>,
    /// From the request to the response, in the order of responses.
    pub(super) accepts: Vec<Sample>,
    /// From the response to the end of the saga, in the order of ends.
    pub(super) ends: Vec<Sample>,
    /// When the last end was seen or looked up.
    last_end: Option<Instant>,
    pub(super) confirmed: u64,
    pub(super) cancelled: u64,
    /// Of these, how many ends were not seen, because the broker was away or has forgotten them.
    pub(super) looked_up: u64,
}

/// When something ended, and how long it took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) latency: Duration,
}

impl Sagas {
    pub(super) fn accepted(
        &mut self,
        order: OrderId,
        customer: CustomerId,
        at: Instant,
        latency: Duration,
    ) {
        self.accepts.push(Sample { at, latency });
        match self.ended.remove(&order) {
            Some((ended, confirmed)) => self.complete(at, ended, confirmed),
            None => drop(self.accepted.insert(order, (customer, at))),
        }
    }

    /// The orders whose end was not seen.
    pub(super) fn open(&self) -> Vec<(OrderId, CustomerId)> {
        let accepted = self.accepted.iter();
        accepted
            .map(|(order, (customer, _))| (*order, *customer))
            .collect()
    }

    /// Counts an end that was not seen. All that is known of its time is that it was before `at`.
    pub(super) fn look_up(&mut self, order: OrderId, at: Instant, confirmed: bool) {
        if self.accepted.remove(&order).is_some() {
            self.looked_up += 1;
            self.last_end = self.last_end.max(Some(at));
            self.count(confirmed);
        }
    }

    fn end(&mut self, order: OrderId, at: Instant, confirmed: bool) {
        match self.accepted.remove(&order) {
            Some((_, accepted)) => self.complete(accepted, at, confirmed),
            None => drop(self.ended.insert(order, (at, confirmed))),
        }
    }

    /// Only orders of this run get here: others end without having been accepted here.
    fn complete(&mut self, accepted: Instant, ended: Instant, confirmed: bool) {
        let latency = ended.saturating_duration_since(accepted);
        let at = ended.max(accepted);
        self.ends.push(Sample { at, latency });
        self.last_end = self.last_end.max(Some(at));
        self.count(confirmed);
    }

    fn count(&mut self, confirmed: bool) {
        match confirmed {
            true => self.confirmed += 1,
            false => self.cancelled += 1,
        }
    }

    /// How many orders were accepted and have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ends.len() as u64 + self.looked_up
    }

    pub(super) fn seconds_since(&self, began: Instant) -> f64 {
        self.last_end
            .map_or(0.0, |last| last.duration_since(began).as_secs_f64())
    }
}

/// Subscribes to the events that end a saga. The returned future records them until it is dropped.
pub(super) async fn observe(
    url: &str,
    run: Arc<Run>,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    let client = devstack::jetstream::connect(options, url).await?;
    let confirmed = client.subscribe(Subject::OrderConfirmed.as_str()).await?;
    let cancelled = client.subscribe(Subject::OrderCancelled.as_str()).await?;
    client.flush().await?;
    Ok(async move {
        let mut messages = select_all([confirmed, cancelled]);
        while let Some(message) = messages.next().await {
            let headers = message.headers.as_ref();
            let order = headers.and_then(|headers| headers.get(header::SUBJECT));
            if let Some(order) = order.and_then(|order| order.as_str().parse().ok()) {
                let confirmed = message.subject.as_str() == Subject::OrderConfirmed.as_str();
                run.sagas.lock().end(order, Instant::now(), confirmed);
            }
        }
    })
}
