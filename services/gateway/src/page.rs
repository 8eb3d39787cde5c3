//! Pages of lists: their parameters, and the cursors that lead from one page to the next.

use std::str::FromStr;

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use contracts::{MAX_TEXT, OrderId, Sku};
use serde::Deserialize;
use utoipa::{
    IntoParams,
    openapi::{
        ObjectBuilder, Required,
        path::{Parameter, ParameterIn},
        schema::Type,
    },
};

use crate::{
    extract::{parameter, string},
    problem::Problem,
};

const MAX_LIMIT: u32 = 100;
const DEFAULT_LIMIT: u32 = 20;

/// A page of a list, after the entry that the cursor stands for.
#[derive(Debug, PartialEq, Eq)]
pub struct Page<C> {
    pub limit: u32,
    /// `None` for the first page.
    pub after: Option<C>,
}

/// A place in a list as clients see it: opaque, and every text that matches the pattern is a place.
pub trait Cursor: Sized {
    const PATTERN: &str;
    const MAX_LENGTH: usize;

    fn encode(&self) -> String;
    fn decode(text: &str) -> Option<Self>;
}

impl Cursor for OrderId {
    const PATTERN: &str = "^([0-9a-f]{32})?$";
    const MAX_LENGTH: usize = 32;

    fn encode(&self) -> String {
        self.0.simple().to_string()
    }

    fn decode(text: &str) -> Option<Self> {
        let simple = text.len() == 32 && !text.contains(char::is_uppercase);
        simple.then(|| text.parse().ok())?
    }
}

impl Cursor for Sku {
    /// Two digits for each printable character.
    const PATTERN: &str = "^([2-6][0-9a-f]|7[0-9a-e])*$";
    const MAX_LENGTH: usize = 2 * MAX_TEXT;

    fn encode(&self) -> String {
        let bytes = self.as_str().bytes();
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    fn decode(text: &str) -> Option<Self> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return None;
        };
        let characters = pairs
            .iter()
            .map(|[high, low]| Some(char::from(digit(*high)? << 4 | digit(*low)?)));
        Self::try_from(characters.collect::<Option<String>>()?).ok()
    }
}

/// The cursor of the page after `last`, which a service sends empty with the last page.
pub fn next_cursor<C: Cursor + FromStr>(last: &str) -> Result<Option<String>, Problem> {
    if last.is_empty() {
        return Ok(None);
    }
    let last: C = last.parse().map_err(|_| {
        tracing::error!(
            last,
            "a service sent a page that no cursor can continue; the client gets 500"
        );
        Problem::internal()
    })?;
    Ok(Some(last.encode()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

impl<S: Send + Sync, C: Cursor> FromRequestParts<S> for Page<C> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let expected = "expected limit and cursor, each at most once, and nothing else";
        let Query(query) = Query::<PageQuery>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::invalid("query", expected))?;
        Ok(Self {
            limit: read_limit(query.limit.as_deref())?,
            after: read_cursor(query.cursor.as_deref().unwrap_or_default())?,
        })
    }
}

fn read_limit(text: Option<&str>) -> Result<u32, Problem> {
    let Some(text) = text else {
        return Ok(DEFAULT_LIMIT);
    };
    // The parser would also take "+1".
    Some(text)
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| Problem::invalid("limit", format!("expected 1 to {MAX_LIMIT}")))
}

/// Empty is the first page, so that a client can begin its loop with an empty cursor.
fn read_cursor<C: Cursor>(text: &str) -> Result<Option<C>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let expected = "expected the next_cursor of the page before";
    let cursor = C::decode(text).ok_or_else(|| Problem::invalid("cursor", expected))?;
    Ok(Some(cursor))
}

impl<C: Cursor> IntoParams for Page<C> {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let limit = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(MAX_LIMIT))
            .default(Some(DEFAULT_LIMIT.into()));
        let cursor = string()
            .max_length(Some(C::MAX_LENGTH))
            .pattern(Some(C::PATTERN));
        let optional = |name, description, schema| {
            let mut parameter = parameter(name, ParameterIn::Query, description, schema);
            parameter.required = Required::False;
            parameter
        };
        vec![
            optional("limit", "Most entries on the page", limit),
            optional(
                "cursor",
                "`next_cursor` of the page before; empty or absent for the first page",
                cursor,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_anything_else_is_rejected() {
        let sku: Sku = "SKU-0020".parse().unwrap();
        assert_eq!(read_cursor(&sku.encode()), Ok(Some(sku)));
        let order = OrderId::new();
        assert_eq!(read_cursor(&order.encode()), Ok(Some(order)));
        assert_eq!(read_cursor::<Sku>(""), Ok(None));
        for other in ["%%", "534", "534B55", "ü", "00", "ff", &"20".repeat(256)] {
            assert!(read_cursor::<Sku>(other).is_err(), "{other}");
        }
        for other in ["20", &order.to_string(), &order.encode().to_uppercase()] {
            assert!(read_cursor::<OrderId>(other).is_err(), "{other}");
        }
    }
}
