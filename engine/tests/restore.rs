//! Restores from stores that hide, lose and refuse things, and targets that are opened step by step.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init, missing_docs)]

mod common;

use std::fs;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use common::scratch;
use penstock_engine::backup::{self, BackupOptions, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreReport, RestoreTarget};
use penstock_engine::source::StreamSource;
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::target::{self, TargetOptions};
use penstock_engine::{Error, Result, Run};

const MIB: usize = 1 << 20;

/// A store that shows too little, or reads too little.
#[derive(Default)]
struct Failing {
    objects: MemoryStore,
    /// Lists of `index/` that come out empty.
    hidden_lists: AtomicI64,
    /// Of this object, reads that touch these bytes fail as those of a broken disk do.
    unreadable: Mutex<Option<(String, Range<u64>, i32)>>,
}

impl Store for Failing {
    fn location(&self) -> &str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.objects.put_new(key, body)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        let found = self.objects.get(key, span, out)?;
        if let Some((object, bytes, code)) = &*self.unreadable.lock().unwrap()
            && object == key
        {
            let read = span.within(found.unwrap());
            if read.start < bytes.end && read.end > bytes.start {
                return Err(Error::io("read", key)(std::io::Error::from_raw_os_error(*code)));
            }
        }
        Ok(found)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        if prefix.starts_with("index") && self.hidden_lists.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.objects.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.objects.delete(key)
    }
}

fn key() -> AccessKey {
    AccessKey::key_file(vec![7; 40]).unwrap()
}

fn backed_up(contents: &[u8]) -> (Repository, Arc<Failing>, RecoveryPoint) {
    let store = Arc::new(Failing::default());
    let options = InitOptions { pack_bytes: 8 << 20, compression: "off".into(), ..InitOptions::default() };
    let repo = Repository::init(store.clone(), &options, &key()).unwrap();
    let state = tempfile::tempdir().unwrap();
    let source = Box::new(StreamSource::new("disk", Cursor::new(contents.to_vec())));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
    let options = BackupOptions {
        name: "host".into(),
        workers: 1,
        state_dir: state.path().to_owned(),
        ..BackupOptions::default()
    };
    let point = backup::run(&repo, volumes, &options, &Arc::new(Run::new())).unwrap().point;
    (repo, store, point)
}

fn restored(
    repo: &Repository,
    point: &RecoveryPoint,
    path: &Path,
    options: &RestoreOptions,
) -> Result<RestoreReport> {
    let to = RestoreTarget::Path(path.to_owned());
    restore::run(repo, point, &point.volumes[0], to, options, &Arc::new(Run::new()))
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
    noise
}

/// D15: the list of index segments was read while a merge came and its inputs went.
#[test]
fn an_id_that_is_not_found_is_looked_for_in_the_list_of_today() {
    let contents = noise(6 * MIB);
    let (_, store, point) = backed_up(&contents);
    let repo = Repository::open(store.clone(), &key()).unwrap();
    store.hidden_lists.store(1, Ordering::SeqCst);
    repo.index().unwrap();
    assert_eq!(store.hidden_lists.load(Ordering::SeqCst), 0, "the index was loaded, and is empty");
    let dir = scratch();
    let path = dir.path().join("t");
    restored(&repo, &point, &path, &RestoreOptions { workers: 1, ..RestoreOptions::default() }).unwrap();
    assert!(fs::read(&path).unwrap() == contents);
}

/// What a broken disk does not give back is left out chunk by chunk, not request by request.
#[test]
fn unreadable_bytes_cost_the_chunks_they_are_in() {
    let contents = noise(16 * MIB);
    let (repo, store, point) = backed_up(&contents);
    let mut packs = Vec::new();
    store.list("data/", &mut |key, bytes| packs.push((key.to_owned(), bytes))).unwrap();
    let (pack, bytes) = packs[0].clone();
    let broken = bytes / 2..bytes / 2 + 10_000;
    let dir = scratch();
    let path = dir.path().join("t");
    let options = RestoreOptions { workers: 2, force: true, skip_damaged: true, ..RestoreOptions::default() };

    *store.unreadable.lock().unwrap() = Some((pack.clone(), broken.clone(), libc::EIO));
    let report = restored(&repo, &point, &path, &options).unwrap();
    let lost = report.damage.bytes();
    assert!((10_000..600_000).contains(&lost), "{:?}", report.damage);
    assert_eq!(lost + report.written_bytes, contents.len() as u64, "{report:?}");
    let mut expected = contents.clone();
    for range in &report.damage.ranges {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    assert!(fs::read(&path).unwrap() == expected);
    // Without being told to, and for reasons that pass, nothing is left out.
    let strict = RestoreOptions { skip_damaged: false, ..options.clone() };
    assert!(matches!(restored(&repo, &point, &path, &strict), Err(Error::Io { .. })));
    *store.unreadable.lock().unwrap() = Some((pack, broken, libc::EACCES));
    assert!(matches!(restored(&repo, &point, &path, &options), Err(Error::Io { .. })));
}

/// Up to the last step nothing is changed, whatever the options say may be.
#[test]
fn only_the_last_step_changes_a_target() {
    let dir = scratch();
    let path = dir.path().join("t");
    fs::write(&path, vec![9; 10_000]).unwrap();
    let options = TargetOptions { size_bytes: 50_000, force: true, ..TargetOptions::default() };
    let checked = target::probe(&path).unwrap().lock(false).unwrap().check(options).unwrap();
    assert!(checked.will_be_fresh());
    assert!(fs::read(&path).unwrap() == vec![9; 10_000]);
    // Nobody else gets as far, whatever he wants.
    for more in [
        TargetOptions { resume: true, ..options },
        TargetOptions { must_hold_data: true, ..options },
        options,
    ] {
        let error = target::open(&path, more).unwrap_err();
        assert!(error.to_string().contains("another restore is writing it"), "{error}");
    }
    assert!(fs::read(&path).unwrap() == vec![9; 10_000]);
    let target = checked.prepare().unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![0; 53_248]);
    target.finish().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 50_000);
}

#[test]
fn blocks_over_a_base_are_whole_or_not_put() {
    struct Nothing;
    impl penstock_engine::target::BlockSink for Nothing {
        fn name(&self) -> &str {
            "nothing"
        }
        fn block_bytes(&self) -> u32 {
            512 << 10
        }
        fn parallel(&self) -> usize {
            1
        }
        fn has(&self, _block: u64) -> bool {
            false
        }
        fn put(&self, _block: u64, _bytes: bytes::Bytes) -> Result<()> {
            Ok(())
        }
    }
    let (repo, _, point) = backed_up(&noise(MIB));
    let options =
        RestoreOptions { base: Some(point.clone()), skip_damaged: true, ..RestoreOptions::default() };
    let to = RestoreTarget::Blocks(Arc::new(Nothing));
    let refused = restore::run(&repo, &point, &point.volumes[0], to, &options, &Arc::new(Run::new()));
    assert!(matches!(refused, Err(Error::Invalid { .. })));
}
