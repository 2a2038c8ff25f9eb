//! The hash tree over a volume: reading it, building it, comparing two.

mod build;
mod diff;
mod nodes;
mod packs;
mod sink;
mod tree;

pub use build::{NodeSink, TreeBuilder};
pub use diff::{SegmentChange, each_difference, leaf_differences, merge_ranges};
pub use nodes::NodeReader;
pub use packs::PackWalk;
pub use sink::{NodePacks, PackAge};
pub use tree::{Shape, TreeReader};

/// Segments below one node of level 1: the unit in which trees are built.
pub const GROUP_SEGMENTS: u64 = crate::limits::NODE_FANOUT as u64;
