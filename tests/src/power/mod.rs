//! A power cut without a switch: a filesystem (FUSE, in memory) that keeps, beside what programs see, what is on the
//! medium, and forgets the rest at a given moment.
//!
//! # What it forgets
//!
//! The model is what POSIX and the manual pages of `fsync` and `rename` promise, and nothing that a filesystem does
//! beyond that: no `data=ordered`, no order between operations, no directory entry that comes along when a file is
//! synced. ext4, XFS and btrfs each keep more, each something else; what holds here holds on all of them, and on
//! those to come.
//!
//! Of what was not synced, a cut decides by lot, each thing apart from the others:
//!
//! - **Contents**, a page of 4 KiB at a time, stay by `fsync` or `fdatasync` of the file, O_DIRECT or not (the device
//!   has a cache too). Without it a page is as last synced (zeros if it never was), as written, or torn between sectors.
//! - **The length of a file** stays by the same. Without it, it is as last synced (0 for a new file), or any that it
//!   had since. A length may stay without the contents (zeros), contents never without the length.
//! - **A name that came** (create, mkdir, link, rename) stays by `fsync` of its directory, and of all directories above
//!   whose names are new. Without it, it is there or not, and what is behind it is gone with it, synced or not.
//! - **A name that went** (unlink, rmdir, rename) stays away by the same. Without it, it may be there again.
//! - **A rename**: without `fsync` of the directory it goes to, the file has the old name, the new one, or both; never
//!   none, since a journal has it as one transaction. A name that a rename replaced is never missing.
//!
//! Requests after the cut fail (EIO) until the program is killed; the request at which it happens may have had its
//! effect, but is never answered. Permissions and times are never forgotten: nothing relies on them. How likely
//! things stay is drawn for each cut and kind ([`Odds`]): never, half of them, always; so that there are cuts that
//! forget only data, only additions, or let only removals through, which are those that find bugs.
//!
//! # What it is not
//!
//! Blocks of other files never show up in new ones, sectors are never half written, and what was once on the medium
//! does not rot (`damage` does that). Written versions of a page between the last synced and the last one are not
//! kept.
//!
//! Files are opened past the page cache (`FOPEN_DIRECT_IO`), so all writes come here in order, and no cache of the
//! kernel hides what was lost. Locks (`flock`) are the kernel's own. Not there: symbolic links, extended attributes
//! (ENOSYS: "not supported"), `O_TMPFILE`, `lseek` to holes.

mod disk;
mod layer;
mod stage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session};

pub use disk::{Attr, Disk, Flaw, Ino, Odds, PAGE_BYTES, ROOT};
use layer::{Layer, Shared};
pub use stage::{Act, Effect, Fate, Judgement, Place, Scene, Story, Which};

use crate::rng::Rng;
use crate::tools;
use crate::workdir::text;

/// A mounted disk. Dropped, it is unmounted.
pub struct Powered {
    dir: PathBuf,
    shared: std::sync::Arc<Shared>,
    session: Option<BackgroundSession>,
}

impl Powered {
    /// Mounts `disk` at `dir`, which is made. Everything stops at write-like request `stop_at`, counted from 1.
    ///
    /// # Panics
    /// If it cannot be mounted: that needs root and /dev/fuse.
    pub fn mount(disk: Disk, dir: &Path, stop_at: Option<u64>) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let shared = Shared::new(disk, stop_at);
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("penstock-power".into())];
        let session = Session::new(Layer(shared.clone()), dir, &config).and_then(Session::spawn);
        let session = session.unwrap_or_else(|error| {
            panic!(
                "cannot mount a FUSE filesystem at {}: {error}. It needs root and /dev/fuse",
                dir.display()
            )
        });
        Self { dir: dir.to_owned(), shared, session: Some(session) }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Write-like requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.state().requests
    }

    /// True once everything has stopped.
    pub fn is_stopped(&self) -> bool {
        self.shared.state().is_stopped
    }

    /// Waits so long at most until everything has stopped; true if it has.
    pub fn wait_stopped(&self, patience: Duration) -> bool {
        self.shared.wait_stopped(patience)
    }

    /// After a stop: goes on as if only the program had been killed. Nothing is lost.
    pub fn go_on(&self, stop_at: Option<u64>) {
        let mut state = self.shared.state();
        (state.is_stopped, state.stop_at) = (false, stop_at);
    }

    /// Cuts the power now, if everything did not stop before, and returns what is left on the medium. Whoever used it
    /// must have been killed.
    pub fn cut(self, rng: &mut Rng, odds: Odds) -> Disk {
        let disk = {
            let mut state = self.shared.state();
            state.is_stopped = true;
            state.disk.after_power_cut(rng, odds)
        };
        drop(self);
        disk
    }

    /// Unmounts it in peace: all is on the medium.
    pub fn settle(self) -> Disk {
        let mut disk = self.shared.state().disk.clone();
        drop(self);
        disk.settle();
        disk
    }
}

impl Drop for Powered {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // a killed program may hold files for a moment more: the kernel winds up its io_uring
        let mut unmounted = false;
        for _ in 0..50 {
            unmounted = tools::attempt("umount", &[text(&self.dir)]).is_ok();
            if unmounted {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if !unmounted && let Err(why) = tools::attempt("umount", &["--lazy", text(&self.dir)]) {
            eprintln!("left behind: {why}");
            return;
        }
        if unmounted {
            let _ = session.join();
        }
    }
}

#[cfg(test)]
mod tests;
