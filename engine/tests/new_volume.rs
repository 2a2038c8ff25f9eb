//! Restores to volumes that are new, and that have another name when the restore goes on.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod common;

use std::fs::{self, File};
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::{Loop, is_root, scratch};
use penstock_engine::backup::{self, BackupOptions, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::{Extents, StreamSource};
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::{Error, Result, Run};

const MIB: usize = 1 << 20;

/// A store that fails for good at some read of a pack, but not before the restore has written something.
struct Failing {
    objects: MemoryStore,
    reads_left: AtomicI64,
    run: Arc<Run>,
}

impl Store for Failing {
    fn location(&self) -> &str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.objects.put_new(key, body)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        // Chunks come in long ranges; where they lie is found out by short reads.
        let long = matches!(span, Span::At { len, .. } if len > MIB);
        if key.starts_with("data/") && long && self.reads_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            let nothing_yet =
                || self.run.progress.new_bytes.load(Ordering::SeqCst) == 0 && !self.run.stopped();
            for _ in (0..30_000).take_while(|_| nothing_yet()) {
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err(Error::io("read", key)(std::io::Error::other("gone")));
        }
        self.objects.get(key, span, out)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.objects.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.objects.delete(key)
    }
}

/// A repository with one point of `contents`, the store below it, and the run that the store watches.
fn backed_up(contents: &[u8]) -> (Repository, Arc<Failing>, RecoveryPoint) {
    let store = Arc::new(Failing {
        objects: MemoryStore::default(),
        reads_left: AtomicI64::new(i64::MAX),
        run: Arc::new(Run::new()),
    });
    let options = InitOptions { pack_bytes: 8 << 20, compression: "off".into(), ..InitOptions::default() };
    let repo = Repository::init(store.clone(), &options, &AccessKey::key_file(vec![7; 40]).unwrap()).unwrap();
    let point = back_up(&repo, contents);
    (repo, store, point)
}

/// A further point.
fn back_up(repo: &Repository, contents: &[u8]) -> RecoveryPoint {
    let state = tempfile::tempdir().unwrap();
    let source = Box::new(StreamSource::new("disk", Cursor::new(contents.to_vec())));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
    let options = BackupOptions {
        name: "host".into(),
        workers: 1,
        state_dir: state.path().to_owned(),
        ..BackupOptions::default()
    };
    backup::run(repo, volumes, &options, &Arc::new(Run::new())).unwrap().point
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
    noise
}

#[test]
fn a_journal_at_a_given_place_outlives_the_targets_name() {
    let dir = scratch();
    let contents = noise(80 * MIB);
    let (repo, store, point) = backed_up(&contents);
    let (first, second) = (dir.path().join("first.img"), dir.path().join("second.img"));
    let options = RestoreOptions {
        workers: 1,
        journal: Some(dir.path().join("state/restore.journal")),
        state_dir: Some(dir.path().join("other")),
        ..RestoreOptions::default()
    };
    store.reads_left.store(3, Ordering::SeqCst);
    let to = RestoreTarget::Path(first.clone());
    let error = restore::run(&repo, &point, &point.volumes[0], to, &options, &store.run).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("state")).unwrap().count(), 1);
    assert!(!dir.path().join(".first.img.penstock-restore").exists());

    store.reads_left.store(i64::MAX, Ordering::SeqCst);
    fs::rename(&first, &second).unwrap();
    let again = RestoreOptions { resume: true, ..options };
    let to = RestoreTarget::Path(second.clone());
    let report = restore::run(&repo, &point, &point.volumes[0], to, &again, &Arc::new(Run::new())).unwrap();
    assert!(report.resumed_bytes > 0, "{report:?}");
    assert_eq!(report.resumed_bytes + report.written_bytes, report.size_bytes);
    assert!(fs::read(&second).unwrap() == contents);
    assert_eq!(fs::read_dir(dir.path().join("state")).unwrap().count(), 0, "the journal is gone");
}

#[test]
fn on_a_new_volume_zeros_are_not_written() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let mut contents = noise(20 * MIB);
    contents[6 * MIB..15 * MIB].fill(0);
    let (repo, _, point) = backed_up(&contents);
    let device = Loop::new(dir.path(), contents.len() as u64);
    let mark = |at: usize, byte: u8| {
        let file = File::options().write(true).open(&device.0).unwrap();
        file.write_all_at(&[byte; 4096], at as u64).unwrap();
        file.sync_all().unwrap();
    };
    let options = RestoreOptions {
        workers: 1,
        zero_target: true,
        state_dir: Some(dir.path().join("state")),
        ..RestoreOptions::default()
    };
    let restored = |options: &RestoreOptions| {
        let to = RestoreTarget::Path(device.0.clone());
        restore::run(&repo, &point, &point.volumes[0], to, options, &Arc::new(Run::new()))
    };
    // Not as new as it is said to be: that shows what is written and what is not.
    mark(0, 9);
    mark(10 * MIB, 9);
    let report = restored(&options).unwrap();
    assert_eq!((report.skipped_zero_bytes, report.zeroed_bytes), (9 * MIB as u64, 0), "{report:?}");
    mark(10 * MIB, 0);
    let mut held = vec![0; contents.len()];
    File::open(&device.0).unwrap().read_exact_at(&mut held, 0).unwrap();
    assert!(held == contents);

    // Without that word it is looked at, and made zero.
    mark(10 * MIB, 9);
    let plain = RestoreOptions { zero_target: false, ..options.clone() };
    assert!(matches!(restored(&plain), Err(Error::TargetRefused { .. })));
    let report = restored(&RestoreOptions { force: true, ..plain }).unwrap();
    assert_eq!((report.skipped_zero_bytes, report.zeroed_bytes), (0, 9 * MIB as u64), "{report:?}");
    File::open(&device.0).unwrap().read_exact_at(&mut held, 0).unwrap();
    assert!(held == contents);

    // It cannot both read as zeros and hold a state.
    let error = restored(&RestoreOptions { compare: true, ..options }).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[test]
fn a_file_with_something_in_it_is_refused_whatever_is_said_of_it() {
    let dir = scratch();
    let (repo, _, point) = backed_up(&noise(MIB));
    let path = dir.path().join("precious.img");
    fs::write(&path, b"precious").unwrap();
    let options = RestoreOptions { zero_target: true, ..RestoreOptions::default() };
    let to = RestoreTarget::Path(path.clone());
    let refused = restore::run(&repo, &point, &point.volumes[0], to, &options, &Arc::new(Run::new()));
    assert!(matches!(refused, Err(Error::TargetRefused { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

/// With a base and a list of what may differ from it, just that is read: what is written elsewhere behind everybody's back is not noticed, which shows that it was not looked at.
#[test]
fn what_may_be_stale_is_compared_and_nothing_else() {
    let mut contents = vec![0; 40 * MIB];
    contents
        .chunks_mut(4096)
        .enumerate()
        .for_each(|(n, block)| block[..8].copy_from_slice(&(n as u64).to_le_bytes()));
    contents[12 * MIB..20 * MIB].fill(0);
    let (repo, _store, base) = backed_up(&contents);
    let mut wanted = contents.clone();
    wanted[MIB..MIB + 8192].fill(7);
    wanted[33 * MIB..34 * MIB].fill(0);
    let point = back_up(&repo, &wanted);
    let dir = scratch();
    let target = dir.path().join("disk.img");
    // What the guest wrote since: told, told where nothing differs, in zeros, and not told.
    let mut held = contents.clone();
    held[5 * MIB..5 * MIB + 100].fill(9);
    held[MIB + 100_000..MIB + 100_100].fill(9);
    held[13 * MIB..13 * MIB + 100].fill(9);
    held[25 * MIB..25 * MIB + 100].fill(9);
    fs::write(&target, &held).unwrap();
    let told = |at: usize| (at as u64)..(at as u64 + 100);
    let stale =
        Extents::from_ranges(vec![told(5 * MIB), told(MIB + 100_000), told(13 * MIB), told(38 * MIB)]);
    let options = RestoreOptions {
        base: Some(base),
        stale: Some(Arc::new(stale)),
        state_dir: Some(dir.path().join("state")),
        ..RestoreOptions::default()
    };
    let to = RestoreTarget::Path(target.clone());
    let report = restore::run(&repo, &point, &point.volumes[0], to, &options, &Arc::new(Run::new())).unwrap();
    let found = fs::read(&target).unwrap();
    let mut expected = wanted;
    expected[25 * MIB..25 * MIB + 100].fill(9);
    assert!(found == expected);
    let all =
        report.written_bytes + report.skipped_same_bytes + report.zeroed_bytes + report.skipped_zero_bytes;
    assert_eq!(all, contents.len() as u64, "every byte is accounted for once: {report:?}");
    assert!(report.written_bytes < 2 * MIB as u64, "{report:?}");
}
