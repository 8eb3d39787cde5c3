//! The HTTP API: Stripe's paths and form encoding, and `/sandbox` for tests and audits.

use std::sync::Arc;

use axum::{
    Form, Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use parking_lot::Mutex;

use crate::{
    charges,
    faults::{Fault, Faults},
    idempotency::once,
    journal::Journal,
    ledger::{Intent, Ledger, Parameters, StoredResponse},
    response,
};

/// What all requests share; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) journal: Journal,
    pub(crate) faults: Faults,
}

pub(crate) fn routes(sandbox: Sandbox) -> Router {
    Router::new()
        .route("/v1/payment_intents", post(create_intent))
        .route("/v1/payment_intents/{id}", get(get_intent))
        .route("/v1/refunds", post(create_refund))
        .route("/v1/refunds/{id}", get(get_refund))
        .route("/sandbox/ledger", get(list_balances))
        .route("/sandbox/faults", get(list_faults).delete(clear_faults))
        .route("/sandbox/faults/{name}", put(set_fault))
        .with_state(sandbox)
}

async fn create_intent(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Form(parameters): Form<Parameters>,
) -> Response {
    let fault = sandbox.faults.get(charges::token(&parameters));
    if fault.inject().await {
        return response::injected_fault();
    }
    if let Some(unauthorized) = response::unauthorized(&headers) {
        return unauthorized;
    }
    let response = once(&sandbox, &headers, &parameters, |_| {
        charges::charge(&parameters)
    })
    .await;
    if !response.headers().contains_key(response::REPLAYED) {
        fault.stall().await;
    }
    response
}

async fn create_refund(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Form(parameters): Form<Parameters>,
) -> Response {
    if sandbox.faults.get("refund").inject().await {
        return response::injected_fault();
    }
    if let Some(unauthorized) = response::unauthorized(&headers) {
        return unauthorized;
    }
    once(&sandbox, &headers, &parameters, |ledger| {
        charges::refund(ledger, &parameters)
    })
    .await
}

async fn get_intent(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    if let Some(unauthorized) = response::unauthorized(&headers) {
        return unauthorized;
    }
    match sandbox.ledger.lock().intents.get(&id).map(Intent::body) {
        Some(body) => StoredResponse { status: 200, body }.into_response(),
        None => response::not_found("payment_intent", &id),
    }
}

async fn get_refund(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    if let Some(unauthorized) = response::unauthorized(&headers) {
        return unauthorized;
    }
    let ledger = sandbox.ledger.lock();
    let Some(refund) = ledger.refunds.get(&id) else {
        return response::not_found("refund", &id);
    };
    let intent = ledger.intents.get(&refund.intent);
    let body = refund.body(intent.map_or("", |intent| &intent.currency));
    StoredResponse { status: 200, body }.into_response()
}

/// One JSON object per line and order, so that an auditor can read a million orders line by line.
async fn list_balances(State(sandbox): State<Sandbox>) -> Response {
    let balances = sandbox.ledger.lock().balances();
    let mut lines = Vec::with_capacity(balances.len() * 128);
    for balance in &balances {
        if serde_json::to_writer(&mut lines, balance).is_ok() {
            lines.push(b'\n');
        }
    }
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (content_type, Bytes::from(lines)).into_response()
}

async fn list_faults(State(sandbox): State<Sandbox>) -> impl IntoResponse {
    Json(sandbox.faults.all())
}

async fn set_fault(
    State(sandbox): State<Sandbox>,
    Path(name): Path<String>,
    Json(fault): Json<Fault>,
) -> StatusCode {
    sandbox.faults.set(name, fault);
    StatusCode::NO_CONTENT
}

async fn clear_faults(State(sandbox): State<Sandbox>) -> StatusCode {
    sandbox.faults.clear();
    StatusCode::NO_CONTENT
}
