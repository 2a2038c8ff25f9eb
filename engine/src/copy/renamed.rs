//! What chunks of the source are called in the destination, as far as this run has found out lately.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::id::ChunkId;

/// Names in a generation; two are kept: 30 MB, the chunks of 16 GiB.
const GENERATION_NAMES: usize = 128 << 10;

/// A bounded map; what was not used for long is forgotten, and found out again by reading the chunk again.
#[derive(Default)]
pub struct Renamed(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<ChunkId, ChunkId>,
    old: HashMap<ChunkId, ChunkId>,
}

impl Generations {
    fn insert(&mut self, source: ChunkId, destination: ChunkId) {
        if self.young.len() >= GENERATION_NAMES {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(source, destination);
    }
}

impl Renamed {
    /// The destination's id of a chunk. Whoever asks keeps the chunk remembered.
    pub fn find(&self, source: &ChunkId) -> Option<ChunkId> {
        let mut names = self.lock();
        if let Some(found) = names.young.get(source) {
            return Some(*found);
        }
        let found = names.old.get(source).copied()?;
        names.insert(*source, found);
        Some(found)
    }

    /// Remembers pairs of source's and destination's id.
    pub fn learn(&self, pairs: &[(ChunkId, ChunkId)]) {
        let mut names = self.lock();
        pairs.iter().for_each(|(source, destination)| names.insert(*source, *destination));
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> ChunkId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        ChunkId::new(bytes)
    }

    #[test]
    fn what_is_used_is_remembered_and_the_rest_is_bounded() {
        let names = Renamed::default();
        names.learn(&[(id(1), id(2)), (id(3), id(4))]);
        for n in 0..2 * GENERATION_NAMES {
            names.learn(&[(id(10 + n), id(n))]);
            if n % 1000 == 0 {
                assert_eq!(names.find(&id(1)), Some(id(2)));
            }
        }
        assert_eq!(names.find(&id(3)), None);
        let names = names.lock();
        assert!(names.young.len() + names.old.len() <= 2 * GENERATION_NAMES);
    }
}
