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
pub struct Progress(Arc<Mutex<BTreeMap<String, Instant>>>);

/// A part without progress for this long is stalled: three times the longest regular pause.
const PATIENCE: Duration = Duration::from_secs(15);

impl Progress {
    pub(crate) fn touch(&self, part: &str) {
        let mut parts = self.0.lock();
        match parts.get_mut(part) {
            Some(last) => *last = Instant::now(),
            None => drop(parts.insert(part.to_owned(), Instant::now())),
        }
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
        match parts.iter().find(|(_, last)| last.elapsed() > PATIENCE) {
            Some((part, last)) => Err(format!(
                "{part} has made no progress for {} s",
                last.elapsed().as_secs()
            )),
            None => Ok(()),
        }
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
        let long_ago = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        progress
            .0
            .lock()
            .insert("consumer of PAYMENT".to_owned(), long_ago);
        assert_eq!(
            progress.check().unwrap_err(),
            "consumer of PAYMENT has made no progress for 30 s"
        );
    }
}
