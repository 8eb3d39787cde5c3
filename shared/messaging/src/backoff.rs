//! How long to wait before the next attempt.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Delays between attempts, without end: `min` first, then two and a half times as long each time
/// up to `max`, with jitter so that replicas do not retry in step.
pub fn exponential(min: Duration, max: Duration) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_factor(2.5)
        .with_jitter()
        .without_max_times()
}

/// The same, as an iterator.
pub fn delays(min: Duration, max: Duration) -> ExponentialBackoff {
    exponential(min, max).build()
}

/// The delay after the given number of failed attempts, counted from 1.
pub fn delay_after(attempts: u32, min: Duration, max: Duration) -> Duration {
    // Growth ends long before the twentieth attempt.
    let nth = attempts.clamp(1, 20) as usize - 1;
    delays(min, max).nth(nth).unwrap_or(max)
}

/// The shortest wait before an event is tried again.
pub(crate) const MIN: Duration = Duration::from_millis(100);
/// The longest one.
pub(crate) const MAX: Duration = Duration::from_secs(30);

/// The waits of a loop while the database or the broker is away. Short: an attempt costs little,
/// and every second of waiting after the end of an outage is a second that orders lose.
pub(crate) fn outage() -> Outage {
    Outage(delays(MIN, OUTAGE_MAX))
}

const OUTAGE_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Outage(ExponentialBackoff);

impl Outage {
    pub(crate) fn next_delay(&mut self) -> Duration {
        // Jitter is added on top of the maximum.
        self.0.next().unwrap_or(OUTAGE_MAX).min(OUTAGE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn replicas_do_not_retry_in_step() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let delays: BTreeSet<_> = (0..10).map(|_| delay_after(3, min, max)).collect();
        assert!(delays.len() > 1, "{delays:?}");
    }

    #[test]
    fn delays_grow_to_their_maximum() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let first = delay_after(1, min, max);
        assert!(first >= min && first <= 2 * min, "{first:?}");
        assert!(delay_after(5, min, max) > 10 * min);
        let last = delay_after(u32::MAX, min, max);
        assert!(last >= max && last <= 2 * max, "{last:?}");
    }
}
