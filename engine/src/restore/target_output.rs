//! Restore onto a device or into a file: writers behind the decoders, and the calling thread, which keeps the
//! journal.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use super::RestoreOptions;
use super::compare::read_held;
use super::journal::Journal;
use super::opened::Opened;
use super::output::{DeferredWrites, SegmentOutput};
use super::pipeline::{join, start_stages};
use super::plan::{Holds, RestorePlan};
use super::segment::{SegmentPlan, SegmentWork};
use super::shared::Shared;
use crate::chunker::Chunker;
use crate::error::Result;
use crate::format::point::Volume;
use crate::id::SegmentNo;
use crate::io::{self, AlignedBuf, IoEngine, PooledBuf, WriteJob, WriteResult};
use crate::limits::IO_ALIGN;
use crate::repo::Repository;
use crate::run::Progress;
use crate::target::Target;

/// Writes in flight.
const WRITE_DEPTH: usize = 4;

/// The target, and what is known of what it holds.
pub struct WriteTarget {
    /// The target.
    pub target: Target,
    /// It reads as zeros wherever nothing was written.
    pub fresh: bool,
    /// It holds a state of the volume: what cannot be read stays as it is.
    pub keeps: bool,
}

/// Comes back from the writers: what is on the target.
#[derive(Debug)]
enum Written {
    /// A segment, but for `deferred` parts of it.
    Segment {
        /// Which.
        segment: SegmentNo,
        /// Its length.
        len: usize,
        /// Parts that come as deferred chunks.
        deferred: u32,
        /// It is not as the volume has it, so it is not done.
        damaged: bool,
    },
    /// Parts that were put off: the segment of each.
    Deferred(Vec<SegmentNo>),
}

/// The decoders' end.
struct TargetOutput {
    shared: Arc<Shared>,
    target: Arc<WriteTarget>,
    /// To the writers.
    writes: async_channel::Sender<WriteJob<Written>>,
    /// To the collector: segments without anything to write are done at once.
    done: Sender<WriteResult<Written>>,
}

/// Writes the volume, or what of it differs from what the target holds.
pub fn restore(
    repo: &Repository,
    shared: &Arc<Shared>,
    volume: &Volume,
    opened: Opened,
    engine: IoEngine,
    options: &RestoreOptions,
) -> Result<()> {
    let Opened { target, mut journal, done, fresh } = opened;
    let depth = options.queue_depth.unwrap_or(WRITE_DEPTH).max(1);
    let (writes, write_receiver) = async_channel::unbounded();
    let (done_sender, done_receiver) = crossbeam::channel::unbounded();
    let mut threads = io::spawn_writers(engine, 1, depth, write_receiver, done_sender.clone())?;
    let holds = match &options.base {
        Some(point) => {
            Holds::Base { point: Box::new(point.clone()), stale: options.stale.clone().unwrap_or_default() }
        }
        None if options.compare => Holds::Something,
        None => Holds::Nothing,
    };
    let keeps = !matches!(holds, Holds::Nothing);
    let target = Arc::new(WriteTarget { target, fresh, keeps });
    let output = TargetOutput { shared: shared.clone(), target: target.clone(), writes, done: done_sender };
    let plan = RestorePlan::Target { target: target.clone(), holds, done };
    threads.extend(start_stages(repo, shared, volume, plan, Arc::new(output), options, depth)?);
    collect(shared, &done_receiver, &target.target, &mut journal);
    join(shared, threads);
    let finished = shared.run.outcome().and_then(|()| target.target.finish());
    if let Err(error) = finished {
        // So that a later run continues here; the first error is the one to tell.
        if let Err(second) = journal.sync(&target.target) {
            tracing::debug!("the journal ends before the last writes: {second}");
        }
        return Err(error);
    }
    journal.remove();
    Ok(())
}

/// Takes the writers' results until there are no more.
fn collect(
    shared: &Shared,
    results: &Receiver<WriteResult<Written>>,
    target: &Target,
    journal: &mut Journal,
) {
    // Segments of which something is there and something is not. Parts may come before the rest of their segment,
    // hence the sign. Of what is damaged some part never comes.
    let mut parts_due: HashMap<SegmentNo, i64> = HashMap::new();
    let mut note = |segment: SegmentNo, parts: i64| {
        let due = parts_due.entry(segment).or_default();
        *due += parts;
        if *due == 0 {
            parts_due.remove(&segment);
            if let Err(error) = journal.segment(segment, target) {
                shared.run.fail(error);
            }
        }
    };
    for result in results {
        let (written, bytes) = match result {
            Ok(written) => written,
            Err((_, error)) => {
                shared.run.fail(target.explain(error));
                continue;
            }
        };
        Shared::add(&shared.counters.written, bytes);
        let progress = &shared.run.progress;
        Progress::add(&progress.new_bytes, bytes);
        match written {
            Written::Segment { segment, len, deferred, damaged } => {
                Progress::add(&progress.done_bytes, len as u64);
                note(segment, i64::from(deferred) + i64::from(damaged));
            }
            Written::Deferred(segments) => segments.into_iter().for_each(|segment| note(segment, -1)),
        }
    }
}

impl WriteTarget {
    /// Makes a range of the volume zero, unless it is.
    pub fn zero(&self, shared: &Shared, range: Range<u64>) -> Result<()> {
        let bytes = range.end - range.start;
        if self.fresh {
            Shared::add(&shared.counters.skipped_zero, bytes);
            return Ok(());
        }
        self.target.zero_range(range)?;
        Shared::add(&shared.counters.zeroed, bytes);
        Ok(())
    }

    /// Whole blocks whose contents are lost: made zero, unless they are or what is there is to stay.
    pub fn blank(&self, range: Range<u64>) -> Result<()> {
        if self.keeps || self.fresh { Ok(()) } else { self.target.zero_range(range) }
    }

    /// Fills `range` of a segment's buffer with what takes the place of bytes that cannot be read.
    fn fill_lost(&self, work: &SegmentWork, range: &Range<u32>, buf: &mut [u8]) -> Result<()> {
        let place = range.start as usize..range.end as usize;
        if !self.keeps {
            buf[place].fill(0);
            return Ok(());
        }
        let start = place.start / IO_ALIGN * IO_ALIGN;
        let mut held = AlignedBuf::new((place.end - start).next_multiple_of(IO_ALIGN));
        let (file, position) = (self.target.file(), work.segment.offset_bytes() + start as u64);
        read_held(&file.file, &file.name, position, place.end - start, &mut held)?;
        buf[place.clone()].copy_from_slice(&held[place.start - start..place.end - start]);
        Ok(())
    }
}

impl TargetOutput {
    /// Writes the volume's last partial block on a device, and takes it out of `writes`.
    fn write_tail(&self, buf: &PooledBuf, offset: u64, writes: &mut Vec<Range<u32>>) -> Result<()> {
        let target = &self.target.target;
        let Some(tail) = target.tail() else { return Ok(()) };
        for range in writes.iter_mut().filter(|r| offset + u64::from(r.end) > tail.start) {
            let start = (tail.start.max(offset + u64::from(range.start)) - offset) as u32;
            target.write_tail(offset + u64::from(start), &buf[start as usize..range.end as usize])?;
            let bytes = u64::from(range.end - start);
            Shared::add(&self.shared.counters.written, bytes);
            Progress::add(&self.shared.run.progress.new_bytes, bytes);
            range.end = start;
        }
        writes.retain(|r| !r.is_empty());
        Ok(())
    }
}

impl SegmentOutput for TargetOutput {
    /// Nothing outside of the chunks is written.
    fn clear(&self, _work: &SegmentWork, _buf: &mut [u8]) {}

    fn leave_out(
        &self,
        work: &mut SegmentWork,
        lost: &Range<u32>,
        buf: &mut [u8],
    ) -> Result<Vec<Range<u32>>> {
        let SegmentPlan::Write(set) = &mut work.plan else { return Ok(Vec::new()) };
        let missing = set.written_of(lost);
        let start = work.segment.offset_bytes();
        for blank in set.lose(lost, work.len as u32) {
            self.target.blank(start + u64::from(blank.start)..start + u64::from(blank.end))?;
        }
        // What is left shares blocks with chunks that are there.
        for edge in set.written_of(lost) {
            self.target.fill_lost(work, &edge, buf)?;
        }
        Ok(missing)
    }

    fn put(&self, work: SegmentWork, mut buf: PooledBuf, _old: &[u8], _chunker: &mut Chunker) -> Result<()> {
        let SegmentWork { segment, len, damaged, plan: SegmentPlan::Write(set), .. } = work else {
            return Ok(()); // there are no others for a target
        };
        let mut writes = set.writes;
        let offset = segment.offset_bytes();
        for zero in set.zeros {
            self.target.zero(&self.shared, offset + u64::from(zero.start)..offset + u64::from(zero.end))?;
        }
        self.write_tail(&buf, offset, &mut writes)?;
        // The last block of a file is written whole; what is behind the volume in it is cut off at the end.
        let padded_end = len.next_multiple_of(IO_ALIGN);
        buf[len..padded_end].fill(0);
        for range in &mut writes {
            if range.end as usize == len {
                range.end = padded_end as u32;
            }
        }
        let tag = Written::Segment { segment, len, deferred: set.deferred, damaged };
        if writes.is_empty() {
            let _ = self.done.send(Ok((tag, 0)));
            return Ok(());
        }
        let (file, scattered) = (self.target.target.file(), Vec::new());
        let job = WriteJob { tag, file, offset_bytes: offset, buf, ranges: writes, scattered };
        let _ = self.writes.send_blocking(job);
        Ok(())
    }

    fn put_deferred(&self, writes: DeferredWrites, buf: PooledBuf) -> Result<()> {
        let DeferredWrites { parts: scattered, segments, lost } = writes;
        lost.into_iter().try_for_each(|range| self.target.blank(range))?;
        let (tag, file) = (Written::Deferred(segments), self.target.target.file());
        let job = WriteJob { tag, file, offset_bytes: 0, buf, ranges: Vec::new(), scattered };
        let _ = self.writes.send_blocking(job);
        Ok(())
    }
}
