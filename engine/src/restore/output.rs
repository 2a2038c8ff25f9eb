//! Where decoded segments go.

use std::ops::Range;

use super::segment::SegmentWork;
use crate::chunker::Chunker;
use crate::error::{Error, Result};
use crate::id::SegmentNo;
use crate::io::PooledBuf;

/// Deferred chunks that lie decoded in one buffer.
#[derive(Default)]
pub struct DeferredWrites {
    /// Ranges of the buffer, and where in the volume each is written.
    pub parts: Vec<(Range<u32>, u64)>,
    /// The segment of each part.
    pub segments: Vec<SegmentNo>,
    /// Ranges of the volume that would have been written with them, and cannot be.
    pub lost: Vec<Range<u64>>,
}

impl DeferredWrites {
    /// Adds a part. Chunks of a file that was new one night lie side by side in the pack as in the volume: they
    /// become one write.
    pub fn push(&mut self, part: Range<u32>, to: u64) {
        self.segments.push(SegmentNo::containing(to));
        match self.parts.last_mut() {
            Some((range, at))
                if range.end == part.start && *at + u64::from(range.end - range.start) == to =>
            {
                range.end = part.end;
            }
            _ => self.parts.push((part, to)),
        }
    }
}

/// The decoders' end: a target, a stream or a sink of blocks.
pub trait SegmentOutput: Send + Sync {
    /// Makes zero what no chunk fills of the buffer in which a segment is put together.
    fn clear(&self, work: &SegmentWork, buf: &mut [u8]);

    /// A chunk of the segment cannot be read: sees to what takes its place, and returns what of the segment is not
    /// right for that.
    fn leave_out(&self, work: &mut SegmentWork, lost: &Range<u32>, buf: &mut [u8])
    -> Result<Vec<Range<u32>>>;

    /// Takes a segment. `old` has its chunks of the old state.
    fn put(&self, work: SegmentWork, buf: PooledBuf, old: &[u8], chunker: &mut Chunker) -> Result<()>;

    /// Takes deferred chunks. Only targets have some.
    fn put_deferred(&self, _writes: DeferredWrites, _buf: PooledBuf) -> Result<()> {
        Err(Error::Invalid { what: "internal error: chunks were deferred for a stream".into() })
    }
}
