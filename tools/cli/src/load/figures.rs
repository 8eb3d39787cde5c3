//! The figures of a run, as text and as JSON.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use audit::Report;
use serde::Serialize;

use super::sagas::{Sagas, Sample};
use crate::measure::Usage;

#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(super) orders: u64,
    pub(super) confirmed: u64,
    pub(super) cancelled: u64,
    /// Ends that were not seen, but found when the order was looked up; they have no latency.
    pub(super) looked_up: u64,
    /// Responses other than 201, each of which was followed by another attempt.
    pub(super) retries: u64,
    /// From the first request to the last response.
    pub(super) accept_seconds: f64,
    pub(super) accepted_per_second: f64,
    /// From the first request to the end of the last saga.
    pub(super) saga_seconds: f64,
    pub(super) sagas_per_second: f64,
    pub(super) accept_latency_ms: Latency,
    /// From the response to the end of the saga.
    pub(super) saga_latency_ms: Latency,
    /// Ten thousand orders after the other. They differ when cost grows with what was handled.
    pub(super) windows: Vec<Window>,
    /// CPU during the run, and memory, by process.
    pub(crate) processes: BTreeMap<String, Usage>,
    /// Resident memory when a tenth of the sagas had ended.
    pub(super) resident_mb_after_a_tenth: BTreeMap<String, f64>,
    /// All processes of the system together, without this one.
    pub(super) cpu_ms_per_order: f64,
    /// The services together, after the run.
    pub(super) services_resident_mb: f64,
    /// `None` before they are checked.
    pub(super) invariants: Option<Report>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// Figures of a part of a run.
#[derive(Debug, Serialize)]
pub(super) struct Window {
    sagas_per_second: f64,
    accept_latency_ms: Latency,
    saga_latency_ms: Latency,
}

/// Orders of a window.
const WINDOW: usize = 10_000;

impl Window {
    /// The full windows of a run, if there are two or more to compare.
    pub(super) fn all(sagas: &Sagas, began: Instant) -> Vec<Self> {
        let mut before = began;
        let accepts = sagas.accepts.chunks_exact(WINDOW);
        let windows = accepts.zip(sagas.ends.chunks_exact(WINDOW));
        let windows: Vec<_> = windows
            .map(|(accepts, ends)| {
                let last = ends.last().map_or(before, |last| last.at);
                let took = last.saturating_duration_since(before);
                before = last;
                Self {
                    sagas_per_second: ends.len() as f64 / took.as_secs_f64(),
                    accept_latency_ms: Latency::from_samples(accepts),
                    saga_latency_ms: Latency::from_samples(ends),
                }
            })
            .collect();
        if windows.len() < 2 {
            Vec::new()
        } else {
            windows
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sagas_per_second,
            accept_latency_ms: accept,
            saga_latency_ms: saga,
        } = self;
        write!(
            f,
            "{sagas_per_second:.0} sagas/s, accept p50 {:.1} p99 {:.1} ms, saga p50 {:.1} p99 {:.1} ms",
            accept.p50, accept.p99, saga.p50, saga.p99
        )
    }
}

impl Latency {
    pub(super) fn from_samples(samples: &[Sample]) -> Self {
        let mut samples: Vec<Duration> = samples.iter().map(|sample| sample.latency).collect();
        samples.sort_unstable();
        let percentile = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100);
            let sample = samples.get(rank.saturating_sub(1));
            sample.map_or(0.0, |sample| sample.as_micros() as f64 / 1000.0)
        };
        Self {
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: percentile(100),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, max } = self;
        write!(
            f,
            "p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"
        )
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "orders     {} accepted in {:.1} s: {:.0}/s, {} retries",
            self.orders, self.accept_seconds, self.accepted_per_second, self.retries
        )?;
        writeln!(
            f,
            "sagas      {} confirmed, {} cancelled in {:.1} s: {:.0}/s",
            self.confirmed, self.cancelled, self.saga_seconds, self.sagas_per_second
        )?;
        if self.looked_up > 0 {
            writeln!(
                f,
                "looked up  {}: their end was not seen, because the broker was away",
                self.looked_up
            )?;
        }
        writeln!(f, "accept     {}", self.accept_latency_ms)?;
        writeln!(f, "saga       {}", self.saga_latency_ms)?;
        let first_and_last = [self.windows.first(), self.windows.last()];
        for (name, window) in ["first", "last"].into_iter().zip(first_and_last) {
            if let Some(window) = window {
                writeln!(f, "{name:<5} {WINDOW} {window}")?;
            }
        }
        for (name, usage) in &self.processes {
            let Usage {
                cpu_seconds,
                resident_mb,
                peak_mb,
            } = usage;
            writeln!(
                f,
                "  {name:<12} {cpu_seconds:>7.1} CPU s   {resident_mb:>6.0} MB resident, \
                 peak {peak_mb:.0} MB, {:.0} MB after a tenth",
                self.resident_mb_after_a_tenth
                    .get(name)
                    .copied()
                    .unwrap_or_default()
            )?;
        }
        // Without process ids nothing is known about the processes: the system runs elsewhere.
        if !self.processes.is_empty() {
            writeln!(
                f,
                "CPU        {:.2} ms per order; the services use {:.0} MB together",
                self.cpu_ms_per_order, self.services_resident_mb
            )?;
        }
        match &self.invariants {
            Some(report) => write!(f, "\n{}", report.table()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_smallest_samples_that_cover_their_share() {
        let at = Instant::now();
        let sample = |latency| Sample { at, latency };
        let samples: Vec<_> = (1..=200)
            .rev()
            .map(|millis| sample(Duration::from_millis(millis)))
            .collect();
        let expected = Latency {
            p50: 100.0,
            p90: 180.0,
            p99: 198.0,
            max: 200.0,
        };
        assert_eq!(Latency::from_samples(&samples), expected);
        assert_eq!(Latency::from_samples(&[]).max, 0.0);
    }

    #[test]
    fn the_first_and_the_last_orders_are_compared_in_a_long_run() {
        let began = Instant::now();
        let mut sagas = Sagas::default();
        assert!(Window::all(&sagas, began).is_empty());
        for nth in 1..=3 * WINDOW as u64 {
            // Ten thousand in ten seconds, then in twenty.
            let millis = if nth <= 20_000 { nth } else { 2 * nth - 20_000 };
            let sample = Sample {
                at: began + Duration::from_millis(millis),
                latency: Duration::from_millis(nth),
            };
            sagas.accepts.push(sample);
            sagas.ends.push(sample);
        }
        let windows = Window::all(&sagas, began);
        let [first, _, last] = windows.as_slice() else {
            panic!("{} windows", windows.len());
        };
        assert_eq!(
            (first.sagas_per_second, last.sagas_per_second),
            (1000.0, 500.0)
        );
        assert_eq!(
            (first.saga_latency_ms.max, last.saga_latency_ms.max),
            (10_000.0, 30_000.0)
        );
    }
}
