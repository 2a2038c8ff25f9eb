//! The planner: walks the manifest and decides for each segment what is to be done.

use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::base_volume;
use super::blocks::BlocksPlan;
use super::frames::{LocateJob, Located};
use super::journal::SegmentSet;
use super::segment::{SegmentPlan, SegmentWork};
use super::shared::Shared;
use super::target_output::WriteTarget;
use super::writes::WriteSet;
use crate::error::Result;
use crate::format::node::{Leaf, Piece};
use crate::format::point::{RecoveryPoint, Volume};
use crate::id::SegmentNo;
use crate::limits::SEGMENT_BYTES;
use crate::manifest::{SegmentChange, TreeReader, each_difference, leaf_differences};
use crate::repo::Repository;
use crate::run::Progress;
use crate::source::Extents;
use crate::target::BlockSink;

/// Longest range that is made zero in one call, so that an interruption is noticed.
const ZERO_STEP_BYTES: u64 = 1 << 30;

/// What the volume goes to, and what is known of that.
pub enum RestorePlan {
    /// A stream: every segment in order, zeros too.
    Stream,
    /// A device or file.
    Target {
        /// It.
        target: Arc<WriteTarget>,
        /// What it holds.
        holds: Holds,
        /// Segments that a killed run finished.
        done: SegmentSet,
    },
    /// Whole blocks are put, and not even there where they are right.
    Blocks {
        /// Into this.
        sink: Arc<dyn BlockSink>,
        /// It holds this point.
        base: Option<RecoveryPoint>,
    },
}

/// What a target holds before the restore.
pub enum Holds {
    /// Nothing that matters.
    Nothing,
    /// Perhaps some of the volume: it is read and compared.
    Something,
    /// A point of the volume.
    Base {
        /// Which.
        point: Box<RecoveryPoint>,
        /// Where it may hold something else: it is read and compared there.
        stale: Arc<Extents>,
    },
}

impl RestorePlan {
    fn base(&self) -> Option<&RecoveryPoint> {
        match self {
            Self::Target { holds: Holds::Base { point, .. }, .. } => Some(point),
            Self::Blocks { base, .. } => base.as_ref(),
            _ => None,
        }
    }

    /// Segments without data are looked at, too.
    fn visits_zeros(&self) -> bool {
        matches!(self, Self::Stream | Self::Target { holds: Holds::Something, .. })
    }

    /// True if chunks may be written later than their segment.
    pub fn may_defer(&self) -> bool {
        matches!(self, Self::Target { .. })
    }
}

/// The planner thread.
pub struct Planner {
    tree: TreeReader,
    base: Option<TreeReader>,
    router: SegmentRouter,
}

/// Where segments go, and what is known of the target.
struct SegmentRouter {
    shared: Arc<Shared>,
    plan: RestorePlan,
    output: PlannerOutput,
}

/// Where the planner's questions and the promises of answers go.
pub struct PlannerOutput {
    /// To the locators.
    pub jobs: Sender<LocateJob>,
    /// To the look-ahead: where it finds each answer, in the order of the volume.
    pub answers: Sender<Receiver<Located>>,
}

impl Planner {
    /// Opens the manifests.
    pub fn new(
        repo: &Repository,
        shared: Arc<Shared>,
        volume: &Volume,
        plan: RestorePlan,
        output: PlannerOutput,
    ) -> Result<Self> {
        let tree = repo.tree(volume.size_bytes, volume.root)?;
        let base = match plan.base() {
            Some(point) => {
                let old = base_volume(point, volume)?;
                Some(repo.tree(old.size_bytes, old.root)?)
            }
            None => None,
        };
        Ok(Self { tree, base, router: SegmentRouter { shared, plan, output } })
    }

    /// Plans the whole volume.
    pub fn run(mut self) -> Result<()> {
        match self.base.take() {
            Some(base) => self.differences(base),
            None => self.each_segment(),
        }
    }

    /// All segments, or those with data.
    fn each_segment(&mut self) -> Result<()> {
        let end = SegmentNo(self.tree.shape().segments());
        let zeros_too = self.router.plan.visits_zeros();
        let mut at = SegmentNo(0);
        while at < end && !self.router.shared.run.stopped() {
            let next = if zeros_too { Some(at) } else { self.next_data(at)? };
            let next = next.unwrap_or(end);
            self.router.zero_segments(at..next)?;
            if next < end && !self.router.was_done(next) {
                match self.router.readable(next, self.tree.leaf(next))? {
                    Some(leaf) => self.router.send_all(next, leaf)?,
                    None => self.router.send_lost(next)?,
                }
            }
            at = SegmentNo(next.0 + 1);
        }
        Ok(())
    }

    /// The next segment with data, or with something that cannot be read.
    fn next_data(&mut self, from: SegmentNo) -> Result<Option<SegmentNo>> {
        match self.tree.next_data(from) {
            // Somewhere below a node that cannot be read: segment by segment it shows where.
            Err(error) if self.router.shared.damage.skips(&error) => Ok(Some(from)),
            next => next,
        }
    }

    /// Only segments in which the manifests differ, and those that are compared since the target may not be as its
    /// base there.
    fn differences(mut self, mut base: TreeReader) -> Result<()> {
        let router = &mut self.router;
        let volume_bytes = router.shared.volume_bytes;
        let end = SegmentNo(self.tree.shape().segments());
        let stale = match &router.plan {
            RestorePlan::Target { holds: Holds::Base { stale, .. }, .. } => stale.clone(),
            _ => Arc::default(),
        };
        let (mut differing, mut stale_from) = (0u64, SegmentNo(0));
        each_difference(
            &mut base,
            &mut self.tree,
            &mut |base, tree, SegmentChange { segment, old, new }| {
                let len = segment.len_in(volume_bytes);
                differing += len as u64 + router.compare_stale(tree, &stale, stale_from..segment)?;
                stale_from = SegmentNo(segment.0 + 1);
                if router.shared.run.stopped() || router.was_done(segment) {
                    return Ok(());
                }
                let Some(leaf) = router.readable(segment, tree.load_leaf(segment, new))? else {
                    return router.send_lost(segment);
                };
                if stale.intersects(&(segment.offset_bytes()..stale_from.offset_bytes())) {
                    router.hand_on(segment, SegmentPlan::Compare(leaf));
                    return Ok(());
                }
                if matches!(router.plan, RestorePlan::Blocks { .. }) {
                    return router.send_blocks(segment, &grown_leaf(base, segment, len as u32)?, &leaf);
                }
                let old = old.map(|old| base.load_leaf(segment, old));
                let ranges = match old {
                    // What the target holds there is not known.
                    Some(Err(error)) if router.shared.damage.skips(&error) => whole(len),
                    Some(old) => leaf_differences(&old?, &leaf),
                    None => whole(len),
                };
                router.send(segment, &leaf, &ranges);
                Ok(())
            },
        )?;
        differing += router.compare_stale(&mut self.tree, &stale, stale_from..end)?;
        let same = volume_bytes - differing;
        Shared::add(&router.shared.counters.same, same);
        Progress::add(&router.shared.run.progress.done_bytes, same);
        Progress::add(&router.shared.run.progress.reused_bytes, same);
        Ok(())
    }
}

/// All of a segment.
#[allow(clippy::single_range_in_vec_init)]
fn whole(len: usize) -> Vec<Range<u32>> {
    vec![0..len as u32]
}

/// What a base holds of a segment of the volume, which has grown since perhaps: behind the base's end there are
/// zeros.
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

impl SegmentRouter {
    fn len(&self, segment: SegmentNo) -> usize {
        segment.len_in(self.shared.volume_bytes)
    }

    /// A leaf that was read, or `None` where it cannot be and the restore goes on without it.
    fn readable(&self, segment: SegmentNo, leaf: Result<Leaf>) -> Result<Option<Leaf>> {
        match leaf {
            Ok(leaf) => Ok(Some(leaf)),
            Err(error) if self.shared.damage.skips(&error) => {
                self.shared.damage.note_reason(&error);
                let start = segment.offset_bytes();
                self.shared.damage.note_range(start..start + self.len(segment) as u64);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// True if a killed run finished this segment.
    fn was_done(&self, segment: SegmentNo) -> bool {
        let RestorePlan::Target { done, .. } = &self.plan else { return false };
        if !done.contains(segment) {
            return false;
        }
        let len = self.len(segment) as u64;
        Shared::add(&self.shared.counters.resumed, len);
        Progress::add(&self.shared.run.progress.done_bytes, len);
        true
    }

    /// Segments without data: made zero, or left alone where all reads as zeros.
    fn zero_segments(&mut self, segments: Range<SegmentNo>) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let end = segments.end.offset_bytes().min(self.shared.volume_bytes);
        let mut at = segments.start.offset_bytes();
        while at < end && !self.shared.run.stopped() {
            let step = (end - at).min(ZERO_STEP_BYTES);
            match &self.plan {
                RestorePlan::Target { target, .. } => target.zero(&self.shared, at..at + step)?,
                _ => Shared::add(&self.shared.counters.skipped_zero, step),
            }
            Progress::add(&self.shared.run.progress.done_bytes, step);
            at += step;
        }
        Ok(())
    }

    /// Sends on a segment of which nothing is known to be right on the target.
    fn send_all(&mut self, segment: SegmentNo, leaf: Leaf) -> Result<()> {
        let len = self.len(segment);
        match &self.plan {
            RestorePlan::Blocks { .. } => {
                let zeros = Leaf { pieces: vec![Piece { len: len as u32, chunk: None }] };
                self.send_blocks(segment, &zeros, &leaf)?;
            }
            RestorePlan::Target { holds: Holds::Something, .. } => {
                self.hand_on(segment, SegmentPlan::Compare(leaf));
            }
            _ => self.send(segment, &leaf, &whole(len)),
        }
        Ok(())
    }

    /// A segment whose contents nobody knows. Its place stays as it is in a target that holds a state of the volume,
    /// and is zero elsewhere.
    fn send_lost(&mut self, segment: SegmentNo) -> Result<()> {
        let len = self.len(segment);
        if let RestorePlan::Stream = self.plan {
            let mut work = SegmentWork::new(segment, len, SegmentPlan::Write(WriteSet::default()));
            work.damaged = true;
            self.send_work(work);
            return Ok(());
        }
        if let RestorePlan::Target { target, .. } = &self.plan {
            target.blank(segment.offset_bytes()..segment.offset_bytes() + len as u64)?;
        }
        Progress::add(&self.shared.run.progress.done_bytes, len as u64);
        Ok(())
    }

    /// Sends on a segment that is to become `new` where the sink holds `old`: the blocks of it that may differ.
    fn send_blocks(&mut self, segment: SegmentNo, old: &Leaf, new: &Leaf) -> Result<()> {
        let RestorePlan::Blocks { sink, base } = &self.plan else { return Ok(()) };
        let block_bytes = sink.block_bytes();
        let first = segment.offset_bytes() / u64::from(block_bytes);
        let plan = BlocksPlan::of(old, new, block_bytes, |block| sink.has(first + u64::from(block)));
        let work: u64 = plan.blocks.iter().map(|block| u64::from(block.range.end - block.range.start)).sum();
        let len = self.len(segment);
        Shared::add(&self.shared.counters.resumed, plan.resumed_bytes);
        Progress::add(&self.shared.run.progress.done_bytes, plan.resumed_bytes);
        self.shared.left_alone(len as u64 - work - plan.resumed_bytes, base.is_some());
        if !plan.blocks.is_empty() {
            self.hand_on(segment, SegmentPlan::Blocks(plan));
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
            bytes += self.len(at) as u64;
            if !self.was_done(at) {
                match self.readable(at, tree.leaf(at))? {
                    Some(leaf) => self.hand_on(at, SegmentPlan::Compare(leaf)),
                    None => self.send_lost(at)?,
                }
            }
            at = SegmentNo(at.0 + 1);
        }
        Ok(bytes)
    }

    /// Sends on a segment of which `ranges` are to be brought to what `leaf` says.
    fn send(&mut self, segment: SegmentNo, leaf: &Leaf, ranges: &[Range<u32>]) {
        let len = self.len(segment);
        let same = len as u64 - ranges.iter().map(|r| u64::from(r.end - r.start)).sum::<u64>();
        Shared::add(&self.shared.counters.same, same);
        self.hand_on(segment, SegmentPlan::Write(WriteSet::of(leaf, ranges, len as u32)));
    }

    fn hand_on(&mut self, segment: SegmentNo, plan: SegmentPlan) {
        self.send_work(SegmentWork::new(segment, self.len(segment), plan));
    }

    fn send_work(&mut self, work: SegmentWork) {
        let (answer, promise) = bounded(1);
        // The promise first: its channel is the one that is bounded.
        if self.output.answers.send(promise).is_ok() {
            let _ = self.output.jobs.send(LocateJob { work, answer });
        }
    }
}
