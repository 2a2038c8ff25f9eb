//! Which packs manifests need: those of their nodes, and those of the chunks they name.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::diff::{each_difference, leaf_differences};
use super::tree::TreeReader;
use crate::error::Result;
use crate::format::index_segment::PackRef;
use crate::format::node::{Leaf, NodeRef};
use crate::id::{NodeId, ObjectId, SegmentNo};
use crate::index::Index;
use crate::limits::NODE_FANOUT;

/// Nodes remembered as walked; beyond that they are walked again. 32 MB.
const REMEMBERED_NODES: usize = 512 << 10;

/// Gathers packs over any number of trees; what they share is walked once.
pub struct PackWalk<'a> {
    index: Arc<Index>,
    /// Asked between nodes; an error ends the walk.
    go_on: &'a dyn Fn() -> Result<()>,
    walked: HashSet<NodeId>,
    packs: HashMap<ObjectId, PackRef>,
}

impl<'a> PackWalk<'a> {
    /// Nothing gathered yet.
    pub fn new(index: Arc<Index>, go_on: &'a dyn Fn() -> Result<()>) -> Self {
        Self { index, go_on, walked: HashSet::new(), packs: HashMap::new() }
    }

    /// What was gathered, in the order of ids.
    pub fn into_packs(self) -> Vec<PackRef> {
        let mut packs: Vec<PackRef> = self.packs.into_values().collect();
        packs.sort_unstable_by_key(|pack| pack.id);
        packs
    }

    /// Adds all that a tree needs.
    pub fn tree(&mut self, tree: &mut TreeReader) -> Result<()> {
        let level = tree.shape().root_level();
        self.subtree(tree, level, 0)
    }

    /// Adds the chunks of `new` that differ from what `old` has in the same place. A target of whole blocks needs more: all that is in a block where something differs,
    /// and, to compare with, what `old` has across the borders of those blocks.
    pub fn differing_chunks(
        &mut self,
        old: &mut TreeReader,
        new: &mut TreeReader,
        block_bytes: Option<u32>,
    ) -> Result<()> {
        each_difference(old, new, &mut |old, new, change| {
            (self.go_on)()?;
            let leaf = new.load_leaf(change.segment, change.new)?;
            let Some(old_ref) = change.old else { return self.leaf(&leaf, &[]) };
            let old_leaf = old.load_leaf(change.segment, old_ref)?;
            let differing = leaf_differences(&old_leaf, &leaf);
            let Some(block_bytes) = block_bytes.filter(|_| !differing.is_empty()) else {
                return self.leaf(&leaf, &differing);
            };
            let down = |at: u32| at / block_bytes * block_bytes;
            let blocks: Vec<Range<u32>> =
                differing.iter().map(|r| down(r.start)..r.end.next_multiple_of(block_bytes)).collect();
            self.leaf(&leaf, &blocks)?;
            self.pieces(&old_leaf, |at| down(at.start) != down(at.end - 1) && touches(&blocks, at))
        })
    }

    /// Adds the chunks of some segments, evenly spread over the volume.
    pub fn sample(&mut self, tree: &mut TreeReader, segments: u64) -> Result<()> {
        let all = tree.shape().segments();
        let mut last = None;
        for n in 0..segments.min(all) {
            let Some(segment) = tree.next_data(SegmentNo(n * all / segments.min(all)))? else { break };
            if last.replace(segment) != Some(segment) {
                let leaf = tree.leaf(segment)?;
                self.leaf(&leaf, &[])?;
            }
        }
        Ok(())
    }

    fn subtree(&mut self, tree: &mut TreeReader, level: u8, index: u64) -> Result<()> {
        (self.go_on)()?;
        let node: NodeRef = tree.node(level, index)?;
        let Some(id) = node else { return Ok(()) };
        if self.walked.contains(&id) {
            return Ok(());
        }
        let at = self.index.locate_newest(id.as_bytes(), "a manifest")?;
        self.packs.insert(at.pack.id, at.pack);
        if level == 0 {
            let leaf = tree.leaf(SegmentNo(index))?;
            self.leaf(&leaf, &[])?;
        } else {
            for child in 0..tree.children(level, index)?.len() as u64 {
                self.subtree(tree, level - 1, index * NODE_FANOUT as u64 + child)?;
            }
        }
        if self.walked.len() < REMEMBERED_NODES {
            self.walked.insert(id);
        }
        Ok(())
    }

    /// Adds the chunks of a leaf that touch the ranges, or all.
    fn leaf(&mut self, leaf: &Leaf, ranges: &[Range<u32>]) -> Result<()> {
        self.pieces(leaf, |at| ranges.is_empty() || touches(ranges, at))
    }

    /// Adds the chunks of a leaf in places that are wanted.
    fn pieces(&mut self, leaf: &Leaf, wanted: impl Fn(&Range<u32>) -> bool) -> Result<()> {
        for (offset, piece) in leaf.with_offsets() {
            if let Some(chunk) = piece.chunk.filter(|_| wanted(&(offset..offset + piece.len))) {
                let at = self.index.locate_newest(chunk.as_bytes(), "a manifest")?;
                self.packs.insert(at.pack.id, at.pack);
            }
        }
        Ok(())
    }
}

fn touches(ranges: &[Range<u32>], at: &Range<u32>) -> bool {
    ranges.iter().any(|r| r.start < at.end && at.start < r.end)
}
