//! Where volumes are written to: a device or an image file. Opening one refuses whatever could destroy data that
//! nobody asked to destroy; writing never touches a byte past the volume's size on a device.

mod claim;
mod device;
mod file;
mod identity;
mod qcow2;
mod sink;
mod steps;
mod zero;

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{Advice, fadvise};

use crate::error::{Error, Result};
use crate::io::file::OpenFile;
use crate::limits::{IO_ALIGN, VOLUME_BYTES_MAX};

pub use file::padded;
pub use identity::Identity;
pub use qcow2::Qcow2Sink;
pub use sink::{BlockSink, checked_block_bytes};
pub use steps::{Checked, Locked, Probed, probe};

/// What a restore onto a device or file can be told when its space ends.
const FULL: &str =
    "free some space there and run the same command with --resume: it continues from what is written";

/// What is to be written, and over what.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetOptions {
    /// Bytes in the volume.
    pub size_bytes: u64,
    /// Overwrite what is there.
    pub force: bool,
    /// What is there is an earlier, interrupted attempt.
    pub resume: bool,
    /// What is there is an older or equal state of the volume (`--base`, `--compare`): it must exist, and is kept
    /// where it is not written.
    pub must_hold_data: bool,
    /// It is a device that is known to read as zeros, so it is not looked at, and zeros need not be written.
    pub zero: bool,
}

impl TargetOptions {
    /// Refuses a volume that is too large for any target.
    pub fn check_size(&self) -> Result<()> {
        if self.size_bytes > VOLUME_BYTES_MAX {
            let what = format!("a volume of {} bytes is too large", self.size_bytes);
            return Err(Error::Invalid { what });
        }
        Ok(())
    }

    /// True if existing contents are expected.
    fn accepts_contents(&self) -> bool {
        self.force || self.resume || self.must_hold_data
    }
}

/// What a target is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetKind {
    /// A block device.
    Device,
    /// A regular file.
    File,
}

/// An open target. [`Target::finish`] makes what was written durable; without it, nothing is.
#[derive(Debug)]
pub struct Target {
    file: Arc<OpenFile>,
    path: PathBuf,
    kind: TargetKind,
    size_bytes: u64,
    fresh: bool,
    /// Index into the ways of zeroing, see `zero.rs`: the first that has not been refused.
    zero_way: AtomicUsize,
    /// The kernel tells of lost writes once: whoever asks again is told that all is well.
    sync_failed: AtomicBool,
}

/// Opens `path` for a volume of `options.size_bytes`: all steps of [`probe`] one after another.
///
/// A file is created, or grown or cut to the volume's size rounded up to 4 KiB; a device must be large enough. Fails
/// with [`Error::TargetRefused`] when the target is in use, not empty, too small, or missing where it must hold data.
pub fn open(path: &Path, options: TargetOptions) -> Result<Target> {
    options.check_size()?;
    probe(path)?.lock(options.must_hold_data)?.check(options)?.prepare()
}

/// Makes the entry of a new file durable.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(Error::io("sync", parent.display()))
}

fn refused(target: &str, why: impl Into<String>) -> Error {
    Error::TargetRefused { target: target.into(), why: why.into() }
}

impl Target {
    fn new(file: OpenFile, path: PathBuf, kind: TargetKind, options: TargetOptions, fresh: bool) -> Self {
        Self {
            file: Arc::new(file),
            path,
            kind,
            size_bytes: options.size_bytes,
            fresh,
            zero_way: AtomicUsize::new(0),
            sync_failed: AtomicBool::new(false),
        }
    }

    /// The descriptor for writer threads, and for the reader threads of `--compare`. Its size is that of the volume
    /// on a device, so that neither reads nor writes go past it, and the volume's rounded up to 4 KiB in a file.
    pub fn file(&self) -> Arc<OpenFile> {
        self.file.clone()
    }

    /// What it is.
    pub fn kind(&self) -> TargetKind {
        self.kind
    }

    /// Bytes in the volume.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// True if everything reads as zeros already, so that zeros need not be written.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The end of the volume that writer threads cannot write, since it is less than 4 KiB and what follows is not
    /// ours: on a device only. It goes through [`Target::write_tail`]. In a file it is written padded, and
    /// [`Target::finish`] cuts.
    pub fn tail(&self) -> Option<Range<u64>> {
        let start = self.size_bytes / IO_ALIGN as u64 * IO_ALIGN as u64;
        (self.kind == TargetKind::Device && start < self.size_bytes).then_some(start..self.size_bytes)
    }

    /// Writes `bytes` at `offset`, neither of which need be aligned, and waits until they are on the medium. Through
    /// the page cache, which then forgets them: a later O_DIRECT read does not meet an old copy. For a few bytes, not
    /// for bulk.
    pub fn write_tail(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.size_bytes);
        if end.is_none() {
            let what =
                format!("write of {} bytes at {offset} of {}: past its end", bytes.len(), self.file.name);
            return Err(Error::Invalid { what });
        }
        let fail =
            || Error::io("write", format!("{} ({} bytes at offset {offset})", self.file.name, bytes.len()));
        // By descriptor, not by path: this is the same device or inode even if the path was replaced meanwhile.
        let this = format!("/proc/self/fd/{}", self.file.file.as_raw_fd());
        let buffered = File::options().write(true).open(this).map_err(fail())?;
        buffered.write_all_at(bytes, offset).map_err(fail())?;
        buffered.sync_data().map_err(fail())?;
        // Only advice. Pages are clean now, so it drops them; the kernel keeps the cache coherent in any case.
        let _ = fadvise(&buffered, offset, std::num::NonZeroU64::new(bytes.len() as u64), Advice::DontNeed);
        Ok(())
    }

    /// Makes `range` read as zeros, freeing its space where the target can. Ends need not be aligned; past the
    /// volume's end there is nothing to zero, and [`Error::Invalid`]. Durable with [`Target::finish`].
    pub fn zero_range(&self, range: Range<u64>) -> Result<()> {
        if range.end > self.size_bytes {
            let what = format!("zeroing of {range:?} of {}: past its end", self.file.name);
            return Err(Error::Invalid { what });
        }
        zero::zero_range(self, range).map_err(|e| self.explain(e))
    }

    /// Waits until all that was written is on the medium. Once this has failed it fails for ever.
    pub fn sync(&self) -> Result<()> {
        self.synced(File::sync_data)
    }

    /// Makes it durable that an emptied file is empty: before a journal says so, or a power cut could bring the old
    /// contents back, and a resumed restore would take them for the zeros that it need not write.
    pub fn settle(&self) -> Result<()> {
        self.file.file.sync_all().map_err(Error::io("sync", &self.file.name))
    }

    /// Makes the target durable: a file gets its exact size, and its directory entry is synced too.
    pub fn finish(&self) -> Result<()> {
        let file = &self.file.file;
        if self.kind == TargetKind::File {
            let sized = file.set_len(self.size_bytes);
            sized.map_err(|e| self.explain(Error::io("set the size of", &self.file.name)(e)))?;
        }
        self.synced(File::sync_all)?;
        if self.kind == TargetKind::File {
            sync_parent(&self.path)?;
        }
        Ok(())
    }

    fn synced(&self, sync: fn(&File) -> std::io::Result<()>) -> Result<()> {
        if self.sync_failed.load(Ordering::SeqCst) {
            let source = std::io::Error::other("an earlier sync of it has failed, and writes are lost");
            return Err(Error::io("sync", &self.file.name)(source));
        }
        sync(&self.file.file).map_err(|e| {
            self.sync_failed.store(true, Ordering::SeqCst);
            self.explain(Error::io("sync", &self.file.name)(e))
        })
    }

    /// A failure to write to this target, with what helps where it is full.
    pub fn explain(&self, error: Error) -> Error {
        full(error, FULL)
    }
}

/// Says of a target that is full what helps: not what helps a repository that is.
pub(crate) fn full(error: Error, advice: &'static str) -> Error {
    let is_full = error.is_full();
    match error {
        Error::Io { object, source, .. } if is_full => Error::TargetFull { object, source, advice },
        other => other,
    }
}
