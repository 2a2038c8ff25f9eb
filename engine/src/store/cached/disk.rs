//! The directory of a cache: finds, adds and removes entries, and keeps within its size. Several processes may share it.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::super::Span;
use super::entry::{self, Entry};
use crate::error::{Error, Result};

/// Open entries kept.
const OPEN_MAX: usize = 256;
/// A file being written that is older than this belongs to a dead process.
const STALE: Duration = Duration::from_secs(3600);
const UNFINISHED: &str = ".new-";

/// Entries as files of one directory, named by the hash of their key.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    bytes_max: u64,
    /// What the directory holds, roughly: other processes change it too.
    held: AtomicU64,
    next: AtomicU64,
    open: Mutex<HashMap<String, Arc<Entry>>>,
}

impl Disk {
    /// Makes the directory, which only its owner can read, and looks what is in it.
    pub fn open(dir: PathBuf, bytes_max: u64) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(Error::io("create", dir.display()))?;
        let disk =
            Self { dir, bytes_max, held: AtomicU64::new(0), next: AtomicU64::new(0), open: Mutex::default() };
        disk.shrink(bytes_max);
        Ok(disk)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(&blake3::hash(key.as_bytes()).to_hex()[..32])
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reads a span of an entry into `out` and returns the object's length. What is not right is removed.
    pub fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Option<u64> {
        let entry = self.entry(key)?;
        let object_bytes = entry.object_bytes();
        if entry.read(span.within(object_bytes), out).is_none() {
            tracing::info!(key, "an entry of the local cache is hurt: it is fetched again");
            self.remove(key);
            return None;
        }
        Some(object_bytes)
    }

    fn entry(&self, key: &str) -> Option<Arc<Entry>> {
        if let Some(entry) = self.opened().get(key) {
            return Some(entry.clone());
        }
        let path = self.path(key);
        let file = File::open(&path).ok()?;
        // The time of the last use, once a run; what was not used for longest goes first.
        if let Ok(writable) = OpenOptions::new().write(true).open(&path) {
            let _ = writable.set_modified(SystemTime::now());
        }
        let Some(entry) = Entry::open(file, key).map(Arc::new) else {
            self.remove(key);
            return None;
        };
        let mut open = self.opened();
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(key.to_owned(), entry.clone());
        Some(entry)
    }

    /// Adds an entry. It appears whole: the file is renamed to its name. No sync, since a torn file is told by its checksums.
    pub fn put(&self, key: &str, object: &[u8]) -> io::Result<()> {
        if object.len() as u64 > self.bytes_max / 2 {
            return Err(io::Error::other("it is too large for the cache"));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.dir.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| {
                entry::write(&mut file, key, object)?;
                file.metadata()
            });
        let renamed = written.and_then(|meta| fs::rename(&unfinished, self.path(key)).map(|()| meta.len()));
        match renamed {
            Ok(bytes) => {
                self.opened().remove(key);
                if self.held.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bytes_max {
                    self.shrink(self.bytes_max - self.bytes_max / 10);
                }
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(&unfinished);
                Err(error)
            }
        }
    }

    /// Forgets an entry.
    pub fn remove(&self, key: &str) {
        self.opened().remove(key);
        let _ = fs::remove_file(self.path(key));
    }

    /// Counts what is there, and removes the oldest until no more than `bytes` are left.
    fn shrink(&self, bytes: u64) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                if used.elapsed().is_ok_and(|age| age > STALE) {
                    let _ = fs::remove_file(entry.path());
                }
            } else {
                files.push((used, meta.len(), entry.path()));
            }
        }
        let mut held: u64 = files.iter().map(|(_, len, _)| len).sum();
        files.sort();
        for (_, len, path) in files {
            if held <= bytes {
                break;
            }
            // Whoever has it open goes on reading it.
            if fs::remove_file(path).is_ok() {
                held -= len;
            }
        }
        self.held.store(held, Ordering::Relaxed);
    }
}
