//! How a finished file gets its name without ever taking one that is there: by an exclusive rename, or by a hard link
//! where the filesystem has no such rename (NFS, some of FUSE). Where there is neither, nothing can be put safely.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Renames without replacing; false if the name is taken.
pub fn publish(from: &Path, to: &Path) -> io::Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link(from, to),
        Err(e) => Err(e.into()),
    }
}

fn link(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from).map(|()| true),
        // Over a network, the answer to a link that was made may be lost, and the repetition finds the name taken.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_same(from, to) => {
            fs::remove_file(from).map(|()| true)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    inode(one).is_some_and(|found| inode(other) == Some(found))
}

/// Finds out, in a directory of this process's own, if the filesystem under `root` can publish at all. A few calls,
/// no sync.
pub fn probe(root: &Path, dir: &Path) -> Result<()> {
    let (from, to) = (dir.join("probe"), dir.join("probe-2"));
    let touch = |path: &Path| File::create(path).map(drop).map_err(Error::io("create", path.display()));
    match touch(&from) {
        // Whoever only deletes, to make room, needs no answer.
        Err(Error::Io { source, .. }) if is_full(&source) => return Ok(()),
        made => made?,
    }
    let moved = publish(&from, &to);
    let result = match &moved {
        Ok(true) => touch(&from).map(|()| publish(&from, &to)),
        _ => Ok(moved),
    };
    let _ = fs::remove_file(&from);
    let _ = fs::remove_file(&to);
    let refused = |why: &str| Error::Invalid {
        what: format!(
            "{}: {why}, so two writers could replace each other's objects. A repository needs a filesystem with hard \
             links or RENAME_NOREPLACE: ext4, xfs, btrfs, NFS; or an object store",
            root.display()
        ),
    };
    match result? {
        Ok(false) => Ok(()),
        Ok(true) => Err(refused("its filesystem replaces a file although it was asked not to")),
        Err(e) if is_missing_feature(&e) => Err(refused(&format!(
            "its filesystem can neither rename without replacing nor make hard links ({e})"
        ))),
        Err(e) => Err(Error::io("publish", to.display())(e)),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn is_missing_feature(error: &io::Error) -> bool {
    let codes = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL, libc::EMLINK, libc::ENOTTY];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Makes the names in a directory durable. Some filesystems have no sync of directories: what they promise of names,
/// they promise without.
pub fn sync_dir(path: &Path) -> Result<()> {
    match File::open(path).and_then(|dir| dir.sync_all()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)) => {
            tracing::debug!(path = %path.display(), "this filesystem has no sync of directories: {e}");
            Ok(())
        }
        result => result.map_err(Error::io("sync", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_way_is_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for way in [publish, link] {
            fs::write(&a, b"1").unwrap();
            assert!(way(&a, &b).unwrap() && !a.exists());
            fs::write(&a, b"2").unwrap();
            assert!(!way(&a, &b).unwrap());
            assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"2".to_vec(), b"1".to_vec()));
            fs::remove_file(&b).unwrap();
        }
        // the link was made, its answer was lost
        fs::hard_link(&a, &b).unwrap();
        assert!(link(&a, &b).unwrap() && !a.exists() && b.exists());
        probe(dir.path(), dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the probe leaves nothing");
    }
}
