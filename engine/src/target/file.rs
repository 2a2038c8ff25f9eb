//! A regular file as a target.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Target, TargetKind, TargetOptions, refused};
use crate::error::{Error, Result};
use crate::io::AlignedBuf;
use crate::io::file::{OpenFile, clear_direct, direct_reads_work, set_direct};
use crate::limits::IO_ALIGN;
use crate::source::sysfs::loops_over;

/// Creates a sparse file; fails if something appeared at `path` meanwhile.
pub(super) fn create(path: &Path, name: String, options: TargetOptions) -> Result<Target> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = file.map_err(Error::io("create", &name))?;
    prepare_fresh(file, path, name, options)
}

/// Opens a file that exists.
pub(super) fn open(path: &Path, name: String, options: TargetOptions) -> Result<Target> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::io("open", &name))?;
    let meta = file.metadata().map_err(Error::io("inspect", &name))?;
    if let Some(device) = loops_over(&meta).first() {
        return Err(refused(&name, format!("it is attached to /dev/{}: detach it first", device.name())));
    }
    if meta.len() > 0 && !options.accepts_contents() {
        let why = format!(
            "it exists and holds {} bytes. Overwrite it with --force, update it with --base or --compare, \
             or choose another path",
            meta.len()
        );
        return Err(refused(&name, why));
    }
    if meta.len() == 0 && options.must_hold_data {
        return Err(refused(&name, "it is empty, so it holds no state of the volume to start from"));
    }
    if meta.len() > 0 && (options.must_hold_data || options.resume) {
        let mut direct = set_direct(&file);
        if direct {
            direct = direct_reads_work(&file).map_err(Error::io("open", &name))?;
        }
        return sized(file, path, name, direct, options, false);
    }
    // Sizing a file from 0 is what makes all of it a hole.
    file.set_len(0).map_err(Error::io("empty", &name))?;
    prepare_fresh(file, path, name, options)
}

fn prepare_fresh(file: File, path: &Path, name: String, options: TargetOptions) -> Result<Target> {
    let direct = set_direct(&file) && direct_writes_work(&file).map_err(Error::io("write", &name))?;
    sized(file, path, name, direct, options, true)
}

/// The counterpart of `direct_reads_work` for a file that is empty, and is again when this returns.
pub(super) fn direct_writes_work(file: &File) -> io::Result<bool> {
    let written = file.write_at(&AlignedBuf::new(IO_ALIGN), 0);
    file.set_len(0)?;
    match written {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => clear_direct(file).map(|()| false),
        // Any other failure is met again by the writer threads, which say where it is.
        _ => Ok(true),
    }
}

fn sized(
    file: File,
    path: &Path,
    name: String,
    direct: bool,
    options: TargetOptions,
    fresh: bool,
) -> Result<Target> {
    let size_bytes = options.size_bytes.next_multiple_of(IO_ALIGN as u64);
    file.set_len(size_bytes).map_err(Error::io("set the size of", &name))?;
    let file = OpenFile { file, name, size_bytes, direct };
    Ok(Target::new(file, path, TargetKind::File, options, fresh))
}
