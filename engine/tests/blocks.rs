//! Restores into a sink of blocks: the bytes are right, and nothing is put that is right already.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::Cursor;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use penstock_engine::backup::{self, BackupOptions, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::manifest::PackWalk;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreReport, RestoreTarget};
use penstock_engine::source::StreamSource;
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::target::BlockSink;
use penstock_engine::{Error, Result, Run};
use proptest::prelude::*;

const BLOCK: usize = 512 << 10;
const SEGMENT: usize = 4 << 20;

/// What a put does when it is the last that is allowed.
#[derive(Clone, Copy)]
enum Then {
    Fail,
    Panic,
    Cancel,
}

/// A volume of blocks in memory.
struct Blocks {
    block_bytes: usize,
    volume_bytes: usize,
    parallel: usize,
    bytes: Mutex<Vec<u8>>,
    put: Mutex<BTreeSet<u64>>,
    has: BTreeSet<u64>,
    puts_left: AtomicI64,
    then: Then,
    run: Arc<Run>,
}

impl Blocks {
    /// Holds `base`, and zeros behind it.
    fn new(block_bytes: usize, volume_bytes: usize, base: &[u8]) -> Self {
        let mut bytes = base.to_vec();
        bytes.resize(volume_bytes.next_multiple_of(block_bytes), 0);
        Self {
            block_bytes,
            volume_bytes,
            parallel: 5,
            bytes: Mutex::new(bytes),
            put: Mutex::default(),
            has: BTreeSet::new(),
            puts_left: AtomicI64::new(i64::MAX),
            then: Then::Fail,
            run: Arc::new(Run::new()),
        }
    }

    fn put_blocks(&self) -> BTreeSet<u64> {
        self.put.lock().unwrap().clone()
    }

    /// True if it holds the volume now, and zeros behind it.
    fn holds(&self, volume: &[u8]) -> bool {
        let bytes = self.bytes.lock().unwrap();
        bytes[..volume.len()] == *volume && bytes[volume.len()..].iter().all(|byte| *byte == 0)
    }
}

impl BlockSink for Blocks {
    fn name(&self) -> &str {
        "blocks in memory"
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes as u32
    }

    fn parallel(&self) -> usize {
        self.parallel
    }

    fn has(&self, block: u64) -> bool {
        self.has.contains(&block)
    }

    fn put(&self, block: u64, bytes: Bytes) -> Result<()> {
        if self.puts_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            match self.then {
                Then::Fail => {
                    return Err(Error::io("put", format_args!("block {block}"))(std::io::Error::other(
                        "full",
                    )));
                }
                Then::Panic => panic!("expected by the test"),
                Then::Cancel => self.run.cancel(),
            }
        }
        assert_eq!(bytes.len(), self.block_bytes);
        assert!(!self.has(block), "block {block} was put by an earlier run");
        assert!(self.put.lock().unwrap().insert(block), "block {block} is put twice");
        let start = block as usize * self.block_bytes;
        self.bytes.lock().unwrap()[start..start + self.block_bytes].copy_from_slice(&bytes);
        Ok(())
    }
}

/// A store in memory that knows which data packs were read.
#[derive(Default)]
struct Watched {
    objects: MemoryStore,
    read: Mutex<BTreeSet<String>>,
}

impl Store for Watched {
    fn location(&self) -> &str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.objects.put_new(key, body)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        if key.starts_with("data/") {
            self.read.lock().unwrap().insert(key.to_owned());
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

fn repository(chunker: &str, chunk_bytes: u32) -> Repository {
    repository_in(Arc::new(MemoryStore::default()), chunker, chunk_bytes)
}

fn repository_in(store: Arc<dyn Store>, chunker: &str, chunk_bytes: u32) -> Repository {
    let options = InitOptions {
        chunker: chunker.into(),
        chunk_bytes,
        pack_bytes: 8 << 20,
        compression: "off".into(),
        ..InitOptions::default()
    };
    let access = AccessKey::key_file(vec![7; 40]).unwrap();
    Repository::init(store, &options, &access).unwrap()
}

fn back_up(repo: &Repository, contents: &[u8]) -> RecoveryPoint {
    let state = tempfile::tempdir().unwrap();
    let source = Box::new(StreamSource::new("disk", Cursor::new(contents.to_vec())));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
    let options = BackupOptions {
        name: "host".into(),
        workers: 2,
        state_dir: state.path().to_owned(),
        ..BackupOptions::default()
    };
    backup::run(repo, volumes, &options, &Arc::new(Run::new())).unwrap().point
}

/// Restores into `sink`, and checks that the figures add up.
fn restored(
    repo: &Repository,
    point: &RecoveryPoint,
    base: Option<&RecoveryPoint>,
    sink: &Arc<Blocks>,
) -> Result<RestoreReport> {
    let options = RestoreOptions { base: base.cloned(), workers: 2, ..RestoreOptions::default() };
    let target = RestoreTarget::Blocks(sink.clone());
    let report = restore::run(repo, point, &point.volumes[0], target, &options, &sink.run)?;
    let parts = [
        report.written_bytes,
        report.skipped_zero_bytes,
        report.skipped_same_bytes,
        report.resumed_bytes,
        report.zeroed_bytes,
    ];
    assert_eq!(parts.iter().sum::<u64>(), report.size_bytes, "{report:?}");
    assert_eq!(sink.run.progress.done_bytes.load(Ordering::SeqCst), report.size_bytes);
    assert_eq!(sink.run.progress.new_bytes.load(Ordering::SeqCst), report.written_bytes);
    let put = sink.put_blocks();
    let put_bytes =
        |block: &u64| (sink.volume_bytes - *block as usize * sink.block_bytes).min(sink.block_bytes) as u64;
    assert_eq!(put.iter().map(put_bytes).sum::<u64>(), report.written_bytes, "{report:?}");
    Ok(report)
}

/// The blocks in which `new` is not `old` with zeros behind its end.
fn differing(old: &[u8], new: &[u8], block_bytes: usize) -> BTreeSet<u64> {
    let mut old = old.to_vec();
    old.resize(new.len(), 0);
    let pairs = old.chunks(block_bytes).zip(new.chunks(block_bytes)).enumerate();
    pairs.filter(|(_, (old, new))| old != new).map(|(no, _)| no as u64).collect()
}

fn noise(seed: u64, out: &mut [u8]) {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(out);
}

/// Noise with holes of many sizes in it.
fn disk(bytes: usize, seed: u64) -> Vec<u8> {
    let mut disk = vec![0; bytes];
    noise(seed, &mut disk);
    let (mut at, mut hole) = (BLOCK / 2, 4096);
    while at < bytes {
        disk[at..(at + hole).min(bytes)].fill(0);
        at += hole + 3 * BLOCK / 2 + 20_000;
        hole = (hole * 3).min(3 * BLOCK);
    }
    disk
}

#[test]
fn the_whole_volume_but_blocks_of_zeros() {
    let repo = repository("block", 64 << 10);
    for bytes in [1, BLOCK - 1, BLOCK, BLOCK + 1, SEGMENT + 4096, 3 * SEGMENT, 5 * SEGMENT + 999] {
        let volume = disk(bytes, 1);
        let point = back_up(&repo, &volume);
        for block_bytes in [4096, BLOCK, SEGMENT] {
            let sink = Arc::new(Blocks::new(block_bytes, bytes, &[]));
            restored(&repo, &point, None, &sink).unwrap();
            assert!(sink.holds(&volume), "{bytes} bytes in blocks of {block_bytes}");
            assert_eq!(sink.put_blocks(), differing(&[], &volume, block_bytes));
        }
    }
}

#[test]
fn a_few_bytes_anywhere_are_as_many_blocks_as_hold_them() {
    let repo = repository("block", 64 << 10);
    let mut volume = disk(6 * SEGMENT, 1);
    volume[SEGMENT..2 * SEGMENT].fill(0xff); // chunks of the longest kind: cuts after an edit move to the end
    let first = back_up(&repo, &volume);
    let mut at = 77_777;
    for round in 0..12 {
        let old = volume.clone();
        for _ in 0..4 {
            at = (at * 31 + 1_234_567) % (volume.len() - 10);
            volume[at..at + 1 + round % 5].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        // and one on each side of a border
        let border = (1 + round * 3) * BLOCK;
        volume[if round % 2 == 0 { border } else { border - 1 }] ^= 1;
        let point = back_up(&repo, &volume);
        let sink = Arc::new(Blocks::new(BLOCK, volume.len(), &old));
        let base =
            if round == 0 { first.clone() } else { repo.resolve(point.parent.as_ref().unwrap()).unwrap() };
        let report = restored(&repo, &point, Some(&base), &sink).unwrap();
        assert!(sink.holds(&volume), "round {round}");
        assert_eq!(sink.put_blocks(), differing(&old, &volume, BLOCK), "round {round}");
        assert_eq!(report.skipped_zero_bytes, 0);
    }
}

#[test]
fn a_volume_that_has_grown_and_data_that_is_gone() {
    let repo = repository("block", 64 << 10);
    let old = disk(2 * SEGMENT + 3 * BLOCK + 5000, 1);
    let base = back_up(&repo, &old);
    let mut new = old.clone();
    new.resize(6 * SEGMENT + 77, 0); // zeros only, behind the base's end
    new[2 * BLOCK..3 * BLOCK + 9].fill(0);
    let point = back_up(&repo, &new);
    let sink = Arc::new(Blocks::new(BLOCK, new.len(), &old));
    restored(&repo, &point, Some(&base), &sink).unwrap();
    assert!(sink.holds(&new));
    assert_eq!(sink.put_blocks(), differing(&old, &new, BLOCK));
    assert!(sink.put_blocks().contains(&2), "a block that is all zero now");
    // data in the base's last block, behind it and far behind it
    new[old.len()] = 1;
    new[5 * SEGMENT..5 * SEGMENT + 10].fill(3);
    let point = back_up(&repo, &new);
    let sink = Arc::new(Blocks::new(BLOCK, new.len(), &old));
    restored(&repo, &point, Some(&base), &sink).unwrap();
    assert!(sink.holds(&new));
    assert_eq!(sink.put_blocks(), differing(&old, &new, BLOCK));
    // and back to where it was smaller
    let sink = Arc::new(Blocks::new(BLOCK, old.len(), &new[..old.len()]));
    let error = restored(&repo, &base, Some(&point), &sink).unwrap_err();
    assert!(matches!(&error, Error::Invalid { what } if what.contains("larger")), "{error}");
}

#[test]
fn what_an_earlier_run_put_is_neither_fetched_nor_put() {
    let repo = repository("block", 64 << 10);
    let volume = disk(3 * SEGMENT + 1000, 1);
    let point = back_up(&repo, &volume);
    let all = differing(&[], &volume, BLOCK);
    for part in 1..4 {
        let has: BTreeSet<u64> = all.iter().copied().filter(|block| block % 4 < part).collect();
        let mut sink = Blocks::new(BLOCK, volume.len(), &[]);
        for block in &has {
            let place = *block as usize * BLOCK..((block + 1) as usize * BLOCK).min(volume.len());
            sink.bytes.lock().unwrap()[place.clone()].copy_from_slice(&volume[place]);
        }
        sink.has = has.clone();
        let sink = Arc::new(sink);
        let report = restored(&repo, &point, None, &sink).unwrap();
        assert!(sink.holds(&volume));
        assert_eq!(sink.put_blocks(), all.difference(&has).copied().collect::<BTreeSet<u64>>());
        assert!(report.resumed_bytes > 0);
    }
    let mut sink = Blocks::new(BLOCK, volume.len(), &[]);
    sink.has = all;
    let report = restored(&repo, &point, None, &Arc::new(sink)).unwrap();
    assert_eq!((report.fetched_bytes, report.written_bytes), (0, 0), "{report:?}");
}

#[test]
fn little_is_fetched_for_little_that_changed() {
    let repo = repository("block", 64 << 10);
    let old = disk(8 * SEGMENT, 1);
    let base = back_up(&repo, &old);
    let mut new = old.clone();
    noise(9, &mut new[2 * SEGMENT..4 * SEGMENT]);
    let point = back_up(&repo, &new);
    let sink = Arc::new(Blocks::new(BLOCK, new.len(), &old));
    let report = restored(&repo, &point, Some(&base), &sink).unwrap();
    assert!(sink.holds(&new));
    // Of the old state what lies across borders of blocks, and not all of it.
    assert!(report.fetched_bytes < (2 * SEGMENT + SEGMENT) as u64, "{report:?}");
}

#[test]
fn the_first_error_ends_it() {
    let repo = repository("block", 64 << 10);
    let volume = disk(10 * SEGMENT, 1);
    let point = back_up(&repo, &volume);
    for (then, parallel) in
        [(Then::Fail, 5), (Then::Fail, 1), (Then::Panic, 5), (Then::Panic, 1), (Then::Cancel, 2)]
    {
        for puts in [0, 1, 20] {
            let mut sink = Blocks::new(BLOCK, volume.len(), &[]);
            (sink.then, sink.parallel, sink.puts_left) = (then, parallel, AtomicI64::new(puts));
            let sink = Arc::new(sink);
            let error = restored(&repo, &point, None, &sink).unwrap_err();
            let expected = match then {
                Then::Fail => error.to_string().contains("full"),
                Then::Panic => error.to_string().contains("panicked"),
                Then::Cancel => matches!(error, Error::Cancelled),
            };
            assert!(expected, "{error}");
            // No more than those that were under way.
            let put = sink.put_blocks().len();
            assert!(put <= puts as usize + parallel, "{put} blocks were put of {puts}");
            assert_eq!(Arc::strong_count(&sink), 1, "nobody is left who could put");
        }
    }
}

#[test]
fn what_a_sink_cannot_do_is_refused() {
    let repo = repository("block", 64 << 10);
    let point = back_up(&repo, &disk(BLOCK, 1));
    let refused = |block_bytes: usize, options: RestoreOptions| {
        let sink = Arc::new(Blocks::new(block_bytes, BLOCK, &[]));
        let target = RestoreTarget::Blocks(sink.clone());
        let error = restore::run(&repo, &point, &point.volumes[0], target, &options, &sink.run).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    };
    refused(BLOCK, RestoreOptions { compare: true, ..RestoreOptions::default() });
    for block_bytes in [2048, 12_288, 2 * SEGMENT] {
        refused(block_bytes, RestoreOptions::default());
    }
}

/// A change to a volume.
#[derive(Clone, Debug)]
enum Edit {
    Byte(usize),
    Noise(usize, usize),
    Zeros(usize, usize),
    Fill(usize, usize),
    /// Blocks of 4 KiB move towards the end.
    Shift(usize, usize),
    Copy(usize, usize, usize),
}

fn edit(volume: &mut [u8], edit: &Edit, seed: u64) {
    let end = volume.len();
    let range = |at: usize, len: usize| at.min(end)..(at + len).min(end);
    match *edit {
        Edit::Byte(at) => volume[range(at, 1)].iter_mut().for_each(|byte| *byte ^= 3),
        Edit::Noise(at, len) => noise(seed, &mut volume[range(at, len)]),
        Edit::Zeros(at, len) => volume[range(at, len)].fill(0),
        Edit::Fill(at, len) => volume[range(at, len)].fill(0xff),
        Edit::Shift(at, len) => {
            let at = at.min(end) / 4096 * 4096;
            volume.copy_within(at..end - 4096.min(end - at), (at + 4096).min(end));
            noise(seed, &mut volume[range(at, len % 4096)]);
        }
        Edit::Copy(from, to, len) => {
            let len = len.min(end - from.min(end)).min(end - to.min(end));
            volume.copy_within(range(from, len), to.min(end));
        }
    }
}

fn edits(volume_bytes: usize) -> impl Strategy<Value = Vec<Edit>> {
    let at = move || 0..volume_bytes;
    let len = || prop_oneof![1usize..9000, 1usize..(2 * BLOCK)];
    let one = prop_oneof![
        4 => at().prop_map(Edit::Byte),
        1 => (at(), len()).prop_map(|(at, len)| Edit::Noise(at, len)),
        1 => (at(), len()).prop_map(|(at, len)| Edit::Zeros(at, len)),
        1 => (at(), len()).prop_map(|(at, len)| Edit::Fill(at, len)),
        1 => (at(), len()).prop_map(|(at, len)| Edit::Shift(at, len)),
        1 => (at(), at(), len()).prop_map(|(from, to, len)| Edit::Copy(from, to, len)),
    ];
    proptest::collection::vec(one, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever changed and however chunks are cut: the blocks that differ are put, and no others.
    #[test]
    fn exactly_what_differs_is_put(
        volume_bytes in 1usize..(2 * SEGMENT),
        first in edits(2 * SEGMENT),
        second in edits(2 * SEGMENT),
        grown_bytes in prop_oneof![Just(0usize), 1usize..(2 * SEGMENT)],
        block_bytes in prop_oneof![Just(4096usize), Just(64 << 10), Just(BLOCK), Just(SEGMENT)],
        chunks in prop_oneof![Just(("block", 64 << 10)), Just(("block", 1 << 20)), Just(("fastcdc", 64 << 10))],
    ) {
        let mut volume = disk(volume_bytes, 1);
        first.iter().enumerate().for_each(|(no, one)| edit(&mut volume, one, no as u64));
        let repo = repository(chunks.0, chunks.1);
        let base = back_up(&repo, &volume);
        let old = volume.clone();
        volume.resize(volume_bytes + grown_bytes, 0);
        second.iter().enumerate().for_each(|(no, one)| edit(&mut volume, one, 100 + no as u64));
        let point = back_up(&repo, &volume);
        for (base, old) in [(None, &[][..]), (Some(&base), &old)] {
            let sink = Arc::new(Blocks::new(block_bytes, volume.len(), old));
            restored(&repo, &point, base, &sink).unwrap();
            prop_assert!(sink.holds(&volume));
            prop_assert_eq!(sink.put_blocks(), differing(old, &volume, block_bytes));
        }
    }
}

/// What has to be thawed is known before: all packs that are read, those of neighbours in a block and of old bytes across its border among them, and by far not all.
#[test]
fn the_packs_that_blocks_need_are_known() {
    for chunker in ["block", "fastcdc"] {
        let store = Arc::new(Watched::default());
        let repo = repository_in(store.clone(), chunker, 64 << 10);
        let old = disk(96 * BLOCK, 11);
        let mut new = old.clone();
        for (at, seed) in [(3 * BLOCK + 100_000, 1), (40 * BLOCK - 30_000, 2), (41 * BLOCK + 9000, 3)] {
            noise(seed, &mut new[at..at + 5000]);
        }
        let (base, point) = (back_up(&repo, &old), back_up(&repo, &new));
        let tree = |point: &RecoveryPoint| {
            let volume = &point.volumes[0];
            repo.tree(volume.size_bytes, volume.root).unwrap()
        };
        let known = |block_bytes: Option<u32>| -> BTreeSet<String> {
            let go_on = || Ok(());
            let mut walk = PackWalk::new(repo.index().unwrap(), &go_on);
            match block_bytes {
                Some(_) => walk.differing_chunks(&mut tree(&base), &mut tree(&point), block_bytes).unwrap(),
                None => walk.tree(&mut tree(&point)).unwrap(),
            }
            walk.into_packs()
                .iter()
                .map(|pack| pack.kind.key(&pack.id.to_string()))
                .filter(|key| key.starts_with("data/"))
                .collect()
        };
        let (needed, all) = (known(Some(BLOCK as u32)), known(None));
        store.read.lock().unwrap().clear();
        let sink = Arc::new(Blocks::new(BLOCK, new.len(), &old));
        restored(&repo, &point, Some(&base), &sink).unwrap();
        assert!(sink.holds(&new) && sink.put_blocks() == differing(&old, &new, BLOCK));
        let read = store.read.lock().unwrap().clone();
        assert!(read.is_subset(&needed), "{chunker}: {read:?} are read, {needed:?} were known");
        assert!(needed.len() < all.len(), "{chunker}: {} of {}", needed.len(), all.len());
    }
}
