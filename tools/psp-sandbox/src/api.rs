//! The HTTP API: Stripe's paths and form encoding, and `/sandbox` for tests and audits.

use axum::{
    Form, Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use time::OffsetDateTime;

use crate::{
    charges::{self, success},
    faults::{Fault, Faults},
    idempotency::{KeysInUse, once},
    journal::Journal,
    ledger::{Balance, Parameters, StoredResponse},
    queries, response,
    tables::Tables,
};

/// What all requests share; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) journal: Journal,
    pub(crate) keys_in_use: KeysInUse,
    pub(crate) faults: Faults,
}

pub(crate) fn routes(sandbox: Sandbox) -> Router {
    let intents = post(create_intent).get(queries::list_intents);
    let refunds = post(create_refund).get(queries::list_refunds);
    Router::new()
        .route("/v1/payment_intents", intents)
        .route("/v1/payment_intents/{id}", get(queries::get_intent))
        .route("/v1/refunds", refunds)
        .route("/v1/refunds/{id}", get(queries::get_refund))
        .route("/sandbox/ledger", get(queries::list_balances))
        .route("/sandbox/faults", get(list_faults).delete(clear_faults))
        .route("/sandbox/faults/{name}", put(set_fault))
        .route("/sandbox/keys-in-use", get(list_keys_in_use))
        .with_state(sandbox)
}

async fn create_intent(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Form(parameters): Form<Parameters>,
) -> Response {
    let fault = sandbox.faults.get(charges::token(&parameters));
    if let Some(injected) = fault.inject().await {
        return injected.into_response();
    }
    if let Some(unauthorized) = response::unauthorized(&headers) {
        return unauthorized;
    }
    let (response, is_new) = once(&sandbox, &headers, parameters, fault, charge).await;
    if is_new {
        fault.stall().await;
    }
    response
}

fn charge(
    tables: &mut Tables<'_>,
    parameters: &Parameters,
    _fault: &Fault,
) -> anyhow::Result<StoredResponse> {
    let intent = match charges::charge(parameters) {
        Ok(intent) => intent,
        Err(invalid) => return Ok(invalid),
    };
    tables.put_intent(&intent)?;
    if intent.is_captured() {
        let capture = Balance {
            captured: intent.amount,
            captures: 1,
            ..Balance::default()
        };
        tables.add(&intent, capture)?;
    }
    Ok(charges::charged(&intent))
}

async fn create_refund(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Form(parameters): Form<Parameters>,
) -> Response {
    let fault = sandbox.faults.get("refund");
    if let Some(injected) = fault.inject().await {
        return injected.into_response();
    }
    if let Some(unauthorized) = response::unauthorized(&headers) {
        return unauthorized;
    }
    once(&sandbox, &headers, parameters, fault, refund).await.0
}

fn refund(
    tables: &mut Tables<'_>,
    parameters: &Parameters,
    fault: &Fault,
) -> anyhow::Result<StoredResponse> {
    let now = OffsetDateTime::now_utc();
    let id = parameters.get("payment_intent").map_or("", String::as_str);
    let intent = tables.intent(id)?;
    let refund = charges::refund(intent.as_ref(), parameters, fault, now);
    let (mut intent, refund) = match (intent, refund) {
        (Some(intent), Ok(refund)) => (intent, refund),
        (_, Err(invalid)) => return Ok(invalid),
        (None, Ok(_)) => anyhow::bail!("a refund of nothing"),
    };
    if !refund.fails {
        let part = Balance {
            refunded: refund.amount,
            ..Balance::default()
        };
        tables.add(&intent, part)?;
    }
    let response = success(refund.body(&intent, now));
    intent.refunds.push(refund);
    tables.put_intent(&intent)?;
    Ok(response)
}

/// The idempotency keys of requests that are being executed.
async fn list_keys_in_use(State(sandbox): State<Sandbox>) -> impl IntoResponse {
    Json(sandbox.keys_in_use.all())
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
