//! Fetchers: look up where the chunks of a window of segments are, and get them from the store in few, ordered, coalesced ranges.
//! With `--compare` they first read the target and drop what is right already.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use crossbeam::queue::SegQueue;

use super::plan::Needs;
use super::strays::{self, Batch, Gatherer, STRAY_BYTES_MAX, Stray};
use super::{SegmentWork, Shared};
use crate::chunker::{Chunker, is_zero};
use crate::error::{Error, Result};
use crate::format::node::Leaf;
use crate::io::{AlignedBuf, PooledBuf};
use crate::limits::IO_ALIGN;
use crate::manifest::merge_ranges;
use crate::pack::Location;
use crate::run::Progress;
use crate::source::OpenFile;

/// Longest request.
const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// Buffers for stored bytes grow in steps of a huge page.
const BUFFER_STEP_BYTES: usize = 2 << 20;
const ALIGN: u64 = IO_ALIGN as u64;
/// Start of a frame that is not among the fetched bytes.
const PUT_OFF: usize = usize::MAX;

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

/// Something with a place in a pack.
pub trait Ranged {
    /// The place.
    fn at(&self) -> &Location;
}

impl Ranged for Frame {
    fn at(&self) -> &Location {
        &self.at
    }
}

/// What goes to the decoders.
pub enum Fetched {
    /// A window with everything its segments need, but for strays.
    Window {
        /// The segments.
        window: Vec<SegmentWork>,
        /// Frames in the order of packs.
        frames: Vec<Frame>,
        /// Stored bytes of all of them.
        bytes: AlignedBuf,
    },
    /// Strays of many segments.
    Strays {
        /// The strays, in the order of packs.
        batch: Batch,
        /// Where each begins in the fetched bytes.
        starts: Vec<usize>,
        /// Stored bytes of all of them.
        bytes: AlignedBuf,
        /// Where they are put together.
        buf: PooledBuf,
    },
}

/// Buffers for stored bytes, used again and again.
pub type Spare = Arc<SegQueue<AlignedBuf>>;

/// State of one fetcher thread.
pub struct Fetcher {
    shared: Arc<Shared>,
    spare: Spare,
    gatherer: Gatherer,
    chunker: Option<Chunker>,
}

impl Fetcher {
    /// Prepares a fetcher.
    pub fn new(shared: Arc<Shared>, spare: Spare, gatherer: Gatherer) -> Self {
        Self { shared, spare, gatherer, chunker: None }
    }

    /// Works until the channel is closed and empty, and there are no strays left.
    pub fn run(mut self, input: &Receiver<Vec<SegmentWork>>, output: &Sender<Fetched>) -> Result<()> {
        loop {
            // Batches first: what has been put off is bounded by that.
            let fetched = if let Some(batch) = self.gatherer.ready() {
                self.fetch_strays(batch)
            } else {
                let Ok(window) = input.recv() else { break };
                if self.shared.run.stopped() {
                    continue; // the buffers go back
                }
                self.fetch(window).map(Some)
            };
            self.send(fetched, output);
        }
        self.gatherer.found_all();
        while let Some(batch) = self.gatherer.next() {
            let fetched = self.fetch_strays(batch);
            self.send(fetched, output);
        }
        Ok(())
    }

    fn send(&self, fetched: Result<Option<Fetched>>, output: &Sender<Fetched>) {
        match fetched {
            Ok(Some(fetched)) => drop(output.send(fetched)),
            Ok(None) => {}
            Err(error) => self.shared.run.fail(error),
        }
    }

    fn fetch_strays(&self, batch: Batch) -> Result<Option<Fetched>> {
        if self.shared.run.stopped() {
            return Ok(None);
        }
        let Some(buf) = self.gatherer.buffer() else { return Ok(None) };
        let requests = requests_for(batch.strays(), self.shared.store.habits().gap_bytes);
        let (bytes, starts) = self.get_all(batch.strays(), &requests)?;
        Ok(Some(Fetched::Strays { batch, starts, bytes, buf }))
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
        if self.shared.target.is_some() {
            self.put_off_strays(&mut window, &mut frames);
        }
        let requests = requests_for(&frames, self.shared.store.habits().gap_bytes);
        let (bytes, starts) = self.get_all(&frames, &requests)?;
        for (frame, start) in frames.iter_mut().zip(starts) {
            frame.start = start;
        }
        Ok(Fetched::Window { window, frames, bytes })
    }

    /// Marks and puts off the frames of packs that the window needs little of, and takes what they hold out of what is written with the window.
    fn put_off_strays(&self, window: &mut [SegmentWork], frames: &mut Vec<Frame>) {
        let mut strays = Vec::new();
        for of_pack in frames.chunk_by_mut(|a, b| a.at.pack.id == b.at.pack.id) {
            let stored_bytes: u64 = of_pack.iter().map(|f| u64::from(f.at.stored_bytes)).sum();
            if stored_bytes >= STRAY_BYTES_MAX {
                continue;
            }
            for frame in of_pack {
                let work = &mut window[frame.slot];
                let Some(parts) = strays::take_out(&mut work.writes, frame.offset, frame.at.raw_bytes) else {
                    continue;
                };
                let position = work.segment.offset_bytes() + u64::from(frame.offset);
                work.deferred += parts.len() as u32;
                strays.extend(parts.into_iter().map(|part| Stray {
                    at: frame.at,
                    id: frame.id,
                    position,
                    part,
                }));
                frame.start = PUT_OFF;
            }
        }
        frames.retain(|frame| frame.start != PUT_OFF);
        if !strays.is_empty() {
            self.gatherer.put_off(strays);
        }
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

    /// Makes the requests for `members` (in the order of packs), and tells where each begins in the bytes got.
    fn get_all<T: Ranged>(&self, members: &[T], requests: &[Request]) -> Result<(AlignedBuf, Vec<usize>)> {
        // Each request begins and ends at 4 KiB borders of pack and buffer, so that a store in files can read past the page cache.
        let needed: usize = requests.iter().map(|r| r.aligned_bytes()).sum();
        let mut bytes = self.spare.pop().unwrap_or_else(AlignedBuf::empty);
        if bytes.len() < needed {
            bytes = AlignedBuf::new(needed.next_multiple_of(BUFFER_STEP_BYTES));
        }
        let mut starts = Vec::with_capacity(members.len());
        let mut filled = 0;
        for request in requests {
            let from = request.bytes.start / ALIGN * ALIGN;
            let end = filled + request.aligned_bytes();
            let group = &members[request.members.clone()];
            if let Some(first) = group.first() {
                let needed_bytes = (request.bytes.end - from) as usize;
                self.get(first.at(), from, needed_bytes, &mut bytes[filled..end])?;
            }
            starts
                .extend(group.iter().map(|member| filled + (u64::from(member.at().offset) - from) as usize));
            filled = end;
        }
        Ok((bytes, starts))
    }

    /// Fills `out` from byte `offset` of the pack of `first` on; all but `needed` bytes may be missing at the pack's end.
    fn get(&self, first: &Location, offset: u64, needed: usize, out: &mut [u8]) -> Result<()> {
        let key = first.pack_key();
        match self.shared.store.get_into(&key, offset, out)? {
            None => Err(Error::Missing { object: key, needed_by: self.shared.volume_name.clone() }),
            Some(count) if count < needed => {
                Err(Error::damaged(key, format_args!("truncated at byte {}", offset + count as u64)))
            }
            Some(count) => {
                Shared::add(&self.shared.counters.fetched, count as u64);
                Progress::add(&self.shared.run.progress.read_bytes, count as u64);
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

/// A range of one pack, and which members it is for.
struct Request {
    members: Range<usize>,
    bytes: Range<u64>,
}

impl Request {
    /// True if what lies between it and `at`, further on in the same pack, may be fetched too.
    fn reaches(&self, at: &Location, gap_bytes: u64) -> bool {
        u64::from(at.offset) <= self.bytes.end + gap_bytes && at.end() - self.bytes.start <= REQUEST_BYTES_MAX
    }

    /// Length when widened to 4 KiB borders.
    fn aligned_bytes(&self) -> usize {
        (self.bytes.end.next_multiple_of(ALIGN) - self.bytes.start / ALIGN * ALIGN) as usize
    }
}

/// The requests that get `members`, which are in the order of packs.
fn requests_for<T: Ranged>(members: &[T], gap_bytes: u64) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for (no, at) in members.iter().map(Ranged::at).enumerate() {
        let offset = u64::from(at.offset);
        match requests.last_mut() {
            Some(last)
                if members[last.members.start].at().pack.id == at.pack.id && last.reaches(at, gap_bytes) =>
            {
                last.bytes.end = last.bytes.end.max(at.end());
                last.members.end = no + 1;
            }
            _ => requests.push(Request { members: no..no + 1, bytes: offset..at.end() }),
        }
    }
    requests
}

fn nonzero_blocks(held: &[u8], offset: u32) -> Vec<Range<u32>> {
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
