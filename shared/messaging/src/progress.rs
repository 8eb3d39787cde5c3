//! Readiness that sees progress rather than connectivity: a connection can stand while nothing
//! moves.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// When each part last got something done, or asked and heard that there was nothing to do.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<BTreeMap<String, Instant>>>);

/// A part that has not been heard of for so long is stalled.
const PATIENCE: Duration = Duration::from_secs(15);

impl Progress {
    pub(crate) fn touch(&self, part: &str) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.get_mut(part) {
            Some(last) => *last = Instant::now(),
            None => drop(parts.insert(part.to_owned(), Instant::now())),
        }
    }

    /// Ok while every part moves.
    ///
    /// # Errors
    /// Names the stalled part and its age, or says that nothing has started yet.
    pub fn check(&self) -> Result<(), String> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn a_part_that_stands_still_is_named() {
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
            .unwrap()
            .insert("consumer of PAYMENT".to_owned(), long_ago);
        assert_eq!(
            progress.check().unwrap_err(),
            "consumer of PAYMENT has made no progress for 30 s"
        );
    }
}
