//! What all threads of a restore share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::damage::DamageLog;
use crate::chunker::{ChunkParams, Chunker};
use crate::crypto::RepoKeys;
use crate::index::Index;
use crate::run::{Progress, Run};
use crate::store::Store;

/// Counters of a restore, besides [`Progress`].
#[derive(Default)]
pub struct Counters {
    pub written: AtomicU64,
    pub skipped_zero: AtomicU64,
    pub zeroed: AtomicU64,
    pub same: AtomicU64,
    pub resumed: AtomicU64,
    pub fetched: AtomicU64,
}

/// What all threads of a run share.
pub struct Shared {
    pub run: Arc<Run>,
    pub store: Arc<dyn Store>,
    pub keys: Arc<RepoKeys>,
    pub index: Arc<Index>,
    pub chunk_params: ChunkParams,
    pub counters: Counters,
    pub damage: DamageLog,
    pub volume_bytes: u64,
    pub volume_name: String,
}

impl Shared {
    /// Finds ids of chunks as the repository's are.
    pub fn chunker(&self) -> Chunker {
        self.keys.chunker_for(self.chunk_params)
    }

    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of a sink that are right as they are: as in the base, or zero.
    pub fn left_alone(&self, bytes: u64, over_base: bool) {
        if over_base {
            Self::add(&self.counters.same, bytes);
            Progress::add(&self.run.progress.reused_bytes, bytes);
        } else {
            Self::add(&self.counters.skipped_zero, bytes);
        }
        Progress::add(&self.run.progress.done_bytes, bytes);
    }
}
