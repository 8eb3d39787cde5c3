//! Names, units and meanings of this crate's metrics, for the global meter provider of the process.

use contracts::Service;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge, Histogram},
};

/// The instruments of one service.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    service: &'static str,
    handled: Counter<u64>,
    batch: Histogram<u64>,
    published: Counter<u64>,
    outbox_age: Gauge<f64>,
    paused: Gauge<f64>,
}

impl Metrics {
    pub(crate) fn new(service: Service) -> Self {
        let meter = global::meter("messaging");
        Self {
            service: service.name(),
            handled: meter
                .u64_counter("messaging.handled")
                .with_description("Events by outcome: done, duplicate, ignored, retry, unknown, dead_letter")
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
            outbox_age: meter
                .f64_gauge("messaging.outbox.age")
                .with_description(
                    "Age of the oldest event that has not been published; 0 when there is none",
                )
                .with_unit("s")
                .build(),
            paused: meter
                .f64_gauge("messaging.consumer.paused")
                .with_description("How long consumption has been paused by an error of the database; 0 when it runs")
                .with_unit("s")
                .build(),
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

    pub(crate) fn outbox_age(&self, seconds: f64) {
        self.outbox_age
            .record(seconds, &[KeyValue::new("service", self.service)]);
    }
}
