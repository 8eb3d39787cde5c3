//! The directory in which a private system keeps its data. One system at a time uses it.

use std::{
    fs::{File, TryLockError},
    io::{ErrorKind, Read as _, Seek as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use crate::{Endpoints, postgres};

/// Held by the system that uses the directory; a system writes it first. It contains the kind of
/// that system.
const LOCK: &str = "sagacity.lock";
/// Longer than a command looks at the lock.
const LOOK: Duration = Duration::from_secs(1);

/// Takes the directory for as long as the file is open; with `fresh` without what earlier systems
/// have kept in it. `kind` names what the data belongs to: the ledger of the provider fits only the
/// databases that it was written with.
///
/// # Errors
/// When another system uses the directory, when it has files that no system has written, and,
/// without `fresh`, when it has those of a system of another kind. Nothing is removed then.
pub fn claim(state: &Path, fresh: bool, kind: &str) -> anyhow::Result<File> {
    let shown = state.display();
    std::fs::create_dir_all(state).with_context(|| format!("create {shown}"))?;
    let path = state.join(LOCK);
    let is_empty = std::fs::read_dir(state)?.next().is_none();
    ensure!(
        is_empty || path.exists(),
        "{shown} has files that are not of a system: remove it yourself if you do not need them, \
         or choose another directory with --state"
    );
    let mut options = File::options();
    let lock = options.read(true).write(true).create(true).truncate(false);
    let mut lock = lock
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            // A command that looks whether a system is running holds the lock for a moment.
            Err(TryLockError::WouldBlock) if began.elapsed() < LOOK => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => bail!(
                "a system that is running uses {shown}: stop it, or choose another directory with \
                 --state"
            ),
            Err(TryLockError::Error(error)) => return Err(error).context("lock the directory"),
        }
    }
    if fresh {
        wipe(state)?;
    } else {
        let mut before = String::new();
        lock.read_to_string(&mut before)?;
        ensure!(
            before.is_empty() || before == kind,
            "{shown} has the data of {before}, and this is {kind}: choose another directory with \
             --state, or remove the data with --fresh, which a system with its own servers takes"
        );
        // Of a system that was killed.
        Endpoints::remove(state);
    }
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(kind.as_bytes())?;
    Ok(lock)
}

/// Whether a running system has the directory.
pub(crate) fn is_claimed(state: &Path) -> bool {
    let lock = File::open(state.join(LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
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
        let first = claim(&state, false, "one kind").unwrap();
        assert!(is_claimed(&state));
        std::fs::write(&data, "kept").unwrap();
        let refused = claim(&state, true, "one kind").unwrap_err().to_string();
        assert!(refused.contains("a system that is running"), "{refused}");
        drop(first);
        // A process that another test starts at this moment may have the file open until it runs.
        let began = Instant::now();
        while is_claimed(&state) {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "it stays claimed"
            );
        }
        drop(claim(&state, false, "one kind").unwrap());
        let refused = claim(&state, false, "another").unwrap_err().to_string();
        assert!(refused.contains("has the data of one kind"), "{refused}");
        assert!(data.exists());
        drop(claim(&state, true, "another").unwrap());
        assert!(!data.exists());
        drop(claim(&state, false, "another").unwrap());

        for fresh in [false, true] {
            let refused = claim(other, fresh, "one kind").unwrap_err().to_string();
            assert!(refused.contains("not of a system"), "{refused}");
        }
        assert!(state.exists());
    }
}
