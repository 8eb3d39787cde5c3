//! Faults that tests set: per token, or for all tokens under the name `*`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

/// What goes wrong with charges of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fault {
    /// Every answer waits for so long.
    pub latency_ms: u64,
    /// Share of requests that are answered with 500 before anything is done, 0 to 1.
    pub error_rate: f64,
    /// The charge is made and remembered, but its first answer waits for so long; asked again, it
    /// answers at once.
    pub stall_after_charge_ms: u64,
}

/// The faults that are set now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<HashMap<String, Fault>>>);

impl Faults {
    /// The fault of a token, else that of all tokens, else none.
    pub(crate) fn of(&self, token: &str) -> Fault {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults
            .get(token)
            .or_else(|| faults.get("*"))
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn set(&self, token: String, fault: Fault) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(token, fault);
    }

    pub(crate) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    pub(crate) fn all(&self) -> HashMap<String, Fault> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
