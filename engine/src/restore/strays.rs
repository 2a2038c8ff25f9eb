//! Strays: chunks in a pack that the segments ahead need little else from. After many nights a segment has some from each night that touched it. To fetch them
//! when their segment is due takes a request for a few chunks, so they are put off, gathered from a long stretch of the volume, and then fetched in the order of packs,
//! where they lie side by side, and written each to its place.

use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use crate::id::SegmentNo;
use crate::limits::{IO_ALIGN, SEGMENT_BYTES};
use crate::pack::Location;

/// A pack of which the segments known ahead need fewer stored bytes than this is left for later.
pub const STRAY_BYTES_MAX: u64 = 768 << 10;
/// Strays gathered before they are fetched: 4 MB of memory, and about 2 GiB of data. A restore that is killed does this much again, since a segment without its strays is
/// not done; fewer would mean to visit each night's pack more often.
const GATHERED_MAX: usize = 32 << 10;
/// Stored bytes of one batch with the gaps in it, as long as its contents fit into a buffer.
const BATCH_STORED_BYTES_MAX: u64 = SEGMENT_BYTES as u64;
/// Buffers in which batches are put together.
pub const BUFFERS: usize = 4;

/// A part of a chunk that is written later than its segment.
#[derive(Clone, Debug)]
pub struct Stray {
    /// Where the chunk is stored.
    pub at: Location,
    /// ChunkId.
    pub id: [u8; 32],
    /// Where the chunk belongs in the volume.
    pub position: u64,
    /// What of it is written.
    pub part: Range<u32>,
}

impl Stray {
    /// The segment that waits for it.
    pub fn segment(&self) -> SegmentNo {
        SegmentNo::containing(self.position)
    }
}

/// Strays that are fetched and decoded together.
pub struct Batch {
    all: Arc<Vec<Stray>>,
    range: Range<usize>,
}

impl Batch {
    /// The strays, in the order of packs.
    pub fn strays(&self) -> &[Stray] {
        &self.all[self.range.clone()]
    }
}

/// Gathers strays and makes batches of them.
pub struct Gathering {
    strays: Vec<Stray>,
    gap_bytes: u64,
    batches: Sender<Batch>,
}

impl Gathering {
    /// An empty one, for a store with such gaps, and where its batches come out.
    pub fn new(gap_bytes: u64) -> (Self, Receiver<Batch>) {
        let (batches, receiver) = crossbeam::channel::unbounded();
        (Self { strays: Vec::new(), gap_bytes, batches }, receiver)
    }

    /// Puts strays off. When enough have come together, batches are made of all of them.
    pub fn put_off(&mut self, strays: Vec<Stray>) {
        self.strays.extend(strays);
        if self.strays.len() >= GATHERED_MAX {
            self.make_batches();
        }
    }

    /// There are no more: makes batches of what is left, and they end.
    pub fn finish(mut self) {
        self.make_batches();
    }

    fn make_batches(&mut self) {
        for batch in batches(std::mem::take(&mut self.strays), self.gap_bytes) {
            let _ = self.batches.send(batch);
        }
    }
}

/// Sorts strays by where they are stored and cuts them where a buffer would be full.
fn batches(mut strays: Vec<Stray>, gap_bytes: u64) -> Vec<Batch> {
    strays.sort_unstable_by_key(|s| (s.at.pack.id, s.at.offset, s.position));
    let all = Arc::new(strays);
    let mut cut = Vec::new();
    let (mut start, mut raw_bytes, mut stored_bytes) = (0, 0u64, 0u64);
    for (no, stray) in all.iter().enumerate() {
        let repeated = no > start && all[no - 1].at == stray.at;
        let (raw, stored) = if repeated {
            (0, 0) // decoded once, whatever the number of its places
        } else {
            let gap = match all[start..no].last() {
                Some(before) if before.at.pack.id == stray.at.pack.id => {
                    u64::from(stray.at.offset).saturating_sub(before.at.end())
                }
                _ => 0,
            };
            let fetched_gap = if gap <= gap_bytes { gap } else { 0 };
            (u64::from(stray.at.raw_bytes), u64::from(stray.at.stored_bytes) + fetched_gap)
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

/// Takes out of `writes` (sorted, apart) what lies in a chunk at `offset`, and returns those parts relative to the chunk. `None`, and nothing taken, if the chunk is not on the
/// 4 KiB grid: its edges share blocks with its neighbours.
pub fn take_out(writes: &mut Vec<Range<u32>>, offset: u32, len: u32) -> Option<Vec<Range<u32>>> {
    let align = IO_ALIGN as u32;
    if !offset.is_multiple_of(align) || !len.is_multiple_of(align) {
        return None;
    }
    let (mut parts, mut left) = (Vec::new(), Vec::with_capacity(writes.len() + 1));
    let end = offset + len;
    for write in writes.drain(..) {
        let part = write.start.max(offset)..write.end.min(end);
        if part.is_empty() {
            left.push(write);
            continue;
        }
        left.extend([write.start..part.start, part.end..write.end].into_iter().filter(|r| !r.is_empty()));
        parts.push(part.start - offset..part.end - offset);
    }
    *writes = left;
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::ObjectKind;
    use crate::format::index_segment::PackRef;
    use crate::id::ObjectId;
    use proptest::prelude::*;

    fn stray(pack: u8, offset: u32, raw_bytes: u32, position: u64) -> Stray {
        let pack = PackRef {
            id: ObjectId::new([pack; 16]),
            salt: [pack; 24],
            bytes: 1 << 30,
            kind: ObjectKind::Data,
        };
        let at = Location { pack, offset, stored_bytes: raw_bytes / 2, raw_bytes };
        Stray { at, id: [0; 32], position, part: 0..raw_bytes }
    }

    proptest! {
        #[test]
        fn batches_hold_every_stray_once_and_fit_a_buffer(
            given in proptest::collection::vec((0u8..5, 0u32..400, 0u64..1000), 0..3000)
        ) {
            // The same place in a pack has the same length.
            let strays: Vec<Stray> = given
                .iter()
                .map(|(pack, slot, at)| stray(*pack, slot << 17, (slot % 32 + 1) * 4096, at << 12))
                .collect();
            let mut expected: Vec<_> =
                strays.iter().map(|s| (s.at.pack.id, s.at.offset, s.position)).collect();
            expected.sort_unstable();
            let mut got = Vec::new();
            for batch in batches(strays, 256 << 10) {
                let mut distinct: Vec<_> = batch.strays().iter().map(|s| s.at).collect();
                distinct.dedup();
                prop_assert!(distinct.iter().map(|at| at.raw_bytes as usize).sum::<usize>() <= SEGMENT_BYTES);
                got.extend(batch.strays().iter().map(|s| (s.at.pack.id, s.at.offset, s.position)));
            }
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn what_is_taken_out_and_what_is_left_make_up_the_writes(
            blocks in proptest::collection::vec(any::<bool>(), 1..64), start in 0u32..40, len in 1u32..30
        ) {
            let ranges = |blocks: &[bool]| {
                crate::manifest::merge_ranges(blocks.iter().enumerate().filter(|(_, set)| **set).map(|(no, _)| {
                    let at = no as u32 * 4096;
                    at..at + 4096
                }))
            };
            let mut left = ranges(&blocks);
            let parts = take_out(&mut left, start * 4096, len * 4096).unwrap();
            let inside = |no: usize| (start as usize..(start + len) as usize).contains(&no);
            let outside: Vec<bool> = blocks.iter().enumerate().map(|(no, set)| *set && !inside(no)).collect();
            prop_assert_eq!(left, ranges(&outside));
            let taken: Vec<bool> = blocks.iter().enumerate().map(|(no, set)| *set && inside(no)).collect();
            let absolute: Vec<_> =
                parts.into_iter().map(|r| r.start + start * 4096..r.end + start * 4096).collect();
            prop_assert_eq!(absolute, ranges(&taken));
        }
    }

    #[test]
    fn chunks_off_the_grid_stay() {
        let whole: Vec<Range<u32>> = std::iter::once(0..8192).collect();
        let mut writes = whole.clone();
        assert_eq!(take_out(&mut writes, 100, 4096), None);
        assert_eq!(take_out(&mut writes, 4096, 100), None);
        assert_eq!(writes, whole);
    }

    #[test]
    fn what_is_gathered_comes_out_at_the_end() {
        let (mut gathering, batches) = Gathering::new(0);
        gathering.put_off(vec![stray(1, 0, 4096, 0)]);
        assert!(batches.try_recv().is_err());
        gathering.put_off(vec![stray(1, 8192, 4096, 4096)]);
        gathering.finish();
        assert_eq!(batches.recv().unwrap().strays().len(), 2);
        assert!(batches.recv().is_err(), "and then there is an end");
    }

    #[test]
    fn gaps_that_are_fetched_count() {
        let strays: Vec<Stray> = (0..64).map(|n| stray(1, n << 20, 4096, u64::from(n) << 12)).collect();
        assert_eq!(batches(strays.clone(), 1 << 10).len(), 1);
        assert!(batches(strays, 1 << 20).len() >= 16);
    }
}
