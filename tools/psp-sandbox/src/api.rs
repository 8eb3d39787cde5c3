//! The HTTP face of the sandbox: Stripe's paths, form encoding and error shapes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Form, Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    faults::{Fault, Faults},
    journal::Journal,
    ledger::{Admission, Answer, Intent, Keyed, Ledger, Record, Refund},
};

/// What all requests share.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) journal: Journal,
    pub(crate) faults: Faults,
}

/// Set on an answer that was given before.
const REPLAYED: &str = "idempotent-replayed";

type Parameters = BTreeMap<String, String>;

pub(crate) fn routes(sandbox: Sandbox) -> Router {
    Router::new()
        .route("/v1/payment_intents", post(create_intent))
        .route("/v1/payment_intents/{id}", get(retrieve_intent))
        .route("/v1/refunds", post(create_refund))
        .route("/v1/refunds/{id}", get(retrieve_refund))
        .route("/sandbox/ledger", get(balances))
        .route("/sandbox/faults", get(show_faults).delete(clear_faults))
        .route("/sandbox/faults/{token}", put(set_fault))
        .with_state(sandbox)
}

impl Sandbox {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn create_intent(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Form(parameters): Form<Parameters>,
) -> Response {
    let token = token(&parameters).to_owned();
    let fault = sandbox.faults.of(&token);
    tokio::time::sleep(Duration::from_millis(fault.latency_ms)).await;
    if fault.error_rate > 0.0 && rand::random_bool(fault.error_rate.clamp(0.0, 1.0)) {
        return error(
            500,
            json!({ "type": "api_error", "message": "An error that was asked for." }),
        );
    }
    let response = once(&sandbox, &headers, &parameters, |_| {
        charge(&token, &parameters)
    })
    .await;
    if !response.headers().contains_key(REPLAYED) {
        tokio::time::sleep(Duration::from_millis(fault.stall_after_charge_ms)).await;
    }
    response
}

async fn create_refund(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Form(parameters): Form<Parameters>,
) -> Response {
    let fault = sandbox.faults.of("refund");
    tokio::time::sleep(Duration::from_millis(fault.latency_ms)).await;
    if fault.error_rate > 0.0 && rand::random_bool(fault.error_rate.clamp(0.0, 1.0)) {
        return error(
            500,
            json!({ "type": "api_error", "message": "An error that was asked for." }),
        );
    }
    once(&sandbox, &headers, &parameters, |ledger| {
        refund(ledger, &parameters)
    })
    .await
}

/// Does `act` once per idempotency key: the answer is remembered with its effects, durably, before
/// it is given.
async fn once(
    sandbox: &Sandbox,
    headers: &HeaderMap,
    parameters: &Parameters,
    act: impl FnOnce(&Ledger) -> (Answer, Vec<Record>),
) -> Response {
    if let Some(refusal) = unauthorized(headers) {
        return refusal;
    }
    let key = headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok())
        .map(str::to_owned);
    let (answer, records) = {
        let mut ledger = sandbox.ledger();
        match key
            .as_deref()
            .map_or(Admission::New, |key| ledger.admit(key, parameters))
        {
            Admission::New => {}
            Admission::Replay(answer) => return answer.into_response_with(true),
            Admission::InFlight => return in_flight(),
            Admission::OtherParameters => return other_parameters(),
        }
        let (answer, mut records) = act(&ledger);
        for record in &records {
            ledger.apply(record.clone());
        }
        if let Some(key) = &key {
            // The answer counts only when it is durable; until then the key stays "in flight".
            let keyed = Keyed {
                parameters: parameters.clone(),
                answer: Some(answer.clone()),
            };
            records.push(Record::Key(key.clone(), keyed));
        }
        (answer, records)
    };
    let keyed = records.last().cloned();
    // In a task of its own: a client that hangs up must not leave its key in flight.
    let sandbox = sandbox.clone();
    let written = tokio::spawn(async move {
        let durable = sandbox.journal.write(records).await;
        let mut ledger = sandbox.ledger();
        match (durable, keyed, key) {
            (true, Some(record @ Record::Key(..)), _) => ledger.apply(record),
            (false, _, Some(key)) => ledger.abandon(&key),
            _ => {}
        }
        durable
    });
    match written.await {
        Ok(true) => answer.into_response_with(false),
        _ => error(
            500,
            json!({ "type": "api_error", "message": "The sandbox cannot write its memory." }),
        ),
    }
}

fn charge(token: &str, parameters: &Parameters) -> (Answer, Vec<Record>) {
    let get = |name: &str| parameters.get(name).map(String::as_str).unwrap_or_default();
    let amount: i64 = match get("amount").parse() {
        Ok(amount) if amount > 0 => amount,
        _ => {
            return invalid(
                "amount",
                "parameter_invalid_integer",
                "This value must be greater than or equal to 1.",
            );
        }
    };
    if get("currency").len() != 3 {
        return invalid(
            "currency",
            "invalid_currency",
            "Invalid currency: expected a three-letter ISO code.",
        );
    }
    if get("confirm") != "true" {
        return invalid(
            "confirm",
            "parameter_missing",
            "The sandbox only creates intents with confirm=true.",
        );
    }
    let Some(decline) = decline_code(token) else {
        return invalid(
            "payment_method_data[card][token]",
            "resource_missing",
            &format!("No such token: '{token}'"),
        );
    };
    let intent = Intent {
        id: format!("pi_{}", Uuid::now_v7().simple()),
        amount,
        currency: get("currency").to_lowercase(),
        order_id: get("metadata[order_id]").to_owned(),
        captured: decline.is_empty(),
        decline_code: (!decline.is_empty()).then(|| decline.to_owned()),
        refunded: 0,
        created: now(),
    };
    let answer = match &intent.decline_code {
        None => Answer {
            status: 200,
            body: intent.body(),
        },
        Some(code) => declined(code, &intent),
    };
    (answer, vec![Record::Intent(intent)])
}

/// What Stripe's test tokens do: `Some("")` succeeds, `None` is unknown.
/// Source: <https://docs.stripe.com/testing>.
fn decline_code(token: &str) -> Option<&'static str> {
    match token {
        "tok_visa" | "tok_mastercard" | "pm_card_visa" | "pm_card_mastercard" => Some(""),
        "tok_chargeDeclined" | "tok_visa_chargeDeclined" => Some("generic_decline"),
        "tok_chargeDeclinedInsufficientFunds" | "tok_visa_chargeDeclinedInsufficientFunds" => {
            Some("insufficient_funds")
        }
        _ => None,
    }
}

fn token(parameters: &Parameters) -> &str {
    let given = parameters
        .get("payment_method_data[card][token]")
        .or_else(|| parameters.get("payment_method"));
    given.map(String::as_str).unwrap_or_default()
}

fn refund(ledger: &Ledger, parameters: &Parameters) -> (Answer, Vec<Record>) {
    let id = parameters
        .get("payment_intent")
        .map(String::as_str)
        .unwrap_or_default();
    let Some(intent) = ledger.intents.get(id) else {
        return invalid(
            "payment_intent",
            "resource_missing",
            &format!("No such payment_intent: '{id}'"),
        );
    };
    let left = if intent.captured {
        intent.amount - intent.refunded
    } else {
        0
    };
    let amount = match parameters.get("amount").map(|text| text.parse::<i64>()) {
        None => left,
        Some(Ok(amount)) => amount,
        Some(Err(_)) => return invalid("amount", "parameter_invalid_integer", "Invalid integer."),
    };
    if left == 0 {
        return invalid(
            "payment_intent",
            "charge_already_refunded",
            "Nothing is left to refund.",
        );
    }
    if amount <= 0 || amount > left {
        return invalid(
            "amount",
            "amount_too_large",
            "Refund amount is greater than what is left.",
        );
    }
    let refund = Refund {
        id: format!("re_{}", Uuid::now_v7().simple()),
        intent: id.to_owned(),
        amount,
        created: now(),
    };
    let answer = Answer {
        status: 200,
        body: refund.body(&intent.currency),
    };
    let intent = Intent {
        refunded: intent.refunded + amount,
        ..intent.clone()
    };
    (answer, vec![Record::Intent(intent), Record::Refund(refund)])
}

async fn retrieve_intent(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let found = sandbox.ledger().intents.get(&id).map(Intent::body);
    retrieved(&headers, found, "payment_intent", &id)
}

async fn retrieve_refund(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let found = {
        let ledger = sandbox.ledger();
        let refund = ledger.refunds.get(&id);
        refund.map(|refund| {
            refund.body(
                ledger
                    .intents
                    .get(&refund.intent)
                    .map_or("", |intent| &intent.currency),
            )
        })
    };
    retrieved(&headers, found, "refund", &id)
}

fn retrieved(headers: &HeaderMap, found: Option<Value>, what: &str, id: &str) -> Response {
    if let Some(refusal) = unauthorized(headers) {
        return refusal;
    }
    let missing = || {
        let message = format!("No such {what}: '{id}'");
        error(
            404,
            json!({ "type": "invalid_request_error", "code": "resource_missing", "message": message }),
        )
    };
    found.map_or_else(missing, |body| {
        Answer { status: 200, body }.into_response_with(false)
    })
}

/// One JSON object per line and order: small to read for an auditor of a million orders.
async fn balances(State(sandbox): State<Sandbox>) -> Response {
    let balances = sandbox.ledger().balances();
    let mut lines = Vec::with_capacity(balances.len() * 128);
    for balance in &balances {
        if serde_json::to_writer(&mut lines, balance).is_ok() {
            lines.push(b'\n');
        }
    }
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Bytes::from(lines),
    )
        .into_response()
}

async fn show_faults(State(sandbox): State<Sandbox>) -> impl IntoResponse {
    Json(sandbox.faults.all())
}

async fn set_fault(
    State(sandbox): State<Sandbox>,
    Path(token): Path<String>,
    Json(fault): Json<Fault>,
) -> StatusCode {
    sandbox.faults.set(token, fault);
    StatusCode::NO_CONTENT
}

async fn clear_faults(State(sandbox): State<Sandbox>) -> StatusCode {
    sandbox.faults.clear();
    StatusCode::NO_CONTENT
}

impl Answer {
    fn into_response_with(self, replayed: bool) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let request_id = [("request-id", format!("req_{}", Uuid::now_v7().simple()))];
        let mut response = (status, request_id, Json(self.body)).into_response();
        if replayed {
            response
                .headers_mut()
                .insert(REPLAYED, header::HeaderValue::from_static("true"));
        }
        response
    }
}

fn unauthorized(headers: &HeaderMap) -> Option<Response> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let authorized = given
        .strip_prefix("Bearer ")
        .is_some_and(|key| key.starts_with("sk_test_"));
    let message =
        "Invalid API Key provided: the sandbox takes 'Authorization: Bearer sk_test_...'.";
    (!authorized).then(|| {
        error(
            401,
            json!({ "type": "invalid_request_error", "message": message }),
        )
    })
}

fn declined(code: &str, intent: &Intent) -> Answer {
    let body = json!({ "error": {
        "type": "card_error", "code": "card_declined", "decline_code": code, "message": "Your card was declined.",
        "payment_intent": intent.body(),
    }});
    Answer { status: 402, body }
}

fn invalid(param: &str, code: &str, message: &str) -> (Answer, Vec<Record>) {
    let body = json!({ "error": { "type": "invalid_request_error", "code": code, "param": param, "message": message } });
    (Answer { status: 400, body }, Vec::new())
}

fn in_flight() -> Response {
    let message = "There is currently another in-progress request using this Idempotency Key.";
    error(
        409,
        json!({ "type": "idempotency_error", "code": "idempotency_key_in_use", "message": message }),
    )
}

fn other_parameters() -> Response {
    let message = "Keys for idempotent requests can only be used with the same parameters they were first used with.";
    error(
        400,
        json!({ "type": "idempotency_error", "message": message }),
    )
}

fn error(status: u16, body: Value) -> Response {
    Answer {
        status,
        body: json!({ "error": body }),
    }
    .into_response_with(false)
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}
