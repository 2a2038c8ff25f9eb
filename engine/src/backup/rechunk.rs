//! Re-chunks a segment of which only some ranges may have changed, reading as little as gives the result of a full read.
//!
//! Both chunkers decide where a chunk ends from the bytes of that chunk alone, but for one case: a zero block ends the chunk before it. So
//! - pieces of the parent before a change stay, except a data piece that ends where a changed zero run begins;
//! - chunking starts at the piece that holds the change (or at the change itself, inside a run of zeros), and goes on until a new cut falls on a cut of the
//!   parent behind the change: from there on everything is as it was. Usually that is the end of the first piece touched.

use std::ops::Range;

use crate::chunker::{Chunker, PieceKind};
use crate::error::{Error, Result};
use crate::format::node::{Leaf, Piece};
use crate::limits::BLOCK_BYTES;
use crate::manifest::merge_ranges;

/// What is known of the segment.
pub struct Job<'a> {
    /// Its pieces in the parent.
    pub parent: &'a Leaf,
    /// Where it may differ: sorted, apart, on the 4 KiB grid or ending at the segment's end.
    pub changed: &'a [Range<u32>],
    /// What the buffer holds already.
    pub read: &'a [Range<u32>],
    /// Length of the segment.
    pub segment_bytes: u32,
}

/// A piece of the result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// As in the parent; its bytes were not looked at.
    Kept(Piece),
    /// Cut anew; its bytes are in the buffer.
    New(Piece),
}

/// Reads a range of the segment into the same place of the buffer.
pub type ReadMissing<'a> = dyn FnMut(Range<u32>, &mut [u8]) -> Result<()> + 'a;

/// Widens ranges of a segment to the 4 KiB grid and joins those that touch.
pub fn on_grid(ranges: impl IntoIterator<Item = Range<u32>>, segment_bytes: u32) -> Vec<Range<u32>> {
    merge_ranges(
        ranges
            .into_iter()
            .filter(|r| r.start < r.end && r.start < segment_bytes)
            .map(|r| r.start / BLOCK_BYTES as u32 * BLOCK_BYTES as u32..round_up(r.end, segment_bytes)),
    )
}

/// What to read before [`rechunk`] is called: enough in the usual case.
pub fn ranges_to_read(parent: &Leaf, changed: &[Range<u32>], segment_bytes: u32) -> Vec<Range<u32>> {
    let map = ParentMap::new(parent, changed, segment_bytes);
    let wanted = changed.iter().map(|c| map.first_start(c.start)..map.reach(c.end));
    let mut ranges = Vec::new();
    for range in merge_ranges(wanted) {
        map.each_unknown(range, &mut |unknown| ranges.push(unknown));
    }
    merge_ranges(ranges)
}

/// Appends the pieces of the whole segment to `out`.
pub fn rechunk(
    chunker: &mut Chunker,
    job: Job<'_>,
    buf: &mut [u8],
    read_missing: &mut ReadMissing<'_>,
    out: &mut Vec<Cut>,
) -> Result<()> {
    let map = ParentMap::new(job.parent, job.changed, job.segment_bytes);
    let mut held = Held { ranges: on_grid(job.read.iter().cloned(), job.segment_bytes) };
    let mut pos = 0;
    while pos < job.segment_bytes {
        let Some(change) = job.changed.iter().find(|c| c.end > pos) else {
            map.keep(pos..job.segment_bytes, out);
            break;
        };
        let start = map.first_start(change.start).max(pos);
        map.keep(pos..start, out);
        pos = chunk_until_synced(chunker, &map, &mut held, (start, change.end), buf, read_missing, out)?;
    }
    Ok(())
}

/// Chunks from `start` past the change that ends at `change_end`, until the parent's cuts are met again; returns where.
fn chunk_until_synced(
    chunker: &mut Chunker,
    map: &ParentMap<'_>,
    held: &mut Held,
    (mut start, change_end): (u32, u32),
    buf: &mut [u8],
    read_missing: &mut ReadMissing<'_>,
    out: &mut Vec<Cut>,
) -> Result<u32> {
    let mut end = map.reach(change_end);
    let mut cuts: Vec<(u32, Piece, bool)> = Vec::new();
    loop {
        for change in map.changed.iter().filter(|c| c.start >= start) {
            if change.start <= end {
                end = end.max(map.reach(change.end));
            }
        }
        held.fill(map, start..end, buf, read_missing)?;
        cuts.clear();
        chunker.for_each(&buf[start as usize..end as usize], start, |piece| {
            let len = piece.bytes.len() as u32;
            let (chunk, natural) = match piece.kind {
                PieceKind::Zero => (None, true),
                PieceKind::Data { id, natural_end } => (Some(id), natural_end),
            };
            cuts.push((piece.offset + len, Piece { len, chunk }, natural));
            Ok::<(), Error>(())
        })?;
        let last = cuts.len().saturating_sub(1);
        let settled = |n: usize, at: u32, natural: bool| {
            n < last || natural || at == map.segment_bytes || map.is_known_zero(at)
        };
        let synced = cuts.iter().enumerate().position(|(n, &(at, _, natural))| {
            at >= change_end && !map.inside_change(at) && map.is_cut(at) && settled(n, at, natural)
        });
        if let Some(n) = synced {
            out.extend(cuts[..=n].iter().map(|(_, piece, _)| Cut::New(*piece)));
            return Ok(cuts[n].0);
        }
        // Not yet: all but the last piece stand; that one is cut again with the parent's next piece behind it.
        out.extend(cuts[..last].iter().map(|(_, piece, _)| Cut::New(*piece)));
        if last > 0 {
            start = cuts[last - 1].0;
        }
        end = map.next_reach(end);
    }
}

fn round_up(offset: u32, segment_bytes: u32) -> u32 {
    offset.next_multiple_of(BLOCK_BYTES as u32).min(segment_bytes)
}

/// The parent's pieces by offset, and what may have changed under them.
struct ParentMap<'a> {
    pieces: Vec<(u32, Piece)>,
    changed: &'a [Range<u32>],
    segment_bytes: u32,
}

impl<'a> ParentMap<'a> {
    fn new(parent: &Leaf, changed: &'a [Range<u32>], segment_bytes: u32) -> Self {
        Self { pieces: parent.with_offsets().collect(), changed, segment_bytes }
    }

    /// Index of the piece that holds the byte at `offset` (of the last piece at the segment's end).
    fn index_at(&self, offset: u32) -> usize {
        self.pieces.partition_point(|(start, _)| *start <= offset).saturating_sub(1)
    }

    fn piece_at(&self, offset: u32) -> (u32, Piece) {
        self.pieces[self.index_at(offset)]
    }

    fn is_changed(&self, offset: u32) -> bool {
        self.changed.iter().any(|c| c.contains(&offset))
    }

    fn inside_change(&self, offset: u32) -> bool {
        self.changed.iter().any(|c| c.start < offset && offset < c.end)
    }

    /// Zero in the parent, and unchanged.
    fn is_known_zero(&self, offset: u32) -> bool {
        offset < self.segment_bytes && self.piece_at(offset).1.chunk.is_none() && !self.is_changed(offset)
    }

    /// True where the parent's pieces can be taken over from: a piece begins there, or a known run of zeros goes on.
    fn is_cut(&self, offset: u32) -> bool {
        offset == self.segment_bytes || self.piece_at(offset).0 == offset || self.is_known_zero(offset)
    }

    /// Where chunking must start for a change at `offset`.
    fn first_start(&self, offset: u32) -> u32 {
        let index = self.index_at(offset);
        let (start, piece) = self.pieces[index];
        if piece.chunk.is_some() {
            return start;
        }
        match index.checked_sub(1).map(|before| self.pieces[before]) {
            // Its end was decided by the zeros that may be gone.
            Some((before, piece)) if start == offset && piece.chunk.is_some() => before,
            _ => offset,
        }
    }

    /// Where the first attempt for a change that ends at `offset` ends: behind the piece that holds its last byte.
    fn reach(&self, offset: u32) -> u32 {
        let (start, piece) = self.piece_at(offset - 1);
        if piece.chunk.is_none() { offset } else { round_up(start + piece.len, self.segment_bytes) }
    }

    /// One more piece of the parent behind `end`.
    fn next_reach(&self, end: u32) -> u32 {
        let (start, piece) = self.piece_at(end);
        round_up(start + piece.len, self.segment_bytes)
    }

    /// Appends the parent's pieces in `range`, whose ends are cuts.
    fn keep(&self, range: Range<u32>, out: &mut Vec<Cut>) {
        let mut at = range.start;
        while at < range.end {
            let (start, piece) = self.piece_at(at);
            let end = (start + piece.len).min(range.end);
            debug_assert!(piece.chunk.is_none() || (start == at && end == start + piece.len));
            out.push(Cut::Kept(Piece { len: end - at, chunk: piece.chunk }));
            at = end;
        }
    }

    /// Calls `each` with the parts of `range` that are not known to be zero.
    fn each_unknown(&self, range: Range<u32>, each: &mut dyn FnMut(Range<u32>)) {
        let mut at = range.start;
        while at < range.end {
            let (start, piece) = self.piece_at(at);
            let end = (start + piece.len).min(range.end);
            if piece.chunk.is_some() {
                each(at..end);
            } else {
                for change in self.changed {
                    let part = change.start.max(at)..change.end.min(end);
                    if part.start < part.end {
                        each(part);
                    }
                }
            }
            at = end;
        }
    }
}

/// Which parts of the buffer are true.
struct Held {
    ranges: Vec<Range<u32>>,
}

impl Held {
    /// Makes `range` true: zeros where zeros are known, reads what is missing.
    fn fill(
        &mut self,
        map: &ParentMap<'_>,
        range: Range<u32>,
        buf: &mut [u8],
        read_missing: &mut ReadMissing<'_>,
    ) -> Result<()> {
        let mut missing = Vec::new();
        let mut at = range.start;
        for held in self.ranges.iter().filter(|h| h.end > range.start && h.start < range.end) {
            if held.start > at {
                missing.push(at..held.start);
            }
            at = at.max(held.end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        for gap in missing {
            // Zeros first, then the reads over them: what is read is the truth.
            buf[gap.start as usize..gap.end as usize].fill(0);
            let mut unknown = Vec::new();
            map.each_unknown(gap, &mut |part| unknown.push(part));
            for part in merge_ranges(unknown) {
                read_missing(part, buf)?;
            }
        }
        self.ranges.push(range);
        self.ranges.sort_unstable_by_key(|r| r.start);
        self.ranges = merge_ranges(std::mem::take(&mut self.ranges));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunker::{ChunkKeys, ChunkParams, ChunkerKind};
    use proptest::prelude::*;

    fn chunker(kind: ChunkerKind) -> Chunker {
        let keys = ChunkKeys { block_key: [1; 32], chunk_key: [2; 32], cut_seed: 3 };
        Chunker::new(ChunkParams::new(kind, 16 << 10).unwrap(), &keys)
    }

    fn full(chunker: &mut Chunker, data: &[u8]) -> Leaf {
        let mut leaf = Leaf::default();
        chunker
            .for_each(data, 0, |piece| {
                let chunk = match piece.kind {
                    PieceKind::Zero => None,
                    PieceKind::Data { id, .. } => Some(id),
                };
                leaf.push(Piece { len: piece.bytes.len() as u32, chunk });
                Ok::<(), Error>(())
            })
            .unwrap();
        leaf
    }

    fn fill(data: &mut [u8], kind: u8, seed: u64) {
        match kind {
            0 => data.fill(0),
            1 => data.fill(seed as u8 | 1),
            _ => blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(data),
        }
    }

    /// Runs and noise in blocks and parts of blocks.
    fn contents(len: usize, parts: &[(u16, u8, u64)]) -> Vec<u8> {
        let mut data = vec![0; len];
        let mut at = 0;
        for &(size, kind, seed) in parts {
            let size = if seed % 3 == 0 { usize::from(size) } else { usize::from(size) / 4096 * 4096 };
            let end = (at + size).min(len);
            fill(&mut data[at..end], kind, seed);
            at = end;
        }
        fill(&mut data[at..], 2, 99);
        data
    }

    fn check(kind: ChunkerKind, before: &[u8], after: &[u8], edits: &[Range<u32>]) -> u32 {
        let len = before.len() as u32;
        let mut chunker = chunker(kind);
        let parent = full(&mut chunker, before);
        let expected = full(&mut chunker, after);
        let mut sorted = edits.to_vec();
        sorted.sort_by_key(|r| r.start);
        let changed = on_grid(sorted, len);
        let read = ranges_to_read(&parent, &changed, len);
        let mut buf = vec![0xa5; before.len().next_multiple_of(4096)];
        let mut padded = after.to_vec();
        padded.resize(buf.len(), 0);
        let mut read_bytes = 0;
        let mut copy = |range: Range<u32>, buf: &mut [u8]| {
            let start = range.start as usize / 4096 * 4096;
            let end = (range.end as usize).next_multiple_of(4096);
            read_bytes += (end - start) as u32;
            buf[start..end].copy_from_slice(&padded[start..end]);
            Ok(())
        };
        for range in &read {
            copy(range.clone(), &mut buf).unwrap();
        }
        let mut cuts = Vec::new();
        let job = Job { parent: &parent, changed: &changed, read: &read, segment_bytes: len };
        rechunk(&mut chunker, job, &mut buf, &mut copy, &mut cuts).unwrap();
        let mut leaf = Leaf::default();
        let mut at = 0usize;
        for cut in cuts {
            let (piece, new) = match cut {
                Cut::Kept(piece) => (piece, false),
                Cut::New(piece) => (piece, true),
            };
            let end = at + piece.len as usize;
            if new {
                assert!(buf[at..end] == after[at..end], "a new piece's bytes are in the buffer");
            }
            at = end;
            leaf.push(piece);
        }
        assert_eq!(leaf, expected);
        read_bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn equals_a_full_read(
            len in prop_oneof![Just(1usize << 20), 1usize..400_000],
            parts in proptest::collection::vec((any::<u16>(), 0u8..3, any::<u64>()), 1..24),
            edits in proptest::collection::vec((any::<u32>(), 1u32..60_000, 0u8..4, any::<u64>()), 0..6),
            fastcdc: bool,
        ) {
            let before = contents(len, &parts);
            let mut after = before.clone();
            let mut ranges = Vec::new();
            for (at, size, kind, seed) in edits {
                let start = at as usize % len;
                let (start, end) = if seed % 2 == 0 {
                    let start = start / 4096 * 4096;
                    (start, (start + size as usize).next_multiple_of(4096).min(len))
                } else {
                    (start, (start + size as usize).min(len))
                };
                if kind < 3 { // kind 3: said to be changed, but it is not
                    fill(&mut after[start..end], kind, seed);
                }
                ranges.push(start as u32..end as u32);
            }
            check(if fastcdc { ChunkerKind::FastCdc } else { ChunkerKind::Block }, &before, &after, &ranges);
        }
    }

    #[test]
    fn a_small_change_reads_about_one_chunk() {
        let mut before = vec![0; 4 << 20];
        fill(&mut before, 2, 1);
        let mut after = before.clone();
        after[1_000_000] ^= 1;
        let changed = 1_000_000..1_000_001;
        let read_bytes = check(ChunkerKind::Block, &before, &after, std::slice::from_ref(&changed));
        assert!(read_bytes <= 2 * (64 << 10), "{read_bytes} bytes read for one that changed");
        assert_eq!(check(ChunkerKind::Block, &before, &before, &[]), 0);
    }
}
