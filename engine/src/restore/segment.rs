//! A segment on its way through the stages, and what is to be done for it.

use std::ops::Range;

use super::blocks::BlocksPlan;
use super::writes::WriteSet;
use crate::format::node::{Leaf, Piece};
use crate::id::SegmentNo;

/// A segment on its way.
pub struct SegmentWork {
    /// Which.
    pub segment: SegmentNo,
    /// Its length in the volume.
    pub len: usize,
    /// What is to be done.
    pub plan: SegmentPlan,
    /// Pieces of it that the index does not place.
    pub lost: Vec<Range<u32>>,
    /// Some of it will not be as the volume has it.
    pub damaged: bool,
}

/// What is to be done for a segment.
pub enum SegmentPlan {
    /// Ranges are brought to the wanted state. A stream takes all of the segment, whatever the ranges.
    Write(WriteSet),
    /// The target is read, and what differs from this is written.
    Compare(Leaf),
    /// Blocks are put where they differ from what the sink holds.
    Blocks(BlocksPlan),
}

impl SegmentWork {
    /// A segment that is whole so far.
    pub fn new(segment: SegmentNo, len: usize, plan: SegmentPlan) -> Self {
        Self { segment, len, plan, lost: Vec::new(), damaged: false }
    }

    /// Takes out the chunks that have to be decoded, with their offsets, and says which are of the old state.
    pub fn take_chunks(&mut self) -> impl Iterator<Item = (u32, Piece, bool)> + use<> {
        let (new, old) = match &mut self.plan {
            SegmentPlan::Write(set) => (std::mem::take(&mut set.chunks), Vec::new()),
            SegmentPlan::Compare(_) => (Vec::new(), Vec::new()),
            SegmentPlan::Blocks(plan) => {
                (std::mem::take(&mut plan.chunks), std::mem::take(&mut plan.old_chunks))
            }
        };
        let with = |is_old: bool| move |(offset, piece)| (offset, piece, is_old);
        new.into_iter().map(with(false)).chain(old.into_iter().map(with(true)))
    }
}
