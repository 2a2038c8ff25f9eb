//! Deferred chunks: those in a pack that the segments ahead need little else from. After many nights a segment has
//! some from each night that touched it. To fetch them when their segment is due takes a request for a few chunks, so
//! they are put off, gathered from a long stretch of the volume, and then fetched in the order of packs, where they
//! lie side by side, and written each to its place.

use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use crate::limits::SEGMENT_BYTES;
use crate::pack::Location;

/// A pack of which the segments known ahead need fewer stored bytes than this is left for later.
pub const DEFERRED_BYTES_MAX: u64 = 768 << 10;
/// Chunks gathered before they are fetched: 4 MB of memory, and about 2 GiB of data. A restore that is killed does
/// this much again, since a segment without its deferred chunks is not done. A smaller number would re-open each
/// night's pack more often.
const GATHERED_MAX: usize = 32 << 10;
/// Stored bytes of one batch with the gaps in it, as long as its contents fit into a buffer.
const BATCH_STORED_BYTES_MAX: u64 = SEGMENT_BYTES as u64;
/// Buffers in which batches are put together.
pub const BUFFERS: usize = 4;

/// A part of a chunk that is written later than its segment.
#[derive(Clone, Debug)]
pub struct DeferredChunk {
    /// Where the chunk is stored.
    pub at: Location,
    /// ChunkId.
    pub id: [u8; 32],
    /// Where the chunk belongs in the volume.
    pub position: u64,
    /// What of it is written.
    pub part: Range<u32>,
}

/// Deferred chunks that are fetched and decoded together.
pub struct Batch {
    all: Arc<Vec<DeferredChunk>>,
    range: Range<usize>,
}

impl Batch {
    /// The chunks, in the order of packs; one with several places once for each.
    pub fn chunks(&self) -> &[DeferredChunk] {
        &self.all[self.range.clone()]
    }
}

/// Gathers deferred chunks and makes batches of them.
pub struct DeferredQueue {
    chunks: Vec<DeferredChunk>,
    gap_bytes: u64,
    batches: Sender<Batch>,
}

impl DeferredQueue {
    /// An empty one, for a store with such gaps, and where its batches come out.
    pub fn new(gap_bytes: u64) -> (Self, Receiver<Batch>) {
        let (batches, receiver) = crossbeam::channel::unbounded();
        (Self { chunks: Vec::new(), gap_bytes, batches }, receiver)
    }

    /// Puts chunks off. When enough have come together, batches are made of all of them.
    pub fn put_off(&mut self, chunks: Vec<DeferredChunk>) {
        self.chunks.extend(chunks);
        if self.chunks.len() >= GATHERED_MAX {
            self.make_batches();
        }
    }

    /// There are no more: makes batches of what is left, and they end.
    pub fn finish(mut self) {
        self.make_batches();
    }

    fn make_batches(&mut self) {
        for batch in batches(std::mem::take(&mut self.chunks), self.gap_bytes) {
            let _ = self.batches.send(batch);
        }
    }
}

/// Sorts chunks by where they are stored and cuts them where a buffer would be full.
fn batches(mut chunks: Vec<DeferredChunk>, gap_bytes: u64) -> Vec<Batch> {
    chunks.sort_unstable_by_key(|c| (c.at.pack.id, c.at.offset, c.position));
    let all = Arc::new(chunks);
    let mut cut = Vec::new();
    let (mut start, mut raw_bytes, mut stored_bytes) = (0, 0u64, 0u64);
    for (no, chunk) in all.iter().enumerate() {
        let repeated = no > start && all[no - 1].at == chunk.at;
        let (raw, stored) = if repeated {
            (0, 0) // decoded once, whatever the number of its places
        } else {
            let gap = match all[start..no].last() {
                Some(before) if before.at.pack.id == chunk.at.pack.id => {
                    u64::from(chunk.at.offset).saturating_sub(before.at.end())
                }
                _ => 0,
            };
            let fetched_gap = if gap <= gap_bytes { gap } else { 0 };
            (u64::from(chunk.at.raw_bytes), u64::from(chunk.at.stored_bytes) + fetched_gap)
        };
        if no > start
            && (raw_bytes + raw > SEGMENT_BYTES as u64 || stored_bytes + stored > BATCH_STORED_BYTES_MAX)
        {
            cut.push(Batch { all: all.clone(), range: start..no });
            (start, raw_bytes, stored_bytes) = (no, 0, 0);
        }
        raw_bytes += raw;
        stored_bytes += stored;
    }
    if start < all.len() {
        cut.push(Batch { all: all.clone(), range: start..all.len() });
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::ObjectKind;
    use crate::format::index_segment::PackRef;
    use crate::id::ObjectId;
    use proptest::prelude::*;

    fn chunk(pack: u8, offset: u32, raw_bytes: u32, position: u64) -> DeferredChunk {
        let pack = PackRef {
            id: ObjectId::new([pack; 16]),
            salt: [pack; 24],
            bytes: 1 << 30,
            kind: ObjectKind::Data,
        };
        let at = Location { pack, offset, stored_bytes: raw_bytes / 2, raw_bytes };
        DeferredChunk { at, id: [0; 32], position, part: 0..raw_bytes }
    }

    proptest! {
        #[test]
        fn batches_hold_every_chunk_once_and_fit_a_buffer(
            given in proptest::collection::vec((0u8..5, 0u32..400, 0u64..1000), 0..3000)
        ) {
            // The same place in a pack has the same length.
            let chunks: Vec<DeferredChunk> = given
                .iter()
                .map(|(pack, slot, at)| chunk(*pack, slot << 17, (slot % 32 + 1) * 4096, at << 12))
                .collect();
            let mut expected: Vec<_> =
                chunks.iter().map(|c| (c.at.pack.id, c.at.offset, c.position)).collect();
            expected.sort_unstable();
            let mut got = Vec::new();
            for batch in batches(chunks, 256 << 10) {
                let mut distinct: Vec<_> = batch.chunks().iter().map(|s| s.at).collect();
                distinct.dedup();
                prop_assert!(distinct.iter().map(|at| at.raw_bytes as usize).sum::<usize>() <= SEGMENT_BYTES);
                got.extend(batch.chunks().iter().map(|s| (s.at.pack.id, s.at.offset, s.position)));
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn what_is_gathered_comes_out_at_the_end() {
        let (mut queue, batches) = DeferredQueue::new(0);
        queue.put_off(vec![chunk(1, 0, 4096, 0)]);
        assert!(batches.try_recv().is_err());
        queue.put_off(vec![chunk(1, 8192, 4096, 4096)]);
        queue.finish();
        assert_eq!(batches.recv().unwrap().chunks().len(), 2);
        assert!(batches.recv().is_err(), "and then there is an end");
    }

    #[test]
    fn gaps_that_are_fetched_count() {
        let chunks: Vec<DeferredChunk> =
            (0..64).map(|n| chunk(1, n << 20, 4096, u64::from(n) << 12)).collect();
        assert_eq!(batches(chunks.clone(), 1 << 10).len(), 1);
        assert!(batches(chunks, 1 << 20).len() >= 16);
    }
}
