//! The restore pipeline. Planner → locators → look-ahead → decoders → writers, with fetchers beside them, and the calling thread, which keeps the journal:
//!
//! ```text
//!  planner ──► locators ──► look-ahead ──segments──► decoders ──buffers──► writers ──► target
//!  (plan.rs)   (locate.rs)  (lookahead.rs)      ▲    (decode.rs)           (io/)
//!                                │              │
//!                                └─► fetchers ──┘ ranges of packs (stored.rs)
//!                                    (fetch.rs)
//! ```
//!
//! The look-ahead knows the chunks of many segments and has what they need of a pack fetched in few long ranges, within a budget of stored bytes. Decoders take
//! segments and their buffers in the order of the volume, so the earliest segment always has its buffer and its ranges. Every chunk is authenticated and its id
//! is recomputed before it is written.
//!
//! A stream has the calling thread instead of writers (`stream.rs`), and a sink of blocks has putters (`puts.rs`), and a plan that knows which of its blocks differ from
//! what is there (`blocks.rs`).

mod blocks;
mod decode;
mod fetch;
mod journal;
mod locate;
mod lookahead;
mod plan;
mod puts;
mod stored;
mod strays;
mod stream;

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use rustix::fs::{FlockOperation, flock};

use crate::chunker::{ChunkKeys, ChunkParams};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::node::{Leaf, Piece};
use crate::format::point::{RecoveryPoint, Volume};
use crate::id::SegmentNo;
use crate::index::Index;
use crate::io::{self, BufPool, IoEngine, IoEngineChoice, WriteResult};
use crate::limits::SEGMENT_BYTES;
use crate::repo::Repository;
use crate::run::{Progress, Run};
use crate::source::Extents;
use crate::store::Store;
use crate::target::{self, BlockSink, Target, TargetOptions};
use blocks::BlockWork;

/// Where to restore to.
pub enum RestoreTarget {
    /// A device or a file.
    Path(PathBuf),
    /// Standard output or the like: written front to back, zeros and all.
    Writer(Box<dyn Write + Send>),
    /// What takes whole blocks. It reads as zeros where nothing is put or, with a base, as the base, with zeros behind the base's end: only blocks that differ from that
    /// are put.
    Blocks(Arc<dyn BlockSink>),
}

/// Options of a restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The target holds this point of the volume: write only what differs.
    pub base: Option<RecoveryPoint>,
    /// With `base`: where the target may hold something else, by whoever tracks changes of it. There it is read and compared.
    pub stale: Option<Arc<Extents>>,
    /// Read the target and write only what differs.
    pub compare: bool,
    /// Overwrite a target that is not empty.
    pub force: bool,
    /// Continue a restore that was killed.
    pub resume: bool,
    /// The target is a device that is known to read as zeros (a new volume): it need not be empty by its looks, and zeros are not written.
    pub zero_target: bool,
    /// Where this restore's journal lies, instead of a place derived from the target's path: for a target that may have another name when it is resumed.
    pub journal: Option<PathBuf>,
    /// Threads that decrypt and decompress.
    pub workers: usize,
    /// io_uring or pread.
    pub io_engine: IoEngineChoice,
    /// Segments being written at a time; chosen by the engine if `None`.
    pub queue_depth: Option<usize>,
    /// Where journals of restores to devices are kept; those of files lie beside them.
    pub state_dir: PathBuf,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            base: None,
            stale: None,
            compare: false,
            force: false,
            resume: false,
            zero_target: false,
            journal: None,
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            io_engine: IoEngineChoice::Auto,
            queue_depth: None,
            state_dir: std::env::temp_dir().join("penstock"),
        }
    }
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// Logical size of the volume.
    pub size_bytes: u64,
    /// Data written to the target.
    pub written_bytes: u64,
    /// Zeros that were not written, since the target was fresh.
    pub skipped_zero_bytes: u64,
    /// Zeros made by punching holes or zeroing ranges.
    pub zeroed_bytes: u64,
    /// Bytes known or found to be right already.
    pub skipped_same_bytes: u64,
    /// Bytes that a killed run had finished.
    pub resumed_bytes: u64,
    /// Bytes fetched from packs.
    pub fetched_bytes: u64,
    /// Wall time.
    pub duration_ms: u64,
    /// `uring` or `pread`.
    pub io_engine: &'static str,
}

/// A segment on its way.
#[derive(Default)]
struct SegmentWork {
    segment: SegmentNo,
    /// Its length in the volume.
    len: usize,
    /// Chunks to fetch, with their offsets in the segment.
    chunks: Vec<(u32, Piece)>,
    /// Ranges to write, on the 4 KiB grid but for the volume's end.
    writes: Vec<Range<u32>>,
    /// Ranges to make zero.
    zeros: Vec<Range<u32>>,
    /// Zeros need not be made.
    fresh: bool,
    /// The target is to be compared with this first, to find what differs.
    compare: Option<Leaf>,
    /// Parts that were taken out of `writes` and come later, as strays.
    deferred: u32,
    /// For a sink: its blocks that may have to be put. `zeros` are the zeros in them then, and `writes` is empty.
    blocks: Vec<BlockWork>,
    /// Chunks of the old state to fetch, to find out which.
    old_chunks: Vec<(u32, Piece)>,
}

/// Counters of a restore, besides [`Progress`].
#[derive(Default)]
struct Counters {
    written: AtomicU64,
    skipped_zero: AtomicU64,
    zeroed: AtomicU64,
    same: AtomicU64,
    resumed: AtomicU64,
    fetched: AtomicU64,
}

/// What all threads of a run share.
struct Shared {
    run: Arc<Run>,
    store: Arc<dyn Store>,
    keys: Arc<RepoKeys>,
    index: Arc<Index>,
    chunk_params: ChunkParams,
    counters: Counters,
    target: Option<Target>,
    volume_bytes: u64,
    volume_name: String,
}

impl Shared {
    fn chunk_keys(&self) -> ChunkKeys {
        let (block_key, chunk_key, cut_seed) = self.keys.chunker();
        ChunkKeys { block_key, chunk_key, cut_seed }
    }

    fn add(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Segments being put together or waiting to be written, beyond those being decoded or written.
const SEGMENTS_QUEUED: usize = 4;
/// Segments whose chunks are looked up, or were and wait for the look-ahead.
const SEGMENTS_LOCATED: usize = 32;
/// Threads that look chunks up: each may wait for a page of the index, or for the target.
const LOCATORS: usize = 4;
/// Stored bytes in memory, and more for each decoder: they make long requests, and several at a time, out of segments that lie in as many packs as the backup had workers.
const STORED_BYTES: usize = 48 << 20;
const STORED_BYTES_EACH: usize = 16 << 20;
/// How long a lock on the target is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Writes in flight.
const WRITE_DEPTH: usize = 4;

/// Restores one volume.
pub fn run(
    repo: &Repository,
    point: &RecoveryPoint,
    volume: &Volume,
    target: RestoreTarget,
    options: &RestoreOptions,
    run: &Arc<Run>,
) -> Result<RestoreReport> {
    let started = Instant::now();
    check(volume, &target, options)?;
    let (engine, _) = io::choose(options.io_engine)?;
    run.progress.total_bytes.store(volume.size_bytes, Ordering::Relaxed);
    let index = repo.index()?;
    let shared = |target: Option<Target>| -> Result<Arc<Shared>> {
        Ok(Arc::new(Shared {
            run: run.clone(),
            store: repo.store().clone(),
            keys: repo.keys().clone(),
            index: index.clone(),
            chunk_params: repo.chunk_params()?,
            counters: Counters::default(),
            target,
            volume_bytes: volume.size_bytes,
            volume_name: format!("{}/{}", &point.id[..12.min(point.id.len())], volume.name),
        }))
    };
    let shared = match target {
        RestoreTarget::Writer(writer) => {
            let shared = shared(None)?;
            stream::restore(repo, &shared, volume, writer, options)?;
            shared
        }
        RestoreTarget::Blocks(sink) => {
            let shared = shared(None)?;
            puts::restore(repo, &shared, volume, sink, options)?;
            shared
        }
        RestoreTarget::Path(path) => {
            let opened = OpenedTarget::open(repo, point, volume, &path, options)?;
            let shared = shared(Some(opened.target))?;
            to_target(repo, &shared, engine, volume, opened.journal, opened.done, opened.fresh, options)?;
            shared
        }
    };
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &shared.counters;
    Ok(RestoreReport {
        size_bytes: volume.size_bytes,
        written_bytes: load(&counters.written),
        skipped_zero_bytes: load(&counters.skipped_zero),
        zeroed_bytes: load(&counters.zeroed),
        skipped_same_bytes: load(&counters.same),
        resumed_bytes: load(&counters.resumed),
        fetched_bytes: load(&counters.fetched),
        duration_ms: started.elapsed().as_millis() as u64,
        io_engine: engine.name(),
    })
}

fn check(volume: &Volume, target: &RestoreTarget, options: &RestoreOptions) -> Result<()> {
    let invalid = |what: &str| Err(Error::Invalid { what: what.to_owned() });
    if let Some(base) = &options.base {
        let known = base.volume(&volume.name).is_some() || base.volumes.len() == 1;
        if !known {
            return invalid(&format!("--base: recovery point {} has no volume {:?}", base.id, volume.name));
        }
    }
    if matches!(target, RestoreTarget::Writer(_))
        && (options.base.is_some() || options.compare || options.resume)
    {
        return invalid("--base, --compare and --resume need a target that can be read: a device or a file");
    }
    if matches!(target, RestoreTarget::Blocks(_)) {
        if options.compare {
            return invalid("--compare needs a target that can be read: a device or a file");
        }
        if let Some(base) = &options.base
            && base_volume(base, volume)?.size_bytes > volume.size_bytes
        {
            return invalid(&format!("--base: the volume was larger in recovery point {}", base.id));
        }
    }
    if options.zero_target && (options.base.is_some() || options.compare) {
        return invalid("a target that holds a state of the volume is not one that reads as zeros");
    }
    Ok(())
}

/// The volume in the point that the target holds.
fn base_volume<'a>(base: &'a RecoveryPoint, volume: &Volume) -> Result<&'a Volume> {
    base.volume(&volume.name)
        .or(base.volumes.first())
        .ok_or_else(|| Error::Invalid { what: format!("--base: recovery point {} has no volumes", base.id) })
}

/// An open target with the journal of its restore.
struct OpenedTarget {
    target: Target,
    journal: journal::Journal,
    done: std::collections::HashSet<SegmentNo>,
    /// Zeros need not be written.
    fresh: bool,
}

impl OpenedTarget {
    fn open(
        repo: &Repository,
        point: &RecoveryPoint,
        volume: &Volume,
        path: &std::path::Path,
        options: &RestoreOptions,
    ) -> Result<Self> {
        let subject = journal::Subject::of(repo, point, volume, options);
        let derived = || journal::place_of(path, &options.state_dir);
        let place = options.journal.clone().unwrap_or_else(derived);
        let earlier = match options.resume.then(|| journal::read(&place, &subject, path)) {
            None => None,
            Some(Ok(earlier)) => Some(earlier),
            // Killed before it began, or of another state: nothing to go on from, and with --force nothing to lose.
            Some(Err(error)) if options.force || !path.exists() => {
                tracing::warn!("starting anew. {error}");
                None
            }
            Some(Err(error)) => return Err(error),
        };
        let target_options = TargetOptions {
            size_bytes: volume.size_bytes,
            force: options.force,
            resume: earlier.is_some(),
            must_hold_data: options.base.is_some() || options.compare,
            // Not if a restore of something else was begun here, and is given up now.
            zero: options.zero_target && (earlier.is_some() || !options.resume || !place.exists()),
        };
        let existed = path.exists();
        if !existed {
            // Before the file, so that a kill right after its creation finds a journal.
            journal::begin(&place, &subject, true)?;
        }
        let target = target::open(path, target_options).inspect_err(|_| {
            if !existed && !path.exists() {
                let _ = std::fs::remove_file(&place);
            }
        })?;
        lock(&target, path)?;
        let fresh = earlier.as_ref().map_or(target.is_fresh(), |e| e.fresh || target.is_fresh());
        let journal = match &earlier {
            Some(earlier) => journal::Journal::resume(&place, earlier)?,
            None => journal::Journal::start(&place, &subject, fresh)?,
        };
        Ok(Self { target, journal, done: earlier.map(|e| e.done).unwrap_or_default(), fresh })
    }
}

/// Locks the target against another restore. A restore that was killed holds its lock until the kernel has wound up its io_uring, so there is some patience.
fn lock(target: &Target, path: &std::path::Path) -> Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    while flock(&target.file().file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            let why = "another restore is writing it".into();
            return Err(Error::TargetRefused { target: path.display().to_string(), why });
        }
        std::thread::sleep(LOCK_PATIENCE / 100);
    }
    Ok(())
}

/// Runs all stages with writers on a device or file.
#[allow(clippy::too_many_arguments)]
fn to_target(
    repo: &Repository,
    shared: &Arc<Shared>,
    engine: IoEngine,
    volume: &Volume,
    mut journal: journal::Journal,
    done: std::collections::HashSet<SegmentNo>,
    fresh: bool,
    options: &RestoreOptions,
) -> Result<()> {
    let Some(target) = &shared.target else { unreachable!("called with a target") };
    let depth = options.queue_depth.unwrap_or(WRITE_DEPTH).max(1);
    let (write_sender, write_receiver) = async_channel::unbounded();
    let (done_sender, done_receiver) = crossbeam::channel::unbounded();
    let mut threads = io::spawn_writers(engine, 1, depth, write_receiver, done_sender.clone())?;
    let how = plan::How {
        base: options.base.clone(),
        stale: options.stale.clone().unwrap_or_default(),
        compare: options.compare,
        fresh,
        done,
        every_segment: false,
        sink: None,
    };
    let output = decode::Output::Writers { writes: write_sender, done: done_sender };
    threads.extend(start_stages(repo, shared, volume, how, output, options, depth)?);
    collect(shared, &done_receiver, &mut journal);
    join(shared, threads);
    shared.run.outcome().and_then(|()| target.finish()).inspect_err(|_| journal.sync(target))?;
    journal.remove();
    Ok(())
}

/// Starts all stages but the writers.
fn start_stages(
    repo: &Repository,
    shared: &Arc<Shared>,
    volume: &Volume,
    how: plan::How,
    output: decode::Output,
    options: &RestoreOptions,
    depth: usize,
) -> Result<Vec<JoinHandle<()>>> {
    use crossbeam::channel::{bounded, unbounded};
    let workers = options.workers.max(1);
    let store = repo.store();
    let mut threads = Vec::new();

    let (jobs, job_receiver) = unbounded();
    let (answers, answer_receiver) = bounded(SEGMENTS_LOCATED);
    let planner = plan::Planner::new(repo, shared.clone(), volume, how, plan::Output { jobs, answers })?;
    threads.push(spawn("plan", shared, move || planner.run())?);
    for _ in 0..LOCATORS {
        let locator = locate::Locator::new(shared.clone());
        let input = job_receiver.clone();
        threads.push(spawn("locate", shared, move || locator.run(&input))?);
    }

    let budget = stored::Budget::new(STORED_BYTES + workers * STORED_BYTES_EACH);
    let (requests, request_receiver) = unbounded();
    let (fetched, fetched_receiver) = unbounded();
    let (gathering, batches) = strays::Gathering::new(store.habits().gap_bytes);
    let stray_pool = BufPool::new(strays::BUFFERS, SEGMENT_BYTES);
    let fetcher = fetch::Fetcher::new(shared.clone(), budget.clone(), stray_pool, batches, fetched.clone());
    let look_ahead = lookahead::LookAhead::new(shared.clone(), budget, gathering, requests, fetched);
    threads.push(spawn("look-ahead", shared, move || look_ahead.run(&answer_receiver))?);
    for _ in 0..store.habits().parallel_gets.max(1) {
        let (fetcher, input) = (fetcher.clone(), request_receiver.clone());
        threads.push(spawn("fetch", shared, move || fetcher.run(&input))?);
    }
    drop(fetcher);

    let inlet =
        decode::Inlet::new(fetched_receiver, BufPool::new(depth + workers + SEGMENTS_QUEUED, SEGMENT_BYTES));
    for _ in 0..workers {
        let decoder = decode::Decoder::new(shared.clone(), output.clone())?;
        let inlet = inlet.clone();
        threads.push(spawn("decode", shared, move || decoder.run(&inlet))?);
    }
    Ok(threads)
}

/// Takes the writers' results until there are no more.
fn collect(shared: &Shared, done: &Receiver<WriteResult<decode::Written>>, journal: &mut journal::Journal) {
    // Segments of which something is there and something is not. Parts may come before the rest of their segment, hence the sign.
    let mut parts_due: HashMap<SegmentNo, i64> = HashMap::new();
    let mut note = |segment: SegmentNo, parts: i64, journal: &mut journal::Journal| {
        let due = parts_due.entry(segment).or_default();
        *due += parts;
        if *due == 0 {
            parts_due.remove(&segment);
            if let Some(target) = &shared.target {
                journal.segment(segment, target);
            }
        }
    };
    for result in done {
        match result {
            Ok((written, bytes)) => {
                Shared::add(&shared.counters.written, bytes);
                let progress = &shared.run.progress;
                Progress::add(&progress.new_bytes, bytes);
                match written {
                    decode::Written::Segment { segment, len, deferred } => {
                        Progress::add(&progress.done_bytes, len as u64);
                        note(segment, deferred.into(), journal);
                    }
                    decode::Written::Strays(segments) => {
                        segments.into_iter().for_each(|segment| note(segment, -1, journal));
                    }
                }
            }
            Err((_, error)) => shared.run.fail(error),
        }
    }
}

fn join(shared: &Shared, threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() && !shared.run.is_failed() {
            shared
                .run
                .fail(Error::Invalid { what: "internal error: a thread of the target panicked".into() });
        }
    }
}

/// Stops the others when its thread panics: they may wait for what it had.
struct PanicGuard(Arc<Run>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Invalid { what: "internal error: a thread of the restore panicked".into() });
        }
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let run = shared.run.clone();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let guard = PanicGuard(run);
            if let Err(error) = body() {
                guard.0.fail(error);
            }
        })
        .map_err(Error::io("start", format_args!("thread {name}")))
}
