//! What one run reserves and stores, until segments answer for it.

use std::sync::Arc;

use super::hinted::Hinted;
use super::pending::Pending;
use super::{Index, taken};
use crate::error::Result;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::pack::FinishedPack;
use crate::simulation::{Bug, planted, sized};
use crate::store::{Body, PutOutcome};

/// Rows gathered before a segment is written: about 16 GiB of new data, and 30 MB of memory.
const FLUSH_ROWS: usize = sized(256 << 10, 12);
/// Hints relied on before they are looked up: 8 MB of memory.
const HINTED_MAX: usize = sized(64 << 10, 8);

/// Asked before each segment is published: an error if this run must not publish any more.
pub type Permit = dyn Fn() -> Result<()> + Send + Sync;

/// What one backup claims and stores. It is the run's own: a claim of a run that fails must never let another run believe
/// that a content is stored, so two runs of one process may store a content twice, and never refer to one that is not there.
pub struct Claims {
    index: Arc<Index>,
    pending: Pending,
    hinted: Hinted,
    permit: Option<Arc<Permit>>,
}

impl Claims {
    /// No claims yet, for a run that nobody can stop from publishing: tests and benchmarks.
    pub fn new(index: Arc<Index>) -> Self {
        Self { index, pending: Pending::default(), hinted: Hinted::default(), permit: None }
    }

    /// No claims yet; segments are published only as long as `permit` allows it.
    pub fn with_permit(index: Arc<Index>, permit: Arc<Permit>) -> Self {
        Self { permit: Some(permit), ..Self::new(index) }
    }

    /// What is published.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Claims `id` for the caller: true if it is not stored and nobody in this run has claimed it. Of two threads that ask
    /// for the same id one gets true, so no content is stored twice by a run.
    pub fn reserve(&self, id: &[u8; 32]) -> Result<bool> {
        if self.pending.contains(id) || self.is_stored(id)? {
            return Ok(false);
        }
        Ok(self.pending.claim(id))
    }

    /// True if `id` is stored, and this run may rely on it once it has [flushed](Self::flush). A table of contents alone is
    /// a hint: then the index is asked before the next flush, and where no row has the content, this run's segment gets one.
    /// Without a row a recovery point could not be restored, and garbage collection would not see what it needs.
    pub fn is_stored(&self, id: &[u8; 32]) -> Result<bool> {
        if let Some(location) = self.index.hint(id) {
            if planted(Bug::NearbyBelieved) {
                return Ok(true);
            }
            if self.hinted.add(id, &location) >= HINTED_MAX {
                self.confirm_hints()?;
            }
            return Ok(true);
        }
        Ok(self.index.find_row_and_note(id)?.is_some())
    }

    /// The one way into the repository for packs: stores one, and tells the index of it when it is durable.
    pub fn store(&self, finished: FinishedPack) -> Result<PackRef> {
        let FinishedPack { pack, mut rows, buf, len } = finished;
        let key = pack.kind.key(&pack.id.to_string());
        if planted(Bug::PackAfterIndex) {
            self.add_durable(pack, std::mem::take(&mut rows))?;
        }
        if self.index.store.put_new(&key, Body::Pooled { buf, len })? == PutOutcome::Exists {
            return Err(taken(&key));
        }
        self.add_durable(pack, rows)?;
        Ok(pack)
    }

    /// Tells that a pack is durable; its rows get into the next segment, which is written as soon as enough have come
    /// together.
    pub fn add_durable(&self, pack: PackRef, rows: Vec<TocRow>) -> Result<()> {
        if self.pending.add_durable(pack, rows) >= FLUSH_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes a segment with all rows of durable packs that are in none yet. After this, everything that this run stored or
    /// relied on can be found by others.
    pub fn flush(&self) -> Result<()> {
        self.confirm_hints()?;
        let Some((rows, packs)) = self.pending.take_durable() else { return Ok(()) };
        if let Some(permit) = &self.permit {
            permit()?;
        }
        self.index.publish(&rows, &packs, &[])?;
        // Only now: a claim must not be forgotten before the segment answers for it.
        self.pending.forget(rows.iter().map(|row| &row.id));
        Ok(())
    }

    /// Looks up, in the order of the index, what was relied on by hints; what has no row waits for the next segment.
    fn confirm_hints(&self) -> Result<()> {
        for (pack, rows) in self.hinted.take() {
            let mut without_row = Vec::new();
            for row in rows {
                if self.index.find_row(&row.id)?.is_none() {
                    without_row.push(row);
                }
            }
            if !without_row.is_empty() {
                let (count, pack_id) = (without_row.len(), pack.id);
                tracing::debug!("{count} contents of pack {pack_id} had no row in the index, and get one");
                self.pending.add_durable(pack, without_row);
            }
        }
        Ok(())
    }
}
