//! Compares two manifests from the top: equal references are equal contents, so the work is proportional to the difference.

use std::ops::Range;

use super::tree::TreeReader;
use crate::error::Result;
use crate::format::node::{Leaf, NodeRef};
use crate::id::SegmentNo;
use crate::limits::{NODE_FANOUT, SEGMENT_BYTES};

/// A segment of the new volume that is not known to equal the old one.
pub struct SegmentChange {
    /// Which.
    pub segment: SegmentNo,
    /// The old leaf; `None` where the old volume has no such segment, or not of the same length.
    pub old: Option<NodeRef>,
    /// The new leaf.
    pub new: NodeRef,
}

/// Takes both trees (to load leaves with) and one segment that differs.
pub type Visit<'a> = dyn FnMut(&mut TreeReader, &mut TreeReader, SegmentChange) -> Result<()> + 'a;

/// Calls `each` for every segment of `new` whose leaf differs from the one of `old` at the same place, in order.
pub fn each_difference(old: &mut TreeReader, new: &mut TreeReader, each: &mut Visit<'_>) -> Result<()> {
    let (old_bytes, new_bytes) = (old.shape().size_bytes, new.shape().size_bytes);
    // Segments that have the same length in both: all if the sizes are equal, else the whole ones.
    let common = if old_bytes == new_bytes {
        new.shape().segments()
    } else {
        old_bytes.min(new_bytes) / SEGMENT_BYTES as u64
    };
    let level = new.shape().root_level();
    compare(old, new, common, level, 0, each)
}

fn compare(
    old: &mut TreeReader,
    new: &mut TreeReader,
    common: u64,
    level: u8,
    index: u64,
    each: &mut Visit<'_>,
) -> Result<()> {
    let width = (NODE_FANOUT as u64).pow(u32::from(level));
    let node = new.node(level, index)?;
    // A node at the end is comparable too if both trees end in the same place.
    let same_end = old.shape().size_bytes == new.shape().size_bytes;
    let comparable = level <= old.shape().root_level() && ((index + 1) * width <= common || same_end);
    if comparable && old.node(level, index)? == node {
        return Ok(());
    }
    if level == 0 {
        let old_ref = if index < common { Some(old.node(0, index)?) } else { None };
        let change = SegmentChange { segment: SegmentNo(index), old: old_ref, new: node };
        return each(old, new, change);
    }
    for child in 0..new.shape().children(level, index) as u64 {
        compare(old, new, common, level - 1, index * NODE_FANOUT as u64 + child, each)?;
    }
    Ok(())
}

/// Byte ranges of a segment in which two leaves of the same length are not known to be equal: the pieces of `new` that `old` does not have at the same place,
/// less what is zero in both.
pub fn leaf_differences(old: &Leaf, new: &Leaf) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut old_pieces = old.with_offsets().peekable();
    for (offset, piece) in new.with_offsets() {
        let end = offset + piece.len;
        while old_pieces.next_if(|(start, old)| start + old.len <= offset).is_some() {}
        match piece.chunk {
            Some(_) => {
                if old_pieces.peek() != Some(&(offset, piece)) {
                    ranges.push(offset..end);
                }
            }
            None => {
                let mut at = offset;
                while let Some((start, old)) = old_pieces.peek().copied().filter(|(start, _)| *start < end) {
                    let old_end = start + old.len;
                    if old.chunk.is_none() {
                        if start > at {
                            ranges.push(at..start);
                        }
                        at = at.max(old_end.min(end));
                    }
                    if old_end > end {
                        break;
                    }
                    old_pieces.next();
                }
                if at < end {
                    ranges.push(at..end);
                }
            }
        }
    }
    merge_ranges(ranges)
}

/// Joins sorted ranges that touch.
pub fn merge_ranges<T: Ord + Copy>(ranges: impl IntoIterator<Item = Range<T>>) -> Vec<Range<T>> {
    let mut merged: Vec<Range<T>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::Piece;
    use crate::id::ChunkId;
    use proptest::prelude::*;

    fn leaf(pieces: &[(u32, u8)]) -> Leaf {
        let mut leaf = Leaf::default();
        for &(len, tag) in pieces {
            leaf.push(Piece { len, chunk: (tag > 0).then(|| ChunkId::new([tag; 32])) });
        }
        leaf
    }

    #[test]
    fn differing_pieces_are_found() {
        let old = leaf(&[(10, 1), (10, 0), (10, 2)]);
        assert_eq!(leaf_differences(&old, &old), vec![]);
        assert_eq!(leaf_differences(&old, &leaf(&[(10, 1), (5, 0), (15, 3)])), vec![15..30]);
        assert_eq!(leaf_differences(&old, &leaf(&[(30, 0)])), vec![0..10, 20..30]);
        assert_eq!(leaf_differences(&leaf(&[(30, 0)]), &old), vec![0..10, 20..30]);
        assert_eq!(leaf_differences(&leaf(&[(30, 4)]), &leaf(&[(30, 0)])), vec![0..30]);
    }

    proptest! {
        /// Against a model of one byte per tag: every byte that differs is reported, and bytes of equal pieces are not.
        #[test]
        fn agrees_with_a_byte_model(
            a in proptest::collection::vec((1u32..9, 0u8..3), 1..12),
            b in proptest::collection::vec((1u32..9, 0u8..3), 1..12),
        ) {
            let total: u32 = 120;
            let close = |mut list: Vec<(u32, u8)>| {
                let used: u32 = list.iter().map(|p| p.0).sum();
                list.push((total - used, 0));
                leaf(&list)
            };
            let (old, new) = (close(a), close(b));
            // A chunk's bytes depend on their place in it, zeros do not.
            let model = |leaf: &Leaf| -> Vec<(Option<ChunkId>, u32, u32)> {
                leaf.with_offsets().flat_map(|(o, p)| (0..p.len).map(move |i| match p.chunk {
                    Some(id) => (Some(id), i, o),
                    None => (None, 0, 0),
                })).collect()
            };
            let (old_bytes, new_bytes) = (model(&old), model(&new));
            let ranges = leaf_differences(&old, &new);
            let reported = |at: u32| ranges.iter().any(|r| r.contains(&at));
            for at in 0..total {
                if new_bytes[at as usize] != old_bytes[at as usize] {
                    prop_assert!(reported(at), "byte {at} differs unreported");
                } else if new_bytes[at as usize].0.is_none() {
                    prop_assert!(!reported(at), "zero byte {at} reported for nothing");
                }
            }
        }
    }
}
