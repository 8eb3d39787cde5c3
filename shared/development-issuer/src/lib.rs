//! Issues access tokens for development and tests: JWTs (RFC 9068), signed with Ed25519.
//!
//! The private key is published with this source code: anybody can issue a token for any customer.
//! The gateway accepts such tokens only while no identity provider is configured, which production
//! refuses.

use std::time::Duration;

use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, JwkSet},
};
use serde::Serialize;
use time::OffsetDateTime;

/// The `iss` of the tokens.
pub const ISSUER: &str = "urn:sagacity:development";
/// The `aud` that a gateway expects by default.
pub const AUDIENCE: &str = "sagacity";
/// What a customer may do.
pub const CUSTOMER_SCOPES: &str = "orders:read orders:write";
/// How long a token is valid: a working day.
pub const LIFETIME: Duration = Duration::from_secs(12 * 3600);

const KEY_ID: &str = "development";

/// Ed25519, PKCS #8.
const PRIVATE_KEY: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    0xb2, 0xf5, 0x1b, 0x13, 0xb4, 0x55, 0xc1, 0x2a, 0xcc, 0x67, 0x8c, 0x15, 0x87, 0x31, 0xd0, 0x58,
    0xd4, 0xc4, 0x80, 0xca, 0xd7, 0x4e, 0x55, 0x44, 0x03, 0x08, 0x44, 0xad, 0x44, 0xfd, 0x39, 0x7b,
];

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    scope: &'a str,
    /// Seconds since 1970.
    iat: i64,
    exp: i64,
}

/// A token for `subject`, for a gateway whose audience is `audience`. `scopes` are separated by
/// spaces.
pub fn issue(subject: &str, audience: &str, scopes: &str) -> String {
    let now = OffsetDateTime::now_utc();
    let claims = Claims {
        iss: ISSUER,
        aud: audience,
        sub: subject,
        scope: scopes,
        iat: now.unix_timestamp(),
        exp: (now + LIFETIME).unix_timestamp(),
    };
    let header = Header {
        typ: Some("at+jwt".to_owned()),
        kid: Some(KEY_ID.to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    encode(&header, &claims, &private_key()).expect("the key signs and claims are JSON")
}

/// The public key that verifies the tokens.
pub fn keys() -> JwkSet {
    let key = Jwk::from_encoding_key(&private_key(), Algorithm::EdDSA);
    let mut key = key.expect("the key is one of Ed25519");
    key.common.key_id = Some(KEY_ID.to_owned());
    JwkSet { keys: vec![key] }
}

fn private_key() -> EncodingKey {
    EncodingKey::from_ed_der(&PRIVATE_KEY)
}
