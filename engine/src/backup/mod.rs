//! The backup pipeline. Planner → readers → workers → pack writers, and one committer on the calling thread:
//!
//! ```text
//!  planner ──jobs──► readers ──buffers──► workers ──packs──► pack writers ──► store
//!     │   (plan.rs)    (io/)   (credits)   (worker.rs)          (packer.rs)
//!     └──────────────── events ───────────────┴──────────────────────┴──► committer (commit.rs) ──► index, recovery point
//! ```
//!
//! Segment buffers are the credits that bound memory: a reader takes one, the worker gives it back. The first error latches in [`Run`];
//! then the planner stops, readers drain, and nothing is published.

mod adopt;
mod checks;
mod commit;
pub mod findings;
mod journal;
mod level;
mod origin;
mod packer;
mod pipeline;
mod plan;
mod rechunk;
mod salvage;
mod worker;

#[cfg(feature = "fuzzing")]
pub use journal::fuzz as fuzz_journal;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub use level::LevelUse;
pub use salvage::OnReadError;

use crate::chunker::ChunkParams;
use crate::error::{Error, Result};
use crate::format::config::Compression;
use crate::format::header::ObjectKind;
use crate::format::node::{Leaf, NodeRef};
use crate::format::point::{Counts, RecoveryPoint, Volume};
use crate::id::{NodeId, PointId, SegmentNo};
use crate::index::Claims;
use crate::io::{self, BufPool, IoEngineChoice};
use crate::pack::pack_buffer_bytes;
use crate::repo::Repository;
use crate::run::{Progress, Run};
use crate::simulation::{Bug, planted, sized};
use crate::source::{Extents, Source, SourceKind};
use crate::store::PutOutcome;
use crate::write_session::{Reliance, WriteSession};

/// One volume to back up.
pub struct VolumeSource {
    /// Its name, unique within the recovery point.
    pub name: String,
    /// Where it is read from.
    pub source: Box<dyn Source>,
    /// What may differ from the parent; only that is read.
    pub changed_extents: Option<Extents>,
}

/// Which earlier recovery point to compare with.
#[derive(Clone, Debug, Default)]
pub enum Parent {
    /// The newest of the same name.
    #[default]
    Latest,
    /// This one.
    Point(String),
    /// None.
    None,
}

/// Options of a backup.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Name of the machine.
    pub name: String,
    /// Recorded.
    pub tags: BTreeMap<String, String>,
    /// What to compare with.
    pub parent: Parent,
    /// RFC 3339 time that the contents stand for; now, if `None`.
    pub time: Option<String>,
    /// Threads that hash and compress.
    pub workers: usize,
    /// Threads that read; chosen by the engine if `None`.
    pub readers: Option<usize>,
    /// Segments in flight per reader; chosen if `None`.
    pub queue_depth: Option<usize>,
    /// io_uring or pread.
    pub io_engine: IoEngineChoice,
    /// How eagerly to compress; as the repository's configuration says, if `None`.
    pub compression: Option<Compression>,
    /// Recorded.
    pub host: String,
    /// Recorded: program and version.
    pub program: String,
    /// Continue a backup that was killed, if its sources are unchanged since.
    pub resume: bool,
    /// Accept volumes that are much shorter than in the point before.
    pub allow_shrink: bool,
    /// What becomes of places that cannot be read.
    pub on_read_error: OnReadError,
    /// Of 100 segments that a list of changes does not name, how many are read and compared all the same.
    pub verify_unlisted_percent: u8,
    /// Where journals are kept.
    pub state_dir: PathBuf,
    /// Further members of the recovery point: what the caller knows of the machine.
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            tags: BTreeMap::new(),
            parent: Parent::Latest,
            time: None,
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            readers: None,
            queue_depth: None,
            io_engine: IoEngineChoice::Auto,
            compression: None,
            host: String::new(),
            program: concat!("penstock-engine ", env!("CARGO_PKG_VERSION")).into(),
            resume: true,
            allow_shrink: false,
            on_read_error: OnReadError::Fail,
            verify_unlisted_percent: 0,
            state_dir: std::env::temp_dir().join("penstock"),
            other: BTreeMap::new(),
        }
    }
}

/// What limited the speed of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// Workers waited for data.
    Source,
    /// Workers were busy.
    Cpu,
    /// Workers waited for packs to be stored.
    Store,
}

impl Bottleneck {
    /// As in `--json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Cpu => "cpu",
            Self::Store => "store",
        }
    }
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The recovery point, as published.
    pub point: RecoveryPoint,
    /// Wall time.
    pub duration_ms: u64,
    /// What limited the speed.
    pub bottleneck: Bottleneck,
    /// Sum over the volumes.
    pub totals: Counts,
    /// `uring` or `pread`.
    pub io_engine: &'static str,
    /// Why that one.
    pub io_engine_why: String,
    /// Bytes of segments taken over from a run that was killed.
    pub resumed_bytes: u64,
    /// zstd levels used; `None` if compression is off.
    pub levels: Option<LevelUse>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The point is less than was asked for, as its volumes say (see [`findings`]) and the notes explain.
    pub in_part: bool,
}

/// What travels with a segment from the planner to a worker.
#[derive(Debug)]
struct SegmentTag {
    volume: u16,
    segment: SegmentNo,
    len: usize,
    /// The parent's leaf at the same place, if it covers the same length.
    parent: Option<ParentLeaf>,
    /// Ranges that may differ from the parent's leaf; the rest was not read. `None`: everything was read.
    changed: Option<Vec<std::ops::Range<u32>>>,
    /// No list of changes names it: it should be what the parent has.
    unlisted: bool,
}

#[derive(Debug)]
struct ParentLeaf {
    node: NodeRef,
    leaf: Leaf,
}

/// What the committer is told.
enum Event {
    /// All jobs of a group of 256 segments were sent out.
    Group { volume: u16, group: u64, plan: GroupPlan },
    /// A segment is done.
    Segment { volume: u16, segment: SegmentNo, leaf: LeafResult, counts: Counts },
    /// The planner passed a volume's end; `unread` counts holes, and segments taken over without a read.
    VolumeEnd { volume: u16, size_bytes: u64, unread: Counts },
    /// A pack is durable.
    Pack { kind: ObjectKind, id: crate::id::ObjectId },
    /// The planner or a worker ended.
    ThreadEnd,
}

/// What becomes of a group's segments.
enum GroupPlan {
    /// The whole group is this node.
    Whole(NodeRef),
    /// Leaves of the segments without a job, and how many of the others there are.
    Segments { defaults: Vec<NodeRef>, jobs: u32 },
}

/// A segment's leaf.
enum LeafResult {
    /// Zero, or stored already.
    Known(NodeRef),
    /// To be stored unless the repository has it.
    New(NodeId, Vec<u8>),
}

/// What all threads of a run share.
struct Shared {
    run: Arc<Run>,
    claims: Arc<Claims>,
    repo: RepoParts,
    chunk_params: ChunkParams,
    level: level::LevelControl,
    pack_pool: BufPool,
    /// Threads that store packs: buffers of the pool beyond one per worker.
    pack_writers: usize,
    meta_pool: BufPool,
    /// Nanoseconds that workers waited for input and for pack buffers, and lived in all.
    waited_source_ns: AtomicU64,
    waited_store_ns: AtomicU64,
    worked_ns: AtomicU64,
    /// Bytes of segments taken over from a killed run.
    resumed_bytes: AtomicU64,
    /// Data of the repository was found to be archived.
    archived: AtomicBool,
    /// Manifest nodes are stored again although the index knows them.
    nodes_anew: bool,
    /// What makes the point less than a faithful copy.
    findings: findings::Findings,
    on_read_error: OnReadError,
    /// Segments to be compared although no list names them.
    sample: checks::Sample,
}

/// The parts of a repository that threads need.
struct RepoParts {
    store: Arc<dyn crate::store::Store>,
    keys: Arc<crate::crypto::RepoKeys>,
    pack_bytes: usize,
}

/// Size of metadata packs: nodes of 8 GiB of a volume; small, since the committer alone fills them.
const META_PACK_BYTES: usize = sized(4 << 20, 64 << 10);
/// Packs being stored at a time at least, where the store has a use for so many: what two workers fill while one request is under way. With 32 MiB packs and two workers it keeps
/// all buffers below 256 MiB.
const PACKS_IN_FLIGHT_MIN: usize = 3;

/// Backs the volumes up as one recovery point.
pub fn run(
    repo: &Repository,
    mut volumes: Vec<VolumeSource>,
    options: &BackupOptions,
    run: &Arc<Run>,
) -> Result<BackupReport> {
    let started = Instant::now();
    let started_at = repo.now();
    check(repo, &volumes, options)?;
    let (engine, io_engine_why) = io::choose(options.io_engine)?;
    repo.store().set_io_engine(engine);
    let session = repo.begin_write("backup")?;
    let mut notes = Vec::new();
    let parent = find_parent(repo, &session, &volumes, options, &mut notes)?;
    let checks =
        checks::Checks::begin(repo, session.points(), &mut volumes, parent.as_ref(), options, &mut notes)?;
    let reliance = match &parent {
        Some(parent) => session.may_rely_on(parent)?,
        None if session.lost_packs() == 0 => Reliance::All,
        None => Reliance::LookUp,
    };
    if reliance != Reliance::All {
        // Neither the parent's chunks nor its manifests can be taken on trust: everything is read and looked up.
        notes.push(why_all_is_read(&session));
        volumes.iter_mut().for_each(|volume| volume.changed_extents = None);
    }
    let journal = journal::Journal::open(repo, &volumes, options)?;
    let (journal, finished) = adopt::take_over(repo, session.claims(), journal, options.resume, &mut notes)?;
    let total: u64 = volumes.iter().filter_map(|v| v.source.size_bytes()).sum();
    run.progress.total_bytes.store(total, Ordering::Relaxed);

    let mut shared = share(repo, session.claims().clone(), options, parent.as_ref(), run)?;
    shared.nodes_anew = reliance == Reliance::NodesAnew;
    let shared = Arc::new(shared);
    let described: Vec<DescribedVolume> = volumes.iter().map(DescribedVolume::of).collect();
    let compared = parent.clone().filter(|_| reliance == Reliance::All);
    let planned = plan::Input { volumes, parent: compared, finished };
    let committed = pipeline::run(repo, &shared, engine, planned, journal, &described, options);
    let checked = run.outcome().and(committed).and_then(|mut committed| {
        let in_part = checks.end(&mut committed.volumes, &shared.findings, &mut notes)?;
        Ok((committed, in_part))
    });
    let (committed, in_part) = match checked {
        Ok(checked) => checked,
        Err(error) => return Err(session.flush_after(error)),
    };
    if !planted(Bug::PointBeforeIndex) {
        session.flush()?;
    }
    let id = PointId::at(unix_ms(options.time.as_deref().unwrap_or(&started_at))?)?;
    let mut point = RecoveryPoint {
        id: id.to_string(),
        name: options.name.clone(),
        started_at: options.time.clone().unwrap_or(started_at),
        finished_at: repo.now(),
        parent: parent.map(|p| p.id),
        tags: options.tags.clone(),
        host: options.host.clone(),
        program: options.program.clone(),
        volumes: committed.volumes,
        other: options.other.clone(),
    };
    if run.is_cancelled() {
        return Err(Error::Cancelled);
    }
    if session.commit(&mut point)? == PutOutcome::Exists {
        let object = ObjectKind::Point.key(&point.id);
        return Err(Error::damaged(object, "a name just drawn was taken already"));
    }
    committed.journal.remove();
    let (bottleneck, resumed_bytes) = (bottleneck(&shared), shared.resumed_bytes.load(Ordering::Relaxed));
    let levels = shared.level.used();
    drop(shared); // and with it the pack buffers: a large merge needs memory of its own
    session.tidy_index(&|| run.is_cancelled());
    session.end();
    let mut totals = Counts::default();
    point.volumes.iter().for_each(|v| totals += v.counts);
    Ok(BackupReport {
        point,
        duration_ms: started.elapsed().as_millis() as u64,
        bottleneck,
        totals,
        io_engine: engine.name(),
        io_engine_why,
        resumed_bytes,
        levels,
        notes,
        in_part,
    })
}

/// Why nothing of the parent is taken on trust.
fn why_all_is_read(session: &WriteSession<'_>) -> String {
    match session.lost_packs() {
        0 => "the parent may rely on packs that garbage collection has condemned or deleted, or that were put aside as \
              damaged: everything is read and looked up"
            .into(),
        lost_packs => format!(
            "{lost_packs} packs of the repository are missing or cut short: everything is read, and what they held is \
             stored again where the source still has it. `penstock verify` says which recovery points are hurt"
        ),
    }
}

/// Name, source and sizes of a volume, kept while the planner owns the source.
struct DescribedVolume {
    name: String,
    source: String,
    source_kind: &'static str,
    logical_block_bytes: u32,
}

impl DescribedVolume {
    fn of(volume: &VolumeSource) -> Self {
        Self {
            name: volume.name.clone(),
            source: volume.source.name().to_owned(),
            source_kind: match volume.source.kind() {
                SourceKind::Device => "device",
                SourceKind::Image => "image",
                SourceKind::Stream => "stream",
                SourceKind::Snapshot => "snapshot",
            },
            logical_block_bytes: volume.source.logical_block_bytes(),
        }
    }
}

fn check(repo: &Repository, volumes: &[VolumeSource], options: &BackupOptions) -> Result<()> {
    let invalid = |what: &str| Err(Error::Invalid { what: what.to_owned() });
    if volumes.is_empty() || volumes.len() > usize::from(u16::MAX) {
        return invalid("a backup needs at least one source");
    }
    if options.name.is_empty() {
        return invalid("a backup needs a name: --name NAME");
    }
    let mut names: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return invalid(&format!("two volumes are called {:?}", twice[0]));
    }
    if let Some(time) = &options.time {
        checks::time_is_not_of_the_future(unix_ms(time)?, repo.unix_ms())?;
    }
    let stream = |v: &&VolumeSource| v.source.kind() == SourceKind::Stream && v.changed_extents.is_some();
    if let Some(volume) = volumes.iter().find(stream) {
        return invalid(&format!(
            "{}: changed extents need a source that can be read in any order",
            volume.name
        ));
    }
    Ok(())
}

fn find_parent(
    repo: &Repository,
    session: &WriteSession<'_>,
    volumes: &[VolumeSource],
    options: &BackupOptions,
    notes: &mut Vec<String>,
) -> Result<Option<RecoveryPoint>> {
    let base = checks::base_of_lists(volumes, options)?;
    let parent = match (&options.parent, base) {
        (Parent::None, _) => None,
        (Parent::Point(text), _) => Some(repo.resolve(text)?),
        (Parent::Latest, Some(base)) => Some(repo.resolve(&base.to_string())?),
        (Parent::Latest, None) => checks::newest(repo, session.points(), &options.name, notes)?,
    };
    checks::parent_is_base(parent.as_ref(), base)?;
    let orphan = |v: &&VolumeSource| {
        v.changed_extents.is_some() && parent.as_ref().is_none_or(|p| p.volume(&v.name).is_none())
    };
    if let Some(volume) = volumes.iter().find(orphan) {
        return Err(Error::Invalid {
            what: format!(
                "--changed-extents says what differs from an earlier recovery point, but there is none with a volume {:?}: \
                 make a full backup first, or name one with --parent",
                volume.name
            ),
        });
    }
    Ok(parent)
}

/// Packs stored at a time: as many as the store has a use for, and about one per worker that fills them.
fn packs_in_flight(repo: &Repository, options: &BackupOptions) -> usize {
    repo.store().habits().parallel_puts.clamp(1, options.workers.max(PACKS_IN_FLIGHT_MIN))
}

fn share(
    repo: &Repository,
    claims: Arc<Claims>,
    options: &BackupOptions,
    parent: Option<&RecoveryPoint>,
    run: &Arc<Run>,
) -> Result<Shared> {
    let config = repo.config();
    let chunk_params = repo.chunk_params()?;
    let pack_bytes = config.pack_bytes as usize;
    let pack_writers = packs_in_flight(repo, options);
    let compression = match options.compression {
        Some(chosen) => chosen,
        None => Compression::parse(&config.compression)?,
    };
    let pack_buffer = pack_buffer_bytes(pack_bytes, chunk_params.max_bytes() as usize);
    Ok(Shared {
        run: run.clone(),
        claims,
        repo: RepoParts { store: repo.store().clone(), keys: repo.keys().clone(), pack_bytes },
        chunk_params,
        level: level::LevelControl::new(&compression),
        pack_pool: BufPool::new(options.workers.max(1) + pack_writers, pack_buffer),
        pack_writers,
        meta_pool: BufPool::new(2, pack_buffer_bytes(META_PACK_BYTES, crate::format::node::NODE_BYTES_MAX)),
        waited_source_ns: AtomicU64::new(0),
        waited_store_ns: AtomicU64::new(0),
        worked_ns: AtomicU64::new(0),
        resumed_bytes: AtomicU64::new(0),
        archived: AtomicBool::new(false),
        nodes_anew: false,
        findings: findings::Findings::default(),
        on_read_error: options.on_read_error,
        sample: checks::Sample::new(options.verify_unlisted_percent, parent),
    })
}

fn bottleneck(shared: &Shared) -> Bottleneck {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let worked = load(&shared.worked_ns).max(1);
    // A worker that waits a quarter of its time is held up by someone.
    if load(&shared.waited_store_ns) * 4 > worked {
        Bottleneck::Store
    } else if load(&shared.waited_source_ns) * 4 > worked {
        Bottleneck::Source
    } else {
        Bottleneck::Cpu
    }
}

fn unix_ms(rfc3339: &str) -> Result<u64> {
    let time: jiff::Timestamp = rfc3339.parse().map_err(|e| Error::Invalid {
        what: format!("time {rfc3339:?} is not RFC 3339 (2026-11-24T01:00:00Z): {e}"),
    })?;
    u64::try_from(time.as_millisecond())
        .map_err(|_| Error::Invalid { what: format!("time {rfc3339:?} is before 1970") })
}

fn note_progress(progress: &Progress, counts: &Counts, len: u64) {
    Progress::add(&progress.done_bytes, len);
    Progress::add(&progress.read_bytes, counts.read_bytes);
    Progress::add(&progress.zero_bytes, counts.zero_bytes);
    Progress::add(&progress.reused_bytes, counts.reused_bytes);
    Progress::add(&progress.new_bytes, counts.new_bytes);
    Progress::add(&progress.stored_bytes, counts.stored_bytes);
}

/// A volume of a recovery point from what is known of it.
fn volume_of(
    described: &DescribedVolume,
    size_bytes: u64,
    root: crate::format::point::Root,
    counts: Counts,
) -> Volume {
    Volume {
        name: described.name.clone(),
        source: described.source.clone(),
        source_kind: described.source_kind.to_owned(),
        size_bytes,
        logical_block_bytes: described.logical_block_bytes,
        root,
        counts,
        other: BTreeMap::new(),
    }
}
