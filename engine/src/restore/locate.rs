//! Locators: find out where the chunks of a segment are stored. With `--compare` they first read the target and drop
//! what is right already. Several work side by side, since both may wait for a disk or a store; the planner has the
//! answers taken in the order of its questions.

use std::sync::Arc;

use crossbeam::channel::Receiver;

use super::compare::{differences, read_held};
use super::frames::{Frame, LocateJob, Located};
use super::segment::{SegmentPlan, SegmentWork};
use super::shared::Shared;
use super::target_output::WriteTarget;
use super::writes::WriteSet;
use crate::chunker::Chunker;
use crate::error::{Error, Result};
use crate::format::node::{Leaf, Piece};
use crate::id::ChunkId;
use crate::io::AlignedBuf;
use crate::limits::SEGMENT_BYTES;
use crate::pack::Location;
use crate::run::Progress;

/// State of one locator thread.
pub struct Locator {
    shared: Arc<Shared>,
    /// What is compared, if anything is.
    target: Option<Arc<WriteTarget>>,
    /// Made when a target is compared.
    comparer: Option<(Chunker, AlignedBuf)>,
}

impl Locator {
    /// Prepares a locator.
    pub fn new(shared: Arc<Shared>, target: Option<Arc<WriteTarget>>) -> Self {
        Self { shared, target, comparer: None }
    }

    /// Works until the channel is closed and empty.
    pub fn run(mut self, input: &Receiver<LocateJob>) -> Result<()> {
        for LocateJob { work, answer } in input {
            if self.shared.run.stopped() {
                continue;
            }
            match self.locate(work) {
                Ok(located) => drop(answer.send(located)),
                Err(error) => self.shared.run.fail(error), // before `answer` is dropped
            }
        }
        Ok(())
    }

    fn locate(&mut self, mut work: SegmentWork) -> Result<Located> {
        if let SegmentPlan::Compare(leaf) = &work.plan {
            let set = self.compare(&work, leaf)?;
            work.plan = SegmentPlan::Write(set);
        }
        let mut frames = Vec::new();
        for (offset, piece, old) in work.take_chunks() {
            let Some(chunk) = &piece.chunk else { continue };
            match self.place_of(&work, offset, piece, chunk) {
                Ok(at) => frames.push(Frame { at, id: *chunk.as_bytes(), offset, old }),
                Err(error) if self.shared.damage.skips(&error) => {
                    self.shared.damage.note_reason(&error);
                    work.lost.push(offset..offset + piece.len);
                }
                Err(error) => return Err(error),
            }
        }
        frames.sort_unstable_by_key(|f| (f.at.pack.id, f.at.offset));
        Ok(Located { work, frames })
    }

    fn place_of(&self, work: &SegmentWork, offset: u32, piece: Piece, chunk: &ChunkId) -> Result<Location> {
        let index = &self.shared.index;
        let at = match index.find_to_read(chunk.as_bytes())? {
            Some(at) => at,
            // Its segment may have been merged since the list was read: looked for a second time, in the list of
            // today.
            None => {
                let byte = work.segment.offset_bytes() + u64::from(offset);
                index.locate(chunk.as_bytes(), &format!("{} at byte {byte}", self.shared.volume_name))?
            }
        };
        if at.raw_bytes != piece.len {
            let what =
                format!("chunk {chunk} has {} bytes there, the manifest says {}", at.raw_bytes, piece.len);
            return Err(Error::damaged(at.pack_key(), what));
        }
        Ok(at)
    }

    /// Reads the segment on the target and finds what differs from `leaf`.
    fn compare(&mut self, work: &SegmentWork, leaf: &Leaf) -> Result<WriteSet> {
        let Some(WriteTarget { target, .. }) = self.target.as_deref() else { return Ok(WriteSet::default()) };
        let (chunker, buf) =
            self.comparer.get_or_insert_with(|| (self.shared.chunker(), AlignedBuf::new(SEGMENT_BYTES)));
        let (file, segment_start) = (target.file(), work.segment.offset_bytes());
        read_held(&file.file, &file.name, segment_start, work.len, buf)?;
        if let Some(tail) = target.tail().filter(|tail| tail.start < segment_start + work.len as u64) {
            // The last partial block was read as part of a whole one or not at all; it is always written.
            buf[(tail.start - segment_start) as usize..work.len].fill(0xff);
        }
        let different = differences(leaf, &buf[..work.len], chunker);
        let differing: u64 = different.iter().map(|r| u64::from(r.end - r.start)).sum();
        let same = work.len as u64 - differing;
        Shared::add(&self.shared.counters.same, same);
        Progress::add(&self.shared.run.progress.reused_bytes, same);
        Ok(WriteSet::of(leaf, &different, work.len as u32))
    }
}
