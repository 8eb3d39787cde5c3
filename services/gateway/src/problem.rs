//! Errors of the HTTP API: RFC 9457 problem documents, and which one a gRPC status becomes.

use std::{error::Error as _, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tonic::{Code, TimeoutExpired};
use utoipa::ToSchema;

/// The `field` of problems with credentials.
const AUTHORIZATION: &str = "authorization";

/// An RFC 9457 problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    r#type: Kind,
    /// The same for all problems of a type.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong with this request, and what to do about it.
    detail: String,
    /// The part of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "items[0].quantity")]
    field: Option<String>,
    /// Whether it is harmless to send the same request again, and whether it may then succeed. To
    /// create an order, send the same `Idempotency-Key` again.
    retry_safe: bool,
}

/// The type of a problem; programs can rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub enum Kind {
    #[serde(rename = "urn:sagacity:problem:invalid-request")]
    InvalidRequest,
    #[serde(rename = "urn:sagacity:problem:unauthenticated")]
    Unauthenticated,
    #[serde(rename = "urn:sagacity:problem:invalid-token")]
    InvalidToken,
    #[serde(rename = "urn:sagacity:problem:insufficient-scope")]
    InsufficientScope,
    #[serde(rename = "urn:sagacity:problem:not-found")]
    NotFound,
    #[serde(rename = "urn:sagacity:problem:method-not-allowed")]
    MethodNotAllowed,
    #[serde(rename = "urn:sagacity:problem:request-timeout")]
    RequestTimeout,
    #[serde(rename = "urn:sagacity:problem:request-in-flight")]
    RequestInFlight,
    #[serde(rename = "urn:sagacity:problem:conflict")]
    Conflict,
    #[serde(rename = "urn:sagacity:problem:too-large")]
    TooLarge,
    #[serde(rename = "urn:sagacity:problem:unsupported-media-type")]
    UnsupportedMediaType,
    #[serde(rename = "urn:sagacity:problem:idempotency-key-reused")]
    IdempotencyKeyReused,
    #[serde(rename = "urn:sagacity:problem:too-many-requests")]
    TooManyRequests,
    #[serde(rename = "urn:sagacity:problem:internal")]
    Internal,
    #[serde(rename = "urn:sagacity:problem:unavailable")]
    Unavailable,
    #[serde(rename = "urn:sagacity:problem:timeout")]
    Timeout,
}

impl Kind {
    const fn status_and_title(self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => (StatusCode::BAD_REQUEST, "The request is invalid"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "An access token is needed"),
            Self::InvalidToken => (StatusCode::UNAUTHORIZED, "The access token is not valid"),
            Self::InsufficientScope => (
                StatusCode::FORBIDDEN,
                "The access token does not allow this",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "The request came too slowly"),
            Self::RequestInFlight => (
                StatusCode::CONFLICT,
                "The first request with this key is still in progress",
            ),
            Self::Conflict => (
                StatusCode::CONFLICT,
                "The state of the order does not allow this",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request body is too large",
            ),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type")
            }
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "The idempotency key belongs to another request",
            ),
            Self::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "No response in time"),
        }
    }

    /// Every request that can time out or find a service unavailable is safe to repeat: creating an
    /// order has its idempotency key, cancelling twice is the same as once, the others read. After
    /// an internal error nothing is known, so nothing is promised.
    const fn retry_safe(self) -> bool {
        matches!(
            self,
            Self::RequestTimeout
                | Self::RequestInFlight
                | Self::TooManyRequests
                | Self::Unavailable
                | Self::Timeout
        )
    }

    /// The `WWW-Authenticate` of the response: RFC 6750, section 3.
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Self::Unauthenticated => Some("Bearer realm=\"sagacity\""),
            Self::InvalidToken => Some("Bearer realm=\"sagacity\", error=\"invalid_token\""),
            Self::InsufficientScope => {
                Some("Bearer realm=\"sagacity\", error=\"insufficient_scope\"")
            }
            _ => None,
        }
    }
}

impl Problem {
    fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (status, title) = kind.status_and_title();
        Self {
            r#type: kind,
            title,
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            retry_safe: kind.retry_safe(),
        }
    }

    fn at(self, field: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            ..self
        }
    }

    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Kind::InvalidRequest, detail).at(field)
    }

    pub fn unauthenticated() -> Self {
        let detail =
            "Send the header Authorization: Bearer, with an access token or an API key. See /docs.";
        Self::new(Kind::Unauthenticated, detail).at(AUTHORIZATION)
    }

    /// The response is the same whatever is wrong: details would help to forge one.
    pub fn invalid_token() -> Self {
        let detail = "The access token was not issued for this API. Get another one.";
        Self::new(Kind::InvalidToken, detail).at(AUTHORIZATION)
    }

    pub fn expired_token() -> Self {
        let detail = "The access token has expired. Get a new one.";
        Self::new(Kind::InvalidToken, detail).at(AUTHORIZATION)
    }

    pub fn insufficient_scope(scope: &str) -> Self {
        let detail = format!("The access token needs the scope {scope}. Get one that has it.");
        Self::new(Kind::InsufficientScope, detail).at(AUTHORIZATION)
    }

    pub fn provider_unavailable() -> Self {
        Self::new(
            Kind::Unavailable,
            "Access tokens cannot be checked at the moment. Send the same request again later.",
        )
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, detail)
    }

    pub fn method_not_allowed() -> Self {
        let detail = "The response header Allow lists the methods that this path supports.";
        Self::new(Kind::MethodNotAllowed, detail)
    }

    pub fn too_large(limit: usize) -> Self {
        let detail = format!("The body may have at most {limit} bytes.");
        Self::new(Kind::TooLarge, detail).at("body")
    }

    pub fn slow_body(limit: Duration) -> Self {
        let detail = format!("The body must arrive within {limit:?}. Send the same request again.");
        Self::new(Kind::RequestTimeout, detail).at("body")
    }

    /// `who`: customer, API key or address. `wait`: until the next request would be accepted.
    pub fn too_many_requests(who: &str, per_second: u32, wait: Duration) -> Self {
        let detail = format!(
            "More than {per_second} requests per second of this {who}. \
             Send the same request again in {wait:?}."
        );
        Self::new(Kind::TooManyRequests, detail)
    }

    pub fn too_many_in_progress(limit: usize) -> Self {
        let detail = format!(
            "{limit} of your requests are in progress. Send the same request again when one has \
             ended."
        );
        Self::new(Kind::TooManyRequests, detail)
    }

    pub fn too_many_streams(limit: usize) -> Self {
        let detail = format!("You have {limit} live streams open. Close one, then try again.");
        Self::new(Kind::TooManyRequests, detail)
    }

    pub fn media_type() -> Self {
        let detail = "Send JSON, with the header Content-Type: application/json.";
        Self::new(Kind::UnsupportedMediaType, detail).at("content-type")
    }

    pub fn internal() -> Self {
        let detail = "The request failed, and it is not known how far it came. \
                      Quote the x-correlation-id of this response when you report it.";
        Self::new(Kind::Internal, detail)
    }

    pub fn overloaded() -> Self {
        Self::new(
            Kind::Unavailable,
            "There are too many requests at the moment. Send the same request again later.",
        )
    }
}

impl From<tonic::Status> for Problem {
    fn from(status: tonic::Status) -> Self {
        let text = status.message();
        let code = match status.code() {
            // How tonic's client reports that its own timeout expired.
            Code::Cancelled if text == TimeoutExpired(()).to_string() => Code::DeadlineExceeded,
            // Only an error on this side has a source: the connection was lost, whatever the code.
            _ if status.source().is_some() => Code::Unavailable,
            code => code,
        };
        match code {
            // Services write "field: what is wrong".
            Code::InvalidArgument => match text.split_once(": ") {
                Some((field, detail)) => Self::invalid(field, detail),
                None => Self::invalid("request", text),
            },
            Code::NotFound => Self::not_found(text),
            Code::AlreadyExists => Self::new(
                Kind::IdempotencyKeyReused,
                "Send a new Idempotency-Key for a new order.",
            )
            .at("idempotency-key"),
            Code::Aborted => Self::new(
                Kind::RequestInFlight,
                "Send the same request again in a moment to get its result.",
            ),
            Code::FailedPrecondition => Self::new(Kind::Conflict, text),
            Code::ResourceExhausted | Code::Unavailable => Self::new(
                Kind::Unavailable,
                "A service behind the API is unavailable. Send the same request again later.",
            ),
            Code::DeadlineExceeded | Code::Cancelled => Self::new(
                Kind::Timeout,
                "A service behind the API did not respond in time. Send the same request again.",
            ),
            code => {
                tracing::error!(
                    ?code,
                    text,
                    "a service responded with an unexpected gRPC status; the client gets 500"
                );
                Self::internal()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, _) = self.r#type.status_and_title();
        let challenge = self.r#type.challenge();
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(challenge) = challenge {
            let challenge = HeaderValue::from_static(challenge);
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_argument_names_the_field() {
        let problem = Problem::from(tonic::Status::invalid_argument(
            "items[0].sku: there is no product \"SKU-9999\"",
        ));
        assert_eq!(
            problem,
            Problem::invalid("items[0].sku", "there is no product \"SKU-9999\"")
        );
    }

    #[test]
    fn only_what_may_succeed_later_is_safe_to_retry() {
        for (code, status, retry_safe) in [
            (Code::InvalidArgument, 400, false),
            (Code::NotFound, 404, false),
            (Code::Aborted, 409, true),
            (Code::FailedPrecondition, 409, false),
            (Code::AlreadyExists, 422, false),
            (Code::Internal, 500, false),
            (Code::Unknown, 500, false),
            (Code::Unimplemented, 500, false),
            (Code::Unavailable, 503, true),
            (Code::ResourceExhausted, 503, true),
            (Code::DeadlineExceeded, 504, true),
            (Code::Cancelled, 504, true),
        ] {
            let problem = Problem::from(tonic::Status::new(code, "x"));
            assert_eq!(
                (problem.status, problem.retry_safe),
                (status, retry_safe),
                "{code:?}"
            );
        }
    }

    #[test]
    fn a_lost_connection_is_unavailable_and_an_expired_timeout_is_a_timeout() {
        let lost = tonic::Status::from_error(std::io::Error::other("connection reset").into());
        assert_eq!(Problem::from(lost).status, 503);
        let late = tonic::Status::from_error(TimeoutExpired(()).into());
        assert_eq!(Problem::from(late).status, 504);
    }
}
