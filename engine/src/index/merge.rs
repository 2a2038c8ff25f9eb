//! Merges runs of segments into one, and deletes what was superseded. `docs/CONCURRENCY.md` has the argument why both may happen at any time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::rows::{MergedRows, RowStatus};
use super::runs::{RUN_NAME_BYTES, Run, Runs, part_id};
use super::segment::Segment;
use super::writer::SegmentWriter;
use super::{Excluded, Index, plan, taken};
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::{PackRef, Row};
use crate::id::{ObjectId, random_bytes};
use crate::simulation::{Bug, planted, sized};
use crate::store::PutOutcome;

/// Rows of one part of a merge. The tail of a part is read and decoded at once, and its filter is built in memory: 33 bytes a row, 140 MB.
pub const PART_ROWS: u64 = sized(4 << 20, 16) as u64;
/// Rows between two looks at whether to stop.
const STOP_ROWS: u64 = 1 << 16;

/// What tidying did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tidied {
    /// Runs that were merged into one.
    pub merged: usize,
    /// Rows of the merged run.
    pub rows: u64,
    /// Segments it was written as.
    pub parts: usize,
    /// Superseded segments that were deleted.
    pub deleted: usize,
}

/// How far a merge goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merge {
    /// What the tiers ask for.
    Tiers,
    /// All runs into one, and also one that is alone: to drop rows of packs that are gone.
    Rewrite,
}

/// What a row is worth, given the packs that do not count.
pub fn status(excluded: &Excluded, row: &Row, segment: &Segment) -> RowStatus {
    let Some(pack) = segment.packs().get(row.pack_no as usize) else { return RowStatus::Live };
    if excluded.deleted.contains(&pack.id) {
        RowStatus::Deleted
    } else if excluded.aside.contains(&pack.id) {
        RowStatus::Aside
    } else if excluded.lost.contains(&pack.id) {
        RowStatus::Lost
    } else if excluded.condemned.contains(&pack.id) {
        RowStatus::Condemned
    } else {
        RowStatus::Live
    }
}

impl Index {
    /// Deletes segments that were superseded before this index was opened, and merges runs if there are too many. For the end of a run; `stop` is asked now and then.
    /// A merge whose inputs another process has merged and deleted meanwhile is given up without an error.
    pub fn tidy(&self, how: Merge, stop: &dyn Fn() -> bool) -> Result<Tidied> {
        let mut done = Tidied { deleted: self.delete_superseded()?, ..Tidied::default() };
        let seen = Arc::clone(&self.lock_runs());
        if choose(how, &seen).is_none() {
            return Ok(done);
        }
        // What others have merged since this index was opened need not be merged again.
        self.reload(&seen)?;
        let runs = Arc::clone(&self.lock_runs());
        let Some(range) = choose(how, &runs) else { return Ok(done) };
        match self.merge(&runs, range, stop) {
            Ok(merged) => Ok(Tidied { deleted: done.deleted, ..merged }),
            Err(Error::SegmentGone { object }) => {
                tracing::debug!("not merged: {object} was deleted meanwhile");
                done.merged = 0;
                Ok(done)
            }
            Err(error) => Err(error),
        }
    }

    fn delete_superseded(&self) -> Result<usize> {
        let names = std::mem::take(&mut *self.superseded.lock().unwrap_or_else(|p| p.into_inner()));
        if !names.is_empty() {
            // What superseded them must not be lost: its writer may have been killed before he synced it.
            self.store.settle(ObjectKind::Index.prefix())?;
        }
        for id in &names {
            fail::fail_point!("index-before-delete");
            self.store.delete(&ObjectKind::Index.key(&id.to_string()))?;
        }
        Ok(names.len())
    }

    /// Writes the runs in `range` as one, which supersedes them.
    fn merge(&self, all: &Runs, range: std::ops::Range<usize>, stop: &dyn Fn() -> bool) -> Result<Tidied> {
        let inputs = &all.runs()[range.clone()];
        let name = name_between(inputs, all.runs().get(range.end))?;
        let superseded = superseded(inputs, all.listed());
        let excluded = &self.excluded;
        let (packs, numbers) = pack_table(inputs, excluded);
        let mut rows = MergedRows::new(self.store.as_ref(), inputs)?;
        let mut done = Tidied { merged: inputs.len(), ..Tidied::default() };
        loop {
            let number = u16::try_from(done.parts)
                .map_err(|_| Error::Invalid { what: "the index is too large to be merged".into() })?;
            let id = part_id(name, number);
            let object = ObjectKind::Index.key(&id.to_string());
            fail::fail_point!("merge-before-put");
            let stored = self.store.put_streamed(&object, &mut |out| {
                let mut writer = SegmentWriter::start(&self.keys, id, out)?;
                for count in 0..self.part_rows {
                    if count % STOP_ROWS == 0 && stop() {
                        return Err(Error::Cancelled);
                    }
                    let next = rows.next(&|row, segment| status(excluded, row, segment))?;
                    let Some(found) = next else { break };
                    // Checks that the row is sound, so that a merge never passes on what it could not answer for.
                    rows.segment(&found).location(&found.row)?;
                    let pack_no = numbers[found.run][found.part][found.row.pack_no as usize];
                    writer.add(Row { pack_no, ..found.row })?;
                    done.rows += 1;
                }
                // Only the last part supersedes: when it is there, all others are.
                writer.finish(&packs, if rows.is_done() { &superseded } else { &[] })
            })?;
            if stored == PutOutcome::Exists {
                return Err(taken(&object));
            }
            done.parts += 1;
            if planted(Bug::InputsDeletedEarly) {
                for id in &superseded {
                    self.store.delete(&ObjectKind::Index.key(&id.to_string()))?;
                }
            }
            fail::fail_point!("merge-after-put");
            if rows.is_done() {
                return Ok(done);
            }
        }
    }
}

fn choose(how: Merge, runs: &Runs) -> Option<std::ops::Range<usize>> {
    match how {
        Merge::Tiers => plan::choose(&runs.runs().iter().map(Run::rows).collect::<Vec<_>>()),
        Merge::Rewrite => (!runs.runs().is_empty()).then_some(0..runs.runs().len()),
    }
}

/// A random name behind the newest input and before the next newer run: so what won over the inputs wins over the merged run, and what lost to them loses.
fn name_between(inputs: &[Run], next: Option<&Run>) -> Result<[u8; RUN_NAME_BYTES]> {
    let number = |name: [u8; RUN_NAME_BYTES]| name.iter().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
    let below = inputs.last().map_or(0, |run| number(run.name()));
    // Half a millisecond at most, as far as names tell time.
    let room = next.map_or(u128::MAX, |run| number(run.name())).saturating_sub(below + 1).min(1 << 63);
    if room < 1 << 32 {
        return Err(Error::Invalid { what: "no name is left between two index segments".into() });
    }
    let drawn = u128::from_le_bytes(random_bytes()?) % room;
    let mut name = [0; RUN_NAME_BYTES];
    name.copy_from_slice(&(below + 1 + drawn).to_be_bytes()[16 - RUN_NAME_BYTES..]);
    Ok(name)
}

/// All segments of the inputs, and what those superseded in their turn and is still there: it must not come back to life when they are deleted.
fn superseded(inputs: &[Run], listed: &HashSet<ObjectId>) -> Vec<ObjectId> {
    let parts = || inputs.iter().flat_map(Run::parts);
    let mut ids: Vec<ObjectId> = parts().map(|part| part.id()).collect();
    ids.extend(parts().flat_map(|part| part.superseded()).filter(|id| listed.contains(id)));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// For each part of a run, the new numbers of its packs.
type PartNumbers = Vec<Arc<[u32]>>;

/// The packs of all inputs that are not deleted, each once, and for each part of each input the new numbers of its packs.
fn pack_table(inputs: &[Run], excluded: &Excluded) -> (Vec<PackRef>, Vec<PartNumbers>) {
    let mut packs: Vec<PackRef> = Vec::new();
    let mut places: HashMap<ObjectId, u32> = HashMap::new();
    let mut numbers = Vec::with_capacity(inputs.len());
    for run in inputs {
        let mut of_run: PartNumbers = Vec::with_capacity(run.parts().len());
        for (at, part) in run.parts().iter().enumerate() {
            if at > 0 && Arc::ptr_eq(part.packs(), run.parts()[at - 1].packs()) {
                of_run.push(of_run[at - 1].clone());
                continue;
            }
            let number = |pack: &PackRef| {
                if excluded.deleted.contains(&pack.id) {
                    return u32::MAX; // none of its rows is kept
                }
                *places.entry(pack.id).or_insert_with(|| {
                    packs.push(*pack);
                    packs.len() as u32 - 1
                })
            };
            of_run.push(part.packs().iter().map(number).collect());
        }
        numbers.push(of_run);
    }
    (packs, numbers)
}
