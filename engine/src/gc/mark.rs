//! Walks the manifests of all recovery points, each shared subtree once, and marks what they need in the index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::packs::{Present, Uses};
use crate::error::{Error, Result};
use crate::format::header::TRAILER_BYTES;
use crate::format::node::NodeRef;
use crate::gc_state::GcState;
use crate::id::{ObjectId, PointId, SegmentNo};
use crate::index::{Index, Marked, Marks, RANK_BEST};
use crate::limits::NODE_FANOUT;
use crate::manifest::{NodeReader, Shape};
use crate::pack::Location;
use crate::repo::Repository;
use crate::run::{Progress, Run};
use crate::simulation::{Bug, planted};
use crate::store::Span;

/// Marks all that `points` need, and adds up what that makes for each pack. A point that cannot be read, or content that cannot be found, is an error: then nothing may be deleted.
pub fn all(
    repo: &Repository,
    index: &Arc<Index>,
    state: &GcState,
    points: &[PointId],
    present: &Present,
    run: &Run,
) -> Result<Uses> {
    let (gone, condemned, aside) = (state.deleted(), state.condemned(), state.aside());
    let nodes = NodeReader::new(repo.store().clone(), repo.keys().clone(), index.clone())?;
    let mut walk = Walk {
        index,
        nodes,
        marks: index.marks(),
        condemned: &condemned,
        aside: &aside,
        gone: &gone,
        present,
        run,
        point: String::new(),
        unlisted: HashSet::new(),
        repo,
    };
    for id in points {
        let read = match repo.read_point(*id) {
            Err(Error::Missing { .. }) if planted(Bug::AbsentForgotten) => Ok(None),
            _ => repo.read_listed_point(*id),
        };
        let Some(point) = read? else { continue };
        walk.point.clone_from(&point.id);
        for volume in &point.volumes {
            let shape = Shape { size_bytes: volume.size_bytes };
            walk.node(volume.root.node, volume.root.level, 0, shape)?;
        }
    }
    let Walk { marks, .. } = walk;
    let mut uses = Uses { marks: index.marks(), packs: HashMap::new(), rows: 0, gone_rows: 0 };
    for pack in index.packs() {
        uses.packs.entry(pack.id).or_default();
    }
    index.each_row_with_mark(&marks, &mut |_, location, marked| {
        uses.rows += 1;
        uses.gone_rows += u64::from(gone.contains(&location.pack.id));
        if marked {
            uses.packs.entry(location.pack.id).or_default().need(location.stored_bytes);
        }
        Ok(())
    })?;
    uses.marks = marks;
    Ok(uses)
}

struct Walk<'a> {
    index: &'a Index,
    nodes: NodeReader,
    marks: Marks,
    condemned: &'a HashSet<ObjectId>,
    /// Condemned since they are damaged.
    aside: &'a HashSet<ObjectId>,
    gone: &'a HashSet<ObjectId>,
    present: &'a Present,
    run: &'a Run,
    point: String,
    /// Packs that were looked for by name.
    unlisted: HashSet<ObjectId>,
    repo: &'a Repository,
}

impl Walk<'_> {
    fn node(&mut self, node: NodeRef, level: u8, number: u64, shape: Shape) -> Result<()> {
        let Some(id) = node else { return Ok(()) };
        if !self.mark(id.as_bytes(), "manifest node")? {
            return Ok(()); // with all that is under it
        }
        if self.run.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if level == 0 {
            let len = SegmentNo(number).len_in(shape.size_bytes);
            Progress::add(&self.run.progress.done_bytes, len as u64);
            let leaf = self.nodes.leaf(node, len)?;
            for chunk in leaf.pieces.iter().filter_map(|piece| piece.chunk) {
                self.mark(chunk.as_bytes(), "chunk")?;
            }
            return Ok(());
        }
        let children = self.nodes.inner(node, level, shape.children(level, number))?;
        for (child, node) in children.into_iter().enumerate() {
            self.node(node, level - 1, number * NODE_FANOUT as u64 + child as u64, shape)?;
        }
        Ok(())
    }

    /// True if it was not marked before.
    fn mark(&mut self, id: &[u8; 32], what: &str) -> Result<bool> {
        let (condemned, gone, present, aside) = (self.condemned, self.gone, self.present, self.aside);
        // A condemned pack that is there comes before one that was not listed, which may be lost. Merges rank rows alike.
        let rank = |pack: &ObjectId| match () {
            () if gone.contains(pack) => 0,
            () if aside.contains(pack) => 1,
            () if !present.has(pack) => 2,
            () if condemned.contains(pack) => 3,
            () => RANK_BEST,
        };
        match self.index.mark(&mut self.marks, id, &rank)? {
            Marked::New(at) => {
                // What only a pack has that was put aside is lost; that is known, and no reason to stop.
                let known_lost = aside.contains(&at.pack.id);
                if !present.has(&at.pack.id) && !known_lost && self.unlisted.insert(at.pack.id) {
                    self.look_for(&at, what)?;
                }
                Ok(true)
            }
            Marked::Already => Ok(false),
            Marked::Nowhere => Err(self.lost(format!("{what} {}", hex::encode(id)))),
        }
    }

    /// A pack that was not listed was stored since, or is lost.
    fn look_for(&self, at: &Location, what: &str) -> Result<()> {
        let key = at.pack_key();
        match self.repo.store().get(&key, Span::Last(TRAILER_BYTES), &mut Vec::new())? {
            Some(bytes) if bytes >= u64::from(at.pack.bytes) => Ok(()),
            _ => Err(self.lost(format!("{key}, with a {what},"))),
        }
    }

    fn lost(&self, object: String) -> Error {
        let needed_by = format!(
            "recovery point {} (nothing is collected before that is mended or the point forgotten)",
            self.point
        );
        Error::Missing { object, needed_by }
    }
}
