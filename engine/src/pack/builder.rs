//! Fills one pack: compress → seal → table of contents, all in the buffer that will be written.

use crate::compress::Compressor;
use crate::crypto::{ObjectKey, RepoKeys, seal::NO_CONTEXT};
use crate::error::Result;
use crate::format::header::{HEADER_BYTES, Header, ObjectKind, TAG_BYTES, TRAILER_BYTES, Trailer};
use crate::format::index_segment::PackRef;
use crate::format::pack::{FRAME_OVERHEAD_BYTES, TOC_ROW_BYTES, TocRow, encode_toc};
use crate::id::ObjectId;
use crate::io::PooledBuf;

/// Frames of a pack at most: bounds the table of contents when frames are tiny.
const FRAMES_MAX: usize = 32_768;

/// Buffer a builder needs so that the last frame and the table of contents always fit behind `pack_bytes`.
pub const fn pack_buffer_bytes(pack_bytes: usize, raw_bytes_max: usize) -> usize {
    let room = HEADER_BYTES + TRAILER_BYTES + TAG_BYTES + FRAME_OVERHEAD_BYTES;
    (pack_bytes + raw_bytes_max + FRAMES_MAX * TOC_ROW_BYTES + room).next_multiple_of(4096)
}

/// A pack being filled by one thread.
pub struct PackBuilder {
    buf: PooledBuf,
    header: Header,
    key: ObjectKey,
    rows: Vec<TocRow>,
    end: usize,
    pack_bytes: usize,
}

/// A pack ready to be stored.
pub struct FinishedPack {
    /// Its name, salt, length and kind.
    pub pack: PackRef,
    /// Its table of contents.
    pub rows: Vec<TocRow>,
    /// The bytes…
    pub buf: PooledBuf,
    /// …of which this many are the object.
    pub len: usize,
}

impl PackBuilder {
    /// Begins a pack in `buf`, which must have [`pack_buffer_bytes`].
    pub fn start(keys: &RepoKeys, kind: ObjectKind, mut buf: PooledBuf, pack_bytes: usize) -> Result<Self> {
        let (header, key) = keys.new_object(kind, *ObjectId::random()?.as_bytes())?;
        buf[..HEADER_BYTES].copy_from_slice(&header.encode());
        Ok(Self { buf, header, key, rows: Vec::new(), end: HEADER_BYTES, pack_bytes })
    }

    /// Adds a content and returns the length of its frame.
    pub fn add(&mut self, id: &[u8; 32], raw: &[u8], compressor: &mut Compressor) -> u32 {
        let start = self.end;
        let payload_start = start + 1;
        let (codec, payload_bytes) =
            compressor.compress(raw, &mut self.buf[payload_start..payload_start + raw.len()]);
        self.buf[start] = codec as u8;
        self.seal_frame(id, payload_start + payload_bytes, raw.len() as u32)
    }

    /// Adds a content as the frame `codec ‖ payload` that another pack had it in, and returns the length of the new one. `frame` must not be longer than the content
    /// stored raw: one byte more than `raw_bytes`.
    pub fn add_encoded(&mut self, id: &[u8; 32], frame: &[u8], raw_bytes: u32) -> u32 {
        debug_assert!(frame.len() <= raw_bytes as usize + 1);
        let end = self.end + frame.len();
        self.buf[self.end..end].copy_from_slice(frame);
        self.seal_frame(id, end, raw_bytes)
    }

    /// Seals the frame that stands from the end of the pack to `plain_end`.
    fn seal_frame(&mut self, id: &[u8; 32], plain_end: usize, raw_bytes: u32) -> u32 {
        let (start, end) = (self.end, plain_end + TAG_BYTES);
        self.key.seal(start as u64, id, &mut self.buf[start..end]);
        let stored_bytes = (end - start) as u32;
        self.rows.push(TocRow { id: *id, offset: start as u32, stored_bytes, raw_bytes });
        self.end = end;
        stored_bytes
    }

    /// True if the pack should be finished before the next frame.
    pub fn is_full(&self) -> bool {
        self.end >= self.pack_bytes || self.rows.len() >= FRAMES_MAX
    }

    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Seals the table of contents and closes the pack.
    pub fn finish(mut self) -> FinishedPack {
        let toc = encode_toc(&self.rows);
        let tail_offset = self.end;
        let tail_end = tail_offset + toc.len() + TAG_BYTES;
        self.buf[tail_offset..tail_offset + toc.len()].copy_from_slice(&toc);
        self.key.seal(tail_offset as u64, &NO_CONTEXT, &mut self.buf[tail_offset..tail_end]);
        let trailer = Trailer {
            tail_offset: tail_offset as u64,
            tail_stored_bytes: (tail_end - tail_offset) as u32,
            count: self.rows.len() as u32,
        };
        let len = tail_end + TRAILER_BYTES;
        self.buf[tail_end..len].copy_from_slice(&trailer.encode(&self.header.id));
        let pack = PackRef {
            id: ObjectId::new(self.header.id),
            salt: self.header.salt,
            bytes: len as u32,
            kind: self.header.kind,
        };
        FinishedPack { pack, rows: self.rows, buf: self.buf, len }
    }
}
