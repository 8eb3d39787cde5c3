//! Credentials of a request: `Authorization: Bearer` (RFC 6750).

use axum::http::{HeaderMap, header::AUTHORIZATION};

/// The token of a request, or `None` for a request without credentials.
///
/// # Errors
/// States what is wrong, for the log.
pub fn token(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err("there are two tokens"),
    };
    let token = value.to_str().ok().and_then(|value| value.split_once(' '));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let (_, token) = token.ok_or("it is no bearer token")?;
    Ok(Some(token.trim_start()))
}
