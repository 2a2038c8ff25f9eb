//! Block devices as the kernel shows them below `/sys`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, makedev, minor};

/// A block device's directory in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysDevice {
    dir: PathBuf,
    /// Device number, as in `st_rdev`.
    pub rdev: u64,
}

impl SysDevice {
    /// The device of this number; `None` where sysfs does not show it.
    pub fn of(rdev: u64) -> Option<Self> {
        let dir = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev))).ok()?;
        Some(Self { dir, rdev })
    }

    fn at(dir: &Path) -> Option<Self> {
        let dir = fs::canonicalize(dir).ok()?;
        let rdev = parse_dev(&fs::read_to_string(dir.join("dev")).ok()?)?;
        Some(Self { dir, rdev })
    }

    /// Kernel name: `sda1`, `loop0`, `dm-3`.
    pub fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Contents of one of its files, trimmed.
    pub fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok().map(|text| text.trim().to_string())
    }

    /// The whole disk, if this is a partition.
    pub fn disk(&self) -> Option<Self> {
        self.dir.join("partition").exists().then(|| Self::at(self.dir.parent()?)).flatten()
    }

    /// This device and every other whose use means that this one is in use: its partitions, the disk it is a part of,
    /// and what is built on any of them (device mapper, RAID), to any depth.
    pub fn family(&self) -> Vec<Self> {
        let mut found = vec![self.clone()];
        found.extend(self.children());
        found.extend(self.disk());
        let mut next = 0;
        while next < found.len() {
            for holder in found[next].entries("holders") {
                for device in std::iter::once(holder.clone()).chain(holder.children()) {
                    if !found.contains(&device) {
                        found.push(device);
                    }
                }
            }
            next += 1;
        }
        found
    }

    fn children(&self) -> Vec<Self> {
        let mut children = self.entries("");
        children.retain(|child| child.dir.join("partition").exists());
        children
    }

    fn entries(&self, below: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(self.dir.join(below)) else { return Vec::new() };
        entries.flatten().filter_map(|entry| Self::at(&entry.path())).collect()
    }
}

/// The loop devices that a file is attached to.
pub fn loops_over(file: &fs::Metadata) -> Vec<SysDevice> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let is_over = |device: &SysDevice| {
        let backing = device.read("loop/backing_file").and_then(|path| fs::metadata(path).ok());
        backing.is_some_and(|meta| (meta.dev(), meta.ino()) == (file.dev(), file.ino()))
    };
    devices.flatten().filter_map(|entry| SysDevice::at(&entry.path())).filter(is_over).collect()
}

/// The member devices of each btrfs filesystem that is mounted: its mounts name only one of them.
pub fn btrfs_members() -> Vec<Vec<u64>> {
    let Ok(filesystems) = fs::read_dir("/sys/fs/btrfs") else { return Vec::new() };
    let members = |fs_dir: PathBuf| -> Option<Vec<u64>> {
        let devices = fs::read_dir(fs_dir.join("devices")).ok()?;
        Some(devices.flatten().filter_map(|d| SysDevice::at(&d.path())).map(|d| d.rdev).collect())
    };
    filesystems.flatten().filter_map(|entry| members(entry.path())).collect()
}

/// `major:minor` as the kernel prints it.
pub fn parse_dev(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}
