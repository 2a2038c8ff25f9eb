//! What one run reserves and stores, until segments answer for it.

use std::sync::Arc;

use super::Index;
use super::pending::Pending;
use crate::error::Result;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;

/// Rows gathered before a segment is written: about 16 GiB of new data, and 30 MB of memory.
const FLUSH_ROWS: usize = 256 << 10;

/// What one backup claims and stores. It is the run's own: a claim of a run that fails must never let another run believe that a content is stored, so two runs of one
/// process may store a content twice, and never refer to one that is not there.
pub struct Claims {
    index: Arc<Index>,
    pending: Pending,
}

impl Claims {
    /// No claims yet.
    pub fn new(index: Arc<Index>) -> Self {
        Self { index, pending: Pending::default() }
    }

    /// What is published.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Claims `id` for the caller: true if it is in no segment and nobody in this run has claimed it. Of two threads that ask for the same id
    /// one gets true, so no content is stored twice by a run.
    pub fn reserve(&self, id: &[u8; 32]) -> Result<bool> {
        if self.pending.contains(id) || self.index.find(id)?.is_some() {
            return Ok(false);
        }
        Ok(self.pending.claim(id))
    }

    /// Tells that a pack is durable; its rows get into the next segment, which is written as soon as enough have come together.
    pub fn add_durable(&self, pack: PackRef, rows: Vec<TocRow>) -> Result<()> {
        if self.pending.add_durable(pack, rows) >= FLUSH_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes a segment with all rows of durable packs that are in none yet. After this, everything stored can be found by others.
    pub fn flush(&self) -> Result<()> {
        let Some((rows, packs)) = self.pending.take_durable() else { return Ok(()) };
        self.index.publish(&rows, &packs)?;
        // Only now: a claim must not be forgotten before the segment answers for it.
        self.pending.forget(rows.iter().map(|row| &row.id));
        Ok(())
    }
}
