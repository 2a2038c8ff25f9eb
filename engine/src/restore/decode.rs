//! Decoders: open, decompress and check each chunk right where it belongs in its segment, then send the segment to be written.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use super::fetch::{Fetched, Frame, Spare};
use super::{SegmentWork, Shared};
use crate::chunker::Chunker;
use crate::error::{Error, Result};
use crate::id::SegmentNo;
use crate::io::{PooledBuf, WriteJob, WriteResult};
use crate::pack::FrameReader;
use crate::run::Progress;

/// Comes back from the writers.
#[derive(Debug)]
pub struct Written {
    /// Which segment is on the target.
    pub segment: SegmentNo,
    /// Its length.
    pub len: usize,
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
}

/// State of one decoder thread.
pub struct Decoder {
    shared: Arc<Shared>,
    output: Output,
    spare: Spare,
    frames: FrameReader,
    chunker: Chunker,
}

impl Decoder {
    /// Prepares a decoder.
    pub fn new(shared: Arc<Shared>, output: Output, spare: Spare) -> Result<Self> {
        let chunker = Chunker::new(shared.chunk_params, &shared.chunk_keys());
        Ok(Self { shared, output, spare, frames: FrameReader::new()?, chunker })
    }

    /// Works until the channel is closed and empty.
    pub fn run(mut self, input: &Receiver<Fetched>) -> Result<()> {
        for fetched in input {
            if self.shared.run.stopped() {
                continue;
            }
            if let Err(error) = self.window(fetched) {
                self.shared.run.fail(error);
            }
        }
        Ok(())
    }

    fn window(&mut self, Fetched { mut window, frames, bytes }: Fetched) -> Result<()> {
        let mut by_slot: HashMap<usize, Vec<&Frame>> = HashMap::new();
        for frame in &frames {
            by_slot.entry(frame.slot).or_default().push(frame);
        }
        for (slot, mut work) in window.drain(..).enumerate() {
            if let Output::Stream(_) = self.output {
                // A stream gets the zeros too; elsewhere nothing outside the chunks is written.
                work.buf[..work.len].fill(0);
            }
            for frame in by_slot.remove(&slot).unwrap_or_default() {
                self.chunk(frame, &bytes, &mut work)?;
            }
            self.send(work)?;
        }
        self.spare.push(bytes);
        Ok(())
    }

    fn chunk(&mut self, frame: &Frame, bytes: &[u8], work: &mut SegmentWork) -> Result<()> {
        let at = &frame.at;
        let stored = &bytes[frame.start..frame.start + at.stored_bytes as usize];
        let place = frame.offset as usize..frame.offset as usize + at.raw_bytes as usize;
        let raw = &mut work.buf[place];
        let mut checked = self.open(frame, stored, raw);
        if checked.as_ref().is_err_and(Error::is_damage) && self.shared.store.distrust(&at.pack_key()) {
            // What a network did to it may not happen again.
            let mut again = vec![0; stored.len()];
            let got = self.shared.store.get_into(&at.pack_key(), u64::from(at.offset), &mut again)?;
            if got == Some(again.len()) {
                checked = self.open(frame, &again, raw);
            }
        }
        checked.map_err(|error| match error {
            Error::Damaged { object, what } => Error::Damaged {
                object,
                what: format!(
                    "{what}. It holds {} from byte {}",
                    self.shared.volume_name,
                    work.segment.offset_bytes() + u64::from(frame.offset)
                ),
            },
            other => other,
        })
    }

    /// Opens a frame and checks that the content is the one asked for.
    fn open(&mut self, frame: &Frame, stored: &[u8], raw: &mut [u8]) -> Result<()> {
        let at = &frame.at;
        self.frames.read(&self.shared.keys, at, &frame.id, stored, raw)?;
        if self.chunker.chunk_id(raw).as_bytes() == &frame.id {
            return Ok(());
        }
        Err(Error::damaged(
            at.pack_key(),
            format_args!("the chunk at byte {} does not have its id", at.offset),
        ))
    }

    fn send(&self, work: SegmentWork) -> Result<()> {
        let SegmentWork { segment, len, mut buf, mut writes, zeros, fresh, .. } = work;
        let (writer, done) = match &self.output {
            Output::Stream(stream) => {
                let _ = stream.send((segment, buf, len));
                return Ok(());
            }
            Output::Writers { writes, done } => (writes, done),
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
        let written = Written { segment, len };
        if writes.is_empty() {
            let _ = done.send(Ok((written, 0)));
            return Ok(());
        }
        let Some(target) = &self.shared.target else { return Ok(()) };
        let job = WriteJob { tag: written, file: target.file(), offset_bytes: offset, buf, ranges: writes };
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
