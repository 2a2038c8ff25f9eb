//! What the control group of this process allows: containers and units are given less memory than the machine has, and
//! a program that takes one buffer a core is killed there without a word.

use std::fs;
use std::path::Path;

/// What a backup or restore needs besides its workers, and for each of them (docs/OPERATIONS.md, Memory).
const BASE_BYTES: u64 = 110 << 20;
const WORKER_BYTES: u64 = 38 << 20;
/// Larger limits are none: cgroup v1 says "no limit" by a number near 2^63.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// The memory that this process's control group, or one above it, allows. `None`: no limit, or it cannot be told.
pub fn memory_max_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    memory_max_in(Path::new("/sys/fs/cgroup"), &groups)
}

fn memory_max_in(root: &Path, groups: &str) -> Option<u64> {
    groups.lines().filter_map(|line| of_group(root, line)).min()
}

/// `0::/path` is version 2, `7:memory:/path` version 1. Inside a container the path may be that of the host, and not be
/// there: then the root is the container's own.
fn of_group(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, file) = match controllers {
        "" => (root.to_owned(), "memory.max"),
        names if names.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let relative = Path::new(path.trim_start_matches('/'));
    let limit = |dir: &Path| fs::read_to_string(root.join(dir).join(file)).ok()?.trim().parse::<u64>().ok();
    relative.ancestors().filter_map(limit).filter(|bytes| *bytes < NO_LIMIT_BYTES).min()
}

/// How many workers fit into so much memory, at least one.
pub fn workers_within(memory_bytes: u64) -> usize {
    usize::try_from(memory_bytes.saturating_sub(BASE_BYTES) / WORKER_BYTES).unwrap_or(usize::MAX).max(1)
}

/// What so many workers need.
pub fn memory_of(workers: usize) -> u64 {
    BASE_BYTES + WORKER_BYTES * workers as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_either_version_and_of_groups_above_are_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let max = |groups: &str| memory_max_in(root.path(), groups);
        assert_eq!(max("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(max("0::/a/b\n"), None);
        write("a/memory.max", "268435456\n");
        assert_eq!(max("0::/a/b\n"), Some(256 << 20));
        write("memory.max", "1000000\n");
        assert_eq!(max("0::/not/there\n"), Some(1_000_000), "a container sees its own group as the root");
        write("memory/x/memory.limit_in_bytes", "500000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(max("3:cpu:/x\n2:memory,other:/x\n"), Some(500_000));
        assert_eq!(max(""), None);
    }

    #[test]
    fn workers_follow_memory() {
        assert_eq!((workers_within(0), workers_within(256 << 20), workers_within(4 << 30)), (1, 3, 104));
        assert!(memory_of(workers_within(256 << 20)) <= 256 << 20);
    }
}
