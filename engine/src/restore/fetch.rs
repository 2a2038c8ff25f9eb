//! Fetchers: get ranges of packs from the store, those of segments in the order in which they are needed, and
//! deferred chunks when there are enough.

use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use super::decode::Fetched;
use super::deferred::{Batch, DeferredChunk};
use super::shared::Shared;
use super::stored::{Budget, Request, StoredBuf};
use crate::error::{Error, Result};
use crate::io::{BufPool, PooledBuf};
use crate::limits::IO_ALIGN;
use crate::pack::Location;
use crate::run::Progress;

/// Longest request for deferred chunks.
const REQUEST_BYTES_MAX: u64 = 8 << 20;
const ALIGN: u64 = IO_ALIGN as u64;

/// State of one fetcher thread.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
    budget: Arc<Budget>,
    /// For the contents of deferred chunks. Segments have a pool of their own: whoever waits here holds none of
    /// theirs.
    pool: BufPool,
    batches: Receiver<Batch>,
    output: Sender<Fetched>,
}

impl Fetcher {
    /// Prepares a fetcher.
    pub fn new(
        shared: Arc<Shared>,
        budget: Arc<Budget>,
        pool: BufPool,
        batches: Receiver<Batch>,
        output: Sender<Fetched>,
    ) -> Self {
        Self { shared, budget, pool, batches, output }
    }

    /// Works until both channels are closed and empty.
    pub fn run(self, requests: &Receiver<Request>) -> Result<()> {
        loop {
            // Batches first: what has been put off is bounded by that. But no waiting for their buffers while
            // decoders may wait for a range.
            if let Some(buf) = self.pool.try_get()
                && let Ok(batch) = self.batches.try_recv()
            {
                self.deferred(batch, buf);
                continue;
            }
            let Ok(request) = requests.recv() else { break };
            self.answer(request);
        }
        for batch in &self.batches {
            let Some(buf) = self.pool.get_blocking() else { break };
            self.deferred(batch, buf);
        }
        Ok(())
    }

    fn answer(&self, mut request: Request) {
        if self.shared.run.stopped() {
            return; // those who wait are told
        }
        let (first, offset, needed) = (request.first, request.offset, request.needed_bytes);
        match self.get(&first, offset, needed, request.buf()) {
            Ok(()) => request.answer(),
            // Decoders look for each chunk of it.
            Err(error) if self.skips(&first, &error) => request.lost(),
            Err(error) => self.shared.run.fail(error), // before they are told
        }
    }

    fn deferred(&self, batch: Batch, buf: PooledBuf) {
        if self.shared.run.stopped() {
            return;
        }
        let stored = match self.get_all(batch.chunks()) {
            Ok(stored) => Some(stored),
            Err(error) if self.shared.damage.skips(&error) => None,
            Err(error) => return self.shared.run.fail(error),
        };
        let _ = self.output.send(Fetched::Deferred { batch, stored, buf });
    }

    /// True if the restore goes on without what is damaged there.
    fn skips(&self, first: &Location, error: &Error) -> bool {
        if matches!(error, Error::Missing { .. }) {
            self.shared.damage.note_lost_pack(first.pack.id);
        }
        self.shared.damage.skips(error)
    }

    /// Gets all of `chunks` (in the order of packs), and tells where each begins in the bytes got.
    fn get_all(&self, chunks: &[DeferredChunk]) -> Result<(StoredBuf, Vec<usize>)> {
        let groups = groups(chunks, self.shared.store.habits().gap_bytes);
        // Each request begins and ends at 4 KiB borders of pack and buffer, so that a store in files can read past
        // the page cache.
        let mut bytes = self.budget.take(groups.iter().map(Group::aligned_bytes).sum());
        let mut starts = Vec::with_capacity(chunks.len());
        let mut filled = 0;
        for group in &groups {
            let from = group.bytes.start / ALIGN * ALIGN;
            let end = filled + group.aligned_bytes();
            let members = &chunks[group.members.clone()];
            if let Some(first) = members.first() {
                self.get(&first.at, from, (group.bytes.end - from) as usize, &mut bytes[filled..end])?;
            }
            starts.extend(members.iter().map(|chunk| filled + (u64::from(chunk.at.offset) - from) as usize));
            filled = end;
        }
        Ok((bytes, starts))
    }

    /// Fills `out` from byte `offset` of the pack of `first` on; all but `needed` bytes may be missing at the pack's
    /// end.
    fn get(&self, first: &Location, offset: u64, needed: usize, out: &mut [u8]) -> Result<()> {
        let key = first.pack_key();
        match self.shared.store.get_into(&key, offset, out)? {
            None => Err(Error::Missing { object: key, needed_by: self.shared.volume_name.clone() }),
            Some(count) if count < needed => {
                Err(Error::damaged(key, format_args!("truncated at byte {}", offset + count as u64)))
            }
            Some(count) => {
                Shared::add(&self.shared.counters.fetched, count as u64);
                Progress::add(&self.shared.run.progress.read_bytes, count as u64);
                Ok(())
            }
        }
    }
}

/// A range of one pack, and which chunks it is for.
struct Group {
    members: Range<usize>,
    bytes: Range<u64>,
}

impl Group {
    /// True if what lies between it and `at`, further on in the same pack, may be fetched too.
    fn reaches(&self, at: &Location, gap_bytes: u64) -> bool {
        u64::from(at.offset) <= self.bytes.end + gap_bytes && at.end() - self.bytes.start <= REQUEST_BYTES_MAX
    }

    /// Length when widened to 4 KiB borders.
    fn aligned_bytes(&self) -> usize {
        (self.bytes.end.next_multiple_of(ALIGN) - self.bytes.start / ALIGN * ALIGN) as usize
    }
}

/// The requests that get `chunks`, which are in the order of packs.
fn groups(chunks: &[DeferredChunk], gap_bytes: u64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (no, DeferredChunk { at, .. }) in chunks.iter().enumerate() {
        let offset = u64::from(at.offset);
        match groups.last_mut() {
            Some(last)
                if chunks[last.members.start].at.pack.id == at.pack.id && last.reaches(at, gap_bytes) =>
            {
                last.bytes.end = last.bytes.end.max(at.end());
                last.members.end = no + 1;
            }
            _ => groups.push(Group { members: no..no + 1, bytes: offset..at.end() }),
        }
    }
    groups
}
