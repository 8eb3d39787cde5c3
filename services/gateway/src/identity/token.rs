//! What makes an access token valid.

use std::time::{Duration, SystemTime};

use api_keys::Scope;
use contracts::CustomerId;
use jsonwebtoken::{Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;
use thiserror::Error;
use uuid::Uuid;

use super::{Principal, SigningKeys};

/// Seconds by which the clocks of provider and gateway may differ.
pub const LEEWAY: u64 = 30;

/// How long a token is remembered that ends beyond all times.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// Why a token is not valid.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error("it has expired")]
    Expired,
    #[error("it names no key of the issuer")]
    UnknownKey,
    /// Not the token's fault.
    #[error("the keys of the identity provider cannot be read")]
    NoKeys,
    #[error("it demands an extension of the signature that is not supported")]
    Critical,
    #[error("{0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
}

/// Checks signature, issuer, audience and times.
#[derive(Debug)]
pub struct Verifier {
    issuer: String,
    audience: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970.
    exp: f64,
    scope: Option<ScopeClaim>,
    /// The same in the tokens of some providers.
    scp: Option<ScopeClaim>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ScopeClaim {
    /// Separated by spaces: RFC 8693.
    Text(String),
    List(Vec<String>),
}

impl ScopeClaim {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => text.split(' ').collect(),
            Self::List(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

fn scope_of_customers(name: &str) -> Option<Scope> {
    let mut scopes = Scope::OF_CUSTOMERS.into_iter();
    scopes.find(|scope| scope.name() == name)
}

impl Verifier {
    pub fn new(issuer: &str, audience: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
        }
    }

    /// # Errors
    /// See [`Refusal`].
    pub async fn verify(&self, token: &str, keys: &SigningKeys) -> Result<Principal, Refusal> {
        let header = decode_header(token)?;
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        let key = keys.find(header.kid.as_deref()).await?;
        // The key decides on the algorithm, and not the token: one that was signed with the public
        // key as if it were a shared secret fails here.
        let mut rules = Validation::new(key.algorithm);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(&[&self.audience]);
        rules.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
        let claims =
            decode::<Claims>(token, &key.key, &rules).map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => Refusal::Expired,
                _ => Refusal::Invalid(error),
            })?;
        let claims = claims.claims;
        let named = [&claims.scope, &claims.scp].into_iter().flatten();
        let expires = Duration::try_from_secs_f64(claims.exp).unwrap_or(Duration::MAX);
        let until =
            SystemTime::UNIX_EPOCH.checked_add(expires.saturating_add(Duration::from_secs(LEEWAY)));
        Ok(Principal {
            customer: self.customer(&claims.sub),
            // A token may have scopes for other APIs.
            scopes: named
                .flat_map(ScopeClaim::names)
                .filter_map(scope_of_customers)
                .collect(),
            until: until.unwrap_or_else(|| SystemTime::now() + A_DAY),
            key: None,
        })
    }

    /// A subject that is no UUID becomes one: always the same, and another one for each subject of
    /// each issuer (RFC 9562, version 5).
    fn customer(&self, subject: &str) -> CustomerId {
        let uuid = Some(subject).filter(|subject| subject.len() == 36);
        let uuid = uuid.and_then(|subject| subject.parse().ok());
        uuid.unwrap_or_else(|| {
            let issuer = Uuid::new_v5(&Uuid::NAMESPACE_URL, self.issuer.as_bytes());
            Uuid::new_v5(&issuer, subject.as_bytes()).into()
        })
    }
}
