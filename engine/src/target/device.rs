//! A block device as a target.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom, seek};

use super::steps::{Contents, Locked};
use super::{TargetOptions, claim, refused};
use crate::error::{Error, Result};
use crate::io::AlignedBuf;
use crate::io::file::OpenFile;
use crate::limits::IO_ALIGN;
use crate::source::usage;

/// Read in full from the start and the end of a device: partition tables and superblocks are there.
const EDGE_BYTES: u64 = 1 << 20;

/// Places in between that are looked at, and the bytes read at each.
const SAMPLE_COUNT: u64 = 64;
const SAMPLE_BYTES: u64 = 64 << 10;

/// Refuses a device that is mounted, swapped on, or part of something that is.
pub(super) fn refuse_uses(name: &str, rdev: u64) -> Result<()> {
    match usage::uses_of(rdev)?.first() {
        Some(found) => Err(refused(name, format!("{}. Unmount it, or choose another target", found.what))),
        None => Ok(()),
    }
}

/// Opens a device exclusively: while it is open, the kernel refuses to mount it or to build anything on it.
pub(super) fn open(path: &Path, name: &str, rdev: u64) -> Result<File> {
    claim::refuse_writers_of_device(name, &fs::metadata(path).map_err(Error::io("inspect", name))?)?;
    let opened = usage::open_exclusive(OpenOptions::new().read(true).write(true), OFlags::DIRECT, path);
    let Some(file) = opened.map_err(Error::io("open", name))? else {
        let why = "it is in use by something not visible here (a mount in another namespace, RAID, ZFS, \
                   another restore)";
        return Err(refused(name, why));
    };
    // What was probed must be what is open now: the path may be a link that udev has just moved.
    let opened = file.metadata().map_err(Error::io("inspect", name))?;
    if rdev != opened.rdev() {
        return Err(refused(name, "another device took its name just now: try again"));
    }
    Ok(file)
}

/// Size of an open device.
pub(super) fn size_bytes(file: &File, name: &str) -> Result<u64> {
    seek(file, SeekFrom::End(0)).map_err(|e| Error::io("size", name)(e.into()))
}

/// Refuses a device that is too small, or holds what nobody said may be overwritten.
pub(super) fn check(device: &Locked, options: TargetOptions) -> Result<Contents> {
    let Locked { file, name, held_bytes: device_bytes, .. } = device;
    if *device_bytes < options.size_bytes {
        let why = format!(
            "it is too small: it holds {device_bytes} bytes, and the volume has {}",
            options.size_bytes
        );
        return Err(refused(name, why));
    }
    if !options.accepts_contents()
        && !options.zero
        && let Some(at) = first_data(file, name, *device_bytes)?
    {
        let why = format!(
            "it is not empty (there is data near byte {at}). Overwrite it with --force, or update it with --base \
             or --compare"
        );
        return Err(refused(name, why));
    }
    Ok(if options.zero { Contents::Zeros } else { Contents::Kept })
}

/// Nothing has to be done to a device.
pub(super) fn prepare(locked: Locked, options: TargetOptions) -> (OpenFile, PathBuf) {
    let Locked { file, path, name, .. } = locked;
    (OpenFile { file, name, size_bytes: options.size_bytes, direct: true }, path)
}

/// A byte position that is not zero, if one of the places looked at has one. A device that was used and then wiped
/// only at its start is found in use; one with a few bytes in an unlucky place may not be.
fn first_data(file: &File, name: &str, device_bytes: u64) -> Result<Option<u64>> {
    let mut buf = AlignedBuf::new(EDGE_BYTES as usize);
    let align = |at: u64| at / IO_ALIGN as u64 * IO_ALIGN as u64;
    let edges = [(0, EDGE_BYTES), (align(device_bytes.saturating_sub(EDGE_BYTES)), EDGE_BYTES)];
    let samples = (1..SAMPLE_COUNT).map(|no| (align(device_bytes / SAMPLE_COUNT * no), SAMPLE_BYTES));
    for (start, len) in edges.into_iter().chain(samples) {
        // The last MiB, begun at a 4 KiB border, may need up to 4 KiB more to get to the end.
        let mut at = start;
        let end = (start + len + IO_ALIGN as u64).min(device_bytes);
        while at < end {
            let wanted = ((end - at) as usize).next_multiple_of(IO_ALIGN).min(buf.len());
            let read = file.read_at(&mut buf[..wanted], at);
            let n = read.map_err(Error::io("read", format!("{name} at offset {at}")))?;
            if let Some(index) = buf[..n].iter().position(|&byte| byte != 0) {
                return Ok(Some(at + index as u64));
            }
            if n < wanted {
                break;
            }
            at += n as u64;
        }
    }
    Ok(None)
}
