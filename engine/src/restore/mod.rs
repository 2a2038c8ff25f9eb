//! The restore pipeline. Planner → locators → look-ahead → decoders → writers, with fetchers beside them, and the
//! calling thread, which keeps the journal:
//!
//! ```text
//!  planner ──► locators ──► look-ahead ──segments──► decoders ──buffers──► writers ──► target
//!  (plan.rs)   (locate.rs)  (lookahead.rs)      ▲    (decode.rs)           (io/)
//!                                │              │
//!                                └─► fetchers ──┘ ranges of packs (stored.rs)
//!                                    (fetch.rs)
//! ```
//!
//! The look-ahead knows the chunks of many segments and has what they need of a pack fetched in few long ranges,
//! within a budget of stored bytes. Decoders take segments and their buffers in the order of the volume, so the
//! earliest segment always has its buffer and its ranges. Every chunk is authenticated and its id is recomputed
//! before it is written.
//!
//! What differs from kind to kind of target is the plan (`plan.rs`) and where decoded segments go (`output.rs`): to
//! writers (`target_output.rs`), to the calling thread, which puts them in order (`stream.rs`), or to putters of
//! whole blocks (`block_output.rs`), whose plan knows which of its blocks differ from what is there (`blocks.rs`).

mod block_output;
mod blocks;
mod compare;
mod damage;
mod decode;
mod deferred;
mod fetch;
mod frames;
mod journal;
mod locate;
mod lookahead;
mod opened;
mod output;
mod pipeline;
mod plan;
mod segment;
mod shared;
mod stored;
mod stream;
mod target_output;
mod trust;
mod writes;

#[cfg(feature = "fuzzing")]
pub use journal::fuzz as fuzz_journal;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::format::point::{RecoveryPoint, Volume};
use crate::io::{self, IoEngineChoice};
use crate::repo::Repository;
use crate::run::Run;
use crate::source::Extents;
use crate::target::BlockSink;
use damage::DamageLog;
use shared::{Counters, Shared};

pub use damage::Damage;

/// Where to restore to.
pub enum RestoreTarget {
    /// A device or a file.
    Path(PathBuf),
    /// Standard output or the like: written front to back, zeros and all.
    Writer(Box<dyn Write + Send>),
    /// What takes whole blocks. It reads as zeros where nothing is put or, with a base, as the base, with zeros
    /// behind the base's end: only blocks that differ from that are put.
    Blocks(Arc<dyn BlockSink>),
}

/// Options of a restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The target holds this point of the volume: write only what differs.
    pub base: Option<RecoveryPoint>,
    /// With `base`: where the target may hold something else, by whoever tracks changes of it. There it is read and
    /// compared.
    pub stale: Option<Arc<Extents>>,
    /// Read the target and write only what differs.
    pub compare: bool,
    /// Overwrite a target that is not empty.
    pub force: bool,
    /// Continue a restore that was killed.
    pub resume: bool,
    /// Go on past what of the repository is damaged or missing, and report where it is missing on the target. There
    /// the target reads as zeros; one that holds a state of the volume (`base`, `compare`) keeps what it has.
    pub skip_damaged: bool,
    /// The target is a device that is known to read as zeros (a new volume): it need not be empty by its looks, and
    /// zeros are not written.
    pub zero_target: bool,
    /// Where this restore's journal lies, instead of a place derived from the target's path: for a target that may
    /// have another name when it is resumed.
    pub journal: Option<PathBuf>,
    /// Threads that decrypt and decompress.
    pub workers: usize,
    /// io_uring or pread.
    pub io_engine: IoEngineChoice,
    /// Segments being written at a time; chosen by the engine if `None`.
    pub queue_depth: Option<usize>,
    /// Where journals of restores to devices are kept; those of files lie beside them.
    pub state_dir: Option<PathBuf>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            base: None,
            stale: None,
            compare: false,
            force: false,
            resume: false,
            skip_damaged: false,
            zero_target: false,
            journal: None,
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            io_engine: IoEngineChoice::Auto,
            queue_depth: None,
            state_dir: None,
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
    /// What is not as it was backed up; nothing, unless damage is skipped.
    pub damage: Damage,
    /// Wall time.
    pub duration_ms: u64,
    /// `uring` or `pread`.
    pub io_engine: &'static str,
}

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
    let shared = Arc::new(Shared {
        run: run.clone(),
        store: repo.store().clone(),
        keys: repo.keys().clone(),
        index: repo.index()?,
        chunk_params: repo.chunk_params()?,
        counters: Counters::default(),
        damage: DamageLog::new(options.skip_damaged),
        volume_bytes: volume.size_bytes,
        volume_name: format!("{}/{}", &point.id[..12.min(point.id.len())], volume.name),
    });
    match target {
        RestoreTarget::Writer(writer) => stream::restore(repo, &shared, volume, writer, options)?,
        RestoreTarget::Blocks(sink) => block_output::restore(repo, &shared, volume, sink, options)?,
        RestoreTarget::Path(path) => {
            let opened = opened::open(repo, point, volume, &path, options)?;
            target_output::restore(repo, &shared, volume, opened, engine, options)?;
        }
    }
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
        damage: shared.damage.take(),
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
        if options.skip_damaged && options.base.is_some() {
            return invalid(
                "--skip-damaged: blocks over a base can only be put whole; restore without a base",
            );
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
