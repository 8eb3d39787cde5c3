//! Which keys are valid now.

#[cfg(test)]
mod tests;

use std::{collections::HashMap, ops::Deref, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use parking_lot::RwLock;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    Entry, KeyId,
    file::{self, parse},
    key,
};

/// How often the file is read again. Notifications of the file system do not show reliably that
/// Kubernetes has replaced a mounted file: it changes a symbolic link.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// A key of the file.
#[derive(Debug)]
pub struct ApiKey {
    entry: Entry,
    /// Cancelled when the file does not have the key any more, or has changed it. What goes on for
    /// longer than a request ends then.
    pub revoked: CancellationToken,
}

impl Deref for ApiKey {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// Why a key is not valid, for the log.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The checksum shows it.
    #[error("it is no whole API key: something is mistyped or missing")]
    Mistyped,
    /// Its id is not in the file.
    #[error("the file of API keys has no key {0}: it is revoked, or of another installation")]
    Unknown(KeyId),
    /// Its id is in the file, with another secret.
    #[error("it has the id {0}, and not the secret of that API key")]
    WrongSecret(KeyId),
    /// It has ended.
    #[error("the API key {0} has expired")]
    Expired(KeyId),
}

/// The keys of a file; cheap to clone.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    path: Arc<Path>,
    current: Arc<RwLock<HashMap<KeyId, Arc<ApiKey>>>>,
}

impl ApiKeys {
    /// Reads the file; [`Self::run`] reads it again.
    ///
    /// # Errors
    /// When it cannot be read, or is not valid.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let keys = Self {
            path: path.into(),
            current: Arc::default(),
        };
        keys.replace(file::read(path)?);
        Ok(keys)
    }

    /// The key, if it is valid now.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify(&self, text: &str) -> Result<Arc<ApiKey>, Refusal> {
        let id = key::id(text).ok_or(Refusal::Mistyped)?;
        let key = self.current.read().get(&id).cloned();
        let key = key.ok_or(Refusal::Unknown(id))?;
        let shown = key::sha256(text);
        // In constant time: how long it takes says nothing about the hash.
        if !bool::from(shown.as_bytes().ct_eq(key.sha256.as_bytes())) {
            return Err(Refusal::WrongSecret(id));
        }
        match key.expires_at > OffsetDateTime::now_utc() {
            true => Ok(key),
            false => Err(Refusal::Expired(id)),
        }
    }

    /// Reads the file again and again, until `stopping`. While it is not valid, the keys that were
    /// read last stay in force.
    ///
    /// # Errors
    /// Never: it has the form of a task.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let mut reported = None;
        while stopping
            .run_until_cancelled(tokio::time::sleep(POLL_INTERVAL))
            .await
            .is_some()
        {
            let error = self.read_again().await.err();
            let error = error.map(|error| format!("{error:#}"));
            // Once, and not at every turn.
            if reported != error {
                match &error {
                    Some(error) => tracing::error!(
                        error,
                        "cannot read the API keys; those that were read last stay in force, and \
                         revoked ones with them, until the file is valid"
                    ),
                    None => tracing::info!("the file of API keys is valid again"),
                }
                reported = error;
            }
        }
        Ok(())
    }

    async fn read_again(&self) -> anyhow::Result<()> {
        let text = tokio::fs::read(&self.path).await;
        let text = text.with_context(|| format!("read {}", self.path.display()))?;
        let entries =
            parse(&text).with_context(|| format!("{} is not valid", self.path.display()))?;
        self.replace(entries);
        Ok(())
    }

    /// A key that has not changed keeps its [`ApiKey`], so that the streams it opened go on.
    fn replace(&self, entries: Vec<Entry>) {
        let mut current = self.current.write();
        let before = std::mem::take(&mut *current);
        for entry in entries {
            let same = before.get(&entry.id).filter(|key| key.entry == entry);
            let key = same
                .cloned()
                .unwrap_or_else(|| Arc::new(ApiKey::new(entry)));
            current.insert(key.id, key);
        }
        for (id, key) in before {
            let stays = |now: &Arc<ApiKey>| Arc::ptr_eq(now, &key);
            if !current.get(&id).is_some_and(stays) {
                tracing::info!(
                    api_key.id = %id,
                    "an API key was revoked or changed; live streams that it has opened end"
                );
                key.revoked.cancel();
            }
        }
    }
}

impl ApiKey {
    fn new(entry: Entry) -> Self {
        Self {
            entry,
            revoked: CancellationToken::new(),
        }
    }
}
