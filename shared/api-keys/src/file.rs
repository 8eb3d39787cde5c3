//! The file: JSON, which people and configuration management can read and review. It has no secret.

use std::{
    collections::HashSet,
    fs::{self, File, Metadata, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

use anyhow::{Context as _, ensure};
use contracts::CustomerId;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{KeyId, Scope, key};

/// Of a new file: its owner reads and writes it.
const MODE: u32 = 0o600;

/// A key, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The second part of the key.
    pub id: KeyId,
    /// Of the whole key, in hexadecimal.
    pub sha256: String,
    /// The customer whom it acts for.
    pub customer: CustomerId,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// What it is for.
    #[serde(default)]
    pub note: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    keys: Vec<Entry>,
}

/// The keys in a file.
///
/// # Errors
/// When it cannot be read, or is not valid.
pub fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is not valid", path.display()))
}

pub(crate) fn parse(text: &[u8]) -> anyhow::Result<Vec<Entry>> {
    let Content { keys } = serde_json::from_slice(text)?;
    let mut ids = HashSet::new();
    for Entry {
        id, sha256, scopes, ..
    } in &keys
    {
        ensure!(ids.insert(id), "the id {id} is there twice");
        ensure!(
            key::is_sha256(sha256),
            "sha256 of {id}: expected 64 hexadecimal digits"
        );
        ensure!(!scopes.is_empty(), "scopes of {id}: expected at least one");
    }
    Ok(keys)
}

/// Makes a key and adds it to a file, which may be a new one. The key is not kept: this is the only
/// time that it can be shown.
///
/// # Errors
/// When the file cannot be read or written, or is not valid.
pub fn create(
    path: &Path,
    customer: CustomerId,
    scopes: Vec<Scope>,
    expires_at: OffsetDateTime,
    note: String,
) -> anyhow::Result<(Entry, SecretString)> {
    let (id, secret) = key::generate();
    let entry = Entry {
        id,
        sha256: key::sha256(secret.expose_secret()),
        customer,
        scopes,
        expires_at,
        note,
    };
    let directory = directory(path);
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let _lock = lock(path)?;
    let mut keys = match path.try_exists() {
        Ok(false) => Vec::new(),
        _ => read(path)?,
    };
    keys.push(entry.clone());
    replace(path, keys)?;
    Ok((entry, secret))
}

/// Removes a key from a file.
///
/// # Errors
/// When the file cannot be read or written, is not valid, or has no such key.
pub fn revoke(path: &Path, id: KeyId) -> anyhow::Result<()> {
    let _lock = lock(path)?;
    let mut keys = read(path)?;
    let before = keys.len();
    keys.retain(|key| key.id != id);
    ensure!(keys.len() < before, "{} has no key {id}", path.display());
    replace(path, keys)
}

/// Two commands at the same time would each undo what the other does. The lock is on the directory,
/// because the file is replaced; it ends with the process.
fn lock(path: &Path) -> anyhow::Result<File> {
    let directory = directory(path);
    let lock = File::open(directory).and_then(|file| file.lock().map(|()| file));
    lock.with_context(|| format!("lock the directory {}", directory.display()))
}

fn directory(path: &Path) -> &Path {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    }
}

/// In one step: a reader sees the file before or after. The file keeps the owner and the mode
/// that an operator has given it: a process that could not read it would go on with the old keys.
fn replace(path: &Path, keys: Vec<Entry>) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(&Content { keys })?;
    text.push('\n');
    let before = fs::metadata(path).ok();
    let new = path.with_added_extension("new");
    let written = write(&new, &text, before.as_ref())
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| File::open(directory(path))?.sync_all());
    written.with_context(|| format!("write {}", path.display()))
}

fn write(path: &Path, text: &str, before: Option<&Metadata>) -> std::io::Result<()> {
    // A process that was killed may have left one.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).open(path)?;
    if let Some(before) = before {
        fchown(&file, Some(before.uid()), Some(before.gid()))?;
        file.set_permissions(before.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
