//! Where the bytes of a segment come from, for jobs and for the few extra bytes that re-chunking asks for.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{ParentLeaf, Shared};
use crate::error::{Error, Result};
use crate::io::{OpenFile, RangeSource};
use crate::limits::IO_ALIGN;
use crate::pack::FrameReader;
use crate::source::Source;
use crate::store::Span;

/// Where a volume with a size is read from.
#[derive(Clone)]
pub enum Origin {
    /// A descriptor.
    File(Arc<OpenFile>),
    /// Requests.
    Ranges(Arc<dyn RangeSource>),
}

impl Origin {
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
/// money: there it is taken from the parent's chunks in the repository.
#[derive(Default)]
pub struct Unchanged {
    frames: Option<FrameReader>,
    stored: Vec<u8>,
    raw: Vec<u8>,
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
            Some(Origin::Ranges(_)) => self.read_parent(shared, parent, range, buf).map(|()| 0),
        }
    }

    fn read_parent(
        &mut self,
        shared: &Shared,
        parent: &ParentLeaf,
        range: Range<u32>,
        buf: &mut [u8],
    ) -> Result<()> {
        for (start, piece) in parent.leaf.with_offsets() {
            let (from, to) = (start.max(range.start), (start + piece.len).min(range.end));
            if from >= to {
                continue;
            }
            let place = &mut buf[from as usize..to as usize];
            let Some(id) = &piece.chunk else {
                place.fill(0);
                continue;
            };
            let at = shared.claims.index().find(id.as_bytes())?.ok_or_else(|| Error::Missing {
                object: format!("chunk {id}"),
                needed_by: "the recovery point that this backup is compared with".into(),
            })?;
            let key = at.pack_key();
            let span = Span::At { offset: at.offset.into(), len: at.stored_bytes as usize };
            if shared.repo.store.get(&key, span, &mut self.stored)?.is_none() {
                return Err(Error::Missing { object: key, needed_by: "the index".into() });
            }
            self.raw.resize(piece.len as usize, 0);
            let frames = match &mut self.frames {
                Some(frames) => frames,
                slot => slot.insert(FrameReader::new()?),
            };
            frames.read(&shared.repo.keys, &at, id.as_bytes(), &self.stored, &mut self.raw)?;
            place.copy_from_slice(&self.raw[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
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
