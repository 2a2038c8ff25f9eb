//! Loop devices: real block devices over files.

use std::path::{Path, PathBuf};

use crate::tools;
use crate::workdir::text;

/// An attached loop device; dropped, it is detached.
#[derive(Debug)]
pub struct LoopDev {
    device: PathBuf,
}

impl LoopDev {
    /// Attaches `file` for reading and writing, with direct I/O to the file, so that the page cache holds it once at most.
    pub fn attach(file: &Path) -> Self {
        Self::losetup(&["--direct-io=on", "--find", "--show", text(file)])
    }

    /// Attaches `file` read-only.
    pub fn attach_read_only(file: &Path) -> Self {
        Self::losetup(&["--read-only", "--direct-io=on", "--find", "--show", text(file)])
    }

    /// `losetup --find` races with other users of loop devices; the loser tries again.
    fn losetup(args: &[&str]) -> Self {
        let mut last = String::new();
        for attempt in 0..20 {
            match tools::attempt("losetup", args) {
                Ok(device) => return Self { device: PathBuf::from(device) },
                Err(why) => last = why,
            }
            std::thread::sleep(std::time::Duration::from_millis(20 * (attempt + 1)));
        }
        panic!("no loop device: {last}");
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.device
    }

    /// `/dev/loopN` as text.
    pub fn text(&self) -> &str {
        text(&self.device)
    }

    /// Writes back and forgets what the page cache holds of the device, so that the next read comes from the file.
    pub fn flush(&self) {
        tools::run("blockdev", &["--flushbufs", self.text()]);
    }
}

impl Drop for LoopDev {
    fn drop(&mut self) {
        if let Err(why) = tools::attempt("losetup", &["--detach", self.text()]) {
            eprintln!("left behind: {why}");
        }
    }
}
