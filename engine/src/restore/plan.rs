//! The planner: walks the manifest and decides for each segment which chunks are needed, what is written and what is made zero.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::blocks::BlocksPlan;
use super::locate::{Job, Located};
use super::{SegmentWork, Shared, base_volume};
use crate::error::Result;
use crate::format::node::{Leaf, Piece};
use crate::format::point::{RecoveryPoint, Volume};
use crate::id::SegmentNo;
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};
use crate::manifest::{SegmentChange, TreeReader, each_difference, leaf_differences, merge_ranges};
use crate::repo::Repository;
use crate::run::Progress;
use crate::source::Extents;
use crate::target::BlockSink;

/// Longest range that is made zero in one call, so that an interruption is noticed.
const ZERO_STEP_BYTES: u64 = 1 << 30;

/// How the target is brought to the wanted state.
pub struct How {
    /// It holds this point.
    pub base: Option<RecoveryPoint>,
    /// Where it may hold something else than `base`: it is read and compared there.
    pub stale: Arc<Extents>,
    /// It is read and compared.
    pub compare: bool,
    /// It reads as zeros wherever nothing was written.
    pub fresh: bool,
    /// Segments that a killed run finished.
    pub done: HashSet<SegmentNo>,
    /// Zero segments are sent on too (for a stream).
    pub every_segment: bool,
    /// Whole blocks are put into this, and not even there where they are right.
    pub sink: Option<Arc<dyn BlockSink>>,
}

/// The planner thread.
pub struct Planner {
    tree: TreeReader,
    base: Option<TreeReader>,
    lane: Lane,
}

/// Where segments go, and what is known of the target.
struct Lane {
    shared: Arc<Shared>,
    how: How,
    output: Output,
}

/// Where the planner's questions and the promises of answers go.
pub struct Output {
    /// To the locators.
    pub jobs: Sender<Job>,
    /// To the look-ahead: where it finds each answer, in the order of the volume.
    pub answers: Sender<Receiver<Located>>,
}

impl Planner {
    /// Opens the manifests.
    pub fn new(
        repo: &Repository,
        shared: Arc<Shared>,
        volume: &Volume,
        how: How,
        output: Output,
    ) -> Result<Self> {
        let tree = repo.tree(volume.size_bytes, volume.root)?;
        let base = match &how.base {
            Some(point) => {
                let old = base_volume(point, volume)?;
                Some(repo.tree(old.size_bytes, old.root)?)
            }
            None => None,
        };
        Ok(Self { tree, base, lane: Lane { shared, how, output } })
    }

    /// Plans the whole volume.
    pub fn run(mut self) -> Result<()> {
        if self.lane.how.compare {
            self.each_segment(true)
        } else if let Some(base) = self.base.take() {
            self.differences(base)
        } else {
            let zeros_too = self.lane.how.every_segment;
            self.each_segment(zeros_too)
        }
    }

    /// All segments, or with `zeros_too` false those with data.
    fn each_segment(&mut self, zeros_too: bool) -> Result<()> {
        let end = SegmentNo(self.tree.shape().segments());
        let mut at = SegmentNo(0);
        while at < end && !self.lane.shared.run.stopped() {
            let next = if zeros_too { Some(at) } else { self.tree.next_data(at)? };
            let next = next.unwrap_or(end);
            self.lane.zero_segments(at..next)?;
            if next < end && !self.lane.was_done(next) {
                let leaf = self.tree.leaf(next)?;
                let whole = next.len_in(self.lane.shared.volume_bytes) as u32;
                if self.lane.how.sink.is_some() {
                    let zeros = Leaf { pieces: vec![Piece { len: whole, chunk: None }] };
                    self.lane.send_blocks(next, &zeros, &leaf)?;
                } else {
                    self.lane.send(next, leaf, &[Range { start: 0, end: whole }])?;
                }
            }
            at = SegmentNo(next.0 + 1);
        }
        Ok(())
    }

    /// Only segments in which the manifests differ, and those that are compared since the target may not be as its base there.
    fn differences(mut self, mut base: TreeReader) -> Result<()> {
        let lane = &mut self.lane;
        let volume_bytes = lane.shared.volume_bytes;
        let end = SegmentNo(self.tree.shape().segments());
        let stale = lane.how.stale.clone();
        let (mut differing, mut stale_from) = (0u64, SegmentNo(0));
        each_difference(
            &mut base,
            &mut self.tree,
            &mut |base, tree, SegmentChange { segment, old, new }| {
                let len = segment.len_in(volume_bytes);
                differing += len as u64 + lane.compare_stale(tree, &stale, stale_from..segment)?;
                stale_from = SegmentNo(segment.0 + 1);
                if lane.shared.run.stopped() || lane.was_done(segment) {
                    return Ok(());
                }
                let leaf = tree.load_leaf(segment, new)?;
                if stale.intersects(&(segment.offset_bytes()..stale_from.offset_bytes())) {
                    lane.send_compared(segment, leaf);
                    return Ok(());
                }
                if lane.how.sink.is_some() {
                    return lane.send_blocks(segment, &grown_leaf(base, segment, len as u32)?, &leaf);
                }
                let ranges = match old {
                    Some(old) => leaf_differences(&base.load_leaf(segment, old)?, &leaf),
                    None => vec![Range { start: 0, end: len as u32 }],
                };
                lane.send(segment, leaf, &ranges)
            },
        )?;
        differing += lane.compare_stale(&mut self.tree, &stale, stale_from..end)?;
        let same = volume_bytes - differing;
        Shared::add(&lane.shared.counters.same, same);
        Progress::add(&lane.shared.run.progress.done_bytes, same);
        Progress::add(&lane.shared.run.progress.reused_bytes, same);
        Ok(())
    }
}

/// What a base holds of a segment of the volume, which has grown since perhaps: behind the base's end there are zeros.
fn grown_leaf(base: &mut TreeReader, segment: SegmentNo, len: u32) -> Result<Leaf> {
    let mut leaf = match segment.0 < base.shape().segments() {
        true => base.leaf(segment)?,
        false => Leaf::default(),
    };
    let missing = len.saturating_sub(leaf.segment_bytes());
    if missing > 0 {
        leaf.push(Piece { len: missing, chunk: None });
    }
    Ok(leaf)
}

impl Lane {
    /// True if a killed run finished this segment.
    fn was_done(&self, segment: SegmentNo) -> bool {
        if !self.how.done.contains(&segment) {
            return false;
        }
        let len = segment.len_in(self.shared.volume_bytes) as u64;
        Shared::add(&self.shared.counters.resumed, len);
        Progress::add(&self.shared.run.progress.done_bytes, len);
        true
    }

    /// Segments without data: made zero, or left alone on a fresh target.
    fn zero_segments(&mut self, segments: Range<SegmentNo>) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let end = segments.end.offset_bytes().min(self.shared.volume_bytes);
        let mut at = segments.start.offset_bytes();
        while at < end && !self.shared.run.stopped() {
            let step = (end - at).min(ZERO_STEP_BYTES);
            self.shared.zero(at..at + step, self.how.fresh)?;
            Progress::add(&self.shared.run.progress.done_bytes, step);
            at += step;
        }
        Ok(())
    }

    /// Sends on a segment that is to become `new` where the sink holds `old`: the blocks of it that may differ.
    fn send_blocks(&mut self, segment: SegmentNo, old: &Leaf, new: &Leaf) -> Result<()> {
        let Some(sink) = &self.how.sink else { return Ok(()) };
        let block_bytes = sink.block_bytes();
        let first = segment.offset_bytes() / u64::from(block_bytes);
        let plan = BlocksPlan::of(old, new, block_bytes, |block| sink.has(first + u64::from(block)));
        let work: u64 = plan.blocks.iter().map(|block| u64::from(block.range.end - block.range.start)).sum();
        let len = segment.len_in(self.shared.volume_bytes);
        Shared::add(&self.shared.counters.resumed, plan.resumed_bytes);
        Progress::add(&self.shared.run.progress.done_bytes, plan.resumed_bytes);
        self.shared.left_alone(len as u64 - work - plan.resumed_bytes, self.how.base.is_some());
        if !plan.blocks.is_empty() {
            let BlocksPlan { blocks, chunks, zeros, old_chunks, .. } = plan;
            self.hand_on(SegmentWork {
                segment,
                len,
                chunks,
                zeros,
                old_chunks,
                blocks,
                ..Default::default()
            });
        }
        Ok(())
    }

    /// Sends on those of the segments that have something stale in them; returns their bytes.
    fn compare_stale(
        &mut self,
        tree: &mut TreeReader,
        stale: &Extents,
        segments: Range<SegmentNo>,
    ) -> Result<u64> {
        let (mut at, mut bytes) = (segments.start, 0);
        while at < segments.end && !self.shared.run.stopped() {
            let Some(next) = stale.next(at.offset_bytes()) else { break };
            at = SegmentNo(next.start / SEGMENT_BYTES as u64);
            if at >= segments.end {
                break;
            }
            bytes += at.len_in(self.shared.volume_bytes) as u64;
            if !self.was_done(at) {
                let leaf = tree.leaf(at)?;
                self.send_compared(at, leaf);
            }
            at = SegmentNo(at.0 + 1);
        }
        Ok(bytes)
    }

    /// Sends on a segment that is read and brought to what `leaf` says.
    fn send_compared(&mut self, segment: SegmentNo, leaf: Leaf) {
        let len = segment.len_in(self.shared.volume_bytes);
        let work = SegmentWork { segment, len, compare: Some(leaf), ..Default::default() };
        self.hand_on(work);
    }

    /// Sends on a segment of which `ranges` are to be brought to what `leaf` says.
    fn send(&mut self, segment: SegmentNo, leaf: Leaf, ranges: &[Range<u32>]) -> Result<()> {
        let len = segment.len_in(self.shared.volume_bytes);
        let needs = Needs::of(&leaf, ranges, len as u32);
        let same = len as u64 - ranges.iter().map(|r| u64::from(r.end - r.start)).sum::<u64>();
        Shared::add(&self.shared.counters.same, same);
        let work = SegmentWork {
            segment,
            len,
            chunks: needs.chunks,
            writes: needs.writes,
            zeros: needs.zeros,
            fresh: self.how.fresh,
            compare: self.how.compare.then_some(leaf),
            ..Default::default()
        };
        self.hand_on(work);
        Ok(())
    }

    fn hand_on(&mut self, work: SegmentWork) {
        let (answer, promise) = bounded(1);
        // The promise first: its channel is the one that is bounded.
        if self.output.answers.send(promise).is_ok() {
            let _ = self.output.jobs.send(Job { work, answer });
        }
    }
}

/// What it takes to bring ranges of a segment to a wanted state.
pub struct Needs {
    /// Chunks to decode.
    pub chunks: Vec<(u32, crate::format::node::Piece)>,
    /// Ranges to write: the wanted data on the 4 KiB grid.
    pub writes: Vec<Range<u32>>,
    /// Ranges to make zero.
    pub zeros: Vec<Range<u32>>,
}

impl Needs {
    /// For `ranges` (sorted, apart) of a segment of `len` bytes that shall be as `leaf` says. Data is written in whole blocks, so a byte-granular chunk at the edge
    /// of a range is written with the parts of its neighbours that share its blocks; those are decoded too.
    pub fn of(leaf: &Leaf, ranges: &[Range<u32>], len: u32) -> Needs {
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
        Needs { chunks, writes, zeros: merge_ranges(zeros) }
    }
}

impl Shared {
    /// Makes a range of the volume zero on the target.
    pub(super) fn zero(&self, range: Range<u64>, fresh: bool) -> Result<()> {
        let bytes = range.end - range.start;
        let Some(target) = self.target.as_ref().filter(|_| !fresh) else {
            Shared::add(&self.counters.skipped_zero, bytes);
            return Ok(());
        };
        target.zero_range(range)?;
        Shared::add(&self.counters.zeroed, bytes);
        Ok(())
    }
}
