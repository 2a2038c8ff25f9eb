//! What many nights do to restoring the newest one: `nights DIR [MiB] [nights,nights,…] [rounds]`.
//!
//! Makes a volume of compressible data in DIR, backs it up night after night with changed extents, and at the nights asked for restores the newest point, in turn with
//! a restore of a fresh backup of the same contents into a repository of its own. The page cache is dropped before each restore (needs root; otherwise says so).
//! Deterministic: the same arguments make the same volume and the same changes. DIR needs about three times the volume and is left empty.
#![allow(missing_docs)]

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use penstock_engine::backup::{self, BackupOptions, Parent, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::config::Encryption;
use penstock_engine::id::SegmentNo;
use penstock_engine::io::IoEngine;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::{self, Extents, OpenOptions};
use penstock_engine::store::{Body, Habits, LocalStore, PutOutcome, Requests, Span, Store};
use penstock_engine::{Result, Run};

type AnyResult<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = 4 * MIB;
/// Share of the volume that holds data at the start; new files go behind it.
const FILLED_PERCENT: u64 = 80;
/// Segments touched by a night's small writes, in 1/1000 of all.
const TOUCHED_PERMILLE: u64 = 17;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// The volume that changes.
struct Disk {
    path: PathBuf,
    file: File,
    rng: Rng,
    size_bytes: u64,
    /// Where the next new file goes.
    free_at: u64,
    phrases: Vec<[u8; 20]>,
}

impl Disk {
    fn create(path: PathBuf, size_bytes: u64) -> AnyResult<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.set_len(size_bytes)?;
        let mut rng = Rng(20_260_401);
        let phrases = (0..512)
            .map(|_| std::array::from_fn(|_| b"etaoin shrdlucmfwypv"[rng.within(0..20) as usize]))
            .collect();
        let filled = size_bytes * FILLED_PERCENT / 100 / SEGMENT_BYTES * SEGMENT_BYTES;
        let mut disk = Self { path, file, rng, size_bytes, free_at: filled, phrases };
        for at in (0..filled).step_by(SEGMENT_BYTES as usize) {
            disk.write(at, SEGMENT_BYTES)?;
        }
        disk.file.sync_all()?;
        Ok(disk)
    }

    /// Records of a random part and a phrase: zstd level 1 makes them about half as long.
    fn write(&mut self, at: u64, len: u64) -> AnyResult<()> {
        let mut bytes = Vec::with_capacity(len as usize + 28);
        while bytes.len() < len as usize {
            bytes.extend_from_slice(&self.rng.next().to_le_bytes());
            bytes.extend_from_slice(&self.phrases[self.rng.within(0..512) as usize]);
        }
        self.file.write_all_at(&bytes[..len as usize], at)?;
        Ok(())
    }

    /// A night: scattered small writes into some segments, and a few new files.
    fn night(&mut self) -> AnyResult<Extents> {
        let segments = self.size_bytes / SEGMENT_BYTES;
        let mut changed = Vec::new();
        for _ in 0..(segments * TOUCHED_PERMILLE / 1000).max(1) {
            let start =
                self.rng.within(0..self.size_bytes * FILLED_PERCENT / 100 / SEGMENT_BYTES) * SEGMENT_BYTES;
            for _ in 0..self.rng.within(8..24) {
                let len = self.rng.within(1..17) * 4096;
                changed.push((start + self.rng.within(0..(SEGMENT_BYTES - len) / 4096) * 4096, len));
            }
        }
        for _ in 0..3 {
            let len = self.rng.within(128..1024) * 4096;
            if self.free_at + len > self.size_bytes {
                self.free_at = self.size_bytes * FILLED_PERCENT / 100 / 4096 * 4096;
            }
            changed.push((self.free_at, len));
            self.free_at += len;
        }
        let mut lines = String::new();
        for (offset, length) in changed {
            self.write(offset, length)?;
            lines += &format!("{{\"offset\":{offset},\"length\":{length}}}\n");
        }
        self.file.sync_all()?;
        Ok(Extents::parse(lines.as_bytes(), "the night's changes", self.size_bytes)?)
    }
}

/// Counts what is got from a store, by kind of object.
struct Watched {
    inner: LocalStore,
    gets: [AtomicU64; 3],
    bytes: [AtomicU64; 3],
    packs: Mutex<HashSet<String>>,
}

impl Watched {
    fn open(root: &Path) -> Result<Arc<Self>> {
        let inner = LocalStore::open(root, true)?;
        Ok(Arc::new(Self {
            inner,
            gets: Default::default(),
            bytes: Default::default(),
            packs: Mutex::default(),
        }))
    }

    fn note(&self, key: &str, bytes: usize) {
        let kind = match key.split('/').next() {
            Some("data") => 0,
            Some("meta") => 1,
            _ => 2,
        };
        self.gets[kind].fetch_add(1, Ordering::Relaxed);
        self.bytes[kind].fetch_add(bytes as u64, Ordering::Relaxed);
        if kind == 0
            && let Ok(mut packs) = self.packs.lock()
            && !packs.contains(key)
        {
            packs.insert(key.to_owned());
        }
    }
}

impl Store for Watched {
    fn location(&self) -> &str {
        self.inner.location()
    }
    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.inner.put_new(key, body)
    }
    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        let found = self.inner.get(key, span, out);
        self.note(key, out.len());
        found
    }
    fn get_into(&self, key: &str, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        self.note(key, out.len());
        self.inner.get_into(key, offset, out)
    }
    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.inner.list(prefix, each)
    }
    fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key)
    }
    fn habits(&self) -> Habits {
        self.inner.habits()
    }
    fn set_io_engine(&self, engine: IoEngine) {
        self.inner.set_io_engine(engine);
    }
    fn requests(&self) -> Requests {
        self.inner.requests()
    }
}

fn init(root: &Path) -> Result<()> {
    let access = AccessKey::key_file(vec![7; 32])?;
    let options = InitOptions { encryption: Encryption::Aes256Gcm, ..InitOptions::default() };
    Repository::init(Watched::open(root)?, &options, &access).map(|_| ())
}

fn open(root: &Path) -> Result<(Arc<Watched>, Repository)> {
    let store = Watched::open(root)?;
    let repo = Repository::open(store.clone(), &AccessKey::key_file(vec![7; 32])?)?;
    Ok((store, repo))
}

fn back_up(root: &Path, disk: &Disk, changed: Option<Extents>) -> Result<()> {
    let (_, repo) = open(root)?;
    let source = source::open(&disk.path, OpenOptions { force_live: true, raw_container: true })?;
    // A list of changes says what it is relative to: here, the night before.
    let parent = match changed {
        Some(_) => Parent::Point(repo.resolve("latest")?.id),
        None => Parent::Latest,
    };
    let volume = VolumeSource { name: "disk".into(), source, changed_extents: changed };
    let options = BackupOptions {
        name: "nights".into(),
        parent,
        resume: false,
        workers: 2,
        state_dir: root.join("state"),
        ..BackupOptions::default()
    };
    backup::run(&repo, vec![volume], &options, &Arc::new(Run::new())).map(|_| ())
}

/// One restore with a cold cache.
struct Restored {
    seconds: f64,
    gets: [u64; 3],
    bytes: [u64; 3],
    packs: usize,
    written_bytes: u64,
}

fn restore_newest(root: &Path, target: &Path) -> AnyResult<Restored> {
    let _ = fs::remove_file(target);
    flush_dirty();
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("the page cache stays warm: {error}");
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    let started = std::time::Instant::now();
    let (store, repo) = open(root)?;
    let point = repo.resolve("latest")?;
    let options = RestoreOptions { workers: 2, ..RestoreOptions::default() };
    let to = RestoreTarget::Path(target.to_owned());
    let report = restore::run(&repo, &point, &point.volumes[0], to, &options, &Arc::new(Run::new()))?;
    Ok(Restored {
        seconds: started.elapsed().as_secs_f64(),
        gets: std::array::from_fn(|n| store.gets[n].load(Ordering::Relaxed)),
        bytes: std::array::from_fn(|n| store.bytes[n].load(Ordering::Relaxed)),
        packs: store.packs.lock().map_or(0, |packs| packs.len()),
        written_bytes: report.written_bytes,
    })
}

/// Writes out what other programs and earlier steps left dirty.
fn flush_dirty() {
    let _ = std::process::Command::new("sync").status();
}

/// Distinct packs that two neighbouring segments have their chunks in, on average.
fn packs_per_window(root: &Path) -> AnyResult<f64> {
    let (_, repo) = open(root)?;
    let point = repo.resolve("latest")?;
    let (index, volume) = (repo.index()?, &point.volumes[0]);
    let mut tree = repo.tree(volume.size_bytes, volume.root)?;
    let (mut windows, mut packs) = (0, 0);
    for first in (0..tree.shape().segments()).step_by(2) {
        let mut here = BTreeSet::new();
        for number in first..(first + 2).min(tree.shape().segments()) {
            for piece in tree.leaf(SegmentNo(number))?.pieces {
                if let Some(id) = piece.chunk
                    && let Some(at) = index.find_to_read(id.as_bytes())?
                {
                    here.insert(at.pack.id);
                }
            }
        }
        windows += usize::from(!here.is_empty());
        packs += here.len();
    }
    Ok(packs as f64 / windows.max(1) as f64)
}

/// Fails if two files differ.
fn compare(a: &Path, b: &Path) -> AnyResult<()> {
    let same = std::process::Command::new("cmp").arg(a).arg(b).status()?.success();
    if same { Ok(()) } else { Err("what was restored is not what was backed up".into()) }
}

fn show(night: u64, which: &str, runs: &mut [Restored], per_window: f64) {
    runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let run = &runs[runs.len() / 2];
    println!(
        "| {night} | {which} | {:.2} ({:.2}–{:.2}) | {} | {} | {} | {} | {:.1} | {:.3} |",
        run.seconds,
        runs[0].seconds,
        runs[runs.len() - 1].seconds,
        run.gets[0],
        run.gets[1],
        run.gets[2],
        run.packs,
        per_window,
        run.bytes[0] as f64 / run.written_bytes as f64,
    );
}

fn main() -> AnyResult<()> {
    let args: Vec<String> = std::env::args().collect();
    let dir = PathBuf::from(args.get(1).ok_or("usage: nights DIR [MiB] [nights,nights,…] [rounds]")?);
    let size_bytes = args.get(2).map_or(Ok(2048), |text| text.parse::<u64>())? * MIB;
    let stops: Vec<u64> = args
        .get(3)
        .map_or("1,10,30,100", String::as_str)
        .split(',')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let rounds = args.get(4).map_or(Ok(3), |text| text.parse::<usize>())?;
    fs::create_dir_all(&dir)?;
    let (aged, fresh, target) = (dir.join("aged"), dir.join("fresh"), dir.join("restored.img"));
    let mut disk = Disk::create(dir.join("disk.img"), size_bytes)?;
    init(&aged)?;
    back_up(&aged, &disk, None)?;
    println!(
        "| night | repository | wall s, median (range) | range requests | manifest requests | index requests | packs | packs per window | bytes fetched / restored |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for night in 1..=stops.iter().copied().max().unwrap_or(0) {
        let changed = disk.night()?;
        back_up(&aged, &disk, Some(changed))?;
        if !stops.contains(&night) {
            continue;
        }
        init(&fresh)?;
        back_up(&fresh, &disk, None)?;
        let (mut of_aged, mut of_fresh) = (Vec::new(), Vec::new());
        for _ in 0..rounds.max(1) {
            of_fresh.push(restore_newest(&fresh, &target)?);
            of_aged.push(restore_newest(&aged, &target)?);
        }
        compare(&disk.path, &target)?;
        show(night, "fresh", &mut of_fresh, packs_per_window(&fresh)?);
        show(night, "aged", &mut of_aged, packs_per_window(&aged)?);
        println!("|  | aged / fresh | {:.2} |  |  |  |  |  |  |", {
            of_aged[of_aged.len() / 2].seconds / of_fresh[of_fresh.len() / 2].seconds
        });
        fs::remove_dir_all(&fresh)?;
    }
    fs::remove_dir_all(&aged)?;
    fs::remove_file(&target)?;
    fs::remove_file(&disk.path)?;
    Ok(())
}
