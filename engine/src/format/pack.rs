//! Table of contents of a pack: one 44-byte row per frame, without gaps from the header on.

use super::bytes::Reader;
use super::header::{HEADER_BYTES, TAG_BYTES};
use crate::error::Result;
use crate::limits::PACK_BYTES_MAX;

/// Bytes of a row.
pub const TOC_ROW_BYTES: usize = 44;
/// Codec byte and tag: what a stored frame has over its payload.
pub const FRAME_OVERHEAD_BYTES: usize = 1 + TAG_BYTES;

/// How a frame's payload is stored; the numbers are on disk and append-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// One frame: which content, where in the pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TocRow {
    /// ChunkId or NodeId.
    pub id: [u8; 32],
    /// Where the frame begins.
    pub offset: u32,
    /// Its length, codec byte and tag included.
    pub stored_bytes: u32,
    /// Length of the content.
    pub raw_bytes: u32,
}

/// Encodes the rows.
pub fn encode_toc(rows: &[TocRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * TOC_ROW_BYTES);
    for row in rows {
        out.extend_from_slice(&row.id);
        out.extend_from_slice(&row.offset.to_le_bytes());
        out.extend_from_slice(&row.stored_bytes.to_le_bytes());
        out.extend_from_slice(&row.raw_bytes.to_le_bytes());
    }
    out
}

/// Decodes `count` rows that must cover the pack from its header to `tail_offset`.
pub fn decode_toc(object: &str, bytes: &[u8], count: u32, tail_offset: u64) -> Result<Vec<TocRow>> {
    let mut reader = Reader::new(object, bytes);
    if bytes.len() != count as usize * TOC_ROW_BYTES {
        return Err(
            reader.damaged(format_args!("a table of contents of {count} rows in {} bytes", bytes.len()))
        );
    }
    let mut rows = Vec::with_capacity(count as usize);
    let mut next_offset = HEADER_BYTES as u64;
    for _ in 0..count {
        let row = TocRow {
            id: reader.array()?,
            offset: reader.u32()?,
            stored_bytes: reader.u32()?,
            raw_bytes: reader.u32()?,
        };
        if u64::from(row.offset) != next_offset {
            return Err(reader.damaged("frames with a gap or an overlap between them"));
        }
        if row.stored_bytes < FRAME_OVERHEAD_BYTES as u32 || row.raw_bytes > PACK_BYTES_MAX {
            return Err(reader.damaged("a frame of impossible length"));
        }
        next_offset += u64::from(row.stored_bytes);
        rows.push(row);
    }
    if next_offset != tail_offset {
        return Err(reader.damaged("frames that do not end where the table of contents begins"));
    }
    reader.finish()?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_must_tile_the_pack() {
        let rows = [
            TocRow { id: [1; 32], offset: 96, stored_bytes: 100, raw_bytes: 4096 },
            TocRow { id: [2; 32], offset: 196, stored_bytes: 17, raw_bytes: 0 },
        ];
        let bytes = encode_toc(&rows);
        assert_eq!(decode_toc("x", &bytes, 2, 213).unwrap(), rows);
        assert!(decode_toc("x", &bytes, 2, 214).is_err());
        assert!(decode_toc("x", &bytes, 1, 213).is_err());
        assert!(decode_toc("x", &bytes[..87], 2, 213).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(bytes in proptest::collection::vec(any::<u8>(), 0..400), count: u32, tail: u64) {
            let _ = decode_toc("x", &bytes, count, tail);
        }
    }
}
