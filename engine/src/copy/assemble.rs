//! The assembler: gathers the new names of chunks, makes the leaves and the trees above them, and stores them in metadata packs. One thread, so nothing here is shared.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};

use super::{Event, GroupPlan, PlannedPiece, PlannedSegment, PointJob, Shared};
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::node::{Leaf, Piece};
use crate::format::point::{Counts, Root};
use crate::id::ChunkId;
use crate::manifest::{NodePacks, NodeSink, TreeBuilder};
use crate::pack::{FinishedPack, OpenPack};
use crate::run::Progress;

/// Size of metadata packs: nodes of 8 GiB of a volume.
pub const META_PACK_BYTES: usize = crate::simulation::sized(4 << 20, 64 << 10);
/// What is stored gets into the index after a quarter of the run so far, within these bounds: so a killed copy need not send it again.
const FLUSH_AFTER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What the pipeline makes of a volume.
pub struct Assembled {
    /// Its tree in the destination.
    pub root: Root,
    /// New chunks, and what they take.
    pub new: Counts,
}

/// The assembler's state.
pub struct Assembler<'a> {
    shared: &'a Shared<'a>,
    job: &'a PointJob,
    nodes: NodePacks<'a>,
    windows: HashMap<u64, Window>,
    volumes: Vec<VolumeState>,
    flushed: Instant,
}

struct Window {
    segments: Vec<PlannedSegment>,
    batches: usize,
    names: HashMap<ChunkId, ChunkId>,
}

#[derive(Default)]
struct VolumeState {
    tree: TreeBuilder,
    new: Counts,
}

impl<'a> Assembler<'a> {
    /// An assembler of one recovery point.
    pub fn new(shared: &'a Shared<'a>, job: &'a PointJob, packs: Sender<FinishedPack>) -> Result<Self> {
        let open = OpenPack::new(ObjectKind::Meta, shared.meta_pool.clone(), META_PACK_BYTES);
        let nodes = NodePacks::new(shared.destination.keys(), &shared.claims, open, packs, None)?;
        let volumes = job.point.volumes.iter().map(|_| VolumeState::default()).collect();
        Ok(Self { shared, job, nodes, windows: HashMap::new(), volumes, flushed: Instant::now() })
    }

    /// Takes events until all who send them have ended, builds the trees and closes all packs. After a failure it only drains, so that nobody waits for it.
    pub fn run(mut self, events: &Receiver<Event>) -> Result<Vec<Assembled>> {
        for event in events {
            if self.shared.run.is_failed() {
                continue;
            }
            if let Err(error) = self.event(event).and_then(|()| self.flush_now_and_then()) {
                self.shared.run.fail(error.in_repository(self.shared.destination.location()));
            }
        }
        let assembled = if self.shared.run.stopped() { Err(Error::Cancelled) } else { self.finish_trees() };
        if !self.shared.run.is_failed() {
            // Also when cancelled: what was made ready is kept for the next run.
            self.nodes.close();
            self.shared.open_packs.close(self.nodes.packs());
        }
        assembled
    }

    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Window { number, segments, batches } => {
                self.windows.insert(number, Window { segments, batches, names: HashMap::new() });
                self.close_window(number)
            }
            Event::Decoded { window, pairs, counts } => {
                for (volume, new) in counts {
                    self.volumes[usize::from(volume)].new += new;
                }
                if let Some(window) = self.windows.get_mut(&window) {
                    window.batches = window.batches.saturating_sub(1);
                    window.names.extend(pairs);
                }
                self.close_window(window)
            }
            Event::Group { volume, group, plan: GroupPlan::Whole(node) } => {
                self.volumes[usize::from(volume)].tree.set_node(group, node);
                Ok(())
            }
            Event::Group { volume, group, plan: GroupPlan::Segments { refs, jobs } } => {
                let state = &mut self.volumes[usize::from(volume)];
                state.tree.plan(group, refs, jobs, &mut self.nodes)
            }
        }
    }

    /// Makes the leaves of a window once all its chunks have names.
    fn close_window(&mut self, number: u64) -> Result<()> {
        if self.windows.get(&number).is_none_or(|window| window.batches > 0) {
            return Ok(());
        }
        let Some(window) = self.windows.remove(&number) else { return Ok(()) };
        for PlannedSegment { volume, segment, pieces } in window.segments {
            let leaf = renamed(&pieces, &window.names)?;
            let bytes = u64::from(leaf.segment_bytes());
            let mut encoded = Vec::with_capacity(5 + leaf.pieces.len() * 36);
            leaf.encode_into(&mut encoded);
            let node = self.nodes.put(&encoded)?;
            Progress::add(&self.shared.run.progress.done_bytes, bytes);
            self.volumes[usize::from(volume)].tree.set_leaf(segment, Some(node), &mut self.nodes)?;
        }
        Ok(())
    }

    fn finish_trees(&mut self) -> Result<Vec<Assembled>> {
        let states = std::mem::take(&mut self.volumes);
        let mut assembled = Vec::with_capacity(states.len());
        for (volume, state) in self.job.point.volumes.iter().zip(states) {
            if !state.tree.is_complete() || !self.windows.is_empty() {
                return Err(Error::Invalid {
                    what: format!("internal error: segments of {} are missing", volume.name),
                });
            }
            let root = state.tree.finish(volume.size_bytes, &mut self.nodes)?;
            assembled.push(Assembled { root, new: state.new });
        }
        Ok(assembled)
    }

    fn flush_now_and_then(&mut self) -> Result<()> {
        let run = self.shared.run.progress.started().elapsed();
        if self.flushed.elapsed() > (run / 4).clamp(FLUSH_AFTER.0, FLUSH_AFTER.1) {
            self.shared.claims.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }
}

/// The leaf that the destination has for planned pieces.
fn renamed(pieces: &[PlannedPiece], names: &HashMap<ChunkId, ChunkId>) -> Result<Leaf> {
    let mut leaf = Leaf::default();
    for piece in pieces {
        leaf.push(match piece {
            PlannedPiece::Zero { len } => Piece { len: *len, chunk: None },
            PlannedPiece::Known { len, id } => Piece { len: *len, chunk: Some(*id) },
            PlannedPiece::Wanted { len, id } => match names.get(id) {
                Some(id) => Piece { len: *len, chunk: Some(*id) },
                None => {
                    return Err(Error::Invalid { what: format!("internal error: chunk {id} got no name") });
                }
            },
        });
    }
    Ok(leaf)
}
