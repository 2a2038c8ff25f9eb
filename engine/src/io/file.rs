//! An open volume: what reader and writer threads need to know of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::aligned::AlignedBuf;
use crate::limits::IO_ALIGN;

/// A file or block device that readers or writers share through an `Arc`.
#[derive(Debug)]
pub struct OpenFile {
    /// The descriptor. Only positioned calls are made on it, so its file offset means nothing.
    pub file: File,
    /// Path for messages.
    pub name: String,
    /// Bytes it holds, as found when it was opened. Reads end here; less than this is an error.
    pub size_bytes: u64,
    /// Opened with O_DIRECT.
    pub direct: bool,
}

/// Opens `path` with O_DIRECT on top of `options`, or without it where the filesystem refuses it (EINVAL). The flag
/// says which. Creating options must not be exclusive: some filesystems create the file before they refuse.
pub(crate) fn open_direct(options: &OpenOptions, path: &Path) -> io::Result<(File, bool)> {
    let mut direct = options.clone();
    direct.custom_flags(OFlags::DIRECT.bits() as i32);
    match direct.open(path) {
        Ok(file) => Ok((file, true)),
        Err(e) if refuses_direct(&e) => options.open(path).map(|file| (file, false)),
        Err(e) => Err(e),
    }
}

/// Sets O_DIRECT on an open descriptor, if its filesystem has it. For files created exclusively: some filesystems
/// create the file and then refuse the flag.
pub(crate) fn set_direct(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file)
        .and_then(|flags| rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT))
        .is_ok()
}

/// Some filesystems take the flag and refuse the transfer (EINVAL): finds out by reading the first block, and takes
/// the flag off then. False: it is off.
pub(crate) fn direct_reads_work(file: &File) -> io::Result<bool> {
    match file.read_at(&mut AlignedBuf::new(IO_ALIGN), 0) {
        Err(e) if refuses_direct(&e) => clear_direct(file).map(|()| false),
        // Any other failure is met again by the reader threads, which say where it is.
        _ => Ok(true),
    }
}

/// True if a transfer failed for O_DIRECT: not every filesystem that refuses it does so by EINVAL.
pub(crate) fn refuses_direct(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// Takes O_DIRECT off an open descriptor, for filesystems that accept the flag and then refuse the transfer.
pub(crate) fn clear_direct(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?)
}
