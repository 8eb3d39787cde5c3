//! What handlers take from a request. Each refusal is a problem document that names what is wrong.

use std::str::FromStr;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bootstrap::RequestContext;
use contracts::{CustomerId, OrderId};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{object::Object, problem::Problem};

/// Largest body; a hundred lines take a tenth of it.
pub(crate) const MAX_BODY: usize = 64 * 1024;
const MAX_LIMIT: u32 = 100;
const DEFAULT_LIMIT: u32 = 20;

/// Who asks. Until accounts exist, whoever the header `X-Customer-Id` says; this is the one place
/// that reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Customer(pub(crate) CustomerId);

impl<S: Sync> FromRequestParts<S> for Customer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        header_as(&parts.headers, "x-customer-id", "a UUID").map(Self)
    }
}

/// The key that makes a repeated request harmless (IETF draft-ietf-httpapi-idempotency-key-header).
#[derive(Clone, Debug)]
pub(crate) struct IdempotencyKey(pub(crate) String);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let text: String = header_as(
            &parts.headers,
            "idempotency-key",
            "1 to 255 visible characters",
        )?;
        // The draft makes it a string of RFC 8941, in quotes; most clients send it bare.
        let key = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
            .unwrap_or(&text);
        if !(1..=255).contains(&key.len()) {
            return Err(Problem::invalid(
                "idempotency-key",
                "expected 1 to 255 visible characters",
            ));
        }
        Ok(Self(key.to_owned()))
    }
}

fn header_as<T: FromStr>(
    headers: &HeaderMap,
    name: &'static str,
    expected: &str,
) -> Result<T, Problem> {
    let value = headers
        .get(name)
        .ok_or_else(|| Problem::invalid(name, format!("the header is missing: {expected}")))?;
    let parsed = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse().ok());
    parsed.ok_or_else(|| Problem::invalid(name, format!("expected {expected}")))
}

/// The order that the path names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrderPath(pub(crate) OrderId);

impl<S: Send + Sync> FromRequestParts<S> for OrderPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let wrong = || Problem::invalid("id", "expected the UUID of an order in the path");
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| wrong())?;
        text.parse().map(Self).map_err(|_| wrong())
    }
}

/// The product that the path names.
#[derive(Clone, Debug)]
pub(crate) struct SkuPath(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for SkuPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(sku)| Self(sku))
            .map_err(|_| Problem::invalid("sku", "expected UTF-8 in the path"))
    }
}

/// What travels with the request; made by the outermost layer.
impl<S: Sync> FromRequestParts<S> for Travelling {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<RequestContext>()
            .cloned()
            .map(Self)
            .ok_or_else(Problem::internal)
    }
}

/// Correlation, trace and deadline of the request.
#[derive(Clone, Debug)]
pub(crate) struct Travelling(pub(crate) RequestContext);

/// A JSON body; unknown fields and wrong types are refused by path.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::media_type());
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|_| Problem::too_large(MAX_BODY))?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "body".to_owned() } else { path };
            Problem::invalid(field, error.into_inner().to_string())
        })?;
        json.end()
            .map_err(|error| Problem::invalid("body", error.to_string()))?;
        Ok(Self(value))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Which part of a list is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) limit: u32,
    /// Where the last page ended; empty for the first.
    pub(crate) after: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPage {
    limit: Option<String>,
    cursor: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(raw) = Query::<RawPage>::from_request_parts(parts, state)
            .await
            .map_err(|_| {
                Problem::invalid(
                    "query",
                    "expected limit and cursor, each at most once, and nothing else",
                )
            })?;
        let wrong_limit = || Problem::invalid("limit", format!("expected 1 to {MAX_LIMIT}"));
        let limit = raw.limit.map_or(Ok(DEFAULT_LIMIT), |text| {
            text.parse().map_err(|_| wrong_limit())
        })?;
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(wrong_limit());
        }
        Ok(Self {
            limit,
            after: read_cursor(raw.cursor.as_deref().unwrap_or_default())?,
        })
    }
}

fn read_cursor(cursor: &str) -> Result<String, Problem> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let ours = text.filter(|text| text.len() <= 64 && !text.contains(char::is_control));
    ours.ok_or_else(|| Problem::invalid("cursor", "expected the next_cursor of the page before"))
}

/// The cursor of the page that begins after `last`; `None` when there is none.
pub(crate) fn cursor(last: &str) -> Option<String> {
    (!last.is_empty()).then(|| BASE64_URL_SAFE_NO_PAD.encode(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_others_are_refused() {
        assert_eq!(
            read_cursor(&cursor("SKU-0020").unwrap()).unwrap(),
            "SKU-0020"
        );
        assert_eq!(read_cursor("").unwrap(), "");
        for other in ["%%%", &"A".repeat(200), &cursor("SKU\0").unwrap()] {
            assert!(read_cursor(other).is_err(), "{other}");
        }
    }

    #[test]
    fn only_json_is_json() {
        let with = |value: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())])
        };
        assert!(
            is_json(&with("application/json; charset=utf-8"))
                && is_json(&with("application/vnd.api+json"))
        );
        assert!(!is_json(&with("text/plain")) && !is_json(&HeaderMap::new()));
    }
}
