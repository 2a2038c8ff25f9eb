//! The directory of a cache: finds, adds and removes entries, and keeps within its size. Several processes may share it.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::super::Span;
use super::entry::{self, Entry};
use crate::error::{Error, Result};
use crate::limits;

/// Open entries kept, and what they may take of the process's descriptors.
const OPEN_MAX: usize = 256;
const OPEN_SHARE: f64 = 0.25;
/// A file being written that is older than this belongs to a dead process.
const STALE: Duration = Duration::from_secs(3600);
const UNFINISHED: &str = ".new-";

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// An object that comes piece by piece, on its way into the cache. What does not become an entry is gone with it.
#[derive(Debug)]
pub struct Growing {
    file: File,
    path: PathBuf,
    sums: entry::Sums,
    bytes: u64,
}

impl Growing {
    /// The next bytes.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sums.add(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The head comes first, and is known last: the object is copied behind it, which the kernel does by itself.
    fn write_to(mut self, out: &mut File, key: &str) -> io::Result<()> {
        out.write_all(&std::mem::take(&mut self.sums).head(key))?;
        self.file.seek(SeekFrom::Start(0))?;
        io::copy(&mut self.file, out).map(drop)
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Entries as files of one directory, named by the hash of their key.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    bytes_max: u64,
    /// What the directory holds, roughly: other processes change it too.
    held: AtomicU64,
    next: AtomicU64,
    open: Mutex<HashMap<String, Arc<Entry>>>,
    open_max: usize,
}

impl Disk {
    /// Makes the directory, which only its owner can read, and looks what is in it.
    pub fn open(dir: PathBuf, bytes_max: u64) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(Error::io("create", dir.display()))?;
        let open_max = OPEN_MAX.min(limits::descriptors_for(OPEN_SHARE));
        let (held, next, open) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::default());
        let disk = Self { dir, bytes_max, held, next, open, open_max };
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
        if open.len() >= self.open_max {
            open.clear();
        }
        open.insert(key.to_owned(), entry.clone());
        Some(entry)
    }

    /// Adds an entry. It appears whole: the file is renamed to its name. No sync, since a torn file is told by its checksums.
    pub fn put(&self, key: &str, object: &[u8]) -> io::Result<()> {
        if !self.has_room_for(object.len() as u64) {
            return Err(io::Error::other("it is too large for the cache"));
        }
        let unfinished = self.unfinished();
        let written = create(&unfinished).and_then(|mut file| entry::write(&mut file, key, object));
        self.finish(key, &unfinished, written)
    }

    /// Begins an entry whose bytes come piece by piece.
    pub fn begin(&self) -> io::Result<Growing> {
        let path = self.unfinished();
        Ok(Growing { file: create(&path)?, path, sums: entry::Sums::default(), bytes: 0 })
    }

    /// Adds an entry that is whole now.
    pub fn end(&self, key: &str, growing: Growing) -> io::Result<()> {
        let unfinished = self.unfinished();
        let written = create(&unfinished).and_then(|mut file| growing.write_to(&mut file, key));
        self.finish(key, &unfinished, written)
    }

    /// True if an object of that length may be kept.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        bytes <= self.bytes_max / 2
    }

    fn unfinished(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{UNFINISHED}{}-{number}", std::process::id()))
    }

    fn finish(&self, key: &str, unfinished: &Path, written: io::Result<()>) -> io::Result<()> {
        let length = written.and_then(|()| fs::metadata(unfinished));
        let renamed = length.and_then(|meta| fs::rename(unfinished, self.path(key)).map(|()| meta.len()));
        match renamed {
            Ok(bytes) => {
                self.opened().remove(key);
                if self.held.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bytes_max {
                    self.shrink(self.bytes_max - self.bytes_max / 10);
                }
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(unfinished);
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
