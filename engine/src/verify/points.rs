//! Walks the manifests of recovery points and finds out which byte ranges cannot be restored. What points share is
//! walked once.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cursor::{KeptHurt, Unfinished};
use super::hurt::Tally;
use super::packs::PackState;
use super::problems::is_problem;
use super::{Look, hurt::Hurt, index_of_now};
use crate::error::{Error, Result};
use crate::format::point::{RecoveryPoint, Volume};
use crate::gc_state::GcState;
use crate::id::{NodeId, ObjectId, PointId, SegmentNo};
use crate::index::Index;
use crate::limits::{NODE_FANOUT, SEGMENT_BYTES};
use crate::manifest::TreeReader;
use crate::run::Progress;

/// Subtrees remembered, sound or hurt; beyond that they are walked again. 32 MB.
const REMEMBERED_NODES: usize = 448 << 10;
/// Hurt ranges remembered of one subtree: of one with more the parts are.
const REMEMBERED_OF_NODE: usize = 64;
/// Hurt ranges remembered of all subtrees, 16 MB.
const REMEMBERED_RANGES: usize = 1 << 20;
/// Hurt ranges listed of all volumes.
const LISTED_RANGES: usize = 200_000;

/// What is hurt of a subtree: ranges from its first byte on; `None` if too many to be remembered.
type Found = Option<Vec<Range<u64>>>;

/// Problems of a point that wait to be noted until it is known that the point is still there.
const WAITING_MAX: usize = 10_000;

enum Waiting {
    Error(Error),
    Lost([u8; 32]),
}

struct Walk<'a> {
    look: &'a Look<'a>,
    index: Arc<Index>,
    /// Packs that were decided on when the index was read.
    deleted: HashSet<ObjectId>,
    state: &'a PackState,
    /// Of the point under way.
    waiting: Vec<Waiting>,
    point: Option<PointId>,
    known: HashMap<NodeId, Box<[Range<u64>]>>,
    ranges_left: usize,
    chunks: u64,
}

/// Checks the manifests of `points` that were not walked yet.
pub fn check(
    look: &Look<'_>,
    (index, deleted): (Arc<Index>, HashSet<ObjectId>),
    state: &PackState,
    points: &[RecoveryPoint],
    part: &mut Unfinished,
) -> Result<()> {
    if !look.options.read_data {
        let bytes = points.iter().flat_map(|p| &p.volumes).map(|v| v.size_bytes).sum();
        look.run.progress.total_bytes.store(bytes, Ordering::Relaxed);
    }
    let mut walk = Walk {
        look,
        index,
        deleted,
        state,
        waiting: Vec::new(),
        point: None,
        known: HashMap::new(),
        ranges_left: REMEMBERED_RANGES,
        chunks: 0,
    };
    let mut listed: usize = part.hurt.iter().map(|hurt| hurt.ranges.len()).sum();
    for point in points {
        if part.walked.contains(&point.id) {
            walk.progress(point.volumes.iter().map(|v| v.size_bytes).sum());
            continue;
        }
        let Some((hurt, nodes)) = walk.point(point, LISTED_RANGES.saturating_sub(listed))? else { continue };
        listed += hurt.iter().map(|hurt| hurt.ranges.len()).sum::<usize>();
        part.nodes += nodes;
        part.chunks += std::mem::take(&mut walk.chunks);
        part.hurt.extend(hurt.into_iter().map(KeptHurt::of));
        part.walked.push(point.id.clone());
    }
    Ok(())
}

impl Walk<'_> {
    /// What is hurt of a point, and the nodes that were read; `None` if it was forgotten meanwhile. What collectors moved
    /// since the index was read is looked for again.
    fn point(&mut self, point: &RecoveryPoint, listed_max: usize) -> Result<Option<(Vec<Hurt>, u64)>> {
        self.point = PointId::from_hex(&point.id);
        loop {
            self.waiting.clear();
            let (mut hurt, mut nodes): (Vec<Hurt>, u64) = (Vec::new(), 0);
            for volume in &point.volumes {
                let mut tree =
                    self.look.repo.tree_by_rows(self.index.clone(), volume.size_bytes, volume.root)?;
                let mut tally = Tally::default();
                match self.subtree(&mut tree, volume, volume.root.level, 0, &mut tally) {
                    Err(Error::NoSuchPoint { .. }) => return Ok(None),
                    walked => drop(walked?),
                }
                nodes += tree.nodes_read();
                let listed = hurt.iter().map(|hurt: &Hurt| hurt.ranges.len()).sum();
                let listed_max = listed_max.saturating_sub(listed);
                hurt.extend(tally.end(&point.id, &point.name, &volume.name, listed_max));
            }
            if hurt.is_empty() && self.waiting.is_empty() {
                return Ok(Some((hurt, nodes)));
            }
            if self.is_overtaken()? {
                continue;
            }
            return match self.note_waiting() {
                Err(Error::NoSuchPoint { .. }) => Ok(None),
                noted => noted.map(|()| Some((hurt, nodes))),
            };
        }
    }

    /// True if collectors have decided since the index was read: then it is read again.
    fn is_overtaken(&mut self) -> Result<bool> {
        let repo = self.look.repo;
        let deleted = GcState::load_readable(repo.store().as_ref(), repo.keys())?.0.deleted();
        if deleted.is_subset(&self.deleted) {
            return Ok(false);
        }
        let (index, gc_state) = index_of_now(self.look)?;
        (self.index, self.deleted) = (index, gc_state.deleted());
        self.known.clear();
        self.ranges_left = REMEMBERED_RANGES;
        Ok(true)
    }

    fn note(&mut self, problem: Waiting) -> Result<()> {
        self.waiting.push(problem);
        if self.waiting.len() < WAITING_MAX { Ok(()) } else { self.note_waiting() }
    }

    /// Notes what waits. `NoSuchPoint` if the point was forgotten: what it needed may be gone.
    fn note_waiting(&mut self) -> Result<()> {
        let listed = self.look.repo.point_ids()?;
        if let Some(point) = self.point.filter(|point| !listed.contains(point)) {
            return Err(Error::NoSuchPoint { what: format!("{point} was forgotten meanwhile") });
        }
        for problem in std::mem::take(&mut self.waiting) {
            match problem {
                Waiting::Error(error) => self.look.problems.note(error)?,
                Waiting::Lost(id) => self.look.problems.note_lost(&id)?,
            }
        }
        Ok(())
    }

    /// Walks one node; what cannot be restored of it is added to `tally`, and returned as ranges from its first byte
    /// on.
    fn subtree(
        &mut self,
        tree: &mut TreeReader,
        volume: &Volume,
        level: u8,
        index: u64,
        tally: &mut Tally,
    ) -> Result<Found> {
        self.look.go_on()?;
        let span = span_of(volume, level, index);
        let node = match tree.node(level, index)? {
            None => {
                self.progress(span.end - span.start);
                return Ok(Some(Vec::new()));
            }
            Some(node) => node,
        };
        if let Some(known) = self.known.get(&node) {
            known.iter().for_each(|range| tally.add(span.start + range.start..span.start + range.end));
            let known = known.to_vec();
            self.progress(span.end - span.start);
            return Ok(Some(known));
        }
        let found = match level {
            0 => self.leaf(tree, SegmentNo(index), span.start, tally),
            _ => self.children(tree, volume, level, index, span.start, tally),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) if !is_problem(&error) => return Err(error),
            Err(error) => {
                self.note(Waiting::Error(error))?;
                tally.add(span.clone());
                Some(std::iter::once(0..span.end - span.start).collect())
            }
        };
        if level == 0 {
            self.progress(span.end - span.start);
        }
        if let Some(ranges) = &found
            && self.known.len() < REMEMBERED_NODES
            && ranges.len() <= self.ranges_left
        {
            self.ranges_left -= ranges.len();
            self.known.insert(node, ranges.as_slice().into());
        }
        Ok(found)
    }

    fn children(
        &mut self,
        tree: &mut TreeReader,
        volume: &Volume,
        level: u8,
        index: u64,
        start: u64,
        tally: &mut Tally,
    ) -> Result<Found> {
        let count = tree.children(level, index)?.len() as u64;
        let mut all: Found = Some(Vec::new());
        for child in 0..count {
            let number = index * NODE_FANOUT as u64 + child;
            let offset = span_of(volume, level - 1, number).start - start;
            let found = self.subtree(tree, volume, level - 1, number, tally)?;
            all = match (all, found) {
                (Some(mut all), Some(found)) => {
                    for range in found {
                        push(&mut all, offset + range.start..offset + range.end);
                    }
                    (all.len() <= REMEMBERED_OF_NODE).then_some(all)
                }
                _ => None,
            };
        }
        Ok(all)
    }

    /// Checks that every chunk of a leaf is where it should be.
    fn leaf(
        &mut self,
        tree: &mut TreeReader,
        segment: SegmentNo,
        start: u64,
        tally: &mut Tally,
    ) -> Result<Found> {
        let leaf = tree.leaf(segment)?;
        let mut hurt = Vec::new();
        for (offset, piece) in leaf.with_offsets() {
            let Some(chunk) = piece.chunk else { continue };
            self.chunks += 1;
            let id = chunk.as_bytes();
            match self.index.find_surely(id)? {
                Some(at) if at.raw_bytes != piece.len => {
                    let what = format_args!(
                        "chunk {chunk} has {} bytes there, a manifest says {}",
                        at.raw_bytes, piece.len
                    );
                    self.note(Waiting::Error(Error::damaged(at.pack_key(), what)))?;
                }
                Some(at) if self.state.is_sound(&at) => continue,
                // The pack's problem is noted, unless it was put aside: then this is what is left of it.
                Some(at) if self.state.is_aside(&at) => {
                    let what = format_args!("chunk {chunk} was in it, and is nowhere else. It was put aside");
                    self.note(Waiting::Error(Error::damaged(at.pack_key(), what)))?;
                }
                Some(_) => {}
                None => self.note(Waiting::Lost(*id))?,
            }
            push(&mut hurt, u64::from(offset)..u64::from(offset + piece.len));
        }
        for range in &hurt {
            tally.add(start + range.start..start + range.end);
        }
        Ok((hurt.len() <= REMEMBERED_OF_NODE).then_some(hurt))
    }

    fn progress(&self, bytes: u64) {
        if !self.look.options.read_data {
            Progress::add(&self.look.run.progress.done_bytes, bytes);
        }
    }
}

/// Adds a range behind the others, as one with the last if they touch.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Bytes of the volume below a node.
fn span_of(volume: &Volume, level: u8, index: u64) -> Range<u64> {
    let width = (NODE_FANOUT as u64).pow(u32::from(level)) * SEGMENT_BYTES as u64;
    let start = (index * width).min(volume.size_bytes);
    start..start.saturating_add(width).min(volume.size_bytes)
}
