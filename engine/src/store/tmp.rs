//! Temporary files of a local store. Each writing process has a directory of its own under `tmp/` with a locked file in it; a directory whose
//! lock is free belongs to a dead process and is removed by the next writer. Where the filesystem has no locks, there
//! is no such file, and a directory in which nothing was written for a day counts as dead.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::publish;
use crate::error::{Error, Result};
use crate::id::ObjectId;

const LOCK: &str = "lock";
/// A sweep of another process may take a fresh directory away; so often in a row it is something else.
const TRIES: u32 = 16;
/// How long a writer sweeps before it writes: what is left is the next one's.
const SWEEP: Duration = Duration::from_secs(2);
/// When a directory without a lock file is surely dead. One with a lock has its file before anything else, so there an
/// hour would do; without locks a living one may be quiet for long.
const DEAD_AFTER: Duration = Duration::from_secs(24 * 3600);

/// This process's directory for files being written.
#[derive(Debug)]
pub struct TmpDir {
    path: PathBuf,
    next: AtomicU64,
    /// `None` where the filesystem has no locks.
    _lock: Option<File>,
}

/// What came of an attempt to lock.
#[derive(Debug)]
enum Lock {
    /// It is this process's.
    Held,
    /// Another process has it.
    Taken,
    /// There is no such thing on this filesystem.
    None(Errno),
}

fn lock(file: &File) -> Lock {
    loop {
        return match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Lock::Held,
            Err(Errno::WOULDBLOCK) => Lock::Taken,
            Err(Errno::INTR) => continue,
            Err(error) => Lock::None(error),
        };
    }
}

impl TmpDir {
    /// Makes the directory, removes those of dead processes, and finds out if the filesystem can hold a repository.
    pub fn create(root: &Path) -> Result<Self> {
        let parent = root.join("tmp");
        fs::create_dir_all(&parent).map_err(Error::io("create", parent.display()))?;
        sweep(&parent, SWEEP).tell(&parent);
        let made = Self::make(&parent)?;
        if let Err(error) = publish::probe(root, &made.path) {
            drop(made);
            let _ = fs::remove_dir(&parent); // only if nobody else has something in it
            return Err(error);
        }
        Ok(made)
    }

    fn make(parent: &Path) -> Result<Self> {
        for _ in 0..TRIES {
            let path = parent.join(ObjectId::random()?.to_string());
            fs::create_dir(&path).map_err(Error::io("create", path.display()))?;
            let lock_path = path.join(LOCK);
            let file = match File::create(&lock_path) {
                Ok(file) => file,
                Err(e) => {
                    let _ = fs::remove_dir(&path);
                    return Err(Error::io("create", lock_path.display())(e));
                }
            };
            match lock(&file) {
                // A sweep of another process may have come between creating and locking: then the file is gone.
                Lock::Held if lock_path.exists() => {
                    return Ok(Self { path, next: AtomicU64::new(0), _lock: Some(file) });
                }
                Lock::Held | Lock::Taken => {
                    let _ = fs::remove_dir_all(&path);
                }
                Lock::None(error) => {
                    tracing::info!(
                        "{} has no locks ({error}): temporary files of dead processes are removed after a day",
                        parent.display()
                    );
                    // A file without a lock on it would look like a dead process's where others can lock.
                    let _ = fs::remove_file(&lock_path);
                    return Ok(Self { path, next: AtomicU64::new(0), _lock: None });
                }
            }
        }
        let why = io::Error::other("another process removes it as soon as it is made");
        Err(Error::io("lock a directory in", parent.display())(why))
    }

    /// A name for the next file.
    pub fn next_path(&self) -> PathBuf {
        if self._lock.is_none() && !self.path.is_dir() {
            // Taken for dead after a quiet day. If this fails, so does the caller, who says why.
            let _ = fs::create_dir(&self.path);
        }
        self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        // Best effort: what stays is swept by a later writer.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What a sweep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Swept {
    removed: u64,
    /// There was no time for the rest.
    unfinished: bool,
}

impl Swept {
    fn tell(self, parent: &Path) {
        let place = parent.display();
        if self.unfinished {
            tracing::warn!(
                "{place} is full of temporary files of dead processes: {} were removed, later runs remove the \
                 rest, and so does `rm -r {place}` while nothing writes to the repository",
                self.removed
            );
        } else if self.removed > 0 {
            tracing::info!("{place}: removed {} temporary directories of dead processes", self.removed);
        }
    }
}

/// Removes the directories of dead processes, for at most `time`. Failures are not the caller's concern: nothing ever
/// reads these files.
fn sweep(parent: &Path, time: Duration) -> Swept {
    let end = Instant::now() + time;
    let mut swept = Swept::default();
    let Ok(entries) = fs::read_dir(parent) else { return swept };
    for path in entries.flatten().map(|entry| entry.path()) {
        if Instant::now() >= end {
            swept.unfinished = true;
            break;
        }
        if !is_dead(&path) {
            continue;
        }
        tracing::debug!(path = %path.display(), "removing temporary files of a dead process");
        if !remove(&path, end) {
            swept.unfinished = true;
            break;
        }
        swept.removed += 1;
    }
    swept
}

fn is_dead(path: &Path) -> bool {
    match File::open(path.join(LOCK)).map(|file| lock(&file)) {
        Ok(Lock::Held) => true,
        Ok(Lock::Taken) => false,
        // Without locks, or a lock file that is just being made or half removed: only an old one is surely dead.
        Ok(Lock::None(_)) | Err(_) => is_old(path),
    }
}

/// True if neither the directory nor anything in it was written for a day.
fn is_old(path: &Path) -> bool {
    let old = |path: &Path| {
        let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok();
        modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > DEAD_AFTER)
    };
    old(path) && fs::read_dir(path).map_or(true, |mut inside| inside.all(|e| e.is_ok_and(|e| old(&e.path()))))
}

/// Removes a file, or a directory and what is in it; false if there was no time for all.
fn remove(path: &Path, end: Instant) -> bool {
    let Ok(inside) = fs::read_dir(path) else {
        let _ = fs::remove_file(path);
        return true;
    };
    for entry in inside.flatten() {
        if Instant::now() >= end {
            return false;
        }
        if fs::remove_file(entry.path()).is_err() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let _ = fs::remove_dir(path);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead(root: &Path, name: &str) -> PathBuf {
        let dead = root.join("tmp").join(name);
        fs::create_dir_all(&dead).unwrap();
        fs::write(dead.join(LOCK), b"").unwrap();
        fs::write(dead.join("0"), b"y").unwrap();
        dead
    }

    fn age(path: &Path) {
        let then = std::time::SystemTime::now() - DEAD_AFTER * 2;
        File::open(path).unwrap().set_modified(then).unwrap();
    }

    #[test]
    fn the_living_are_kept_and_the_dead_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let living = TmpDir::create(root.path()).unwrap();
        fs::write(living.next_path(), b"x").unwrap();
        let dead = dead(root.path(), "dead");
        let other = TmpDir::create(root.path()).unwrap();
        assert!(living.path.join("0").exists() && !dead.exists());
        drop((living, other));
        assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_without_a_lock_dies_of_age_alone() {
        let root = tempfile::tempdir().unwrap();
        let quiet = dead(root.path(), "quiet");
        fs::remove_file(quiet.join(LOCK)).unwrap();
        age(&quiet);
        assert_eq!(sweep(&root.path().join("tmp"), SWEEP), Swept::default(), "a file in it is new");
        age(&quiet.join("0"));
        assert_eq!(sweep(&root.path().join("tmp"), SWEEP), Swept { removed: 1, unfinished: false });
        assert!(!quiet.exists());
    }

    #[test]
    fn a_sweep_ends_when_its_time_is_over() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..3 {
            dead(root.path(), &n.to_string());
        }
        let parent = root.path().join("tmp");
        assert_eq!(sweep(&parent, Duration::ZERO), Swept { removed: 0, unfinished: true });
        assert_eq!(sweep(&parent, SWEEP), Swept { removed: 3, unfinished: false });
    }

    #[test]
    fn a_directory_that_was_taken_for_dead_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().join("tmp");
        fs::create_dir(&parent).unwrap();
        let unlocked = TmpDir { path: parent.join("x"), next: AtomicU64::new(0), _lock: None };
        fs::write(unlocked.next_path(), b"x").unwrap();
    }
}
