//! Immutable blocks in one sparse file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use sha2::{Digest, Sha256};

use super::{BLOCK_BYTES, BLOCK_PAGES, PAGE_BYTES};

/// A stored block. Equal ids mean equal contents.
pub type BlockId = u32;

/// The block of zeros; it takes no space.
pub const ZERO_BLOCK: BlockId = 0;

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A block without its zero pages.
#[derive(Debug, Default)]
pub struct PackedBlock {
    /// Bit *n*: page *n* is among `pages`.
    mask: u128,
    pages: Vec<u8>,
}

impl PackedBlock {
    /// Packs a whole block.
    pub fn of(block: &[u8]) -> Self {
        let mut packed = Self::default();
        packed.push(0, block);
        packed
    }

    /// Adds pages, in order, from page `first` of the block on.
    pub fn push(&mut self, first: usize, bytes: &[u8]) {
        for (n, page) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            if page != ZERO_PAGE {
                self.mask |= 1 << (first + n);
                self.pages.extend_from_slice(page);
            }
        }
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.mask = 0;
        self.pages.clear();
    }

    fn key(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        hash.update(self.mask.to_le_bytes());
        hash.update(&self.pages);
        let mut key = [0; 16];
        key.copy_from_slice(&hash.finalize()[..16]);
        key
    }
}

#[derive(Clone, Copy)]
struct Row {
    first_page: u64,
    mask: u128,
    references: u32,
    key: [u8; 16],
}

impl Row {
    /// Its first page in the file, and the one behind its last.
    fn pages(&self) -> (u64, u64) {
        (self.first_page, self.first_page + u64::from(self.mask.count_ones()))
    }
}

#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    free: Vec<BlockId>,
    by_key: HashMap<[u8; 16], BlockId>,
    end_page: u64,
}

/// The store. References are counted; [`super::BlockMap`] holds and gives them back.
pub struct BlockStore {
    file: File,
    rows: Mutex<Rows>,
}

impl std::fmt::Debug for BlockStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStore").field("blocks", &self.len()).finish_non_exhaustive()
    }
}

impl BlockStore {
    /// An empty store in a new file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let zero = Row { first_page: 0, mask: 0, references: 1, key: PackedBlock::default().key() };
        let rows =
            Rows { rows: vec![zero], by_key: HashMap::from([(zero.key, ZERO_BLOCK)]), ..Rows::default() };
        Ok(Self { file, rows: Mutex::new(rows) })
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Different blocks in the store, without the one of zeros.
    pub fn len(&self) -> usize {
        let rows = self.rows();
        rows.rows.len() - 1 - rows.free.len()
    }

    /// Whether nothing but zeros is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores a block, or finds it; the caller has one reference more.
    pub fn put(&self, block: &PackedBlock) -> io::Result<BlockId> {
        if block.mask == 0 {
            return Ok(ZERO_BLOCK);
        }
        let key = block.key();
        let first_page = {
            let mut rows = self.rows();
            if let Some(id) = rows.retain_key(&key) {
                return Ok(id);
            }
            let first = rows.end_page;
            rows.end_page += u64::from(block.mask.count_ones());
            first
        };
        self.file.write_all_at(&block.pages, first_page * PAGE_BYTES as u64)?;
        let mut rows = self.rows();
        let row = Row { first_page, mask: block.mask, references: 1, key };
        if let Some(id) = rows.retain_key(&key) {
            // somebody else was quicker with the same block
            drop(rows);
            let (from, to) = row.pages();
            self.punch(from, to);
            return Ok(id);
        }
        let id = match rows.free.pop() {
            Some(id) => id,
            None => {
                let id =
                    BlockId::try_from(rows.rows.len()).map_err(|_| io::Error::other("too many blocks"))?;
                rows.rows.push(row);
                id
            }
        };
        rows.rows[id as usize] = row;
        rows.by_key.insert(key, id);
        Ok(id)
    }

    /// Takes one reference more of each.
    pub fn retain(&self, ids: impl Iterator<Item = BlockId>) {
        let mut rows = self.rows();
        for id in ids.filter(|id| *id != ZERO_BLOCK) {
            rows.rows[id as usize].references += 1;
        }
    }

    /// Gives one reference of each back; what nobody holds is removed.
    pub fn release(&self, ids: impl Iterator<Item = BlockId>) {
        let mut gone = Vec::new();
        let mut rows = self.rows();
        for id in ids.filter(|id| *id != ZERO_BLOCK) {
            let row = &mut rows.rows[id as usize];
            row.references -= 1;
            if row.references == 0 {
                let row = *row;
                rows.by_key.remove(&row.key);
                rows.free.push(id);
                gone.push(row);
            }
        }
        drop(rows);
        // what was stored together leaves together
        let mut pages: Vec<(u64, u64)> = gone.iter().map(Row::pages).collect();
        pages.sort_unstable();
        let mut hole: Option<(u64, u64)> = None;
        for (from, to) in pages {
            hole = match hole {
                Some((start, end)) if end == from => Some((start, to)),
                before => {
                    before.into_iter().for_each(|(start, end)| self.punch(start, end));
                    Some((from, to))
                }
            };
        }
        hole.into_iter().for_each(|(start, end)| self.punch(start, end));
    }

    /// Gives the space of pages back.
    fn punch(&self, from_page: u64, to_page: u64) {
        let offset = from_page * PAGE_BYTES as u64;
        let length = (to_page - from_page) * PAGE_BYTES as u64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // where holes cannot be made, the space comes back with the directory
        let _ = fallocate(&self.file, flags, offset, length);
    }

    /// Reads a block.
    pub fn read(&self, id: BlockId, block: &mut [u8; BLOCK_BYTES]) -> io::Result<()> {
        block.fill(0);
        self.runs(id, |page, bytes| {
            let from = page * PAGE_BYTES;
            block[from..from + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
    }

    /// Hands over the pages of a block that are not zero, in runs: number of the first page, and the bytes.
    pub fn runs(&self, id: BlockId, mut each: impl FnMut(usize, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let row = self.rows().rows[id as usize];
        let mut pages = vec![0; row.mask.count_ones() as usize * PAGE_BYTES];
        self.file.read_exact_at(&mut pages, row.first_page * PAGE_BYTES as u64)?;
        let (mut page, mut at) = (0, 0);
        while page < BLOCK_PAGES {
            let length = (row.mask >> page).trailing_ones() as usize;
            if length == 0 {
                page += 1;
                continue;
            }
            let end = at + length * PAGE_BYTES;
            each(page, &pages[at..end])?;
            page += length;
            at = end;
        }
        Ok(())
    }
}

impl Rows {
    fn retain_key(&mut self, key: &[u8; 16]) -> Option<BlockId> {
        let id = *self.by_key.get(key)?;
        self.rows[id as usize].references += 1;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_once_and_leave_with_their_last_reference() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlockStore::create(&dir.path().join("blocks")).unwrap();
        let mut block = vec![0_u8; BLOCK_BYTES];
        block[5 * PAGE_BYTES] = 1;
        block[BLOCK_BYTES - 1] = 2;
        let id = store.put(&PackedBlock::of(&block)).unwrap();
        assert_eq!(store.put(&PackedBlock::of(&block)).unwrap(), id);
        let mut back = Box::new([9; BLOCK_BYTES]);
        store.read(id, &mut back).unwrap();
        assert!(back[..] == block[..]);
        store.release([id].into_iter());
        assert_eq!(store.len(), 1);
        store.release([id].into_iter());
        assert!(store.is_empty());
        assert_eq!(store.put(&PackedBlock::of(&vec![0; BLOCK_BYTES])).unwrap(), ZERO_BLOCK);
    }

    #[test]
    fn space_comes_back() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blocks");
        let store = BlockStore::create(&path).unwrap();
        let put = |byte: u8| store.put(&PackedBlock::of(&vec![byte; BLOCK_BYTES])).unwrap();
        let ids: Vec<BlockId> = (1..=8).map(put).collect();
        let kept = ids[3];
        store.release(ids.into_iter().filter(|id| *id != kept));
        store.file.sync_all().unwrap();
        let stored = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(stored, BLOCK_BYTES as u64);
        let mut back = Box::new([0; BLOCK_BYTES]);
        store.read(kept, &mut back).unwrap();
        assert!(back.iter().all(|b| *b == 4));
    }
}
