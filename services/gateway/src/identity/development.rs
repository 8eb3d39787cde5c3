//! `POST /dev/token`: the token endpoint (RFC 6749) of the development issuer, for curl, the
//! documentation page, and clients in other languages. It is there only without a provider.

use api_keys::Scope;
use axum::{
    Form, Json, Router,
    extract::{State, rejection::FormRejection},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

pub const PATH: &str = "/dev/token";

const LONGEST_CLIENT_ID: usize = 255;

#[derive(Deserialize)]
struct Request {
    grant_type: String,
    /// The customer. In the Authorization header otherwise.
    client_id: Option<String>,
    /// Separated by spaces; all scopes of customers without it.
    scope: Option<String>,
}

#[derive(Serialize)]
struct Token {
    access_token: String,
    token_type: &'static str,
    /// Seconds.
    expires_in: u64,
    scope: String,
}

/// RFC 6749, section 5.2.
#[derive(Serialize)]
struct Error {
    error: &'static str,
    error_description: String,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(self)).into_response()
    }
}

/// The route, for tokens with this audience.
pub fn routes<S: Clone + Send + Sync + 'static>(audience: &str) -> Router<S> {
    Router::new().route(PATH, post(issue).with_state(audience.to_owned()))
}

async fn issue(
    State(audience): State<String>,
    headers: HeaderMap,
    form: Result<Form<Request>, FormRejection>,
) -> Result<Json<Token>, Response> {
    let refuse = |error, description: &str| {
        let error_description = description.to_owned();
        Error {
            error,
            error_description,
        }
        .into_response()
    };
    let Form(request) = form.map_err(|error| refuse("invalid_request", &error.body_text()))?;
    if request.grant_type != "client_credentials" {
        let expected = "grant_type: expected client_credentials";
        return Err(refuse("unsupported_grant_type", expected));
    }
    let customer = request.client_id.or_else(|| client_id(&headers));
    let customer = customer
        .filter(|id| (1..=LONGEST_CLIENT_ID).contains(&id.len()) && !id.contains(char::is_control));
    let Some(customer) = customer else {
        let expected = "client_id: expected the customer, any name; its secret does not matter";
        return Err(refuse("invalid_client", expected));
    };
    let scope = request.scope.filter(|scope| !scope.is_empty());
    let scope = scope.unwrap_or_else(|| development_issuer::CUSTOMER_SCOPES.to_owned());
    let known = |name: &str| Scope::OF_CUSTOMERS.iter().any(|scope| scope.name() == name);
    if !scope.split(' ').all(known) {
        let names = Scope::OF_CUSTOMERS.map(Scope::name).join(", ");
        return Err(refuse(
            "invalid_scope",
            &format!("scope: expected some of {names}"),
        ));
    }
    Ok(Json(Token {
        access_token: development_issuer::issue(&customer, &audience, &scope),
        token_type: "Bearer",
        expires_in: development_issuer::LIFETIME.as_secs(),
        scope,
    }))
}

/// The client of an `Authorization: Basic`.
fn client_id(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let credentials = BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let credentials = String::from_utf8(credentials).ok()?;
    let (id, _secret) = credentials.split_once(':')?;
    Some(id.to_owned())
}
