//! Which packs manifests need: those of their nodes, and those of the chunks they name.

use std::collections::{HashMap, HashSet};
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

    /// Adds the chunks of `new` that differ from what `old` has in the same place.
    pub fn differing_chunks(&mut self, old: &mut TreeReader, new: &mut TreeReader) -> Result<()> {
        each_difference(old, new, &mut |old, new, change| {
            (self.go_on)()?;
            let leaf = new.load_leaf(change.segment, change.new)?;
            let Some(old_ref) = change.old else { return self.leaf(&leaf, &[]) };
            let ranges = leaf_differences(&old.load_leaf(change.segment, old_ref)?, &leaf);
            self.leaf(&leaf, &ranges)
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
    fn leaf(&mut self, leaf: &Leaf, ranges: &[std::ops::Range<u32>]) -> Result<()> {
        for (offset, piece) in leaf.with_offsets() {
            let end = offset + piece.len;
            let wanted = ranges.is_empty() || ranges.iter().any(|r| r.start < end && offset < r.end);
            if let Some(chunk) = piece.chunk.filter(|_| wanted) {
                let at = self.index.locate_newest(chunk.as_bytes(), "a manifest")?;
                self.packs.insert(at.pack.id, at.pack);
            }
        }
        Ok(())
    }
}
