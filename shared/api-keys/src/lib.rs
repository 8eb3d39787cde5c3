//! API keys for machines, kept in a file: of each an id, a hash, the customer whom it acts for, its
//! scopes and its end. `sagacity api-key` writes the file. The gateway and the admin listeners of
//! the services read it, and read it again when it changes.
//!
//! Reading order: `key` (what a key looks like), `file`, `keys` (which key is valid), `scope`,
//! `settings`.
#![warn(missing_docs, unreachable_pub)]

mod file;
mod key;
mod keys;
mod scope;
mod settings;

pub use file::{Entry, create, read, revoke};
pub use key::{KeyId, PREFIX};
pub use keys::{ApiKey, ApiKeys, POLL_INTERVAL, Refusal};
pub use scope::{Scope, Scopes};
pub use settings::ApiKeySettings;
