//! The planner: decides for each segment whether it is read, taken over from the parent or the journal, or a hole, and sends out the reads.
//! A stream is read right here, since it comes in one order only.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use async_channel::Sender as JobSender;
use crossbeam::channel::Sender;

use super::adopt::Finished;
use super::journal::FinishedSegments;
use super::origin::{Beside, Origin};
use super::rechunk;
use super::worker::Tagged;
use super::{Event, GroupPlan, ParentLeaf, SegmentTag, Shared, VolumeSource};
use crate::error::{Error, Result};
use crate::format::node::NodeRef;
use crate::format::point::{Counts, RecoveryPoint};
use crate::id::SegmentNo;
use crate::io::{BufPool, FetchJob, ReadDone, ReadJob, ReadResult};
use crate::limits::SEGMENT_BYTES;
use crate::manifest::{GROUP_SEGMENTS, NodeReader, Shape, TreeReader};
use crate::repo::Repository;
use crate::run::Progress;
use crate::simulation::{Bug, planted};
use crate::source::{Extents, Source};

/// Volumes planned, and so read, at a time. A volume of a cloud has a rate of its own, below what one machine reads: several together are faster than one after the other.
const VOLUMES_AT_A_TIME: usize = 8;

/// What is to be backed up.
pub struct Input {
    /// The volumes.
    pub volumes: Vec<VolumeSource>,
    /// The point to compare with.
    pub parent: Option<RecoveryPoint>,
    /// Segments that a killed run finished.
    pub finished: Finished,
}

/// Where the planner's results go.
pub struct Outputs {
    /// To the readers.
    pub jobs: JobSender<ReadJob<Tagged>>,
    /// To the fetchers.
    pub fetch_jobs: JobSender<FetchJob<Tagged>>,
    /// To the workers, for streams.
    pub done: Sender<ReadResult<Tagged>>,
    /// To the committer.
    pub events: Sender<Event>,
    /// Buffers, for streams.
    pub pool: BufPool,
}

/// The planner thread.
pub struct Planner {
    shared: Arc<Shared>,
    volumes: VecDeque<Planned>,
    outputs: Outputs,
}

/// A volume that waits to be planned.
struct Planned {
    number: u16,
    volume: VolumeSource,
    parent: Option<TreeReader>,
    finished: Option<FinishedSegments>,
}

impl Planner {
    /// Opens the parents' manifests.
    pub fn new(repo: &Repository, shared: Arc<Shared>, mut input: Input, outputs: Outputs) -> Result<Self> {
        let mut volumes = VecDeque::new();
        for (number, volume) in input.volumes.into_iter().enumerate() {
            let number = number as u16;
            let old = input.parent.as_ref().and_then(|parent| parent.volume(&volume.name));
            let index = shared.claims.index();
            let parent = old.map(|old| repo.tree_in(index.clone(), old.size_bytes, old.root)).transpose()?;
            volumes.push_back(Planned { number, volume, parent, finished: input.finished.volume(number) });
        }
        Ok(Self { shared, volumes, outputs })
    }

    /// Plans all volumes, several at a time. Ends early when the run is stopped; dropping the outputs then lets the readers end.
    pub fn run(self) -> Result<()> {
        let Self { shared, volumes, outputs } = self;
        let threads = volumes.len().min(VOLUMES_AT_A_TIME);
        let volumes = Mutex::new(volumes);
        let plan_next = || {
            loop {
                let next = volumes.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(Planned { number, volume, parent, finished }) = next else { return };
                let mut plan = VolumePlan {
                    shared: &shared,
                    outputs: &outputs,
                    number,
                    finished,
                    parent,
                    nodes: None,
                    unread: Counts::default(),
                };
                if let Err(error) = plan.run(volume) {
                    shared.run.fail(error);
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(plan_next);
            }
            plan_next();
        });
        Ok(())
    }
}

/// Plans one volume.
struct VolumePlan<'a> {
    shared: &'a Arc<Shared>,
    outputs: &'a Outputs,
    number: u16,
    finished: Option<FinishedSegments>,
    parent: Option<TreeReader>,
    /// Reads leaves that a killed run stored.
    nodes: Option<NodeReader>,
    /// What was dealt with without a read.
    unread: Counts,
}

impl VolumePlan<'_> {
    fn run(&mut self, mut volume: VolumeSource) -> Result<()> {
        let size_bytes = match volume.source.size_bytes() {
            Some(size_bytes) => {
                self.read_file(&volume, size_bytes)?;
                size_bytes
            }
            None => self.read_stream(volume.source.as_mut())?,
        };
        let _ = self.outputs.events.send(Event::VolumeEnd {
            volume: self.number,
            size_bytes,
            unread: self.unread,
        });
        Ok(())
    }

    fn read_file(&mut self, volume: &VolumeSource, size_bytes: u64) -> Result<()> {
        let origin = Origin::of(volume.source.as_ref())?;
        let shape = Shape { size_bytes };
        let mut data = DataMap { source: volume.source.as_ref(), found: None };
        let mut group = 0;
        while group * GROUP_SEGMENTS < shape.segments() && !self.shared.run.stopped() {
            match &volume.changed_extents {
                Some(changed) => self.changed_group(&origin, shape, group, changed)?,
                None => self.full_group(&origin, shape, group, &mut data)?,
            }
            group += 1;
        }
        Ok(())
    }

    fn segments_of(shape: Shape, group: u64) -> Range<u64> {
        let first = group * GROUP_SEGMENTS;
        first..(first + GROUP_SEGMENTS).min(shape.segments())
    }

    fn done_without_read(&mut self, bytes: u64, zero: bool) {
        *(if zero { &mut self.unread.zero_bytes } else { &mut self.unread.reused_bytes }) += bytes;
        let progress = &self.shared.run.progress;
        Progress::add(&progress.done_bytes, bytes);
        Progress::add(if zero { &progress.zero_bytes } else { &progress.reused_bytes }, bytes);
    }

    /// True if a killed run finished the segment: then its leaf is put into `slot`, and nothing is read.
    fn taken_over(&mut self, shape: Shape, segment: SegmentNo, slot: &mut NodeRef) -> Result<bool> {
        let Some(node) = self.finished_before(shape, segment)? else { return Ok(false) };
        let len = segment.len_in(shape.size_bytes) as u64;
        self.shared.resumed_bytes.fetch_add(len, Ordering::Relaxed);
        self.done_without_read(len, node.is_none());
        *slot = node;
        Ok(true)
    }

    fn send_group(&self, group: u64, plan: GroupPlan) {
        let _ = self.outputs.events.send(Event::Group { volume: self.number, group, plan });
    }

    /// Everything that is not a hole is read.
    fn full_group(
        &mut self,
        origin: &Origin,
        shape: Shape,
        group: u64,
        data: &mut DataMap<'_>,
    ) -> Result<()> {
        let segments = Self::segments_of(shape, group);
        let end_bytes = (segments.end * SEGMENT_BYTES as u64).min(shape.size_bytes);
        let start_bytes = SegmentNo(segments.start).offset_bytes();
        if data.next(start_bytes)?.is_none_or(|range| range.start >= end_bytes) {
            self.done_without_read(end_bytes - start_bytes, true);
            self.send_group(group, GroupPlan::Whole(None));
            return Ok(());
        }
        let mut defaults = vec![None; (segments.end - segments.start) as usize];
        let mut jobs = 0;
        for number in segments.clone() {
            let segment = SegmentNo(number);
            let len = segment.len_in(shape.size_bytes);
            if self.taken_over(shape, segment, &mut defaults[(number - segments.start) as usize])? {
                continue;
            }
            let ranges = data.within(segment.offset_bytes(), len)?;
            if ranges.is_empty() {
                self.done_without_read(len as u64, true);
                continue;
            }
            let parent = self.parent_leaf(shape, segment)?;
            if !self.send_job(
                origin,
                SegmentTag { volume: self.number, segment, len, parent, changed: None, unlisted: false },
                ranges,
            ) {
                return Ok(());
            }
            jobs += 1;
        }
        self.send_group(group, GroupPlan::Segments { defaults, jobs });
        Ok(())
    }

    /// Only what may have changed since the parent is read.
    fn changed_group(&mut self, origin: &Origin, shape: Shape, group: u64, changed: &Extents) -> Result<()> {
        let segments = Self::segments_of(shape, group);
        let start_bytes = SegmentNo(segments.start).offset_bytes();
        let end_bytes = (segments.end * SEGMENT_BYTES as u64).min(shape.size_bytes);
        let sampled = segments.clone().any(|number| self.shared.sample.takes(self.number, number));
        if let Some(parent) = &mut self.parent
            && !sampled
            && !changed.intersects(&(start_bytes..end_bytes))
            && parent.shape().root_level() > 0
            && same_group(parent.shape(), shape, group)
        {
            let node = parent.node(1, group)?;
            self.done_without_read(end_bytes - start_bytes, node.is_none());
            self.send_group(group, GroupPlan::Whole(node));
            return Ok(());
        }
        let mut defaults = vec![None; (segments.end - segments.start) as usize];
        let mut jobs = 0;
        for number in segments.clone() {
            let segment = SegmentNo(number);
            let len = segment.len_in(shape.size_bytes);
            let slot = (number - segments.start) as usize;
            if self.taken_over(shape, segment, &mut defaults[slot])? {
                continue;
            }
            let offset = segment.offset_bytes();
            let touched = self.same_segment(shape, segment);
            if touched && !changed.intersects(&(offset..offset + len as u64)) {
                if self.shared.sample.takes(self.number, number) {
                    let parent = self.parent_leaf(shape, segment)?;
                    let volume = self.number;
                    let tag = SegmentTag { volume, segment, len, parent, changed: None, unlisted: true };
                    if !self.send_job(origin, tag, std::iter::once(0..len as u32).collect()) {
                        return Ok(());
                    }
                    jobs += 1;
                    continue;
                }
                if let Some(parent) = &mut self.parent {
                    defaults[slot] = parent.leaf_ref(segment)?;
                }
                self.done_without_read(len as u64, defaults[slot].is_none());
                continue;
            }
            // A segment that the parent does not have in this length is read in full.
            let parent = self.parent_leaf(shape, segment)?;
            let (ranges, changed) = match &parent {
                Some(parent) => {
                    let changed = rechunk::on_grid(extents_within(changed, offset, len), len as u32);
                    (rechunk::ranges_to_read(&parent.leaf, &changed, len as u32), Some(changed))
                }
                None => (std::iter::once(0..len as u32).collect(), None),
            };
            if !self.send_job(
                origin,
                SegmentTag { volume: self.number, segment, len, parent, changed, unlisted: false },
                ranges,
            ) {
                return Ok(());
            }
            jobs += 1;
        }
        self.send_group(group, GroupPlan::Segments { defaults, jobs });
        Ok(())
    }

    /// False if the run ended meanwhile.
    fn send_job(&self, origin: &Origin, tag: SegmentTag, ranges: Vec<Range<u32>>) -> bool {
        if self.shared.run.stopped() {
            return false;
        }
        let offset_bytes = tag.segment.offset_bytes();
        let tag = Tagged { tag, origin: Some(origin.clone()) };
        match origin.clone() {
            Origin::File(file) => {
                self.outputs.jobs.send_blocking(ReadJob { tag, file, offset_bytes, ranges }).is_ok()
            }
            Origin::Ranges(source) => {
                let source = Beside::the_source(source, self.shared, &tag.tag, &ranges);
                self.outputs.fetch_jobs.send_blocking(FetchJob { tag, source, offset_bytes, ranges }).is_ok()
            }
        }
    }

    /// Reads a stream to its end; returns its length.
    fn read_stream(&mut self, source: &mut dyn Source) -> Result<u64> {
        let stream = source
            .as_stream()
            .ok_or_else(|| Error::Invalid { what: "a source without a size that is no stream".into() })?;
        let mut size_bytes = 0u64;
        let mut in_group = 0u32;
        while !self.shared.run.stopped() {
            let Some(mut buf) = self.outputs.pool.get_blocking() else { break };
            let stopped = || self.shared.run.stopped();
            let len = match stream.read_segment_unless(&mut buf[..SEGMENT_BYTES], &stopped) {
                Ok(0) | Err(Error::Cancelled) => break,
                read => read?,
            };
            let segment = SegmentNo::containing(size_bytes);
            let offset_bytes = size_bytes;
            size_bytes += len as u64;
            // The volume seems to end here as long as nothing follows; a parent's leaf must have this length.
            let parent = self.parent_leaf(Shape { size_bytes }, segment)?;
            let tag =
                SegmentTag { volume: self.number, segment, len, parent, changed: None, unlisted: false };
            let ranges: Vec<Range<u32>> = std::iter::once(0..len as u32).collect();
            let done = ReadDone {
                tag: Tagged { tag, origin: None },
                buf,
                read_bytes: len as u64,
                offset_bytes,
                ranges,
            };
            if self.outputs.done.send(Ok(done)).is_err() {
                break;
            }
            in_group += 1;
            if u64::from(in_group) == GROUP_SEGMENTS {
                self.end_stream_group(size_bytes, in_group);
                in_group = 0;
            }
            if len < SEGMENT_BYTES {
                break;
            }
        }
        if in_group > 0 {
            self.end_stream_group(size_bytes, in_group);
        }
        Ok(size_bytes)
    }

    fn end_stream_group(&self, size_bytes: u64, jobs: u32) {
        let group = SegmentNo::containing(size_bytes - 1).0 / GROUP_SEGMENTS;
        self.send_group(group, GroupPlan::Segments { defaults: vec![None; jobs as usize], jobs });
    }

    /// True if the parent has this segment in the same length.
    fn same_segment(&self, shape: Shape, segment: SegmentNo) -> bool {
        let len = segment.len_in(shape.size_bytes);
        self.parent.as_ref().is_some_and(|p| segment.len_in(p.shape().size_bytes) == len)
    }

    fn parent_leaf(&mut self, shape: Shape, segment: SegmentNo) -> Result<Option<ParentLeaf>> {
        if !self.same_segment(shape, segment) {
            return Ok(None);
        }
        let Some(parent) = &mut self.parent else { return Ok(None) };
        let node = parent.leaf_ref(segment)?;
        Ok(Some(ParentLeaf { node, leaf: parent.load_leaf(segment, node)? }))
    }

    /// The leaf of a segment that a killed run finished, if all that it refers to is there.
    fn finished_before(&mut self, shape: Shape, segment: SegmentNo) -> Result<Option<NodeRef>> {
        let Some(node) = self.finished.as_mut().and_then(|of| of.get(segment)) else { return Ok(None) };
        let Some(id) = node else { return Ok(Some(None)) };
        if planted(Bug::JournalBelieved) {
            return Ok(Some(node));
        }
        let claims = &self.shared.claims;
        if !claims.is_stored(id.as_bytes())? {
            return Ok(None);
        }
        let len = segment.len_in(shape.size_bytes);
        let nodes = match &mut self.nodes {
            Some(nodes) => nodes,
            slot => {
                let parts = &self.shared.repo;
                slot.insert(NodeReader::new(parts.store.clone(), parts.keys.clone(), claims.index().clone())?)
            }
        };
        let leaf = nodes.leaf(node, len)?;
        for piece in &leaf.pieces {
            if let Some(chunk) = &piece.chunk
                && !claims.is_stored(chunk.as_bytes())?
            {
                return Ok(None);
            }
        }
        Ok(Some(node))
    }
}

/// True if both trees have the same segments, of the same lengths, in a group.
fn same_group(old: Shape, new: Shape, group: u64) -> bool {
    let end = (group + 1) * GROUP_SEGMENTS * SEGMENT_BYTES as u64;
    old.size_bytes == new.size_bytes || old.size_bytes.min(new.size_bytes) >= end
}

/// Changed extents within a segment, relative to it.
fn extents_within(changed: &Extents, offset: u64, len: usize) -> Vec<Range<u32>> {
    let end = offset + len as u64;
    let mut ranges = Vec::new();
    let mut at = offset;
    while let Some(range) = changed.next(at).filter(|range| range.start < end) {
        let stop = range.end.min(end);
        ranges.push((range.start - offset) as u32..(stop - offset) as u32);
        at = stop;
        if at >= end {
            break;
        }
    }
    ranges
}

/// The source's map of data, asked in ascending order and remembered, so that long runs cost one call.
struct DataMap<'a> {
    source: &'a dyn Source,
    /// The last answer: asked from where, and what came.
    found: Option<(u64, Option<Range<u64>>)>,
}

impl DataMap<'_> {
    fn next(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        if let Some((asked, answer)) = &self.found
            && *asked <= from
        {
            match answer {
                None => return Ok(None),
                Some(range) if range.end > from => return Ok(Some(range.start.max(from)..range.end)),
                Some(_) => {}
            }
        }
        let answer = self.source.next_data(from)?;
        self.found = Some((from, answer.clone()));
        Ok(answer)
    }

    /// Data ranges of `len` bytes at `offset`, relative to it.
    fn within(&mut self, offset: u64, len: usize) -> Result<Vec<Range<u32>>> {
        let end = offset + len as u64;
        let mut ranges = Vec::new();
        let mut at = offset;
        while at < end {
            let Some(range) = self.next(at)?.filter(|range| range.start < end) else { break };
            let stop = range.end.min(end);
            ranges.push((range.start - offset) as u32..(stop - offset) as u32);
            at = stop;
        }
        Ok(ranges)
    }
}
