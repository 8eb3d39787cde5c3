//! A circuit breaker: when the provider fails again and again, stop asking for a while, then ask
//! once.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures in a row after which the circuit opens.
const THRESHOLD: u32 = 10;
/// How long it stays open.
const COOL_DOWN: Duration = Duration::from_secs(3);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// How many calls may be made now, `most` at the most: none while open, one after the
    /// cool-down.
    pub(crate) fn admits(&self, most: usize) -> usize {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.open_until {
            None => most,
            Some(until) if Instant::now() < until => 0,
            Some(_) => most.min(1),
        }
    }

    /// Notes how a call went: whether the provider answered in its right mind.
    pub(crate) fn note(&self, well: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if well {
            if state.open_until.is_some() {
                tracing::info!("the provider answers again; the circuit is closed");
            }
            *state = State::default();
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= THRESHOLD {
            if state.open_until.is_none() {
                tracing::warn!(
                    failures = state.failures,
                    "the provider keeps failing; the circuit is open"
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
    fn opens_after_failures_in_a_row_probes_once_and_closes() {
        let breaker = Breaker::default();
        for _ in 1..THRESHOLD {
            breaker.note(false);
        }
        assert_eq!(breaker.admits(64), 64);
        breaker.note(false);
        assert_eq!(breaker.admits(64), 0);
        breaker.0.lock().unwrap().open_until = Some(Instant::now());
        assert_eq!(breaker.admits(64), 1);
        breaker.note(true);
        assert_eq!(breaker.admits(64), 64);
    }
}
