//! Faults that tests inject: per token, for refunds under the name `refund`, or for everything
//! under the name `*`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What goes wrong with requests for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Fault {
    /// Delay of every response.
    latency_ms: u64,
    /// Share of requests, 0 to 1, that fail with 500 and have no effect.
    error_rate: f64,
    /// Delay of the response after the charge is made and stored. A retry with the same key gets
    /// the stored response without delay.
    stall_after_charge_ms: u64,
}

/// The faults that are injected now; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<HashMap<String, Fault>>>);

impl Fault {
    /// Delays the request. Returns whether it must fail.
    pub(crate) async fn inject(&self) -> bool {
        tokio::time::sleep(Duration::from_millis(self.latency_ms)).await;
        self.error_rate > 0.0 && rand::random_bool(self.error_rate.clamp(0.0, 1.0))
    }

    pub(crate) async fn stall(&self) {
        tokio::time::sleep(Duration::from_millis(self.stall_after_charge_ms)).await;
    }
}

impl Faults {
    /// The fault of `name`, else that of `*`, else no fault.
    pub(crate) fn get(&self, name: &str) -> Fault {
        let faults = self.0.lock();
        let fault = faults.get(name).or_else(|| faults.get("*"));
        fault.copied().unwrap_or_default()
    }

    pub(crate) fn set(&self, name: String, fault: Fault) {
        self.0.lock().insert(name, fault);
    }

    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    pub(crate) fn all(&self) -> HashMap<String, Fault> {
        self.0.lock().clone()
    }
}
