//! Takes frames out of packs, and reads a pack's table of contents when no index knows it.

use crate::compress::Decompressor;
use crate::crypto::{ObjectKey, RepoKeys, seal::NO_CONTEXT};
use crate::error::{Error, Result};
use crate::format::header::{HEADER_BYTES, Header, ObjectKind, TAG_BYTES, TRAILER_BYTES, Trailer};
use crate::format::index_segment::PackRef;
use crate::format::pack::{TocRow, decode_toc};
use crate::id::ObjectId;
use crate::limits::PACK_BYTES_MAX;
use crate::store::{Span, Store, reread};

/// Where a content is: a frame of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// The pack.
    pub pack: PackRef,
    /// First byte of the frame.
    pub offset: u32,
    /// Its length.
    pub stored_bytes: u32,
    /// Length of the content.
    pub raw_bytes: u32,
}

impl Location {
    /// Repository key of the pack.
    pub fn pack_key(&self) -> String {
        self.pack.kind.key(&self.pack.id.to_string())
    }

    /// As a row of the pack's table of contents.
    pub fn row(&self, id: &[u8; 32]) -> TocRow {
        let Self { offset, stored_bytes, raw_bytes, .. } = *self;
        TocRow { id: *id, offset, stored_bytes, raw_bytes }
    }

    /// One past the frame's last byte.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.stored_bytes)
    }
}

/// Opens and decompresses frames for one thread; keeps the key of the last pack.
pub struct FrameReader {
    decompressor: Decompressor,
    opened: Vec<u8>,
    key: Option<(ObjectId, ObjectKey)>,
}

impl FrameReader {
    /// A fresh reader.
    pub fn new() -> Result<Self> {
        Ok(Self { decompressor: Decompressor::new()?, opened: Vec::new(), key: None })
    }

    /// Decodes the frame at `at`, whose stored bytes are `stored`, into `raw`. The content's id is still the caller's to check.
    pub fn read(
        &mut self,
        keys: &RepoKeys,
        at: &Location,
        id: &[u8; 32],
        stored: &[u8],
        raw: &mut [u8],
    ) -> Result<()> {
        let damaged = |what: &str| {
            Error::damaged(at.pack_key(), format_args!("the frame at byte {}: {what}", at.offset))
        };
        if raw.len() != at.raw_bytes as usize {
            return Err(damaged(&format!("the index says {} bytes, {} are due", at.raw_bytes, raw.len())));
        }
        if stored.len() != at.stored_bytes as usize || stored.len() < TAG_BYTES {
            return Err(damaged("it is cut short"));
        }
        if self.key.as_ref().is_none_or(|(pack, _)| *pack != at.pack.id) {
            self.key = Some((at.pack.id, keys.pack_key(&at.pack)));
        }
        let Some((_, key)) = &self.key else { unreachable!("set just above") };
        self.opened.resize(stored.len() - TAG_BYTES, 0);
        key.open(u64::from(at.offset), id, stored, &mut self.opened)
            .map_err(|_| damaged("it does not authenticate: flipped bytes, or not what the index says"))?;
        self.decompressor.decompress(&self.opened, raw).map_err(|what| damaged(&what))
    }

    /// The frame that was read last, opened but not decompressed: `codec ‖ payload`.
    pub fn encoded(&self) -> &[u8] {
        &self.opened
    }
}

/// Reads and checks header, trailer and table of contents of a pack from the store.
pub fn read_contents(
    store: &dyn Store,
    keys: &RepoKeys,
    kind: ObjectKind,
    id: ObjectId,
) -> Result<(PackRef, Vec<TocRow>)> {
    let object = kind.key(&id.to_string());
    reread(store, &object, || read_contents_once(store, keys, kind, id, &object))
}

fn read_contents_once(
    store: &dyn Store,
    keys: &RepoKeys,
    kind: ObjectKind,
    id: ObjectId,
    object: &str,
) -> Result<(PackRef, Vec<TocRow>)> {
    let mut bytes = Vec::new();
    let missing = || Error::Missing { object: object.to_owned(), needed_by: "the index".into() };
    store.get(object, Span::At { offset: 0, len: HEADER_BYTES }, &mut bytes)?.ok_or_else(missing)?;
    let header = Header::decode(object, &bytes, kind, id.as_bytes())?;
    let key = keys.open_object(object, &header)?;
    let object_bytes = store.get(object, Span::Last(TRAILER_BYTES), &mut bytes)?.ok_or_else(missing)?;
    if object_bytes > u64::from(PACK_BYTES_MAX) {
        return Err(Error::damaged(object, format_args!("{object_bytes} bytes are too many for a pack")));
    }
    let trailer = Trailer::decode(object, &bytes, id.as_bytes(), object_bytes)?;
    let span = Span::At { offset: trailer.tail_offset, len: trailer.tail_stored_bytes as usize };
    store.get(object, span, &mut bytes)?.ok_or_else(missing)?;
    let toc = key
        .open_in_place(trailer.tail_offset, &NO_CONTEXT, &mut bytes)
        .map_err(|_| Error::damaged(object, "its table of contents does not authenticate"))?;
    let rows = decode_toc(object, toc, trailer.count, trailer.tail_offset)?;
    Ok((PackRef { id, salt: header.salt, bytes: object_bytes as u32, kind }, rows))
}

/// What is read from the end of a pack at first: the whole table of contents of most packs.
const END_BYTES: usize = 64 << 10;

/// Reads the table of contents of a pack that an index segment knows: mostly one request.
pub fn read_toc(store: &dyn Store, keys: &RepoKeys, pack: &PackRef) -> Result<Vec<TocRow>> {
    let object = pack.kind.key(&pack.id.to_string());
    let mut end = Vec::new();
    let missing = || Error::Missing { object: object.clone(), needed_by: "the index".into() };
    let bytes = store.get(&object, Span::Last(END_BYTES), &mut end)?.ok_or_else(missing)?;
    if bytes != u64::from(pack.bytes) || end.len() < TRAILER_BYTES {
        return Err(Error::damaged(&object, format_args!("{bytes} bytes long, {} in the index", pack.bytes)));
    }
    let trailer = Trailer::decode(&object, &end[end.len() - TRAILER_BYTES..], pack.id.as_bytes(), bytes)?;
    let end_offset = bytes - end.len() as u64;
    let len = trailer.tail_stored_bytes as usize;
    let toc = if trailer.tail_offset < end_offset {
        store.get(&object, Span::At { offset: trailer.tail_offset, len }, &mut end)?.ok_or_else(missing)?;
        &mut end[..]
    } else {
        let from = (trailer.tail_offset - end_offset) as usize;
        &mut end[from..from + len]
    };
    let toc = keys
        .pack_key(pack)
        .open_in_place(trailer.tail_offset, &NO_CONTEXT, toc)
        .map_err(|_| Error::damaged(&object, "its table of contents does not authenticate"))?;
    decode_toc(&object, toc, trailer.count, trailer.tail_offset)
}

#[cfg(test)]
mod tests {
    use super::super::{PackBuilder, pack_buffer_bytes};
    use super::*;
    use crate::compress::Compressor;
    use crate::format::header::Cipher;
    use crate::io::BufPool;
    use crate::store::{Body, MemoryStore};
    use zeroize::Zeroizing;

    #[test]
    fn what_goes_in_comes_out_and_damage_is_named() {
        let keys = RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm);
        let pool = BufPool::new(1, pack_buffer_bytes(1 << 20, 1 << 18));
        let mut compressor = Compressor::new(Some(1)).unwrap();
        let mut builder =
            PackBuilder::start(&keys, ObjectKind::Data, pool.get_blocking().unwrap(), 1 << 20).unwrap();
        let contents: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n; 1000 * usize::from(n) + 1]).collect();
        for (n, raw) in contents.iter().enumerate() {
            builder.add(&[n as u8; 32], raw, &mut compressor);
        }
        let done = builder.finish();
        let store = MemoryStore::default();
        let object = ObjectKind::Data.key(&done.pack.id.to_string());
        store.put_new(&object, Body::Bytes(&done.buf[..done.len])).unwrap();

        let (pack, rows) = read_contents(&store, &keys, ObjectKind::Data, done.pack.id).unwrap();
        assert_eq!((pack, &rows), (done.pack, &done.rows));
        assert_eq!(read_toc(&store, &keys, &pack).unwrap(), rows);
        assert!(read_toc(&store, &keys, &PackRef { bytes: pack.bytes - 1, ..pack }).unwrap_err().is_damage());
        let mut reader = FrameReader::new().unwrap();
        // Another repository, into which frames move as they were compressed.
        let others = RepoKeys::derive(&Zeroizing::new([2; 32]), Cipher::None);
        let pool = BufPool::new(1, pack_buffer_bytes(1 << 20, 1 << 18));
        let mut moved =
            PackBuilder::start(&others, ObjectKind::Data, pool.get_blocking().unwrap(), 1 << 20).unwrap();
        for (row, raw) in rows.iter().zip(&contents) {
            let at = Location {
                pack,
                offset: row.offset,
                stored_bytes: row.stored_bytes,
                raw_bytes: row.raw_bytes,
            };
            let mut stored = Vec::new();
            let span = Span::At { offset: row.offset.into(), len: row.stored_bytes as usize };
            store.get(&object, span, &mut stored).unwrap();
            let mut out = vec![0; raw.len()];
            reader.read(&keys, &at, &row.id, &stored, &mut out).unwrap();
            assert_eq!(&out, raw);
            moved.add_encoded(&[row.id[0] | 0x80; 32], reader.encoded(), row.raw_bytes);
            stored[3] ^= 1;
            let error = reader.read(&keys, &at, &row.id, &stored, &mut out).unwrap_err();
            assert!(error.is_damage() && error.to_string().contains(&object), "{error}");
            assert!(reader.read(&keys, &at, &row.id, &stored[1..], &mut out).unwrap_err().is_damage());
        }
        let moved = moved.finish();
        for ((row, old), raw) in moved.rows.iter().zip(&rows).zip(&contents) {
            assert_eq!((row.stored_bytes, row.id[0]), (old.stored_bytes, old.id[0] | 0x80));
            let at = Location {
                pack: moved.pack,
                offset: row.offset,
                stored_bytes: row.stored_bytes,
                raw_bytes: row.raw_bytes,
            };
            let mut out = vec![0; raw.len()];
            let stored = &moved.buf[row.offset as usize..at.end() as usize];
            reader.read(&others, &at, &row.id, stored, &mut out).unwrap();
            assert_eq!(&out, raw);
        }
    }
}
