//! An open index segment: filter and fences in memory, its pages read when asked for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use xorf::{BinaryFuse8, Filter};

use super::fences::Fences;
use super::ways::Ways;
use crate::crypto::{ObjectKey, RepoKeys, seal::NO_CONTEXT};
use crate::error::{Error, Result};
use crate::format::header::{HEADER_BYTES, Header, ObjectKind, TRAILER_BYTES, Trailer};
use crate::format::index_segment::{
    PAGE_BYTES, PAGE_ROWS, PAGE_STORED_BYTES, PAGES_OFFSET, PackRef, Row, decode_page, fence_key, filter_key,
    find_at_in_page,
};
use crate::format::index_tail::TailView;
use crate::id::ObjectId;
use crate::pack::Location;
use crate::store::{ReadAt, Span, Store, reread};

/// What is fetched from the end of a segment in one request: the whole tail of all but large ones.
const END_BYTES: usize = 256 << 10;

/// Decrypted pages by segment and number.
pub type PageCache = Ways<(ObjectId, u32), Box<[u8; PAGE_BYTES]>>;

/// An open segment.
pub struct Segment {
    id: ObjectId,
    object: String,
    bytes: u64,
    key: ObjectKey,
    entries: u64,
    /// The parts of one merge have the same packs, and share the table.
    packs: Arc<[PackRef]>,
    superseded: Vec<ObjectId>,
    fences: Fences,
    first: u64,
    filter: Option<BinaryFuse8>,
    /// The object held open, where the store can do that; asked for at the first page.
    handle: OnceLock<Option<Box<dyn ReadAt>>>,
    /// Whether it was decided if all pages are kept: see [`Segment::warm`].
    warmed: AtomicBool,
}

impl Segment {
    /// Reads header and tail from the store. A table of packs that is that of `sibling` is shared with it.
    pub fn open(
        store: &dyn Store,
        keys: &RepoKeys,
        id: ObjectId,
        object_bytes: u64,
        sibling: Option<&Segment>,
    ) -> Result<Self> {
        let object = ObjectKind::Index.key(&id.to_string());
        let gone = || gone(&object);
        reread(store, &object, || {
            let mut head = Vec::new();
            let mut end = Vec::new();
            if object_bytes <= END_BYTES as u64 {
                store.get(&object, Span::All, &mut end)?.ok_or_else(gone)?;
                return Self::from_bytes(keys, id, &end, sibling);
            }
            store.get(&object, Span::At { offset: 0, len: HEADER_BYTES }, &mut head)?.ok_or_else(gone)?;
            let bytes = store.get(&object, Span::Last(END_BYTES), &mut end)?.ok_or_else(gone)?;
            let trailer = trailer_of(&object, id, &end, bytes)?;
            let end_offset = bytes - end.len() as u64;
            if trailer.tail_offset < end_offset {
                let tail = Span::At { offset: trailer.tail_offset, len: trailer.tail_stored_bytes as usize };
                store.get(&object, tail, &mut end)?.ok_or_else(gone)?;
            } else {
                end.drain(..(trailer.tail_offset - end_offset) as usize);
            }
            Self::from_parts(keys, id, object.clone(), &head, bytes, &trailer, end, sibling)
        })
    }

    /// From the whole object.
    pub fn from_bytes(
        keys: &RepoKeys,
        id: ObjectId,
        bytes: &[u8],
        sibling: Option<&Segment>,
    ) -> Result<Self> {
        let object = ObjectKind::Index.key(&id.to_string());
        let trailer = trailer_of(&object, id, bytes, bytes.len() as u64)?;
        let end = bytes[trailer.tail_offset as usize..].to_vec();
        Self::from_parts(keys, id, object, bytes, bytes.len() as u64, &trailer, end, sibling)
    }

    #[allow(clippy::too_many_arguments)]
    fn from_parts(
        keys: &RepoKeys,
        id: ObjectId,
        object: String,
        head: &[u8],
        bytes: u64,
        trailer: &Trailer,
        mut end: Vec<u8>,
        sibling: Option<&Segment>,
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
        let plain_bytes = plain.len();
        let view = TailView::parse(&object, plain, trailer.count)?;
        let packs = shared_packs(&view, sibling)?;
        let (entries, superseded) = (view.entries, view.superseded().collect());
        let (fences, first) = (Fences::new(view.fences()), view.fences().next().unwrap_or(u64::MAX));
        let (descriptor, fingerprints_at) = (view.filter, view.fingerprints_at);
        let filter = descriptor.map(|descriptor| {
            // The filter is most of the tail: the buffer becomes the filter, so that there are never two of it.
            end.truncate(plain_bytes);
            end.drain(..fingerprints_at);
            BinaryFuse8 { descriptor, fingerprints: end.into_boxed_slice() }
        });
        let (handle, warmed) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Self { id, object, bytes, key, entries, packs, superseded, fences, first, filter, handle, warmed })
    }

    /// Its name.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its repository key.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Length of the object.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows in it.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Packs that its rows count through.
    pub fn packs(&self) -> &Arc<[PackRef]> {
        &self.packs
    }

    /// Index segments that it names as superseded.
    pub fn superseded(&self) -> &[ObjectId] {
        &self.superseded
    }

    /// First 8 bytes of its first id, as a number.
    pub fn first_key(&self) -> u64 {
        self.first
    }

    /// Number of pages.
    pub fn page_count(&self) -> usize {
        self.fences.len()
    }

    /// Bytes of memory that its filter and fences take, about.
    pub fn memory_bytes(&self) -> usize {
        self.filter.as_ref().map_or(0, |f| f.fingerprints.len()) + self.fences.memory_bytes()
    }

    fn rows_in_page(&self, page: usize) -> usize {
        (self.entries.saturating_sub((page * PAGE_ROWS) as u64)).min(PAGE_ROWS as u64) as usize
    }

    /// False if `id` is certainly not in it.
    pub fn may_contain(&self, id: &[u8; 32]) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.contains(&filter_key(id)))
    }

    /// Where `id` is, if this segment knows it.
    pub fn find(&self, store: &dyn Store, pages: &PageCache, id: &[u8; 32]) -> Result<Option<Location>> {
        Ok(self.find_row(store, pages, id)?.map(|(_, location)| location))
    }

    /// As [`find`](Self::find), with the number of the row.
    pub fn find_row(
        &self,
        store: &dyn Store,
        pages: &PageCache,
        id: &[u8; 32],
    ) -> Result<Option<(u64, Location)>> {
        for page in self.fences.pages_for(fence_key(id)) {
            let rows = self.rows_in_page(page);
            let key = (self.id, page as u32);
            let hash = self.hash_of(page);
            let kept = || pages.get(hash, &key, |plain| find_at_in_page(&plain[..], rows, id));
            let found = match kept().or_else(|| self.warm(store, pages).then(kept).flatten()) {
                Some(found) => found,
                None => {
                    let mut stored = [0; PAGE_STORED_BYTES];
                    reread(store, &self.object, || {
                        self.fetch_pages(store, page, &mut stored)?;
                        let plain = self.open_page(page, &mut stored)?;
                        keep(pages, hash, key, plain);
                        Ok(find_at_in_page(plain, rows, id))
                    })?
                }
            };
            if let Some((at, row)) = found {
                return Ok(Some(((page * PAGE_ROWS + at) as u64, self.location(&row)?)));
            }
        }
        Ok(None)
    }

    /// Reads `count` pages from `first` on into `rows`, replacing what was there. `stored` is room to work in.
    pub fn read_rows(
        &self,
        store: &dyn Store,
        first: usize,
        count: usize,
        stored: &mut Vec<u8>,
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        rows.clear();
        stored.resize(count * PAGE_STORED_BYTES, 0);
        self.fetch_pages(store, first, stored)?;
        for (n, page) in stored.chunks_exact_mut(PAGE_STORED_BYTES).enumerate() {
            let plain = self.open_page(first + n, page)?;
            decode_page(&self.object, plain, self.rows_in_page(first + n), rows)?;
        }
        Ok(())
    }

    /// The error of rows that do not ascend.
    pub fn disordered(&self) -> Error {
        Error::damaged(&self.object, "rows of index pages are not in order")
    }

    /// Where a row says that its content is.
    pub fn location(&self, row: &Row) -> Result<Location> {
        let pack = self
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

    /// At the first page that is missing, brings all pages of the segment into the cache if it has room for them, and says if it did. Ids are hashes, so any run
    /// soon asks for all pages; one long read costs less than hundreds that wait behind the volume's own (1.2 s of a 2.4 s backup). What cannot
    /// be read, or is hurt, is left out: who needs it reads it again and reports it.
    fn warm(&self, store: &dyn Store, pages: &PageCache) -> bool {
        let count = self.page_count();
        if self.warmed.swap(true, Ordering::Relaxed) || !pages.reserve(count) {
            return false;
        }
        let mut stored = vec![0; count * PAGE_STORED_BYTES];
        if self.fetch_pages(store, 0, &mut stored).is_err() {
            return false;
        }
        for (page, stored) in stored.chunks_exact_mut(PAGE_STORED_BYTES).enumerate() {
            if let Ok(plain) = self.open_page(page, stored) {
                keep(pages, self.hash_of(page), (self.id, page as u32), plain);
            }
        }
        true
    }

    fn hash_of(&self, page: usize) -> u64 {
        (self.first ^ page as u64).wrapping_mul(HASH) >> 20
    }

    fn fetch_pages(&self, store: &dyn Store, first: usize, stored: &mut [u8]) -> Result<()> {
        let offset = PAGES_OFFSET + (first * PAGE_STORED_BYTES) as u64;
        let handle = match self.handle.get() {
            Some(handle) => handle,
            None => {
                let opened = store.open_object(&self.object)?;
                self.handle.get_or_init(|| opened)
            }
        };
        let filled = match handle {
            Some(handle) => handle.read_at(offset, stored)?,
            None => store.get_into(&self.object, offset, stored)?.ok_or_else(|| gone(&self.object))?,
        };
        if filled < stored.len() {
            let end = offset + filled as u64;
            return Err(Error::damaged(&self.object, format_args!("truncated at byte {end}")));
        }
        Ok(())
    }

    fn open_page<'a>(&self, page: usize, stored: &'a mut [u8]) -> Result<&'a [u8]> {
        let offset = PAGES_OFFSET + (page * PAGE_STORED_BYTES) as u64;
        let plain = self.key.open_in_place(offset, &NO_CONTEXT, stored).map_err(|_| {
            Error::damaged(&self.object, format_args!("page {page} does not authenticate: flipped bytes"))
        })?;
        if self.rows_in_page(page) > 0 {
            let begins = plain.first_chunk().map_or(u64::MAX, fence_key);
            if !self.fences.fits(page, begins) {
                let what = format_args!("page {page} does not begin at its fence");
                return Err(Error::damaged(&self.object, what));
            }
        }
        Ok(plain)
    }
}

fn keep(pages: &PageCache, hash: u64, key: (ObjectId, u32), plain: &[u8]) {
    pages.put(hash, key, |old| {
        let mut kept = old.unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
        kept.copy_from_slice(plain);
        kept
    });
}

/// An odd number that spreads page numbers over the cache.
const HASH: u64 = 0x9e37_79b9_7f4a_7c15;

fn gone(object: &str) -> Error {
    Error::SegmentGone { object: object.to_owned() }
}

/// The packs of a tail: the sibling's table, if it is the same.
fn shared_packs(view: &TailView<'_>, sibling: Option<&Segment>) -> Result<Arc<[PackRef]>> {
    if let Some(sibling) = sibling
        && sibling.packs.len() == view.packs().len()
    {
        let mut same = true;
        for (one, other) in view.packs().zip(sibling.packs.iter()) {
            same &= one? == *other;
        }
        if same {
            return Ok(sibling.packs.clone());
        }
    }
    // An exact size, or the table would be gathered in a larger one first.
    let mut packs = Vec::with_capacity(view.packs().len());
    for pack in view.packs() {
        packs.push(pack?);
    }
    Ok(packs.into())
}

fn trailer_of(object: &str, id: ObjectId, end: &[u8], object_bytes: u64) -> Result<Trailer> {
    let start =
        end.len().checked_sub(TRAILER_BYTES).filter(|_| object_bytes >= PAGES_OFFSET).ok_or_else(|| {
            Error::damaged(object, format_args!("{object_bytes} bytes are too few: truncated"))
        })?;
    Trailer::decode(object, &end[start..], id.as_bytes(), object_bytes)
}
