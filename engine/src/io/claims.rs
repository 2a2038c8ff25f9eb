//! Which other programs use a file: the locks they hold, and whether one has it open for writing. `rustix` has no safe
//! call for these locks and leases.

use std::ffi::c_int;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::fstatfs;

/// `F_SETSIG` of Linux, which the libc crate does not name everywhere.
const F_SETSIG: c_int = 10;
/// Filesystems whose server alone knows who else writes: they refuse a lease for other reasons, too.
const NETWORK_FILESYSTEMS: [i128; 4] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42];

/// Locks the whole file for writing, as long as this descriptor is open, against the byte-range locks of other
/// programs: QEMU and its like hold such locks on the images of their guests. False if somebody holds one; the error is
/// the kernel's where the filesystem has no such locks.
pub fn lock_whole(file: &File) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // to the end of the file, however long it gets
        l_pid: 0, // as the call requires
    };
    loop {
        // SAFETY: `lock` is a live, initialised `flock`, which the command only reads; the descriptor is open for the
        // time of the call, and the kernel keeps no pointer.
        #[allow(unsafe_code)]
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        match (result, io::Error::last_os_error()) {
            (-1, e) if e.kind() == io::ErrorKind::Interrupted => {}
            (-1, e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => return Ok(false),
            (-1, e) => return Err(e),
            _ => return Ok(true),
        }
    }
}

/// A lock of `fcntl(2)` that somebody holds on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// First byte.
    pub start: u64,
    /// Bytes; 0: up to the end, however far that is.
    pub len: u64,
}

/// The first lock, of a process or of an open file (OFD), that would be in the way of a lock of `len` bytes from
/// `start` (0: up to the end): one for writing, or with `any` one for reading as well. Nothing is locked. `None` also
/// where locks cannot be asked for (NFS without lockd). rustix has the call, but takes no lock of an open file for an
/// answer: their process is -1.
pub fn held_lock(file: &File, any: bool, start: u64, len: u64) -> Option<HeldLock> {
    let mut lock = libc::flock {
        l_type: if any { libc::F_WRLCK as libc::c_short } else { libc::F_RDLCK as libc::c_short },
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::try_from(start).ok()?,
        l_len: libc::off_t::try_from(len).ok()?,
        l_pid: 0, // as the call requires
    };
    // SAFETY: F_OFD_GETLK reads and writes one `flock`, which `lock` is, borrowed alone for the call; the descriptor is
    // kept open by `file`.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 || lock.l_type == libc::F_UNLCK as libc::c_short {
        return None;
    }
    Some(HeldLock { start: u64::try_from(lock.l_start).ok()?, len: u64::try_from(lock.l_len).ok()? })
}

/// True if any descriptor, of any process, has the file open for writing: the kernel counts them. `file` has to be
/// open for reading only, and regular. `None` where the kernel cannot tell: a network filesystem, a file of another
/// user's, a filesystem without leases.
pub fn is_open_for_writing(file: &File) -> Option<bool> {
    let fd = file.as_raw_fd();
    let call = |command: c_int, value: c_int| {
        // SAFETY: these commands of fcntl take an integer and touch no memory of this process; the descriptor is open.
        #[allow(unsafe_code)]
        let result = unsafe { libc::fcntl(fd, command, value) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // A read lease is granted only if nobody has the file open for writing. Whoever opens it for writing in the instant
    // before the lease is given back makes the kernel signal its holder: with one that is ignored unless asked for.
    call(F_SETSIG, libc::SIGURG).ok()?;
    match call(libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => {
            // Closing the descriptor would do it as well.
            let _ = call(libc::F_SETLEASE, libc::F_UNLCK);
            Some(false)
        }
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && !is_on_network(file) => Some(true),
        Err(_) => None,
    }
}

fn is_on_network(file: &File) -> bool {
    fstatfs(file).is_ok_and(|stat| NETWORK_FILESYSTEMS.contains(&(i128::from(stat.f_type) & 0xffff_ffff)))
}

/// Programs that have this file or block device open for writing, as `qemu-system-x86 (process 4711)`: those whose
/// descriptors `/proc` shows to this process.
pub fn writers_of(meta: &Metadata) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbered = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbered.filter(|process| writes(*process, meta)).map(name_of).collect()
}

fn writes(process: u32, meta: &Metadata) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let is_device = meta.file_type().is_block_device();
    // Not every descriptor is asked for a device: a file on a server that is gone would not answer.
    let may_be = |to: io::Result<PathBuf>| {
        !is_device
            || to.is_ok_and(|to| to.as_os_str().as_encoded_bytes().windows(5).any(|part| part == b"/dev/"))
    };
    descriptors.flatten().any(|entry| {
        let is_it = may_be(fs::read_link(entry.path()))
            && fs::metadata(entry.path()).is_ok_and(|open| is_same(&open, meta));
        is_it && is_writable(process, &entry.file_name().to_string_lossy())
    })
}

/// The same inode, or the same device under whatever name.
fn is_same(a: &Metadata, b: &Metadata) -> bool {
    if a.file_type().is_block_device() && b.file_type().is_block_device() {
        return a.rdev() == b.rdev();
    }
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// By the descriptor's flags, in octal as `open` took them.
fn is_writable(process: u32, descriptor: &str) -> bool {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32)
}

fn name_of(process: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    format!("{} (process {process})", name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_counted_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, b"x").unwrap();
        let reading = File::open(&path).unwrap();
        assert_ne!(is_open_for_writing(&reading), Some(true));
        assert!(writers_of(&reading.metadata().unwrap()).is_empty());
        let writing = File::options().write(true).open(&path).unwrap();
        assert_ne!(is_open_for_writing(&reading), Some(false));
        let named = writers_of(&reading.metadata().unwrap());
        assert!(named.len() == 1 && named[0].contains(&std::process::id().to_string()), "{named:?}");
        drop(writing);
        assert_ne!(is_open_for_writing(&reading), Some(true));
    }

    #[test]
    fn locks_of_others_are_respected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, b"x").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (ours, theirs) = (open(), open());
        assert!(lock_whole(&theirs).unwrap());
        assert!(!lock_whole(&ours).unwrap());
        assert!(lock_whole(&theirs).unwrap(), "not against itself");
        drop(theirs);
        assert!(lock_whole(&ours).unwrap());
    }

    /// Python, for a lock that this process does not hold itself: (OFD, for writing, first byte, bytes).
    fn with_lock(path: &std::path::Path, lock: (bool, bool, u64, u64), look: impl FnOnce()) {
        let (ofd, writing, start, len) = lock;
        let script = format!(
            "import fcntl, struct, sys\n\
             f = open(sys.argv[1], 'r+b')\n\
             kind = fcntl.F_WRLCK if {writing} else fcntl.F_RDLCK\n\
             fcntl.fcntl(f, {command}, struct.pack('hhqqi4x', kind, 0, {start}, {len}, 0))\n\
             print('locked', flush=True)\n\
             sys.stdin.read()\n",
            writing = if writing { "True" } else { "False" },
            command = if ofd { "fcntl.F_OFD_SETLK" } else { "fcntl.F_SETLK" },
        );
        let mut python = std::process::Command::new("python3")
            .args(["-c", &script, path.to_str().unwrap()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = std::io::BufReader::new(python.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut said).unwrap();
        assert_eq!(said, "locked\n");
        look();
        drop(python.stdin.take());
        python.wait().unwrap();
    }

    #[test]
    fn locks_of_processes_and_of_open_files_are_seen() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"contents").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(held_lock(&file, true, 0, 0), None);
        for ofd in [true, false] {
            with_lock(&path, (ofd, false, 101, 1), || {
                assert_eq!(held_lock(&file, true, 0, 0), Some(HeldLock { start: 101, len: 1 }));
                assert_eq!((held_lock(&file, false, 0, 0), held_lock(&file, true, 0, 101)), (None, None));
            });
            with_lock(&path, (ofd, true, 5, 0), || {
                assert_eq!(held_lock(&file, false, 0, 0), Some(HeldLock { start: 5, len: 0 }));
            });
        }
    }
}
