//! Responses in Stripe's shape.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::ledger::StoredResponse;

/// Set on a response that is sent again.
pub(crate) const REPLAYED: &str = "idempotent-replayed";

impl IntoResponse for StoredResponse {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let request_id = [("request-id", format!("req_{}", Uuid::now_v7().simple()))];
        (status, request_id, Json(self.body)).into_response()
    }
}

pub(crate) fn replayed(stored: StoredResponse) -> Response {
    let mut response = stored.into_response();
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

pub(crate) fn injected_fault() -> StoredResponse {
    let body = json!({ "error": { "type": "api_error", "message": "Injected fault." } });
    StoredResponse { status: 500, body }
}

pub(crate) fn injected_refusal() -> StoredResponse {
    let message = "Your account cannot currently make charges.";
    let body = json!({ "error": { "type": "invalid_request_error", "message": message } });
    StoredResponse { status: 400, body }
}

pub(crate) fn unreadable(cause: &anyhow::Error) -> Response {
    tracing::error!(
        error = format!("{cause:#}"),
        "the ledger cannot be read; the request fails"
    );
    let message = "The sandbox could not read its disk.";
    error(500, json!({ "type": "api_error", "message": message }))
}

pub(crate) fn not_durable() -> Response {
    let message = "The sandbox could not write the outcome to its disk.";
    error(500, json!({ "type": "api_error", "message": message }))
}

pub(crate) fn in_flight() -> Response {
    error(
        409,
        json!({
            "type": "idempotency_error",
            "code": "idempotency_key_in_use",
            "message": "There is currently another in-progress request using this Idempotency Key.",
        }),
    )
}

pub(crate) fn other_parameters() -> Response {
    let message = "Keys for idempotent requests can only be used with the same parameters \
                   they were first used with.";
    error(
        400,
        json!({ "type": "idempotency_error", "message": message }),
    )
}

pub(crate) fn not_found(kind: &str, id: &str) -> Response {
    error(
        404,
        json!({
            "type": "invalid_request_error",
            "code": "resource_missing",
            "message": format!("No such {kind}: '{id}'"),
        }),
    )
}

/// The response to a request without a test key.
pub(crate) fn unauthorized(headers: &HeaderMap) -> Option<Response> {
    let key = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if key.is_some_and(|key| key.starts_with("sk_test_")) {
        return None;
    }
    let message =
        "Invalid API Key provided: the sandbox takes 'Authorization: Bearer sk_test_...'.";
    Some(error(
        401,
        json!({ "type": "invalid_request_error", "message": message }),
    ))
}

fn error(status: u16, error: Value) -> Response {
    let body = json!({ "error": error });
    StoredResponse { status, body }.into_response()
}
