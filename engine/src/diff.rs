//! What differs between two volumes, from their manifests alone.

use std::ops::Range;

use crate::error::Result;
use crate::format::point::Volume;
use crate::id::SegmentNo;
use crate::manifest::{each_difference, leaf_differences, merge_ranges};
use crate::repo::Repository;

/// What differs between two volumes.
#[derive(Clone, Debug, Default)]
pub struct VolumeDiff {
    /// Ranges of the newer volume that differ, merged, at the granularity of chunks.
    pub ranges: Vec<Range<u64>>,
    /// Their sum.
    pub differing_bytes: u64,
    /// Manifest nodes that had to be read.
    pub nodes_read: u64,
}

/// Compares two manifests; nothing of the data is read. What the newer volume has beyond the older one's end differs.
pub fn volumes(repo: &Repository, old: &Volume, new: &Volume) -> Result<VolumeDiff> {
    let mut old_tree = repo.tree(old.size_bytes, old.root)?;
    let mut new_tree = repo.tree(new.size_bytes, new.root)?;
    let mut diff = VolumeDiff::default();
    let mut ranges = Vec::new();
    each_difference(&mut old_tree, &mut new_tree, &mut |old_tree, new_tree, change| {
        let start = change.segment.offset_bytes();
        match change.old {
            Some(node) => {
                let old_leaf = old_tree.load_leaf(change.segment, node)?;
                let new_leaf = new_tree.load_leaf(change.segment, change.new)?;
                ranges.extend(
                    leaf_differences(&old_leaf, &new_leaf)
                        .into_iter()
                        .map(|r| start + u64::from(r.start)..start + u64::from(r.end)),
                );
            }
            None => ranges.push(start..start + change.segment.len_in(new.size_bytes) as u64),
        }
        Ok(())
    })?;
    diff.ranges = merge_ranges(ranges);
    diff.differing_bytes = diff.ranges.iter().map(|r| r.end - r.start).sum();
    diff.nodes_read = old_tree.nodes_read() + new_tree.nodes_read();
    Ok(diff)
}

/// Bytes of the segments of a volume that have data: at least what it holds, and less than a segment more for each place that has some.
pub fn data_bytes(repo: &Repository, volume: &Volume) -> Result<u64> {
    let mut tree = repo.tree(volume.size_bytes, volume.root)?;
    let (mut bytes, mut from) = (0, SegmentNo(0));
    while let Some(segment) = tree.next_data(from)? {
        bytes += segment.len_in(volume.size_bytes) as u64;
        from = SegmentNo(segment.0 + 1);
    }
    Ok(bytes)
}
