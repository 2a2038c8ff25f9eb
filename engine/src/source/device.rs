//! A block device as a source.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{SeekFrom, ioctl_blksszget, major, minor, seek};

use super::sysfs::SysDevice;
use super::usage;
use super::watch::Seen;
use super::{OpenFile, Source, SourceKind, Watch, check_size, in_use};
use crate::error::{Error, Result};
use crate::io::file::open_direct;

/// A block device, opened read-only.
pub struct DeviceSource {
    file: Arc<OpenFile>,
    rdev: u64,
    logical_block_bytes: u32,
    force_live: bool,
}

impl DeviceSource {
    /// Opens the device at `path` read-only, with O_DIRECT.
    ///
    /// Fails with [`Error::SourceRefused`] if something can write to it meanwhile: a read-write mount or swap on it,
    /// on one of its partitions or on a device made of it; a program that has locked it (QEMU); or a holder that cannot
    /// be seen from here. `force_live` accepts that.
    pub fn open(path: &Path, force_live: bool) -> Result<Self> {
        let name = path.display().to_string();
        // Before it is opened: "it is mounted" helps more than what opening it may say.
        let rdev = fs::metadata(path).map_err(Error::io("inspect", &name))?.rdev();
        if !force_live {
            refuse_live(path, &name, rdev)?;
        }
        let (file, direct) =
            open_direct(fs::OpenOptions::new().read(true), path).map_err(Error::io("open", &name))?;
        let meta = file.metadata().map_err(Error::io("inspect", &name))?;
        if let Some(why) = in_use::writer_of(&file, &meta, false).filter(|_| !force_live) {
            return Err(refused(&name, &why));
        }
        if meta.rdev() != rdev {
            return Err(Error::SourceRefused {
                source_name: name,
                why: "the path was replaced meanwhile".into(),
            });
        }
        let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|e| Error::io("size", &name)(e.into()))?;
        if size_bytes == 0 {
            return Err(Error::SourceRefused { source_name: name, why: "it has no medium (0 bytes)".into() });
        }
        check_size(&name, size_bytes)?;
        let logical_block_bytes =
            ioctl_blksszget(&file).map_err(|e| Error::io("ask for the block size of", &name)(e.into()))?;
        let file = Arc::new(OpenFile { file, name, size_bytes, direct });
        Ok(Self { file, rdev, logical_block_bytes, force_live })
    }
}

fn refuse_live(path: &Path, name: &str, rdev: u64) -> Result<()> {
    let uses = usage::uses_of(rdev)?;
    let why = match uses.iter().find(|found| found.writable) {
        Some(found) => found.what.clone(),
        // A read-only mount claims the device as well, and explains it.
        None if uses.is_empty() && usage::is_claimed(path) => {
            "it is held by something not visible here (a mount in another namespace, RAID, ZFS)".into()
        }
        None => return Ok(()),
    };
    Err(refused(name, &why))
}

fn refused(name: &str, why: &str) -> Error {
    Error::SourceRefused {
        source_name: name.into(),
        why: format!(
            "{why}, so it can change while it is read. Back up a snapshot, unmount it, remount it read-only, \
             or accept an inconsistent copy with --force-live"
        ),
    }
}

impl Source for DeviceSource {
    fn name(&self) -> &str {
        &self.file.name
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.file.size_bytes)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Device
    }

    fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        Ok((from < self.file.size_bytes).then_some(from..self.file.size_bytes))
    }

    /// Boot, device number, disk sequence number, size, and the kernel's counts of writes and discards, for the
    /// device and for the disk it is a part of; with the backing file's state for a loop device.
    ///
    /// Misses what this kernel does not count: another host that writes to shared storage, a write through a device
    /// below (the disk under a RAID or device mapper), data in the page cache that was not written back. Changes too
    /// often, never too rarely, on a partition whose neighbours are written. `None` where the counters are switched
    /// off or not shown.
    fn identity(&self) -> Option<String> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let device = SysDevice::of(self.rdev)?;
        let disk = device.disk().unwrap_or_else(|| device.clone());
        if disk.read("queue/iostats")? == "0" {
            return None;
        }
        let mut token = format!(
            "device:{}:{}:{}:{}:{}:{}:{}",
            boot_id.trim(),
            major(self.rdev),
            minor(self.rdev),
            disk.read("diskseq")?,
            self.file.size_bytes,
            write_counters(&device.read("stat")?)?,
            write_counters(&disk.read("stat")?)?
        );
        if let Some(path) = disk.read("loop/backing_file") {
            let meta = fs::metadata(path).ok()?;
            token += &format!(":{}:{}:{}.{:09}", meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec());
        }
        Some(token)
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        Some(self.file.clone())
    }

    fn watch(&self) -> Option<Watch> {
        // What waits in the page cache is written back by the reads to come, and would count as written meanwhile.
        let _ = self.file.file.sync_data();
        let (rdev, before) = (self.rdev, Written::of(self.rdev)?);
        let look = move || match Written::of(rdev) {
            Some(now) if now == before => Seen::Same,
            Some(now) if now.diskseq != before.diskseq => Seen::Changed("its medium was replaced".into()),
            Some(_) => Seen::Changed("the kernel counted writes to it".into()),
            None => Seen::Touched("the kernel does not show it any more".into()),
        };
        Some(Watch::new(self.name(), self.force_live, look))
    }
}

/// What the kernel counts of writes to a device itself. Unlike in [`DeviceSource::identity`], writes to the disk that a
/// partition is a part of do not count: its neighbours may be in use.
#[derive(PartialEq, Eq)]
struct Written {
    diskseq: Option<String>,
    counters: String,
}

impl Written {
    fn of(rdev: u64) -> Option<Self> {
        let device = SysDevice::of(rdev)?;
        let disk = device.disk().unwrap_or_else(|| device.clone());
        if disk.read("queue/iostats")? == "0" {
            return None;
        }
        Some(Self { diskseq: disk.read("diskseq"), counters: write_counters(&device.read("stat")?)? })
    }
}

/// From a `stat` file of sysfs (kernel documentation, `block/stat.rst`): writes and sectors written, discards and
/// sectors discarded. Kernels before 4.18 count no discards, and then nothing can be said.
fn write_counters(stat: &str) -> Option<String> {
    let fields: Vec<&str> = stat.split_whitespace().collect();
    Some(format!("{}/{}/{}/{}", fields.get(4)?, fields.get(6)?, fields.get(11)?, fields.get(13)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_the_right_fields() {
        assert_eq!(write_counters("0 1 2 3 4 5 6 7 8 9 10 11 12 13 14").as_deref(), Some("4/6/11/13"));
        assert_eq!(write_counters("0 1 2 3 4 5 6 7 8 9 10"), None);
    }
}
