//! One effect per idempotency key, as at Stripe: once execution has begun, the response is stored
//! under the key and sent again to every retry, a 500 like any other.
//! <https://docs.stripe.com/api/idempotent_requests>

use std::{collections::HashSet, sync::Arc};

use axum::{
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::{
    api::Sandbox,
    faults::{Fault, StoredError},
    journal::Answer,
    ledger::{KeyedRequest, Parameters, StoredResponse},
    response,
    tables::Tables,
};

/// Keys whose requests are being executed; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeysInUse(Arc<Mutex<HashSet<String>>>);

/// A key that is in use until this is dropped.
struct InUse(KeysInUse, String);

impl KeysInUse {
    fn claim(&self, key: &str) -> Option<InUse> {
        let is_free = self.0.lock().insert(key.to_owned());
        is_free.then(|| InUse(self.clone(), key.to_owned()))
    }

    pub(crate) fn all(&self) -> HashSet<String> {
        self.0.lock().clone()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

/// What a request does; an error is one of the ledger.
pub(crate) type Execute =
    fn(&mut Tables<'_>, &Parameters, &Fault) -> anyhow::Result<StoredResponse>;

/// Executes a request, or sends the stored response of an earlier one with the same key. Returns
/// the response and whether it is new.
pub(crate) async fn once(
    sandbox: &Sandbox,
    headers: &HeaderMap,
    parameters: Parameters,
    fault: Fault,
    execute: Execute,
) -> (Response, bool) {
    let key = headers.get("idempotency-key");
    let key = key.and_then(|key| key.to_str().ok()).map(str::to_owned);
    let mut in_use = None;
    if let Some(key) = &key {
        in_use = sandbox.keys_in_use.claim(key);
        if in_use.is_none() {
            return (response::in_flight(), false);
        }
    }
    // In a task of its own: a client that hangs up stops nothing that has begun.
    let sandbox = sandbox.clone();
    let task = tokio::spawn(async move {
        let _in_use = in_use;
        if !fault.execution().is_zero() && !is_known(&sandbox, key.clone()).await {
            tokio::time::sleep(fault.execution()).await;
        }
        let action = move |tables: &mut Tables<'_>| match key {
            Some(key) => with_key(tables, &key, parameters, &fault, execute),
            None => Ok(Answer::New(run(tables, &parameters, &fault, execute)?)),
        };
        sandbox.journal.execute(action).await
    });
    match task.await.ok().flatten() {
        Some(Answer::New(new)) => (new.into_response(), true),
        Some(Answer::Replayed(stored)) => (response::replayed(stored), false),
        Some(Answer::OtherParameters) => (response::other_parameters(), false),
        None => (response::not_durable(), false),
    }
}

/// Whether a key has a response, which is sent without delay.
async fn is_known(sandbox: &Sandbox, key: Option<String>) -> bool {
    let Some(key) = key else { return false };
    let known = sandbox.journal.read(move |tables| tables.has_key(&key));
    known.await.unwrap_or(false)
}

fn with_key(
    tables: &mut Tables<'_>,
    key: &str,
    parameters: Parameters,
    fault: &Fault,
    execute: Execute,
) -> anyhow::Result<Answer> {
    match tables.key(key)? {
        Some(first) if first.parameters != parameters => return Ok(Answer::OtherParameters),
        Some(first) => return Ok(Answer::Replayed(first.response)),
        None => {}
    }
    let response = run(tables, &parameters, fault, execute)?;
    let request = KeyedRequest {
        parameters,
        response,
        created: OffsetDateTime::now_utc().unix_timestamp(),
    };
    tables.put_key(key, &request)?;
    Ok(Answer::New(request.response))
}

fn run(
    tables: &mut Tables<'_>,
    parameters: &Parameters,
    fault: &Fault,
    execute: Execute,
) -> anyhow::Result<StoredResponse> {
    let error = fault.stored_error();
    if error == Some(StoredError::InPlaceOfExecution) {
        return Ok(response::injected_fault());
    }
    let response = execute(tables, parameters, fault)?;
    Ok(match error {
        Some(_) => response::injected_fault(),
        None => response,
    })
}
