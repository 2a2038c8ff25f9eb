//! External programs (`losetup`, `mount`, `mkfs.*`, …). A missing one fails the test and names its Debian package.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

const PACKAGES: [(&str, &str); 13] = [
    ("losetup", "mount"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("blockdev", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("prlimit", "util-linux"),
    ("strace", "strace"),
    ("strip", "binutils"),
    ("ldd", "libc-bin"),
    ("cp", "coreutils"),
    ("sync", "coreutils"),
];

/// Runs `program` and returns its standard output.
///
/// # Panics
/// If it is not installed or fails; the message has the command, its output and the package to install.
pub fn run<I: AsRef<OsStr>>(program: &str, args: &[I]) -> String {
    match attempt(program, args) {
        Ok(stdout) => stdout,
        Err(why) => panic!("{why}"),
    }
}

/// As [`run`], for callers that have another way to go on.
pub fn attempt<I: AsRef<OsStr>>(program: &str, args: &[I]) -> Result<String, String> {
    let shown = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().map_err(|error| {
        let package =
            PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
        format!("cannot run `{program} {shown}`: {error}. These tests need it: apt-get install {package}")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "`{program} {shown}` failed ({}): {} (these tests run as root)",
        output.status,
        stderr.trim()
    ))
}
