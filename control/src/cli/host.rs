//! What the program asks its machine: name, resources used, directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::exit::Failure;

/// This program, as recorded in what it writes.
pub const PROGRAM: &str = concat!("penstock ", env!("CARGO_PKG_VERSION"));

/// Host name, as the kernel knows it.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// CPU time of this process so far, all threads, user and system.
pub fn cpu_ms() -> u64 {
    let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
    fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_ticks(&stat)).unwrap_or(0) * 1000
        / ticks_per_s
}

/// Fields 14 and 15 of `/proc/PID/stat`; field 2 may hold blanks and parentheses, so counting starts after it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The most memory this process has had resident.
pub fn memory_peak_bytes() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|status| kib_field(&status, "VmHWM:")).unwrap_or(0)
}

/// A line like `VmHWM:   1234 kB` of a file in `/proc`, in bytes.
pub fn kib_field(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What an ordinary user may still write to the filesystem of `dir`.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Descriptors up to the hard limit: the soft one is low for the sake of programs that use `select`.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!("the limit of descriptors stays at {:?}: {error}", limit.current);
        }
    }
}

/// True on EC2 instances of the Nitro system, as the firmware says; `sys` stands for `/sys`. Nothing is asked over the network.
pub fn is_ec2(sys: &Path) -> bool {
    fs::read_to_string(sys.join("class/dmi/id/sys_vendor")).is_ok_and(|vendor| vendor.trim() == "Amazon EC2")
}

/// Where journals of unfinished work are kept: `$PENSTOCK_STATE_DIR`, `$XDG_STATE_HOME/penstock`, `~/.local/state/penstock`.
pub fn state_dir() -> Result<PathBuf, Failure> {
    let of_variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    state_dir_of(of_variable("PENSTOCK_STATE_DIR"), of_variable("XDG_STATE_HOME"), std::env::home_dir())
        .ok_or_else(|| {
            Failure::usage(
                "there is no home directory to keep the state of unfinished work in: set PENSTOCK_STATE_DIR",
            )
        })
}

fn state_dir_of(own: Option<PathBuf>, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    own.or_else(|| xdg.filter(|dir| dir.is_absolute()).map(|dir| dir.join("penstock")))
        .or_else(|| home.filter(|dir| dir.is_absolute()).map(|dir| dir.join(".local/state/penstock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a"), None);
        assert_eq!(kib_field("VmPeak: 9 kB\nVmHWM:\t  12 kB\n", "VmHWM:"), Some(12 << 10));
        assert!(memory_peak_bytes() > 0);
        assert!(!name().is_empty());
    }

    #[test]
    fn state_dir_precedence() {
        let p = |s: &str| Some(PathBuf::from(s));
        assert_eq!(state_dir_of(p("x"), p("/s"), p("/h")), p("x"));
        assert_eq!(state_dir_of(None, p("/s"), p("/h")), p("/s/penstock"));
        assert_eq!(state_dir_of(None, p("relative"), p("/h")), p("/h/.local/state/penstock"));
        assert_eq!(state_dir_of(None, None, None), None);
    }
}
