//! What is written of a segment, and what of it is put off or lost.

use std::ops::Range;

use crate::format::node::{Leaf, Piece};
use crate::limits::{BLOCK_BYTES, IO_ALIGN};
use crate::manifest::merge_ranges;

/// What it takes to bring ranges of a segment to a wanted state.
#[derive(Default)]
pub struct WriteSet {
    /// Chunks to decode, with their offsets in the segment.
    pub chunks: Vec<(u32, Piece)>,
    /// Ranges to write: the wanted data on the 4 KiB grid, but for the volume's end.
    pub writes: Vec<Range<u32>>,
    /// Ranges to make zero.
    pub zeros: Vec<Range<u32>>,
    /// Parts that were taken out of `writes` and come later, as deferred chunks.
    pub deferred: u32,
}

impl WriteSet {
    /// For `ranges` (sorted, apart) of a segment of `len` bytes that shall be as `leaf` says. Data is written in
    /// whole blocks, so a byte-granular chunk at the edge of a range is written with the parts of its neighbours that
    /// share its blocks; those are decoded too.
    pub fn of(leaf: &Leaf, ranges: &[Range<u32>], len: u32) -> Self {
        let (mut data, mut zeros) = (Vec::new(), Vec::new());
        for (offset, piece) in leaf.with_offsets() {
            let end = offset + piece.len;
            for range in ranges.iter().filter(|r| r.start < end && r.end > offset) {
                let part = range.start.max(offset)..range.end.min(end);
                if piece.chunk.is_some() { data.push(part) } else { zeros.push(part) }
            }
        }
        let block = BLOCK_BYTES as u32;
        let writes = merge_ranges(
            data.into_iter().map(|r| r.start / block * block..r.end.next_multiple_of(block).min(len)),
        );
        let chunks = leaf
            .with_offsets()
            .filter(|(offset, piece)| {
                piece.chunk.is_some()
                    && writes.iter().any(|w| w.start < offset + piece.len && w.end > *offset)
            })
            .collect();
        Self { chunks, writes, zeros: merge_ranges(zeros), deferred: 0 }
    }

    /// Takes a chunk out of what is written with the segment, and returns its parts, relative to the chunk. `None`,
    /// and nothing taken, if it is not on the 4 KiB grid: its edges share blocks with its neighbours.
    pub fn defer(&mut self, offset: u32, len: u32) -> Option<Vec<Range<u32>>> {
        let align = IO_ALIGN as u32;
        if !offset.is_multiple_of(align) || !len.is_multiple_of(align) {
            return None;
        }
        let parts = take_out(&mut self.writes, offset..offset + len);
        self.deferred += parts.len() as u32;
        Some(parts.into_iter().map(|part| part.start - offset..part.end - offset).collect())
    }

    /// Takes the whole blocks of a lost chunk out of what is written, and returns them. What of it shares blocks with
    /// its neighbours is still written.
    pub fn lose(&mut self, lost: &Range<u32>, segment_len: u32) -> Vec<Range<u32>> {
        let align = IO_ALIGN as u32;
        let end = if lost.end == segment_len { lost.end } else { lost.end / align * align };
        let inner = lost.start.next_multiple_of(align)..end;
        if inner.is_empty() { Vec::new() } else { take_out(&mut self.writes, inner) }
    }

    /// What of `range` is written.
    pub fn written_of(&self, range: &Range<u32>) -> Vec<Range<u32>> {
        let parts = self.writes.iter().map(|w| w.start.max(range.start)..w.end.min(range.end));
        parts.filter(|part| !part.is_empty()).collect()
    }
}

/// Takes out of `writes` (sorted, apart) what lies in `range`, and returns that.
fn take_out(writes: &mut Vec<Range<u32>>, range: Range<u32>) -> Vec<Range<u32>> {
    let (mut parts, mut left) = (Vec::new(), Vec::with_capacity(writes.len() + 1));
    for write in writes.drain(..) {
        let part = write.start.max(range.start)..write.end.min(range.end);
        if part.is_empty() {
            left.push(write);
            continue;
        }
        left.extend([write.start..part.start, part.end..write.end].into_iter().filter(|r| !r.is_empty()));
        parts.push(part);
    }
    *writes = left;
    parts
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_taken_out_and_what_is_left_make_up_the_writes(
            blocks in proptest::collection::vec(any::<bool>(), 1..64), start in 0u32..40, len in 1u32..30
        ) {
            let ranges = |blocks: &[bool]| {
                merge_ranges(blocks.iter().enumerate().filter(|(_, set)| **set).map(|(no, _)| {
                    let at = no as u32 * 4096;
                    at..at + 4096
                }))
            };
            let mut set = WriteSet { writes: ranges(&blocks), ..WriteSet::default() };
            let parts = set.defer(start * 4096, len * 4096).unwrap();
            prop_assert_eq!(set.deferred as usize, parts.len());
            let inside = |no: usize| (start as usize..(start + len) as usize).contains(&no);
            let outside: Vec<bool> = blocks.iter().enumerate().map(|(no, set)| *set && !inside(no)).collect();
            prop_assert_eq!(set.writes, ranges(&outside));
            let taken: Vec<bool> = blocks.iter().enumerate().map(|(no, set)| *set && inside(no)).collect();
            let absolute: Vec<_> =
                parts.into_iter().map(|r| r.start + start * 4096..r.end + start * 4096).collect();
            prop_assert_eq!(absolute, ranges(&taken));
        }
    }

    #[test]
    fn chunks_off_the_grid_stay() {
        let mut set = WriteSet { writes: vec![0..8192], ..WriteSet::default() };
        assert_eq!(set.defer(100, 4096), None);
        assert_eq!(set.defer(4096, 100), None);
        assert_eq!((set.writes, set.deferred), (vec![0..8192], 0));
    }

    #[test]
    fn of_a_lost_chunk_only_shared_blocks_are_written() {
        let set = || WriteSet { writes: vec![0..20_000], ..WriteSet::default() };
        let mut inside = set();
        assert_eq!(inside.lose(&(5000..13_000), 20_000), vec![8192..12_288]);
        assert_eq!(inside.writes, vec![0..8192, 12_288..20_000]);
        assert_eq!(inside.written_of(&(5000..13_000)), vec![5000..8192, 12_288..13_000]);
        let mut end = set();
        assert_eq!(end.lose(&(16_384..20_000), 20_000), vec![16_384..20_000]);
        assert_eq!(end.writes, vec![0..16_384]);
        let mut small = set();
        assert_eq!(small.lose(&(5000..6000), 20_000), vec![]);
        assert_eq!(small.writes, vec![0..20_000]);
    }
}
