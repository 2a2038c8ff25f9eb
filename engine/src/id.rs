//! Newtypes for ids and positions. Mixing a chunk id with a node id, or a segment number with a byte offset, does not compile.

use std::fmt;

use crate::error::{Error, Result};

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const BYTES: usize = $len;

            /// From raw bytes.
            pub const fn new(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// From lower-case hex of the exact length: an id has one name, and names are in no other case.
            pub fn from_hex(text: &str) -> Option<Self> {
                if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return None;
                }
                let mut bytes = [0u8; $len];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

bytes_id!(
    /// Keyed BLAKE3 over the block hashes of a chunk: equal ids mean equal contents within one repository.
    ChunkId,
    32
);
bytes_id!(
    /// Keyed BLAKE3 over the encoded manifest node.
    NodeId,
    32
);
bytes_id!(
    /// Random name of a pack, index segment or key object.
    ObjectId,
    16
);
bytes_id!(
    /// Time-ordered name of a recovery point: 48 bits of Unix milliseconds, then random bits.
    PointId,
    16
);

impl ObjectId {
    /// A fresh random id.
    pub fn random() -> Result<Self> {
        Ok(Self(random_bytes()?))
    }

    /// A fresh id that sorts by time, for index segments: the newest is asked first.
    pub fn at(unix_ms: u64) -> Result<Self> {
        Ok(Self(*PointId::at(unix_ms)?.as_bytes()))
    }

    /// The time that an id made by [`at`](Self::at) begins with.
    pub fn unix_ms(&self) -> u64 {
        self.0[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte))
    }
}

impl PointId {
    /// A fresh id for a recovery point taken at `unix_ms`. Ids sort by time.
    pub fn at(unix_ms: u64) -> Result<Self> {
        let mut bytes: [u8; 16] = random_bytes()?;
        bytes[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
        Ok(Self(bytes))
    }

    /// The time that the id begins with, in milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.0[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte))
    }
}

/// Random bytes from the operating system, for ids, salts and keys.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    if crate::simulation::random(&mut bytes) {
        return Ok(bytes);
    }
    getrandom::fill(&mut bytes).map_err(|e| Error::Io {
        action: "read",
        object: "the system's random source".into(),
        source: std::io::Error::other(e.to_string()),
    })?;
    Ok(bytes)
}

/// Number of a 4 MiB segment within its volume.
#[derive(Clone, Default, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// Byte offset of the segment's first byte in the volume.
    pub const fn offset_bytes(self) -> u64 {
        self.0 * crate::limits::SEGMENT_BYTES as u64
    }

    /// The segment that holds the byte at `offset_bytes`.
    pub const fn containing(offset_bytes: u64) -> Self {
        Self(offset_bytes / crate::limits::SEGMENT_BYTES as u64)
    }

    /// Length of this segment in a volume of `volume_bytes`: whole, but for the last.
    pub fn len_in(self, volume_bytes: u64) -> usize {
        let left = volume_bytes.saturating_sub(self.offset_bytes());
        left.min(crate::limits::SEGMENT_BYTES as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_order() {
        let early = PointId::at(1_000).unwrap();
        let late = PointId::at(2_000).unwrap();
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(PointId::from_hex(&early.to_string()), Some(early));
        assert_eq!(PointId::from_hex("zz"), None);
        assert!(PointId::from_hex(&"0a".repeat(16)).is_some());
        assert_eq!(PointId::from_hex(&"0A".repeat(16)), None, "one id has one name");
    }

    #[test]
    fn last_segment_is_short() {
        let volume_bytes = (4 << 20) + 1;
        assert_eq!(SegmentNo(0).len_in(volume_bytes), 4 << 20);
        assert_eq!(SegmentNo(1).len_in(volume_bytes), 1);
        assert_eq!(SegmentNo(2).len_in(volume_bytes), 0);
        assert_eq!(SegmentNo::containing(volume_bytes - 1), SegmentNo(1));
    }
}
