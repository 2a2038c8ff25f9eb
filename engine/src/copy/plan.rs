//! The planner: walks the source's manifests against the baseline, finds out which chunks have to be read, and in which ranges of packs.

use std::collections::HashMap;

use crossbeam::channel::Sender;

use super::fetch::{Batch, Frame};
use super::{Event, GroupPlan, PlannedPiece, PlannedSegment, PointJob, Shared};
use crate::error::{Error, Result};
use crate::format::node::{Leaf, NodeRef};
use crate::id::{ChunkId, SegmentNo};
use crate::limits::SEGMENT_BYTES;
use crate::manifest::{GROUP_SEGMENTS, TreeReader};
use crate::pack::Location;
use crate::run::Progress;

/// Data of a window: what is sorted by packs and read together.
const WINDOW_BYTES: u64 = 16 << 20;
/// Segments of a window at most.
const WINDOW_SEGMENTS: usize = 256;

/// The planner thread of one recovery point.
pub struct Planner<'a> {
    shared: &'a Shared<'a>,
    job: &'a PointJob,
    events: Sender<Event>,
    batches: Sender<Batch>,
    window: Window,
    number: u64,
}

#[derive(Default)]
struct Window {
    segments: Vec<PlannedSegment>,
    /// Chunks to be read: length, and the volume that meets them first.
    wanted: HashMap<ChunkId, (u32, u16)>,
    bytes: u64,
}

/// The manifests of one volume.
struct Trees {
    new: TreeReader,
    /// The baseline's: the source's and the copy's.
    old: Option<(TreeReader, TreeReader)>,
}

impl Trees {
    /// True if what ends at `end_bytes` at the latest has the same shape in the baseline.
    fn comparable(&self, end_bytes: u64) -> bool {
        let size_bytes = self.new.shape().size_bytes;
        self.old.as_ref().is_some_and(|(old, _)| {
            let old_bytes = old.shape().size_bytes;
            old_bytes == size_bytes || end_bytes <= old_bytes.min(size_bytes)
        })
    }
}

impl<'a> Planner<'a> {
    /// A planner; it ends its channels when it is done.
    pub fn new(
        shared: &'a Shared<'a>,
        job: &'a PointJob,
        events: Sender<Event>,
        batches: Sender<Batch>,
    ) -> Self {
        Self { shared, job, events, batches, window: Window::default(), number: 0 }
    }

    /// Plans all volumes.
    pub fn run(mut self) -> Result<()> {
        for volume in 0..self.job.point.volumes.len() {
            let mut trees = self.trees(volume)?;
            let groups = trees.new.shape().segments().div_ceil(GROUP_SEGMENTS);
            for group in 0..groups {
                if self.shared.run.stopped() {
                    return Ok(());
                }
                self.group(&mut trees, volume as u16, group)?;
            }
        }
        self.send_window()
    }

    fn trees(&self, volume: usize) -> Result<Trees> {
        let wanted = &self.job.point.volumes[volume];
        let new = self.shared.of_source(self.shared.source.tree(wanted.size_bytes, wanted.root))?;
        let old = self.job.baseline.as_ref().and_then(|baseline| {
            let pair = (baseline.original.volume(&wanted.name)?, baseline.copy.volume(&wanted.name)?);
            Some(pair).filter(|(original, copy)| original.size_bytes == copy.size_bytes)
        });
        let old = match old {
            None => None,
            Some((original, copy)) => {
                Some((self.shared.of_source(self.shared.source.tree(original.size_bytes, original.root))?, {
                    let index = self.shared.claims.index().clone();
                    let tree = self.shared.destination.tree_in(index, copy.size_bytes, copy.root);
                    self.shared.of_destination(tree)?
                }))
            }
        };
        Ok(Trees { new, old })
    }

    /// 256 segments, which are one node where the volume has more than one segment.
    fn group(&mut self, trees: &mut Trees, volume: u16, group: u64) -> Result<()> {
        let shape = trees.new.shape();
        let first = group * GROUP_SEGMENTS;
        let count = GROUP_SEGMENTS.min(shape.segments() - first);
        if shape.root_level() > 0 {
            let node = self.shared.of_source(trees.new.node(1, group))?;
            let start_bytes = SegmentNo(first).offset_bytes();
            let group_bytes = (GROUP_SEGMENTS * SEGMENT_BYTES as u64).min(shape.size_bytes - start_bytes);
            let known = match node {
                None => Some(None),
                // A group that is not whole can be compared with one that is as short.
                Some(_) if trees.comparable(start_bytes + GROUP_SEGMENTS * SEGMENT_BYTES as u64) => {
                    self.known_node(trees, 1, group, node)?
                }
                Some(_) => None,
            };
            if let Some(node) = known {
                let progress = &self.shared.run.progress;
                Progress::add(&progress.done_bytes, group_bytes);
                let counter = if node.is_none() { &progress.zero_bytes } else { &progress.reused_bytes };
                Progress::add(counter, group_bytes);
                return self.send(Event::Group { volume, group, plan: GroupPlan::Whole(node) });
            }
        }
        let mut refs = Vec::with_capacity(count as usize);
        let mut jobs = 0;
        for segment in (first..first + count).map(SegmentNo) {
            if self.shared.run.stopped() {
                return Ok(());
            }
            match self.segment(trees, volume, segment)? {
                Some(node) => {
                    refs.push(node);
                    Progress::add(
                        &self.shared.run.progress.done_bytes,
                        segment.len_in(shape.size_bytes) as u64,
                    );
                }
                None => {
                    refs.push(None);
                    jobs += 1;
                }
            }
        }
        self.send(Event::Group { volume, group, plan: GroupPlan::Segments { refs, jobs } })
    }

    /// The destination's node, if the baseline has the source's in this very place.
    fn known_node(&self, trees: &mut Trees, level: u8, index: u64, node: NodeRef) -> Result<Option<NodeRef>> {
        let Some((original, copy)) = &mut trees.old else { return Ok(None) };
        if original.shape().root_level() < level
            || self.shared.of_source(original.node(level, index))? != node
        {
            return Ok(None);
        }
        let known = self.shared.of_destination(copy.node(level, index))?;
        // A copy that has zeros where the original has data would be none.
        Ok(Some(known).filter(Option::is_some))
    }

    /// The segment's leaf in the destination if that is known; else the segment becomes part of the window.
    fn segment(&mut self, trees: &mut Trees, volume: u16, segment: SegmentNo) -> Result<Option<NodeRef>> {
        let shared = self.shared;
        let size_bytes = trees.new.shape().size_bytes;
        let len = segment.len_in(size_bytes) as u64;
        let node = shared.of_source(trees.new.leaf_ref(segment))?;
        if node.is_none() {
            Progress::add(&shared.run.progress.zero_bytes, len);
            return Ok(Some(None));
        }
        let comparable = trees.comparable(segment.offset_bytes() + SEGMENT_BYTES as u64);
        if comparable && let Some(known) = self.known_node(trees, 0, segment.0, node)? {
            Progress::add(&shared.run.progress.reused_bytes, len);
            return Ok(Some(known));
        }
        let leaf = shared.of_source(trees.new.load_leaf(segment, node))?;
        let known = if comparable { self.known_chunks(trees, segment)? } else { HashMap::new() };
        self.add(volume, segment, &leaf, &known)?;
        Ok(None)
    }

    /// What the chunks of the baseline's segment are called in the destination: both leaves have the same cuts.
    fn known_chunks(&self, trees: &mut Trees, segment: SegmentNo) -> Result<HashMap<ChunkId, ChunkId>> {
        let Some((original, copy)) = &mut trees.old else { return Ok(HashMap::new()) };
        let original = self.shared.of_source(original.leaf(segment))?;
        let copy = self.shared.of_destination(copy.leaf(segment))?;
        Ok(pairs(&original, &copy))
    }

    fn add(
        &mut self,
        volume: u16,
        segment: SegmentNo,
        leaf: &Leaf,
        known: &HashMap<ChunkId, ChunkId>,
    ) -> Result<()> {
        let mut pieces = Vec::with_capacity(leaf.pieces.len());
        for piece in &leaf.pieces {
            let len = piece.len;
            pieces.push(match piece.chunk {
                None => PlannedPiece::Zero { len },
                Some(id) => match self.known_chunk(&id, known)? {
                    Some(id) => PlannedPiece::Known { len, id },
                    None => {
                        let (first_len, _) = *self.window.wanted.entry(id).or_insert_with(|| {
                            self.window.bytes += u64::from(len);
                            (len, volume)
                        });
                        if first_len != len {
                            let what =
                                format!("chunk {id} has {first_len} bytes in one place and {len} in another");
                            let damage = Error::damaged("a manifest", what);
                            return Err(damage.in_repository(self.shared.source.location()));
                        }
                        PlannedPiece::Wanted { len, id }
                    }
                },
            });
        }
        self.window.segments.push(PlannedSegment { volume, segment, pieces });
        if self.window.bytes >= WINDOW_BYTES || self.window.segments.len() >= WINDOW_SEGMENTS {
            return self.send_window();
        }
        Ok(())
    }

    fn known_chunk(&self, id: &ChunkId, known: &HashMap<ChunkId, ChunkId>) -> Result<Option<ChunkId>> {
        if let Some(found) = known.get(id) {
            return Ok(Some(*found));
        }
        if self.shared.same_ids && self.shared.of_destination(self.shared.claims.is_stored(id.as_bytes()))? {
            return Ok(Some(*id));
        }
        Ok(self.shared.renamed.find(id))
    }

    /// Sends the window on: to the assembler what it is made of, to the fetchers what has to be read for it.
    fn send_window(&mut self) -> Result<()> {
        let Window { segments, wanted, .. } = std::mem::take(&mut self.window);
        if segments.is_empty() {
            return Ok(());
        }
        let frames = self.shared.of_source(self.locate(wanted))?;
        let batches = in_batches(
            self.number,
            frames,
            self.shared.source.store().habits().gap_bytes,
            self.shared.batch_bytes,
        );
        // First to the assembler: it must know the window before a part of it comes.
        self.send(Event::Window { number: self.number, segments, batches: batches.len() })?;
        self.number += 1;
        for batch in batches {
            if self.batches.send(batch).is_err() {
                break; // the fetchers are gone, and the cause is latched
            }
        }
        Ok(())
    }

    fn locate(&self, wanted: HashMap<ChunkId, (u32, u16)>) -> Result<Vec<Frame>> {
        let needed_by = format!("recovery point {}", self.job.point.id);
        let index = self.shared.source.index()?;
        let mut frames = Vec::with_capacity(wanted.len());
        for (id, (len, volume)) in wanted {
            let at: Location = index.locate(id.as_bytes(), &needed_by)?;
            if at.raw_bytes != len || len > self.shared.chunk_bytes_max {
                return Err(Error::damaged(
                    at.pack_key(),
                    format_args!("chunk {id} has {} bytes there, the manifest says {len}", at.raw_bytes),
                ));
            }
            frames.push(Frame { id, at, volume });
        }
        frames.sort_unstable_by_key(|frame| (frame.at.pack.id, frame.at.offset));
        Ok(frames)
    }

    fn send(&self, event: Event) -> Result<()> {
        self.events.send(event).map_err(|_| Error::Cancelled)
    }
}

/// Ids of chunks in the same places; nothing if the leaves do not have the same cuts.
fn pairs(original: &Leaf, copy: &Leaf) -> HashMap<ChunkId, ChunkId> {
    let cuts = |leaf: &Leaf| -> Vec<(u32, bool)> {
        leaf.pieces.iter().map(|piece| (piece.len, piece.chunk.is_some())).collect()
    };
    if cuts(original) != cuts(copy) {
        return HashMap::new();
    }
    original.pieces.iter().zip(&copy.pieces).filter_map(|(a, b)| Some((a.chunk?, b.chunk?))).collect()
}

/// Frames in the order of packs, as requests of up to `batch_bytes`.
fn in_batches(window: u64, frames: Vec<Frame>, gap_bytes: u64, batch_bytes: u64) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for frame in frames {
        let (start, end) = (u64::from(frame.at.offset), frame.at.end());
        match batches.last_mut() {
            Some(last)
                if last.frames.first().is_some_and(|first| first.at.pack.id == frame.at.pack.id)
                    && start <= last.end + gap_bytes
                    && end - last.start <= batch_bytes =>
            {
                last.end = last.end.max(end);
                last.frames.push(frame);
            }
            _ => batches.push(Batch { window, frames: vec![frame], start, end }),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::ObjectKind;
    use crate::format::index_segment::PackRef;
    use crate::format::node::Piece;
    use crate::id::ObjectId;

    fn frame(pack: u8, offset: u32, stored_bytes: u32) -> Frame {
        let id = ObjectId::new([pack; 16]);
        let pack = PackRef { id, salt: [0; 24], bytes: 1 << 20, kind: ObjectKind::Data };
        let at = Location { pack, offset, stored_bytes, raw_bytes: stored_bytes };
        Frame { id: ChunkId::new([0; 32]), at, volume: 0 }
    }

    #[test]
    fn neighbours_are_one_request_and_strangers_are_not() {
        let frames = vec![
            frame(1, 100, 50),
            frame(1, 160, 40),
            frame(1, 500, 10),
            frame(1, 510, 900),
            frame(2, 0, 10),
        ];
        let batches = in_batches(7, frames, 10, 500);
        let found: Vec<_> = batches.iter().map(|b| (b.start, b.end, b.frames.len())).collect();
        assert_eq!(found, [(100, 200, 2), (500, 510, 1), (510, 1410, 1), (0, 10, 1)]);
        assert!(batches.iter().all(|batch| batch.window == 7));
    }

    #[test]
    fn names_are_paired_only_where_the_cuts_agree() {
        let id = |n: u8| ChunkId::new([n; 32]);
        let leaf = |pieces: &[(u32, Option<u8>)]| Leaf {
            pieces: pieces.iter().map(|(len, chunk)| Piece { len: *len, chunk: chunk.map(id) }).collect(),
        };
        let original = leaf(&[(4096, Some(1)), (8192, None), (4096, Some(2))]);
        let copy = leaf(&[(4096, Some(11)), (8192, None), (4096, Some(12))]);
        let found = pairs(&original, &copy);
        assert_eq!(found, HashMap::from([(id(1), id(11)), (id(2), id(12))]));
        let other = leaf(&[(4096, Some(11)), (4096, None), (8192, Some(12))]);
        assert!(pairs(&original, &other).is_empty());
    }
}
