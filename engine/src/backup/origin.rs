//! Where the bytes of a segment come from, for jobs and for the few extra bytes that re-chunking asks for.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{ParentLeaf, SegmentTag, Shared};
use crate::error::{Error, Result};
use crate::format::node::Leaf;
use crate::id::ChunkId;
use crate::io::{Fetched, OpenFile, RangeSource};
use crate::limits::IO_ALIGN;
use crate::manifest::merge_ranges;
use crate::pack::ChunkReader;
use crate::source::Source;

/// Where a volume with a size is read from.
#[derive(Clone)]
pub enum Origin {
    /// A descriptor.
    File(Arc<OpenFile>),
    /// Requests.
    Ranges(Arc<dyn RangeSource>),
}

impl Origin {
    /// What is read, for messages.
    pub fn name(&self) -> &str {
        match self {
            Self::File(file) => &file.name,
            Self::Ranges(source) => source.name(),
        }
    }

    /// How `source` is read.
    pub fn of(source: &dyn Source) -> Result<Self> {
        match (source.file(), source.ranges()) {
            (Some(file), _) => Ok(Self::File(file)),
            (None, Some(ranges)) => Ok(Self::Ranges(ranges)),
            (None, None) => {
                let what = format!("internal error: {} has a size but cannot be read", source.name());
                Err(Error::Invalid { what })
            }
        }
    }
}

/// Gets what re-chunking needs beyond what was planned; none of it changed since the parent.
///
/// From a descriptor it is read: rare and small, so it is a plain blocking read. Behind an API a request would bring half a MiB for a few KiB, and cost
/// money: there it is taken from the parent's chunks in the repository, unless those are archived.
#[derive(Default)]
pub struct Unchanged {
    chunks: Chunks,
}

impl Unchanged {
    /// Puts `range` of the segment at `offset_bytes` into the same place of `buf`. Returns the bytes read from the source.
    pub fn read(
        &mut self,
        shared: &Shared,
        origin: Option<&Origin>,
        offset_bytes: u64,
        parent: &ParentLeaf,
        range: Range<u32>,
        buf: &mut [u8],
    ) -> Result<u64> {
        match origin {
            None => Err(Error::Invalid { what: "a stream cannot be read again".into() }),
            Some(Origin::File(file)) => read_file(file, offset_bytes, range, buf),
            Some(Origin::Ranges(source)) => match self.read_parent(shared, parent, range.clone(), buf) {
                Err(Error::Archived { .. }) => read_ranges(source.as_ref(), offset_bytes, range, buf),
                other => other.map(|()| 0),
            },
        }
    }

    fn read_parent(
        &mut self,
        shared: &Shared,
        parent: &ParentLeaf,
        range: Range<u32>,
        buf: &mut [u8],
    ) -> Result<()> {
        buf[range.start as usize..range.end as usize].fill(0);
        for kept in kept_parts(&parent.leaf, range) {
            let bytes = self.chunks.read(shared, &kept)?;
            buf[kept.place as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }
}

/// As [`read_file`], of a source behind an API.
fn read_ranges(
    source: &dyn RangeSource,
    offset_bytes: u64,
    range: Range<u32>,
    buf: &mut [u8],
) -> Result<u64> {
    let fetched = source.fetch(offset_bytes, std::slice::from_ref(&range))?;
    buf[range.start as usize..range.end as usize].fill(0);
    let mut read_bytes = 0;
    for (place, bytes) in fetched.parts {
        read_bytes += bytes.len() as u64;
        let (from, to) = (place.max(range.start), place.saturating_add(bytes.len() as u32).min(range.end));
        if from < to {
            let part = &bytes[(from - place) as usize..(to - place) as usize];
            buf[from as usize..to as usize].copy_from_slice(part);
        }
    }
    Ok(read_bytes)
}

/// A part of a chunk of the parent.
struct Kept {
    id: ChunkId,
    chunk_bytes: u32,
    /// Within the chunk.
    part: Range<u32>,
    /// Where the part belongs in the segment.
    place: u32,
}

/// The parts of the leaf's chunks in a range of its segment; zeros are left out.
fn kept_parts(leaf: &Leaf, range: Range<u32>) -> impl Iterator<Item = Kept> + '_ {
    leaf.with_offsets().filter_map(move |(start, piece)| {
        let (from, to) = (start.max(range.start), (start + piece.len).min(range.end));
        let id = piece.chunk.filter(|_| from < to)?;
        Some(Kept { id, chunk_bytes: piece.len, part: from - start..to - start, place: from })
    })
}

/// Reads chunks of the parent.
#[derive(Default)]
struct Chunks {
    reader: Option<ChunkReader>,
    raw: Vec<u8>,
}

impl Chunks {
    fn read(&mut self, shared: &Shared, kept: &Kept) -> Result<&[u8]> {
        let id = kept.id.as_bytes();
        let at = shared.claims.index().locate(id, "the recovery point that this backup is compared with")?;
        let key = at.pack_key();
        // Once one pack is archived others are, too: no request for each of them.
        if shared.archived.load(Ordering::Relaxed) {
            return Err(Error::Archived { object: key });
        }
        if at.raw_bytes != kept.chunk_bytes {
            let what = format_args!("chunk {} is {} bytes long there", kept.id, at.raw_bytes);
            return Err(Error::damaged(key, what));
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            slot => {
                let (store, keys) = (shared.repo.store.clone(), shared.repo.keys.clone());
                slot.insert(ChunkReader::new(store, keys, shared.chunk_params)?)
            }
        };
        let fetched = reader.fetch(&at, id, &mut self.raw);
        if matches!(fetched, Err(Error::Archived { .. })) {
            shared.archived.store(true, Ordering::Relaxed);
        }
        fetched?;
        Ok(&self.raw[kept.part.start as usize..kept.part.end as usize])
    }
}

/// A source behind an API with the parent's chunks beside it: the job of one segment. Both are waited for in a fetcher, of which there are many, so that
/// workers never wait for a store that is far away.
pub struct Beside {
    source: Arc<dyn RangeSource>,
    shared: Arc<Shared>,
    /// To be fetched from the source.
    changed: Vec<Range<u32>>,
    /// To be taken from the repository.
    kept: Vec<Kept>,
}

impl Beside {
    /// What a fetcher asks for `ranges` of the segment.
    pub fn the_source(
        source: Arc<dyn RangeSource>,
        shared: &Arc<Shared>,
        tag: &SegmentTag,
        ranges: &[Range<u32>],
    ) -> Arc<dyn RangeSource> {
        let (Some(parent), Some(changed)) = (&tag.parent, &tag.changed) else { return source };
        let unchanged = without(ranges, changed);
        let kept: Vec<Kept> =
            unchanged.into_iter().flat_map(|range| kept_parts(&parent.leaf, range)).collect();
        Arc::new(Self { source, shared: shared.clone(), changed: changed.clone(), kept })
    }
}

impl RangeSource for Beside {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn parallel(&self) -> usize {
        self.source.parallel()
    }

    fn fetch(&self, offset_bytes: u64, _: &[Range<u32>]) -> Result<Fetched> {
        let mut kept = Vec::with_capacity(self.kept.len());
        let mut changed = self.changed.clone();
        let mut chunks = Chunks::default();
        for part in &self.kept {
            match chunks.read(&self.shared, part) {
                Ok(bytes) => kept.push((part.place, Bytes::copy_from_slice(bytes))),
                // To thaw a pack for it would take hours.
                Err(Error::Archived { .. }) => {
                    changed.push(part.place..part.place + (part.part.end - part.part.start));
                }
                Err(error) => return Err(error),
            }
        }
        changed.sort_unstable_by_key(|range| range.start);
        let fetched = self.source.fetch(offset_bytes, &merge_ranges(changed))?;
        Ok(Fetched { kept, ..fetched })
    }
}

/// What of `ranges` is in none of `others`; both are sorted, and each range apart from the next.
fn without(ranges: &[Range<u32>], others: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut left = Vec::new();
    for range in ranges {
        let mut at = range.start;
        for other in others.iter().filter(|o| o.end > range.start && o.start < range.end) {
            if other.start > at {
                left.push(at..other.start);
            }
            at = at.max(other.end);
        }
        if at < range.end {
            left.push(at..range.end);
        }
    }
    left
}

fn read_file(file: &OpenFile, offset_bytes: u64, range: Range<u32>, buf: &mut [u8]) -> Result<u64> {
    let start = (range.start as usize) / IO_ALIGN * IO_ALIGN;
    let end = (range.end as usize).next_multiple_of(IO_ALIGN).min(buf.len());
    let mut at = start;
    while at < end {
        let position = offset_bytes + at as u64;
        match file.file.read_at(&mut buf[at..end], position) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", format_args!("{} at byte {position}", file.name))(e)),
        }
    }
    if offset_bytes + (at as u64) < file.size_bytes && at < range.end as usize {
        return Err(Error::io("read", &file.name)(std::io::Error::other(
            "it became shorter while it was read",
        )));
    }
    Ok((at - start) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::Piece;

    #[test]
    fn what_is_left_of_ranges() {
        let left = |ranges: &[Range<u32>], others: &[Range<u32>]| without(ranges, others);
        assert_eq!(left(&[0..10, 20..30], &[2..4, 8..22]), [0..2, 4..8, 22..30]);
        assert_eq!(left(&[5..6, 8..9], &[0..10, 12..13]), []);
        assert_eq!(left(&[5..6, 8..9], &[]), [5..6, 8..9]);
    }

    #[test]
    fn parts_of_chunks_in_a_range() {
        let chunk = |byte| Some(ChunkId::new([byte; 32]));
        let pieces = [(100, chunk(1)), (50, None), (100, chunk(2))];
        let mut leaf = Leaf::default();
        pieces.into_iter().for_each(|(len, chunk)| leaf.push(Piece { len, chunk }));
        let kept: Vec<_> = kept_parts(&leaf, 90..160).map(|k| (k.part, k.place, k.chunk_bytes)).collect();
        assert_eq!(kept, [(90..100, 90, 100), (0..10, 150, 100)]);
    }
}
