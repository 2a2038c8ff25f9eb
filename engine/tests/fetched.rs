//! Volumes without a descriptor: what is read by requests gives the manifests of a full read.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use penstock_engine::backup::{self, BackupOptions, BackupReport, Parent, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::source::{Extents, Fetched, OpenFile, RangeSource, Source, SourceKind};
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::{Result, Run};

const BLOCK: u64 = 512 << 10;
const SEGMENT: usize = 4 << 20;

/// Blocks of 512 KiB of an image in memory; those that are all zero are not there.
struct Blocks {
    image: Vec<u8>,
    fetched: AtomicU64,
}

impl Blocks {
    fn is_there(&self, block: u64) -> bool {
        self.block(block).iter().any(|b| *b != 0)
    }

    fn block(&self, block: u64) -> &[u8] {
        &self.image[(block * BLOCK) as usize..((block + 1) * BLOCK).min(self.image.len() as u64) as usize]
    }
}

impl RangeSource for Blocks {
    fn name(&self) -> &str {
        "blocks"
    }

    fn parallel(&self) -> usize {
        4
    }

    fn fetch(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> Result<Fetched> {
        let mut wanted: Vec<u64> = ranges
            .iter()
            .flat_map(|r| {
                (offset_bytes + u64::from(r.start)) / BLOCK..(offset_bytes + u64::from(r.end)).div_ceil(BLOCK)
            })
            .filter(|block| self.is_there(*block))
            .collect();
        wanted.dedup();
        self.fetched.fetch_add(wanted.len() as u64, Ordering::Relaxed);
        let part = |b: u64| ((b * BLOCK - offset_bytes) as u32, Bytes::copy_from_slice(self.block(b)));
        Ok(Fetched { parts: wanted.into_iter().map(part).collect(), kept: Vec::new(), held: Box::new(()) })
    }
}

struct Snapshot(Arc<Blocks>);

impl Source for Snapshot {
    fn name(&self) -> &str {
        "snapshot"
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.0.image.len() as u64)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Snapshot
    }

    fn logical_block_bytes(&self) -> u32 {
        512
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let blocks = (self.0.image.len() as u64).div_ceil(BLOCK);
        let found = (from / BLOCK..blocks).find(|block| self.0.is_there(*block));
        Ok(found.map(|b| (b * BLOCK).max(from)..((b + 1) * BLOCK).min(self.0.image.len() as u64)))
    }

    fn identity(&self) -> Option<String> {
        None
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        None
    }

    fn ranges(&self) -> Option<Arc<dyn RangeSource>> {
        Some(self.0.clone())
    }
}

fn back_up(
    repo: &Repository,
    name: &str,
    image: &[u8],
    changed: Option<Vec<Range<u64>>>,
) -> (BackupReport, u64) {
    let state = tempfile::tempdir().unwrap();
    let blocks = Arc::new(Blocks { image: image.to_vec(), fetched: AtomicU64::new(0) });
    let volumes = vec![VolumeSource {
        name: "disk".into(),
        source: Box::new(Snapshot(blocks.clone())),
        changed_extents: changed.map(Extents::from_ranges),
    }];
    let parent = match volumes[0].changed_extents {
        Some(_) => Parent::Point(repo.resolve(&format!("latest:{name}")).unwrap().id),
        None => Parent::Latest,
    };
    let options = BackupOptions {
        name: name.into(),
        parent,
        workers: 2,
        state_dir: state.path().to_owned(),
        other: BTreeMap::from([("instance".into(), serde_json::json!({"id": "i-1"}))]),
        ..BackupOptions::default()
    };
    let report = backup::run(repo, volumes, &options, &Arc::new(Run::new())).unwrap();
    (report, blocks.fetched.load(Ordering::Relaxed))
}

#[test]
fn only_what_is_there_and_what_changed_is_asked_for() {
    let repo = Repository::init(
        Arc::new(MemoryStore::default()),
        &InitOptions::default(),
        &AccessKey::key_file(vec![7; 40]).unwrap(),
    )
    .unwrap();
    let mut image = vec![0; 5 * SEGMENT + 4096];
    blake3::Hasher::new().update(b"day1").finalize_xof().fill(&mut image[..3 * SEGMENT]);
    image[2 << 20..3 << 20].fill(0);
    let (first, fetched) = back_up(&repo, "web", &image, None);
    assert_eq!(fetched, 22, "two of the 24 blocks are zero");
    assert_eq!(first.totals.read_bytes, 22 * BLOCK);
    assert_eq!(first.point.other["instance"]["id"], "i-1");

    // a few bytes in the middle of blocks, a block that is given back, and one that is new
    image[SEGMENT + 700_000] ^= 1;
    image[2 * SEGMENT + 100..2 * SEGMENT + 5000].fill(9);
    image[BLOCK as usize..2 * BLOCK as usize].fill(0);
    image[4 * SEGMENT + 5000] = 1;
    let changed: Vec<Range<u64>> = [1, 9, 16, 32].into_iter().map(|b| b * BLOCK..(b + 1) * BLOCK).collect();
    let (second, fetched) = back_up(&repo, "web", &image, Some(changed));
    assert_eq!(fetched, 3, "the block that was given back is not asked for");
    let (full, _) = back_up(&repo, "another", &image, None);
    assert_eq!(second.point.volumes[0].root, full.point.volumes[0].root);
    assert_ne!(second.point.volumes[0].root, first.point.volumes[0].root);
    assert_eq!(full.totals.new_bytes, 0);
}

/// A store behind a bad network: so many of the next answers about data packs are wrong in one bit.
#[derive(Default)]
struct Flaky {
    objects: MemoryStore,
    lies: AtomicU64,
}

impl Store for Flaky {
    fn location(&self) -> &str {
        "flaky"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.objects.put_new(key, body)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        let found = self.objects.get(key, span, out)?;
        let lies = |n: u64| n.checked_sub(1);
        if key.starts_with("data/")
            && self.lies.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lies).is_ok()
        {
            out[40] ^= 4;
        }
        Ok(found)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.objects.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.objects.delete(key)
    }

    fn distrust(&self, _key: &str) -> bool {
        true
    }
}

/// Finding: a chunk of the parent was read once, where everybody else reads again before damage is believed.
#[test]
fn a_flip_on_the_way_does_not_end_a_backup() {
    let store = Arc::new(Flaky::default());
    let key = AccessKey::key_file(vec![7; 40]).unwrap();
    let repo = Repository::init(store.clone(), &InitOptions::default(), &key).unwrap();
    let mut image = vec![0; 2 * SEGMENT];
    blake3::Hasher::new().update(b"day1").finalize_xof().fill(&mut image);
    back_up(&repo, "web", &image, None);
    image[SEGMENT + 700_000] ^= 1;
    store.lies.store(1, Ordering::SeqCst);
    let (second, _) = back_up(&repo, "web", &image, Some(std::iter::once(9 * BLOCK..10 * BLOCK).collect()));
    assert_eq!(store.lies.load(Ordering::SeqCst), 0, "a chunk of the parent was read");
    let (full, _) = back_up(&repo, "another", &image, None);
    assert_eq!(second.point.volumes[0].root, full.point.volumes[0].root);
}
