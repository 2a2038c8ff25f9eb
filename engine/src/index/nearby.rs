//! Contents that were stored side by side come back side by side: after two hits in a pack, what else is in it is read at once from its table of
//! contents. Then the chunks of a duplicate stream are found without a page read, and a store that bills requests sees one for a pack.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{RwLock, RwLockWriteGuard};

use super::ways::Ways;
use crate::crypto::RepoKeys;
use crate::error::Error;
use crate::format::header::ObjectKind;
use crate::format::index_segment::{PackRef, filter_key};
use crate::pack::{Location, read_toc};
use crate::simulation::sized;
use crate::store::Store;

/// Contents remembered: those of some 40 packs, 4 MB.
const ROWS: usize = sized(64 << 10, 1 << 10);
/// Packs whose last hit is remembered.
const RECENT: usize = 256;
/// Packs whose contents can be in the cache.
const PACKS: usize = 256;

/// The neighbours of what was found lately.
pub struct Nearby {
    rows: Ways<[u8; 32], NearRow>,
    /// Packs that rows point to, in a ring, with the turn at which each came in.
    packs: RwLock<Vec<(u32, PackRef)>>,
    turns: AtomicU64,
    /// Marks of the packs last hit, and of those last read.
    hit: [AtomicU64; RECENT],
    read: [AtomicU64; RECENT],
    active: AtomicBool,
    /// A pack could not be read since it is archived: the others are not tried.
    archived: AtomicBool,
}

#[derive(Clone, Copy)]
struct NearRow {
    turn: u32,
    offset: u32,
    stored_bytes: u32,
    raw_bytes: u32,
}

impl Default for Nearby {
    fn default() -> Self {
        Self {
            rows: Ways::new(ROWS, true),
            packs: RwLock::default(),
            turns: AtomicU64::new(0),
            hit: [const { AtomicU64::new(0) }; RECENT],
            read: [const { AtomicU64::new(0) }; RECENT],
            active: AtomicBool::new(false),
            archived: AtomicBool::new(false),
        }
    }
}

impl Nearby {
    /// Where `id` is, if it is among the neighbours.
    pub fn find(&self, id: &[u8; 32]) -> Option<Location> {
        if !self.active.load(Ordering::Acquire) {
            return None;
        }
        let row = self.rows.get(filter_key(id), id, |row| *row)?;
        let packs = self.packs.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (turn, pack) = packs.get(row.turn as usize % PACKS)?;
        // Another pack may have taken the place since.
        (*turn == row.turn).then_some(Location {
            pack: *pack,
            offset: row.offset,
            stored_bytes: row.stored_bytes,
            raw_bytes: row.raw_bytes,
        })
    }

    /// Reads no data pack from now on.
    pub fn leave_data_alone(&self) {
        self.archived.store(true, Ordering::Relaxed);
    }

    /// Tells of a hit in the index. The second one in a pack makes its contents known, if they can be read.
    pub fn note(&self, store: &dyn Store, keys: &RepoKeys, pack: &PackRef) {
        let id = pack.id.as_bytes();
        let mark = u64::from_le_bytes([id[8], id[9], id[10], id[11], id[12], id[13], id[14], id[15]]) | 1;
        let place = usize::from(id[0]) % RECENT;
        if self.hit[place].swap(mark, Ordering::Relaxed) != mark
            || (pack.kind == ObjectKind::Data && self.archived.load(Ordering::Relaxed))
            || self.read[place].swap(mark, Ordering::Relaxed) == mark
        {
            return;
        }
        let rows = match read_toc(store, keys, pack) {
            Ok(rows) => rows,
            Err(error) => {
                if matches!(error, Error::Archived { .. }) {
                    self.archived.store(true, Ordering::Relaxed);
                }
                // Only a hint is lost: the index has answered, and who needs the pack will say what is wrong with it.
                tracing::debug!("no neighbours: {error}");
                return;
            }
        };
        let turn = self.turns.fetch_add(1, Ordering::Relaxed) as u32;
        self.enter(turn, pack);
        for row in &rows {
            let near = NearRow {
                turn,
                offset: row.offset,
                stored_bytes: row.stored_bytes,
                raw_bytes: row.raw_bytes,
            };
            self.rows.put(filter_key(&row.id), row.id, |_| near);
        }
        self.active.store(true, Ordering::Release);
    }

    fn enter(&self, turn: u32, pack: &PackRef) {
        let mut packs: RwLockWriteGuard<'_, _> =
            self.packs.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if packs.is_empty() {
            packs.resize(PACKS, (u32::MAX, *pack));
        }
        packs[turn as usize % PACKS] = (turn, *pack);
    }
}
