//! What a restore into a sink of blocks has to do in a segment: which blocks may differ from what is there, and how
//! it is found out whether they do.
//!
//! Chunks do not line up with blocks. A chunk that is not the old one says only that somewhere in it there is a
//! difference, and where cuts moved not even that. So each block that is touched by what changed is checked, with
//! what the old leaf says of it:
//! - A chunk inside the block that has another id at the same place: it differs, without a look at any byte.
//! - Old zeros: it differs if the new bytes there are not zero.
//! - An old chunk inside the block: it differs if the new bytes there do not have its id.
//! - An old chunk that reaches into a neighbour: its id would tell of both, so it is decoded too, and its bytes in
//!   the block are compared.
//!
//! The answer is exact, and of the old state only what lies across a border of a block is ever fetched. Without a
//! base, the old state is all zero.

use std::ops::Range;

use crate::chunker::{Chunker, is_zero};
use crate::format::node::{Leaf, Piece};
use crate::id::ChunkId;
use crate::manifest::{leaf_differences, merge_ranges};

/// Pieces with their offsets in the segment.
type Pieces = Vec<(u32, Piece)>;

/// A block that may have to be put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockWork {
    /// What of the segment is in it: a whole block, but for the volume's end.
    pub range: Range<u32>,
    /// How it is found out whether it differs.
    pub check: BlockCheck,
}

/// Whether a block differs from what is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BlockCheck {
    /// It does.
    Differs,
    /// It does if one of these does.
    Parts(Vec<(Range<u32>, OldPart)>),
}

/// What is there in a part of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OldPart {
    /// Zeros.
    Zeros,
    /// This chunk, in whole.
    Chunk(ChunkId),
    /// Some of a chunk that is decoded too.
    Decoded,
}

/// What there is to do in a segment.
#[derive(Default)]
pub struct BlocksPlan {
    /// Blocks that may have to be put, in order.
    pub blocks: Vec<BlockWork>,
    /// Chunks of the new state that they need.
    pub chunks: Pieces,
    /// Zeros of the new state in them.
    pub zeros: Vec<Range<u32>>,
    /// Chunks of the old state to compare with.
    pub old_chunks: Pieces,
    /// Bytes of blocks that an earlier run put.
    pub resumed_bytes: u64,
}

impl BlocksPlan {
    /// For a segment that is to become `new` where there is `old`, of the same length. `has` tells which of its
    /// blocks were put already.
    pub fn of(old: &Leaf, new: &Leaf, block_bytes: u32, mut has: impl FnMut(u32) -> bool) -> Self {
        let len = new.segment_bytes();
        let (old, differences) = (old.with_offsets().collect::<Pieces>(), leaf_differences(old, new));
        let new: Pieces = new.with_offsets().collect();
        let mut plan = Self::default();
        let touched =
            merge_ranges(differences.iter().map(|r| r.start / block_bytes..r.end.div_ceil(block_bytes)));
        for block in touched.into_iter().flatten() {
            let range = block * block_bytes..((block + 1) * block_bytes).min(len);
            if has(block) {
                plan.resumed_bytes += u64::from(range.end - range.start);
                continue;
            }
            for (offset, piece) in touching(&new, &range) {
                match piece.chunk {
                    Some(_) => push_once(&mut plan.chunks, (*offset, *piece)),
                    None => plan.zeros.push(range.start.max(*offset)..range.end.min(offset + piece.len)),
                }
            }
            let check = plan.check(&old, &new, &range);
            plan.blocks.push(BlockWork { range, check });
        }
        plan
    }

    /// How it is found out whether a block differs; what has to be decoded for that is noted.
    fn check(&mut self, old: &Pieces, new: &Pieces, block: &Range<u32>) -> BlockCheck {
        let (mut parts, mut old_chunks) = (Vec::new(), Vec::new());
        let new = touching(new, block);
        for (offset, piece) in touching(old, block) {
            let now = new.binary_search_by_key(offset, |(at, _)| *at).ok().map(|no| new[no].1);
            if now == Some(*piece) {
                continue;
            }
            let part = block.start.max(*offset)..block.end.min(offset + piece.len);
            let inside = part.end - part.start == piece.len;
            match (piece.chunk, now) {
                // Of the same length, so that neither is the beginning of the other.
                (Some(_), Some(Piece { len, chunk: Some(_) })) if inside && len == piece.len => {
                    return BlockCheck::Differs;
                }
                (Some(id), _) if inside => parts.push((part, OldPart::Chunk(id))),
                (Some(_), _) => {
                    parts.push((part, OldPart::Decoded));
                    old_chunks.push((*offset, *piece));
                }
                (None, _) => parts.push((part, OldPart::Zeros)),
            }
        }
        old_chunks.into_iter().for_each(|chunk| push_once(&mut self.old_chunks, chunk));
        BlockCheck::Parts(parts)
    }
}

impl BlockWork {
    /// True if the block has to be put. `new` and `old` are the segment's bytes in both states, of `old` only the
    /// chunks that were to be decoded.
    pub fn differs(&self, chunker: &mut Chunker, new: &[u8], old: &[u8]) -> bool {
        let BlockCheck::Parts(parts) = &self.check else { return true };
        parts.iter().any(|(part, there)| {
            let part = part.start as usize..part.end as usize;
            match there {
                OldPart::Zeros => !is_zero(&new[part]),
                OldPart::Chunk(id) => chunker.chunk_id(&new[part]) != *id,
                OldPart::Decoded => new[part.clone()] != old[part],
            }
        })
    }
}

/// The pieces that have bytes in `range`.
fn touching<'a>(pieces: &'a Pieces, range: &Range<u32>) -> &'a [(u32, Piece)] {
    let first = pieces.partition_point(|(offset, piece)| offset + piece.len <= range.start);
    let end = pieces.partition_point(|(offset, _)| *offset < range.end);
    &pieces[first..end.max(first)]
}

/// Appends a piece, unless it came with the block before.
fn push_once(pieces: &mut Pieces, piece: (u32, Piece)) {
    if pieces.last().is_none_or(|(offset, _)| *offset < piece.0) {
        pieces.push(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(pieces: &[(u32, u8)]) -> Leaf {
        let mut leaf = Leaf::default();
        for &(len, tag) in pieces {
            leaf.push(Piece { len, chunk: (tag > 0).then(|| ChunkId::new([tag; 32])) });
        }
        leaf
    }

    /// Blocks of 16 bytes.
    fn plan(old: &[(u32, u8)], new: &[(u32, u8)]) -> BlocksPlan {
        BlocksPlan::of(&leaf(old), &leaf(new), 16, |_| false)
    }

    fn ranges(plan: &BlocksPlan) -> Vec<Range<u32>> {
        plan.blocks.iter().map(|block| block.range.clone()).collect()
    }

    #[test]
    fn what_is_the_same_is_no_work() {
        let state = [(10, 1), (20, 0), (34, 2)];
        assert!(plan(&state, &state).blocks.is_empty());
        assert!(plan(&[(64, 0)], &[(64, 0)]).blocks.is_empty());
    }

    #[test]
    fn a_chunk_inside_a_block_leaves_no_doubt() {
        let plan = plan(&[(32, 1), (8, 2), (24, 3)], &[(32, 1), (8, 4), (24, 3)]);
        assert_eq!(ranges(&plan), vec![32..48]);
        assert_eq!(plan.blocks[0].check, BlockCheck::Differs);
        assert!(plan.old_chunks.is_empty());
        // What shares the block comes with it.
        assert_eq!(plan.chunks.iter().map(|(at, _)| *at).collect::<Vec<_>>(), vec![32, 40]);
    }

    #[test]
    fn a_chunk_across_a_border_is_compared_by_bytes() {
        let plan = plan(&[(8, 1), (16, 2), (40, 3)], &[(8, 1), (16, 4), (40, 3)]);
        assert_eq!(ranges(&plan), vec![0..16, 16..32]);
        let parts = |range| BlockCheck::Parts(vec![(range, OldPart::Decoded)]);
        assert_eq!(plan.blocks[0].check, parts(8..16));
        assert_eq!(plan.blocks[1].check, parts(16..24));
        assert_eq!(plan.old_chunks.len(), 1, "it is decoded once");
        assert_eq!(plan.chunks.len(), 3);
    }

    #[test]
    fn where_cuts_moved_ids_tell() {
        let plan = plan(&[(6, 1), (10, 2)], &[(8, 3), (8, 4)]);
        let expected = vec![
            (0..6, OldPart::Chunk(ChunkId::new([1; 32]))),
            (6..16, OldPart::Chunk(ChunkId::new([2; 32]))),
        ];
        assert_eq!(plan.blocks[0].check, BlockCheck::Parts(expected));
        assert!(plan.old_chunks.is_empty());
    }

    #[test]
    fn zeros_of_the_new_state_are_made() {
        let plan = plan(&[(40, 1), (10, 2)], &[(20, 3), (30, 0)]);
        assert_eq!(ranges(&plan), vec![0..16, 16..32, 32..48, 48..50]);
        assert_eq!(plan.zeros, vec![20..32, 32..48, 48..50]);
        let last = OldPart::Decoded; // it begins in the block before
        assert_eq!(plan.blocks[3].check, BlockCheck::Parts(vec![(48..50, last)]));
    }

    #[test]
    fn what_was_put_is_left_out() {
        let (old, new) = (leaf(&[(40, 0)]), leaf(&[(30, 1), (10, 2)]));
        let plan = BlocksPlan::of(&old, &new, 16, |block| block < 2);
        assert_eq!(ranges(&plan), vec![32..40]);
        assert_eq!((plan.resumed_bytes, plan.chunks.len()), (32, 1));
        let all = BlocksPlan::of(&old, &new, 16, |_| true);
        assert!(all.blocks.is_empty() && all.chunks.is_empty() && all.resumed_bytes == 40);
    }
}
