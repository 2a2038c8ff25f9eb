//! Loop devices and mounts that are always taken down again, and a one-call reader.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use penstock_engine::io::{BufPool, IoEngine, OpenFile, ReadJob, ReadResult, spawn_readers};

pub const ENGINES: [IoEngine; 2] = [IoEngine::Uring, IoEngine::Pread];

/// A directory on the disk of the build, not on a tmpfs.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Loop devices and mounts need root; elsewhere these tests say so and pass.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !root {
        eprintln!("skipped: needs root and loop devices");
    }
    root
}

pub fn run(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().unwrap();
    assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

/// Bytes that differ from block to block, never zero.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i / 512 * 31 + i) % 251 + 1) as u8).collect()
}

/// A loop device over a file.
pub struct Loop(pub PathBuf);

impl Loop {
    pub fn over(file: &Path, extra: &[&str]) -> Self {
        let mut args = vec!["--find", "--show"];
        args.extend(extra);
        args.push(file.to_str().unwrap());
        Self(run("losetup", &args).into())
    }

    /// Over a new sparse file.
    pub fn new(dir: &Path, size_bytes: u64) -> Self {
        let path = dir.join(format!("loop-{size_bytes}"));
        File::create(&path).unwrap().set_len(size_bytes).unwrap();
        Self::over(&path, &[])
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A partition that a test added outlives the detached device otherwise.
        let _ = Command::new("delpart").args([self.path(), "1"]).output();
        let _ = Command::new("losetup").args(["--detach", self.path()]).status();
    }
}

pub struct Mount(PathBuf);

impl Mount {
    pub fn new(device: &str, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &["-o", options, device, at.to_str().unwrap()]);
        Self(at.into())
    }
}

impl Mount {
    /// A filesystem without a device.
    pub fn of_type(fs: &str, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &["-t", fs, fs, at.to_str().unwrap()]);
        Self(at.into())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Some tests have unmounted it already. Lazily, as it may be busy: a child forked by another test holds all
        // descriptors until its exec.
        let _ = Command::new("umount").args(["--quiet", "--lazy"]).arg(&self.0).output();
    }
}

/// All results of these jobs, in the order of their tags.
pub fn read_jobs(engine: IoEngine, jobs: Vec<ReadJob<u64>>, buf_bytes: usize) -> Vec<ReadResult<u64>> {
    let pool = BufPool::new(jobs.len().max(3), buf_bytes);
    let (job_tx, job_rx) = async_channel::unbounded();
    let (done_tx, done_rx) = crossbeam::channel::unbounded();
    let threads = spawn_readers(engine, 2, 3, job_rx, pool.clone(), done_tx).unwrap();
    for job in jobs {
        job_tx.send_blocking(job).unwrap();
    }
    drop(job_tx);
    let mut results: Vec<_> = done_rx.iter().collect();
    for thread in threads {
        thread.join().unwrap();
    }
    results.sort_by_key(|result| match result {
        Ok(done) => done.tag,
        Err((tag, _)) => *tag,
    });
    results
}

/// The whole volume, read in segments of 4 MiB.
pub fn read_all(engine: IoEngine, file: &Arc<OpenFile>) -> Vec<u8> {
    const SEGMENT: u64 = 4 << 20;
    let jobs = (0..file.size_bytes.div_ceil(SEGMENT)).map(|no| ReadJob {
        tag: no,
        file: file.clone(),
        offset_bytes: no * SEGMENT,
        ranges: std::iter::once(0..(file.size_bytes - no * SEGMENT).min(SEGMENT) as u32).collect(),
    });
    let mut bytes = Vec::new();
    for done in read_jobs(engine, jobs.collect(), SEGMENT as usize) {
        let done = done.unwrap();
        let len = (file.size_bytes - done.offset_bytes).min(SEGMENT) as usize;
        assert_eq!(done.read_bytes, len as u64);
        assert!(done.buf[len..len.next_multiple_of(4096)].iter().all(|&b| b == 0), "padding");
        bytes.extend_from_slice(&done.buf[..len]);
    }
    bytes
}
