//! Which blocks a snapshot has.

use std::io;
use std::sync::Arc;

use super::store::{BlockId, BlockStore};
use super::{BLOCK_BYTES, PackedBlock};

/// Blocks ever written, by index; the rest was never written, and reads as zeros. Holds a reference of each.
#[derive(Debug)]
pub struct BlockMap {
    store: Arc<BlockStore>,
    entries: Vec<(u32, BlockId)>,
}

impl BlockMap {
    /// Nothing was written.
    pub fn empty(store: &Arc<BlockStore>) -> Self {
        Self { store: store.clone(), entries: Vec::new() }
    }

    /// `base` with `changes` over it. The references of `changes`, which are sorted, go over to the map.
    pub fn over(base: &Self, changes: Vec<(u32, BlockId)>) -> Self {
        debug_assert!(changes.is_sorted_by_key(|c| c.0));
        let mut entries = Vec::with_capacity(base.entries.len() + changes.len());
        let mut kept = Vec::new();
        let mut old = base.entries.iter().copied().peekable();
        for change in changes {
            while let Some(entry) = old.next_if(|e| e.0 < change.0) {
                kept.push(entry.1);
                entries.push(entry);
            }
            old.next_if(|e| e.0 == change.0);
            entries.push(change);
        }
        for entry in old {
            kept.push(entry.1);
            entries.push(entry);
        }
        base.store.retain(kept.into_iter());
        Self { store: base.store.clone(), entries }
    }

    /// The same blocks, with references of its own.
    pub fn duplicate(&self) -> Self {
        Self::over(self, Vec::new())
    }

    /// Written blocks, sorted by index.
    pub fn entries(&self) -> &[(u32, BlockId)] {
        &self.entries
    }

    /// The block at an index, if it was ever written.
    pub fn get(&self, index: u32) -> Option<BlockId> {
        let found = self.entries.binary_search_by_key(&index, |e| e.0).ok()?;
        Some(self.entries[found].1)
    }

    /// Where the store is.
    pub fn store(&self) -> &Arc<BlockStore> {
        &self.store
    }

    /// Reads a block; never written ones are zeros.
    pub fn read(&self, index: u32, block: &mut [u8; BLOCK_BYTES]) -> io::Result<()> {
        if let Some(id) = self.get(index) {
            self.store.read(id, block)
        } else {
            block.fill(0);
            Ok(())
        }
    }

    /// Indices that differ from `first`: index, whether `first` has it, whether this one has it.
    pub fn differences(&self, first: &Self) -> Vec<(u32, bool, bool)> {
        let mut found = Vec::new();
        let mut old = first.entries.iter().copied().peekable();
        for &(index, id) in &self.entries {
            while let Some(entry) = old.next_if(|e| e.0 < index) {
                found.push((entry.0, true, false));
            }
            match old.next_if(|e| e.0 == index) {
                Some(entry) if entry.1 == id => {}
                same => found.push((index, same.is_some(), true)),
            }
        }
        found.extend(old.map(|entry| (entry.0, true, false)));
        found
    }

    /// Stores a block for a map to be made by [`Self::over`].
    pub fn store_block(store: &BlockStore, block: &[u8]) -> io::Result<BlockId> {
        store.put(&PackedBlock::of(block))
    }
}

impl Drop for BlockMap {
    fn drop(&mut self) {
        self.store.release(self.entries.iter().map(|e| e.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_was_added_changed_and_lost() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(BlockStore::create(&dir.path().join("blocks")).unwrap());
        let block = |byte: u8| BlockMap::store_block(&store, &vec![byte; BLOCK_BYTES]).unwrap();
        let first =
            BlockMap::over(&BlockMap::empty(&store), vec![(1, block(1)), (5, block(5)), (7, block(7))]);
        let second = BlockMap::over(&first, vec![(0, block(9)), (5, block(6)), (7, block(7))]);
        assert_eq!(second.differences(&first), [(0, false, true), (5, true, true)]);
        let other = BlockMap::over(&BlockMap::empty(&store), vec![(5, block(5))]);
        assert_eq!(other.differences(&first), [(1, true, false), (7, true, false)]);
        drop((first, second, other));
        assert!(store.is_empty(), "{store:?}");
    }
}
