//! Builds a tree from finished groups of 256 segments; what is held is one reference per GiB.

use std::collections::HashMap;

use crate::error::Result;
use crate::format::node::{NodeRef, encode_inner};
use crate::format::point::Root;
use crate::id::{NodeId, SegmentNo};
use crate::limits::NODE_FANOUT;

use super::GROUP_SEGMENTS;
use super::tree::Shape;

/// Where encoded nodes go: stored unless the repository has them.
pub trait NodeSink {
    /// Stores a node and returns its id.
    fn put(&mut self, node: &[u8]) -> Result<NodeId>;
}

/// A group under way: leaves that came, with their places, and what is known of the rest.
#[derive(Default)]
struct Open {
    leaves: Vec<(usize, NodeRef)>,
    plan: Option<(Vec<NodeRef>, usize)>,
}

/// Groups finished so far of one volume, and those under way.
#[derive(Default)]
pub struct TreeBuilder {
    groups: Vec<NodeRef>,
    open: HashMap<u64, Open>,
    /// The only segment's leaf, if the volume has one segment: then it is the root.
    single: Option<NodeRef>,
}

impl TreeBuilder {
    /// Sets a segment's leaf; they may come in any order, before or after the plan of their group.
    pub fn set_leaf(&mut self, segment: SegmentNo, leaf: NodeRef, sink: &mut dyn NodeSink) -> Result<()> {
        let (group, slot) = (segment.0 / GROUP_SEGMENTS, (segment.0 % GROUP_SEGMENTS) as usize);
        self.open.entry(group).or_default().leaves.push((slot, leaf));
        self.close(group, sink)
    }

    /// Says what a group consists of: these leaves, but for `jobs` of them that come by [`set_leaf`](Self::set_leaf).
    pub fn plan(
        &mut self,
        group: u64,
        leaves: Vec<NodeRef>,
        jobs: usize,
        sink: &mut dyn NodeSink,
    ) -> Result<()> {
        self.open.entry(group).or_default().plan = Some((leaves, jobs));
        self.close(group, sink)
    }

    /// True if no group is under way.
    pub fn is_complete(&self) -> bool {
        self.open.is_empty()
    }

    /// Makes a group's node once all its leaves are there.
    fn close(&mut self, group: u64, sink: &mut dyn NodeSink) -> Result<()> {
        let complete = |open: &Open| open.plan.as_ref().is_some_and(|(_, jobs)| open.leaves.len() == *jobs);
        if !self.open.get(&group).is_some_and(complete) {
            return Ok(());
        }
        if let Some(Open { leaves, plan: Some((mut refs, _)) }) = self.open.remove(&group) {
            for (slot, leaf) in leaves {
                if let Some(place) = refs.get_mut(slot) {
                    *place = leaf;
                }
            }
            self.set_leaves(group, &refs, sink)?;
        }
        Ok(())
    }

    /// Sets group `index` from the references of its leaves.
    pub fn set_leaves(&mut self, index: u64, leaves: &[NodeRef], sink: &mut dyn NodeSink) -> Result<()> {
        if index == 0 && leaves.len() == 1 {
            self.single = Some(leaves[0]);
        }
        let node = if leaves.iter().all(Option::is_none) || leaves.len() == 1 && index == 0 {
            None
        } else {
            Some(sink.put(&encode_inner(1, leaves))?)
        };
        self.set_node(index, node);
        Ok(())
    }

    /// Sets group `index` to a node that is stored already.
    pub fn set_node(&mut self, index: u64, node: NodeRef) {
        let index = index as usize;
        if self.groups.len() <= index {
            self.groups.resize(index + 1, None);
        }
        self.groups[index] = node;
    }

    /// Builds the levels above the groups.
    pub fn finish(mut self, size_bytes: u64, sink: &mut dyn NodeSink) -> Result<Root> {
        let shape = Shape { size_bytes };
        let level = shape.root_level();
        if level == 0 {
            return Ok(Root { level, node: self.single.flatten() });
        }
        let mut nodes = std::mem::take(&mut self.groups);
        nodes.resize(shape.nodes_at(1) as usize, None);
        for above in 2..=level {
            nodes = nodes
                .chunks(NODE_FANOUT)
                .map(|children| {
                    let zero = children.iter().all(Option::is_none);
                    (!zero).then(|| sink.put(&encode_inner(above, children))).transpose()
                })
                .collect::<Result<_>>()?;
        }
        Ok(Root { level, node: nodes.first().copied().flatten() })
    }
}
