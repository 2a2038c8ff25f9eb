//! Workers: one segment at a time, start to finish — zero scan, hash, cut, dedup, compress, seal — while it is in the core's cache.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender};

use super::level::Effort;
use super::origin::{Origin, Unchanged};
use super::rechunk::{self, Cut};
use super::salvage::{is_of_the_medium, read_around};
use super::{Event, LeafResult, OnReadError, ParentLeaf, SegmentTag, Shared, note_progress};
use crate::chunker::{Chunker, PieceKind};
use crate::compress::Compressor;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::node::{Leaf, Piece};
use crate::format::point::Counts;
use crate::id::ChunkId;
use crate::io::{ReadDone, ReadResult};
use crate::pack::{FinishedPack, OpenPack};

/// A filled buffer with its tag; `origin` is there for the few extra reads of re-chunking.
pub struct Tagged {
    pub(super) tag: SegmentTag,
    pub(super) origin: Option<Origin>,
}

/// State of one worker thread.
pub struct Worker {
    shared: Arc<Shared>,
    packs: Sender<FinishedPack>,
    events: Sender<Event>,
    chunker: Chunker,
    sink: ChunkSink,
    unchanged: Unchanged,
}

impl Worker {
    /// Prepares a worker.
    pub fn new(shared: Arc<Shared>, packs: Sender<FinishedPack>, events: Sender<Event>) -> Result<Self> {
        let chunker = shared.repo.keys.chunker_for(shared.chunk_params);
        let compressor = Compressor::new(shared.level.level())?;
        let sink = ChunkSink {
            shared: shared.clone(),
            packs: packs.clone(),
            compressor,
            pack: OpenPack::new(ObjectKind::Data, shared.pack_pool.clone(), shared.repo.pack_bytes),
            new_bytes: 0,
            waited_store_ns: 0,
        };
        Ok(Self { shared, packs, events, chunker, sink, unchanged: Unchanged::default() })
    }

    /// Works until the channel is closed and empty. After an error elsewhere, buffers are only given back.
    pub fn run(mut self, input: &Receiver<ReadResult<Tagged>>) -> Result<()> {
        let started = Instant::now();
        let mut outcome = Ok(());
        loop {
            let waiting = Instant::now();
            let Ok(read) = input.recv() else { break };
            let working = Instant::now();
            let waited_ns = (working - waiting).as_nanos() as u64;
            if outcome.is_err() || self.shared.run.stopped() {
                continue;
            }
            outcome = match read {
                Ok(done) => self.segment(done),
                Err((tagged, error)) => self.read_failed(tagged.tag, tagged.origin.as_ref(), error),
            };
            if let Err(error) = outcome {
                self.shared.run.fail(error);
                outcome = Err(Error::Cancelled); // the cause is latched
            }
            self.sink.note_effort(waited_ns, working.elapsed().as_nanos() as u64);
        }
        self.shared.worked_ns.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        // Also when cancelled: what was compressed is kept for the next run.
        if let Some(pack) = self.sink.pack.take()
            && !self.shared.run.is_failed()
        {
            let _ = self.packs.send(pack);
        }
        Ok(())
    }

    fn segment(&mut self, mut done: ReadDone<Tagged>) -> Result<()> {
        let mut tag = std::mem::replace(
            &mut done.tag.tag,
            SegmentTag {
                volume: 0,
                segment: crate::id::SegmentNo(0),
                len: 0,
                parent: None,
                changed: None,
                unlisted: false,
            },
        );
        let mut counts = Counts { read_bytes: done.read_bytes, ..Counts::default() };
        let leaf = match (&tag.parent, tag.changed.take()) {
            (Some(parent), Some(changed)) => {
                match self.changed_ranges(&mut done, tag.len, parent, &changed, &mut counts) {
                    // Only reads of the source fail like this, and what they read is in none of the chunks yet.
                    Err(error) if is_of_the_medium(&error) => {
                        let origin = done.tag.origin.take();
                        drop(done);
                        return self.read_failed(tag, origin.as_ref(), error);
                    }
                    leaf => leaf?,
                }
            }
            _ => {
                if !covers(&done.ranges, tag.len) {
                    done.zero_gaps(tag.len);
                }
                self.whole(&done.buf[..tag.len], tag.parent.as_ref(), &mut counts)?
            }
        };
        drop(done); // the buffer goes back before the bookkeeping
        if tag.unlisted {
            let offset_bytes = tag.segment.offset_bytes();
            let differs = tag.parent.as_ref().is_none_or(|parent| parent.leaf != leaf);
            let range = offset_bytes..offset_bytes + tag.len as u64;
            self.shared.findings.compared(tag.volume, range, differs);
        }
        self.finish(tag, leaf, counts);
        Ok(())
    }

    fn finish(&mut self, tag: SegmentTag, leaf: Leaf, counts: Counts) {
        note_progress(&self.shared.run.progress, &counts, tag.len as u64);
        let leaf = self.leaf_result(leaf, tag.parent);
        let SegmentTag { volume, segment, .. } = tag;
        let _ = self.events.send(Event::Segment { volume, segment, leaf, counts });
    }

    /// A read of the source failed: reads around the place, if that is wanted and the error speaks of a place.
    fn read_failed(&mut self, tag: SegmentTag, origin: Option<&Origin>, error: Error) -> Result<()> {
        let Some(origin) = origin.filter(|_| self.shared.on_read_error == OnReadError::Zero) else {
            return Err(error);
        };
        if !is_of_the_medium(&error) {
            return Err(error);
        }
        tracing::warn!("{error}: reading around it");
        let salvaged = read_around(origin, tag.segment.offset_bytes(), tag.len)?;
        self.shared.findings.unreadable(tag.volume, &salvaged.unreadable, origin.name())?;
        let mut counts = Counts { read_bytes: salvaged.read_bytes, ..Counts::default() };
        let leaf = self.whole(&salvaged.buf[..tag.len], tag.parent.as_ref(), &mut counts)?;
        self.finish(tag, leaf, counts);
        Ok(())
    }

    /// Chunks a segment that was read in full.
    fn whole(&mut self, data: &[u8], parent: Option<&ParentLeaf>, counts: &mut Counts) -> Result<Leaf> {
        let mut leaf = Leaf::default();
        let mut known = ParentCursor::new(parent);
        let sink = &mut self.sink;
        self.chunker.for_each(data, 0, |piece| {
            let len = piece.bytes.len() as u32;
            let chunk = match piece.kind {
                PieceKind::Zero => {
                    counts.zero_bytes += u64::from(len);
                    None
                }
                PieceKind::Data { id, .. } => {
                    let same = known.has(piece.offset, len, &id);
                    sink.chunk(&id, piece.bytes, same, counts)?;
                    Some(id)
                }
            };
            leaf.push(Piece { len, chunk });
            Ok::<(), Error>(())
        })?;
        Ok(leaf)
    }

    /// Chunks only what changed against the parent's leaf.
    fn changed_ranges(
        &mut self,
        done: &mut ReadDone<Tagged>,
        len: usize,
        parent: &ParentLeaf,
        changed: &[Range<u32>],
        counts: &mut Counts,
    ) -> Result<Leaf> {
        let (origin, offset_bytes) = (done.tag.origin.clone(), done.offset_bytes);
        let (shared, unchanged) = (&self.shared, &mut self.unchanged);
        let mut more_bytes = 0;
        let mut cuts = Vec::new();
        rechunk::rechunk(
            &mut self.chunker,
            rechunk::Job { parent: &parent.leaf, changed, read: &done.ranges, segment_bytes: len as u32 },
            &mut done.buf,
            &mut |range, buf| {
                more_bytes += unchanged.read(shared, origin.as_ref(), offset_bytes, parent, range, buf)?;
                Ok(())
            },
            &mut cuts,
        )?;
        counts.read_bytes += more_bytes;
        let mut leaf = Leaf::default();
        let mut known = ParentCursor::new(Some(parent));
        let mut offset = 0u32;
        for cut in cuts {
            let piece = match cut {
                Cut::Kept(piece) => {
                    match piece.chunk {
                        None => counts.zero_bytes += u64::from(piece.len),
                        Some(_) => {
                            counts.chunks += 1;
                            counts.reused_bytes += u64::from(piece.len);
                        }
                    }
                    piece
                }
                Cut::New(piece) => {
                    let bytes = &done.buf[offset as usize..(offset + piece.len) as usize];
                    match &piece.chunk {
                        None => counts.zero_bytes += u64::from(piece.len),
                        Some(id) => {
                            let same = known.has(offset, piece.len, id);
                            self.sink.chunk(id, bytes, same, counts)?;
                        }
                    }
                    piece
                }
            };
            offset += piece.len;
            leaf.push(piece);
        }
        Ok(leaf)
    }

    fn leaf_result(&self, leaf: Leaf, parent: Option<ParentLeaf>) -> LeafResult {
        if leaf.is_zero() {
            return LeafResult::Known(None);
        }
        if let Some(parent) = parent.filter(|parent| parent.leaf == leaf) {
            return LeafResult::Known(parent.node);
        }
        let mut bytes = Vec::with_capacity(5 + leaf.pieces.len() * 36);
        leaf.encode_into(&mut bytes);
        LeafResult::New(self.shared.repo.keys.node_id(&bytes), bytes)
    }
}

fn covers(ranges: &[Range<u32>], len: usize) -> bool {
    ranges.len() == 1 && ranges[0].start == 0 && ranges[0].end as usize >= len
}

/// Follows the parent's pieces while the new ones come in order.
struct ParentCursor<'a> {
    pieces: &'a [Piece],
    offset: u32,
}

impl<'a> ParentCursor<'a> {
    fn new(parent: Option<&'a ParentLeaf>) -> Self {
        Self { pieces: parent.map_or(&[], |p| &p.leaf.pieces), offset: 0 }
    }

    /// True if the parent has this very chunk at this place: then it is stored, without any lookup.
    fn has(&mut self, offset: u32, len: u32, id: &ChunkId) -> bool {
        while let Some(first) = self.pieces.first().filter(|_| self.offset < offset) {
            self.offset += first.len;
            self.pieces = &self.pieces[1..];
        }
        self.offset == offset && self.pieces.first() == Some(&Piece { len, chunk: Some(*id) })
    }
}

/// Decides on each chunk and puts new ones into the worker's open pack.
struct ChunkSink {
    shared: Arc<Shared>,
    packs: Sender<FinishedPack>,
    compressor: Compressor,
    pack: OpenPack,
    /// Of the segment under way: bytes compressed, and nanoseconds waited for a pack buffer.
    new_bytes: u64,
    waited_store_ns: u64,
}

impl ChunkSink {
    /// Adds up what the segment that is done took: for the report of what held the run up, and for the level of the next segments.
    fn note_effort(&mut self, waited_source_ns: u64, lived_ns: u64) {
        let waited_store_ns = std::mem::take(&mut self.waited_store_ns);
        self.shared.waited_source_ns.fetch_add(waited_source_ns, Ordering::Relaxed);
        self.shared.waited_store_ns.fetch_add(waited_store_ns, Ordering::Relaxed);
        self.shared.level.note(Effort {
            waited_ns: waited_source_ns + waited_store_ns,
            busy_ns: lived_ns.saturating_sub(waited_store_ns),
            new_bytes: std::mem::take(&mut self.new_bytes),
        });
    }

    fn chunk(&mut self, id: &ChunkId, bytes: &[u8], same_as_parent: bool, counts: &mut Counts) -> Result<()> {
        counts.chunks += 1;
        if same_as_parent || !self.shared.claims.reserve(id.as_bytes())? {
            counts.reused_bytes += bytes.len() as u64;
            return Ok(());
        }
        counts.new_chunks += 1;
        counts.new_bytes += bytes.len() as u64;
        self.new_bytes += bytes.len() as u64;
        counts.stored_bytes += u64::from(self.store(id, bytes)?);
        Ok(())
    }

    fn store(&mut self, id: &ChunkId, bytes: &[u8]) -> Result<u32> {
        if self.pack.is_none() {
            let waiting = Instant::now();
            self.pack.builder(&self.shared.repo.keys)?;
            self.waited_store_ns += waiting.elapsed().as_nanos() as u64;
        }
        if let Some(level) = self.shared.level.level() {
            self.compressor.set_level(level)?;
        }
        let builder = self.pack.builder(&self.shared.repo.keys)?;
        let stored_bytes = builder.add(id.as_bytes(), bytes, &mut self.compressor);
        if let Some(full) = self.pack.take_full() {
            let _ = self.packs.send(full);
        }
        Ok(stored_bytes)
    }
}
