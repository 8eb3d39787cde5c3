//! Errors of the HTTP API: RFC 9457 problem documents, and what gRPC's statuses become.

use std::error::Error as _;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tonic::{Code, TimeoutExpired};
use utoipa::ToSchema;

/// An RFC 9457 problem document, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// What kind of problem it is; stable, for programs.
    #[schema(example = "urn:sagacity:problem:invalid-request")]
    r#type: String,
    /// What kind of problem it is, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong here, and what to do.
    detail: String,
    /// The part of the request that is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "items[0].quantity")]
    field: Option<String>,
    /// Whether the same request may be sent again (for orders: with the same `Idempotency-Key`)
    /// and could succeed.
    retry_safe: bool,
}

impl Problem {
    fn new(status: StatusCode, kind: &str, title: &'static str, detail: impl Into<String>) -> Self {
        let retry_safe = status.is_server_error() || status == StatusCode::CONFLICT;
        let r#type = format!("urn:sagacity:problem:{kind}");
        Self {
            r#type,
            title,
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            retry_safe,
        }
    }

    /// Something in the request is wrong: 400.
    pub(crate) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let problem = Self::new(
            StatusCode::BAD_REQUEST,
            "invalid-request",
            "The request is invalid",
            detail,
        );
        Self {
            field: Some(field.into()),
            ..problem
        }
    }

    /// 404.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not-found",
            "There is no such thing",
            detail,
        )
    }

    /// 405.
    pub(crate) fn method_not_allowed() -> Self {
        let detail =
            "This resource does not know the method; the header Allow lists those that it knows.";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "Method not allowed",
            detail,
        )
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let detail = format!("The body is larger than {limit} bytes.");
        let problem = Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The request is too large",
            detail,
        );
        Self {
            field: Some("body".to_owned()),
            ..problem
        }
    }

    /// 415.
    pub(crate) fn media_type() -> Self {
        let detail = "Expected the header Content-Type: application/json.";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let problem = Self::new(
            status,
            "unsupported-media-type",
            "Unsupported media type",
            detail,
        );
        Self {
            field: Some("content-type".to_owned()),
            ..problem
        }
    }

    /// 500; the log has the details.
    pub(crate) fn internal() -> Self {
        let detail = "Something went wrong here; the log has the details under the correlation id of this answer.";
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            detail,
        )
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// What a service's refusal means to the client.
impl From<tonic::Status> for Problem {
    fn from(status: tonic::Status) -> Self {
        let text = status.message();
        let code = match status.code() {
            Code::Cancelled if text == TimeoutExpired(()).to_string() => Code::DeadlineExceeded,
            // Not said by the service, but made of an error here: the connection was lost.
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
            Code::AlreadyExists => {
                let problem = Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "idempotency-key-reused",
                    "The idempotency key was used before",
                    "This Idempotency-Key belongs to another request; use a new key for a new order.",
                );
                Self {
                    field: Some("idempotency-key".to_owned()),
                    ..problem
                }
            }
            Code::Aborted => Self::new(
                StatusCode::CONFLICT,
                "request-in-flight",
                "The first request is still being worked on",
                "A request with this Idempotency-Key is still being worked on; ask again in a moment.",
            ),
            Code::FailedPrecondition => Self {
                retry_safe: false,
                ..Self::new(
                    StatusCode::CONFLICT,
                    "conflict",
                    "It is too late for that",
                    text,
                )
            },
            Code::ResourceExhausted | Code::Unavailable => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Not available now",
                "A part of the shop does not answer now; the same request may be sent again.",
            ),
            Code::DeadlineExceeded | Code::Cancelled => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                "No answer in time",
                "A part of the shop did not answer in time; the same request may be sent again.",
            ),
            code => {
                tracing::error!(
                    ?code,
                    text,
                    "a service answered with what should not happen"
                );
                Self::internal()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_service_names_the_field() {
        let problem = Problem::from(tonic::Status::invalid_argument(
            "items[0].quantity: expected 1 to 999",
        ));
        assert_eq!(
            problem,
            Problem::invalid("items[0].quantity", "expected 1 to 999")
        );
        assert!(!problem.retry_safe);
    }

    #[test]
    fn only_what_can_succeed_later_is_safe_to_retry() {
        for (code, status, retry_safe) in [
            (Code::NotFound, 404, false),
            (Code::AlreadyExists, 422, false),
            (Code::Aborted, 409, true),
            (Code::FailedPrecondition, 409, false),
            (Code::Unavailable, 503, true),
            (Code::ResourceExhausted, 503, true),
            (Code::DeadlineExceeded, 504, true),
            (Code::Cancelled, 504, true),
            (Code::Internal, 500, true),
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
    fn a_lost_connection_is_no_answer_of_the_service() {
        let lost = tonic::Status::from_error(std::io::Error::other("connection reset").into());
        assert_eq!(Problem::from(lost).status, 503);
        let late = tonic::Status::from_error(TimeoutExpired(()).into());
        assert_eq!(Problem::from(late).status, 504);
    }
}
