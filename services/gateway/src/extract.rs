//! What handlers take from requests. Each rejection is a problem document that names the field, and
//! each parameter is documented in the contract next to the code that checks it.

use std::str::FromStr;

use api_keys::Scope;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, header, request::Parts},
};
use bootstrap::RequestContext;
use contracts::{CustomerId, InvalidValue, MAX_TEXT, OrderId, Sku};
use serde::de::DeserializeOwned;
use utoipa::{
    IntoParams,
    openapi::{
        KnownFormat, ObjectBuilder, Required, SchemaFormat,
        path::{Parameter, ParameterBuilder, ParameterIn},
        schema::Type,
    },
};

use crate::{identity::Principal, object::Object, problem::Problem};

/// Correlation id, trace and deadline of the request, set by [`crate::edge::serve`].
#[derive(Clone, Debug)]
pub struct Context(pub RequestContext);

impl<S: Sync> FromRequestParts<S> for Context {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let context = parts.extensions.get::<RequestContext>().cloned();
        context.map(Self).ok_or_else(Problem::internal)
    }
}

/// Whose request it is, set by [`crate::edge`]; `None` for a request without credentials.
#[derive(Clone, Debug)]
pub struct Caller(pub Option<Principal>);

impl Caller {
    /// The customer, if the access token or key has this scope. Handlers know the customer from
    /// nothing else, so that a route without authorization has none.
    fn customer(parts: &Parts, scope: Scope) -> Result<CustomerId, Problem> {
        let Self(caller) = parts.extensions.get().ok_or_else(Problem::internal)?;
        let caller = caller.as_ref().ok_or_else(Problem::unauthenticated)?;
        match caller.scopes.contains(scope) {
            true => Ok(caller.customer),
            false => Err(Problem::insufficient_scope(scope.name())),
        }
    }
}

/// The customer, whose access token allows to see orders.
#[derive(Clone, Copy, Debug)]
pub struct Reader(pub CustomerId);

impl<S: Sync> FromRequestParts<S> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Caller::customer(parts, Scope::OrdersRead).map(Self)
    }
}

/// The customer, whose access token allows to create and cancel orders.
#[derive(Clone, Copy, Debug)]
pub struct Writer(pub CustomerId);

impl<S: Sync> FromRequestParts<S> for Writer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Caller::customer(parts, Scope::OrdersWrite).map(Self)
    }
}

/// Makes it harmless to repeat a request (draft-ietf-httpapi-idempotency-key-header).
#[derive(Clone, Debug)]
pub struct IdempotencyKey(pub contracts::IdempotencyKey);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let text = single_header(&parts.headers, "idempotency-key")?;
        let key: contracts::IdempotencyKey = text.parse().map_err(|error: InvalidValue| {
            Problem::invalid("idempotency-key", error.to_string())
        })?;
        // The draft puts the key into quotes (a string of RFC 8941); most clients do not. Both
        // spellings are the same key.
        let unquoted = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        Ok(Self(
            unquoted.and_then(|text| text.parse().ok()).unwrap_or(key),
        ))
    }
}

impl IntoParams for IdempotencyKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![parameter(
            "Idempotency-Key",
            ParameterIn::Header,
            &format!(
                "Chosen by the client, new for each new order. The same request with the same key \
                 gets the same response, for {} hours.",
                contracts::IdempotencyKey::RETENTION.as_secs() / 3600
            ),
            string()
                .min_length(Some(1))
                .max_length(Some(MAX_TEXT))
                // HTTP removes spaces at both ends of a header.
                .pattern(Some("^[!-~]([ -~]*[!-~])?$")),
        )]
    }
}

/// Where a repeated header has two values, no value is the right one.
fn single_header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value
            .to_str()
            .map_err(|_| Problem::invalid(name, "expected visible ASCII characters")),
        (None, _) => Err(Problem::invalid(name, "the header is required")),
        (Some(_), Some(_)) => Err(Problem::invalid(name, "the header is there more than once")),
    }
}

/// In the hyphenated form, which is what `format: uuid` means; the parser knows others, too.
fn parse_uuid<T: FromStr>(field: &'static str, text: &str) -> Result<T, Problem> {
    Some(text)
        .filter(|text| text.len() == 36)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Problem::invalid(field, "expected a UUID"))
}

/// The order in the path.
#[derive(Clone, Copy, Debug)]
pub struct OrderPath(pub OrderId);

impl<S: Send + Sync> FromRequestParts<S> for OrderPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = path_segment("id", parts, state).await?;
        parse_uuid("id", &text).map(Self)
    }
}

impl IntoParams for OrderPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![parameter(
            "id",
            ParameterIn::Path,
            "The order",
            string().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))),
        )]
    }
}

/// The product in the path.
#[derive(Clone, Debug)]
pub struct SkuPath(pub Sku);

impl<S: Send + Sync> FromRequestParts<S> for SkuPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = path_segment("sku", parts, state).await?;
        Sku::try_from(text)
            .map(Self)
            .map_err(|error| Problem::invalid("sku", error.to_string()))
    }
}

async fn path_segment<S: Send + Sync>(
    name: &'static str,
    parts: &mut Parts,
    state: &S,
) -> Result<String, Problem> {
    let path = Path::<String>::from_request_parts(parts, state).await;
    path.map(|Path(text)| text)
        .map_err(|_| Problem::invalid(name, "expected UTF-8 in the path"))
}

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::media_type());
        }
        // It has been received by now: see `edge`.
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|_| Problem::internal())?;
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
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

pub fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

pub fn parameter(
    name: &str,
    parameter_in: ParameterIn,
    description: &str,
    schema: ObjectBuilder,
) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(parameter_in)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        for (content_type, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.api+json", false),
            ("text/plain", false),
            ("", false),
        ] {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().unwrap())]);
            assert_eq!(is_json(&headers), json, "{content_type}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
