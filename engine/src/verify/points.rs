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
use crate::format::header::ObjectKind;
use crate::format::point::{RecoveryPoint, Volume};
use crate::gc_state::GcState;
use crate::id::{NodeId, ObjectId, PointId, SegmentNo};
use crate::index::Index;
use crate::limits::{NODE_FANOUT, SEGMENT_BYTES};
use crate::manifest::TreeReader;
use crate::pack::{ChunkReader, Location};
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

/// Problems of a point that wait to be noted.
const WAITING_MAX: usize = 10_000;
/// How often a point is walked anew since collectors have decided meanwhile.
const WALKS_MAX: usize = 6;

/// A problem of the point under way. It is noted when it is known that the point is still there, and that no
/// collector has moved meanwhile what was not found.
enum Waiting {
    /// An object could not be read.
    Error(Error),
    /// A content is in no pack, whatever collectors do.
    Lost([u8; 32]),
}

/// Why the walk of a point ended before.
enum End {
    /// The point is no more.
    Forgotten,
    /// Collectors have moved what it needs.
    Overtaken,
    Error(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

struct Walk<'a> {
    look: &'a Look<'a>,
    index: Arc<Index>,
    /// Packs that were decided on when the index was read.
    deleted: HashSet<ObjectId>,
    state: &'a PackState,
    /// The names in `gc/` when it was last looked at, and the packs that were decided on by then.
    records: Vec<String>,
    decided: HashSet<ObjectId>,
    /// Of the point under way.
    waiting: Vec<Waiting>,
    /// Of the point under way: packs that do not hold what they should, and `None` if a manifest could not be read.
    suspects: Option<HashSet<ObjectId>>,
    /// How often the point under way was walked.
    walks: usize,
    point: Option<PointId>,
    /// Of packs that were put aside: what reads them, and those that cannot be read.
    reader: Option<ChunkReader>,
    raw: Vec<u8>,
    gone: HashSet<ObjectId>,
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
        records: Vec::new(),
        decided: HashSet::new(),
        waiting: Vec::new(),
        suspects: None,
        walks: 0,
        point: None,
        reader: None,
        raw: Vec::new(),
        gone: HashSet::new(),
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
        self.walks = 0;
        loop {
            (self.walks, self.chunks, self.suspects) = (self.walks + 1, 0, Some(HashSet::new()));
            self.waiting.clear();
            match self.walk(point, listed_max) {
                Ok(walked) => return Ok(Some(walked)),
                Err(End::Forgotten) => {
                    // What is remembered as hurt was not noted.
                    self.forget_all();
                    self.chunks = 0;
                    return Ok(None);
                }
                Err(End::Overtaken) => self.begin_anew()?,
                Err(End::Error(Error::Cancelled)) => {
                    // The walk has no end, but what it found so far is told.
                    if !self.waiting.is_empty() && !self.is_overtaken()? {
                        self.note_waiting()?;
                    }
                    return Err(Error::Cancelled);
                }
                Err(End::Error(error)) => return Err(error),
            }
        }
    }

    fn walk(&mut self, point: &RecoveryPoint, listed_max: usize) -> Result<(Vec<Hurt>, u64), End> {
        let (mut hurt, mut nodes): (Vec<Hurt>, u64) = (Vec::new(), 0);
        for volume in &point.volumes {
            let mut tree = self.look.repo.tree_by_rows(self.index.clone(), volume.size_bytes, volume.root)?;
            let mut tally = Tally::default();
            self.subtree(&mut tree, volume, volume.root.level, 0, &mut tally)?;
            nodes += tree.nodes_read();
            let listed = hurt.iter().map(|hurt: &Hurt| hurt.ranges.len()).sum();
            let listed_max = listed_max.saturating_sub(listed);
            hurt.extend(tally.end(&point.id, &point.name, &volume.name, listed_max));
        }
        if !hurt.is_empty() || !self.waiting.is_empty() {
            self.settle()?;
        }
        Ok((hurt, nodes))
    }

    /// Notes what waits, unless it may be wrong.
    fn settle(&mut self) -> Result<(), End> {
        if self.is_overtaken()? {
            return Err(End::Overtaken);
        }
        let is_listed = self.note_waiting()?;
        if self.walks >= WALKS_MAX {
            self.forget_all(); // it may be wrong
        }
        if is_listed { Ok(()) } else { Err(End::Forgotten) }
    }

    /// True if collectors have decided, since the index was read, on what the point under way seems to lack. Not for
    /// ever: where they decide faster than a point can be walked, what was found at last is believed.
    fn is_overtaken(&mut self) -> Result<bool> {
        let repo = self.look.repo;
        if self.walks >= WALKS_MAX {
            return Ok(false);
        }
        let mut records = Vec::new();
        repo.store().list(ObjectKind::Collection.prefix(), &mut |key, _| records.push(key.to_owned()))?;
        if records != self.records {
            self.decided = GcState::load_readable(repo.store().as_ref(), repo.keys())?.0.deleted();
            self.records = records;
        }
        let mut newly = self.decided.difference(&self.deleted);
        Ok(match &self.suspects {
            Some(suspects) => newly.any(|pack| suspects.contains(pack)),
            None => newly.next().is_some(),
        })
    }

    /// Reads the index again.
    fn begin_anew(&mut self) -> Result<()> {
        self.forget_all();
        let (index, gc_state) = index_of_now(self.look)?;
        (self.index, self.deleted) = (index, gc_state.deleted());
        Ok(())
    }

    fn forget_all(&mut self) {
        self.known.clear();
        self.ranges_left = REMEMBERED_RANGES;
    }

    fn note(&mut self, problem: Waiting) -> Result<(), End> {
        self.waiting.push(problem);
        if self.waiting.len() < WAITING_MAX { Ok(()) } else { self.settle() }
    }

    /// Notes what waits. False if the point was forgotten: what it needed may be gone.
    fn note_waiting(&mut self) -> Result<bool> {
        let listed = |point: PointId| Ok::<_, Error>(self.look.repo.point_ids()?.contains(&point));
        if !self.point.map_or(Ok(true), listed)? {
            return Ok(false);
        }
        for problem in std::mem::take(&mut self.waiting) {
            match problem {
                Waiting::Error(error) => self.look.problems.note(error)?,
                Waiting::Lost(id) => self.look.problems.note_lost(&id)?,
            }
        }
        Ok(true)
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
    ) -> Result<Found, End> {
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
            Err(End::Error(error)) if is_problem(&error) => {
                self.suspects = None;
                self.note(Waiting::Error(error))?;
                tally.add(span.clone());
                Some(std::iter::once(0..span.end - span.start).collect())
            }
            Err(end) => return Err(end),
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
    ) -> Result<Found, End> {
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
    ) -> Result<Found, End> {
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
                    self.suspect(&at);
                    self.note(Waiting::Error(Error::damaged(at.pack_key(), what)))?;
                }
                Some(at) if self.state.is_sound(&at) => continue,
                // The pack's problem is noted, unless it was put aside: then this is what is left of it.
                Some(at) if self.state.is_aside(&at) => {
                    if self.is_left(&at, id)? {
                        continue;
                    }
                    self.suspect(&at);
                    let what = format_args!("chunk {chunk} was in it, and is nowhere else. It was put aside");
                    self.note(Waiting::Error(Error::damaged(at.pack_key(), what)))?;
                }
                Some(at) => self.suspect(&at),
                None => self.note(Waiting::Lost(*id))?,
            }
            push(&mut hurt, u64::from(offset)..u64::from(offset + piece.len));
        }
        for range in &hurt {
            tally.add(start + range.start..start + range.end);
        }
        Ok((hurt.len() <= REMEMBERED_OF_NODE).then_some(hurt))
    }

    /// Remembers a pack that does not hold what it should.
    fn suspect(&mut self, at: &Location) {
        self.suspects.iter_mut().for_each(|suspects| _ = suspects.insert(at.pack.id));
    }

    /// True if a content can be read from a pack that was put aside, although nobody relies on that any more.
    fn is_left(&mut self, at: &Location, id: &[u8; 32]) -> Result<bool> {
        if self.gone.contains(&at.pack.id) {
            return Ok(false);
        }
        let repo = self.look.repo;
        let reader = match &mut self.reader {
            Some(reader) => reader,
            slot => slot.insert(ChunkReader::new(
                repo.store().clone(),
                repo.keys().clone(),
                repo.chunk_params()?,
            )?),
        };
        match reader.fetch(at, id, &mut self.raw) {
            Ok(()) => Ok(true),
            Err(Error::Missing { .. } | Error::Archived { .. }) => {
                self.gone.insert(at.pack.id);
                Ok(false)
            }
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
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
