//! A run that writes, from its lease to its commits. The order in which it reads and publishes is what garbage collection
//! relies on (`docs/CONCURRENCY.md`), and it stands here and nowhere else:
//!
//! ```text
//!  begin:  lease ──► records of gc ──► recovery points ──► index ──► which packs are lost
//!  commit: index segments ──► is the lease there? ──► recovery point ──► is the lease there?
//! ```

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::point::{RecoveryPoint, Root, root_level};
use crate::gc_state::GcState;
use crate::id::PointId;
use crate::index::{Claims, Merge, Tidied};
use crate::lease::{Lease, LeaseState};
use crate::manifest::each_difference;
use crate::repo::Repository;
use crate::simulation::{Bug, planted};
use crate::store::PutOutcome;

/// What a writer works with. While it lives, its lease is renewed; dropping it gives the lease back.
pub struct WriteSession<'a> {
    repo: &'a Repository,
    lease: Lease,
    gc_state: GcState,
    points: Vec<PointId>,
    claims: Arc<Claims>,
    lost_packs: usize,
}

/// How far a run may rely on an earlier recovery point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reliance {
    /// All that it needs is stored.
    All,
    /// Each content has to be looked up in the index.
    LookUp,
    /// And manifest nodes have to be stored again: one of them is damaged, though the index knows where it is.
    NodesAnew,
}

impl<'a> WriteSession<'a> {
    /// Begins a run that writes: `purpose` is what others are told of it.
    pub fn begin(repo: &'a Repository, purpose: &'static str) -> Result<Self> {
        // Whoever condemns packs after these records were read sees the lease.
        let early = planted(Bug::StateBeforeLease).then(|| repo.gc_state()).transpose()?;
        let lease = repo.lease(purpose)?;
        let gc_state = early.map_or_else(|| repo.gc_state(), Ok)?;
        // Points before the index: what a point refers to is in every index that is loaded after it was listed.
        let points = repo.point_ids()?;
        let mut excluded = gc_state.for_writers();
        let index = repo.load_index()?.excluding(excluded.clone());
        let lost = index.lost_packs()?;
        let lost_packs = lost.len();
        excluded.lost = lost;
        let claims = Claims::with_permit(Arc::new(index.excluding(excluded)), lease.permit());
        Ok(Self { repo, lease, gc_state, points, claims: Arc::new(claims), lost_packs })
    }

    /// What it writes into.
    pub fn repository(&self) -> &'a Repository {
        self.repo
    }

    /// True if the records of garbage collection alone say that this run may rely on `point`.
    pub fn covers(&self, point: &RecoveryPoint) -> bool {
        self.gc_state.covers(point)
    }

    /// The recovery points that were listed, oldest first.
    pub fn points(&self) -> &[PointId] {
        &self.points
    }

    /// What this run stores and relies on.
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// Packs that the index names and that are missing or cut short: what they held counts as absent.
    pub fn lost_packs(&self) -> usize {
        self.lost_packs
    }

    /// How far this run may rely on what `point` needs. Most often the records of garbage collection say that it may; else
    /// what the point has beyond an older one that they cover is looked up.
    pub fn may_rely_on(&self, point: &RecoveryPoint) -> Result<Reliance> {
        if self.lost_packs > 0 {
            return Ok(Reliance::LookUp);
        }
        if self.gc_state.covers(point) || planted(Bug::ParentTrusted) {
            return Ok(Reliance::All);
        }
        let base = self.newest_covered_before(point)?;
        match self.all_stored(base.as_ref(), point) {
            Err(Error::Damaged { .. }) => Ok(Reliance::NodesAnew),
            Err(error) if error.is_damage() => Ok(Reliance::LookUp),
            found => found.map(|()| Reliance::All),
        }
    }

    fn newest_covered_before(&self, point: &RecoveryPoint) -> Result<Option<RecoveryPoint>> {
        let Some(id) = point.point_id() else { return Ok(None) };
        for known in self.points.iter().rev().filter(|known| **known < id) {
            match self.repo.read_listed_point(*known) {
                Ok(Some(known)) if known.name == point.name && self.gc_state.covers(&known) => {
                    return Ok(Some(known));
                }
                Ok(_) => {}
                Err(error) if error.is_damage() => tracing::debug!("passed over: {error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// An error if something that `point` has beyond `base` is not stored.
    fn all_stored(&self, base: Option<&RecoveryPoint>, point: &RecoveryPoint) -> Result<()> {
        for volume in &point.volumes {
            let (old_bytes, old_root) = match base.and_then(|base| base.volume(&volume.name)) {
                Some(old) => (old.size_bytes, old.root),
                None => (volume.size_bytes, Root { level: root_level(volume.size_bytes), node: None }),
            };
            let index = self.claims.index();
            let mut old = self.repo.tree_by_rows(index.clone(), old_bytes, old_root)?;
            let mut new = self.repo.tree_by_rows(index.clone(), volume.size_bytes, volume.root)?;
            // Nodes are proven by being read.
            each_difference(&mut old, &mut new, &mut |_, new, change| {
                let leaf = new.load_leaf(change.segment, change.new)?;
                for chunk in leaf.pieces.iter().filter_map(|piece| piece.chunk) {
                    if !self.claims.is_stored(chunk.as_bytes())? {
                        let needed_by = format!("recovery point {}", point.id);
                        return Err(Error::Missing { object: format!("chunk {chunk}"), needed_by });
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Publishes index segments with all that was stored so far.
    pub fn flush(&self) -> Result<()> {
        self.claims.flush()
    }

    /// After an error or Ctrl-C: what is stored gets into the index, so that the next run finds it. Gives back the error.
    pub fn flush_after(&self, error: Error) -> Error {
        if let Err(flush_error) = self.flush() {
            tracing::warn!("what was stored is not in the index: {flush_error}");
        }
        error
    }

    /// Publishes a recovery point: all that it refers to must be durable. If the lease is lost the point is withdrawn.
    pub fn commit(&self, point: &mut RecoveryPoint) -> Result<PutOutcome> {
        if !planted(Bug::PointBeforeIndex) {
            self.flush()?;
        }
        self.gc_state.stamp(point);
        // By the store, not by memory: a collector that took this writer for dead has removed the lease.
        if self.lease.ask()? == LeaseState::Gone {
            return Err(self.lease.lost());
        }
        // And by its age, once the answer is there: it may have been long on its way.
        self.lease.check()?;
        let outcome = self.repo.publish_if_absent(point)?;
        if planted(Bug::PointBeforeIndex) {
            self.flush()?;
        }
        if outcome == PutOutcome::Created && !planted(Bug::ConfirmNotAsked) {
            self.confirm(point)?;
        }
        Ok(outcome)
    }

    /// The lease may have been taken away in the moment between: then what the point relies on may be deleted.
    fn confirm(&self, point: &RecoveryPoint) -> Result<()> {
        match self.lease.check().and_then(|()| self.lease.ask()) {
            Ok(LeaseState::There) => Ok(()),
            Ok(LeaseState::Gone) | Err(Error::LeaseLost { .. }) => {
                let object = ObjectKind::Point.key(&point.id);
                let store = self.repo.store();
                let withdrawn = store.delete(&object).and_then(|()| store.settle(ObjectKind::Point.prefix()));
                if let Err(error) = withdrawn {
                    tracing::error!(
                        "recovery point {}: cannot be withdrawn: {error}. Its contents may be incomplete: remove it \
                         with `penstock forget {}`",
                        point.id,
                        point.id
                    );
                }
                Err(self.lease.lost())
            }
            // The lease was there a moment before, and the point is published and good as far as anybody can tell.
            Err(error) => {
                tracing::warn!(
                    "recovery point {}: published, but the lease could not be looked after: {error}",
                    point.id
                );
                Ok(())
            }
        }
    }

    /// Merges index segments if there are many. For the end of a run, whose points neither wait for this nor fail with it:
    /// what is not done now, the next run does.
    pub fn tidy_index(&self, stop: &dyn Fn() -> bool) {
        if let Err(error) = self.lease.check() {
            tracing::warn!("the index is not merged: {error}");
            return;
        }
        match self.claims.index().tidy(Merge::Tiers, stop) {
            Ok(Tidied { merged: 0, deleted: 0, .. }) => {}
            Ok(done) => tracing::debug!(?done, "index tidied"),
            Err(Error::Cancelled) => tracing::debug!("merging the index was interrupted"),
            Err(error) => tracing::warn!("the index was not merged, the next run will try again: {error}"),
        }
    }

    /// Gives the lease back.
    pub fn end(self) {
        if let Err(error) = self.lease.end() {
            tracing::warn!("the lease is left behind, `penstock gc` removes it in time: {error}");
        }
    }
}
