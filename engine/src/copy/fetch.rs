//! Fetchers and workers: ranges of the source's packs come in, chunks are decoded, checked, renamed, and those that the destination lacks get into its packs.

use crossbeam::channel::{Receiver, Sender};

use super::{Event, Names, NewOfVolumes, Shared};
use crate::chunker::Chunker;
use crate::compress::Compressor;
use crate::error::{Error, Result};
use crate::format::pack::Codec;
use crate::format::point::Counts;
use crate::id::ChunkId;
use crate::io::PooledBuf;
use crate::limits::IO_ALIGN;
use crate::pack::{ChunkReader, FinishedPack, Location};
use crate::run::Progress;

/// A chunk to be read.
pub struct Frame {
    /// Its id in the source.
    pub id: ChunkId,
    /// Where it is.
    pub at: Location,
    /// The volume that is charged for it.
    pub volume: u16,
}

/// Frames of one pack that are fetched by one request.
pub struct Batch {
    /// The window that waits for them.
    pub window: u64,
    /// In the order of the pack.
    pub frames: Vec<Frame>,
    /// First byte needed.
    pub start: u64,
    /// One past the last byte needed.
    pub end: u64,
}

impl Batch {
    /// Where the request begins: requests begin and end at 4 KiB borders, so that a store in files can read past the page cache.
    fn from(&self) -> u64 {
        self.start / IO_ALIGN as u64 * IO_ALIGN as u64
    }

    /// Its length.
    fn request_bytes(&self) -> usize {
        (self.end.next_multiple_of(IO_ALIGN as u64) - self.from()) as usize
    }
}

/// Buffer that the request for `frame_bytes` needs.
pub const fn buffer_bytes(frame_bytes: usize) -> usize {
    frame_bytes + 2 * IO_ALIGN
}

/// A batch with its bytes.
pub struct Fetched {
    batch: Batch,
    buf: PooledBuf,
}

/// A fetcher: gets batches until the channel is closed and empty.
pub fn fetch(shared: &Shared<'_>, batches: &Receiver<Batch>, fetched: &Sender<Fetched>) -> Result<()> {
    for batch in batches {
        if shared.run.stopped() {
            continue;
        }
        let Some(mut buf) = shared.read_pool.get_blocking() else { continue };
        match fetch_one(shared, &batch, &mut buf) {
            Ok(()) => drop(fetched.send(Fetched { batch, buf })),
            Err(error) => shared.run.fail(error.in_repository(shared.source.location())),
        }
    }
    Ok(())
}

fn fetch_one(shared: &Shared<'_>, batch: &Batch, buf: &mut PooledBuf) -> Result<()> {
    let Some(first) = batch.frames.first() else { return Ok(()) };
    let key = first.at.pack_key();
    let needed = (batch.end - batch.from()) as usize;
    let Some(out) = buf.get_mut(..batch.request_bytes()) else {
        return Err(Error::damaged(key, format_args!("a frame of {needed} bytes, too long for a chunk")));
    };
    match shared.source.store().get_into(&key, batch.from(), out)? {
        None => Err(Error::Missing { object: key, needed_by: "the index".into() }),
        Some(count) if count < needed => {
            Err(Error::damaged(key, format_args!("truncated at byte {}", batch.from() + count as u64)))
        }
        Some(count) => {
            Progress::add(&shared.run.progress.read_bytes, count as u64);
            Ok(())
        }
    }
}

/// State of one worker thread.
pub struct Worker<'a> {
    shared: &'a Shared<'a>,
    chunks: ChunkReader,
    /// Names chunks as the destination does; `None` where the keys are the same.
    destination_ids: Option<Chunker>,
    compressor: Option<Compressor>,
    raw: Vec<u8>,
    packed: Vec<u8>,
}

impl<'a> Worker<'a> {
    /// Prepares a worker.
    pub fn new(shared: &'a Shared<'a>) -> Result<Self> {
        let (source, destination) = (shared.source, shared.destination);
        let params = destination.chunk_params()?;
        let chunks = ChunkReader::new(source.store().clone(), source.keys().clone(), source.chunk_params()?)?;
        Ok(Self {
            shared,
            chunks,
            destination_ids: (!shared.same_ids).then(|| destination.keys().chunker_for(params)),
            compressor: shared.compress_raw.map(|level| Compressor::new(Some(level))).transpose()?,
            raw: Vec::new(),
            packed: Vec::new(),
        })
    }

    /// Works until the channel is closed and empty. After an error elsewhere, buffers are only given back.
    pub fn run(
        mut self,
        input: &Receiver<Fetched>,
        packs: &Sender<FinishedPack>,
        events: &Sender<Event>,
    ) -> Result<()> {
        for Fetched { batch, buf } in input {
            if self.shared.run.stopped() {
                continue;
            }
            match self.batch(&batch, &buf, packs) {
                Ok((pairs, counts)) => {
                    drop(buf);
                    self.shared.renamed.learn(&pairs);
                    let _ = events.send(Event::Decoded { window: batch.window, pairs, counts });
                }
                Err(error) => self.shared.run.fail(error),
            }
        }
        Ok(())
    }

    fn batch(
        &mut self,
        batch: &Batch,
        bytes: &[u8],
        packs: &Sender<FinishedPack>,
    ) -> Result<(Names, NewOfVolumes)> {
        let mut pairs = Names::with_capacity(batch.frames.len());
        let mut counts = NewOfVolumes::new();
        for frame in &batch.frames {
            let from = (u64::from(frame.at.offset) - batch.from()) as usize;
            let stored = &bytes[from..from + frame.at.stored_bytes as usize];
            self.raw.resize(frame.at.raw_bytes as usize, 0);
            let decoded = self.chunks.decode(&frame.at, frame.id.as_bytes(), stored, &mut self.raw);
            decoded.map_err(|e| e.in_repository(self.shared.source.location()))?;
            let id = match &mut self.destination_ids {
                Some(chunker) => chunker.chunk_id(&self.raw),
                None => frame.id,
            };
            if let Some(stored_bytes) = self.store(&id, packs)? {
                let new_bytes = self.raw.len() as u64;
                let new = Counts {
                    new_chunks: 1,
                    new_bytes,
                    stored_bytes: u64::from(stored_bytes),
                    ..Counts::default()
                };
                Progress::add(&self.shared.run.progress.new_bytes, new_bytes);
                Progress::add(&self.shared.run.progress.stored_bytes, new.stored_bytes);
                match counts.iter_mut().find(|(volume, _)| *volume == frame.volume) {
                    Some((_, sum)) => *sum += new,
                    None => counts.push((frame.volume, new)),
                }
            }
            pairs.push((frame.id, id));
        }
        Ok((pairs, counts))
    }

    /// Puts the chunk in `raw` into a pack, unless the destination has it. As it was compressed it goes on: only what a repository without compression held is compressed
    /// here, if the destination compresses.
    fn store(&mut self, id: &ChunkId, packs: &Sender<FinishedPack>) -> Result<Option<u32>> {
        let shared = self.shared;
        let reserved = shared.claims.reserve(id.as_bytes());
        if !reserved.map_err(|e| e.in_repository(shared.destination.location()))? {
            return Ok(None);
        }
        let raw_bytes = self.raw.len() as u32;
        let encoded = self.chunks.encoded();
        let is_raw = encoded.first() == Some(&(Codec::Raw as u8));
        let frame: &[u8] = match &mut self.compressor {
            Some(compressor) if is_raw => {
                self.packed.resize(1 + self.raw.len(), 0);
                let (codec, payload_bytes) = compressor.compress(&self.raw, &mut self.packed[1..]);
                self.packed[0] = codec as u8;
                &self.packed[..1 + payload_bytes]
            }
            // Nobody writes a compressed form that is longer; a buffer must not depend on that.
            _ if encoded.len() > 1 + self.raw.len() => {
                self.packed.clear();
                self.packed.push(Codec::Raw as u8);
                self.packed.extend_from_slice(&self.raw);
                &self.packed
            }
            _ => encoded,
        };
        shared.open_packs.add(shared, packs, id, frame, raw_bytes).map(Some)
    }
}
