//! Contents that a run relies on because a pack's table of contents has them: to be looked up before the run publishes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::pending::IdHasher;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::ObjectId;
use crate::pack::Location;

type Rows = HashMap<[u8; 32], TocRow, std::hash::BuildHasherDefault<IdHasher>>;

/// Hints by pack, each content once.
#[derive(Default)]
pub struct Hinted(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    packs: HashMap<ObjectId, (PackRef, Rows)>,
    count: usize,
}

impl Hinted {
    /// Adds one; returns how many there are.
    pub fn add(&self, id: &[u8; 32], location: &Location) -> usize {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, rows) =
            inner.packs.entry(location.pack.id).or_insert_with(|| (location.pack, Rows::default()));
        let row = TocRow {
            id: *id,
            offset: location.offset,
            stored_bytes: location.stored_bytes,
            raw_bytes: location.raw_bytes,
        };
        let is_new = rows.insert(*id, row).is_none();
        inner.count += usize::from(is_new);
        inner.count
    }

    /// Takes all, by pack, each pack's in the order of ids.
    pub fn take(&self) -> Vec<(PackRef, Vec<TocRow>)> {
        let inner = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let sorted = |rows: Rows| {
            let mut rows: Vec<TocRow> = rows.into_values().collect();
            rows.sort_unstable_by_key(|row| row.id);
            rows
        };
        inner.packs.into_values().map(|(pack, rows)| (pack, sorted(rows))).collect()
    }
}
