//! Locators: find out where the chunks of a segment are stored. With `--compare` they first read the target and drop what is right already.
//! Several work side by side, since both may wait for a disk or a store; the planner has the answers taken in the order of its questions.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use super::plan::Needs;
use super::{SegmentWork, Shared};
use crate::chunker::{Chunker, is_zero};
use crate::error::{Error, Result};
use crate::format::node::Leaf;
use crate::io::AlignedBuf;
use crate::limits::{BLOCK_BYTES, IO_ALIGN, SEGMENT_BYTES};
use crate::manifest::merge_ranges;
use crate::pack::Location;
use crate::run::Progress;
use crate::source::OpenFile;

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

/// A segment with the places of its chunks.
pub struct Located {
    /// The segment.
    pub work: SegmentWork,
    /// In the order of packs.
    pub frames: Vec<Frame>,
}

/// A question of the planner.
pub struct Job {
    /// The segment.
    pub work: SegmentWork,
    /// Where the answer goes; dropped without one if there is none.
    pub answer: Sender<Located>,
}

/// State of one locator thread.
pub struct Locator {
    shared: Arc<Shared>,
    /// Made when a target is compared.
    comparer: Option<(Chunker, AlignedBuf)>,
}

impl Locator {
    /// Prepares a locator.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, comparer: None }
    }

    /// Works until the channel is closed and empty.
    pub fn run(mut self, input: &Receiver<Job>) -> Result<()> {
        for Job { work, answer } in input {
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
        if let Some(leaf) = work.compare.take() {
            self.compare(&mut work, &leaf)?;
        }
        let mut frames = Vec::with_capacity(work.chunks.len() + work.old_chunks.len());
        let (chunks, old) = (std::mem::take(&mut work.chunks), std::mem::take(&mut work.old_chunks));
        let chunks = chunks.into_iter().map(|chunk| (chunk, false));
        for ((offset, piece), old) in chunks.chain(old.into_iter().map(|chunk| (chunk, true))) {
            let Some(chunk) = &piece.chunk else { continue };
            let at = self.find(chunk.as_bytes(), &work, offset)?;
            if at.raw_bytes != piece.len {
                return Err(Error::damaged(
                    at.pack_key(),
                    format_args!(
                        "chunk {chunk} has {} bytes there, the manifest says {}",
                        at.raw_bytes, piece.len
                    ),
                ));
            }
            frames.push(Frame { at, id: *chunk.as_bytes(), offset, old });
        }
        frames.sort_unstable_by_key(|f| (f.at.pack.id, f.at.offset));
        Ok(Located { work, frames })
    }

    fn find(&self, id: &[u8; 32], work: &SegmentWork, offset: u32) -> Result<Location> {
        self.shared.index.find_to_read(id)?.ok_or_else(|| Error::Missing {
            object: format!("chunk {}", hex::encode(id)),
            needed_by: format!(
                "{} at byte {}",
                self.shared.volume_name,
                work.segment.offset_bytes() + u64::from(offset)
            ),
        })
    }

    /// Reads the segment on the target and keeps as needed only what differs from `leaf`.
    fn compare(&mut self, work: &mut SegmentWork, leaf: &Leaf) -> Result<()> {
        let Some(target) = &self.shared.target else { return Ok(()) };
        let (chunker, buf) = self.comparer.get_or_insert_with(|| {
            let chunker = Chunker::new(self.shared.chunk_params, &self.shared.chunk_keys());
            (chunker, AlignedBuf::new(SEGMENT_BYTES))
        });
        read_target(&target.file(), work, buf)?;
        let segment_start = work.segment.offset_bytes();
        if let Some(tail) = target.tail().filter(|tail| tail.start < segment_start + work.len as u64) {
            // The last partial block was read as part of a whole one or not at all; it is always written.
            buf[(tail.start - segment_start) as usize..work.len].fill(0xff);
        }
        let mut different = Vec::new();
        for (offset, piece) in leaf.with_offsets() {
            let range = offset..offset + piece.len;
            let held = &buf[range.start as usize..range.end as usize];
            match piece.chunk {
                Some(id) if chunker.chunk_id(held) != id => different.push(range),
                Some(_) => {}
                None if is_zero(held) => {}
                // Within a run of zeros, only the blocks that are not.
                None => different.extend(nonzero_blocks(held, offset)),
            }
        }
        let different = merge_ranges(different);
        let differing: u64 = different.iter().map(|r| u64::from(r.end - r.start)).sum();
        let same = work.len as u64 - differing;
        Shared::add(&self.shared.counters.same, same);
        Progress::add(&self.shared.run.progress.reused_bytes, same);
        let needs = Needs::of(leaf, &different, work.len as u32);
        (work.chunks, work.writes, work.zeros) = (needs.chunks, needs.writes, needs.zeros);
        work.fresh = false;
        Ok(())
    }
}

fn nonzero_blocks(held: &[u8], offset: u32) -> Vec<Range<u32>> {
    merge_ranges(held.chunks(BLOCK_BYTES).enumerate().filter(|(_, bytes)| !is_zero(bytes)).map(
        |(n, bytes)| {
            let start = offset + (n * BLOCK_BYTES) as u32;
            start..start + bytes.len() as u32
        },
    ))
}

/// Reads what the target holds of a segment; past its end there are zeros.
fn read_target(file: &OpenFile, work: &SegmentWork, buf: &mut [u8]) -> Result<()> {
    let end = work.len.next_multiple_of(IO_ALIGN);
    let mut at = 0;
    while at < end {
        let position = work.segment.offset_bytes() + at as u64;
        match file.file.read_at(&mut buf[at..end], position) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", format_args!("{} at byte {position}", file.name))(e)),
        }
    }
    buf[at..end].fill(0);
    Ok(())
}
