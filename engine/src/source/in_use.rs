//! Who writes a file or device that is about to be read: programs that have it open for writing, and locks.

use std::fs::{File, Metadata};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::io::claims::{HeldLock, held_lock, is_open_for_writing, writers_of};

/// Times that a writer is looked for, and the pause between: a child process before its exec, or a program that only
/// looks, holds a file for an instant.
const LOOKS: u32 = 4;
const PAUSE_MS: u64 = 25;

/// Where QEMU's locks of an image begin: one byte for each permission that somebody uses, and from
/// [`QEMU_SHARED`] on one for each that is denied to others (`block/file-posix.c`: RAW_LOCK_PERM_BASE).
const QEMU_PERMISSIONS: u64 = 100;
const QEMU_SHARED: u64 = 200;
/// The permissions write, write unchanged and resize.
const QEMU_WRITERS: u64 = QEMU_PERMISSIONS + 1;
const QEMU_WRITERS_LEN: u64 = 3;

/// What writes `file`, in words for "…, so it can change while it is read"; `None` if nothing was found.
///
/// `file` is open read-only and may be a block device; `loops` says that loop devices are attached to it: they have it
/// open for writing whether anything uses them or not, and who uses them is found out elsewhere.
pub fn writer_of(file: &File, meta: &Metadata, loops: bool) -> Option<String> {
    let mut found = None;
    for look in 0..LOOKS {
        thread::sleep(Duration::from_millis(if look > 0 { PAUSE_MS } else { 0 }));
        found = writer_now(file, meta, loops);
        if found.is_none() {
            break;
        }
    }
    found
}

fn writer_now(file: &File, meta: &Metadata, loops: bool) -> Option<String> {
    let who = |writers: Vec<String>| (!writers.is_empty()).then(|| writers.join(", "));
    if let Some(what) = lock_on(file) {
        return Some(match who(writers_of(meta)) {
            Some(who) => format!("{what} ({who})"),
            None => what,
        });
    }
    if !meta.is_file() || loops {
        return None;
    }
    let is_open = is_open_for_writing(file);
    if is_open == Some(false) {
        return None;
    }
    // Where there are no leases, what can be seen of other processes has to do.
    let unseen = is_open.map(|_| "a program".to_owned());
    who(writers_of(meta)).or(unseen).map(|who| format!("{who} has it open for writing"))
}

/// A lock that a writer holds: QEMU's, an exclusive one of `flock(2)`, or one for writing of `fcntl(2)`.
fn lock_on(file: &File) -> Option<String> {
    // Length 0 is up to the end, however far that is.
    if held_lock(file, false, 0, 0).is_some() {
        return Some("a program holds a lock for writing on it".into());
    }
    // QEMU locks single bytes, which the kernel joins where they are neighbours: a longer lock is somebody else's.
    let is_qemus = |lock: HeldLock| {
        let end = lock.start.saturating_add(lock.len);
        lock.len > 0 && lock.start >= QEMU_PERMISSIONS && end <= QEMU_SHARED
    };
    if held_lock(file, true, QEMU_WRITERS, QEMU_WRITERS_LEN).is_some_and(is_qemus) {
        return Some("QEMU writes it, as its locks say".into());
    }
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            let _ = flock(file, FlockOperation::Unlock);
            None
        }
        Err(Errno::WOULDBLOCK) => Some("a program has locked it exclusively".into()),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn found(path: &Path) -> Option<String> {
        let file = File::open(path).unwrap();
        writer_of(&file, &file.metadata().unwrap(), false)
    }

    #[test]
    fn writers_and_exclusive_locks_are_found_and_readers_are_not() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, [1; 4096]).unwrap();
        let reader = File::open(&path).unwrap();
        flock(&reader, FlockOperation::LockShared).unwrap();
        assert_eq!(found(&path), None);
        flock(&reader, FlockOperation::LockExclusive).unwrap();
        assert!(found(&path).unwrap().contains("locked it exclusively"));
        drop(reader);
        let writer = File::options().write(true).open(&path).unwrap();
        let text = found(&path).unwrap();
        let own = format!("(process {}) has it open for writing", std::process::id());
        assert!(text.ends_with(&own), "{text}");
        drop(writer);
        assert_eq!(found(&path), None);
    }
}
