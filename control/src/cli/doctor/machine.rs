//! The machine itself: kernel, processor, memory, limits, clock.

use std::fs;
use std::path::Path;

use penstock_engine::io::{self, IoEngine, IoEngineChoice};
use rustix::process::{Resource, getrlimit};

use super::super::check::Check;
use super::super::{cgroup, host, units};

/// The oldest kernel whose io_uring is worth using: 5.10 is the oldest with long-term support.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// From here on the memory of io_uring's rings is not locked memory.
const KERNEL_MEMLOCK_FREE: (u32, u32) = (5, 12);
/// Below this, buffers, index and compression compete with everything else.
const MEMORY_BYTES_MIN: u64 = 512 << 20;
/// Locked memory that registered buffers and rings may need where they are counted.
const MEMLOCK_BYTES_MIN: u64 = 64 << 20;
/// Below this, connections and cached files get fewer than they would take.
const DESCRIPTORS_MIN: u64 = 512;
/// 2026-01-01T00:00:00Z: this program did not exist before.
const UNIX_S_MIN: i64 = 1_767_225_600;

pub fn checks() -> Vec<Check> {
    vec![
        kernel(),
        io_engine(),
        cores(),
        cpu_features(),
        memory(),
        memlock(),
        descriptors(),
        loop_devices(),
        clock(),
    ]
}

fn kernel() -> Check {
    let release = kernel_release();
    match kernel_version(&release) {
        Some(version) if version >= KERNEL_MIN => Check::ok("kernel", release),
        _ => Check::warn(
            "kernel",
            release,
            "Linux 5.10 or later is recommended: io_uring of older ones is not used",
        ),
    }
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn io_engine() -> Check {
    match io::choose(IoEngineChoice::Auto) {
        Ok((IoEngine::Uring, _)) => Check::ok("io_uring", "works"),
        Ok((IoEngine::Pread, why)) => Check::warn(
            "io_uring",
            format!("pread is used instead: {why}"),
            "allow it: sysctl kernel.io_uring_disabled=0; in a container, a seccomp profile that permits io_uring_*",
        ),
        Err(error) => Check::fail("io_uring", error.to_string(), "neither io_uring nor pread works here"),
    }
}

fn cores() -> Check {
    match std::thread::available_parallelism() {
        Ok(cores) => Check::ok("cores", cores.to_string()),
        Err(error) => Check::warn("cores", error.to_string(), "name the number of workers by --workers"),
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Check {
    let features = [
        ("AES-NI", std::arch::is_x86_feature_detected!("aes")),
        ("VAES", std::arch::is_x86_feature_detected!("vaes")),
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        (
            "AVX-512",
            std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vl"),
        ),
    ];
    let aes = features[0].1;
    let wide = features[2].1 || features[3].1;
    features_check(&features, aes, wide)
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Check {
    let features = [
        ("AES", std::arch::is_aarch64_feature_detected!("aes")),
        ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
    ];
    features_check(&features, features[0].1, features[1].1)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Check {
    Check::warn("processor", std::env::consts::ARCH, "only x86-64 and arm64 have fast hashing and encryption")
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn features_check(features: &[(&str, bool)], aes: bool, wide: bool) -> Check {
    let list = |has: bool| features.iter().filter(|f| f.1 == has).map(|f| f.0).collect::<Vec<_>>().join(", ");
    let found = match list(false).as_str() {
        "" => list(true),
        missing => format!("{}; without {missing}", list(true)),
    };
    match (aes, wide) {
        (false, _) => Check::warn("processor", found, "encryption is slow without AES instructions"),
        (true, false) => Check::warn("processor", found, "hashing is slow without AVX2"),
        (true, true) => Check::ok("processor", found),
    }
}

fn memory() -> Check {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = host::kib_field(&meminfo, "MemAvailable:") else {
        return Check::warn("memory", "unknown", "/proc/meminfo cannot be read");
    };
    let total = host::kib_field(&meminfo, "MemTotal:").unwrap_or(available);
    let limit = cgroup::memory_max_bytes();
    let usable = limit.map_or(available, |limit| limit.min(available));
    let mut found = format!("{} available of {}", units::size(available), units::size(total));
    if let Some(limit) = limit {
        found += &format!(", {} allowed by the cgroup", units::size(limit));
    }
    match usable {
        MEMORY_BYTES_MIN.. => Check::ok("memory", found),
        _ => Check::warn("memory", found, "at least 512 MiB should be free: use fewer --workers"),
    }
}

fn memlock() -> Check {
    match getrlimit(Resource::Memlock).current {
        None => Check::ok("memlock", "unlimited"),
        Some(bytes) if bytes >= MEMLOCK_BYTES_MIN => Check::ok("memlock", units::size(bytes)),
        Some(bytes) if rustix::process::geteuid().is_root() => {
            Check::ok("memlock", format!("{}, which does not bind root", units::size(bytes)))
        }
        Some(bytes) if kernel_version(&kernel_release()) >= Some(KERNEL_MEMLOCK_FREE) => Check::ok(
            "memlock",
            format!("{}, which this kernel does not count rings against", units::size(bytes)),
        ),
        Some(bytes) => Check::warn(
            "memlock",
            units::size(bytes),
            "kernels before 5.12 count io_uring's rings: `ulimit -l 65536` (KiB), or LimitMEMLOCK=64M in the unit",
        ),
    }
}

fn descriptors() -> Check {
    match getrlimit(Resource::Nofile).current {
        Some(max) if max < DESCRIPTORS_MIN => Check::warn(
            "descriptors",
            max.to_string(),
            "fewer requests at a time, and fewer cached files held open: `ulimit -n 1024`, or LimitNOFILE= in the unit",
        ),
        Some(max) => Check::ok("descriptors", max.to_string()),
        None => Check::ok("descriptors", "unlimited"),
    }
}

fn loop_devices() -> Check {
    let root = rustix::process::geteuid().is_root();
    match (root, Path::new("/dev/loop-control").exists()) {
        (true, true) => Check::ok("devices", "root, loop devices"),
        (true, false) => Check::ok("devices", "root, no loop devices (only the demo would use one)"),
        (false, _) => Check::warn(
            "devices",
            "not root",
            "block devices are opened as root, or as a member of group disk; image files need neither",
        ),
    }
}

fn clock() -> Check {
    let now = jiff::Timestamp::now();
    match now.as_second() {
        UNIX_S_MIN.. => Check::ok("clock", super::super::output::time(&now.to_string())),
        _ => Check::fail(
            "clock",
            super::super::output::time(&now.to_string()),
            "the clock is years behind: recovery points would sort wrongly. Set it (chrony, `timedatectl set-ntp true`)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(kernel_version("6.1.0-44-cloud-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.10.228"), Some((5, 10)));
        assert!(kernel_version("5.4.0") < Some(KERNEL_MIN));
        assert_eq!(kernel_version("unknown"), None);
    }
}
