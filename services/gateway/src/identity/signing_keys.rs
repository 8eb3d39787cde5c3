//! The public keys that access tokens are signed with: a JSON Web Key Set (RFC 7517).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use reqwest::{Client, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::token::Refusal;

/// How old the keys become before they are read again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
const SLOWEST_RETRY: Duration = Duration::from_secs(30);
/// The least time between two reads: tokens with invented keys must not become a load of the
/// provider.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a request with an unknown key waits for new keys: longer than the pause.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How many requests wait for new keys at a time.
const WAITING: usize = 64;
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of Base64 in 256 bits, and in the least modulus of RSA: 2048 bits.
const BITS_256: usize = 43;
const BITS_2048: usize = 342;

/// A key and the one algorithm that it is used with.
#[derive(Clone, Debug)]
pub struct SigningKey {
    id: Option<String>,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// The keys of the issuer, cheap to clone.
#[derive(Clone, Debug)]
pub struct SigningKeys {
    current: watch::Sender<Keys>,
    /// Where they are read from; `None`: they never change.
    provider: Option<Arc<Provider>>,
}

#[derive(Debug, Default)]
struct Keys {
    /// `None` until they have been read.
    set: Option<JwkSet>,
    usable: Vec<Arc<SigningKey>>,
    /// How often they have changed.
    generation: u64,
    /// The number of the last read that ended.
    read: u64,
    /// Whether it failed: there may be keys that are not known here.
    outdated: bool,
}

#[derive(Debug)]
struct Provider {
    issuer: String,
    client: Client,
    wanted: Notify,
    waiting: Semaphore,
    /// The number of the last read that began.
    reading: AtomicU64,
}

impl SigningKeys {
    pub fn fixed(set: JwkSet) -> Self {
        let mut keys = Keys::default();
        keys.replace(set);
        Self {
            current: watch::Sender::new(keys),
            provider: None,
        }
    }

    /// Of an OpenID Connect provider; [`Self::run`] reads them.
    ///
    /// # Errors
    /// When there is no HTTP client.
    pub fn for_provider(issuer: &str) -> anyhow::Result<Self> {
        let client = Client::builder()
            .timeout(HTTP_TIMEOUT)
            .redirect(redirect::Policy::none())
            .build()?;
        Ok(Self {
            current: watch::Sender::new(Keys::default()),
            provider: Some(Arc::new(Provider {
                issuer: issuer.to_owned(),
                client,
                wanted: Notify::new(),
                waiting: Semaphore::new(WAITING),
                reading: AtomicU64::new(0),
            })),
        })
    }

    /// Changes with the keys.
    pub fn generation(&self) -> u64 {
        self.current.borrow().generation
    }

    /// The key with this id. Without one it is the only key.
    ///
    /// # Errors
    /// When there is none, also after the keys were read again.
    pub async fn find(&self, id: Option<&str>) -> Result<Arc<SigningKey>, Refusal> {
        let mut changes = self.current.subscribe();
        let found = changes.borrow_and_update().find(id);
        let (Err(_), Some(provider)) = (&found, &self.provider) else {
            return found;
        };
        let Ok(_one_of_few) = provider.waiting.try_acquire() else {
            return Err(Refusal::NoKeys);
        };
        // The issuer may have begun to use a new key: wait for a read that begins after this.
        let next = provider.reading.load(Ordering::Acquire) + 1;
        provider.wanted.notify_one();
        let read = changes.wait_for(|keys| keys.read >= next);
        match tokio::time::timeout(WAIT_TIMEOUT, read).await {
            Ok(Ok(keys)) => keys.find(id),
            _ => Err(Refusal::NoKeys),
        }
    }

    /// Reads the keys, and again when they are old or a token names an unknown one, until
    /// `stopping`.
    pub async fn run(self, stopping: CancellationToken) {
        let Some(provider) = self.provider.clone() else {
            return stopping.cancelled().await;
        };
        let refresh = async {
            let backoff = ExponentialBuilder::new()
                .with_max_delay(SLOWEST_RETRY)
                .without_max_times();
            let mut delays = backoff.build();
            loop {
                let number = provider.reading.fetch_add(1, Ordering::AcqRel) + 1;
                let read = provider.read().await;
                let wait = match &read {
                    Ok(_) => {
                        delays = backoff.build();
                        REFRESH_INTERVAL
                    }
                    Err(error) => {
                        let wait = delays.next().unwrap_or(SLOWEST_RETRY);
                        tracing::warn!(
                            issuer = provider.issuer,
                            error = format!("{error:#}"),
                            "cannot read the keys of the identity provider; trying again in \
                             {wait:?}"
                        );
                        wait
                    }
                };
                self.current.send_modify(|keys| {
                    keys.read = number;
                    keys.outdated = read.is_err();
                    if let Ok(set) = read {
                        keys.replace(set);
                    }
                });
                let wanted = async {
                    tokio::time::sleep(PAUSE).await;
                    provider.wanted.notified().await;
                };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = wanted => {}
                }
            }
        };
        tokio::select! {
            () = refresh => {}
            () = stopping.cancelled() => {}
        }
    }
}

impl Keys {
    fn replace(&mut self, set: JwkSet) {
        if self.set.as_ref() != Some(&set) {
            self.usable = usable(&set);
            self.set = Some(set);
            self.generation += 1;
        }
    }

    fn find(&self, id: Option<&str>) -> Result<Arc<SigningKey>, Refusal> {
        let found = match (id, &*self.usable) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        };
        found
            .cloned()
            .ok_or(match self.outdated || self.set.is_none() {
                true => Refusal::NoKeys,
                false => Refusal::UnknownKey,
            })
    }
}

/// Where a provider describes itself: OpenID Connect Discovery 1.0, section 4.
pub fn discovery_url(issuer: &str) -> String {
    let issuer = issuer.trim_end_matches('/');
    format!("{issuer}/.well-known/openid-configuration")
}

/// OpenID Connect Discovery 1.0, section 3.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Provider {
    async fn read(&self) -> anyhow::Result<JwkSet> {
        let discovery = discovery_url(&self.issuer);
        let found: Discovery = self.get(&discovery).await?;
        ensure!(
            found.issuer == self.issuer,
            "{discovery} is that of another issuer: {:?}",
            found.issuer
        );
        let encrypted = |url: &str| url.starts_with("https://");
        ensure!(
            encrypted(&found.jwks_uri) || !encrypted(&self.issuer),
            "its jwks_uri is not encrypted: {}",
            found.jwks_uri
        );
        let set: JwkSet = self.get(&found.jwks_uri).await?;
        ensure!(
            !usable(&set).is_empty(),
            "{} has no usable key",
            found.jwks_uri
        );
        Ok(set)
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        let response = self.client.get(url).send().await?.error_for_status()?;
        response.json().await.with_context(|| format!("read {url}"))
    }
}

/// The keys that verify signatures with an algorithm that is supported.
fn usable(set: &JwkSet) -> Vec<Arc<SigningKey>> {
    let signs = |key: &&Jwk| {
        matches!(
            key.common.public_key_use,
            None | Some(PublicKeyUse::Signature)
        )
    };
    let keys = set.keys.iter().filter(signs);
    let keys = keys.filter_map(|jwk| {
        Some(Arc::new(SigningKey {
            id: jwk.common.key_id.clone(),
            algorithm: algorithm(jwk)?,
            key: DecodingKey::from_jwk(jwk).ok()?,
        }))
    });
    keys.collect()
}

fn algorithm(key: &Jwk) -> Option<Algorithm> {
    let (algorithm, name) = match &key.algorithm {
        AlgorithmParameters::RSA(rsa) if rsa.n.len() >= BITS_2048 => {
            (Algorithm::RS256, KeyAlgorithm::RS256)
        }
        AlgorithmParameters::EllipticCurve(point)
            if point.curve == EllipticCurve::P256
                && [&point.x, &point.y]
                    .iter()
                    .all(|part| part.len() == BITS_256) =>
        {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(pair)
            if pair.curve == EllipticCurve::Ed25519 && pair.x.len() == BITS_256 =>
        {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    let declared = key.common.key_algorithm;
    declared
        .is_none_or(|declared| declared == name)
        .then_some(algorithm)
}
