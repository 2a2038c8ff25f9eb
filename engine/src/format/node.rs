//! Manifest nodes: the leaf is one segment's list of pieces, an inner node has up to 256 children.

use super::bytes::{Reader, put_varint};
use crate::error::{Error, Result};
use crate::id::{ChunkId, NodeId};
use crate::limits::{NODE_FANOUT, SEGMENT_BYTES};

const LEAF: u8 = 0x4c;
const INNER: u8 = 0x49;
/// Highest level of an inner node: 256^5 segments of 4 MiB are far above the largest volume.
pub const LEVEL_MAX: u8 = 5;
/// Upper bound of an encoded node, for readers that allocate: a leaf of 4 KiB pieces.
pub const NODE_BYTES_MAX: usize = 64 << 10;

/// A run of bytes of a segment: zeros, or one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Length in bytes, positive.
    pub len: u32,
    /// The chunk, or `None` for zeros.
    pub chunk: Option<ChunkId>,
}

/// What one segment holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaf {
    /// The pieces in order; their lengths add up to the segment's.
    pub pieces: Vec<Piece>,
}

impl Leaf {
    /// Appends a piece; zeros after zeros are joined, so that the encoding is canonical.
    pub fn push(&mut self, piece: Piece) {
        if let (None, Some(last)) = (piece.chunk, self.pieces.last_mut())
            && last.chunk.is_none()
        {
            last.len += piece.len;
            return;
        }
        self.pieces.push(piece);
    }

    /// Bytes of the segment.
    pub fn segment_bytes(&self) -> u32 {
        self.pieces.iter().map(|p| p.len).sum()
    }

    /// True if there is no data in it; such a leaf is never stored.
    pub fn is_zero(&self) -> bool {
        self.pieces.iter().all(|p| p.chunk.is_none())
    }

    /// The pieces with their offsets in the segment.
    pub fn with_offsets(&self) -> impl Iterator<Item = (u32, Piece)> + '_ {
        self.pieces.iter().scan(0u32, |at, piece| {
            let offset = *at;
            *at += piece.len;
            Some((offset, *piece))
        })
    }

    /// Appends the bytes on disk to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.push(LEAF);
        out.extend_from_slice(&self.segment_bytes().to_le_bytes());
        for piece in &self.pieces {
            put_varint(out, u64::from(piece.len) << 1 | u64::from(piece.chunk.is_some()));
            if let Some(chunk) = &piece.chunk {
                out.extend_from_slice(chunk.as_bytes());
            }
        }
    }

    /// Decodes the leaf of a segment of `segment_bytes`.
    pub fn decode(object: &str, bytes: &[u8], segment_bytes: usize) -> Result<Leaf> {
        let mut reader = Reader::new(object, bytes);
        if reader.u8()? != LEAF {
            return Err(reader.damaged("a manifest leaf expected"));
        }
        let declared = reader.u32()? as usize;
        if declared != segment_bytes || segment_bytes > SEGMENT_BYTES {
            return Err(
                reader.damaged(format_args!("a leaf of {declared} bytes where {segment_bytes} are due"))
            );
        }
        let mut leaf = Leaf::default();
        let mut left = segment_bytes as u64;
        let mut zero_before = false;
        while left > 0 {
            let word = reader.varint()?;
            let len = word >> 1;
            if len == 0 || len > left {
                return Err(
                    reader.damaged(format_args!("a piece of {len} bytes with {left} left in the segment"))
                );
            }
            left -= len;
            let chunk = (word & 1 == 1).then(|| reader.array().map(ChunkId::new)).transpose()?;
            if chunk.is_none() && zero_before {
                return Err(reader.damaged("two runs of zeros after each other"));
            }
            zero_before = chunk.is_none();
            leaf.pieces.push(Piece { len: len as u32, chunk });
        }
        reader.finish()?;
        if leaf.is_zero() {
            return Err(Error::damaged(object, "a stored leaf that is all zero"));
        }
        Ok(leaf)
    }
}

/// A reference to a subtree: `None` where everything below is zero.
pub type NodeRef = Option<NodeId>;

/// Encodes an inner node of `level` with its children.
pub fn encode_inner(level: u8, children: &[NodeRef]) -> Vec<u8> {
    debug_assert!((1..=LEVEL_MAX).contains(&level) && (1..=NODE_FANOUT).contains(&children.len()));
    let mut out = Vec::with_capacity(4 + children.len() * 33);
    out.extend_from_slice(&[INNER, level]);
    out.extend_from_slice(&(children.len() as u16).to_le_bytes());
    for child in children {
        match child {
            None => out.push(0),
            Some(id) => {
                out.push(1);
                out.extend_from_slice(id.as_bytes());
            }
        }
    }
    out
}

/// Decodes an inner node that must be of `level` with `count` children.
pub fn decode_inner(object: &str, bytes: &[u8], level: u8, count: usize) -> Result<Vec<NodeRef>> {
    let mut reader = Reader::new(object, bytes);
    let (tag, found_level, found_count) = (reader.u8()?, reader.u8()?, reader.u16()? as usize);
    if tag != INNER || found_level != level || found_count != count || count > NODE_FANOUT {
        return Err(reader.damaged(format_args!(
            "an inner node of level {level} with {count} children expected, level {found_level} with {found_count} found"
        )));
    }
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        children.push(match reader.u8()? {
            0 => None,
            1 => Some(NodeId::new(reader.array()?)),
            other => return Err(reader.damaged(format_args!("a reference of unknown kind {other}"))),
        });
    }
    reader.finish()?;
    if children.iter().all(Option::is_none) {
        return Err(Error::damaged(object, "a stored node that is all zero"));
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces() -> impl Strategy<Value = Leaf> {
        proptest::collection::vec((1u32..300_000, proptest::option::of(any::<[u8; 32]>())), 1..12).prop_map(
            |list| {
                let mut leaf = Leaf::default();
                for (len, id) in list {
                    leaf.push(Piece { len, chunk: id.map(ChunkId::new) });
                }
                leaf
            },
        )
    }

    proptest! {
        #[test]
        fn leaves_round_trip(leaf in pieces()) {
            let mut bytes = Vec::new();
            leaf.encode_into(&mut bytes);
            let decoded = Leaf::decode("x", &bytes, leaf.segment_bytes() as usize);
            if leaf.is_zero() {
                prop_assert!(decoded.is_err());
            } else {
                prop_assert_eq!(decoded.unwrap(), leaf.clone());
                for keep in 0..bytes.len() {
                    prop_assert!(Leaf::decode("x", &bytes[..keep], leaf.segment_bytes() as usize).is_err());
                }
            }
            prop_assert!(Leaf::decode("x", &bytes, leaf.segment_bytes() as usize + 1).is_err());
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = vec![LEAF];
            framed.extend_from_slice(&4096u32.to_le_bytes());
            framed.extend_from_slice(&bytes);
            if let Ok(leaf) = Leaf::decode("x", &framed, 4096) {
                let mut again = Vec::new();
                leaf.encode_into(&mut again);
                prop_assert_eq!(again, framed);
            }
            let _ = decode_inner("x", &bytes, 1, 3);
        }

        #[test]
        fn inner_nodes_round_trip(level in 1u8..=LEVEL_MAX, ids in proptest::collection::vec(proptest::option::of(any::<[u8; 32]>()), 1..256)) {
            let children: Vec<NodeRef> = ids.into_iter().map(|id| id.map(NodeId::new)).collect();
            let bytes = encode_inner(level, &children);
            let decoded = decode_inner("x", &bytes, level, children.len());
            if children.iter().all(Option::is_none) {
                prop_assert!(decoded.is_err());
            } else {
                prop_assert_eq!(decoded.unwrap(), children);
            }
        }
    }
}
