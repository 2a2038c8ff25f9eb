//! Who uses a block device: mounts and swap, on it, on its partitions, and on what is built from them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, major};

use super::sysfs::{SysDevice, btrfs_members, parse_dev};
use crate::error::{Error, Result};

/// Times that [`open_exclusive`] tries, and the pause between.
const CLAIM_LOOKS: u32 = 4;
const CLAIM_PAUSE_MS: u64 = 25;

/// One use of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// For messages: `/dev/sda1 is mounted read-write at /srv`.
    pub what: String,
    /// Contents may change at any moment.
    pub writable: bool,
}

/// The uses of the block device with number `rdev` that this process can see. Mounts in other namespaces are not
/// visible; [`is_claimed`] tells of them, without a name.
pub fn uses_of(rdev: u64) -> Result<Vec<Use>> {
    let read = |path: &str| fs::read_to_string(path).map_err(Error::io("read", path));
    let mounts = read("/proc/self/mountinfo")?;
    // Kernels without swap have no such file.
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut family: Vec<u64> = vec![rdev];
    family.extend(SysDevice::of(rdev).iter().flat_map(SysDevice::family).map(|device| device.rdev));
    let tables = Tables { mounts: &mounts, swaps: &swaps, btrfs: &btrfs_members() };
    Ok(tables.uses_of(&family, &block_rdev))
}

/// True if the kernel, or another program, holds `path` exclusively: a mount in any namespace, swap, RAID, device
/// mapper, ZFS. Opens the device read-only for an instant.
pub fn is_claimed(path: &Path) -> bool {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    matches!(open_exclusive(&mut options, OFlags::empty(), path), Ok(None))
}

/// Opens a block device with O_EXCL and `flags`, which fails with EBUSY where it is held; that is `None` here.
/// Programs that only look (this one, blkid, a forked child before its exec) hold devices for an instant: only a
/// claim that stays is one.
pub(crate) fn open_exclusive(
    options: &mut fs::OpenOptions,
    flags: OFlags,
    path: &Path,
) -> io::Result<Option<fs::File>> {
    options.custom_flags((flags | OFlags::EXCL).bits() as i32);
    for look in 0..CLAIM_LOOKS {
        thread::sleep(Duration::from_millis(if look > 0 { CLAIM_PAUSE_MS } else { 0 }));
        match options.open(path) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            result => return result.map(Some),
        }
    }
    Ok(None)
}

/// Device number of the block device at `path`.
pub fn block_rdev(path: &Path) -> Option<u64> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| meta.rdev())
}

/// The kernel's tables, as text.
struct Tables<'a> {
    mounts: &'a str,
    swaps: &'a str,
    btrfs: &'a [Vec<u64>],
}

impl Tables<'_> {
    fn uses_of(&self, family: &[u64], rdev_of: &dyn Fn(&Path) -> Option<u64>) -> Vec<Use> {
        let mut uses: Vec<Use> = Vec::new();
        let mounts = self.mounts.lines().filter_map(Mount::parse);
        for mount in mounts.filter(|mount| self.is_on(mount, family, rdev_of)) {
            let how = if mount.writable { "read-write" } else { "read-only" };
            let what = format!("{} is mounted {how} at {}", mount.source, mount.point.display());
            uses.push(Use { what, writable: mount.writable });
        }
        for line in self.swaps.lines().skip(1) {
            let Some(path) = line.split_whitespace().next().map(unescape) else { continue };
            if rdev_of(&path).is_some_and(|rdev| family.contains(&rdev)) {
                uses.push(Use { what: format!("{} is active swap", path.display()), writable: true });
            }
        }
        uses
    }

    fn is_on(&self, mount: &Mount, family: &[u64], rdev_of: &dyn Fn(&Path) -> Option<u64>) -> bool {
        if major(mount.dev) != 0 {
            return family.contains(&mount.dev);
        }
        // A number of major 0 is made up (btrfs, bcachefs): the source has the device, or several with colons
        // between.
        let sources = mount.source.split(':').filter(|part| part.starts_with('/'));
        sources.filter_map(|source| rdev_of(Path::new(source))).any(|rdev| {
            let members = self.btrfs.iter().filter(|_| mount.fs == "btrfs").find(|m| m.contains(&rdev));
            family.contains(&rdev) || members.is_some_and(|m| m.iter().any(|rdev| family.contains(rdev)))
        })
    }
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    dev: u64,
    point: PathBuf,
    fs: String,
    source: String,
    /// By the superblock's options: a read-only mount point of a filesystem that is writable elsewhere changes too.
    writable: bool,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (place, filesystem) = line.split_once(" - ")?;
        let mut place = place.split(' ');
        let dev = parse_dev(place.nth(2)?)?;
        let point = unescape(place.nth(1)?);
        let mut filesystem = filesystem.split(' ');
        let fs = filesystem.next()?.to_string();
        let source = unescape(filesystem.next()?).to_string_lossy().into_owned();
        let writable = !filesystem.next().unwrap_or_default().split(',').any(|option| option == "ro");
        Some(Self { dev, point, fs, source, writable })
    }
}

/// The kernel writes space, tab, newline and backslash in paths as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

/// Looks a device up in tables with these contents: mounts, a zero byte, swaps.
#[cfg(feature = "fuzzing")]
pub fn fuzz_tables(text: &str) {
    let (mounts, swaps) = text.split_once('\0').unwrap_or((text, ""));
    let family: Vec<u64> = mounts.lines().filter_map(Mount::parse).map(|mount| mount.dev).take(3).collect();
    let rdev_of = |path: &Path| path.to_str().map(|text| text.len() as u64);
    let uses = Tables { mounts, swaps, btrfs: &[vec![3, 4]] }.uses_of(&family, &rdev_of);
    assert!(uses.len() <= text.lines().count());
    assert!(parse_dev(text).is_none_or(|_| text.contains(':')));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;

    const MOUNTS: &str = "\
27 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
28 27 259:2 / /mnt/my\\040disk ro,relatime - xfs /dev/nvme0n1p2 ro,attr2
29 27 259:3 / /mnt/bind ro,relatime - ext4 /dev/nvme0n1p3 rw
30 27 0:44 /sub /mnt/btrfs rw - btrfs /dev/sdb rw,space_cache
31 27 0:21 / /proc rw - proc proc rw
";
    const SWAPS: &str =
        "Filename\tType\tSize\tUsed\tPriority\n/dev/sdd partition 8 0 -2\n/swap\\040file file 8 0 -3\n";

    fn uses(dev: u64) -> Vec<Use> {
        let known = |path: &Path| match path.to_str() {
            Some("/dev/sdb") => Some(makedev(8, 16)),
            Some("/dev/sdd") => Some(makedev(8, 48)),
            _ => None,
        };
        let btrfs = [vec![makedev(8, 16), makedev(8, 32)]];
        Tables { mounts: MOUNTS, swaps: SWAPS, btrfs: &btrfs }.uses_of(&[dev], &known)
    }

    #[test]
    fn mounts_are_found_by_number_source_and_btrfs_member() {
        assert_eq!(uses(makedev(259, 1))[0].what, "/dev/root is mounted read-write at /");
        assert_eq!(uses(makedev(8, 16))[0].what, "/dev/sdb is mounted read-write at /mnt/btrfs");
        assert_eq!(uses(makedev(8, 32)).len(), 1, "the second device of the same btrfs");
        assert_eq!(uses(makedev(8, 64)), []);
        assert_eq!(uses(makedev(0, 21)), []);
    }

    #[test]
    fn the_superblock_decides_what_is_writable() {
        let read_only = &uses(makedev(259, 2))[0];
        assert!(!read_only.writable && read_only.what.ends_with("at /mnt/my disk"), "{read_only:?}");
        assert!(uses(makedev(259, 3))[0].writable, "a read-only mount of a writable filesystem");
    }

    #[test]
    fn swap_is_a_writable_use() {
        assert_eq!(uses(makedev(8, 48)), [Use { what: "/dev/sdd is active swap".into(), writable: true }]);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a\\040b\\134\\9x\\"), PathBuf::from("a b\\\\9x\\"));
    }

    #[test]
    fn the_root_device_is_seen_in_use() {
        let root = fs::metadata("/").unwrap().dev();
        if major(root) != 0 {
            assert!(!uses_of(root).unwrap().is_empty());
        }
    }
}
