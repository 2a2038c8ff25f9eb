//! Walks a manifest from its root, keeping the path to the last node visited.

use super::nodes::NodeReader;
use crate::error::Result;
use crate::format::node::{Leaf, NodeRef};
use crate::format::point::{Root, root_level, segment_count};
use crate::id::SegmentNo;
use crate::limits::NODE_FANOUT;

/// How many nodes a tree over `size_bytes` has where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Logical size of the volume.
    pub size_bytes: u64,
}

impl Shape {
    /// Segments of the volume.
    pub fn segments(self) -> u64 {
        segment_count(self.size_bytes)
    }

    /// Level of the root.
    pub fn root_level(self) -> u8 {
        root_level(self.size_bytes)
    }

    /// Nodes at `level`.
    pub fn nodes_at(self, level: u8) -> u64 {
        (0..level).fold(self.segments(), |nodes, _| nodes.div_ceil(NODE_FANOUT as u64))
    }

    /// Children of node `index` at `level` ≥ 1.
    pub fn children(self, level: u8, index: u64) -> usize {
        let below = self.nodes_at(level - 1);
        below.saturating_sub(index * NODE_FANOUT as u64).min(NODE_FANOUT as u64) as usize
    }
}

/// Reads one volume's tree.
pub struct TreeReader {
    nodes: NodeReader,
    shape: Shape,
    root: Root,
    /// Per level: the node last expanded and its children.
    path: Vec<Option<(u64, Vec<NodeRef>)>>,
}

impl TreeReader {
    /// A reader of the tree under `root` over `size_bytes`.
    pub fn new(nodes: NodeReader, size_bytes: u64, root: Root) -> Self {
        let path = vec![None; usize::from(root.level) + 1];
        Self { nodes, shape: Shape { size_bytes }, root, path }
    }

    /// How many nodes it has where.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Nodes loaded so far.
    pub fn nodes_read(&self) -> u64 {
        self.nodes.nodes_read()
    }

    /// The reference to node `index` of `level`; zero for what lies outside the tree. `level` must not be above the root's.
    pub fn node(&mut self, level: u8, index: u64) -> Result<NodeRef> {
        if index >= self.shape.nodes_at(level) {
            return Ok(None);
        }
        if level == self.root.level {
            return Ok(self.root.node);
        }
        let parent_index = index / NODE_FANOUT as u64;
        let children = self.children(level + 1, parent_index)?;
        Ok(children[(index % NODE_FANOUT as u64) as usize])
    }

    /// The children of node `index` of `level` ≥ 1.
    pub fn children(&mut self, level: u8, index: u64) -> Result<&[NodeRef]> {
        let slot = usize::from(level);
        if self.path[slot].as_ref().is_none_or(|(held, _)| *held != index) {
            let node = self.node(level, index)?;
            let children = self.nodes.inner(node, level, self.shape.children(level, index))?;
            self.path[slot] = Some((index, children));
        }
        Ok(self.path[slot].as_ref().map_or(&[], |(_, children)| children))
    }

    /// The reference to a segment's leaf.
    pub fn leaf_ref(&mut self, segment: SegmentNo) -> Result<NodeRef> {
        self.node(0, segment.0)
    }

    /// The leaf of a segment.
    pub fn leaf(&mut self, segment: SegmentNo) -> Result<Leaf> {
        let node = self.leaf_ref(segment)?;
        self.load_leaf(segment, node)
    }

    /// The leaf behind a reference that was obtained before.
    pub fn load_leaf(&mut self, segment: SegmentNo, node: NodeRef) -> Result<Leaf> {
        self.nodes.leaf(node, segment.len_in(self.shape.size_bytes))
    }

    /// The first segment at or after `from` whose leaf is not zero; whole zero subtrees are passed over at once.
    pub fn next_data(&mut self, from: SegmentNo) -> Result<Option<SegmentNo>> {
        let mut segment = from.0;
        'next: while segment < self.shape.segments() {
            let mut level = self.root.level;
            loop {
                let width = (NODE_FANOUT as u64).pow(u32::from(level));
                let index = segment / width;
                if self.node(level, index)?.is_none() {
                    segment = (index + 1) * width;
                    continue 'next;
                }
                if level == 0 {
                    return Ok(Some(SegmentNo(segment)));
                }
                level -= 1;
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SEGMENT_BYTES;

    #[test]
    fn shapes() {
        let shape = |segments: u64| Shape { size_bytes: segments * SEGMENT_BYTES as u64 };
        assert_eq!(shape(1).root_level(), 0);
        assert_eq!((shape(300).nodes_at(1), shape(300).nodes_at(2)), (2, 1));
        assert_eq!(
            (shape(300).children(1, 0), shape(300).children(1, 1), shape(300).children(2, 0)),
            (256, 44, 2)
        );
        assert_eq!(shape(300).children(1, 5), 0);
        assert_eq!(Shape { size_bytes: 1 }.segments(), 1);
    }
}
