//! A volume: a sparse file that knows what was written since it was last looked at.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::store::BlockId;
use super::{BLOCK_BYTES, BlockMap, BlockStore, PAGE_BYTES, PackedBlock, ZERO_BLOCK};

const PAGE: u64 = PAGE_BYTES as u64;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A volume's bytes.
#[derive(Debug)]
pub struct VolumeFile {
    path: PathBuf,
    file: File,
    store: Arc<BlockStore>,
    filled: AtomicBool,
    written: Mutex<Written>,
}

/// What differs from `base`.
#[derive(Debug)]
struct Written {
    base: BlockMap,
    /// Anything may have been written.
    anywhere: bool,
    /// Blocks written by the lab itself.
    blocks: BTreeSet<u32>,
}

/// Blocks that are copied in the call that makes a volume; more are copied behind it.
const AT_ONCE: usize = 64;

fn index(offset: u64) -> io::Result<u32> {
    u32::try_from(offset / BLOCK).map_err(|_| io::Error::other("the volume is too big for block indices"))
}

impl VolumeFile {
    /// A new volume of `size_bytes` with the blocks of `base`, which are in the file when [`Self::fill`] has run.
    pub fn create(path: &Path, size_bytes: u64, base: &BlockMap) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(size_bytes)?;
        let written = Written { base: base.duplicate(), anywhere: false, blocks: BTreeSet::new() };
        let volume = Self {
            path: path.to_owned(),
            file,
            store: base.store().clone(),
            filled: AtomicBool::new(false),
            written: Mutex::new(written),
        };
        if base.entries().len() <= AT_ONCE {
            volume.fill()?;
        }
        Ok(volume)
    }

    /// Whether all blocks are in the file.
    pub fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    /// Copies the blocks that the volume was made of. Takes as much space as they have data.
    pub fn fill(&self) -> io::Result<()> {
        self.written().map(|_| ())
    }

    /// The lock, with the file filled.
    fn written(&self) -> io::Result<MutexGuard<'_, Written>> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_filled() {
            let size_bytes = self.size_bytes()?;
            for &(index, id) in written.base.entries() {
                let at = u64::from(index) * BLOCK;
                if at < size_bytes {
                    self.store
                        .runs(id, |page, bytes| self.file.write_all_at(bytes, at + page as u64 * PAGE))?;
                }
            }
            self.filled.store(true, Ordering::Release);
        }
        Ok(written)
    }

    /// Where the bytes are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Makes it bigger.
    pub fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.file.set_len(size_bytes)
    }

    /// From now on others may write into the file: the next snapshot looks at all data.
    pub fn others_may_write(&self) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).anywhere = true;
    }

    /// Writes as the guest does.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        if end > self.size_bytes()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the volume's end"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let mut written = self.written()?;
        written.blocks.extend(index(offset)?..=index(end - 1)?);
        self.file.write_all_at(bytes, offset)
    }

    /// Reads as the guest does.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.fill()?;
        self.file.read_exact_at(bytes, offset)
    }

    /// Writes what a file holds, from the volume's first byte on; the rest of the volume is zero then.
    pub fn write_file(&self, source: &Path) -> io::Result<()> {
        self.fill()?;
        let zeros = vec![0; BLOCK_BYTES];
        each_block_of_data(&self.file, self.file.metadata()?.len(), |at, length| {
            self.write(at, &zeros[..length])
        })?;
        let source = File::open(source)?;
        let mut buffer = vec![0; BLOCK_BYTES];
        each_block_of_data(&source, source.metadata()?.len(), |at, length| {
            let bytes = &mut buffer[..length];
            source.read_exact_at(bytes, at)?;
            self.write(at, bytes)
        })
    }

    /// The blocks of this moment. Takes time by what was written since the last call, or by the data of the volume if others may have written.
    pub fn snapshot(&self) -> io::Result<BlockMap> {
        let mut written = self.written()?;
        self.snapshot_of(&mut written)
    }

    /// The blocks of several volumes at one moment.
    pub fn snapshot_together(volumes: &[Arc<Self>]) -> io::Result<Vec<BlockMap>> {
        // in one order, so that two such calls do not wait for each other
        let mut order: Vec<usize> = (0..volumes.len()).collect();
        order.sort_by_key(|n| &volumes[*n].path);
        let mut locks = Vec::new();
        for &n in &order {
            locks.push((n, volumes[n].written()?));
        }
        locks.sort_by_key(|(n, _)| *n);
        locks.into_iter().map(|(n, mut written)| volumes[n].snapshot_of(&mut written)).collect()
    }

    fn snapshot_of(&self, written: &mut Written) -> io::Result<BlockMap> {
        let mut changes = Vec::new();
        let size_bytes = self.size_bytes()?;
        let looked = if written.anywhere {
            self.all_blocks(&written.base, size_bytes, &mut changes)
        } else {
            self.blocks(&written.blocks, size_bytes, &mut changes)
        };
        if let Err(error) = looked {
            self.store.release(changes.iter().map(|c| c.1));
            return Err(error);
        }
        let map = BlockMap::over(&written.base, changes);
        written.base = map.duplicate();
        written.blocks.clear();
        Ok(map)
    }

    fn blocks(
        &self,
        indices: &BTreeSet<u32>,
        size_bytes: u64,
        changes: &mut Vec<(u32, BlockId)>,
    ) -> io::Result<()> {
        let mut packed = PackedBlock::default();
        let mut buffer = vec![0; BLOCK_BYTES];
        for &index in indices {
            let start = u64::from(index) * BLOCK;
            let limit = size_bytes.min(start + BLOCK);
            packed.clear();
            let mut next = start;
            while let Some((from, to)) = data_extent(&self.file, next, limit)? {
                self.pack(&mut packed, from, to, &mut buffer)?;
                next = to;
            }
            changes.push((index, self.store.put(&packed)?));
        }
        Ok(())
    }

    /// Adds the bytes `from..to`, of one block, which start on a page.
    fn pack(&self, packed: &mut PackedBlock, from: u64, to: u64, buffer: &mut [u8]) -> io::Result<()> {
        let pages = usize::try_from((to - from).div_ceil(PAGE)).unwrap_or(0);
        let bytes = &mut buffer[..pages * PAGE_BYTES];
        let length = usize::try_from(to - from).unwrap_or(0);
        bytes[length..].fill(0);
        self.file.read_exact_at(&mut bytes[..length], from)?;
        packed.push(usize::try_from(from % BLOCK / PAGE).unwrap_or(0), bytes);
        Ok(())
    }

    fn all_blocks(
        &self,
        base: &BlockMap,
        size_bytes: u64,
        changes: &mut Vec<(u32, BlockId)>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BLOCK_BYTES];
        let mut packed = PackedBlock::default();
        let mut open: Option<u32> = None;
        let mut next = 0;
        while let Some((start, end)) = data_extent(&self.file, next, size_bytes)? {
            let mut at = start;
            while at < end {
                let block = index(at)?;
                if open.is_some_and(|o| o != block) {
                    changes.push((open.unwrap_or(block), self.store.put(&packed)?));
                    packed.clear();
                }
                open = Some(block);
                let to = end.min((u64::from(block) + 1) * BLOCK);
                self.pack(&mut packed, at, to, &mut buffer)?;
                at = to;
            }
            next = end;
        }
        if let Some(block) = open {
            changes.push((block, self.store.put(&packed)?));
        }
        // what was there and is a hole now: written with zeros, or discarded
        let mut seen = changes.iter().map(|c| c.0).peekable();
        let mut lost = Vec::new();
        for &(index, _) in base.entries() {
            while seen.next_if(|s| *s < index).is_some() {}
            if seen.peek() != Some(&index) {
                lost.push((index, ZERO_BLOCK));
            }
        }
        changes.extend(lost);
        changes.sort_unstable_by_key(|c| c.0);
        Ok(())
    }
}

impl Drop for VolumeFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Visits all bytes before `limit` that are not a hole: where, and how many, at most a block at a time.
fn each_block_of_data(
    file: &File,
    limit: u64,
    mut visit: impl FnMut(u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut next = 0;
    while let Some((start, end)) = data_extent(file, next, limit)? {
        let mut at = start;
        while at < end {
            let length = (end - at).min(BLOCK);
            visit(at, usize::try_from(length).unwrap_or(BLOCK_BYTES))?;
            at += length;
        }
        next = end;
    }
    Ok(())
}

/// The next bytes that are not a hole, from `from` on and before `limit`. Starts on a page.
fn data_extent(file: &File, from: u64, limit: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= limit {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start / PAGE * PAGE,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if start >= limit {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start.max(from / PAGE * PAGE), end.min(limit))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_follow_writes_known_and_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(BlockStore::create(&dir.path().join("blocks")).unwrap());
        let path = dir.path().join("vol");
        let volume = VolumeFile::create(&path, 1 << 30, &BlockMap::empty(&store)).unwrap();
        volume.write(BLOCK - 1, &[1, 2]).unwrap();
        volume.write(700 * BLOCK, &[0; 4096]).unwrap();
        let first = volume.snapshot().unwrap();
        assert_eq!(first.entries().iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1, 700]);
        assert_eq!(first.get(700), Some(ZERO_BLOCK));

        volume.others_may_write();
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", 5 * BLOCK + 9).unwrap();
        let second = volume.snapshot().unwrap();
        assert_eq!(second.differences(&first), [(5, false, true)]);

        let other = VolumeFile::create(&dir.path().join("other"), 1 << 30, &second).unwrap();
        let mut byte = [0; 2];
        other.read(5 * BLOCK + 9, &mut byte).unwrap();
        assert_eq!(byte, *b"x\0");
        assert_eq!(other.snapshot().unwrap().differences(&second), []);
        other.others_may_write();
        assert_eq!(other.snapshot().unwrap().differences(&second), []);
    }

    #[test]
    fn a_big_sparse_volume_is_cheap() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(BlockStore::create(&dir.path().join("blocks")).unwrap());
        let size_bytes = 16_383_u64 << 30;
        let volume =
            VolumeFile::create(&dir.path().join("vol"), size_bytes, &BlockMap::empty(&store)).unwrap();
        volume.others_may_write();
        for n in 0..2000 {
            volume.write(n * (size_bytes / 2000) / PAGE * PAGE, &n.to_le_bytes()).unwrap();
        }
        let began = std::time::Instant::now();
        assert_eq!(volume.snapshot().unwrap().entries().len(), 2000);
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}
