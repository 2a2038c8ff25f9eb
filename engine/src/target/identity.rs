//! What a target is apart from its name: `/dev/sdb` may be another disk after a boot, and a file may have been made
//! anew.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::source::sysfs::SysDevice;

/// What a device is known by: the name of the mark, and where sysfs has it.
const MARKS: [(&str, &str); 7] = [
    ("wwid", "wwid"),
    ("wwid", "device/wwid"),
    ("serial", "serial"),
    ("serial", "device/serial"),
    ("cid", "device/cid"),
    ("dm", "dm/uuid"),
    ("md", "md/uuid"),
];

/// Recognises a file or device under another name, and another one under the same name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// A regular file.
    File(Inode),
    /// A block device.
    Device {
        /// Its size.
        size_bytes: u64,
        /// `wwid`, `serial` and the like. Of a partition those of its disk, and where on it the partition is.
        marks: BTreeMap<String, String>,
    },
}

/// A file, as long as it is not deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inode {
    number: u64,
    /// Seconds and nanoseconds. Numbers are used again, and a filesystem's device number changes from boot to boot:
    /// this does neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    born: Option<(i64, u32)>,
    /// Of the filesystem; where files have no time of birth.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
}

impl Inode {
    fn of(found: &Statx) -> Self {
        let known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
        let born = known.then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec));
        let device = (!known).then_some((found.stx_dev_major, found.stx_dev_minor));
        Self { number: found.stx_ino, born, device }
    }
}

impl Identity {
    /// Of an open file.
    pub(super) fn of_file(file: &File, name: &str) -> Result<Self> {
        let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = statx(file.as_fd(), "", AtFlags::EMPTY_PATH, flags);
        Ok(Self::File(Inode::of(&found.map_err(|e| Error::io("inspect", name)(e.into()))?)))
    }

    /// Of an open block device.
    pub(super) fn of_device(file: &File, name: &str, size_bytes: u64) -> Result<Self> {
        let rdev = file.metadata().map_err(Error::io("inspect", name))?.rdev();
        let marks = SysDevice::of(rdev).map(|device| marks(&device)).unwrap_or_default();
        Ok(Self::Device { size_bytes, marks })
    }

    /// True if nothing tells the device from another one of its size.
    pub fn is_vague(&self) -> bool {
        matches!(self, Self::Device { marks, .. } if marks.is_empty())
    }
}

fn marks(device: &SysDevice) -> BTreeMap<String, String> {
    let disk = device.disk();
    let whole = disk.as_ref().unwrap_or(device);
    let mut marks = BTreeMap::new();
    for (mark, file) in MARKS {
        if let Some(text) = whole.read(file).filter(|text| !text.is_empty()) {
            marks.entry(mark.to_owned()).or_insert(text);
        }
    }
    if let Some(backing) = whole.read("loop/backing_file") {
        marks.insert("backing".into(), backing_of(&backing));
        marks.insert("at".into(), whole.read("loop/offset").unwrap_or_default());
    }
    if marks.is_empty() {
        // The kernel numbers disks as they come, from 1 at each boot.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        if let (Some(boot), Some(number)) = (boot, whole.read("diskseq")) {
            marks.insert("seen".into(), format!("{} {number}", boot.trim()));
        }
    }
    if disk.is_some() && !marks.is_empty() {
        let sectors = |file| device.read(file).unwrap_or_default();
        marks.insert("partition".into(), format!("{} sectors from {}", sectors("size"), sectors("start")));
    }
    marks
}

/// What a loop device lies in: the inode, or its name where that cannot be found from here.
fn backing_of(path: &str) -> String {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    match statx(CWD, path, AtFlags::empty(), flags) {
        Ok(found) => Identity::File(Inode::of(&found)).to_string(),
        Err(_) => path.to_owned(),
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(inode) => {
                write!(f, "inode {}", inode.number)?;
                if let Some((seconds, nanoseconds)) = inode.born {
                    write!(f, " born at {seconds}.{nanoseconds:09}")?;
                }
                match inode.device {
                    Some((major, minor)) => write!(f, " of device {major}:{minor}"),
                    None => Ok(()),
                }
            }
            Self::Device { size_bytes, marks } => {
                write!(f, "{size_bytes} bytes")?;
                marks.iter().try_for_each(|(mark, text)| write!(f, ", {mark} {text}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_made_anew_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let of = |path| Identity::of_file(&File::open(path).unwrap(), "x").unwrap();
        fs::write(&first, b"1").unwrap();
        let before = of(&first);
        fs::write(&first, b"more").unwrap();
        fs::rename(&first, &second).unwrap();
        assert_eq!(of(&second), before, "whatever its name and contents");
        fs::write(&first, b"1").unwrap();
        assert_ne!(of(&first), before);
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), before);
        assert!(before.to_string().starts_with("inode "), "{before}");
    }
}
