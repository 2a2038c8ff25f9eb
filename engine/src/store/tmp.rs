//! Temporary files of a local store. Each writing process has a directory of its own under `tmp/` with a locked file in it; a directory whose
//! lock is free belongs to a dead process and is removed by the next writer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};
use crate::id::ObjectId;

const LOCK: &str = "lock";

/// This process's directory for files being written.
#[derive(Debug)]
pub struct TmpDir {
    path: PathBuf,
    next: AtomicU64,
    _lock: File,
}

impl TmpDir {
    /// Makes the directory, and removes those of dead processes.
    pub fn create(root: &Path) -> Result<Self> {
        let parent = root.join("tmp");
        fs::create_dir_all(&parent).map_err(Error::io("create", parent.display()))?;
        sweep(&parent);
        loop {
            let path = parent.join(ObjectId::random()?.to_string());
            fs::create_dir(&path).map_err(Error::io("create", path.display()))?;
            let lock_path = path.join(LOCK);
            let lock = File::create(&lock_path).map_err(Error::io("create", lock_path.display()))?;
            let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            // A sweep of another process may have come between creating and locking: then the file is gone.
            if locked && lock_path.exists() {
                return Ok(Self { path, next: AtomicU64::new(0), _lock: lock });
            }
        }
    }

    /// A name for the next file.
    pub fn next_path(&self) -> PathBuf {
        self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        // Best effort: what stays is swept by the next writer, since the lock is free from now on.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the directories of dead processes. Failures are not the caller's concern: nothing ever reads these files.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let dead = match File::open(path.join(LOCK)) {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // Without a lock file it is either just being made or half removed; only an old one is surely dead.
            Err(_) => older_than_an_hour(&path),
        };
        if dead {
            tracing::debug!(path = %path.display(), "removing temporary files of a dead process");
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

fn older_than_an_hour(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age.as_secs() > 3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_kept_and_the_dead_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let living = TmpDir::create(root.path()).unwrap();
        fs::write(living.next_path(), b"x").unwrap();
        let dead = root.path().join("tmp/dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), b"").unwrap();
        fs::write(dead.join("0"), b"y").unwrap();
        let other = TmpDir::create(root.path()).unwrap();
        assert!(living.path.join("0").exists() && !dead.exists());
        drop((living, other));
        assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    }
}
