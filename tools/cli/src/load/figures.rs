//! The figures of a run, as text and as JSON.

use std::{collections::BTreeMap, fmt, time::Duration};

use audit::Report;
use serde::Serialize;

use crate::measure::Usage;

#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) orders: u64,
    pub(super) confirmed: u64,
    pub(super) cancelled: u64,
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
    /// CPU during the run, and memory, by process.
    pub(super) processes: BTreeMap<String, Usage>,
    /// All processes of the system together, without this one.
    pub(super) cpu_ms_per_order: f64,
    /// The services together, after the run.
    pub(super) services_resident_mb: f64,
    pub(super) invariants: Report,
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Latency {
    pub(super) fn from_samples(mut samples: Vec<Duration>) -> Self {
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
        writeln!(f, "accept     {}", self.accept_latency_ms)?;
        writeln!(f, "saga       {}", self.saga_latency_ms)?;
        for (name, usage) in &self.processes {
            let Usage {
                cpu_seconds,
                resident_mb,
                peak_mb,
            } = usage;
            writeln!(
                f,
                "  {name:<12} {cpu_seconds:>7.1} CPU s   {resident_mb:>6.0} MB resident, \
                 peak {peak_mb:.0} MB"
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
        write!(f, "\n{}", self.invariants.table())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_smallest_samples_that_cover_their_share() {
        let samples = (1..=200).rev().map(Duration::from_millis).collect();
        let expected = Latency {
            p50: 100.0,
            p90: 180.0,
            p99: 198.0,
            max: 200.0,
        };
        assert_eq!(Latency::from_samples(samples), expected);
        assert_eq!(Latency::from_samples(Vec::new()).max, 0.0);
    }
}
