//! The index of a repository in which segments are damaged: what is left of it without them. For those who look at
//! damage and mend it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::load::{self, Loaded, Skip};
use super::runs::Runs;
use super::{Excluded, Index};
use crate::crypto::RepoKeys;
use crate::environment::Clock;
use crate::error::{Error, Result};
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::ObjectId;
use crate::pack::Location;
use crate::store::{Store, reread};

/// Pages read at a time: 1 MiB.
const PAGES_AT_A_TIME: usize = 256;

/// An index segment that cannot be read, or not all of it.
#[derive(Debug)]
pub struct BadSegment {
    /// Its name; `None` of an object that has no name of a segment.
    pub id: Option<ObjectId>,
    /// What is wrong.
    pub error: Error,
}

impl Index {
    /// The index without the segments that are damaged anywhere: each page of each is read. What such a segment
    /// superseded and is still there, counts again. `stop` is asked now and then.
    pub fn load_sound(
        store: Arc<dyn Store>,
        keys: Arc<RepoKeys>,
        clock: Arc<dyn Clock>,
        stop: &dyn Fn() -> Result<()>,
    ) -> Result<(Self, Vec<BadSegment>)> {
        let mut bad: Vec<BadSegment> = Vec::new();
        let mut skipped = Skip::default();
        let mut sound = HashSet::new();
        loop {
            let mut found = Vec::new();
            let lenient = &mut |id, error| {
                found.push(BadSegment { id, error });
                Ok(())
            };
            let loaded = load::load(store.as_ref(), &keys, &Runs::default(), &skipped, lenient)?;
            for segment in loaded.runs.segments().filter(|segment| !sound.contains(&segment.id())) {
                match read_all(store.as_ref(), segment, stop) {
                    Ok(()) => {}
                    // Merged and deleted meanwhile: the next round finds what took its place.
                    Err(Error::SegmentGone { .. }) => continue,
                    Err(error @ Error::Damaged { .. }) => {
                        found.push(BadSegment { id: Some(segment.id()), error });
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            sound.extend(loaded.runs.segments().map(|segment| segment.id()));
            found.retain(|one| one.id.is_none_or(|id| !skipped.ids.contains(&id)));
            // Objects with strange names are met each time.
            found.retain(|one| one.id.is_some() || bad.iter().all(|known| known.id.is_some()));
            let again = found.iter().any(|one| one.id.is_some());
            skipped.ids.extend(found.iter().filter_map(|one| one.id));
            bad.extend(found);
            if !again {
                return Ok((Self::of(store, keys, clock, loaded, skipped), bad));
            }
        }
    }

    /// The index as it is once `supersede` has taken the place of the segments that this one leaves out. Parts of a
    /// merge may be among them whose inputs are still there: those count here, and do not count then.
    pub fn after_supersede(&self) -> Result<Self> {
        let skipped = Skip { as_superseded: true, ..self.skipped.clone() };
        // What has no name of a segment is superseded by nobody, and counts for nothing.
        let strict = &mut |id: Option<ObjectId>, error| if id.is_some() { Err(error) } else { Ok(()) };
        let loaded = load::load(self.store.as_ref(), &self.keys, &self.lock_runs(), &skipped, strict)?;
        let (store, keys, clock) = (self.store.clone(), self.keys.clone(), self.clock.clone());
        Ok(Self::of(store, keys, clock, loaded, skipped).excluding(self.excluded.clone()))
    }

    /// The same index as others see it: in which other packs do not count.
    pub fn view(&self, excluded: Excluded) -> Self {
        let loaded = Loaded { runs: Runs::clone(&self.lock_runs()), superseded: Vec::new() };
        let (store, keys, clock) = (self.store.clone(), self.keys.clone(), self.clock.clone());
        Self::of(store, keys, clock, loaded, self.skipped.clone()).excluding(excluded)
    }

    /// Publishes a segment without rows that takes the place of `damaged` ones: for whoever has published all rows
    /// that they can have had.
    pub fn supersede(&self, damaged: &[ObjectId]) -> Result<()> {
        self.publish(&[], &[], damaged)
    }
}

/// Rows of packs, by pack, in the order of the pack.
pub type RowsOfPacks = BTreeMap<ObjectId, (PackRef, Vec<TocRow>)>;

impl Index {
    /// All rows that segments have of `packs`, newer or not: what their tables of contents said. In one pass over
    /// the index come those of as many packs as `rows_max` rows are of, but of one at least; the others are left for
    /// another pass.
    pub fn rows_of(
        &self,
        packs: &HashSet<ObjectId>,
        rows_max: usize,
        stop: &dyn Fn() -> Result<()>,
    ) -> Result<RowsOfPacks> {
        let mut tries = 0;
        loop {
            let runs = Arc::clone(&self.lock_runs());
            tries += 1;
            match self.gather(&runs, packs, rows_max, stop) {
                Err(Error::SegmentGone { object }) if tries < super::TRIES => {
                    if !self.reload(&runs)? {
                        return Err(Error::SegmentGone { object });
                    }
                }
                gathered => return gathered,
            }
        }
    }

    fn gather(
        &self,
        runs: &Runs,
        packs: &HashSet<ObjectId>,
        rows_max: usize,
        stop: &dyn Fn() -> Result<()>,
    ) -> Result<RowsOfPacks> {
        let mut gathered = RowsOfPacks::new();
        // Packs with names from here on are left for another pass.
        let mut end: Option<ObjectId> = None;
        let mut count = 0;
        let (mut stored, mut rows) = (Vec::new(), Vec::new());
        for segment in runs.segments() {
            let wanted: Vec<bool> = segment.packs().iter().map(|pack| packs.contains(&pack.id)).collect();
            if !wanted.contains(&true) {
                continue;
            }
            for first in (0..segment.page_count()).step_by(PAGES_AT_A_TIME) {
                stop()?;
                let pages = PAGES_AT_A_TIME.min(segment.page_count() - first);
                segment.read_rows(self.store.as_ref(), first, pages, &mut stored, &mut rows)?;
                for row in &rows {
                    if !wanted.get(row.pack_no as usize).copied().unwrap_or_default() {
                        continue;
                    }
                    let Location { pack, offset, stored_bytes, raw_bytes } = segment.location(row)?;
                    if end.is_some_and(|end| pack.id >= end) {
                        continue;
                    }
                    let of_pack = &mut gathered.entry(pack.id).or_insert_with(|| (pack, Vec::new())).1;
                    of_pack.push(TocRow { id: row.id, offset, stored_bytes, raw_bytes });
                    count += 1;
                    while count > rows_max && gathered.len() > 1 {
                        let Some((id, (_, rows))) = gathered.pop_last() else { break };
                        count -= rows.len();
                        end = Some(id);
                    }
                }
            }
        }
        for (_, rows) in gathered.values_mut() {
            rows.sort_unstable_by_key(|row| (row.offset, row.id));
            rows.dedup();
        }
        Ok(gathered)
    }
}

fn read_all(store: &dyn Store, segment: &super::Segment, stop: &dyn Fn() -> Result<()>) -> Result<()> {
    let (mut stored, mut rows) = (Vec::new(), Vec::new());
    for first in (0..segment.page_count()).step_by(PAGES_AT_A_TIME) {
        stop()?;
        let count = PAGES_AT_A_TIME.min(segment.page_count() - first);
        reread(store, segment.object(), || segment.read_rows(store, first, count, &mut stored, &mut rows))?;
        for row in &rows {
            segment.location(row)?;
        }
        if !rows.is_sorted_by(|one, other| one.id < other.id) {
            return Err(segment.disordered());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::{Cipher, ObjectKind};
    use crate::index::Claims;
    use crate::store::{Body, MemoryStore, Span};
    use zeroize::Zeroizing;

    fn pack(n: u8) -> PackRef {
        PackRef { id: ObjectId::new([n; 16]), salt: [n; 24], bytes: 1 << 20, kind: ObjectKind::Data }
    }

    fn rows(pack: u8) -> Vec<TocRow> {
        let row = |n: u32| TocRow {
            id: *blake3::hash(&[pack, n as u8]).as_bytes(),
            offset: 96 + 100 * n,
            stored_bytes: 100,
            raw_bytes: 4096,
        };
        (0..40).map(row).collect()
    }

    fn index(store: &Arc<MemoryStore>) -> (Index, Vec<BadSegment>) {
        let keys = Arc::new(RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm));
        let clock = crate::environment::Environment::real().clock;
        Index::load_sound(store.clone(), keys, clock, &|| Ok(())).unwrap()
    }

    #[test]
    fn rows_of_packs_come_in_as_many_passes_as_memory_asks_for() {
        let store = Arc::new(MemoryStore::default());
        for n in 1..9 {
            let claims = Claims::new(Arc::new(index(&store).0));
            claims.add_durable(pack(n), rows(n)).unwrap();
            claims.flush().unwrap();
        }
        let (index, _) = index(&store);
        for rows_max in [1, 100, 1000] {
            let mut left: HashSet<ObjectId> = (2..8).chain(20..22).map(|n| pack(n).id).collect();
            let (mut gathered, mut passes) = (RowsOfPacks::new(), 0);
            loop {
                let some = index.rows_of(&left, rows_max, &|| Ok(())).unwrap();
                let count: usize = some.values().map(|(_, rows)| rows.len()).sum();
                assert!(count <= rows_max.max(40), "{count} rows");
                if some.is_empty() {
                    break;
                }
                left.retain(|id| !some.contains_key(id));
                gathered.extend(some);
                passes += 1;
            }
            assert_eq!(
                passes,
                match rows_max {
                    1 => 6,
                    100 => 3,
                    _ => 1,
                }
            );
            assert_eq!(gathered.len(), 6);
            for (n, (of_pack, found)) in (2..8).zip(gathered.into_values()) {
                assert_eq!((of_pack, found), (pack(n), rows(n)));
            }
        }
    }

    #[test]
    fn what_is_damaged_is_left_out_and_superseded() {
        let store = Arc::new(MemoryStore::default());
        for n in 1..4 {
            let claims = Claims::new(Arc::new(index(&store).0));
            claims.add_durable(pack(n), rows(n)).unwrap();
            claims.flush().unwrap();
        }
        let mut names = Vec::new();
        store.list("index/", &mut |key, _| names.push(key.to_owned())).unwrap();
        for (name, at) in [(&names[0], 4096 + 300), (&names[2], 100)] {
            let mut bytes = Vec::new();
            store.get(name, Span::All, &mut bytes).unwrap();
            let place = if at == 100 { bytes.len() - at } else { at };
            bytes[place] ^= 1;
            store.delete(name).unwrap();
            store.put_new(name, Body::Bytes(&bytes)).unwrap();
        }
        store.put_new("index/strange", Body::Bytes(b"x")).unwrap();
        let (left, bad) = index(&store);
        assert_eq!(bad.len(), 3, "{bad:?}");
        let found = |index: &Index, n: u8| index.find_row(&rows(n)[7].id).unwrap().is_some();
        assert_eq!([1, 2, 3].map(|n| found(&left, n)), [false, true, false]);
        left.supersede(&bad.iter().filter_map(|bad| bad.id).collect::<Vec<_>>()).unwrap();
        store.delete("index/strange").unwrap();
        let keys = Arc::new(RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm));
        // Whoever opens the index now does not even open the damaged ones.
        let strict = Index::load(store.clone(), keys).unwrap();
        assert_eq!([1, 2, 3].map(|n| found(&strict, n)), [false, true, false]);
        assert!(strict.has_superseded());
    }
}
