//! Looks at every pack that is there or that the index knows: which are hurt, and which have rows that the index lacks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Repair, RepairReport, rows_by_pack};
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::id::ObjectId;
use crate::index::Index;
use crate::pack::{ChunkReader, Ends, check_ends, list_packs, read_contents};
use crate::run::Progress;

/// What was found.
#[derive(Default)]
pub struct Checked {
    /// Packs that are damaged or lost.
    pub hurt: BTreeMap<ObjectId, PackRef>,
    /// Of them, those that are there, so that something may be read of them.
    pub readable: Vec<PackRef>,
    /// Sound packs of which the index has fewer rows than they have frames.
    pub incomplete: Vec<PackRef>,
    /// Packs that the index does not know.
    pub unknown: Vec<PackRef>,
    /// Packs that are not there, and what was said of them.
    missing: Vec<(PackRef, Error)>,
}

/// A pack to be looked at.
enum Task {
    /// The index knows it.
    Known(PackRef),
    /// It is only there.
    Unknown(ObjectKind, ObjectId),
}

struct Checker<'a> {
    repair: &'a Repair<'a>,
    tasks: Vec<Task>,
    rows: HashMap<ObjectId, u32>,
    /// Segments are damaged: of a pack that cannot be read now it is not known if the index has all rows.
    all_rows_count: bool,
    aside: &'a HashSet<ObjectId>,
    found: Mutex<(Checked, RepairReport)>,
}

/// Looks at all packs: those that are there, and those that `index` names, which is all that can be read. `left` is
/// the index as others will see it.
pub fn all(repair: &Repair<'_>, index: &Index, left: &Index, report: &mut RepairReport) -> Result<Checked> {
    let all_rows_count = report.bad_segments.count > 0;
    let rows = rows_by_pack(left, &|| repair.go_on())?;
    let gone = repair.gc_state.deleted();
    let aside = repair.gc_state.aside();
    let mut tasks: BTreeMap<ObjectId, Task> = BTreeMap::new();
    let store = repair.repo.store();
    for kind in [ObjectKind::Data, ObjectKind::Meta] {
        store.list(kind.prefix(), &mut |key, _| {
            let id = ObjectId::from_hex(key.rsplit('/').next().unwrap_or(key));
            tasks.extend(id.map(|id| (id, Task::Unknown(kind, id))));
        })?;
    }
    tasks.extend(index.packs_named().into_iter().map(|pack| (pack.id, Task::Known(pack))));
    // Garbage collection has decided to delete these: they are no more.
    tasks.retain(|id, _| !gone.contains(id));
    report.aside_before = aside.len() as u64;
    report.packs = tasks.len() as u64;
    if repair.options.read_data {
        let bytes = tasks.values().map(|task| match task {
            Task::Known(pack) => u64::from(pack.bytes),
            Task::Unknown(..) => 0,
        });
        repair.run.progress.total_bytes.store(bytes.sum(), Ordering::Relaxed);
    }
    let found = Mutex::new((Checked::default(), std::mem::take(report)));
    let tasks = tasks.into_values().collect();
    let checker = Checker { repair, tasks, rows, all_rows_count, aside: &aside, found };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..repair.options.workers.max(1) {
            scope.spawn(|| {
                if let Err(error) = checker.work(&next) {
                    repair.run.fail(error);
                }
            });
        }
    });
    let (mut checked, found) = checker.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    *report = found;
    repair.run.outcome()?;
    let missing = std::mem::take(&mut checked.missing);
    if !missing.is_empty() {
        // A collector may have decided on some of them since: then it is no damage.
        let gone = repair.gone_now()?;
        let there = list_packs(store.as_ref(), missing.len())?;
        for (pack, error) in missing.into_iter().filter(|(pack, _)| !gone.contains(&pack.id)) {
            if there.contains_key(&pack.id) && is_listed(repair, &pack)? {
                return Err(contradiction(&pack));
            }
            if !aside.contains(&pack.id) {
                report.hurt.add(error);
            }
            checked.hurt.insert(pack.id, pack);
        }
    }
    Ok(checked)
}

/// True if the store lists a pack where it belongs.
fn is_listed(repair: &Repair<'_>, pack: &PackRef) -> Result<bool> {
    let (wanted, mut found) = (pack.kind.key(&pack.id.to_string()), false);
    repair.repo.store().list(&wanted, &mut |key, _| found |= key == wanted)?;
    Ok(found)
}

/// A store that lists a pack and says that it is not there: one of both is wrong, and nothing is done for it.
pub fn contradiction(pack: &PackRef) -> Error {
    let what =
        "the store lists it, and said that it is not there. Nothing was put aside for that; run repair again";
    Error::damaged(pack.kind.key(&pack.id.to_string()), what)
}

impl Checker<'_> {
    fn found(&self) -> MutexGuard<'_, (Checked, RepairReport)> {
        // Each critical section is a push or two: a panic leaves no half of one that matters.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, next: &AtomicUsize) -> Result<()> {
        let repo = self.repair.repo;
        let mut reader = ChunkReader::new(repo.store().clone(), repo.keys().clone(), repo.chunk_params()?)?;
        while !self.repair.run.stopped() {
            let Some(task) = self.tasks.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            match task {
                Task::Known(pack) => self.known(pack, &mut reader)?,
                Task::Unknown(kind, id) => self.unknown(*kind, *id, &mut reader)?,
            }
        }
        Ok(())
    }

    fn known(&self, pack: &PackRef, reader: &mut ChunkReader) -> Result<()> {
        let repo = self.repair.repo;
        let rows = match check_ends(repo.store().as_ref(), repo.keys(), pack)? {
            Ends::Sound(rows) => rows,
            Ends::Archived => {
                let known = self.rows.get(&pack.id).copied().unwrap_or(0) > 0 && !self.all_rows_count;
                self.found().1.archived += u64::from(!known);
                return Ok(());
            }
            Ends::Hurt { error: error @ Error::NewerVersion { .. }, .. } => return Err(error),
            Ends::Hurt { error, bytes, .. } => return self.hurt(pack, bytes.is_some(), error),
        };
        Progress::add(&self.repair.run.progress.done_bytes, pack.bytes.into());
        if !self.is_to_be_used(pack, &rows, reader)? {
            return Ok(());
        }
        let in_index = self.rows.get(&pack.id).copied().unwrap_or(0) as usize;
        if in_index < rows.len() {
            self.found().0.incomplete.push(*pack);
        }
        Ok(())
    }

    /// True if a pack whose ends are right may be relied on. If not, it is noted as hurt: one of its frames is, or
    /// it was put aside before; then what can be read of it is moved, if that was not done.
    fn is_to_be_used(&self, pack: &PackRef, rows: &[TocRow], reader: &mut ChunkReader) -> Result<bool> {
        let mut bad = None;
        if self.repair.options.read_data {
            let stop = || self.repair.run.stopped();
            let read = reader.each_frame(pack, rows, &stop, &mut |_, content| {
                if let Err(error) = content {
                    bad.get_or_insert(error);
                }
                Ok(())
            })?;
            Progress::add(&self.repair.run.progress.read_bytes, read);
            self.found().1.read_bytes += read;
        }
        if let Some(error) = bad {
            // A collector may have deleted it since its ends were read.
            self.hurt(pack, !matches!(error, Error::Missing { .. }), error)?;
            return Ok(false);
        }
        let was_aside = self.aside.contains(&pack.id);
        if was_aside {
            let mut found = self.found();
            found.0.hurt.insert(pack.id, *pack);
            found.0.readable.push(*pack);
        }
        Ok(!was_aside)
    }

    fn hurt(&self, pack: &PackRef, is_there: bool, error: Error) -> Result<()> {
        let mut found = self.found();
        let (checked, report) = &mut *found;
        if !is_there {
            checked.missing.push((*pack, error));
            return Ok(());
        }
        if !self.aside.contains(&pack.id) {
            report.hurt.add(error);
        }
        checked.hurt.insert(pack.id, *pack);
        checked.readable.push(*pack);
        Ok(())
    }

    fn unknown(&self, kind: ObjectKind, id: ObjectId, reader: &mut ChunkReader) -> Result<()> {
        let repo = self.repair.repo;
        match read_contents(repo.store().as_ref(), repo.keys(), kind, id) {
            Ok((pack, rows)) => {
                if self.is_to_be_used(&pack, &rows, reader)? {
                    self.found().0.unknown.push(pack);
                }
            }
            Err(Error::Archived { .. }) => self.found().1.archived += 1,
            // Deleted since it was listed.
            Err(Error::Missing { .. }) => {}
            Err(error) if error.is_damage() => self.found().1.useless.add(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
