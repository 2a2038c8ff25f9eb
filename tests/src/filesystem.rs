//! Filesystems: made on image files, mounted through loop devices, filled with real files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::image;
use crate::loopdev::LoopDev;
use crate::tools;
use crate::workdir::text;

/// Which filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsKind {
    /// ext4, no blocks reserved for root.
    Ext4,
    /// XFS. At least 300 MiB, says `mkfs.xfs`.
    Xfs,
    /// btrfs. At least 110 MiB.
    Btrfs,
}

impl FsKind {
    /// Makes a fresh filesystem in the file `image` of `size_bytes`.
    pub fn make(self, image: &Path, size_bytes: u64) {
        File::create(image).unwrap().set_len(size_bytes).unwrap();
        match self {
            Self::Ext4 => tools::run("mkfs.ext4", &["-q", "-F", "-m", "0", text(image)]),
            Self::Xfs => tools::run("mkfs.xfs", &["-q", "-f", text(image)]),
            Self::Btrfs => tools::run("mkfs.btrfs", &["-q", "-f", text(image)]),
        };
    }
}

/// A mounted device; dropped, it is unmounted, and its loop device detached if it is its own.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
    // dropped after `drop` has unmounted
    device: Option<LoopDev>,
}

impl Mount {
    /// Attaches `image` and mounts it at `dir`, which is made.
    pub fn image(image: &Path, dir: &Path) -> Self {
        let device = LoopDev::attach(image);
        let mut mount = Self::device(device.path(), dir, "rw");
        mount.device = Some(device);
        mount
    }

    /// Mounts a device with `-o options` at `dir`, which is made.
    pub fn device(device: &Path, dir: &Path, options: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        tools::run("mount", &["-o", options, text(device), text(dir)]);
        Self { dir: dir.to_owned(), device: None }
    }

    /// Mounts a filesystem that is on no device: `tmpfs`, `overlay`.
    pub fn of_kind(kind: &str, dir: &Path, options: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        tools::run("mount", &["-t", kind, "-o", options, kind, text(dir)]);
        Self { dir: dir.to_owned(), device: None }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for attempt in 0..20 {
            match tools::attempt("umount", &[text(&self.dir)]) {
                Ok(_) => return,
                Err(why) if attempt == 19 => eprintln!("unmounted only lazily: {why}"),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
            }
        }
        if let Err(why) = tools::attempt("umount", &["--lazy", text(&self.dir)]) {
            eprintln!("left behind: {why}");
        }
    }
}

/// Makes `image`: a filesystem of `size_bytes` with about `contents_bytes` of real files from `/usr`, some of which were deleted
/// again, so that there is stale data in free space too, as on every real disk.
pub fn with_real_files(kind: FsKind, image: &Path, size_bytes: u64, contents_bytes: u64) {
    kind.make(image, size_bytes);
    let dir = image.with_extension("mnt");
    {
        let mount = Mount::image(image, &dir);
        let copied = copy_real_files(mount.dir(), contents_bytes);
        for path in copied.iter().step_by(7) {
            fs::remove_file(path).unwrap();
        }
        image::text(&mount.dir().join("app.log"), contents_bytes / 20, 77);
        tools::run("sync", &["-f", text(mount.dir())]);
    }
    fs::remove_dir(&dir).unwrap();
}

/// Copies files of `/usr` in the order of their names until `bytes` are reached; text is added if `/usr` has too little.
fn copy_real_files(to: &Path, bytes: u64) -> Vec<PathBuf> {
    let mut copied = Vec::new();
    let mut sum_bytes = 0;
    let mut dirs = vec![PathBuf::from("/usr/share"), PathBuf::from("/usr/lib"), PathBuf::from("/usr/bin")];
    while let Some(dir) = dirs.pop() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(&dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
        entries.sort();
        for path in entries {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                dirs.push(path);
            } else if meta.is_file() && meta.len() <= bytes / 8 {
                if sum_bytes + meta.len() > bytes {
                    return copied;
                }
                let target = to.join(path.strip_prefix("/usr").unwrap());
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                if fs::copy(&path, &target).is_ok() {
                    sum_bytes += meta.len();
                    copied.push(target);
                }
            }
        }
    }
    image::text(&to.join("filler.txt"), bytes - sum_bytes, 5);
    copied
}
