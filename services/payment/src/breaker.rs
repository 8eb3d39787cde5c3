//! A circuit breaker: after failures in a row it stops calls for a while, then lets one through.
//!
//! Charges and refunds have one each: a key without the right to refund, for example, stops no
//! charge.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row after which the circuit opens.
const THRESHOLD: u32 = 10;
/// How long it stays open.
const COOL_DOWN: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Breaker {
    /// What it stops, for the log.
    calls: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    pub fn new(calls: &'static str) -> Self {
        Self {
            calls,
            state: Mutex::default(),
        }
    }

    /// How many calls may be made now, at most `max`: none while the circuit is open, one after
    /// each cool-down.
    pub fn admits(&self, max: usize) -> usize {
        let mut state = self.state.lock();
        let now = Instant::now();
        match state.open_until {
            None => max,
            Some(until) if now < until => 0,
            Some(_) => {
                state.open_until = now.checked_add(COOL_DOWN);
                max.min(1)
            }
        }
    }

    /// Records a call. `ok`: any response that is not an outage; a declined card is one.
    pub fn record(&self, ok: bool) {
        let mut state = self.state.lock();
        if ok {
            if state.open_until.is_some() {
                tracing::info!(
                    calls = self.calls,
                    "the provider responds again; the circuit is closed"
                );
            }
            *state = State::default();
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= THRESHOLD {
            if state.open_until.is_none() {
                tracing::warn!(
                    calls = self.calls,
                    failures = state.failures,
                    "the provider keeps failing; the circuit is open, calls wait for {COOL_DOWN:?}"
                );
            }
            state.open_until = Instant::now().checked_add(COOL_DOWN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_circuit_opens_after_failures_in_a_row_probes_once_and_closes() {
        let breaker = Breaker::new("charges");
        for _ in 1..THRESHOLD {
            breaker.record(false);
        }
        assert_eq!(breaker.admits(64), 64);
        breaker.record(false);
        assert_eq!(breaker.admits(64), 0);
        breaker.state.lock().open_until = Some(Instant::now());
        assert_eq!(breaker.admits(64), 1);
        assert_eq!(breaker.admits(64), 0, "the call that was let through lasts");
        breaker.record(true);
        assert_eq!(breaker.admits(64), 64);
    }
}
