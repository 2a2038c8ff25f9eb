//! The committer: builds the manifests from finished segments, stores their nodes, keeps the journal. One thread, so nothing here is shared.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};

use super::journal::Journal;
use super::{DescribedVolume, Event, GroupPlan, LeafResult, META_PACK_BYTES, Shared, volume_of};
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::point::{Counts, Volume};
use crate::manifest::{NodePacks, PackAge, Shape, TreeBuilder};
use crate::pack::{FinishedPack, OpenPack};

const META_PACK_AGE: PackAge = PackAge { min: Duration::from_millis(100), max: Duration::from_secs(10) };
/// Where each request is billed, packs are fewer.
const META_PACK_AGE_BILLED: PackAge = PackAge { min: Duration::from_secs(5), max: Duration::from_secs(60) };

/// What the pipeline leaves behind.
pub struct Committed {
    /// The volumes, with their roots.
    pub volumes: Vec<Volume>,
    /// To be removed once the recovery point is published.
    pub journal: Journal,
}

/// The committer's state.
pub struct Committer<'a> {
    shared: &'a Arc<Shared>,
    described: &'a [DescribedVolume],
    journal: Journal,
    nodes: NodePacks<'a>,
    volumes: Vec<VolumeState>,
}

#[derive(Default)]
struct VolumeState {
    tree: TreeBuilder,
    size_bytes: Option<u64>,
    counts: Counts,
}

impl<'a> Committer<'a> {
    /// A committer for the volumes described.
    pub fn new(
        shared: &'a Arc<Shared>,
        packs: Sender<FinishedPack>,
        journal: Journal,
        described: &'a [DescribedVolume],
    ) -> Result<Self> {
        let age = match shared.repo.store.habits().bills_requests {
            true => META_PACK_AGE_BILLED,
            false => META_PACK_AGE,
        };
        let open = OpenPack::new(ObjectKind::Meta, shared.meta_pool.clone(), META_PACK_BYTES);
        let nodes = NodePacks::new(&shared.repo.keys, &shared.claims, open, packs, Some(age))?
            .anew(shared.nodes_anew);
        let volumes = described.iter().map(|_| VolumeState::default()).collect();
        Ok(Self { shared, described, journal, nodes, volumes })
    }

    /// Takes events until `threads` of them have ended, builds the trees, closes the last metadata pack and waits for the writers. After a failure it only
    /// drains, so that nobody waits for it.
    pub fn run(mut self, events: &Receiver<Event>, threads: usize) -> Result<Committed> {
        let mut ended = 0;
        while ended < threads {
            let Ok(event) = events.recv() else { break };
            if let Event::ThreadEnd = event {
                ended += 1;
            } else if !self.shared.run.is_failed()
                && let Err(error) = self.event(event)
            {
                self.shared.run.fail(error);
            }
        }
        let volumes = if self.shared.run.stopped() { Err(Error::Cancelled) } else { self.finish_trees() };
        if !self.shared.run.is_failed() {
            self.nodes.close();
        }
        let Committer { nodes, mut journal, .. } = self;
        drop(nodes); // with it the writers' channel: they end when it is empty
        for event in events {
            if let Event::Pack { kind, id } = event {
                journal.pack(kind, id);
            }
        }
        Ok(Committed { volumes: volumes?, journal })
    }

    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Segment { volume, segment, leaf, counts } => {
                let node = match leaf {
                    LeafResult::Known(node) => node,
                    LeafResult::New(id, bytes) => {
                        self.nodes.put_with_id(&id, &bytes)?;
                        Some(id)
                    }
                };
                // What is amiss has to be found, and recorded, again by a run that goes on after this one.
                if !self.shared.findings.is_hurt(volume, segment) {
                    self.journal.segment(volume, segment, node);
                }
                let state = &mut self.volumes[usize::from(volume)];
                state.counts += counts;
                state.tree.set_leaf(segment, node, &mut self.nodes)
            }
            Event::Group { volume, group, plan } => match plan {
                GroupPlan::Whole(node) => {
                    self.volumes[usize::from(volume)].tree.set_node(group, node);
                    Ok(())
                }
                GroupPlan::Segments { defaults, jobs } => {
                    let state = &mut self.volumes[usize::from(volume)];
                    state.tree.plan(group, defaults, jobs as usize, &mut self.nodes)
                }
            },
            Event::VolumeEnd { volume, size_bytes, unread } => {
                let state = &mut self.volumes[usize::from(volume)];
                state.size_bytes = Some(size_bytes);
                state.counts += unread;
                Ok(())
            }
            Event::Pack { kind, id } => {
                self.journal.pack(kind, id);
                Ok(())
            }
            Event::ThreadEnd => Ok(()),
        }
    }

    fn finish_trees(&mut self) -> Result<Vec<Volume>> {
        let states = std::mem::take(&mut self.volumes);
        let mut volumes = Vec::with_capacity(states.len());
        for (described, state) in self.described.iter().zip(states) {
            let lost = || Error::Invalid {
                what: format!("internal error: segments of {} are missing", described.name),
            };
            let size_bytes = state.size_bytes.ok_or_else(lost)?;
            if !state.tree.is_complete() {
                return Err(lost());
            }
            let root = state.tree.finish(size_bytes, &mut self.nodes)?;
            debug_assert_eq!(root.level, Shape { size_bytes }.root_level());
            volumes.push(volume_of(described, size_bytes, root, state.counts));
        }
        Ok(volumes)
    }
}
