//! Which contents the repository holds, and where: immutable sorted segments, merged as they get many, and per run what it has claimed and stored since.

mod claims;
mod damage;
mod fences;
mod hinted;
mod load;
mod marks;
mod merge;
mod nearby;
mod pending;
mod plan;
mod rows;
mod runs;
mod segment;
mod ways;
mod writer;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

pub use claims::{Claims, Permit};
pub use damage::{BadSegment, RowsOfPacks};
pub use fences::Fences;
pub use marks::{Marked, Marks, RANK_BEST};
pub use merge::{Merge, Tidied};
pub use pending::Pending;
pub use segment::{PageCache, Segment};
pub use writer::{NewRow, SegmentWriter, encode_segment};

use crate::crypto::RepoKeys;
use crate::environment::{Clock, Environment};
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::id::ObjectId;
use crate::pack::{Location, list_packs};
use crate::store::{Body, PutOutcome, Store};
use nearby::Nearby;
use rows::MergedRows;
use runs::{Runs, part_id, run_name};

/// Decrypted pages kept: what is left of the budget by filters and fences, within these bounds.
const CACHED_PAGES: std::ops::RangeInclusive<usize> = 1024..=4096;
/// What filters, fences and pages together may take before pages give way.
const MEMORY_BYTES: usize = 176 << 20;
/// A list that was found unchanged is not read again before this: a badly hurt repository misses a great many contents.
const LIST_FRESH: Duration = Duration::from_secs(1);
/// Times that a lookup starts again because the segments it asked were merged and deleted.
const TRIES: usize = 8;

/// Packs that do not count, although rows point to them: what is in them is absent.
#[derive(Clone, Debug, Default)]
pub struct Excluded {
    /// Garbage collection may decide to delete them.
    pub condemned: HashSet<ObjectId>,
    /// They are missing, or shorter than they should be.
    pub lost: HashSet<ObjectId>,
    /// Garbage collection has decided to delete them: merges drop their rows.
    pub deleted: HashSet<ObjectId>,
    /// They were put aside as damaged: what is in them counts only where it is nowhere else. Writers have them among the
    /// condemned, too, and so do without them.
    pub aside: HashSet<ObjectId>,
}

impl Excluded {
    /// True if the pack does not count.
    pub fn has(&self, pack: &ObjectId) -> bool {
        [&self.condemned, &self.lost, &self.deleted].into_iter().any(|packs| packs.contains(pack))
    }

    /// All of them, some perhaps twice.
    pub fn iter(&self) -> impl Iterator<Item = ObjectId> {
        [&self.condemned, &self.lost, &self.deleted].into_iter().flatten().copied()
    }
}

/// The index of an open repository. Lookups may run on any number of threads.
pub struct Index {
    store: Arc<dyn Store>,
    keys: Arc<RepoKeys>,
    clock: Arc<dyn Clock>,
    runs: RwLock<Arc<Runs>>,
    /// Held while the list is read again, so that of many threads that miss a segment one reads it. Inside: when it was last found unchanged.
    reloading: Mutex<Option<Instant>>,
    /// Segments that were superseded already when the index was opened: see `tidy`.
    superseded: Mutex<Vec<ObjectId>>,
    pages: PageCache,
    /// Rows of one part of a merge.
    part_rows: u64,
    nearby: Nearby,
    /// Packs that do not count.
    excluded: Excluded,
    /// Damaged segments that are passed over: see [`load_sound`](Self::load_sound).
    skipped: load::Skip,
}

impl Index {
    /// Opens all live index segments of the repository: their tails are read, rows are read when they are asked for.
    pub fn load(store: Arc<dyn Store>, keys: Arc<RepoKeys>) -> Result<Self> {
        Self::load_in(store, keys, Environment::real().clock)
    }

    /// As [`load`](Self::load), with a clock of the caller's.
    pub fn load_in(store: Arc<dyn Store>, keys: Arc<RepoKeys>, clock: Arc<dyn Clock>) -> Result<Self> {
        let strict = &mut |_, error| Err(error);
        let loaded = load::load(store.as_ref(), &keys, &Runs::default(), &load::Skip::default(), strict)?;
        Ok(Self::of(store, keys, clock, loaded, load::Skip::default()))
    }

    fn of(
        store: Arc<dyn Store>,
        keys: Arc<RepoKeys>,
        clock: Arc<dyn Clock>,
        loaded: load::Loaded,
        skipped: load::Skip,
    ) -> Self {
        let taken: usize = loaded.runs.segments().map(|segment| segment.memory_bytes()).sum();
        let pages = MEMORY_BYTES.saturating_sub(taken) / 4096;
        Self {
            store,
            keys,
            clock,
            runs: RwLock::new(Arc::new(loaded.runs)),
            reloading: Mutex::new(None),
            superseded: Mutex::new(loaded.superseded),
            pages: PageCache::new(pages.clamp(*CACHED_PAGES.start(), *CACHED_PAGES.end()), false),
            part_rows: merge::PART_ROWS,
            nearby: Nearby::default(),
            excluded: Excluded::default(),
            skipped,
        }
    }

    /// A place to read `id` from: that of a row, or one that a pack's table of contents tells. Reading proves it. It is no
    /// proof that the index knows the content, which [`Claims::is_stored`] gives.
    pub fn find_to_read(&self, id: &[u8; 32]) -> Result<Option<Location>> {
        match self.hint(id) {
            Some(location) => Ok(Some(location)),
            None => self.find_row_and_note(id),
        }
    }

    /// Where a table of contents that was read lately says that `id` is. No row need say so.
    fn hint(&self, id: &[u8; 32]) -> Option<Location> {
        self.nearby.find(id).filter(|location| !self.is_excluded(location) && !self.is_aside(location))
    }

    /// As [`find_row`](Self::find_row), and the neighbours of what was found may be read for hints.
    fn find_row_and_note(&self, id: &[u8; 32]) -> Result<Option<Location>> {
        let found = self.find_row(id)?;
        if let Some(location) = &found {
            self.nearby.note(self.store.as_ref(), &self.keys, &location.pack);
        }
        Ok(found)
    }

    /// Data packs are not read for hints from now on: they may be archived. Then
    /// [`find_to_read`](Self::find_to_read) finds chunks where [`find_row`](Self::find_row) does.
    pub fn leave_data_packs_alone(&self) {
        self.nearby.leave_data_alone();
    }

    /// Where the newest row says that `id` is: proof that the repository holds it.
    pub fn find_row(&self, id: &[u8; 32]) -> Result<Option<Location>> {
        let mut tries = 0;
        loop {
            // The filters under the lock, pages outside it: most absent ids need no more.
            let (runs, first) = {
                let runs = self.lock_runs();
                let Some(first) = runs.candidates(id).next().cloned() else { return Ok(None) };
                (Arc::clone(&runs), first)
            };
            tries += 1;
            match self.find_in(&runs, &first, id) {
                // A segment was merged and deleted since the list was read. Where its rows are now is in the list of today.
                Err(Error::SegmentGone { object }) if tries < TRIES => {
                    if !self.reload(&runs)? {
                        return Err(Error::SegmentGone { object });
                    }
                }
                found => return found,
            }
        }
    }

    fn find_in(&self, runs: &Runs, first: &Segment, id: &[u8; 32]) -> Result<Option<Location>> {
        let mut last_resort = None;
        // Newest first: neighbours in time are neighbours in content, and what was stored again because a pack was lost is
        // found where it is.
        let others =
            runs.candidates(id).map(|segment| &**segment).filter(|segment| segment.id() != first.id());
        for segment in std::iter::once(first).chain(others) {
            match segment.find(self.store.as_ref(), &self.pages, id)? {
                Some(location) if self.is_excluded(&location) => {}
                Some(location) if self.is_aside(&location) => last_resort = last_resort.or(Some(location)),
                Some(location) => return Ok(Some(location)),
                None => {}
            }
        }
        Ok(last_resort)
    }

    fn is_excluded(&self, location: &Location) -> bool {
        self.excluded.has(&location.pack.id)
    }

    fn is_aside(&self, location: &Location) -> bool {
        self.excluded.aside.contains(&location.pack.id)
    }

    /// Like [`find_to_read`](Self::find_to_read), but an id that is nowhere is damage.
    pub fn locate(&self, id: &[u8; 32], needed_by: &str) -> Result<Location> {
        self.needed(id, needed_by, &|| self.find_to_read(id))
    }

    /// Like [`find_row`](Self::find_row), but an id that is nowhere is damage.
    pub fn locate_newest(&self, id: &[u8; 32], needed_by: &str) -> Result<Location> {
        self.needed(id, needed_by, &|| self.find_row(id))
    }

    fn needed(
        &self,
        id: &[u8; 32],
        needed_by: &str,
        find: &dyn Fn() -> Result<Option<Location>>,
    ) -> Result<Location> {
        self.look_twice(find)?.ok_or_else(|| Error::Missing {
            object: format!("content {}", hex::encode(id)),
            needed_by: needed_by.to_owned(),
        })
    }

    /// As [`find_row`](Self::find_row), but before `None` is believed the list of segments is read again.
    pub fn find_surely(&self, id: &[u8; 32]) -> Result<Option<Location>> {
        self.look_twice(&|| self.find_row(id))
    }

    fn look_twice(&self, find: &dyn Fn() -> Result<Option<Location>>) -> Result<Option<Location>> {
        if let Some(location) = find()? {
            return Ok(Some(location));
        }
        // Before anything is called lost: the list may have been read while a merge came and its inputs went.
        let runs = Arc::clone(&self.lock_runs());
        let fresh = *self.reloading.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if fresh.is_none_or(|then| then.elapsed() > LIST_FRESH) && self.reload(&runs)? {
            return find();
        }
        Ok(None)
    }

    /// Reads the list of segments again, unless another thread did since `seen` was current. False if it is what it was.
    fn reload(&self, seen: &Arc<Runs>) -> Result<bool> {
        let mut unchanged = self.reloading.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let current = Arc::clone(&self.lock_runs());
        if !Arc::ptr_eq(&current, seen) {
            return Ok(true);
        }
        let strict = &mut |_, error| Err(error);
        let loaded = load::load(self.store.as_ref(), &self.keys, &current, &self.skipped, strict)?;
        let changed = loaded.runs.listed() != current.listed();
        if changed {
            let mut runs = self.runs.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            if Arc::ptr_eq(&runs, &current) {
                *runs = Arc::new(loaded.runs);
            }
            // Otherwise this run has published a segment meanwhile, and the next lookup that misses something reloads.
        }
        *unchanged = (!changed).then(Instant::now);
        Ok(changed)
    }

    /// The same index without what is in these packs.
    pub fn excluding(mut self, excluded: Excluded) -> Self {
        self.excluded = excluded;
        self
    }

    /// True if segments are there that a merge has superseded.
    pub fn has_superseded(&self) -> bool {
        !self.superseded.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_empty()
    }

    /// Packs that do not count.
    pub fn excluded(&self) -> &Excluded {
        &self.excluded
    }

    /// Which packs are gone or shorter than they should be, of those that count. Lists all packs: a request for each
    /// thousand, where requests are billed.
    pub fn lost_packs(&self) -> Result<HashSet<ObjectId>> {
        let packs = self.packs();
        let there = list_packs(self.store.as_ref(), packs.len())?;
        let whole =
            |pack: &PackRef| there.get(&pack.id).is_some_and(|(_, bytes)| *bytes >= u64::from(pack.bytes));
        let lost = packs.into_iter().filter(|pack| !self.excluded.has(&pack.id) && !whole(pack));
        Ok(lost.map(|pack| pack.id).collect())
    }

    /// Publishes a segment with these rows and answers from it from now on. It takes the place of `superseded`.
    fn publish(&self, rows: &[NewRow], packs: &[PackRef], superseded: &[ObjectId]) -> Result<()> {
        // Behind those that it supersedes, whatever clock named them.
        let newest = superseded.iter().map(ObjectId::unix_ms).max().map_or(0, |ms| ms + 1);
        let id = ObjectId::at(self.next_ms().max(newest))?;
        // What supersedes is named as the only part of a merge: readers look for parts before they honour it.
        let id = if superseded.is_empty() { id } else { part_id(run_name(id), 0) };
        let bytes = encode_segment(&self.keys, id, rows, packs, superseded)?;
        let object = ObjectKind::Index.key(&id.to_string());
        fail::fail_point!("index-before-put");
        if self.store.put_new(&object, Body::Bytes(&bytes))? == PutOutcome::Exists {
            return Err(taken(&object));
        }
        let segment = Segment::from_bytes(&self.keys, id, &bytes, None)?;
        let mut runs = self.runs.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *runs = Arc::new(runs.with(segment));
        Ok(())
    }

    /// The time that a new segment is named after: behind all that are known here, whatever the clock says.
    fn next_ms(&self) -> u64 {
        let newest = self.lock_runs().listed().iter().max().map_or(0, ObjectId::unix_ms);
        self.clock.unix_ms().max(newest + 1)
    }

    fn lock_runs(&self) -> std::sync::RwLockReadGuard<'_, Arc<Runs>> {
        self.runs.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The live segments.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.lock_runs().segments().cloned().collect()
    }

    /// Calls `each` for the newest row of every id, in the order of ids. If segments are deleted under it, it begins anew behind the last id.
    pub fn each_row(&self, each: &mut dyn FnMut(&[u8; 32], Location) -> Result<()>) -> Result<()> {
        let mut last: Option<[u8; 32]> = None;
        let mut tries = 0;
        loop {
            let runs = Arc::clone(&self.lock_runs());
            tries += 1;
            match self.walk(&runs, &mut last, each) {
                Err(Error::SegmentGone { object }) if tries < TRIES => {
                    if !self.reload(&runs)? {
                        return Err(Error::SegmentGone { object });
                    }
                }
                walked => return walked,
            }
        }
    }

    fn walk(
        &self,
        runs: &Runs,
        last: &mut Option<[u8; 32]>,
        each: &mut dyn FnMut(&[u8; 32], Location) -> Result<()>,
    ) -> Result<()> {
        let excluded = &self.excluded;
        let mut rows = MergedRows::new(self.store.as_ref(), runs.runs())?;
        while let Some(found) = rows.next(&|row, segment| merge::status(excluded, row, segment))? {
            if last.is_none_or(|last| last < found.row.id) {
                each(&found.row.id, rows.segment(&found).location(&found.row)?)?;
                *last = Some(found.row.id);
            }
        }
        Ok(())
    }

    /// All packs that segments know and that are not deleted, each once.
    pub fn packs(&self) -> Vec<PackRef> {
        let mut packs = self.packs_named();
        packs.retain(|pack| !self.excluded.deleted.contains(&pack.id));
        packs
    }

    /// All packs that segments name, each once.
    pub fn packs_named(&self) -> Vec<PackRef> {
        let runs = Arc::clone(&self.lock_runs());
        runs.packs()
    }
}

fn taken(object: &str) -> Error {
    Error::damaged(object, "a random name that was taken: the random source repeats itself")
}

#[cfg(test)]
mod tests;
