//! Fetchers: look up where the chunks of a window of segments are, and get them from the store in few, ordered, coalesced ranges.
//! With `--compare` they first read the target and drop what is right already.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use crossbeam::queue::SegQueue;

use super::plan::Needs;
use super::{SegmentWork, Shared};
use crate::chunker::{Chunker, is_zero};
use crate::error::{Error, Result};
use crate::format::node::Leaf;
use crate::limits::IO_ALIGN;
use crate::manifest::merge_ranges;
use crate::pack::Location;
use crate::run::Progress;
use crate::source::OpenFile;

/// Longest request.
const REQUEST_BYTES_MAX: u64 = 8 << 20;

/// A frame that a window needs.
pub struct Frame {
    /// Where it is stored.
    pub at: Location,
    /// ChunkId.
    pub id: [u8; 32],
    /// Which segment of the window, and where in it.
    pub slot: usize,
    /// Offset in that segment.
    pub offset: u32,
    /// Where it begins in the fetched bytes.
    pub start: usize,
}

/// A window with everything its segments need.
pub struct Fetched {
    /// The segments.
    pub window: Vec<SegmentWork>,
    /// Frames in the order of packs.
    pub frames: Vec<Frame>,
    /// Stored bytes of all of them.
    pub bytes: Vec<u8>,
}

/// Buffers for stored bytes, used again and again.
pub type Spare = Arc<SegQueue<Vec<u8>>>;

/// State of one fetcher thread.
pub struct Fetcher {
    shared: Arc<Shared>,
    spare: Spare,
    chunker: Option<Chunker>,
}

impl Fetcher {
    /// Prepares a fetcher.
    pub fn new(shared: Arc<Shared>, spare: Spare) -> Self {
        Self { shared, spare, chunker: None }
    }

    /// Works until the channel is closed and empty.
    pub fn run(mut self, input: &Receiver<Vec<SegmentWork>>, output: &Sender<Fetched>) -> Result<()> {
        for window in input {
            if self.shared.run.stopped() {
                continue; // the buffers go back
            }
            match self.fetch(window) {
                Ok(fetched) => drop(output.send(fetched)),
                Err(error) => self.shared.run.fail(error),
            }
        }
        Ok(())
    }

    fn fetch(&mut self, mut window: Vec<SegmentWork>) -> Result<Fetched> {
        for work in &mut window {
            if let Some(leaf) = work.compare.take() {
                self.compare(work, &leaf)?;
            }
        }
        let mut frames = Vec::new();
        for (slot, work) in window.iter().enumerate() {
            for (offset, piece) in &work.chunks {
                let Some(chunk) = &piece.chunk else { continue };
                let at = self.locate(chunk.as_bytes(), work, *offset)?;
                if at.raw_bytes != piece.len {
                    return Err(Error::damaged(
                        at.pack_key(),
                        format_args!(
                            "chunk {chunk} has {} bytes there, the manifest says {}",
                            at.raw_bytes, piece.len
                        ),
                    ));
                }
                frames.push(Frame { at, id: *chunk.as_bytes(), slot, offset: *offset, start: 0 });
            }
        }
        frames.sort_unstable_by_key(|f| (f.at.pack.id, f.at.offset));
        let bytes = self.get_ranges(&mut frames)?;
        Ok(Fetched { window, frames, bytes })
    }

    fn locate(&self, id: &[u8; 32], work: &SegmentWork, offset: u32) -> Result<Location> {
        self.shared.index.find(id)?.ok_or_else(|| Error::Missing {
            object: format!("chunk {}", hex::encode(id)),
            needed_by: format!(
                "{} at byte {}",
                self.shared.volume_name,
                work.segment.offset_bytes() + u64::from(offset)
            ),
        })
    }

    /// Gets what the frames (in the order of packs) need into one buffer, and notes in each frame where it lies there.
    fn get_ranges(&self, frames: &mut [Frame]) -> Result<Vec<u8>> {
        let mut bytes = self.spare.pop().unwrap_or_default();
        let gap_bytes = self.shared.store.gap_bytes();
        let mut start = 0;
        let mut filled = 0;
        while start < frames.len() {
            let first = frames[start].at;
            let mut end_byte = first.end();
            let mut end = start + 1;
            while let Some(next) = frames.get(end).map(|f| f.at).filter(|at| {
                at.pack.id == first.pack.id
                    && u64::from(at.offset) <= end_byte + gap_bytes
                    && at.end() - u64::from(first.offset) <= REQUEST_BYTES_MAX
            }) {
                end_byte = end_byte.max(next.end());
                end += 1;
            }
            let len = (end_byte - u64::from(first.offset)) as usize;
            if bytes.len() < filled + len {
                bytes.resize(filled + len, 0);
            }
            self.get(&first, &mut bytes[filled..filled + len])?;
            for frame in &mut frames[start..end] {
                frame.start = filled + (frame.at.offset - first.offset) as usize;
            }
            filled += len;
            start = end;
        }
        Ok(bytes)
    }

    fn get(&self, first: &Location, out: &mut [u8]) -> Result<()> {
        let offset = u64::from(first.offset);
        let key = first.pack_key();
        match self.shared.store.get_into(&key, offset, out)? {
            None => Err(Error::Missing { object: key, needed_by: self.shared.volume_name.clone() }),
            Some(count) if count < out.len() => {
                Err(Error::damaged(key, format_args!("truncated at byte {}", offset + count as u64)))
            }
            Some(_) => {
                Shared::add(&self.shared.counters.fetched, out.len() as u64);
                Progress::add(&self.shared.run.progress.read_bytes, out.len() as u64);
                Ok(())
            }
        }
    }

    /// Reads the segment on the target and keeps as needed only what differs from `leaf`.
    fn compare(&mut self, work: &mut SegmentWork, leaf: &Leaf) -> Result<()> {
        let Some(target) = &self.shared.target else { return Ok(()) };
        let file = target.file();
        read_target(&file, work)?;
        if let Some(tail) =
            target.tail().filter(|tail| tail.start < work.segment.offset_bytes() + work.len as u64)
        {
            // The last partial block was read as part of a whole one or not at all; it is always written.
            let start = (tail.start - work.segment.offset_bytes()) as usize;
            work.buf[start..work.len].fill(0xff);
        }
        let chunker = self
            .chunker
            .get_or_insert_with(|| Chunker::new(self.shared.chunk_params, &self.shared.chunk_keys()));
        let mut different = Vec::new();
        for (offset, piece) in leaf.with_offsets() {
            let range = offset..offset + piece.len;
            let held = &work.buf[range.start as usize..range.end as usize];
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

fn nonzero_blocks(held: &[u8], offset: u32) -> Vec<std::ops::Range<u32>> {
    let block = crate::limits::BLOCK_BYTES;
    merge_ranges(held.chunks(block).enumerate().filter(|(_, bytes)| !is_zero(bytes)).map(|(n, bytes)| {
        let start = offset + (n * block) as u32;
        start..start + bytes.len() as u32
    }))
}

/// Reads what the target holds of a segment; past its end there are zeros.
fn read_target(file: &OpenFile, work: &mut SegmentWork) -> Result<()> {
    let end = work.len.next_multiple_of(IO_ALIGN);
    let mut at = 0;
    while at < end {
        let position = work.segment.offset_bytes() + at as u64;
        match file.file.read_at(&mut work.buf[at..end], position) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", format_args!("{} at byte {position}", file.name))(e)),
        }
    }
    work.buf[at..end].fill(0);
    Ok(())
}
