//! The one way to take contents out of packs and know that they are right: fetched, opened, decompressed, their id
//! recomputed, and read a second time before damage is believed.

use std::sync::Arc;

use super::reader::{FrameReader, Location};
use crate::chunker::{ChunkParams, Chunker};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::NodeId;
use crate::store::{Span, Store};

/// Stored bytes that [`ChunkReader::each_frame`] reads at a time, unless a frame is longer.
const READ_BYTES: u64 = 8 << 20;

/// A content that was read and is right.
pub struct Content<'a> {
    /// The content.
    pub raw: &'a [u8],
    /// As it was stored, opened but not decompressed: `codec ‖ payload`.
    pub encoded: &'a [u8],
}

/// Is told of each frame of a pack: its row, and what is in it or what is wrong with it.
pub type EachFrame<'a> = dyn FnMut(&TocRow, Result<Content<'_>>) -> Result<()> + 'a;

/// Reads contents of one repository, for one thread.
pub struct ChunkReader {
    store: Arc<dyn Store>,
    keys: Arc<RepoKeys>,
    frames: FrameReader,
    chunker: Chunker,
    stored: Vec<u8>,
}

impl ChunkReader {
    /// A reader of a repository with these chunks.
    pub fn new(store: Arc<dyn Store>, keys: Arc<RepoKeys>, params: ChunkParams) -> Result<Self> {
        let chunker = keys.chunker_for(params);
        Ok(Self { store, keys, frames: FrameReader::new()?, chunker, stored: Vec::new() })
    }

    /// Fetches the content `id` at `at` into `raw`.
    pub fn fetch(&mut self, at: &Location, id: &[u8; 32], raw: &mut Vec<u8>) -> Result<()> {
        let mut stored = std::mem::take(&mut self.stored);
        let fetched = self.get(at, &mut stored).and_then(|()| {
            raw.resize(at.raw_bytes as usize, 0);
            self.decode(at, id, &stored, raw)
        });
        self.stored = stored;
        fetched
    }

    fn get(&self, at: &Location, stored: &mut Vec<u8>) -> Result<()> {
        let span = Span::At { offset: at.offset.into(), len: at.stored_bytes as usize };
        match self.store.get(&at.pack_key(), span, stored)? {
            Some(_) => Ok(()),
            None => Err(Error::Missing { object: at.pack_key(), needed_by: "the index".into() }),
        }
    }

    /// Decodes the content `id` from its `stored` frame into `raw`, which has its length. If that finds damage and
    /// the store may answer better, the frame is fetched again: what a network did to it may not happen twice.
    pub fn decode(&mut self, at: &Location, id: &[u8; 32], stored: &[u8], raw: &mut [u8]) -> Result<()> {
        let decoded = self.decode_once(at, id, stored, raw);
        if !decoded.as_ref().is_err_and(Error::is_damage) || !self.store.distrust(&at.pack_key()) {
            return decoded;
        }
        let mut again = Vec::new();
        self.get(at, &mut again)?;
        self.decode_once(at, id, &again, raw)
    }

    fn decode_once(&mut self, at: &Location, id: &[u8; 32], stored: &[u8], raw: &mut [u8]) -> Result<()> {
        self.frames.read(&self.keys, at, id, stored, raw)?;
        let right = match at.pack.kind {
            ObjectKind::Meta => self.keys.node_id(raw) == NodeId::new(*id),
            _ => self.chunker.chunk_id(raw).as_bytes() == id,
        };
        if right {
            return Ok(());
        }
        let what = format_args!("the content at byte {} does not have its id", at.offset);
        Err(Error::damaged(at.pack_key(), what))
    }

    /// The frame that was decoded last, opened but not decompressed: `codec ‖ payload`.
    pub fn encoded(&self) -> &[u8] {
        self.frames.encoded()
    }

    /// Reads the frames `rows` of a pack, which ascend, in long requests that pass over what is worth it, and tells of each. `stop` is asked before
    /// each request; true ends the reading. Returns the bytes that were read.
    pub fn each_frame(
        &mut self,
        pack: &PackRef,
        rows: &[TocRow],
        stop: &dyn Fn() -> bool,
        each: &mut EachFrame<'_>,
    ) -> Result<u64> {
        let key = pack.kind.key(&pack.id.to_string());
        let (mut stored, mut raw, mut read_bytes) = (Vec::new(), Vec::new(), 0);
        let gap_bytes = self.store.habits().gap_bytes;
        let end_of = |row: &TocRow| u64::from(row.offset) + u64::from(row.stored_bytes);
        let mut rest = rows;
        while let Some(first) = rest.first().filter(|_| !stop()) {
            let start = u64::from(first.offset);
            let mut end = end_of(first);
            let joins = |row: &&TocRow| {
                let joins = u64::from(row.offset) <= end + gap_bytes && end_of(row) <= start + READ_BYTES;
                end = if joins { end.max(end_of(row)) } else { end };
                joins
            };
            let count = 1 + rest[1..].iter().take_while(joins).count();
            let (batch, behind) = rest.split_at(count);
            rest = behind;
            let len = (end - start) as usize;
            if self.store.get(&key, Span::At { offset: start, len }, &mut stored)?.is_none() {
                for row in batch {
                    each(row, Err(Error::Missing { object: key.clone(), needed_by: "the index".into() }))?;
                }
                continue;
            }
            read_bytes += stored.len() as u64;
            for row in batch {
                let at = Location {
                    pack: *pack,
                    offset: row.offset,
                    stored_bytes: row.stored_bytes,
                    raw_bytes: row.raw_bytes,
                };
                let from = (u64::from(row.offset) - start) as usize;
                let bytes = stored.get(from..from + row.stored_bytes as usize).unwrap_or(&[]);
                raw.resize(row.raw_bytes as usize, 0);
                match self.decode(&at, &row.id, bytes, &mut raw) {
                    Ok(()) => each(row, Ok(Content { raw: &raw, encoded: self.frames.encoded() }))?,
                    Err(error) if error.is_damage() => each(row, Err(error))?,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(read_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PackBuilder, pack_buffer_bytes};
    use super::*;
    use crate::chunker::ChunkerKind;
    use crate::compress::Compressor;
    use crate::format::header::Cipher;
    use crate::io::BufPool;
    use crate::store::{Body, MemoryStore, PutOutcome};
    use std::sync::atomic::{AtomicU32, Ordering};
    use zeroize::Zeroizing;

    /// A store whose first so many answers are wrong in one bit, as over a bad network.
    struct Flaky {
        objects: MemoryStore,
        lies: AtomicU32,
    }

    impl Store for Flaky {
        fn location(&self) -> &str {
            "flaky"
        }

        fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
            self.objects.put_new(key, body)
        }

        fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
            let found = self.objects.get(key, span, out)?;
            if self.lies.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                out[20] ^= 4;
            }
            Ok(found)
        }

        fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
            self.objects.list(prefix, each)
        }

        fn delete(&self, key: &str) -> Result<()> {
            self.objects.delete(key)
        }

        fn distrust(&self, _key: &str) -> bool {
            true
        }
    }

    #[test]
    fn a_flip_on_the_way_is_read_again_and_damage_of_the_object_is_told() {
        let keys = Arc::new(RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm));
        let params = ChunkParams::new(ChunkerKind::Block, 64 << 10).unwrap();
        let pool = BufPool::new(1, pack_buffer_bytes(1 << 20, 1 << 18));
        let mut compressor = Compressor::new(Some(1)).unwrap();
        let mut builder =
            PackBuilder::start(&keys, ObjectKind::Data, pool.get_blocking().unwrap(), 1 << 20).unwrap();
        let contents: Vec<Vec<u8>> = (1..9u8).map(|n| vec![n; 5000 * usize::from(n)]).collect();
        let mut chunker = keys.chunker_for(params);
        for raw in &contents {
            builder.add(chunker.chunk_id(raw).as_bytes(), raw, &mut compressor);
        }
        let done = builder.finish();
        let store = Arc::new(Flaky { objects: MemoryStore::default(), lies: AtomicU32::new(0) });
        let object = ObjectKind::Data.key(&done.pack.id.to_string());
        store.put_new(&object, Body::Bytes(&done.buf[..done.len])).unwrap();
        let mut reader = ChunkReader::new(store.clone(), keys, params).unwrap();
        let at = |row: &TocRow| Location {
            pack: done.pack,
            offset: row.offset,
            stored_bytes: row.stored_bytes,
            raw_bytes: row.raw_bytes,
        };
        for (lies, right) in [(0, true), (1, true), (2, false)] {
            store.lies.store(lies, Ordering::SeqCst);
            let mut raw = Vec::new();
            let fetched = reader.fetch(&at(&done.rows[3]), &done.rows[3].id, &mut raw);
            assert_eq!(fetched.is_ok(), right, "{lies} lies: {fetched:?}");
            assert!(!right || raw == contents[3]);
        }
        // One frame of the object itself is wrong: the others are told as right.
        let mut bytes = done.buf[..done.len].to_vec();
        bytes[done.rows[5].offset as usize + 3] ^= 1;
        store.delete(&object).unwrap();
        store.put_new(&object, Body::Bytes(&bytes)).unwrap();
        let mut wrong = Vec::new();
        let mut number = 0;
        let read = reader.each_frame(&done.pack, &done.rows, &|| false, &mut |row, content| {
            match content {
                Ok(content) => assert_eq!(content.raw, contents[number]),
                Err(error) => wrong.push((row.offset, error.to_string())),
            }
            number += 1;
            Ok(())
        });
        assert!(read.unwrap() > 0 && number == 8);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].0 == done.rows[5].offset && wrong[0].1.contains(&object), "{wrong:?}");
        // The same content under another id is not the one asked for.
        let mut raw = Vec::new();
        let swapped = reader.fetch(&at(&done.rows[1]), &done.rows[2].id, &mut raw).unwrap_err();
        assert!(swapped.is_damage(), "{swapped}");
    }
}
