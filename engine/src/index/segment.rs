//! An open index segment: its tail in memory, its pages read when asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::crypto::{ObjectKey, RepoKeys, seal::NO_CONTEXT};
use crate::error::{Error, Result};
use crate::format::header::{HEADER_BYTES, Header, ObjectKind, TRAILER_BYTES, Trailer};
use crate::format::index_segment::{
    PAGE_STORED_BYTES, PAGES_OFFSET, Row, Tail, decode_page, fence_key, find_in_page,
};
use crate::id::ObjectId;
use crate::pack::Location;
use crate::store::{Span, Store, reread};

/// Pages read at a time when a whole segment is walked.
const WALK_PAGES: usize = 256;
/// What is fetched from the end of a segment in one request: the whole tail of all but large ones.
const END_BYTES: usize = 256 << 10;

/// An open segment.
pub struct Segment {
    id: ObjectId,
    object: String,
    bytes: u64,
    key: ObjectKey,
    tail: Tail,
}

impl Segment {
    /// Reads header and tail from the store.
    pub fn open(store: &dyn Store, keys: &RepoKeys, id: ObjectId, object_bytes: u64) -> Result<Self> {
        let object = ObjectKind::Index.key(&id.to_string());
        reread(store, &object, || Self::read(store, keys, id, object_bytes))
    }

    fn read(store: &dyn Store, keys: &RepoKeys, id: ObjectId, object_bytes: u64) -> Result<Self> {
        let object = ObjectKind::Index.key(&id.to_string());
        let gone = || Error::Missing { object: object.clone(), needed_by: "the index".into() };
        let mut head = Vec::new();
        let mut end = Vec::new();
        if object_bytes <= END_BYTES as u64 {
            store.get(&object, Span::All, &mut end)?.ok_or_else(gone)?;
            return Self::from_bytes(keys, id, &end);
        }
        store.get(&object, Span::At { offset: 0, len: HEADER_BYTES }, &mut head)?.ok_or_else(gone)?;
        let bytes = store.get(&object, Span::Last(END_BYTES), &mut end)?.ok_or_else(gone)?;
        let trailer = trailer_of(&object, id, &end, bytes)?;
        let end_offset = bytes - end.len() as u64;
        if trailer.tail_offset < end_offset {
            let len = trailer.tail_stored_bytes as usize + TRAILER_BYTES;
            store.get(&object, Span::At { offset: trailer.tail_offset, len }, &mut end)?.ok_or_else(gone)?;
        } else {
            end.drain(..(trailer.tail_offset - end_offset) as usize);
        }
        Self::from_parts(keys, id, object, &head, bytes, &trailer, &mut end)
    }

    /// From the whole object.
    pub fn from_bytes(keys: &RepoKeys, id: ObjectId, bytes: &[u8]) -> Result<Self> {
        let object = ObjectKind::Index.key(&id.to_string());
        let trailer = trailer_of(&object, id, bytes, bytes.len() as u64)?;
        let mut end = bytes[trailer.tail_offset as usize..].to_vec();
        Self::from_parts(keys, id, object, bytes, bytes.len() as u64, &trailer, &mut end)
    }

    fn from_parts(
        keys: &RepoKeys,
        id: ObjectId,
        object: String,
        head: &[u8],
        bytes: u64,
        trailer: &Trailer,
        end: &mut [u8],
    ) -> Result<Self> {
        let header =
            Header::decode(&object, &head[..HEADER_BYTES.min(head.len())], ObjectKind::Index, id.as_bytes())?;
        let key = keys.open_object(&object, &header)?;
        if trailer.tail_offset != PAGES_OFFSET + u64::from(trailer.count) * PAGE_STORED_BYTES as u64 {
            return Err(Error::damaged(&object, "its pages do not end where its tail begins"));
        }
        let stored = end
            .get_mut(..trailer.tail_stored_bytes as usize)
            .ok_or_else(|| Error::damaged(&object, "its tail is cut short"))?;
        let plain = key
            .open_in_place(trailer.tail_offset, &NO_CONTEXT, stored)
            .map_err(|_| Error::damaged(&object, "its tail does not authenticate: flipped bytes"))?;
        let tail = Tail::decode(&object, plain, trailer.count)?;
        Ok(Self { id, object, bytes, key, tail })
    }

    /// Its name.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Length of the object.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All but the rows.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Where `id` is, if this segment knows it.
    pub fn find(&self, store: &dyn Store, pages: &PageCache, id: &[u8; 32]) -> Result<Option<Location>> {
        if !self.tail.may_contain(id) {
            return Ok(None);
        }
        for page_no in self.tail.pages_for(id) {
            let page = pages.get_or_load(self.id, page_no as u32, || self.load_page(store, page_no))?;
            if let Some(row) = find_in_page(&page, self.tail.rows_in_page(page_no), id) {
                return self.location(&row).map(Some);
            }
        }
        Ok(None)
    }

    /// Calls `each` for every row in order.
    pub fn each_row(
        &self,
        store: &dyn Store,
        each: &mut dyn FnMut(&[u8; 32], Location) -> Result<()>,
    ) -> Result<()> {
        let mut stored = Vec::new();
        let mut last = None;
        for first in (0..self.tail.page_count()).step_by(WALK_PAGES) {
            let count = WALK_PAGES.min(self.tail.page_count() - first);
            self.fetch_pages(store, first, count, &mut stored)?;
            for (n, page) in stored.chunks_exact_mut(PAGE_STORED_BYTES).enumerate() {
                let page_no = first + n;
                let plain = self.open_page(page_no, page)?;
                for row in decode_page(&self.object, plain, self.tail.rows_in_page(page_no))? {
                    if last.is_some_and(|last| last >= row.id) {
                        return Err(Error::damaged(&self.object, "rows of index pages are not in order"));
                    }
                    last = Some(row.id);
                    each(&row.id, self.location(&row)?)?;
                }
            }
        }
        Ok(())
    }

    fn location(&self, row: &Row) -> Result<Location> {
        let pack = self
            .tail
            .packs
            .get(row.pack_no as usize)
            .ok_or_else(|| Error::damaged(&self.object, "a row with a pack number out of range"))?;
        let at = Location {
            pack: *pack,
            offset: row.offset,
            stored_bytes: row.stored_bytes,
            raw_bytes: row.raw_bytes,
        };
        if at.end() > u64::from(pack.bytes) || row.raw_bytes > crate::limits::PACK_BYTES_MAX {
            return Err(Error::damaged(&self.object, "a row that points past its pack's end"));
        }
        Ok(at)
    }

    fn load_page(&self, store: &dyn Store, page_no: usize) -> Result<Arc<[u8]>> {
        reread(store, &self.object, || self.read_page(store, page_no))
    }

    fn read_page(&self, store: &dyn Store, page_no: usize) -> Result<Arc<[u8]>> {
        let mut stored = Vec::new();
        self.fetch_pages(store, page_no, 1, &mut stored)?;
        let plain = self.open_page(page_no, &mut stored)?;
        if self.tail.rows_in_page(page_no) > 0 {
            let first = find_first(plain);
            if fence_key(&first) != self.tail.fences[page_no] {
                return Err(Error::damaged(
                    &self.object,
                    format_args!("page {page_no} does not begin at its fence"),
                ));
            }
        }
        Ok(Arc::from(plain))
    }

    fn fetch_pages(&self, store: &dyn Store, first: usize, count: usize, stored: &mut Vec<u8>) -> Result<()> {
        let offset = PAGES_OFFSET + (first * PAGE_STORED_BYTES) as u64;
        let len = count * PAGE_STORED_BYTES;
        let found = store.get(&self.object, Span::At { offset, len }, stored)?;
        match found {
            None => Err(Error::Missing { object: self.object.clone(), needed_by: "the index".into() }),
            Some(_) if stored.len() != len => Err(Error::damaged(
                &self.object,
                format_args!("truncated at byte {}", offset + stored.len() as u64),
            )),
            Some(_) => Ok(()),
        }
    }

    fn open_page<'a>(&self, page_no: usize, stored: &'a mut [u8]) -> Result<&'a [u8]> {
        let offset = PAGES_OFFSET + (page_no * PAGE_STORED_BYTES) as u64;
        self.key.open_in_place(offset, &NO_CONTEXT, stored).map(|plain| &*plain).map_err(|_| {
            Error::damaged(&self.object, format_args!("page {page_no} does not authenticate: flipped bytes"))
        })
    }
}

fn find_first(page: &[u8]) -> [u8; 32] {
    let mut id = [0u8; 32];
    id.copy_from_slice(&page[..32]);
    id
}

fn trailer_of(object: &str, id: ObjectId, end: &[u8], object_bytes: u64) -> Result<Trailer> {
    let start =
        end.len().checked_sub(TRAILER_BYTES).filter(|_| object_bytes >= PAGES_OFFSET).ok_or_else(|| {
            Error::damaged(object, format_args!("{object_bytes} bytes are too few: truncated"))
        })?;
    Trailer::decode(object, &end[start..], id.as_bytes(), object_bytes)
}

/// Pages by segment and number.
type Pages = HashMap<(ObjectId, u32), Arc<[u8]>>;

/// Decrypted pages of all segments, bounded; a full shard is emptied, which costs a page read per page and no bookkeeping per hit.
pub struct PageCache {
    shards: Vec<Mutex<Pages>>,
    pages_per_shard: usize,
}

impl PageCache {
    /// Keeps up to `pages` pages.
    pub fn new(pages: usize) -> Self {
        const SHARDS: usize = 16;
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            pages_per_shard: pages.div_ceil(SHARDS),
        }
    }

    fn get_or_load(
        &self,
        segment: ObjectId,
        page: u32,
        load: impl FnOnce() -> Result<Arc<[u8]>>,
    ) -> Result<Arc<[u8]>> {
        let shard = &self.shards[page as usize % self.shards.len()];
        let lock = || shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(found) = lock().get(&(segment, page)) {
            return Ok(found.clone());
        }
        let loaded = load()?; // outside the lock: another thread may load it too, and both are right
        let mut pages = lock();
        if pages.len() >= self.pages_per_shard {
            pages.clear();
        }
        pages.insert((segment, page), loaded.clone());
        Ok(loaded)
    }
}
