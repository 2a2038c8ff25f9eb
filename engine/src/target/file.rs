//! A regular file as a target.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::steps::{Contents, Locked};
use super::{TargetOptions, claim, refused};
use crate::error::{Error, Result};
use crate::io::AlignedBuf;
use crate::io::file::{OpenFile, clear_direct, direct_reads_work, set_direct};
use crate::limits::IO_ALIGN;
use crate::source::sysfs::loops_over;

/// Creates an empty file; fails if something appeared at `path` meanwhile.
pub(super) fn create(path: &Path, name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    file.map_err(Error::io("create", name))
}

/// Opens a file that exists and that nobody else is writing.
pub(super) fn open(path: &Path, name: &str) -> Result<File> {
    let fail = || Error::io("open", name);
    {
        let reading = File::open(path).map_err(fail())?;
        let meta = reading.metadata().map_err(Error::io("inspect", name))?;
        if let Some(device) = loops_over(&meta).first() {
            return Err(refused(name, format!("it is attached to /dev/{}: detach it first", device.name())));
        }
        claim::refuse_writers_of_file(name, &reading)?;
    }
    OpenOptions::new().read(true).write(true).open(path).map_err(fail())
}

/// Refuses a file that holds what nobody said may be overwritten, or nothing where there should be something.
pub(super) fn check(file: &Locked, options: TargetOptions) -> Result<Contents> {
    if file.held_bytes > 0 && !options.accepts_contents() {
        let why = format!(
            "it exists and holds {} bytes. Overwrite it with --force, update it with --base or --compare, \
             or choose another path",
            file.held_bytes
        );
        return Err(refused(&file.name, why));
    }
    if file.held_bytes == 0 && options.must_hold_data {
        return Err(refused(&file.name, "it is empty, so it holds no state of the volume to start from"));
    }
    let kept = file.held_bytes > 0 && (options.must_hold_data || options.resume);
    Ok(if kept { Contents::Kept } else { Contents::Emptied })
}

/// Empties the file unless its contents are kept, and gives it its size. With O_DIRECT where that works.
pub(super) fn prepare(
    locked: Locked,
    options: TargetOptions,
    contents: Contents,
) -> Result<(OpenFile, PathBuf)> {
    let Locked { file, path, name, held_bytes, .. } = locked;
    let direct = match contents {
        Contents::Kept => set_direct(&file) && direct_reads_work(&file).map_err(Error::io("read", &name))?,
        Contents::Emptied | Contents::Zeros => {
            if held_bytes > 0 {
                // Sizing a file from 0 is what makes all of it a hole.
                file.set_len(0).map_err(Error::io("empty", &name))?;
            }
            set_direct(&file) && direct_writes_work(&file).map_err(Error::io("write", &name))?
        }
    };
    let size_bytes = padded(options.size_bytes);
    file.set_len(size_bytes).map_err(Error::io("set the size of", &name))?;
    Ok((OpenFile { file, name, size_bytes, direct }, path))
}

/// Length of a file while a volume of so many bytes is written to it.
pub fn padded(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(IO_ALIGN as u64)
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
