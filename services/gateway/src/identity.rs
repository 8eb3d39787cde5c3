//! Who sends a request: access tokens (RFC 6750) of an OpenID Connect provider, or of the
//! development issuer while there is none; API keys of machines.

pub mod development;
mod settings;
mod signing_keys;
mod token;

use std::{sync::Arc, time::SystemTime};

use api_keys::{ApiKey, ApiKeys, Scopes};
use axum::http::HeaderMap;
use bootstrap::bearer;
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

/// A caller that has shown a valid token or key.
#[derive(Clone, Debug)]
pub struct Principal {
    pub customer: CustomerId,
    pub scopes: Scopes,
    /// When the token or the key ends.
    pub until: SystemTime,
    /// The key, which may be revoked before.
    pub key: Option<Arc<ApiKey>>,
}

/// Why a request is refused.
#[derive(Debug)]
pub struct Refused {
    /// What is wrong with the access token, for the log: the response must not help to guess.
    pub reason: Option<String>,
    pub problem: Problem,
}

/// Checks access tokens and API keys; cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    keys: SigningKeys,
    api_keys: Option<ApiKeys>,
    verifier: Arc<Verifier>,
    /// By SHA-256 of the token.
    accepted: Arc<Cache<[u8; 32], Accepted>>,
}

#[derive(Clone, Debug)]
struct Accepted {
    principal: Principal,
    /// Of the keys it was verified with: a key that the provider withdraws ends its tokens.
    generation: u64,
}

impl Identity {
    /// # Errors
    /// When no HTTP client can be made for the provider, or the API keys cannot be read.
    pub fn new(settings: &IdentitySettings) -> anyhow::Result<Self> {
        let (keys, issuer) = match settings.issuer() {
            Some(issuer) => (SigningKeys::for_provider(issuer)?, issuer),
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
            api_keys: settings.api_keys.open()?,
            verifier: Arc::new(Verifier::new(issuer, &settings.audience)),
            accepted: Arc::new(Cache::new(REMEMBERED)),
        })
    }

    /// Keeps the provider's keys and the API keys up to date until `stopping`.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let signing_keys = self.keys.run(stopping.clone());
        let api_keys = async {
            match self.api_keys {
                Some(api_keys) => api_keys.run(stopping).await,
                None => Ok(()),
            }
        };
        tokio::join!(signing_keys, api_keys).1
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
        let token = match bearer::token(headers) {
            Ok(Some(token)) => token,
            Ok(None) => return Ok(None),
            Err(reason) => return Err(Refused::invalid(reason)),
        };
        if token.len() > LONGEST_TOKEN {
            return Err(Refused::invalid("it is too long"));
        }
        if token.starts_with(api_keys::PREFIX) {
            return self.by_key(token).map(Some);
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
            principal: principal.clone(),
            generation,
        };
        self.accepted.insert(id, accepted);
        Ok(Some(principal))
    }

    /// A key is not remembered, so that it ends when it is revoked. To check it costs one hash.
    fn by_key(&self, text: &str) -> Result<Principal, Refused> {
        let keys = self.api_keys.as_ref().ok_or_else(|| {
            Refused::invalid("it is an API key, and the gateway has none: set API_KEYS_FILE")
        })?;
        let key = keys.verify(text);
        let key = key.map_err(|refusal| Refused::invalid(&refusal.to_string()))?;
        Ok(Principal {
            customer: key.customer,
            scopes: key.scopes.iter().copied().collect(),
            until: key.expires_at.into(),
            key: Some(key),
        })
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
