//! Decoders: open, decompress and check each chunk right where it belongs in its segment, then send the segment to be written.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::{Receiver, Sender};

use super::locate::Frame;
use super::puts::Outlet;
use super::stored::{SegmentOut, StoredBuf, StoredRange};
use super::strays::Batch;
use super::{SegmentWork, Shared};
use crate::chunker::Chunker;
use crate::error::{Error, Result};
use crate::id::SegmentNo;
use crate::io::{AlignedBuf, BufPool, PooledBuf, WriteJob, WriteResult};
use crate::limits::SEGMENT_BYTES;
use crate::pack::{FrameReader, Location};
use crate::run::Progress;

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
        /// All chunks it needs but strays, in the order of packs.
        frames: Vec<Placed>,
        /// Dropped when it is decoded, after `frames`.
        out: SegmentOut,
    },
    /// Strays of many segments.
    Strays {
        /// The strays, in the order of packs.
        batch: Batch,
        /// Where each begins in the fetched bytes.
        starts: Vec<usize>,
        /// Stored bytes of all of them.
        bytes: StoredBuf,
        /// Where they are put together.
        buf: PooledBuf,
    },
}

/// Where decoders get their work. Segments get their buffers here, in the order of the volume: the earliest one has its buffer whatever the others wait for.
pub struct Inlet {
    input: Mutex<Receiver<Fetched>>,
    pool: BufPool,
}

impl Inlet {
    /// An inlet for all decoders.
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

/// Comes back from the writers: what is on the target.
#[derive(Debug)]
pub enum Written {
    /// A segment, but for `deferred` parts of it.
    Segment {
        /// Which.
        segment: SegmentNo,
        /// Its length.
        len: usize,
        /// Parts that come as strays.
        deferred: u32,
    },
    /// Parts that were put off: the segment of each.
    Strays(Vec<SegmentNo>),
}

/// Where finished segments go.
#[derive(Clone)]
pub enum Output {
    /// To the writers of a target; segments without anything to write are done at once.
    Writers {
        /// To the writers.
        writes: async_channel::Sender<WriteJob<Written>>,
        /// To the collector.
        done: Sender<WriteResult<Written>>,
    },
    /// To whoever writes a stream.
    Stream(Sender<(SegmentNo, PooledBuf, usize)>),
    /// To the putters of a sink.
    Blocks(Outlet),
}

/// State of one decoder thread.
pub struct Decoder {
    shared: Arc<Shared>,
    output: Output,
    frames: FrameReader,
    chunker: Chunker,
    /// A segment's chunks of the old state, made when there are some.
    old: Option<AlignedBuf>,
}

impl Decoder {
    /// Prepares a decoder.
    pub fn new(shared: Arc<Shared>, output: Output) -> Result<Self> {
        let chunker = Chunker::new(shared.chunk_params, &shared.chunk_keys());
        Ok(Self { shared, output, frames: FrameReader::new()?, chunker, old: None })
    }

    /// Works until there is no more.
    pub fn run(mut self, inlet: &Inlet) -> Result<()> {
        while let Some((fetched, segment_buf)) = inlet.next(&self.shared) {
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
                (Fetched::Strays { batch, starts, bytes, buf }, _) => {
                    self.strays(&batch, &starts, bytes, buf)
                }
            };
            if let Err(error) = decoded {
                self.shared.run.fail(error);
            }
        }
        Ok(())
    }

    fn segment(&mut self, work: SegmentWork, frames: &[Placed], mut buf: PooledBuf) -> Result<()> {
        match &self.output {
            // A stream gets the zeros too, and so do blocks; elsewhere nothing outside the chunks is written.
            Output::Stream(_) => buf[..work.len].fill(0),
            Output::Blocks(outlet) => outlet.clear(&work, &mut buf),
            Output::Writers { .. } => {}
        }
        let mut old = self.old.take();
        for Placed { frame, range } in frames {
            if !range.covers(&frame.at) {
                return Err(Error::damaged(
                    frame.at.pack_key(),
                    format_args!("the index has two lengths for what is at byte {}", frame.at.offset),
                ));
            }
            // Else the fetcher has said why, or its panic is found when it is joined.
            let Some(stored) = range.frame(&frame.at) else { return Ok(()) };
            let place = frame.offset as usize..frame.offset as usize + frame.at.raw_bytes as usize;
            let position = work.segment.offset_bytes() + u64::from(frame.offset);
            let raw = match frame.old {
                true => &mut old.get_or_insert_with(|| AlignedBuf::new(SEGMENT_BYTES))[place],
                false => &mut buf[place],
            };
            self.chunk(&frame.at, &frame.id, stored, raw, position)?;
        }
        if let Output::Blocks(outlet) = &self.output {
            outlet.send(&self.shared, &mut self.chunker, &work, buf, old.as_deref().unwrap_or_default());
            self.old = old;
            return Ok(());
        }
        self.send(work, buf)
    }

    /// Decodes each chunk of a batch once, behind one another, and has it written to all of its places.
    fn strays(
        &mut self,
        batch: &Batch,
        starts: &[usize],
        bytes: StoredBuf,
        mut buf: PooledBuf,
    ) -> Result<()> {
        let (Output::Writers { writes, .. }, Some(target)) =
            (self.output.clone(), self.shared.target.as_ref())
        else {
            return Ok(());
        };
        let file = target.file();
        let mut scattered: Vec<(Range<u32>, u64)> = Vec::new();
        let mut segments = Vec::with_capacity(starts.len());
        let (mut place, mut previous) = (0..0, None);
        for (stray, start) in batch.strays().iter().zip(starts) {
            if previous != Some(stray.at) {
                place = place.end..place.end + stray.at.raw_bytes as usize;
                let raw = &mut buf[place.clone()];
                let stored = &bytes[*start..*start + stray.at.stored_bytes as usize];
                self.chunk(&stray.at, &stray.id, stored, raw, stray.position)?;
                previous = Some(stray.at);
            }
            segments.push(stray.segment());
            let from = place.start as u32;
            let (part, to) = (
                from + stray.part.start..from + stray.part.end,
                stray.position + u64::from(stray.part.start),
            );
            match scattered.last_mut() {
                // Chunks of a file that was new one night lie side by side in the pack as in the volume.
                Some((range, at))
                    if range.end == part.start && *at + u64::from(range.end - range.start) == to =>
                {
                    range.end = part.end;
                }
                _ => scattered.push((part, to)),
            }
        }
        drop(bytes);
        let tag = Written::Strays(segments);
        let job = WriteJob { tag, file, offset_bytes: 0, buf, ranges: Vec::new(), scattered };
        let _ = writes.send_blocking(job);
        Ok(())
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
        let mut checked = self.open(at, id, stored, raw);
        if checked.as_ref().is_err_and(Error::is_damage) && self.shared.store.distrust(&at.pack_key()) {
            // What a network did to it may not happen again.
            let mut again = vec![0; stored.len()];
            let got = self.shared.store.get_into(&at.pack_key(), u64::from(at.offset), &mut again)?;
            if got == Some(again.len()) {
                checked = self.open(at, id, &again, raw);
            }
        }
        checked.map_err(|error| match error {
            Error::Damaged { object, what } => Error::Damaged {
                object,
                what: format!("{what}. It holds {} from byte {position}", self.shared.volume_name),
            },
            other => other,
        })
    }

    /// Opens a frame and checks that the content is the one asked for.
    fn open(&mut self, at: &Location, id: &[u8; 32], stored: &[u8], raw: &mut [u8]) -> Result<()> {
        self.frames.read(&self.shared.keys, at, id, stored, raw)?;
        if self.chunker.chunk_id(raw).as_bytes() == id {
            return Ok(());
        }
        Err(Error::damaged(
            at.pack_key(),
            format_args!("the chunk at byte {} does not have its id", at.offset),
        ))
    }

    fn send(&self, work: SegmentWork, mut buf: PooledBuf) -> Result<()> {
        let SegmentWork { segment, len, mut writes, zeros, fresh, deferred, .. } = work;
        let (writer, done) = match &self.output {
            Output::Stream(stream) => {
                let _ = stream.send((segment, buf, len));
                return Ok(());
            }
            Output::Writers { writes, done } => (writes, done),
            Output::Blocks(_) => return Ok(()), // they do not come here
        };
        let offset = segment.offset_bytes();
        for zero in zeros {
            self.shared.zero(offset + u64::from(zero.start)..offset + u64::from(zero.end), fresh)?;
        }
        self.write_tail(&buf, offset, &mut writes)?;
        // The last block of a file is written whole; what is behind the volume in it is cut off at the end.
        let padded_end = len.next_multiple_of(crate::limits::IO_ALIGN);
        buf[len..padded_end].fill(0);
        for range in &mut writes {
            if range.end as usize == len {
                range.end = padded_end as u32;
            }
        }
        let written = Written::Segment { segment, len, deferred };
        if writes.is_empty() {
            let _ = done.send(Ok((written, 0)));
            return Ok(());
        }
        let Some(target) = &self.shared.target else { return Ok(()) };
        let (file, scattered) = (target.file(), Vec::new());
        let job = WriteJob { tag: written, file, offset_bytes: offset, buf, ranges: writes, scattered };
        let _ = writer.send_blocking(job);
        Ok(())
    }

    /// Writes the volume's last partial block on a device, and takes it out of `writes`.
    fn write_tail(&self, buf: &PooledBuf, offset: u64, writes: &mut Vec<Range<u32>>) -> Result<()> {
        let Some(target) = &self.shared.target else { return Ok(()) };
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
