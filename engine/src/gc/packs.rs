//! Which packs there are, and how much of each is needed.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::Result;
use crate::format::collection::Pack;
use crate::format::header::{HEADER_BYTES, ObjectKind, TAG_BYTES, TRAILER_BYTES};
use crate::format::pack::TOC_ROW_BYTES;
use crate::id::ObjectId;
use crate::index::Marks;
use crate::pack::list_packs;
use crate::store::Store;

/// All packs of a repository, in the order of their names.
pub struct Present(BTreeMap<ObjectId, (ObjectKind, u64)>);

/// Lists all packs.
pub fn list(store: &dyn Store) -> Result<Present> {
    Ok(Present(list_packs(store, usize::MAX)?))
}

impl Present {
    /// Calls `each(pack, bytes)` for all.
    pub fn each(&self, mut each: impl FnMut(Pack, u64)) {
        self.0.iter().for_each(|(id, (kind, bytes))| each(Pack { kind: *kind, id: *id }, *bytes));
    }

    /// True if the pack is there.
    pub fn has(&self, id: &ObjectId) -> bool {
        self.0.contains_key(id)
    }

    /// Its length; 0 if it is not there.
    pub fn bytes_of(&self, id: &ObjectId) -> u64 {
        self.0.get(id).map_or(0, |(_, bytes)| *bytes)
    }

    /// Those of `ids` that are there.
    pub fn of<'a>(&'a self, ids: &'a HashSet<ObjectId>) -> impl Iterator<Item = (Pack, u64)> + 'a {
        self.0
            .iter()
            .filter(|(id, _)| ids.contains(id))
            .map(|(id, (kind, bytes))| (Pack { kind: *kind, id: *id }, *bytes))
    }
}

/// What is needed of a pack.
#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    /// What a pack with just the needed frames would take.
    pub needed_bytes: u64,
}

impl Use {
    /// Adds a needed frame.
    pub fn need(&mut self, stored_bytes: u32) {
        if self.needed_bytes == 0 {
            self.needed_bytes = (HEADER_BYTES + TAG_BYTES + TRAILER_BYTES) as u64;
        }
        self.needed_bytes += u64::from(stored_bytes) + TOC_ROW_BYTES as u64;
    }
}

/// What is needed of all packs in the index.
pub struct Uses {
    /// Which rows are needed.
    pub marks: Marks,
    /// By pack.
    pub packs: HashMap<ObjectId, Use>,
    /// Rows in all live segments.
    pub rows: u64,
    /// Of them, those of packs that are decided on.
    pub gone_rows: u64,
}

impl Uses {
    /// What is needed of a pack; `None` if no index segment knows it.
    pub fn of(&self, id: &ObjectId) -> Option<Use> {
        self.packs.get(id).copied()
    }

    /// True if a recovery point needs it.
    pub fn is_needed(&self, id: &ObjectId) -> bool {
        self.of(id).is_some_and(|used| used.needed_bytes > 0)
    }

    /// Needed bytes of all packs.
    pub fn needed_bytes(&self) -> u64 {
        self.packs.values().map(|used| used.needed_bytes).sum()
    }
}
