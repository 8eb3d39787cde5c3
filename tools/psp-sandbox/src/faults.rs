//! Faults that tests inject: per token, for refunds under the name `refund`, or for both under the
//! name `*`; for lists under the name `list`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{ledger::StoredResponse, response};

/// What goes wrong with requests for one token. Rates are shares of requests, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Fault {
    /// Delay before a request is executed or its stored response is sent. A client that hangs up
    /// meanwhile has asked for nothing.
    latency_ms: u64,
    /// Rate of 500s before execution: nothing happens, and nothing is stored under the key.
    unavailable_rate: f64,
    /// Rate of 400s before execution that are about the account, and not about the charge. Nothing
    /// is stored under the key.
    refused_rate: f64,
    /// Rate of 500s in place of execution, stored under the key.
    error_rate: f64,
    /// Rate of 500s after execution, stored under the key.
    error_after_execution_rate: f64,
    /// How long execution takes. The key is in use meanwhile, and a client that hangs up stops
    /// nothing.
    execution_ms: u64,
    /// Delay of the response after the charge is made and stored. A retry with the same key gets
    /// the stored response without delay.
    stall_after_charge_ms: u64,
    /// How long a refund is pending before it succeeds or fails.
    refund_pending_ms: u64,
    /// Rate of refunds that fail in the end.
    refund_failure_rate: f64,
}

/// A 500 that is stored under the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredError {
    InPlaceOfExecution,
    AfterExecution,
}

/// The faults that are injected now; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<HashMap<String, Fault>>>);

fn happens(rate: f64) -> bool {
    rate > 0.0 && rand::random_bool(rate.clamp(0.0, 1.0))
}

/// Also a sleep of 0 ms would wait for the next tick of the timer.
async fn wait(milliseconds: u64) {
    if milliseconds > 0 {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

impl Fault {
    /// Delays the request. Returns the response that it gets in place of execution, if any.
    pub(crate) async fn inject(&self) -> Option<StoredResponse> {
        wait(self.latency_ms).await;
        if happens(self.unavailable_rate) {
            return Some(response::injected_fault());
        }
        happens(self.refused_rate).then(response::injected_refusal)
    }

    /// The error of a request with a new key, if any.
    pub(crate) fn stored_error(&self) -> Option<StoredError> {
        if happens(self.error_rate) {
            return Some(StoredError::InPlaceOfExecution);
        }
        happens(self.error_after_execution_rate).then_some(StoredError::AfterExecution)
    }

    pub(crate) fn execution(&self) -> Duration {
        Duration::from_millis(self.execution_ms)
    }

    pub(crate) async fn stall(&self) {
        wait(self.stall_after_charge_ms).await;
    }

    pub(crate) fn refund_pending(&self) -> Duration {
        Duration::from_millis(self.refund_pending_ms)
    }

    pub(crate) fn refund_fails(&self) -> bool {
        happens(self.refund_failure_rate)
    }
}

impl Faults {
    /// The fault of `name`, else that of `*`, else no fault.
    pub(crate) fn get(&self, name: &str) -> Fault {
        let faults = self.0.lock();
        let fault = faults.get(name).or_else(|| faults.get("*"));
        fault.copied().unwrap_or_default()
    }

    /// The fault of lists.
    pub(crate) fn of_lists(&self) -> Fault {
        let fault = self.0.lock().get("list").copied();
        fault.unwrap_or_default()
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
