//! Sources with places that cannot be read.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use penstock_engine::backup::findings::{UNREADABLE, ranges_of};
use penstock_engine::backup::{self, BackupOptions, BackupReport, OnReadError, Parent, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::{Extents, Fetched, OpenFile, RangeSource, Source, SourceKind};
use penstock_engine::store::MemoryStore;
use penstock_engine::{Error, Result, Run};

const SEGMENT: usize = 4 << 20;

/// A disk in memory, with places that answer with an error.
struct Disk {
    contents: Vec<u8>,
    bad: Vec<Range<u64>>,
    error: i32,
    asked: Mutex<Vec<Range<u64>>>,
}

impl RangeSource for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn parallel(&self) -> usize {
        2
    }

    fn fetch(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> Result<Fetched> {
        let mut parts = Vec::new();
        for range in ranges {
            let wanted = offset_bytes + u64::from(range.start)..offset_bytes + u64::from(range.end);
            self.asked.lock().unwrap().push(wanted.clone());
            if self.bad.iter().any(|bad| bad.start < wanted.end && wanted.start < bad.end) {
                let error = std::io::Error::from_raw_os_error(self.error);
                return Err(Error::Io {
                    action: "read",
                    object: format!("disk at {}", wanted.start),
                    source: error,
                });
            }
            let bytes = &self.contents[wanted.start as usize..wanted.end as usize];
            parts.push((range.start, Bytes::copy_from_slice(bytes)));
        }
        Ok(Fetched { parts, kept: Vec::new(), held: Box::new(()) })
    }
}

struct DiskSource(Arc<Disk>);

impl Source for DiskSource {
    fn name(&self) -> &str {
        "disk"
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.0.contents.len() as u64)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Device
    }

    fn logical_block_bytes(&self) -> u32 {
        512
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let size = self.0.contents.len() as u64;
        Ok((from < size).then_some(from..size))
    }

    fn identity(&self) -> Option<String> {
        Some("the same".into())
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        None
    }

    fn ranges(&self) -> Option<Arc<dyn RangeSource>> {
        Some(self.0.clone())
    }
}

struct Case {
    repo: Repository,
    state: tempfile::TempDir,
    contents: Vec<u8>,
}

impl Case {
    fn new() -> Self {
        let access = AccessKey::key_file(vec![7; 40]).unwrap();
        let repo =
            Repository::init(Arc::new(MemoryStore::default()), &InitOptions::default(), &access).unwrap();
        let mut contents = vec![0; 4 * SEGMENT + 4096 + 512];
        blake3::Hasher::new().finalize_xof().fill(&mut contents);
        Self { repo, state: tempfile::tempdir().unwrap(), contents }
    }

    fn disk(&self, bad: &[Range<u64>]) -> Arc<Disk> {
        let (contents, bad) = (self.contents.clone(), bad.to_vec());
        Arc::new(Disk { contents, bad, error: 5, asked: Mutex::default() })
    }

    fn back_up(&self, disk: &Arc<Disk>, list: Option<(&str, Vec<Range<u64>>)>) -> Result<BackupReport> {
        let options = BackupOptions {
            name: "m".into(),
            workers: 2,
            parent: list.as_ref().map_or(Parent::Latest, |(parent, _)| Parent::Point((*parent).into())),
            on_read_error: OnReadError::Zero,
            state_dir: self.state.path().to_owned(),
            ..BackupOptions::default()
        };
        self.run(disk, list.map(|(_, ranges)| ranges), &options)
    }

    fn run(
        &self,
        disk: &Arc<Disk>,
        list: Option<Vec<Range<u64>>>,
        options: &BackupOptions,
    ) -> Result<BackupReport> {
        let source = Box::new(DiskSource(disk.clone()));
        let changed_extents = list.map(Extents::from_ranges);
        let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents }];
        backup::run(&self.repo, volumes, options, &Arc::new(Run::new()))
    }

    fn restored(&self, report: &BackupReport) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        let options =
            RestoreOptions { state_dir: Some(dir.path().join("state")), ..RestoreOptions::default() };
        let to = RestoreTarget::Path(path.clone());
        let (point, run) = (&report.point, Arc::new(Run::new()));
        restore::run(&self.repo, point, &point.volumes[0], to, &options, &run).unwrap();
        std::fs::read(path).unwrap()
    }

    /// What there is where `bad` is zeros.
    fn with_zeros(&self, bad: &[Range<u64>]) -> Vec<u8> {
        let mut contents = self.contents.clone();
        bad.iter().for_each(|range| contents[range.start as usize..range.end as usize].fill(0));
        contents
    }
}

#[test]
fn a_place_that_cannot_be_read_is_an_error_unless_zeros_are_wanted() {
    let case = Case::new();
    let disk = case.disk(&[5_000_000..5_000_001]);
    let options =
        BackupOptions { name: "m".into(), state_dir: case.state.path().into(), ..Default::default() };
    let error = case.run(&disk, None, &options).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(case.repo.point_ids().unwrap().is_empty());
}

#[test]
fn zeros_are_stored_recorded_and_read_again() {
    let case = Case::new();
    // In the middle of a segment, over a border, and at the very end; in blocks of 4 KiB.
    let end = case.contents.len() as u64;
    let border = 2 * SEGMENT as u64;
    let bad = [5_000_000..5_000_001, border - 512..border + 5000, end - 512..end];
    let blocks = [
        5_000_000 / 4096 * 4096..5_000_000 / 4096 * 4096 + 4096,
        border - 4096..border + 8192,
        end - 512..end,
    ];
    let first = case.back_up(&case.disk(&bad), None).unwrap();
    assert!(first.in_part && first.notes.iter().any(|note| note.contains("ZEROS")), "{:?}", first.notes);
    assert_eq!(ranges_of(&first.point.volumes[0], UNREADABLE), blocks);
    assert!(case.restored(&first) == case.with_zeros(&blocks));
    // By a list of nothing: what was recorded is tried again, and still is as bad in one place.
    let disk = case.disk(&bad[..1]);
    let second = case.back_up(&disk, Some((&first.point.id, vec![]))).unwrap();
    assert_eq!(ranges_of(&second.point.volumes[0], UNREADABLE), blocks[..1]);
    assert!(case.restored(&second) == case.with_zeros(&blocks[..1]));
    assert!(
        disk.asked.lock().unwrap().iter().all(|asked| asked.start >= SEGMENT as u64),
        "the rest is not read"
    );
    let third = case.back_up(&case.disk(&[]), Some((&second.point.id, vec![]))).unwrap();
    assert!(!third.in_part && ranges_of(&third.point.volumes[0], UNREADABLE).is_empty());
    assert!(case.restored(&third) == case.contents);
}

#[test]
fn only_errors_of_the_medium_are_read_around() {
    let case = Case::new();
    for error in [libc_enodev(), libc_etimedout()] {
        let disk = Disk { contents: case.contents.clone(), bad: vec![0..1], error, asked: Mutex::default() };
        assert!(case.back_up(&Arc::new(disk), None).is_err());
    }
    // A disk of which nothing can be read is not backed up as zeros.
    let all = 0..case.contents.len() as u64;
    let error = case.back_up(&case.disk(&[all]), None).unwrap_err();
    assert!(error.to_string().contains("nothing of it can be read"), "{error}");
    assert!(case.repo.point_ids().unwrap().is_empty());
}

fn libc_enodev() -> i32 {
    rustix::io::Errno::NODEV.raw_os_error()
}

fn libc_etimedout() -> i32 {
    rustix::io::Errno::TIMEDOUT.raw_os_error()
}

#[test]
fn what_could_not_be_read_is_tried_again_by_a_run_that_goes_on() {
    let case = Case::new();
    let bad = [4096..8192];
    // The run is interrupted at the fourth segment: its journal has those that were finished.
    let run = Arc::new(Run::new());
    let source =
        Box::new(InterruptedSource(Arc::new(Interrupted { disk: case.disk(&bad), run: run.clone() })));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
    let options = BackupOptions {
        name: "m".into(),
        workers: 1,
        on_read_error: OnReadError::Zero,
        state_dir: case.state.path().to_owned(),
        ..BackupOptions::default()
    };
    assert!(matches!(backup::run(&case.repo, volumes, &options, &run), Err(Error::Cancelled)));
    let report = case.back_up(&case.disk(&bad), None).unwrap();
    assert_eq!(ranges_of(&report.point.volumes[0], UNREADABLE), bad);
    assert!(report.in_part && case.restored(&report) == case.with_zeros(&bad));
    assert!(report.resumed_bytes >= SEGMENT as u64, "what was read is taken over: {}", report.resumed_bytes);
}

/// A disk whose backup is interrupted at its fourth segment, when the three before are done.
struct Interrupted {
    disk: Arc<Disk>,
    run: Arc<Run>,
}

struct InterruptedSource(Arc<Interrupted>);

impl RangeSource for Interrupted {
    fn name(&self) -> &str {
        "disk"
    }

    fn parallel(&self) -> usize {
        1
    }

    fn fetch(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> Result<Fetched> {
        if offset_bytes >= 3 * SEGMENT as u64 {
            let done = || self.run.progress.done_bytes.load(Ordering::SeqCst) >= 3 * SEGMENT as u64;
            for _ in (0..30_000).take_while(|_| !done()) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            self.run.cancel();
        }
        self.disk.fetch(offset_bytes, ranges)
    }
}

impl Source for InterruptedSource {
    fn name(&self) -> &str {
        "disk"
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.0.disk.contents.len() as u64)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Device
    }

    fn logical_block_bytes(&self) -> u32 {
        512
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        DiskSource(self.0.disk.clone()).next_data(from)
    }

    fn identity(&self) -> Option<String> {
        Some("the same".into())
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        None
    }

    fn ranges(&self) -> Option<Arc<dyn RangeSource>> {
        Some(self.0.clone())
    }
}
