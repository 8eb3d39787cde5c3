//! Readiness looks at progress rather than connectivity: a connection can be up while nothing is
//! processed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// When each part last did something, or confirmed that there was nothing to do.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<BTreeMap<String, Part>>>);

#[derive(Debug)]
struct Part {
    last: Instant,
    /// Why it makes no progress now.
    obstacle: Option<String>,
}

impl Part {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            obstacle: None,
        }
    }
}

/// A part without progress for this long is stalled: three times the longest regular pause.
const STALLED_AFTER: Duration = Duration::from_secs(15);

impl Progress {
    pub(crate) fn touch(&self, part: &str) {
        let mut parts = self.0.lock();
        match parts.get_mut(part) {
            Some(known) => *known = Part::new(),
            None => drop(parts.insert(part.to_owned(), Part::new())),
        }
    }

    /// Notes why a part makes no progress. Readiness fails when this lasts.
    pub(crate) fn obstruct(&self, part: &str, obstacle: String) {
        let mut parts = self.0.lock();
        let known = parts.entry(part.to_owned()).or_insert_with(Part::new);
        known.obstacle = Some(obstacle);
    }

    /// Ok while every part makes progress.
    ///
    /// # Errors
    /// Names the stalled part and for how long, or reports that nothing has started yet.
    pub fn check(&self) -> Result<(), String> {
        let parts = self.0.lock();
        if parts.is_empty() {
            return Err("consumers have not started yet".to_owned());
        }
        let stalled = |part: &Part| part.last.elapsed() > STALLED_AFTER;
        let Some((name, part)) = parts.iter().find(|(_, part)| stalled(part)) else {
            return Ok(());
        };
        let seconds = part.last.elapsed().as_secs();
        let obstacle = part.obstacle.as_deref().unwrap_or("no reason is known");
        Err(format!(
            "{name} has made no progress for {seconds} s: {obstacle}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_part_is_named() {
        let progress = Progress::default();
        assert_eq!(
            progress.check().unwrap_err(),
            "consumers have not started yet"
        );
        progress.touch("relay");
        assert_eq!(progress.check(), Ok(()));
        let long_ago = Instant::now().checked_sub(STALLED_AFTER * 2).unwrap();
        progress.obstruct("consumer of PAYMENT", "disk full".to_owned());
        assert_eq!(progress.check(), Ok(()), "an obstacle may be brief");
        let mut parts = progress.0.lock();
        parts.get_mut("consumer of PAYMENT").unwrap().last = long_ago;
        drop(parts);
        assert_eq!(
            progress.check().unwrap_err(),
            "consumer of PAYMENT has made no progress for 30 s: disk full"
        );
    }
}
