//! Copies recovery points from one repository to another, under the other's keys, sending only what it lacks. One pipeline per point:
//!
//! ```text
//!  planner ──batches──► fetchers ──ranges of packs──► workers ──packs──► pack writers ──► destination
//!  (plan.rs)            (fetch.rs)     (credits)      (fetch.rs)           (send.rs)
//!     └─────────────────── events ───────────────────────┴──► assembler (assemble.rs) ──► metadata packs
//! ```
//!
//! Ids are keyed by repository, so a chunk's id in the destination is known only after it was read, unless the baseline tells it: a point that was copied before. Both leaves
//! of a segment have the same cuts, so the chunks of a segment that the source's points share are renamed without reading them.

mod assemble;
mod baseline;
mod fetch;
mod plan;
mod renamed;
mod send;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam::channel::{bounded, unbounded};

use crate::error::{Error, Result};
use crate::format::config::Compression;
use crate::format::node::{NODE_BYTES_MAX, NodeRef};
use crate::format::point::{Counts, RecoveryPoint};
use crate::id::{ChunkId, PointId, SegmentNo};
use crate::index::Claims;
use crate::io::{self, BufPool, IoEngineChoice};
use crate::pack::pack_buffer_bytes;
use crate::repo::Repository;
use crate::run::{Progress, Run};
use crate::store::PutOutcome;
use crate::write_session::WriteSession;
use assemble::{Assembled, Assembler, META_PACK_BYTES};
use baseline::Baseline;
use renamed::Renamed;
use send::OpenPacks;

/// The field of a copied point that says where it came from.
pub const COPIED_FROM: &str = "copied_from";

/// Longest request to the source, unless a chunk is longer.
const BATCH_BYTES: u64 = 4 << 20;
/// Buffers for what is read, at most: 48 MiB.
const READ_BUFFERS_MAX: usize = 12;
/// Workers at most: each needs a buffer to do anything, and a dozen decode more than a network carries. With more, memory has no bound (276 MiB were measured with 64).
const WORKERS_MAX: usize = 12;
/// Ranges fetched at a time at most.
const FETCHERS_MAX: usize = 8;
/// Batches planned ahead of the fetchers.
const BATCHES_AHEAD: usize = 64;
/// Events on the way to the assembler, which waits for nobody but pack writers.
const EVENTS_AHEAD: usize = 1024;

/// What became of one point.
#[derive(Clone, Debug)]
pub struct CopiedPoint {
    /// As the destination has it.
    pub point: RecoveryPoint,
    /// It was there already, and nothing was sent.
    pub already_there: bool,
    /// The point it was compared with.
    pub baseline: Option<String>,
    /// New chunks, and what they take.
    pub new: Counts,
    /// Bytes read from the source's packs.
    pub read_bytes: u64,
}

/// What a copy did.
#[derive(Clone, Debug, Default)]
pub struct CopyReport {
    /// In the order they were copied.
    pub points: Vec<CopiedPoint>,
    /// Wall time.
    pub duration_ms: u64,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What is done for one recovery point.
struct PointJob {
    point: RecoveryPoint,
    baseline: Option<Baseline>,
}

/// A segment of which some chunks have to be read.
struct PlannedSegment {
    volume: u16,
    segment: SegmentNo,
    pieces: Vec<PlannedPiece>,
}

/// A piece of a segment, as far as its name in the destination is known.
enum PlannedPiece {
    Zero { len: u32 },
    Known { len: u32, id: ChunkId },
    Wanted { len: u32, id: ChunkId },
}

/// What becomes of a group's segments.
enum GroupPlan {
    /// The whole group is this node.
    Whole(NodeRef),
    /// Leaves of the segments that are in no window, and how many are in windows.
    Segments { refs: Vec<NodeRef>, jobs: usize },
}

/// Ids of chunks: in the source, in the destination.
type Names = Vec<(ChunkId, ChunkId)>;
/// What is new, by volume.
type NewOfVolumes = Vec<(u16, Counts)>;

/// What the assembler is told.
enum Event {
    Group { volume: u16, group: u64, plan: GroupPlan },
    Window { number: u64, segments: Vec<PlannedSegment>, batches: usize },
    Decoded { window: u64, pairs: Names, counts: NewOfVolumes },
}

/// What all threads of a run share.
struct Shared<'a> {
    run: &'a Run,
    source: &'a Repository,
    destination: &'a Repository,
    claims: Arc<Claims>,
    renamed: Renamed,
    open_packs: OpenPacks,
    meta_pool: BufPool,
    read_pool: BufPool,
    fetchers: usize,
    workers: usize,
    batch_bytes: u64,
    chunk_bytes_max: u32,
    /// Both repositories name chunks alike: one began as a copy of the other's objects.
    same_ids: bool,
    /// zstd level for what the source stores raw because it never compresses.
    compress_raw: Option<i32>,
}

impl<'a> Shared<'a> {
    fn new(
        source: &'a Repository,
        destination: &'a Repository,
        claims: Arc<Claims>,
        workers: usize,
        run: &'a Run,
    ) -> Result<Self> {
        let of_source = source.chunk_params()?.max_bytes();
        let chunk_bytes_max = of_source.max(destination.chunk_params()?.max_bytes());
        let workers = workers.clamp(1, WORKERS_MAX);
        let fetchers = source.store().habits().parallel_gets.clamp(1, FETCHERS_MAX);
        // One frame has to fit, sealed.
        let batch_bytes = BATCH_BYTES.max(u64::from(of_source) + 64);
        let read_buffers = (fetchers + workers + 1).min(READ_BUFFERS_MAX);
        let levels_of =
            |repo: &Repository| Compression::parse(&repo.config().compression).map(|c| c.levels());
        let compress_raw = match (levels_of(source)?, levels_of(destination)?) {
            (None, Some(levels)) => Some(*levels.start()),
            _ => None,
        };
        Ok(Self {
            run,
            source,
            destination,
            claims,
            renamed: Renamed::default(),
            open_packs: OpenPacks::new(destination, workers, chunk_bytes_max as usize),
            meta_pool: BufPool::new(2, pack_buffer_bytes(META_PACK_BYTES, NODE_BYTES_MAX)),
            read_pool: BufPool::new(read_buffers, fetch::buffer_bytes(batch_bytes as usize)),
            fetchers,
            workers,
            batch_bytes,
            chunk_bytes_max,
            same_ids: source.keys().chunker() == destination.keys().chunker(),
            compress_raw,
        })
    }

    /// Names the source in an error.
    fn of_source<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.in_repository(self.source.location()))
    }

    /// Names the destination in an error.
    fn of_destination<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.in_repository(self.destination.location()))
    }
}

/// Copies `points` of `source`, oldest first, with up to `workers` threads that decode (a dozen at most). Points that the destination has already are passed over. A point is published when all of
/// it is stored; the first error ends the run, and what was published before stays.
pub fn run(
    source: &Repository,
    destination: &Repository,
    points: &[RecoveryPoint],
    workers: usize,
    run: &Arc<Run>,
) -> Result<CopyReport> {
    let started = Instant::now();
    check(source, destination)?;
    let (engine, _) = io::choose(IoEngineChoice::Auto)?;
    destination.store().set_io_engine(engine);
    let in_source = |error: Error| error.in_repository(source.location());
    let in_destination = |error: Error| error.in_repository(destination.location());
    // Points before the index: what a point refers to is in every index loaded after it was listed.
    let of_source: BTreeSet<PointId> = source.point_ids().map_err(in_source)?.into_iter().collect();
    let mut there: BTreeSet<PointId> = destination.point_ids().map_err(in_destination)?.into_iter().collect();
    let mut sorted: Vec<(PointId, &RecoveryPoint)> =
        points.iter().filter_map(|point| Some((point.point_id()?, point))).collect();
    sorted.sort_by_key(|(id, _)| *id);
    sorted.dedup_by_key(|(id, _)| *id);

    let mut report = CopyReport::default();
    if sorted.iter().all(|(id, _)| there.contains(id)) {
        for (id, point) in &sorted {
            report.points.push(already(baseline::existing_copy(destination, point, *id)?));
        }
        report.duration_ms = started.elapsed().as_millis() as u64;
        return Ok(report);
    }
    // There is something to do: from here on the points of the destination are those that the session has listed.
    let session = destination.begin_write("copy").map_err(in_destination)?;
    there = session.points().iter().copied().collect();
    source.index_now().map_err(in_source)?;
    let lost_packs = session.lost_packs();
    if lost_packs > 0 {
        report.notes.push(format!(
            "{lost_packs} packs of {} are missing or cut short: nothing is taken from earlier copies, and what is lost is \
             sent again",
            destination.location()
        ));
    }
    let shared = Shared::new(source, destination, session.claims().clone(), workers, run)?;
    let logical_bytes = |point: &RecoveryPoint| -> u64 { point.volumes.iter().map(|v| v.size_bytes).sum() };
    let total = sorted.iter().filter(|(id, _)| !there.contains(id)).map(|(_, p)| logical_bytes(p)).sum();
    run.progress.total_bytes.store(total, Ordering::Relaxed);

    let mut copied: BTreeSet<PointId> = BTreeSet::new();
    for (id, point) in sorted {
        if there.contains(&id) {
            report.points.push(already(baseline::existing_copy(destination, point, id)?));
            continue;
        }
        // Of what this run has copied itself it knows what it relies on; earlier copies must not need condemned packs.
        let both: BTreeSet<PointId> = of_source.intersection(&there).copied().collect();
        let baseline = match lost_packs {
            0 => baseline::find(source, &session, &both, &copied, point)?,
            _ => None,
        };
        let result = copy_point(&shared, &session, PointJob { point: point.clone(), baseline }, id);
        let done = match result {
            Ok(done) => done,
            Err(error) => return Err(session.flush_after(error)),
        };
        there.insert(id);
        copied.insert(id);
        report.points.push(done);
    }
    drop(shared); // the buffers go: a large merge needs memory of its own
    session.tidy_index(&|| run.is_cancelled());
    session.end();
    report.duration_ms = started.elapsed().as_millis() as u64;
    Ok(report)
}

/// Chunks keep their cuts. Where those of one kind may lie at any byte and a writer of the other expects 4 KiB blocks, a later backup would build on sand.
fn check(source: &Repository, destination: &Repository) -> Result<()> {
    let (from, to) = (source.config(), destination.config());
    if from.chunker == to.chunker {
        return Ok(());
    }
    Err(Error::TargetRefused {
        target: destination.location().to_owned(),
        why: format!(
            "its chunker is {}, that of {} is {}: create it with `penstock init --chunker {}`",
            to.chunker,
            source.location(),
            from.chunker,
            from.chunker
        ),
    })
}

fn already(point: RecoveryPoint) -> CopiedPoint {
    CopiedPoint { point, already_there: true, baseline: None, new: Counts::default(), read_bytes: 0 }
}

fn copy_point(
    shared: &Shared<'_>,
    session: &WriteSession<'_>,
    job: PointJob,
    id: PointId,
) -> Result<CopiedPoint> {
    let read_before = Progress::get(&shared.run.progress.read_bytes);
    let assembled = pipeline(shared, &job);
    let assembled = shared.run.outcome().and(assembled)?;
    if shared.run.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let PointJob { mut point, baseline } = job;
    let mut total = Counts::default();
    for (volume, Assembled { root, new }) in point.volumes.iter_mut().zip(assembled) {
        volume.root = root;
        let counts = &mut volume.counts;
        // What was read and what is zero is a fact of the volume; what was new is one of the repository.
        let data_bytes = counts.reused_bytes + counts.new_bytes;
        (counts.new_chunks, counts.new_bytes, counts.stored_bytes) =
            (new.new_chunks, new.new_bytes, new.stored_bytes);
        counts.reused_bytes = data_bytes.saturating_sub(new.new_bytes);
        total += new;
    }
    let origin = BTreeMap::from([
        ("repository_id", shared.source.config().repository_id.as_str()),
        ("recovery_point", point.id.as_str()),
    ]);
    let origin = serde_json::to_value(origin)
        .map_err(|e| Error::Invalid { what: format!("cannot be written as JSON: {e}") })?;
    point.other.insert(COPIED_FROM.to_owned(), origin);
    let published = shared.of_destination(session.commit(&mut point))?;
    if published == PutOutcome::Exists {
        // Another run has copied it meanwhile.
        return Ok(already(baseline::existing_copy(shared.destination, &point, id)?));
    }
    Ok(CopiedPoint {
        point,
        already_there: false,
        baseline: baseline.map(|baseline| baseline.original.id),
        new: total,
        read_bytes: Progress::get(&shared.run.progress.read_bytes) - read_before,
    })
}

/// Runs all threads for one point; returns when all of them have ended.
fn pipeline(shared: &Shared<'_>, job: &PointJob) -> Result<Vec<Assembled>> {
    let (batch_sender, batch_receiver) = bounded(BATCHES_AHEAD);
    let (fetched_sender, fetched_receiver) = bounded(READ_BUFFERS_MAX);
    let (event_sender, event_receiver) = bounded(EVENTS_AHEAD);
    let (pack_sender, pack_receiver) = unbounded();
    let mut workers = Vec::with_capacity(shared.workers);
    for _ in 0..shared.workers {
        workers.push(fetch::Worker::new(shared)?);
    }
    let assembler = Assembler::new(shared, job, pack_sender.clone())?;
    let planner = plan::Planner::new(shared, job, event_sender.clone(), batch_sender);
    std::thread::scope(|scope| {
        let mut threads = Threads { scope, run: shared.run, handles: Vec::new() };
        threads.spawn("plan", move || planner.run());
        for _ in 0..shared.fetchers {
            let (input, output) = (batch_receiver.clone(), fetched_sender.clone());
            threads.spawn("fetch", move || fetch::fetch(shared, &input, &output));
        }
        for worker in workers {
            let (input, packs, events) =
                (fetched_receiver.clone(), pack_sender.clone(), event_sender.clone());
            threads.spawn("work", move || worker.run(&input, &packs, &events));
        }
        for _ in 0..shared.open_packs.writers {
            let input = pack_receiver.clone();
            threads.spawn("pack", move || send::write_packs(shared, &input));
        }
        drop((batch_receiver, fetched_sender, fetched_receiver, pack_sender, pack_receiver, event_sender));
        let assembled = assembler.run(&event_receiver); // and with it the last sender of packs
        threads.join();
        assembled
    })
}

/// The threads of a pipeline.
struct Threads<'scope, 'env> {
    scope: &'scope std::thread::Scope<'scope, 'env>,
    run: &'env Run,
    handles: Vec<std::thread::ScopedJoinHandle<'scope, ()>>,
}

impl<'scope, 'env> Threads<'scope, 'env> {
    /// Starts a named thread whose error ends the run.
    fn spawn(&mut self, name: &str, body: impl FnOnce() -> Result<()> + Send + 'scope) {
        let run = self.run;
        let body = move || {
            if let Err(error) = body() {
                run.fail(error);
            }
        };
        match std::thread::Builder::new().name(name.to_owned()).spawn_scoped(self.scope, body) {
            Ok(handle) => self.handles.push(handle),
            Err(error) => self.run.fail(Error::io("start", format_args!("thread {name}"))(error)),
        }
    }

    /// Waits for all of them.
    fn join(self) {
        for handle in self.handles {
            if handle.join().is_err() {
                let what = "internal error: a thread of the copy panicked".into();
                self.run.fail(Error::Invalid { what });
            }
        }
    }
}
