//! How far back a work list is read.
//!
//! A work list is an index over the rows that wait, by the time at which they are due. An entry
//! stays in the index after its row is done, for as long as anybody holds a snapshot that may see
//! it, a backup for example. A query that begins at the oldest entry reads all of these again: it
//! costs more with every row that was ever done meanwhile. So a query begins a little before the
//! last one that found everything. What may have been locked then, or was committed late, is found
//! by a longer look now and then.

use std::time::{Duration, Instant};

/// Longer than most transactions last.
const OVERLAP: Duration = Duration::from_secs(2);
/// Longer than any transaction lasts.
const LONG: Duration = Duration::from_secs(60);
const LONG_EVERY: Duration = Duration::from_secs(5);
/// Back to the beginning.
const FULL: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
const FULL_EVERY: Duration = Duration::from_secs(600);

/// What the looks at one work list have found so far. After an error begin with a new one: the
/// database may be another server now, with another clock.
#[derive(Debug, Default)]
pub struct Lookback {
    /// When the last look began that found everything.
    complete: Option<Instant>,
    long: Option<Instant>,
    full: Option<Instant>,
    /// When the present look began.
    began: Option<Instant>,
}

impl Lookback {
    /// Begins a look: how long ago the oldest row may have become due that it must find.
    pub fn reach(&mut self) -> Duration {
        let now = Instant::now();
        self.began = Some(now);
        let is_due = |last: Option<Instant>, every: Duration| {
            last.is_none_or(|last| now.duration_since(last) >= every)
        };
        let Some(complete) = self.complete.filter(|_| !is_due(self.full, FULL_EVERY)) else {
            return FULL;
        };
        let since = now.duration_since(complete);
        match is_due(self.long, LONG_EVERY) {
            true => since + LONG,
            false => since + OVERLAP,
        }
    }

    /// The look that reached back so far has found everything that was due.
    pub fn found_all(&mut self, reach: Duration) {
        let Some(began) = self.began else { return };
        self.complete = Some(began);
        if reach >= FULL {
            self.full = Some(began);
        }
        if reach >= LONG {
            self.long = Some(began);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_begins_where_the_last_complete_one_did_and_goes_further_back_now_and_then() {
        let mut lookback = Lookback::default();
        assert_eq!(lookback.reach(), FULL);
        assert_eq!(lookback.reach(), FULL, "the first look did not find all");
        lookback.found_all(FULL);
        let short = lookback.reach();
        assert!(short >= OVERLAP && short < LONG, "{short:?}");
        lookback.found_all(short);
        let long_ago = |age: Duration| Instant::now().checked_sub(age);
        lookback.long = long_ago(LONG_EVERY);
        let long = lookback.reach();
        assert!(long >= LONG && long < FULL, "{long:?}");
        lookback.found_all(long);
        assert!(lookback.reach() < LONG);
        lookback.complete = long_ago(Duration::from_secs(300));
        let behind = lookback.reach();
        assert!(behind >= Duration::from_secs(300), "{behind:?}");
        lookback.full = long_ago(FULL_EVERY);
        assert_eq!(lookback.reach(), FULL);
    }
}
