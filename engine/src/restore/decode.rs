//! Decoders: open, decompress and check each chunk right where it belongs in its segment, then hand the segment on.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::Receiver;

use super::deferred::{Batch, DeferredChunk};
use super::frames::Frame;
use super::output::{DeferredWrites, SegmentOutput};
use super::segment::SegmentWork;
use super::shared::Shared;
use super::stored::{SegmentOut, Stored, StoredBuf, StoredRange};
use crate::chunker::Chunker;
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, BufPool, PooledBuf};
use crate::limits::SEGMENT_BYTES;
use crate::pack::{ChunkReader, Location};

/// A chunk, and the range that it comes with.
pub struct Placed {
    /// The chunk.
    pub frame: Frame,
    /// What holds its stored bytes, or will.
    pub range: Arc<StoredRange>,
}

/// What comes to the decoders.
pub enum Fetched {
    /// A segment, in the order of the volume; its ranges may still be on their way.
    Segment {
        /// The segment.
        work: SegmentWork,
        /// All chunks it needs but deferred ones, in the order of packs.
        frames: Vec<Placed>,
        /// Dropped when it is decoded, after `frames`.
        out: SegmentOut,
    },
    /// Deferred chunks of many segments.
    Deferred {
        /// The chunks, in the order of packs.
        batch: Batch,
        /// Stored bytes of all of them, and where each begins. Without, some could not be fetched.
        stored: Option<(StoredBuf, Vec<usize>)>,
        /// Where they are put together.
        buf: PooledBuf,
    },
}

/// Where decoders get their work. Segments get their buffers here, in the order of the volume: the earliest one has
/// its buffer whatever the others wait for.
pub struct DecodeQueue {
    input: Mutex<Receiver<Fetched>>,
    pool: BufPool,
}

impl DecodeQueue {
    /// A queue for all decoders.
    pub fn new(input: Receiver<Fetched>, pool: BufPool) -> Arc<Self> {
        Arc::new(Self { input: Mutex::new(input), pool })
    }

    /// The next piece of work and, for a segment, its buffer; `None` at the end.
    fn next(&self, shared: &Shared) -> Option<(Fetched, Option<PooledBuf>)> {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let fetched = input.recv().ok()?;
        let buf = match &fetched {
            Fetched::Segment { .. } if !shared.run.stopped() => self.pool.get_blocking(),
            _ => None,
        };
        Some((fetched, buf))
    }
}

/// State of one decoder thread.
pub struct Decoder {
    shared: Arc<Shared>,
    output: Arc<dyn SegmentOutput>,
    reader: ChunkReader,
    /// Compares blocks with what a sink holds.
    chunker: Chunker,
    /// A segment's chunks of the old state, made when there are some.
    old: Option<AlignedBuf>,
}

impl Decoder {
    /// Prepares a decoder.
    pub fn new(shared: Arc<Shared>, output: Arc<dyn SegmentOutput>) -> Result<Self> {
        let reader = ChunkReader::new(shared.store.clone(), shared.keys.clone(), shared.chunk_params)?;
        let chunker = shared.chunker();
        Ok(Self { shared, output, reader, chunker, old: None })
    }

    /// Works until there is no more.
    pub fn run(mut self, queue: &DecodeQueue) -> Result<()> {
        while let Some((fetched, segment_buf)) = queue.next(&self.shared) {
            if self.shared.run.stopped() {
                continue;
            }
            let decoded = match (fetched, segment_buf) {
                (Fetched::Segment { work, frames, out }, Some(buf)) => {
                    let decoded = self.segment(work, &frames, buf);
                    drop(frames);
                    drop(out);
                    decoded
                }
                (Fetched::Segment { .. }, None) => continue, // stopped just now
                (Fetched::Deferred { batch, stored, buf }, _) => self.deferred(&batch, stored, buf),
            };
            if let Err(error) = decoded {
                self.shared.run.fail(error);
            }
        }
        Ok(())
    }

    fn segment(&mut self, mut work: SegmentWork, frames: &[Placed], mut buf: PooledBuf) -> Result<()> {
        self.output.clear(&work, &mut buf);
        let mut old = self.old.take();
        let mut lost = std::mem::take(&mut work.lost);
        for Placed { frame, range } in frames {
            let (place, start) = (frame.place(), work.segment.offset_bytes());
            let raw = match frame.old {
                true => &mut old.get_or_insert_with(|| AlignedBuf::new(SEGMENT_BYTES))[place.clone()],
                false => &mut buf[place.clone()],
            };
            match self.placed(frame, range, raw, start + u64::from(frame.offset)) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if self.shared.damage.skips(&error) && !frame.old => {
                    self.shared.damage.note_reason(&error);
                    lost.push(place.start as u32..place.end as u32);
                }
                Err(error) => return Err(error),
            }
        }
        for range in lost {
            let missing = self.output.leave_out(&mut work, &range, &mut buf)?;
            work.damaged |= !missing.is_empty();
            self.shared.damage.note_in(work.segment, &missing);
        }
        self.output.put(work, buf, old.as_deref().unwrap_or_default(), &mut self.chunker)?;
        self.old = old;
        Ok(())
    }

    /// Decodes a chunk of a segment. False if the run was stopped before its bytes came: the fetcher has said why, or
    /// its panic is found when it is joined.
    fn placed(&mut self, frame: &Frame, range: &StoredRange, raw: &mut [u8], position: u64) -> Result<bool> {
        if !range.covers(&frame.at) {
            let what = format!("the index has two lengths for what is at byte {}", frame.at.offset);
            return Err(Error::damaged(frame.at.pack_key(), what));
        }
        match range.frame(&frame.at) {
            Stored::Bytes(stored) => self.chunk(&frame.at, &frame.id, stored, raw, position)?,
            Stored::Lost => {
                let stored = self.fetch_alone(&frame.at)?;
                self.chunk(&frame.at, &frame.id, &stored, raw, position)?;
            }
            Stored::Stopped => return Ok(false),
        }
        Ok(true)
    }

    /// Gets the stored bytes of one chunk, where the range that it is in could not be read as a whole.
    fn fetch_alone(&self, at: &Location) -> Result<Vec<u8>> {
        let (key, damage) = (at.pack_key(), &self.shared.damage);
        let mut stored = vec![0; at.stored_bytes as usize];
        let got = match damage.is_lost_pack(at.pack.id) {
            true => None,
            false => self.shared.store.get_into(&key, u64::from(at.offset), &mut stored)?,
        };
        match got {
            None => {
                damage.note_lost_pack(at.pack.id);
                Err(Error::Missing { object: key, needed_by: self.shared.volume_name.clone() })
            }
            Some(count) if count < stored.len() => Err(Error::damaged(
                key,
                format_args!("truncated at byte {}", u64::from(at.offset) + count as u64),
            )),
            Some(_) => Ok(stored),
        }
    }

    /// Decodes each chunk of a batch once, behind one another, and has it written to all of its places.
    fn deferred(
        &mut self,
        batch: &Batch,
        stored: Option<(StoredBuf, Vec<usize>)>,
        mut buf: PooledBuf,
    ) -> Result<()> {
        let mut writes = DeferredWrites::default();
        let (mut place, mut previous, mut is_lost) = (0..0, None, false);
        for (no, chunk) in batch.chunks().iter().enumerate() {
            if previous != Some(chunk.at) {
                place = place.end..place.end + chunk.at.raw_bytes as usize;
                let bytes = stored
                    .as_ref()
                    .map(|(bytes, starts)| &bytes[starts[no]..starts[no] + chunk.at.stored_bytes as usize]);
                is_lost = match self.deferred_chunk(chunk, bytes, &mut buf[place.clone()]) {
                    Ok(()) => false,
                    Err(error) if self.shared.damage.skips(&error) => {
                        self.shared.damage.note_reason(&error);
                        true
                    }
                    Err(error) => return Err(error),
                };
                previous = Some(chunk.at);
            }
            let (from, to) = (place.start as u32, chunk.position + u64::from(chunk.part.start));
            let part: Range<u32> = from + chunk.part.start..from + chunk.part.end;
            if is_lost {
                let range = to..to + u64::from(part.end - part.start);
                self.shared.damage.note_range(range.clone());
                writes.lost.push(range);
            } else {
                writes.push(part, to);
            }
        }
        drop(stored);
        self.output.put_deferred(writes, buf)
    }

    fn deferred_chunk(&mut self, chunk: &DeferredChunk, stored: Option<&[u8]>, raw: &mut [u8]) -> Result<()> {
        match stored {
            Some(stored) => self.chunk(&chunk.at, &chunk.id, stored, raw, chunk.position),
            None => {
                let stored = self.fetch_alone(&chunk.at)?;
                self.chunk(&chunk.at, &chunk.id, &stored, raw, chunk.position)
            }
        }
    }

    /// Decodes and checks the chunk that is `stored`; it belongs at `position` of the volume.
    fn chunk(
        &mut self,
        at: &Location,
        id: &[u8; 32],
        stored: &[u8],
        raw: &mut [u8],
        position: u64,
    ) -> Result<()> {
        self.reader.decode(at, id, stored, raw).map_err(|error| match error {
            Error::Damaged { object, what } => Error::Damaged {
                object,
                what: format!("{what}. It holds {} from byte {position}", self.shared.volume_name),
            },
            other => other,
        })
    }
}
