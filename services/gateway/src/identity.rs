//! Who sends a request: access tokens (RFC 6750) of an OpenID Connect provider, or of the
//! development issuer while there is none.

pub mod development;
mod settings;
mod signing_keys;
mod token;

use std::{sync::Arc, time::SystemTime};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use contracts::CustomerId;
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::problem::Problem;
pub use settings::IdentitySettings;
pub use signing_keys::discovery_url;
#[cfg(test)]
pub use token::LEEWAY;
use {
    signing_keys::SigningKeys,
    token::{Refusal, Verifier},
};

/// Accepted tokens that need not be verified again: some hundred bytes each.
const REMEMBERED: usize = 10_000;
/// Providers stay far below it.
const LONGEST_TOKEN: usize = 8 * 1024;

/// A caller that has shown a valid token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Principal {
    pub customer: CustomerId,
    pub scopes: Scopes,
    /// When the token ends.
    pub until: SystemTime,
}

/// What a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To see the customer's orders.
    OrdersRead,
    /// To create and cancel orders.
    OrdersWrite,
}

impl Scope {
    pub const ALL: [Self; 2] = [Self::OrdersRead, Self::OrdersWrite];

    /// As tokens name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OrdersRead => "orders:read",
            Self::OrdersWrite => "orders:write",
        }
    }

    pub const fn description(self) -> &'static str {
        match self {
            Self::OrdersRead => "See your orders",
            Self::OrdersWrite => "Create and cancel orders",
        }
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & 1 << scope as u8 != 0
    }

    /// The known ones among `names`; a token may have others, for other APIs.
    fn named<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let known = names.filter_map(|name| Scope::ALL.into_iter().find(|s| s.name() == name));
        Self(known.fold(0, |scopes, scope| scopes | 1 << scope as u8))
    }
}

/// Why a request is refused.
#[derive(Debug)]
pub struct Refused {
    /// What is wrong with the access token, for the log: the response must not help to guess.
    pub reason: Option<String>,
    pub problem: Problem,
}

/// Checks access tokens; cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    keys: SigningKeys,
    verifier: Arc<Verifier>,
    /// By SHA-256 of the token.
    accepted: Arc<Cache<[u8; 32], Accepted>>,
}

#[derive(Clone, Copy, Debug)]
struct Accepted {
    principal: Principal,
    /// Of the keys it was verified with: a key that the provider withdraws ends its tokens.
    generation: u64,
}

impl Identity {
    /// # Errors
    /// When no HTTP client can be made for the provider.
    pub fn new(settings: &IdentitySettings) -> anyhow::Result<Self> {
        let (keys, issuer) = match settings.issuer() {
            Some(issuer) => (SigningKeys::of_provider(issuer)?, issuer),
            None => {
                tracing::info!(
                    "without OIDC_ISSUER tokens of the development issuer are accepted, which \
                     anybody can issue"
                );
                let keys = development_issuer::keys();
                (SigningKeys::fixed(keys), development_issuer::ISSUER)
            }
        };
        Ok(Self {
            keys,
            verifier: Arc::new(Verifier::new(issuer, &settings.audience)),
            accepted: Arc::new(Cache::new(REMEMBERED)),
        })
    }

    /// Keeps the provider's keys up to date until `stopping`.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        self.keys.run(stopping).await;
        Ok(())
    }

    /// Whether the keys of the issuer have been read.
    pub fn is_ready(&self) -> bool {
        self.keys.generation() > 0
    }

    /// The caller, or `None` for a request without credentials. `may_verify` is asked before a
    /// token is verified that was not accepted before.
    ///
    /// # Errors
    /// When credentials are there and not valid, or cannot be checked now.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        may_verify: impl FnOnce() -> Result<(), Problem>,
    ) -> Result<Option<Principal>, Refused> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = match (values.next(), values.next()) {
            (None, _) => return Ok(None),
            (Some(value), None) => value,
            (Some(_), Some(_)) => return Err(Refused::invalid("there are two tokens")),
        };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, token) = token.ok_or_else(|| Refused::invalid("it is no bearer token"))?;
        let token = token.trim_start();
        if token.len() > LONGEST_TOKEN {
            return Err(Refused::invalid("it is too long"));
        }
        let id: [u8; 32] = Sha256::digest(token).into();
        if let Some(accepted) = self.accepted.get(&id)
            && accepted.principal.until > SystemTime::now()
            && accepted.generation == self.keys.generation()
        {
            return Ok(Some(accepted.principal));
        }
        may_verify()?;
        let generation = self.keys.generation();
        let principal = self.verifier.verify(token, &self.keys).await?;
        let accepted = Accepted {
            principal,
            generation,
        };
        self.accepted.insert(id, accepted);
        Ok(Some(principal))
    }
}

impl Refused {
    fn invalid(reason: &str) -> Self {
        Self {
            reason: Some(reason.to_owned()),
            problem: Problem::invalid_token(),
        }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self {
            reason: None,
            problem,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            problem: match refusal {
                Refusal::Expired => Problem::expired_token(),
                Refusal::NoKeys => Problem::provider_unavailable(),
                _ => Problem::invalid_token(),
            },
            reason: Some(refusal.to_string()),
        }
    }
}
