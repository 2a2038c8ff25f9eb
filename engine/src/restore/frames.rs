//! Where the chunks of segments are stored: what locators find out for the planner.

use crossbeam::channel::Sender;

use super::segment::SegmentWork;
use crate::pack::Location;

/// A chunk that a segment needs, as it is stored.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where it is stored.
    pub at: Location,
    /// ChunkId.
    pub id: [u8; 32],
    /// Offset in the segment.
    pub offset: u32,
    /// It is of the old state, and only compared with.
    pub old: bool,
}

impl Frame {
    /// Where in its segment it belongs.
    pub fn place(&self) -> std::ops::Range<usize> {
        self.offset as usize..self.offset as usize + self.at.raw_bytes as usize
    }
}

/// A segment with the places of its chunks.
pub struct Located {
    /// The segment.
    pub work: SegmentWork,
    /// In the order of packs.
    pub frames: Vec<Frame>,
}

/// A question of the planner.
pub struct LocateJob {
    /// The segment.
    pub work: SegmentWork,
    /// Where the answer goes; dropped without one if there is none.
    pub answer: Sender<Located>,
}
