//! An image in the format of QEMU (qcow2, version 3) as a sink of blocks:
//! <https://www.qemu.org/docs/master/interop/qcow2.html>. Clusters of data are appended in the order they come,
//! without compression or a backing file; clusters of zeros are left out. Where they lie is kept in memory until
//! [`Qcow2Sink::finish`].
//!
//! ```text
//!  header │ clusters of data … │ L2 tables │ L1 table │ refcount blocks │ refcount table
//! ```
//!
//! Each starts at a cluster's border. The header is written last: what is not finished is not an image.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::file::direct_writes_work;
use super::{BlockSink, Locked, TargetKind, TargetOptions, full, probe, refused, sync_parent};
use crate::error::{Error, Result};
use crate::io::AlignedBuf;
use crate::io::file::set_direct;
use crate::limits::{IO_ALIGN, SEGMENT_BYTES};

const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
const HEADER_BYTES: u32 = 104;
/// The only user of a cluster: it may be written in place. Set in L1 and L2 entries.
const COPIED: u64 = 1 << 63;
/// Refcounts have `1 << REFCOUNT_ORDER` bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNT_BYTES: u64 = 2;
const ENTRY_BYTES: u64 = 8;
/// QEMU's default, and the largest it reads.
const CLUSTER_BITS_MIN: u32 = 16;
const CLUSTER_BITS_MAX: u32 = 21;
/// Clusters that an image has at most before they become larger: where they lie is then at most 32 MiB of memory up
/// to 16 TiB, and 8 MiB of tables for each TiB.
const CLUSTERS_MAX: u64 = 8 << 20;
/// The unit that QEMU counts an image's size in.
const SECTOR_BYTES: u64 = 512;
/// Writes under way at a time.
const PARALLEL: usize = 4;
/// What helps where the image finds no room: what was written of it is removed.
const FULL: &str = "free some space there and run the same command again: it starts anew";

/// A qcow2 image that is being made.
pub struct Qcow2Sink {
    file: File,
    path: PathBuf,
    name: String,
    size_bytes: u64,
    cluster_bits: u32,
    /// Writes have to be aligned.
    direct: bool,
    clusters: Mutex<Clusters>,
}

/// Which clusters lie where in the file.
struct Clusters {
    /// By L2 table: the number of each cluster in the file, 0 where there is none.
    tables: Vec<Option<Box<[u32]>>>,
    /// The first that is free.
    next: u32,
    finished: bool,
}

impl Qcow2Sink {
    /// Starts an image for a volume of `size_bytes`. A file that is there is overwritten with `force` only.
    pub fn create(path: &Path, size_bytes: u64, force: bool) -> Result<Self> {
        let options = TargetOptions { size_bytes, force, ..TargetOptions::default() };
        options.check_size()?;
        let probed = probe(path)?;
        if probed.kind() != TargetKind::File {
            return Err(refused(&path.display().to_string(), "a qcow2 image has to be a regular file"));
        }
        let Locked { file, name, .. } = probed.lock(false)?.check(options)?.locked;
        file.set_len(0).map_err(Error::io("empty", &name))?;
        let direct = set_direct(&file) && direct_writes_work(&file).map_err(Error::io("write", &name))?;
        let cluster_bits = cluster_bits(size_bytes);
        let tables = size_bytes.div_ceil(1 << (2 * cluster_bits - ENTRY_BYTES.ilog2())).max(1);
        let clusters = Clusters { tables: vec![None; tables as usize], next: 1, finished: false };
        let path = path.to_owned();
        Ok(Self { file, path, name, size_bytes, cluster_bits, direct, clusters: Mutex::new(clusters) })
    }

    /// Writes the tables and, when all else is on the medium, the header. No blocks can be put after that.
    pub fn finish(&self) -> Result<()> {
        let sync = || {
            let synced = self.file.sync_all().map_err(Error::io("sync", &self.name));
            synced.map_err(|error| full(error, FULL))
        };
        let mut clusters = self.clusters();
        let header = self.write_tables(&mut clusters)?;
        sync()?;
        self.write_clusters(0, &header)?;
        sync()?;
        sync_parent(&self.path)?;
        clusters.finished = true;
        Ok(())
    }

    fn clusters(&self) -> MutexGuard<'_, Clusters> {
        // Each critical section takes numbers or writes tables: a panic leaves clusters that nobody uses.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn cluster_buf(&self) -> AlignedBuf {
        AlignedBuf::new(1 << self.cluster_bits)
    }

    /// Takes a cluster of the file for each of the block that has data, and returns the first of them.
    fn take(&self, block: u64, data: &[bool]) -> Result<u64> {
        let wrong = |what: &str| Error::Invalid { what: format!("internal error: {}: {what}", self.name) };
        let per_table = self.cluster_bytes() / ENTRY_BYTES;
        let first = block * (SEGMENT_BYTES as u64 >> self.cluster_bits);
        let mut clusters = self.clusters();
        let Clusters { tables, next, .. } = &mut *clusters;
        let taken = *next;
        for (no, _) in data.iter().enumerate().filter(|(_, data)| **data) {
            let cluster = first + no as u64;
            let table = tables.get_mut((cluster / per_table) as usize);
            let table = table.ok_or_else(|| wrong("a block behind the volume's end, or after the end"))?;
            let table = table.get_or_insert_with(|| vec![0; per_table as usize].into());
            table[(cluster % per_table) as usize] = *next;
            *next = next.checked_add(1).ok_or_else(|| wrong("too many clusters"))?;
        }
        Ok(taken.into())
    }

    /// Writes clusters of data, which lie anywhere in memory.
    fn write_data(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if !self.direct || bytes.as_ptr().addr().is_multiple_of(IO_ALIGN) {
            return self.write_clusters(at, bytes);
        }
        let mut aligned = AlignedBuf::new(bytes.len());
        aligned.copy_from_slice(bytes);
        self.write_clusters(at, &aligned)
    }

    /// Appends all tables, and returns the header for them.
    fn write_tables(&self, clusters: &mut Clusters) -> Result<AlignedBuf> {
        let cluster_bytes = self.cluster_bytes();
        let tables = std::mem::take(&mut clusters.tables);
        if tables.is_empty() {
            let what = format!("internal error: {} was finished before, or that has failed", self.name);
            return Err(Error::Invalid { what });
        }
        let mut next = u64::from(clusters.next);
        let mut l1 = Vec::with_capacity(tables.len());
        for table in &tables {
            l1.push(if table.is_some() { (next * cluster_bytes) | COPIED } else { 0 });
            if let Some(table) = table {
                let offset = |cluster: u32| match cluster {
                    0 => 0,
                    cluster => (u64::from(cluster) * cluster_bytes) | COPIED,
                };
                next = self.write_entries(next, table.iter().map(|cluster| offset(*cluster)))?;
            }
        }
        let l1_at = next;
        next = self.write_entries(next, l1.iter().copied())?;

        // Refcounts count what holds them too.
        let refcounts_at = next;
        let (per_block, per_table) = (cluster_bytes / REFCOUNT_BYTES, cluster_bytes / ENTRY_BYTES);
        let (mut blocks, mut table) = (0, 0);
        loop {
            let needed_blocks = (refcounts_at + blocks + table).div_ceil(per_block);
            let needed_table = needed_blocks.div_ceil(per_table);
            if (needed_blocks, needed_table) == (blocks, table) {
                break;
            }
            (blocks, table) = (needed_blocks, needed_table);
        }
        let all = refcounts_at + blocks + table;
        let mut buf = self.cluster_buf();
        for block in 0..blocks {
            let used = (all - block * per_block).min(per_block);
            buf.fill(0);
            for refcount in buf.chunks_exact_mut(REFCOUNT_BYTES as usize).take(used as usize) {
                refcount.copy_from_slice(&1u16.to_be_bytes());
            }
            self.write_clusters(refcounts_at + block, &buf)?;
        }
        let table_at = refcounts_at + blocks;
        self.write_entries(table_at, (0..blocks).map(|block| (refcounts_at + block) * cluster_bytes))?;

        let mut header = self.cluster_buf();
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            header[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC.to_be_bytes());
        put(&VERSION.to_be_bytes());
        put(&[0; 12]); // no backing file
        put(&self.cluster_bits.to_be_bytes());
        put(&self.size_bytes.next_multiple_of(SECTOR_BYTES).to_be_bytes());
        put(&0u32.to_be_bytes()); // not encrypted
        put(&(l1.len() as u32).to_be_bytes());
        put(&(l1_at * cluster_bytes).to_be_bytes());
        put(&(table_at * cluster_bytes).to_be_bytes());
        put(&(table as u32).to_be_bytes());
        put(&[0; 12]); // no snapshots
        put(&[0; 24]); // no features
        put(&REFCOUNT_ORDER.to_be_bytes());
        put(&HEADER_BYTES.to_be_bytes());
        Ok(header) // the zeros that follow end the list of extensions
    }

    /// Writes a table from cluster `at` on, and returns the first cluster behind it.
    fn write_entries(&self, mut at: u64, mut entries: impl Iterator<Item = u64>) -> Result<u64> {
        let mut buf = self.cluster_buf();
        let mut more = entries.next();
        while more.is_some() {
            buf.fill(0);
            for place in buf.chunks_exact_mut(ENTRY_BYTES as usize) {
                let Some(entry) = more else { break };
                place.copy_from_slice(&entry.to_be_bytes());
                more = entries.next();
            }
            self.write_clusters(at, &buf)?;
            at += 1;
        }
        Ok(at)
    }

    /// Writes whole clusters from cluster `at` on.
    fn write_clusters(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let position = at * self.cluster_bytes();
        let fail = || format!("{} ({} bytes at offset {position})", self.name, bytes.len());
        self.file.write_all_at(bytes, position).map_err(|e| full(Error::io("write", fail())(e), FULL))
    }
}

/// Bits of a cluster's length for a volume of that size.
fn cluster_bits(size_bytes: u64) -> u32 {
    (CLUSTER_BITS_MIN..CLUSTER_BITS_MAX)
        .find(|bits| size_bytes.div_ceil(1 << bits) <= CLUSTERS_MAX)
        .unwrap_or(CLUSTER_BITS_MAX)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(IO_ALIGN).all(|part| *part == [0; IO_ALIGN][..part.len()])
}

impl BlockSink for Qcow2Sink {
    fn name(&self) -> &str {
        &self.name
    }

    /// A segment: what is restored together is written together.
    fn block_bytes(&self) -> u32 {
        SEGMENT_BYTES as u32
    }

    fn parallel(&self) -> usize {
        PARALLEL
    }

    fn has(&self, _block: u64) -> bool {
        false
    }

    /// On the medium it is when [`Qcow2Sink::finish`] has returned.
    fn put(&self, block: u64, bytes: Bytes) -> Result<()> {
        let cluster_bytes = self.cluster_bytes() as usize;
        let data: Vec<bool> = bytes.chunks(cluster_bytes).map(|cluster| !is_zero(cluster)).collect();
        let mut at = self.take(block, &data)?;
        let mut start = 0;
        for run in data.chunk_by(|a, b| a == b) {
            let end = start + run.len();
            if run[0] {
                self.write_data(at, &bytes[start * cluster_bytes..end * cluster_bytes])?;
                at += run.len() as u64;
            }
            start = end;
        }
        Ok(())
    }
}

impl Drop for Qcow2Sink {
    /// What was not finished is of no use to anyone.
    fn drop(&mut self) {
        if !self.clusters().finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::VOLUME_BYTES_MAX;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A reader that knows just this much of the format. It checks that each cluster has one user and says so.
    struct Image {
        bytes: Vec<u8>,
        users: BTreeMap<u64, &'static str>,
        cluster_bytes: u64,
    }

    impl Image {
        fn u32(&self, at: u64) -> u64 {
            u32::from_be_bytes(self.bytes[at as usize..at as usize + 4].try_into().unwrap()).into()
        }

        fn u64(&self, at: u64) -> u64 {
            u64::from_be_bytes(self.bytes[at as usize..at as usize + 8].try_into().unwrap())
        }

        fn uses(&mut self, at: u64, clusters: u64, what: &'static str) {
            for cluster in at / self.cluster_bytes..at / self.cluster_bytes + clusters {
                assert!(at.is_multiple_of(self.cluster_bytes), "{what} at {at}");
                let before = self.users.insert(cluster, what);
                assert_eq!(before, None, "cluster {cluster} is used for {what} too");
            }
        }

        fn entries(&self, at: u64, count: u64) -> Vec<u64> {
            (0..count).map(|no| self.u64(at + no * 8)).collect()
        }

        /// The contents of the image.
        fn read(path: &Path) -> Vec<u8> {
            let bytes = fs::read(path).unwrap();
            let mut image = Self { bytes, users: BTreeMap::new(), cluster_bytes: 0 };
            assert_eq!((image.u32(0), image.u32(4)), (0x5146_49fb, 3));
            let cluster_bytes = 1 << image.u32(20);
            image.cluster_bytes = cluster_bytes;
            image.uses(0, 1, "header");
            assert_eq!((image.u64(8), image.u32(16), image.u32(32), image.u32(60)), (0, 0, 0, 0));
            assert_eq!((image.u64(72), image.u32(96), image.u32(100), image.u64(104)), (0, 4, 104, 0));
            let size = image.u64(24);
            let mut contents = vec![0; size as usize];
            let (l1_len, l1_at) = (image.u32(36), image.u64(40));
            let reach = cluster_bytes * cluster_bytes / 8;
            assert_eq!(l1_len, size.div_ceil(reach).max(1));
            image.uses(l1_at, (l1_len * 8).div_ceil(cluster_bytes), "l1");
            for (no, l1) in image.entries(l1_at, l1_len).into_iter().enumerate().filter(|(_, l1)| *l1 > 0) {
                let l2_at = l1 ^ COPIED;
                image.uses(l2_at, 1, "l2");
                for (index, l2) in image.entries(l2_at, cluster_bytes / 8).into_iter().enumerate() {
                    if l2 == 0 {
                        continue;
                    }
                    let host = l2 ^ COPIED;
                    image.uses(host, 1, "data");
                    let start = no as u64 * reach + index as u64 * cluster_bytes;
                    let end = (start + cluster_bytes).min(size);
                    let from = &image.bytes[host as usize..(host + end - start) as usize];
                    contents[start as usize..end as usize].copy_from_slice(from);
                }
            }
            image.check_refcounts();
            contents
        }

        fn check_refcounts(&mut self) {
            let (table_at, table_clusters) = (self.u64(48), self.u32(56));
            self.uses(table_at, table_clusters, "refcount table");
            let mut counted = BTreeMap::new();
            let blocks = self.entries(table_at, table_clusters * self.cluster_bytes / 8);
            for (no, block) in blocks.into_iter().enumerate().filter(|(_, block)| *block > 0) {
                self.uses(block, 1, "refcounts");
                for index in 0..self.cluster_bytes / 2 {
                    let at = (block + index * 2) as usize;
                    match u16::from_be_bytes(self.bytes[at..at + 2].try_into().unwrap()) {
                        0 => {}
                        1 => drop(counted.insert(no as u64 * self.cluster_bytes / 2 + index, ())),
                        other => panic!("refcount {other}"),
                    }
                }
            }
            assert!(counted.keys().eq(self.users.keys()), "what is used is counted, and nothing else");
            assert_eq!(self.bytes.len() as u64, self.users.len() as u64 * self.cluster_bytes, "and no gaps");
        }
    }

    fn block(seed: u64, holes: u64) -> Bytes {
        let mut block = vec![0; SEGMENT_BYTES];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut block);
        for (no, part) in block.chunks_mut(64 << 10).enumerate().filter(|(no, _)| holes >> no & 1 == 1) {
            part[no % 2..].fill(0); // some keep one byte
        }
        block.into()
    }

    /// What qemu-img says of it, where there is one: that it is sound, and has the `contents`.
    fn ask_qemu(path: &Path, contents: Option<&[u8]>) {
        let ask = |args: &[&str]| {
            let output = std::process::Command::new("qemu-img").args(args).output().ok()?;
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{args:?}: {said}");
            Some(said.into_owned())
        };
        let image = path.to_str().unwrap();
        let Some(said) = ask(&["check", image]) else { return };
        assert!(said.contains("No errors"), "{said}");
        let raw = path.with_extension("raw");
        if let Some(contents) = contents {
            fs::write(&raw, contents).unwrap();
            ask(&["compare", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap(), image]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn what_was_put_is_read(
            size in prop_oneof![0u64..100_000, 1u64..(40 << 20)],
            mut puts in proptest::collection::btree_map(0u64..10, any::<u64>(), 0..8),
            reversed in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk.qcow2");
            let sink = Qcow2Sink::create(&path, size, false).unwrap();
            puts.retain(|no, _| no * (SEGMENT_BYTES as u64) < size);
            let mut expected = vec![0; size.next_multiple_of(512) as usize];
            let mut order: Vec<_> = puts.into_iter().collect();
            if reversed {
                order.reverse();
            }
            for (no, holes) in order {
                let place = no as usize * SEGMENT_BYTES..((no + 1) as usize * SEGMENT_BYTES).min(size as usize);
                let mut bytes = block(no, holes).to_vec();
                bytes[place.len()..].fill(0);
                expected[place.clone()].copy_from_slice(&bytes[..place.len()]);
                sink.put(no, bytes.into()).unwrap();
            }
            prop_assert!(fs::read(&path).unwrap().first().is_none_or(|byte| *byte == 0), "no header yet");
            sink.finish().unwrap();
            drop(sink);
            prop_assert!(Image::read(&path) == expected);
            ask_qemu(&path, Some(&expected));
        }
    }

    #[test]
    fn clusters_grow_with_the_volume() {
        const TIB: u64 = 1 << 40;
        let bits: Vec<u32> =
            [0, TIB / 2, TIB / 2 + 1, TIB, 16 * TIB, 64 * TIB, VOLUME_BYTES_MAX].map(cluster_bits).to_vec();
        assert_eq!(bits, vec![16, 16, 17, 17, 21, 21, 21]);
        let dir = tempfile::tempdir().unwrap();
        for size in [2 * TIB, 16 * TIB] {
            let path = dir.path().join(format!("{size}.qcow2"));
            let sink = Qcow2Sink::create(&path, size, false).unwrap();
            sink.put(size / SEGMENT_BYTES as u64 - 1, block(1, u64::MAX)).unwrap();
            assert!(sink.put(size / SEGMENT_BYTES as u64 * 8, block(1, 0)).is_err(), "behind the end");
            sink.finish().unwrap();
            assert!(sink.put(0, block(1, 0)).is_err(), "it is finished");
            drop(sink); // and with it its lock, which keeps others off
            ask_qemu(&path, None);
        }
    }

    #[test]
    fn files_are_not_overwritten_unasked_and_what_was_not_finished_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        fs::write(&path, b"precious").unwrap();
        let refused = Qcow2Sink::create(&path, 1 << 20, false).err().unwrap();
        assert!(matches!(refused, Error::TargetRefused { .. }), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(Qcow2Sink::create(dir.path(), 1 << 20, true).is_err(), "a directory");
        let sink = Qcow2Sink::create(&path, 1 << 20, true).unwrap();
        let second = Qcow2Sink::create(&path, 1 << 20, true).err().unwrap();
        assert!(second.to_string().contains("another restore"), "{second}");
        assert!(path.exists());
        drop(sink);
        assert!(!path.exists());
    }
}
