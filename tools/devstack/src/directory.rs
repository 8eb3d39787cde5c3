//! Temporary directories, in shared memory where there is enough of it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use uuid::Uuid;

use crate::Reaper;

/// What the database clusters of a whole test run may need, in bytes.
const SPACE_NEEDED: u64 = 4 << 30;

/// A directory that is removed when this is dropped, or when the process ends.
#[derive(Debug)]
pub struct TemporaryDirectory {
    path: PathBuf,
    /// Dropping the last handle of a reaper triggers its cleanup immediately.
    _reaper: Reaper,
}

impl TemporaryDirectory {
    /// Below `/dev/shm`, which spares the disk, or below the system's temporary directory where
    /// `/dev/shm` is too small; containers often have 64 MB there.
    pub fn new(reaper: &Reaper) -> anyhow::Result<Self> {
        let shared_memory = Path::new("/dev/shm");
        let is_large_enough = rustix::fs::statvfs(shared_memory)
            .is_ok_and(|fs| fs.f_bavail * fs.f_frsize >= SPACE_NEEDED);
        let parent = if is_large_enough {
            shared_memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let path = parent.join(format!("sagacity-{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        reaper.remove_at_end(&path);
        Ok(Self {
            path,
            _reaper: reaper.clone(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // On failure the reaper tries again at the end of the process.
        let _retried_by_reaper = std::fs::remove_dir_all(&self.path);
    }
}
