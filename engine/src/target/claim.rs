//! Keeping others off a target, and finding out that somebody uses it.

use std::fs::{File, Metadata};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::refused;
use crate::error::{Error, Result};
use crate::io::claims;

/// How long a lock is waited for. A restore that was killed holds its own until the kernel has wound up its io_uring.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);
/// Programs that only look (blkid, a forked child before its exec) have a file open for an instant: only who is seen
/// so many times in a row uses it.
const LOOKS: u32 = 4;

const IN_USE: &str = "Shut down the guest or stop the program that uses it, or choose another target";

/// Refuses a file that another program has open for writing. Nothing may have it open for writing in this process.
pub(super) fn refuse_writers_of_file(name: &str, reading: &File) -> Result<()> {
    let meta = reading.metadata().map_err(Error::io("inspect", name))?;
    let deadline = Instant::now() + PATIENCE;
    let mut seen = 0;
    loop {
        let by_kernel = claims::is_open_for_writing(reading);
        if by_kernel == Some(false) {
            return Ok(());
        }
        let writers = claims::writers_of(&meta);
        seen = if writers.is_empty() { 0 } else { seen + 1 };
        match (by_kernel, writers.is_empty()) {
            (None, true) => return Ok(()),
            (_, false) if seen >= LOOKS => return Err(in_use(name, reading, &writers)),
            (Some(_), true) if Instant::now() > deadline => return Err(in_use(name, reading, &[])),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

/// Refuses a device that another program has open for writing, as far as that can be seen.
pub(super) fn refuse_writers_of_device(name: &str, meta: &Metadata) -> Result<()> {
    let mut writers = Vec::new();
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        writers = claims::writers_of(meta);
        if writers.is_empty() {
            return Ok(());
        }
    }
    Err(refused(name, format!("{} has it open for writing. {IN_USE}", writers.join(", "))))
}

fn in_use(name: &str, file: &File, writers: &[String]) -> Error {
    let who = writers.join(", ");
    if flock(file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        let who = if who.is_empty() { who } else { format!(" ({who})") };
        return refused(name, format!("another restore is writing it{who}"));
    }
    let who = if who.is_empty() { "a program that cannot be seen from here".to_owned() } else { who };
    refused(name, format!("{who} has it open for writing. {IN_USE}"))
}

/// Locks the target, as long as `file` is open, against other restores and against programs that lock what they use.
pub(super) fn lock(name: &str, file: &File) -> Result<()> {
    lock_against_restores(name, file)?;
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        match claims::lock_whole(file) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => {
                tracing::debug!("{name}: no byte-range locks there: {error}");
                return Ok(());
            }
        }
    }
    let why = "another program holds a lock on it, as QEMU does on the images of its guests";
    Err(refused(name, format!("{why}. {IN_USE}")))
}

fn lock_against_restores(name: &str, file: &File) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() > deadline => {
                let why = "another restore is writing it, or a program holds a lock (flock) on it";
                return Err(refused(name, why));
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(Errno::INTR) => {}
            // Not every filesystem has such locks: NFS without its lock daemon, Lustre, some of FUSE.
            Err(error) => {
                tracing::warn!(
                    "{name} cannot be locked ({error}): nothing but your care keeps a second restore off it"
                );
                return Ok(());
            }
        }
    }
}
