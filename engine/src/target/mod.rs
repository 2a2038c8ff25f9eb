//! Where volumes are written to: a device or an image file. Opening one refuses whatever could destroy data that
//! nobody asked to destroy; writing never touches a byte past the volume's size on a device.

mod device;
mod file;
mod qcow2;
mod sink;
mod zero;

use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use rustix::fs::{Advice, fadvise};

use crate::error::{Error, Result};
use crate::io::file::OpenFile;
use crate::limits::{IO_ALIGN, VOLUME_BYTES_MAX};

pub use qcow2::Qcow2Sink;
pub use sink::{BlockSink, checked_block_bytes};

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
}

/// Opens `path` for a volume of `options.size_bytes`, after checking that this destroys nothing unasked.
///
/// A file is created, or grown or cut to the volume's size rounded up to 4 KiB; a device must be large enough. Fails
/// with [`Error::TargetRefused`] when the target is in use, not empty, too small, or missing where it must hold data.
pub fn open(path: &Path, options: TargetOptions) -> Result<Target> {
    let name = path.display().to_string();
    if options.size_bytes > VOLUME_BYTES_MAX {
        return Err(Error::Invalid {
            what: format!("a volume of {} bytes is too large", options.size_bytes),
        });
    }
    let kind = match fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && options.must_hold_data => {
            return Err(refused(
                &name,
                "it does not exist, so it holds no state of the volume to start from",
            ));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return file::create(path, name, options),
        Err(e) => return Err(Error::io("open", &name)(e)),
    };
    if kind.is_block_device() {
        device::open(path, name, options)
    } else if kind.is_file() {
        file::open(path, name, options)
    } else {
        Err(refused(&name, "it is neither a block device nor a regular file"))
    }
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
    fn new(file: OpenFile, path: &Path, kind: TargetKind, options: TargetOptions, fresh: bool) -> Self {
        Self {
            file: Arc::new(file),
            path: path.into(),
            kind,
            size_bytes: options.size_bytes,
            fresh,
            zero_way: AtomicUsize::new(0),
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
        zero::zero_range(self, range)
    }

    /// Makes the target durable: a file gets its exact size, and its directory entry is synced too.
    pub fn finish(&self) -> Result<()> {
        let file = &self.file.file;
        let fail = || Error::io("sync", &self.file.name);
        if self.kind == TargetKind::File {
            file.set_len(self.size_bytes).map_err(Error::io("set the size of", &self.file.name))?;
        }
        file.sync_all().map_err(fail())?;
        if self.kind == TargetKind::File {
            sync_parent(&self.path)?;
        }
        Ok(())
    }
}
