//! Which contents the repository holds, and where: immutable sorted segments, and per run what it has claimed and stored since.

mod pending;
mod segment;
mod writer;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock, RwLock};

pub use pending::Pending;
pub use segment::{PageCache, Segment};
pub use writer::{NewRow, encode_segment};

use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::ObjectId;
use crate::pack::Location;
use crate::store::{Body, PutOutcome, Store};

/// Rows gathered before a segment is written: about 16 GiB of new data, and 30 MB of memory.
const FLUSH_ROWS: usize = 256 << 10;
/// Pages of all segments kept decrypted: 16 MiB.
const CACHED_PAGES: usize = 4096;

/// The index of an open repository. Lookups may run on any number of threads.
pub struct Index {
    store: Arc<dyn Store>,
    keys: Arc<RepoKeys>,
    segments: RwLock<Vec<Arc<Segment>>>,
    pages: PageCache,
    /// Packs that are known to be gone or cut short: what is in them counts as absent.
    excluded: OnceLock<HashSet<ObjectId>>,
}

impl Index {
    /// Opens all index segments of the repository: their tails are read, rows are read when they are asked for.
    pub fn load(store: Arc<dyn Store>, keys: Arc<RepoKeys>) -> Result<Self> {
        let mut names = Vec::new();
        store.list(ObjectKind::Index.prefix(), &mut |key, bytes| names.push((key.to_owned(), bytes)))?;
        names.sort(); // by time: see `find`
        let mut segments = Vec::with_capacity(names.len());
        for (object, object_bytes) in names {
            let id = object
                .strip_prefix(ObjectKind::Index.prefix())
                .and_then(ObjectId::from_hex)
                .ok_or_else(|| Error::damaged(&object, "its name is not an id"))?;
            segments.push(Segment::open(store.as_ref(), &keys, id, object_bytes)?);
        }
        let superseded: Vec<ObjectId> =
            segments.iter().flat_map(|s| s.tail().superseded.iter().copied()).collect();
        segments.retain(|s| !superseded.contains(&s.id()));
        Ok(Self {
            store,
            keys,
            segments: RwLock::new(segments.into_iter().map(Arc::new).collect()),
            pages: PageCache::new(CACHED_PAGES),
            excluded: OnceLock::new(),
        })
    }

    /// Where `id` is, if a published index segment says so.
    pub fn find(&self, id: &[u8; 32]) -> Result<Option<Location>> {
        // Newest first: neighbours in time are neighbours in content, and what was stored again because a pack was lost is found where it is.
        for segment in self.segments().iter().rev() {
            if let Some(location) = segment.find(self.store.as_ref(), &self.pages, id)?
                && self.excluded.get().is_none_or(|excluded| !excluded.contains(&location.pack.id))
            {
                return Ok(Some(location));
            }
        }
        Ok(None)
    }

    /// Like [`find`](Self::find), but an id that is nowhere is damage.
    pub fn locate(&self, id: &[u8; 32], needed_by: &str) -> Result<Location> {
        self.find(id)?.ok_or_else(|| Error::Missing {
            object: format!("content {}", hex::encode(id)),
            needed_by: needed_by.to_owned(),
        })
    }

    /// Finds out which packs are gone or shorter than they should be, and treats what is in them as absent from now on, so that a backup stores it again. Asks the store for
    /// one listing per kind: for stores where that costs next to nothing.
    pub fn exclude_lost_packs(&self) -> Result<usize> {
        let mut there = HashMap::new();
        for kind in [ObjectKind::Data, ObjectKind::Meta] {
            self.store.list(kind.prefix(), &mut |key, bytes| {
                let name = key.rsplit('/').next().unwrap_or(key);
                there.extend(ObjectId::from_hex(name).map(|id| (id, bytes)));
            })?;
        }
        let whole = |pack: &PackRef| there.get(&pack.id).is_some_and(|bytes| *bytes >= u64::from(pack.bytes));
        let lost: HashSet<ObjectId> =
            self.packs().into_iter().filter(|pack| !whole(pack)).map(|pack| pack.id).collect();
        let count = lost.len();
        if count > 0 {
            let _ = self.excluded.set(lost);
        }
        Ok(count)
    }

    /// Publishes a segment with these rows and answers from it from now on.
    fn publish(&self, rows: &[NewRow], packs: &[PackRef]) -> Result<()> {
        let id = ObjectId::at(unix_ms_now())?;
        let bytes = encode_segment(&self.keys, id, rows, packs, &[])?;
        let object = ObjectKind::Index.key(&id.to_string());
        fail::fail_point!("index-before-put");
        if self.store.put_new(&object, Body::Bytes(&bytes))? == PutOutcome::Exists {
            return Err(Error::damaged(
                &object,
                "a random name that was taken: the random source repeats itself",
            ));
        }
        let segment = Segment::from_bytes(&self.keys, id, &bytes)?;
        self.segments.write().unwrap_or_else(|poisoned| poisoned.into_inner()).push(Arc::new(segment));
        Ok(())
    }

    /// The open segments.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Calls `each` for every row of every segment. An id may come more than once.
    pub fn each_row(&self, each: &mut dyn FnMut(&[u8; 32], Location) -> Result<()>) -> Result<()> {
        for segment in self.segments() {
            segment.each_row(self.store.as_ref(), each)?;
        }
        Ok(())
    }

    /// All packs that segments know, each once.
    pub fn packs(&self) -> Vec<PackRef> {
        let mut packs: Vec<PackRef> =
            self.segments().iter().flat_map(|s| s.tail().packs.iter().copied()).collect();
        packs.sort_by_key(|p| p.id);
        packs.dedup_by_key(|p| p.id);
        packs
    }
}

fn unix_ms_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// What one backup claims and stores. It is the run's own: a claim of a run that fails must never let another run believe that a content is stored, so two runs of one
/// process may store a content twice, and never refer to one that is not there.
pub struct Claims {
    index: Arc<Index>,
    pending: Pending,
}

impl Claims {
    /// No claims yet.
    pub fn new(index: Arc<Index>) -> Self {
        Self { index, pending: Pending::default() }
    }

    /// What is published.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Claims `id` for the caller: true if it is in no segment and nobody in this run has claimed it. Of two threads that ask for the same id
    /// one gets true, so no content is stored twice by a run.
    pub fn reserve(&self, id: &[u8; 32]) -> Result<bool> {
        if self.pending.contains(id) || self.index.find(id)?.is_some() {
            return Ok(false);
        }
        Ok(self.pending.claim(id))
    }

    /// Tells that a pack is durable; its rows get into the next segment, which is written as soon as enough have come together.
    pub fn add_durable(&self, pack: PackRef, rows: Vec<TocRow>) -> Result<()> {
        if self.pending.add_durable(pack, rows) >= FLUSH_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes a segment with all rows of durable packs that are in none yet. After this, everything stored can be found by others.
    pub fn flush(&self) -> Result<()> {
        let Some((rows, packs)) = self.pending.take_durable() else { return Ok(()) };
        self.index.publish(&rows, &packs)?;
        // Only now: a claim must not be forgotten before the segment answers for it.
        self.pending.forget(rows.iter().map(|row| &row.id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::Cipher;
    use crate::store::MemoryStore;
    use zeroize::Zeroizing;

    fn fixture() -> (Arc<dyn Store>, Arc<RepoKeys>) {
        let keys = RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm);
        (Arc::new(MemoryStore::default()), Arc::new(keys))
    }

    fn id(n: u32) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    fn pack(n: u8) -> PackRef {
        PackRef { id: ObjectId::new([n; 16]), salt: [n; 24], bytes: 1 << 20, kind: ObjectKind::Data }
    }

    fn rows(range: std::ops::Range<u32>) -> Vec<TocRow> {
        range.map(|n| TocRow { id: id(n), offset: 96 + n, stored_bytes: 50, raw_bytes: 4096 }).collect()
    }

    #[test]
    fn claims_flushes_and_reopened_lookups_agree() {
        let (store, keys) = fixture();
        let index = Arc::new(Index::load(store.clone(), keys.clone()).unwrap());
        let (claims, other) = (Claims::new(index.clone()), Claims::new(index.clone()));
        assert!(claims.reserve(&id(1)).unwrap());
        assert!(!claims.reserve(&id(1)).unwrap(), "claimed");
        assert!(other.reserve(&id(1)).unwrap(), "another run does not rely on it");
        assert!(index.find(&id(1)).unwrap().is_none(), "claimed is not yet stored");
        for n in 0..1000 {
            claims.reserve(&id(n)).unwrap();
        }
        claims.add_durable(pack(1), rows(0..500)).unwrap();
        claims.add_durable(pack(2), rows(500..1000)).unwrap();
        claims.flush().unwrap();
        claims.flush().unwrap();
        assert_eq!(index.segments().len(), 1, "an empty flush writes nothing");
        let again = Index::load(store, keys).unwrap();
        let again = Arc::new(again);
        for index in [&index, &again] {
            for n in 0..1000 {
                let at = index.find(&id(n)).unwrap().unwrap();
                assert_eq!((at.offset, at.pack), (96 + n, pack(if n < 500 { 1 } else { 2 })));
                assert!(!Claims::new(index.clone()).reserve(&id(n)).unwrap());
            }
            assert!(index.find(&id(1000)).unwrap().is_none());
            let mut count = 0;
            index
                .each_row(&mut |_, _| {
                    count += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!((count, index.packs()), (1000, vec![pack(1), pack(2)]));
        }
    }

    #[test]
    fn of_racing_claims_one_wins() {
        let (store, keys) = fixture();
        let claims = Claims::new(Arc::new(Index::load(store, keys).unwrap()));
        let wins: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..2000).filter(|n| claims.reserve(&id(*n)).unwrap()).count()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(wins, 2000);
    }

    #[test]
    fn a_hurt_segment_is_refused_and_a_superseded_one_is_skipped() {
        let (store, keys) = fixture();
        let old = ObjectId::new([1; 16]);
        let new = ObjectId::new([2; 16]);
        let make =
            |n: u32| vec![NewRow { id: id(n), pack_no: 0, offset: 96, stored_bytes: 20, raw_bytes: 3 }];
        let put = |segment: ObjectId, bytes: &[u8]| {
            store.put_new(&ObjectKind::Index.key(&segment.to_string()), Body::Bytes(bytes)).unwrap();
        };
        put(old, &encode_segment(&keys, old, &make(1), &[pack(1)], &[]).unwrap());
        put(new, &encode_segment(&keys, new, &make(1), &[pack(2)], &[old]).unwrap());
        let index = Index::load(store.clone(), keys.clone()).unwrap();
        assert_eq!(index.segments().len(), 1);
        assert_eq!(index.find(&id(1)).unwrap().unwrap().pack, pack(2));

        let bytes = encode_segment(&keys, ObjectId::new([3; 16]), &make(7), &[pack(1)], &[]).unwrap();
        for at in (0..bytes.len()).step_by(13) {
            let mut hurt = bytes.clone();
            hurt[at] ^= 4;
            let (store, _) = fixture();
            store.put_new(&ObjectKind::Index.key(&"03".repeat(16)), Body::Bytes(&hurt)).unwrap();
            let found = Index::load(store, keys.clone()).and_then(|index| index.find(&id(7)));
            match found {
                Err(error) => assert!(error.is_damage(), "byte {at}: {error}"),
                // The padding between header and first page is not authenticated, and means nothing.
                Ok(row) => assert!((96..4096).contains(&at) && row.is_some(), "byte {at} flipped unnoticed"),
            }
        }
    }
}
