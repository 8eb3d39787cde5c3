//! Temporary directories, in shared memory where there is enough of it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use uuid::Uuid;

use crate::Reaper;

/// What the clusters of a whole test run may need, in bytes.
const ROOM: u64 = 4 << 30;

/// A directory that goes away with us.
#[derive(Debug)]
pub struct TemporaryDirectory {
    path: PathBuf,
    /// Kept, because a reaper whom nobody keeps does its work at once.
    _reaper: Reaper,
}

impl TemporaryDirectory {
    /// Below `/dev/shm`, else (containers often have 64 MB there) below the system's directory for
    /// temporary files.
    pub fn new(reaper: &Reaper) -> anyhow::Result<Self> {
        let shared_memory = Path::new("/dev/shm");
        let roomy =
            rustix::fs::statvfs(shared_memory).is_ok_and(|fs| fs.f_bavail * fs.f_frsize >= ROOM);
        let parent = if roomy {
            shared_memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let path = parent.join(format!("sagacity-{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        reaper.remove_at_end(&path);
        Ok(Self {
            path,
            _reaper: reaper.clone(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // The reaper tries again at the end.
        let _later = std::fs::remove_dir_all(&self.path);
    }
}
