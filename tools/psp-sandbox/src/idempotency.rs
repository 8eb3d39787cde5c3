//! One effect per idempotency key: the response is stored with its effects, durably, before it is
//! sent.

use axum::{
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};

use crate::{
    api::Sandbox,
    charges::Outcome,
    ledger::{Admission, KeyedRequest, Ledger, Parameters, Record},
    response,
};

/// Runs `act`, or sends the stored response of an earlier request with the same key.
pub(crate) async fn once(
    sandbox: &Sandbox,
    headers: &HeaderMap,
    parameters: &Parameters,
    act: impl FnOnce(&Ledger) -> Outcome,
) -> Response {
    let key = headers.get("idempotency-key");
    let key = key.and_then(|key| key.to_str().ok()).map(str::to_owned);
    let (stored, records) = {
        let mut ledger = sandbox.ledger.lock();
        if let Some(key) = &key {
            match ledger.admit(key, parameters) {
                Admission::New => {}
                Admission::Replay(stored) => return response::replayed(stored),
                Admission::InFlight => return response::in_flight(),
                Admission::OtherParameters => return response::other_parameters(),
            }
        }
        let (stored, records) = act(&ledger);
        // Effects count from now on, so that a second refund sees the first.
        for record in &records {
            ledger.apply(record.clone());
        }
        (stored, records)
    };
    // The response counts when it is durable; until then the key stays in flight.
    let completed = key.map(|key| {
        let request = KeyedRequest {
            parameters: parameters.clone(),
            response: Some(stored.clone()),
        };
        (key, request)
    });
    // In a task of its own: a client that hangs up must not leave its key in flight.
    let written = tokio::spawn(write(sandbox.clone(), records, completed));
    match written.await {
        Ok(true) => stored.into_response(),
        Ok(false) | Err(_) => response::not_durable(),
    }
}

/// Writes the records and the completed request in one transaction. Returns whether they are
/// durable.
async fn write(
    sandbox: Sandbox,
    mut records: Vec<Record>,
    completed: Option<(String, KeyedRequest)>,
) -> bool {
    let completed = completed.map(|(key, request)| (key.clone(), Record::Request(key, request)));
    records.extend(completed.iter().map(|(_, record)| record.clone()));
    let durable = sandbox.journal.write(records).await;
    if let Some((key, record)) = completed {
        let mut ledger = sandbox.ledger.lock();
        match durable {
            true => ledger.apply(record),
            false => ledger.abandon(&key),
        }
    }
    durable
}
