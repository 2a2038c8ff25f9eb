//! Whole sealed objects of one region: header ‖ tail ‖ trailer. Recovery points are such; index segments end like such.

use crate::crypto::{ObjectKey, RepoKeys, seal::NO_CONTEXT};
use crate::error::{Error, Result};
use crate::format::header::{HEADER_BYTES, Header, ObjectKind, TAG_BYTES, TRAILER_BYTES, Trailer};
use crate::store::{Span, Store};

/// What a frame, or zstd where nothing compresses, adds to its contents at most.
const FRAMING_BYTES: usize = 64 << 10;

/// Reads a whole object whose contents have at most `plain_bytes_max`; `None` if there is none. What is longer is no
/// such object, and is not read: nothing of it is authenticated yet.
pub fn get(store: &dyn Store, object: &str, plain_bytes_max: usize) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let bytes_max = HEADER_BYTES + plain_bytes_max + FRAMING_BYTES + TAG_BYTES + TRAILER_BYTES;
    match store.get(object, Span::At { offset: 0, len: bytes_max }, &mut bytes)? {
        None => Ok(None),
        Some(found) if found > bytes_max as u64 => {
            Err(Error::damaged(object, format_args!("{found} bytes are too many, {bytes_max} is the limit")))
        }
        Some(_) => Ok(Some(bytes)),
    }
}

/// Seals `plain` as the object `id`.
pub fn encode(keys: &RepoKeys, kind: ObjectKind, id: [u8; 16], plain: &[u8]) -> Result<Vec<u8>> {
    let (header, key) = keys.new_object(kind, id)?;
    let mut out = Vec::with_capacity(HEADER_BYTES + plain.len() + TAG_BYTES + TRAILER_BYTES);
    out.extend_from_slice(&header.encode());
    append_tail(&mut out, &key, &id, plain, 1);
    Ok(out)
}

/// Appends the sealed tail and the trailer to an object.
pub fn append_tail(out: &mut Vec<u8>, key: &ObjectKey, id: &[u8; 16], plain: &[u8], count: u32) {
    let tail_offset = out.len();
    out.extend_from_slice(plain);
    out.extend_from_slice(&[0; TAG_BYTES]);
    key.seal(tail_offset as u64, &NO_CONTEXT, &mut out[tail_offset..]);
    let trailer = trailer(tail_offset as u64, out.len() - tail_offset, count);
    out.extend_from_slice(&trailer.encode(id));
}

/// The trailer of an object whose sealed tail begins at `tail_offset`.
pub fn trailer(tail_offset: u64, tail_stored_bytes: usize, count: u32) -> Trailer {
    Trailer { tail_offset, tail_stored_bytes: tail_stored_bytes as u32, count }
}

/// Opens the object and returns the plaintext.
pub fn decode(
    keys: &RepoKeys,
    object: &str,
    kind: ObjectKind,
    id: [u8; 16],
    bytes: &mut [u8],
) -> Result<Vec<u8>> {
    if bytes.len() < HEADER_BYTES + TAG_BYTES + TRAILER_BYTES {
        return Err(Error::damaged(object, format_args!("{} bytes are too few: truncated", bytes.len())));
    }
    let header = Header::decode(object, &bytes[..HEADER_BYTES], kind, &id)?;
    let key = keys.open_object(object, &header)?;
    let object_bytes = bytes.len() as u64;
    let trailer = Trailer::decode(object, &bytes[bytes.len() - TRAILER_BYTES..], &id, object_bytes)?;
    if trailer.tail_offset != HEADER_BYTES as u64 {
        return Err(Error::damaged(object, "its contents do not begin after the header"));
    }
    let end = bytes.len() - TRAILER_BYTES;
    let plain = key
        .open_in_place(trailer.tail_offset, &NO_CONTEXT, &mut bytes[HEADER_BYTES..end])
        .map_err(|_| Error::damaged(object, "it does not authenticate: flipped bytes"))?;
    Ok(plain.to_vec())
}
