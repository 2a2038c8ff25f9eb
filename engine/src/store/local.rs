//! A store in a directory: a file per object. Objects appear by an exclusive rename of a complete, synced file, so a crash leaves
//! nothing that could be taken for one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::publish::{publish, sync_dir};
use super::tmp::TmpDir;
use super::{Body, Exclusive, Fill, PutOutcome, ReadAt, Span, Store};
use crate::error::{Error, Result};
use crate::io::file::{clear_direct, refuses_direct, set_direct};
use crate::io::{DurableWriter, IoEngine};
use crate::limits::IO_ALIGN;

/// Packs written at a time.
const WRITES_AT_A_TIME: usize = 4;
/// Bytes of a streamed object that go to the kernel at a time.
const STREAM_BYTES: usize = 1 << 20;
/// Shortest read that goes past the page cache.
const DIRECT_READ_BYTES_MIN: usize = 128 << 10;

/// Files that are deleted when a collection finds the disk, the quota or the inodes used up: room for its records.
pub(super) const RESERVE_DIR: &str = "reserve";
const RESERVE_FILES: u32 = 16;
const RESERVE_FILE_BYTES: u64 = 64 << 10;

/// Objects as files below a directory.
pub struct LocalStore {
    root: PathBuf,
    location: String,
    writer: Mutex<Option<(IoEngine, Arc<DurableWriter>)>>,
    tmp: Mutex<Option<Arc<TmpDir>>>,
    /// Directories that a power cut cannot take away.
    durable_dirs: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    /// Opens the directory; with `create`, makes it first.
    pub fn open(root: &Path, create: bool) -> Result<Self> {
        if create {
            make_durable_dir(root)?;
        }
        let location = root.display().to_string();
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(Error::NotARepository { location, why: "it is not a directory".into() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotARepository { location, why: "there is no such directory".into() });
            }
            Err(e) => return Err(Error::io("open", location)(e)),
        }
        Ok(Self {
            root: root.to_owned(),
            location,
            writer: Mutex::new(None),
            tmp: Mutex::new(None),
            durable_dirs: Mutex::default(),
        })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// This process's directory for files being written, made when it is first needed.
    fn tmp(&self) -> Result<Arc<TmpDir>> {
        let mut slot = self.tmp.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*slot {
            Some(tmp) => Ok(tmp.clone()),
            None => Ok(slot.insert(Arc::new(TmpDir::create(&self.root)?)).clone()),
        }
    }

    /// Writes and syncs the body under a temporary name.
    fn write_tmp(&self, path: &Path, body: Body<'_>) -> Result<()> {
        fail::fail_point!("local-write", |_| Err(Error::io("write", path.display())(
            io::Error::from_raw_os_error(libc::ENOSPC)
        )));
        match body {
            Body::Bytes(bytes) => {
                let mut file = File::create_new(path).map_err(Error::io("create", path.display()))?;
                file.write_all(bytes)
                    .and_then(|()| file.sync_all())
                    .map_err(Error::io("write", path.display()))
            }
            Body::Pooled { mut buf, len } => {
                let writer = self.writer();
                buf.lend(|aligned| writer.write_file(path, aligned, len))
                    .map_err(Error::io("write", path.display()))
            }
        }
    }

    /// The writer of packs; with pread until somebody chose.
    fn writer(&self) -> Arc<DurableWriter> {
        let mut slot = self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let new = || (IoEngine::Pread, Arc::new(DurableWriter::new(IoEngine::Pread, WRITES_AT_A_TIME)));
        slot.get_or_insert_with(new).1.clone()
    }

    /// Makes the directory of `path` if it is not there, and sees to it that its name, and those of the directories
    /// above, stay. That it is there does not say so:
    /// whoever made it may have been killed before he synced it, or be just about to.
    fn make_parent(&self, path: &Path) -> Result<()> {
        let Some(dir) = path.parent().filter(|dir| *dir != self.root) else { return Ok(()) };
        if self.durable_dirs().contains(dir) {
            return Ok(());
        }
        self.make_parent(dir)?;
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", dir.display())(e));
            }
            _ => {}
        }
        // All that is in the directory above by now is synced with it: 256 directories of packs cost one sync.
        let above = dir.parent().unwrap_or(&self.root);
        let beside = self.directories_in(above)?;
        sync_dir(above)?;
        self.durable_dirs().extend(beside);
        Ok(())
    }

    fn durable_dirs(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directories_in(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let fail = || Error::io("list", dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(fail())? {
            let entry = entry.map_err(fail())?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Publishes under `key`, if that is free, what `write` leaves under a temporary name.
    fn put(&self, key: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<PutOutcome> {
        let path = self.path(key);
        let dir = path.parent().unwrap_or(&self.root);
        if path.exists() {
            // The rename below decides; this saves the write in the common case.
            sync_dir(dir)?;
            return Ok(PutOutcome::Exists);
        }
        let tmp = self.tmp()?;
        let tmp_path = tmp.next_path();
        let stored = write(&tmp_path).and_then(|()| self.make_parent(&path)).and_then(|()| {
            fail::fail_point!("local-before-rename");
            publish(&tmp_path, &path).map_err(Error::io("publish", path.display()))
        });
        match stored {
            Ok(true) => {
                fail::fail_point!("local-after-rename");
                sync_dir(dir)?;
                Ok(PutOutcome::Created)
            }
            Ok(false) => {
                let _ = fs::remove_file(&tmp_path);
                // whoever put it may not have come to that
                sync_dir(dir)?;
                Ok(PutOutcome::Exists)
            }
            Err(error) => {
                let _ = fs::remove_file(&tmp_path); // the space matters when the disk is full
                Err(error)
            }
        }
    }
}

/// A file held open.
struct OpenObject {
    file: File,
    path: PathBuf,
}

impl ReadAt for OpenObject {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            let at = offset + filled as u64;
            match self.file.read_at(&mut out[filled..], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Error::io("read", format_args!("{} at byte {at}", self.path.display()))(e));
                }
            }
        }
        Ok(filled)
    }
}

impl Store for LocalStore {
    fn location(&self) -> &str {
        &self.location
    }

    /// The directory for files being written is made first: that finds out what the filesystem can do.
    fn assure_exclusive(&self, _key: &str, _bytes: &[u8], _again: bool) -> Result<Exclusive> {
        self.tmp().map(|_| Exclusive::Holds)
    }

    fn set_io_engine(&self, engine: IoEngine) {
        let mut slot = self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if slot.as_ref().is_none_or(|(current, _)| *current != engine) {
            *slot = Some((engine, Arc::new(DurableWriter::new(engine, WRITES_AT_A_TIME))));
        }
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.put(key, |path| self.write_tmp(path, body))
    }

    fn put_streamed(&self, key: &str, fill: &mut Fill<'_>) -> Result<PutOutcome> {
        self.put(key, |path| {
            let file = File::create_new(path).map_err(Error::io("create", path.display()))?;
            let mut buffered = io::BufWriter::with_capacity(STREAM_BYTES, file);
            fill(&mut buffered)?;
            buffered
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|file| file.sync_all())
                .map_err(Error::io("write", path.display()))
        })
    }

    fn open_object(&self, key: &str) -> Result<Option<Box<dyn ReadAt>>> {
        let path = self.path(key);
        Ok(open_object(&path)?.map(|file| Box::new(OpenObject { file, path }) as Box<dyn ReadAt>))
    }

    fn get_into(&self, key: &str, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let path = self.path(key);
        let Some(file) = open_object(&path)? else { return Ok(None) };
        // Long aligned reads go past the page cache: it costs a copy, and reads ahead in short pieces.
        let aligned = (offset | out.len() as u64 | out.as_ptr() as u64).is_multiple_of(IO_ALIGN as u64);
        let mut direct = aligned && out.len() >= DIRECT_READ_BYTES_MIN && set_direct(&file);
        let mut filled = 0;
        while filled < out.len() {
            let at = offset + filled as u64;
            match file.read_at(&mut out[filled..], at) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    if direct && !filled.is_multiple_of(IO_ALIGN) {
                        break; // the end of the object: elsewhere transfers end at a border
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if direct && refuses_direct(&e) => {
                    // A filesystem that takes the flag and refuses the transfer.
                    clear_direct(&file).map_err(Error::io("read", path.display()))?;
                    direct = false;
                }
                Err(e) => return Err(Error::io("read", format_args!("{} at byte {at}", path.display()))(e)),
            }
        }
        Ok(Some(filled))
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        out.clear();
        let path = self.path(key);
        let Some(file) = open_object(&path)? else { return Ok(None) };
        let object_bytes = file.metadata().map_err(Error::io("read", path.display()))?.len();
        let (offset, len) = match span {
            Span::All => (0, object_bytes),
            Span::At { offset, len } => (offset, object_bytes.saturating_sub(offset).min(len as u64)),
            Span::Last(len) => {
                let len = object_bytes.min(len as u64);
                (object_bytes - len, len)
            }
        };
        out.resize(len as usize, 0);
        file.read_exact_at(out, offset)
            .map_err(Error::io("read", format_args!("{} at byte {offset}", path.display())))?;
        Ok(Some(object_bytes))
    }

    fn keep_reserve(&self) {
        let dir = self.root.join(RESERVE_DIR);
        let keep = || -> io::Result<()> {
            fs::create_dir_all(&dir)?;
            for number in 0..RESERVE_FILES {
                let file = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(dir.join(format!("{number:02}")))?;
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_FILE_BYTES)?;
            }
            Ok(())
        };
        if let Err(error) = keep() {
            tracing::debug!("{}: no room is kept for collections of a full disk: {error}", dir.display());
        }
    }

    fn release_reserve(&self) -> bool {
        let Ok(entries) = fs::read_dir(self.root.join(RESERVE_DIR)) else { return false };
        entries.flatten().filter(|entry| fs::remove_file(entry.path()).is_ok()).count() > 0
    }

    fn modified_ms(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key);
        let modified = match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(modified) => modified,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("look at", path.display())(e)),
        };
        let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Some(since.as_millis() as u64))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        let mut dirs = vec![prefix.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned()];
        while let Some(dir) = dirs.pop() {
            let path = self.path(&dir);
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("list", path.display())(e)),
            };
            for entry in entries {
                let entry = entry.map_err(Error::io("list", path.display()))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let key = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                let meta = match entry.metadata() {
                    Ok(meta) => meta,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // deleted meanwhile
                    Err(e) => return Err(Error::io("list", path.display())(e)),
                };
                if meta.is_dir() {
                    dirs.push(key);
                } else if key.starts_with(prefix) {
                    each(&key, meta.len());
                }
            }
        }
        Ok(())
    }

    fn settle(&self, prefix: &str) -> Result<()> {
        let dir = self.path(prefix.trim_end_matches('/'));
        if !dir.is_dir() {
            return Ok(());
        }
        self.make_parent(&dir.join("any"))?;
        sync_dir(&dir)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("delete", path.display())(e)),
        }
    }
}

fn open_object(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", path.display())(e)),
    }
}

/// Makes a directory and those above it that are missing, and syncs what names them.
fn make_durable_dir(dir: &Path) -> Result<()> {
    let above = dir.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
    let existed = dir.is_dir();
    if let (Some(above), false) = (above, existed) {
        make_durable_dir(above)?;
        match fs::create_dir(dir) {
            Err(e) if !dir.is_dir() => return Err(Error::io("create", dir.display())(e)),
            _ => {}
        }
    }
    match above.map(sync_dir) {
        Some(Err(error)) if !existed => Err(error),
        // It may have been made a moment ago, so its name is synced too. Above a mount point, or in a directory that
        // is not for us to read, that may be refused.
        Some(Err(error)) => {
            tracing::debug!("{error}");
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms_with_either_engine() {
        for io_engine in [IoEngine::Uring, IoEngine::Pread] {
            let dir = tempfile::tempdir_in("/var/tmp").unwrap();
            let store = LocalStore::open(dir.path(), true).unwrap();
            store.set_io_engine(io_engine);
            crate::store::conformance::check(&store);
            drop(store);
            assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0, "no temporary file is left");
        }
    }

    #[test]
    fn a_place_that_is_not_there_is_no_repository() {
        let error = LocalStore::open(Path::new("/nonexistent/x"), false).err().unwrap();
        assert!(matches!(error, Error::NotARepository { .. }));
    }
}
