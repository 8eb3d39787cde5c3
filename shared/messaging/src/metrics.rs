//! Names, units and meanings of this crate's metrics, for the global meter provider of the process.

use std::sync::Arc;

use contracts::Service;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge, Histogram, Meter},
};
use parking_lot::Mutex;
use time::OffsetDateTime;

/// The instruments of one service.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    service: &'static str,
    handled: Counter<u64>,
    batch: Histogram<u64>,
    published: Counter<u64>,
    set_aside: Counter<u64>,
    replayed: Counter<u64>,
    stream_use: Gauge<f64>,
    /// When the oldest event was recorded that has not been published.
    oldest: Oldest,
    paused: Gauge<f64>,
    dead_letters: Gauge<u64>,
    /// When the oldest dead letter was written.
    oldest_dead_letter: Oldest,
}

/// The time of something old; `None` when there is nothing.
type Oldest = Arc<Mutex<Option<OffsetDateTime>>>;

impl Metrics {
    pub(crate) fn new(service: Service) -> Self {
        let meter = global::meter("messaging");
        Self {
            service: service.name(),
            handled: meter
                .u64_counter("messaging.handled")
                .with_description(
                    "Events by outcome: done, duplicate, ignored, retry, unknown, dead_letter",
                )
                .with_unit("{event}")
                .build(),
            batch: meter
                .u64_histogram("messaging.batch.size")
                .with_description("Events applied in one transaction")
                .with_unit("{event}")
                .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
                .build(),
            published: meter
                .u64_counter("messaging.published")
                .with_description("Events that the relay published and the broker acknowledged")
                .with_unit("{event}")
                .build(),
            set_aside: meter
                .u64_counter("messaging.outbox.set_aside")
                .with_description("Events that cannot be published and wait for an operator")
                .with_unit("{event}")
                .build(),
            replayed: meter
                .u64_counter("messaging.outbox.replayed")
                .with_description("Events published again because the broker has lost them")
                .with_unit("{event}")
                .build(),
            stream_use: meter
                .f64_gauge("messaging.stream.use")
                .with_description("Share of a stream's bytes that is in use")
                .with_unit("1")
                .build(),
            oldest: observe_age(
                &meter,
                service,
                "messaging.outbox.age",
                "Age of the oldest event that has not been published; 0 when there is none",
            ),
            paused: meter
                .f64_gauge("messaging.consumer.paused")
                .with_description(
                    "How long an error of the database has paused consumption; 0 when it runs",
                )
                .with_unit("s")
                .build(),
            dead_letters: meter
                .u64_gauge("messaging.dead_letters")
                .with_description("Dead letters of the service that wait for an operator")
                .with_unit("{dead_letter}")
                .build(),
            oldest_dead_letter: observe_age(
                &meter,
                service,
                "messaging.dead_letters.age",
                "Age of the oldest dead letter of the service; 0 when there is none",
            ),
        }
    }

    pub(crate) fn handled(&self, events: u64, outcome: &'static str) {
        let service = KeyValue::new("service", self.service);
        self.handled
            .add(events, &[service, KeyValue::new("outcome", outcome)]);
    }

    pub(crate) fn batch(&self, events: usize) {
        self.batch
            .record(events as u64, &[KeyValue::new("service", self.service)]);
    }

    pub(crate) fn published(&self, events: usize) {
        self.published
            .add(events as u64, &[KeyValue::new("service", self.service)]);
    }

    pub(crate) fn paused(&self, part: &str, seconds: f64) {
        let labels = [
            KeyValue::new("service", self.service),
            KeyValue::new("part", part.to_owned()),
        ];
        self.paused.record(seconds, &labels);
    }

    pub(crate) fn set_aside(&self, events: usize) {
        self.set_aside
            .add(events as u64, &[KeyValue::new("service", self.service)]);
    }

    pub(crate) fn replayed(&self, events: usize) {
        self.replayed
            .add(events as u64, &[KeyValue::new("service", self.service)]);
    }

    pub(crate) fn stream_use(&self, stream: &str, share: f64) {
        self.stream_use
            .record(share, &[KeyValue::new("stream", stream.to_owned())]);
    }

    /// Notes how many dead letters the service has, and when the oldest was written.
    pub(crate) fn dead_letters(&self, depth: u64, oldest: Option<OffsetDateTime>) {
        self.dead_letters
            .record(depth, &[KeyValue::new("service", self.service)]);
        *self.oldest_dead_letter.lock() = oldest;
    }

    /// Notes when the oldest unpublished event was recorded; `None` when there is none.
    pub(crate) fn outbox_oldest(&self, recorded_at: Option<OffsetDateTime>) {
        *self.oldest.lock() = recorded_at;
    }
}

/// The age is computed when it is asked for: it grows also while nothing refreshes the time.
fn observe_age(
    meter: &Meter,
    service: Service,
    name: &'static str,
    description: &'static str,
) -> Oldest {
    let oldest = Oldest::default();
    let observed = Arc::clone(&oldest);
    let label = [KeyValue::new("service", service.name())];
    let _registered = meter
        .f64_observable_gauge(name)
        .with_description(description)
        .with_unit("s")
        .with_callback(move |gauge| {
            let age = |since: OffsetDateTime| OffsetDateTime::now_utc() - since;
            let age = observed.lock().map(age).unwrap_or_default();
            gauge.observe(age.as_seconds_f64().max(0.0), &label);
        })
        .build();
    oldest
}
