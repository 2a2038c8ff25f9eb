//! The demo's disk: an ext4 image, and a loop device over it where this user may have one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::exit::Failure;
use super::super::interrupt::Interrupt;
use super::changes::Change;
use super::tools;

/// Tries before an unmount is given up: something may look at the files for a moment.
const UNMOUNT_TRIES: usize = 20;

/// Makes a sparse image with an ext4 filesystem that holds the tree `staging` of `entries` files and directories.
pub fn make_ext4(
    mke2fs: &Path,
    image: &Path,
    image_bytes: u64,
    staging: &Path,
    entries: u64,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let file = File::create_new(image).map_err(Failure::io("create", image.display()))?;
    file.set_len(image_bytes).map_err(Failure::io("resize", image.display()))?;
    // 4 KiB blocks, which mke2fs would not choose for a small image. Inodes: what is there, and room to grow.
    let mut command = Command::new(mke2fs);
    command.args(["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "penstock-demo", "-N"]);
    command.arg((entries + entries / 4 + 1024).to_string()).arg("-d").arg(staging).arg(image);
    tools::run(&mut command, Some(interrupt)).map(drop)
}

/// The disk, as it is backed up.
pub struct Disk {
    image: PathBuf,
    size_bytes: u64,
    device: Result<LoopDevice, String>,
    mount_dir: PathBuf,
}

impl Disk {
    /// Attaches `image` to a loop device if this user may attach and mount one.
    pub fn open(image: PathBuf, size_bytes: u64, mount_dir: PathBuf) -> Result<Disk, Failure> {
        fs::create_dir(&mount_dir).map_err(Failure::io("create", mount_dir.display()))?;
        let device = LoopDevice::attach(&image).and_then(|device| {
            let mounted = Mount::new(&device.path, &mount_dir).and_then(Mount::close);
            mounted.map(|()| device).map_err(|failure| failure.to_string())
        });
        Ok(Disk { image, size_bytes, device, mount_dir })
    }

    /// What to back up.
    pub fn path(&self) -> &Path {
        self.device.as_ref().map_or(&self.image, |device| &device.path)
    }

    /// Size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// `device` or `image`.
    pub fn kind(&self) -> &'static str {
        if self.device.is_ok() { "device" } else { "image" }
    }

    /// Why it is not a device.
    pub fn why_image(&self) -> Option<&str> {
        self.device.as_ref().err().map(String::as_str)
    }

    /// Changes files: through the kernel where the disk is a device, else with debugfs.
    pub fn apply(
        &self,
        changes: &[Change],
        debugfs: &Path,
        scratch: &Path,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        match &self.device {
            Ok(device) => {
                let mount = Mount::new(&device.path, &self.mount_dir)?;
                changes.iter().try_for_each(|change| apply_mounted(&self.mount_dir, change))?;
                mount.close()
            }
            Err(_) => apply_with_debugfs(&self.image, changes, debugfs, scratch, interrupt),
        }
    }

    /// Detaches the device.
    pub fn close(self) -> Result<(), Failure> {
        match self.device {
            Ok(device) => device.close(),
            Err(_) => Ok(()),
        }
    }
}

/// An attached loop device; detached when dropped.
struct LoopDevice {
    path: PathBuf,
    losetup: PathBuf,
    attached: bool,
}

impl LoopDevice {
    fn attach(image: &Path) -> Result<LoopDevice, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a loop device needs root".into());
        }
        let Some(losetup) = tools::find("losetup").filter(|_| Path::new("/dev/loop-control").exists()) else {
            return Err("there are no loop devices".into());
        };
        // No interrupt here: an attached device nobody knows of would stay.
        let name = tools::run(Command::new(&losetup).args(["--find", "--show"]).arg(image), None)
            .map_err(|failure| failure.to_string())?;
        Ok(LoopDevice { path: PathBuf::from(name.trim()), losetup, attached: true })
    }

    fn close(mut self) -> Result<(), Failure> {
        self.detach()
    }

    fn detach(&mut self) -> Result<(), Failure> {
        match std::mem::take(&mut self.attached) {
            true => tools::run(Command::new(&self.losetup).arg("--detach").arg(&self.path), None).map(drop),
            false => Ok(()),
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(failure) = self.detach() {
            tracing::warn!(%failure, device = %self.path.display(), "the demo's loop device stays attached");
        }
    }
}

/// A mounted filesystem; unmounted when dropped.
struct Mount {
    dir: PathBuf,
    mounted: bool,
}

impl Mount {
    fn new(device: &Path, dir: &Path) -> Result<Mount, Failure> {
        // Without noinit_itable the kernel goes on writing in the background.
        let mut command = Command::new("mount");
        tools::run(command.args(["-t", "ext4", "-o", "noinit_itable,noatime"]).arg(device).arg(dir), None)?;
        Ok(Mount { dir: dir.to_owned(), mounted: true })
    }

    fn close(mut self) -> Result<(), Failure> {
        self.unmount()
    }

    fn unmount(&mut self) -> Result<(), Failure> {
        let mut result = Ok(());
        for _ in 0..UNMOUNT_TRIES {
            if !self.mounted {
                return Ok(());
            }
            result = tools::run(Command::new("umount").arg(&self.dir), None).map(drop);
            self.mounted = result.is_err();
            if self.mounted {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        result
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(failure) = self.unmount() {
            tracing::warn!(%failure, dir = %self.dir.display(), "the demo's disk stays mounted");
        }
    }
}

fn apply_mounted(root: &Path, change: &Change) -> Result<(), Failure> {
    match change {
        Change::Remove { path } => {
            fs::remove_file(root.join(path)).map_err(Failure::io("remove", root.join(path).display()))
        }
        Change::Write { path, contents } => {
            let path = root.join(path);
            let dir = path.parent().unwrap_or(root);
            fs::create_dir_all(dir).map_err(Failure::io("create", dir.display()))?;
            fs::write(&path, contents).map_err(Failure::io("write", path.display()))
        }
        Change::Append { path, whole, added_bytes } => {
            let path = root.join(path);
            let file = fs::OpenOptions::new().append(true).open(&path);
            file.and_then(|mut file| file.write_all(&whole[whole.len() - added_bytes..]))
                .map_err(Failure::io("append to", path.display()))
        }
    }
}

/// debugfs knows no append and no overwrite: such a file is removed and written anew.
fn apply_with_debugfs(
    image: &Path,
    changes: &[Change],
    debugfs: &Path,
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    fs::create_dir(scratch).map_err(Failure::io("create", scratch.display()))?;
    let mut script = String::from("mkdir /srv\nmkdir /srv/uploads\n");
    for (i, change) in changes.iter().enumerate() {
        let (path, contents) = match change {
            Change::Remove { path } => (path, None),
            Change::Write { path, contents } | Change::Append { path, whole: contents, .. } => {
                (path, Some(contents))
            }
        };
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        script += &format!("cd \"/{dir}\"\nrm \"{name}\"\n");
        if let Some(contents) = contents {
            let file = scratch.join(i.to_string());
            fs::write(&file, contents).map_err(Failure::io("write", file.display()))?;
            script += &format!("write \"{}\" \"{name}\"\n", file.display());
        }
    }
    let script_file = scratch.join("script");
    fs::write(&script_file, script).map_err(Failure::io("write", script_file.display()))?;
    let mut command = Command::new(debugfs);
    tools::run(command.arg("-w").arg("-f").arg(&script_file).arg(image), Some(interrupt))?;
    fs::remove_dir_all(scratch).map_err(Failure::io("remove", scratch.display()))
}

#[cfg(test)]
mod tests {
    use super::super::{changes, files};
    use super::*;

    /// What debugfs reads from the image.
    fn cat(debugfs: &Path, image: &Path, path: &str) -> String {
        tools::run(Command::new(debugfs).arg("-R").arg(format!("cat /{path}")).arg(image), None).unwrap()
    }

    #[test]
    fn changes_reach_the_image_without_root() {
        let (Some(mke2fs), Some(debugfs)) = (tools::find("mke2fs"), tools::find("debugfs")) else { return };
        let dir = tempfile::tempdir().unwrap();
        let (staging, image, scratch) = (dir.path().join("s"), dir.path().join("i"), dir.path().join("a b"));
        let staged = files::stage(&staging, 16 << 20, &|| Ok(())).unwrap();
        let interrupt = Interrupt::default();
        make_ext4(&mke2fs, &image, 64 << 20, &staging, staged.entries, &interrupt).unwrap();
        let (list, summary) = changes::plan(&staged, 16 << 20).unwrap();
        assert_eq!(cat(&debugfs, &image, files::LOG).len(), staged.log.len());
        apply_with_debugfs(&image, &list, &debugfs, &scratch, &interrupt).unwrap();
        let log = cat(&debugfs, &image, files::LOG);
        assert_eq!(log.len() as u64, staged.log.len() as u64 + summary.appended_bytes);
        assert!(!cat(&debugfs, &image, "srv/uploads/photo-1.jpg").is_empty());
        assert!(!cat(&debugfs, &image, &staged.samples[0].path).is_empty());
        assert!(cat(&debugfs, &image, &staged.samples[1].path).is_empty(), "removed");
        let fsck = tools::find("e2fsck").unwrap();
        tools::run(Command::new(fsck).args(["-n", "-f"]).arg(&image), None).unwrap();
    }

    #[test]
    fn changes_reach_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("log"), "ab").unwrap();
        let append = Change::Append { path: "log".into(), whole: b"abcd".to_vec(), added_bytes: 2 };
        apply_mounted(dir.path(), &append).unwrap();
        assert_eq!(fs::read(path("log")).unwrap(), b"abcd");
        apply_mounted(dir.path(), &Change::Write { path: "d/new".into(), contents: b"x".to_vec() }).unwrap();
        assert_eq!(fs::read(path("d/new")).unwrap(), b"x");
        apply_mounted(dir.path(), &Change::Remove { path: "log".into() }).unwrap();
        assert!(!path("log").exists());
    }
}
