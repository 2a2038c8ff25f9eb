//! Walks the manifests of recovery points and finds out which byte ranges cannot be restored.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::packs::PackState;
use super::{Hurt, Problems, VerifyOptions, VerifyReport};
use crate::error::{Error, Result};
use crate::format::node::Leaf;
use crate::format::point::{RecoveryPoint, Volume};
use crate::id::{NodeId, SegmentNo};
use crate::index::Index;
use crate::limits::{NODE_FANOUT, SEGMENT_BYTES};
use crate::manifest::{TreeReader, merge_ranges};
use crate::repo::Repository;
use crate::run::{Progress, Run};

/// Subtrees remembered as sound; beyond that they are walked again. 32 MB.
const REMEMBERED_NODES: usize = 512 << 10;

struct Walk<'a> {
    index: &'a Index,
    state: &'a PackState,
    run: &'a Run,
    problems: &'a Problems<'a>,
    sound: HashSet<NodeId>,
    chunks: u64,
    count_progress: bool,
}

/// Checks the manifests of `points`.
#[allow(clippy::too_many_arguments)]
pub fn check(
    repo: &Repository,
    index: &Index,
    state: &PackState,
    points: &[RecoveryPoint],
    options: &VerifyOptions,
    run: &Arc<Run>,
    problems: &Problems<'_>,
    report: &mut VerifyReport,
) -> Result<()> {
    let volumes = || points.iter().flat_map(|p| p.volumes.iter().map(move |v| (p, v)));
    if !options.read_data {
        run.progress.total_bytes.store(volumes().map(|(_, v)| v.size_bytes).sum(), Ordering::Relaxed);
    }
    let mut walk = Walk {
        index,
        state,
        run,
        problems,
        sound: HashSet::new(),
        chunks: 0,
        count_progress: !options.read_data,
    };
    for (point, volume) in volumes() {
        let mut tree = repo.tree(volume.size_bytes, volume.root)?;
        let mut ranges = Vec::new();
        walk.subtree(&mut tree, volume, volume.root.level, 0, &mut ranges)?;
        report.nodes += tree.nodes_read();
        let ranges = merge_ranges(ranges);
        if !ranges.is_empty() {
            let (point, name) = (point.id.clone(), point.name.clone());
            report.hurt.push(Hurt { point, name, volume: volume.name.clone(), ranges });
        }
    }
    report.chunks = walk.chunks;
    Ok(())
}

impl Walk<'_> {
    /// Walks one node; what cannot be restored of it is appended to `hurt`.
    fn subtree(
        &mut self,
        tree: &mut TreeReader,
        volume: &Volume,
        level: u8,
        index: u64,
        hurt: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        if self.run.stopped() {
            return Err(Error::Cancelled);
        }
        let span = span_of(volume, level, index);
        let node = tree.node(level, index)?;
        let known = node.is_none_or(|id| self.sound.contains(&id));
        if known {
            self.progress(span.end - span.start);
            return Ok(());
        }
        let before = hurt.len();
        let checked = if level == 0 {
            self.leaf(tree, SegmentNo(index), span.start, hurt)
        } else {
            tree.children(level, index).map(<[_]>::len)
        };
        match checked {
            Err(error) => {
                self.problems.note(error)?;
                hurt.push(span.clone());
                self.progress(span.end - span.start);
                return Ok(());
            }
            Ok(children) => {
                for child in 0..children as u64 {
                    self.subtree(tree, volume, level - 1, index * NODE_FANOUT as u64 + child, hurt)?;
                }
            }
        }
        if level == 0 {
            self.progress(span.end - span.start);
        }
        if hurt.len() == before && self.sound.len() < REMEMBERED_NODES {
            self.sound.extend(node);
        }
        Ok(())
    }

    /// Checks that every chunk of a leaf is where it should be. Returns 0: a leaf has no children.
    fn leaf(
        &mut self,
        tree: &mut TreeReader,
        segment: SegmentNo,
        start: u64,
        hurt: &mut Vec<Range<u64>>,
    ) -> Result<usize> {
        let leaf: Leaf = tree.leaf(segment)?;
        for (offset, piece) in leaf.with_offsets() {
            let Some(chunk) = piece.chunk else { continue };
            self.chunks += 1;
            let range = start + u64::from(offset)..start + u64::from(offset + piece.len);
            match self.index.locate_newest(chunk.as_bytes(), "a manifest") {
                Ok(at) if self.state.is_sound(chunk.as_bytes(), &at) => {}
                Ok(_) => hurt.push(range), // the pack's problem is noted
                Err(error) => {
                    self.problems.note(error)?;
                    hurt.push(range);
                }
            }
        }
        Ok(0)
    }

    fn progress(&self, bytes: u64) {
        if self.count_progress {
            Progress::add(&self.run.progress.done_bytes, bytes);
        }
    }
}

/// Bytes of the volume below a node.
fn span_of(volume: &Volume, level: u8, index: u64) -> Range<u64> {
    let width = (NODE_FANOUT as u64).pow(u32::from(level)) * SEGMENT_BYTES as u64;
    let start = (index * width).min(volume.size_bytes);
    start..start.saturating_add(width).min(volume.size_bytes)
}
