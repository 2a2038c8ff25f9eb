//! The 96-byte header and 32-byte trailer around every sealed object.

use super::{VERSION, bytes::Reader};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"PENSTOCK";
const TRAILER_MAGIC: &[u8; 8] = b"KCOTSNEP";

/// Bytes of a header.
pub const HEADER_BYTES: usize = 96;
/// Bytes of a trailer.
pub const TRAILER_BYTES: usize = 32;
/// What sealing adds to a region.
pub const TAG_BYTES: usize = 16;

/// Kind of an object; the numbers are on disk and append-only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum ObjectKind {
    /// Chunks.
    Data = 1,
    /// Manifest nodes.
    Meta = 2,
    /// Where chunks and nodes are.
    Index = 3,
    /// A commit.
    Point = 4,
    /// Repository parameters (a plain object).
    Config = 5,
    /// A wrapped master key (a plain object).
    Key = 6,
    /// A writer's lease.
    Lease = 7,
    /// A step of a garbage collection.
    Collection = 8,
}

impl ObjectKind {
    /// From the number on disk.
    pub fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Data,
            2 => Self::Meta,
            3 => Self::Index,
            4 => Self::Point,
            5 => Self::Config,
            6 => Self::Key,
            7 => Self::Lease,
            8 => Self::Collection,
            _ => return None,
        })
    }

    /// What people call it.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Data => "data pack",
            Self::Meta => "metadata pack",
            Self::Index => "index segment",
            Self::Point => "recovery point",
            Self::Config => "configuration",
            Self::Key => "key slot",
            Self::Lease => "lease",
            Self::Collection => "collection record",
        }
    }

    /// The repository key of the object of this kind named `id_hex`.
    pub fn key(self, id_hex: &str) -> String {
        match self {
            Self::Data => format!("data/{}/{id_hex}", &id_hex[..2]),
            Self::Meta => format!("meta/{}/{id_hex}", &id_hex[..2]),
            Self::Index => format!("index/{id_hex}"),
            Self::Point => format!("points/{id_hex}"),
            Self::Config => "config".to_owned(),
            Self::Key => format!("keys/{id_hex}"),
            Self::Lease => format!("leases/{id_hex}"),
            Self::Collection => format!("gc/{id_hex}"),
        }
    }

    /// The prefix under which objects of this kind are listed.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Data => "data/",
            Self::Meta => "meta/",
            Self::Index => "index/",
            Self::Point => "points/",
            Self::Config => "config",
            Self::Key => "keys/",
            Self::Lease => "leases/",
            Self::Collection => "gc/",
        }
    }
}

/// How regions of an object are sealed; the numbers are on disk and append-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm = 1,
    /// Authenticated against damage with keyed BLAKE3, not hidden.
    None = 2,
}

/// First bytes of a pack, index segment or recovery point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the object is.
    pub kind: ObjectKind,
    /// How its regions are sealed.
    pub cipher: Cipher,
    /// Its own name.
    pub id: [u8; 16],
    /// Input of the object key.
    pub salt: [u8; 24],
    /// Proof that a key is this object's, before anything is opened with it.
    pub commitment: [u8; 32],
}

impl Header {
    /// The bytes on disk.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = self.kind as u8;
        out[11] = self.cipher as u8;
        out[16..32].copy_from_slice(&self.id);
        out[32..56].copy_from_slice(&self.salt);
        out[56..88].copy_from_slice(&self.commitment);
        let sum = blake3::hash(&out[..88]);
        out[88..].copy_from_slice(&sum.as_bytes()[..8]);
        out
    }

    /// Decodes and checks a header of an object named `object`, expected to be of `kind` with the given id.
    pub fn decode(object: &str, bytes: &[u8], kind: ObjectKind, id: &[u8; 16]) -> Result<Self> {
        let mut reader = Reader::new(object, bytes);
        if reader.take(8)? != MAGIC {
            return Err(Error::damaged(object, "it does not begin with PENSTOCK"));
        }
        let version = reader.u16()?;
        let found_kind = reader.u8()?;
        let cipher = reader.u8()?;
        let rest = (reader.u16()?, reader.u16()?);
        let header = Header {
            kind,
            cipher: if cipher == Cipher::Aes256Gcm as u8 { Cipher::Aes256Gcm } else { Cipher::None },
            id: reader.array()?,
            salt: reader.array()?,
            commitment: reader.array()?,
        };
        let sum: [u8; 8] = reader.array()?;
        if sum != blake3::hash(&bytes[..88]).as_bytes()[..8] {
            return Err(Error::damaged(object, "the checksum of its header does not match"));
        }
        if version > VERSION {
            return Err(Error::NewerVersion {
                object: object.to_owned(),
                found: version.into(),
                supported: VERSION.into(),
            });
        }
        if version == 0 || rest != (0, 0) || !(1..=2).contains(&cipher) {
            return Err(Error::damaged(object, "its header has fields that version 1 does not know"));
        }
        if found_kind != kind as u8 {
            let found = ObjectKind::from_u8(found_kind).map_or("unknown object", ObjectKind::noun);
            return Err(Error::damaged(object, format_args!("a {} expected, a {found} found", kind.noun())));
        }
        if &header.id != id {
            return Err(Error::damaged(
                object,
                format_args!("it calls itself {}: swapped with another object", hex::encode(header.id)),
            ));
        }
        Ok(header)
    }
}

/// Last bytes of a pack, index segment or recovery point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Offset of the sealed tail.
    pub tail_offset: u64,
    /// Its length, tag included.
    pub tail_stored_bytes: u32,
    /// Frames of a pack, pages of an index segment, 1 for a recovery point.
    pub count: u32,
}

impl Trailer {
    /// The bytes on disk, bound to the object's id.
    pub fn encode(&self, id: &[u8; 16]) -> [u8; TRAILER_BYTES] {
        let mut out = [0u8; TRAILER_BYTES];
        out[..8].copy_from_slice(&self.tail_offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.tail_stored_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(TRAILER_MAGIC);
        let sum = checksum(id, &out[..24]);
        out[24..].copy_from_slice(&sum);
        out
    }

    /// Decodes the last [`TRAILER_BYTES`] of an object of `object_bytes` bytes in all.
    pub fn decode(object: &str, bytes: &[u8], id: &[u8; 16], object_bytes: u64) -> Result<Self> {
        let mut reader = Reader::new(object, bytes);
        let trailer =
            Trailer { tail_offset: reader.u64()?, tail_stored_bytes: reader.u32()?, count: reader.u32()? };
        if reader.take(8)? != TRAILER_MAGIC {
            return Err(Error::damaged(object, "it does not end with a trailer: truncated"));
        }
        let sum: [u8; 8] = reader.array()?;
        reader.finish()?;
        if sum != checksum(id, &bytes[..24]) {
            return Err(Error::damaged(object, "the checksum of its trailer does not match"));
        }
        let end = trailer.tail_offset.checked_add(u64::from(trailer.tail_stored_bytes));
        let fits = end.and_then(|end| end.checked_add(TRAILER_BYTES as u64)) == Some(object_bytes);
        if !fits || trailer.tail_offset < HEADER_BYTES as u64 || trailer.tail_stored_bytes < TAG_BYTES as u32
        {
            return Err(Error::damaged(
                object,
                format_args!("its trailer does not fit its {object_bytes} bytes: truncated or extended"),
            ));
        }
        Ok(trailer)
    }
}

fn checksum(id: &[u8; 16], bytes: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id).update(bytes);
    let mut sum = [0u8; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Header {
        Header {
            kind: ObjectKind::Data,
            cipher: Cipher::Aes256Gcm,
            id: [7; 16],
            salt: [8; 24],
            commitment: [9; 32],
        }
    }

    #[test]
    fn header_round_trip_and_every_flip_is_found() {
        let header = sample();
        let bytes = header.encode();
        assert_eq!(Header::decode("x", &bytes, ObjectKind::Data, &[7; 16]).unwrap(), header);
        for bit in 0..HEADER_BYTES * 8 {
            let mut hurt = bytes;
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode("x", &hurt, ObjectKind::Data, &[7; 16]).unwrap_err().is_damage());
        }
        assert!(Header::decode("x", &bytes, ObjectKind::Meta, &[7; 16]).is_err());
        assert!(
            Header::decode("x", &bytes, ObjectKind::Data, &[1; 16])
                .unwrap_err()
                .to_string()
                .contains("swapped")
        );
        assert!(Header::decode("x", &bytes[..95], ObjectKind::Data, &[7; 16]).is_err());
    }

    #[test]
    fn a_newer_version_is_said_to_be_newer() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        let sum = blake3::hash(&bytes[..88]);
        bytes[88..].copy_from_slice(&sum.as_bytes()[..8]);
        let error = Header::decode("x", &bytes, ObjectKind::Data, &[7; 16]).unwrap_err();
        assert!(matches!(error, Error::NewerVersion { found: 2, .. }));
    }

    #[test]
    fn trailer_round_trip_and_every_flip_is_found() {
        let trailer = Trailer { tail_offset: 1000, tail_stored_bytes: 60, count: 1 };
        let bytes = trailer.encode(&[1; 16]);
        assert_eq!(Trailer::decode("x", &bytes, &[1; 16], 1092).unwrap(), trailer);
        for bit in 0..TRAILER_BYTES * 8 {
            let mut hurt = bytes;
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode("x", &hurt, &[1; 16], 1092).unwrap_err().is_damage());
        }
        assert!(Trailer::decode("x", &bytes, &[2; 16], 1092).is_err());
        assert!(Trailer::decode("x", &bytes, &[1; 16], 1093).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(Header::decode("x", &bytes, ObjectKind::Data, &[0; 16]).is_err());
            prop_assert!(Trailer::decode("x", &bytes, &[0; 16], 1 << 40).is_err());
        }
    }
}
