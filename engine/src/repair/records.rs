//! Records of garbage collection that cannot be read: whoever meets one stops, so they have to go.

use std::collections::HashSet;

use super::{Repair, RepairReport};
use crate::error::{Error, Result};
use crate::format::collection::decision_number;
use crate::format::header::ObjectKind;
use crate::gc_state::GcState;
use crate::id::ObjectId;
use crate::lease::{self, Lease, SeenLease};
use crate::store::PutOutcome;

impl Repair<'_> {
    /// Packs that collectors have decided to delete, by now.
    pub(super) fn gone_now(&self) -> Result<HashSet<ObjectId>> {
        Ok(GcState::load_readable(self.repo.store().as_ref(), self.repo.keys())?.0.deleted())
    }

    /// Removes records that cannot be read, unless a collector is under way that may have read them when they were
    /// whole and act on them. Whoever comes later finds their packs neither condemned nor decided on, and relies on
    /// those that are there; what was deleted is lost to it, and is put aside by the next repair.
    pub(super) fn remove_records(
        &self,
        damaged: Vec<(ObjectId, Error)>,
        report: &mut RepairReport,
    ) -> Result<()> {
        if damaged.is_empty() {
            return Ok(());
        }
        report.collectors = self.collectors()?;
        let may = report.collectors.is_empty() && self.lease.is_some();
        let names: Vec<ObjectId> = damaged.iter().map(|(name, _)| *name).collect();
        damaged.into_iter().for_each(|(_, error)| report.records.add(error));
        if !may {
            return Ok(());
        }
        let newest = names.iter().filter_map(|name| decision_number(*name)).max();
        if newest.is_some_and(|number| number + 1 == self.gc_state.next_decision) {
            // The number of the newest decision must not be given again: points say that their writers knew it.
            let (store, keys) = (self.repo.store().as_ref(), self.repo.keys());
            let (now_ms, points) = (self.repo.environment().clock.unix_ms(), self.repo.point_ids()?);
            self.may_publish()?;
            if self.gc_state.decide(store, keys, now_ms, &[], Vec::new(), points)? == PutOutcome::Exists {
                report.collectors.push("a collection that has ended meanwhile".into());
                return Ok(());
            }
        }
        for name in names {
            self.may_publish()?;
            fail::fail_point!("repair-before-record-delete");
            self.repo.store().delete(&ObjectKind::Collection.key(&name.to_string()))?;
        }
        Ok(())
    }

    /// Collections that are under way, or may be.
    fn collectors(&self) -> Result<Vec<String>> {
        let me = self.lease.map(Lease::writer);
        let store_now_ms = self.lease.map_or(Ok(None), Lease::store_now_ms)?;
        let leases = lease::list(self.repo.store().as_ref(), self.repo.keys())?;
        let collectors = leases
            .iter()
            .filter(|seen| Some(seen.writer) != me && !seen.is_dead(self.repo.environment(), store_now_ms))
            // One that cannot be read may be a collector's.
            .filter(|seen| seen.body.as_ref().is_none_or(|body| body.purpose == "gc"))
            .map(SeenLease::describe);
        Ok(collectors.collect())
    }
}
