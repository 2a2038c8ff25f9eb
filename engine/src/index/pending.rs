//! What this run has claimed, and what of it is durable but in no index segment yet.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard};

use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::ObjectId;

use super::writer::NewRow;

const SHARDS: usize = 64;

/// Hashes ids by taking eight of their bytes: they are hashes already.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The length prefix of arrays comes first and is overwritten by the bytes themselves.
        if let Some(word) = bytes.get(8..16) {
            let mut first = [0u8; 8];
            first.copy_from_slice(word);
            self.0 = u64::from_le_bytes(first);
        }
    }
}

type Ids = HashSet<[u8; 32], BuildHasherDefault<IdHasher>>;

/// Claims in shards, so that workers rarely meet, and the packs that wait for a segment.
pub struct Pending {
    claimed: Vec<Mutex<Ids>>,
    durable: Mutex<Vec<(PackRef, Vec<TocRow>)>>,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            claimed: (0..SHARDS).map(|_| Mutex::new(Ids::default())).collect(),
            durable: Mutex::new(Vec::new()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section is a single insert, remove or take: a panic cannot leave half of one.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Pending {
    fn shard(&self, id: &[u8; 32]) -> &Mutex<Ids> {
        &self.claimed[usize::from(id[0]) % SHARDS]
    }

    /// True if someone in this run claimed the id and its segment is not written yet.
    pub fn contains(&self, id: &[u8; 32]) -> bool {
        lock(self.shard(id)).contains(id)
    }

    /// True for the first caller.
    pub fn claim(&self, id: &[u8; 32]) -> bool {
        lock(self.shard(id)).insert(*id)
    }

    /// Adds a durable pack and returns how many rows wait for a segment.
    pub fn add_durable(&self, pack: PackRef, rows: Vec<TocRow>) -> usize {
        let mut durable = lock(&self.durable);
        durable.push((pack, rows));
        durable.iter().map(|(_, rows)| rows.len()).sum()
    }

    /// Takes what waits, as sorted rows and their packs.
    pub fn take_durable(&self) -> Option<(Vec<NewRow>, Vec<PackRef>)> {
        let durable = std::mem::take(&mut *lock(&self.durable));
        let mut rows = Vec::with_capacity(durable.iter().map(|(_, rows)| rows.len()).sum());
        let mut packs = Vec::with_capacity(durable.len());
        let mut numbers: HashMap<ObjectId, u32> = HashMap::with_capacity(durable.len());
        for (pack, contents) in durable {
            // Rows of one pack may come in parts: what was relied on by hints, and what was adopted.
            let pack_no = *numbers.entry(pack.id).or_insert_with(|| {
                packs.push(pack);
                packs.len() as u32 - 1
            });
            rows.extend(contents.into_iter().map(|row| NewRow {
                id: row.id,
                pack_no,
                offset: row.offset,
                stored_bytes: row.stored_bytes,
                raw_bytes: row.raw_bytes,
            }));
        }
        rows.sort_unstable_by_key(|row| row.id);
        rows.dedup_by(|a, b| a.id == b.id);
        (!rows.is_empty()).then_some((rows, packs))
    }

    /// Drops claims that a segment answers for.
    pub fn forget<'a>(&self, ids: impl Iterator<Item = &'a [u8; 32]>) {
        for id in ids {
            lock(self.shard(id)).remove(id);
        }
    }
}
