//! The directory in which a private system keeps its data. One system at a time uses it.

use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    path::Path,
};

use anyhow::{Context as _, bail, ensure};

use crate::postgres;

/// Held by the system that uses the directory.
const LOCK: &str = "lock";
/// What a system writes first: a directory that has one of these was made by a system.
const MARKS: [&str; 2] = [LOCK, "nats.conf"];

/// Takes the directory for as long as the file is open; with `fresh` without what earlier systems
/// have kept in it.
///
/// # Errors
/// When another system uses the directory, or `fresh` would remove what no system has written.
/// Nothing is removed then.
pub fn claim(state: &Path, fresh: bool) -> anyhow::Result<File> {
    let shown = state.display();
    std::fs::create_dir_all(state).with_context(|| format!("create {shown}"))?;
    let is_empty = std::fs::read_dir(state)?.next().is_none();
    ensure!(
        !fresh || is_empty || MARKS.iter().any(|mark| state.join(mark).exists()),
        "{shown} has other files: nothing is removed, choose another directory with --state"
    );
    let lock = File::create(state.join(LOCK)).with_context(|| format!("create {shown}/{LOCK}"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!(
                "a system that is running uses {shown}: stop it, or choose another directory with \
                 --state"
            )
        }
        Err(TryLockError::Error(error)) => return Err(error).context("lock the directory"),
    }
    if fresh {
        wipe(state)?;
    }
    Ok(lock)
}

/// Removes everything that a system keeps for `state`, but for the lock.
fn wipe(state: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(state)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        let path = entry.path();
        let removed = match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    let cluster = postgres::cluster_directory(state)?;
    match std::fs::remove_dir_all(&cluster) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", cluster.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reaper, TemporaryDirectory};

    #[test]
    fn a_directory_serves_one_system_and_is_emptied_only_if_a_system_has_made_it() {
        let directory = TemporaryDirectory::new(&Reaper::new().unwrap()).unwrap();
        let (state, other) = (directory.path().join("state"), directory.path());
        let data = state.join("data");
        let first = claim(&state, false).unwrap();
        std::fs::write(&data, "kept").unwrap();
        let refused = claim(&state, true).unwrap_err().to_string();
        assert!(refused.contains("a system that is running"), "{refused}");
        assert!(data.exists());
        drop(first);
        drop(claim(&state, true).unwrap());
        assert!(!data.exists());

        let refused = claim(other, true).unwrap_err().to_string();
        assert!(refused.contains("has other files"), "{refused}");
        assert!(state.exists());
    }
}
