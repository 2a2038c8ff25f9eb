//! What is backed up: disks made of a few files, so that what one point leaves another one finds, and a
//! source that reads them by ranges.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use penstock_engine::Result;
use penstock_engine::source::{Extents, Fetched, OpenFile, RangeSource, Source, SourceKind};

use super::rng::Rng;

const BLOCK: usize = 4096;

/// A disk at some time.
pub struct Disk {
    pub bytes: Vec<u8>,
    /// What is not a hole.
    pub data: Vec<Range<u64>>,
    /// The numbers of its files, in their order.
    pub files: Vec<u64>,
    hole_bytes: usize,
}

/// Bytes of a file: the same number gives the same bytes, in every world.
fn file(number: u64) -> Vec<u8> {
    // A few chunks each, so that all but the first and the last are the same wherever the file stands.
    let blocks = 6 + (number * 5) as usize % 23;
    let mut bytes = vec![0; blocks * BLOCK];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl Disk {
    /// These files, behind a hole.
    pub fn of(files: Vec<u64>, hole_bytes: usize) -> Arc<Self> {
        let mut bytes = vec![0; hole_bytes];
        files.iter().for_each(|number| bytes.extend(file(*number)));
        let data = std::iter::once(hole_bytes as u64..bytes.len() as u64).collect();
        Arc::new(Self { bytes, data, files, hole_bytes })
    }

    /// A new disk of so many files at most, of `kinds` kinds.
    pub fn drawn(rng: &mut Rng, kinds: u64, files: u64, hole_bytes: usize) -> Arc<Self> {
        let count = rng.between(1..=files);
        Self::of((0..count).map(|_| rng.below(kinds)).collect(), hole_bytes)
    }

    /// A later state of this disk.
    pub fn changed(&self, rng: &mut Rng, kinds: u64) -> Arc<Self> {
        let mut files = self.files.clone();
        for _ in 0..rng.between(1..=2) {
            let at = rng.below(files.len() as u64 + 1) as usize;
            match rng.below(4) {
                0 if files.len() < 8 => files.insert(at, rng.below(kinds)),
                1 if files.len() > 1 => drop(files.remove(at.min(files.len() - 1))),
                _ => {
                    let last = files.len() - 1;
                    files[at.min(last)] = rng.below(kinds);
                }
            }
        }
        Self::of(files, self.hole_bytes)
    }

    /// Where it differs from an earlier state: what a tracker of changes would say.
    pub fn extents_since(&self, old: &Disk) -> Extents {
        let block = |disk: &Disk, at: usize| -> Option<Vec<u8>> {
            Some(disk.bytes.get(at..(at + BLOCK).min(disk.bytes.len()))?.to_vec())
        };
        let blocks = (0..self.bytes.len()).step_by(BLOCK);
        let changed = blocks.filter(|at| block(self, *at) != block(old, *at));
        Extents::from_ranges(changed.map(|at| at as u64..(at + BLOCK) as u64).collect())
    }
}

/// A disk that is read by requests, as a snapshot in a cloud is.
pub struct DiskSource(pub Arc<Disk>);

impl Source for DiskSource {
    fn name(&self) -> &str {
        "disk"
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.0.bytes.len() as u64)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Snapshot
    }

    fn logical_block_bytes(&self) -> u32 {
        512
    }

    fn next_data(&self, from: u64) -> Result<Option<Range<u64>>> {
        let next = self.0.data.iter().find(|range| range.end > from);
        Ok(next.map(|range| range.start.max(from)..range.end))
    }

    fn identity(&self) -> Option<String> {
        Some(format!("{:?} {}", self.0.files, self.0.hole_bytes))
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        None
    }

    fn ranges(&self) -> Option<Arc<dyn RangeSource>> {
        Some(Arc::new(DiskRanges(self.0.clone())))
    }
}

struct DiskRanges(Arc<Disk>);

impl RangeSource for DiskRanges {
    fn name(&self) -> &str {
        "disk"
    }

    fn parallel(&self) -> usize {
        1
    }

    fn fetch(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> Result<Fetched> {
        let part = |range: &Range<u32>| {
            let at = |byte: u32| (offset_bytes as usize + byte as usize).min(self.0.bytes.len());
            (range.start, Bytes::copy_from_slice(&self.0.bytes[at(range.start)..at(range.end)]))
        };
        Ok(Fetched { parts: ranges.iter().map(part).collect(), kept: Vec::new(), held: Box::new(()) })
    }
}
