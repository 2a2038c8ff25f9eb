//! Checks packs: that each is there, whole and says of itself what the index says; on request every frame in it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::cursor::{Cursor, Unfinished, pack_of};
use super::{Look, VerifyReport};
use crate::error::{Error, Result};
use crate::format::index_segment::PackRef;
use crate::format::pack::TocRow;
use crate::gc_state::GcState;
use crate::id::ObjectId;
use crate::index::Index;
use crate::pack::{ChunkReader, Ends, Location, check_ends};
use crate::run::Progress;
use crate::store::Span;

/// Rows of packs without a readable table of contents that are gathered in one pass over the index: 48 MB.
const ROWS_MAX: usize = 1 << 20;
/// A sample takes packs of so many bytes at least: one.
const SAMPLE_BYTES_MIN: u64 = 1;

/// What is wrong with packs, in the terms of those who need their contents.
#[derive(Default)]
pub struct PackState {
    /// Bytes that are there of packs that are shorter than they should be; 0 if gone.
    short: HashMap<ObjectId, u64>,
    /// Where frames begin that do not decode, in order.
    bad: HashMap<ObjectId, Vec<u32>>,
    /// Packs that were put aside.
    aside: HashSet<ObjectId>,
}

impl PackState {
    /// What an earlier part of the verification found.
    pub fn of(aside: HashSet<ObjectId>, part: &Unfinished) -> Self {
        let short = part.short.iter().filter_map(|(pack, bytes)| Some((ObjectId::from_hex(pack)?, *bytes)));
        let bad = part.bad.iter().filter_map(|(pack, at)| Some((ObjectId::from_hex(pack)?, at.clone())));
        Self { short: short.collect(), bad: bad.collect(), aside }
    }

    /// True if the content at `at` can be expected to be readable.
    pub fn is_sound(&self, at: &Location) -> bool {
        let pack = &at.pack.id;
        !self.is_aside(at)
            && self.short.get(pack).is_none_or(|bytes| at.end() <= *bytes)
            && self.bad.get(pack).is_none_or(|bad| bad.binary_search(&at.offset).is_err())
    }

    /// True if the pack was put aside.
    pub fn is_aside(&self, at: &Location) -> bool {
        self.aside.contains(&at.pack.id)
    }

    fn keep(&self, part: &mut Unfinished) {
        part.short = self.short.iter().map(|(pack, bytes)| (pack.to_string(), *bytes)).collect();
        part.bad = self.bad.iter().map(|(pack, at)| (pack.to_string(), at.clone())).collect();
    }
}

/// A pack to be looked at.
struct Task {
    pack: PackRef,
    /// Its frames are read.
    read: bool,
}

/// Which of the tasks are done: all up to a number, and some behind it.
#[derive(Default)]
struct Done {
    all_below: usize,
    ahead: BTreeSet<usize>,
}

impl Done {
    fn add(&mut self, number: usize) {
        self.ahead.insert(number);
        while self.ahead.remove(&self.all_below) {
            self.all_below += 1;
        }
    }
}

struct Checker<'a> {
    look: &'a Look<'a>,
    index: &'a Index,
    tasks: Vec<Task>,
    state: Mutex<PackState>,
    done: Mutex<Done>,
    /// Numbers of tasks whose packs do not tell what is in them, and whose frames are to be read.
    opaque: Mutex<Vec<usize>>,
    /// Numbers of tasks whose packs are not there. Collectors may have deleted them since the index was read.
    absent: Mutex<Vec<(usize, Error)>>,
    read_bytes: AtomicU64,
    archived: [AtomicU64; 2],
}

/// Checks the packs that the index knows, behind those that an earlier part of the verification checked.
pub fn check(
    look: &Look<'_>,
    index: &Index,
    state: PackState,
    cursor: &mut Cursor,
    part: &mut Unfinished,
    report: &mut VerifyReport,
) -> Result<PackState> {
    let all = index.packs();
    report.packs_known = all.len() as u64;
    report.aside_packs = all.iter().filter(|pack| state.aside.contains(&pack.id)).count() as u64;
    if part.packs_done {
        return Ok(state);
    }
    let tasks = tasks(look, &all, &state, cursor, part);
    drop(all);
    let read = || tasks.iter().filter(|task| task.read);
    if look.options.read_data {
        let bytes = read().map(|task| u64::from(task.pack.bytes)).sum();
        look.run.progress.total_bytes.store(bytes, Ordering::Relaxed);
    }
    let checker = Checker {
        look,
        index,
        tasks,
        state: Mutex::new(state),
        done: Mutex::default(),
        opaque: Mutex::default(),
        absent: Mutex::default(),
        read_bytes: AtomicU64::new(0),
        archived: [AtomicU64::new(0), AtomicU64::new(0)],
    };
    checker.run();
    let Checker { tasks, state, done, read_bytes, archived, .. } = checker;
    let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let finished = &tasks[..done.all_below];
    let last_read = finished.iter().rev().find(|task| task.read);
    report.packs_read = finished.iter().filter(|task| task.read).count() as u64;
    part.packs += finished.len() as u64;
    part.read_bytes += read_bytes.into_inner();
    let [packs, bytes] = archived.map(AtomicU64::into_inner);
    part.archived = (part.archived.0 + packs, part.archived.1 + bytes);
    state.keep(part);
    if let Some(last) = finished.last().filter(|_| look.options.sample.is_none()) {
        part.pack = Some(last.pack.id.to_string());
    }
    if let Some(last) = last_read.filter(|_| look.options.sample.is_some()) {
        cursor.sampled = Some(last.pack.id.to_string());
    }
    if done.all_below < tasks.len() {
        look.go_on()?;
        return Err(Error::Cancelled); // the error that ended it is latched
    }
    part.packs_done = true;
    Ok(state)
}

/// The packs to look at, in the order in which that is done: of their names, beginning where the last run ended.
fn tasks(
    look: &Look<'_>,
    all: &[PackRef],
    state: &PackState,
    cursor: &Cursor,
    part: &Unfinished,
) -> Vec<Task> {
    let packs: Vec<&PackRef> = all.iter().filter(|pack| !state.aside.contains(&pack.id)).collect();
    let behind =
        |name: Option<&String>| pack_of(name).map_or(0, |last| packs.partition_point(|pack| pack.id <= last));
    let read_data = look.options.read_data;
    let task = |read: bool| move |pack: &&PackRef| Task { pack: **pack, read };
    let Some(share) = look.options.sample.filter(|share| read_data && *share < 1.0) else {
        return packs[behind(part.pack.as_ref())..].iter().map(task(read_data)).collect();
    };
    // Those to be read come first, so that a run that is stopped has read some of them.
    let (earlier, later) = packs.split_at(behind(cursor.sampled.as_ref()));
    let total: u64 = packs.iter().map(|pack| u64::from(pack.bytes)).sum();
    let mut due = ((total as f64 * share) as u64).max(SAMPLE_BYTES_MIN);
    later
        .iter()
        .chain(earlier)
        .map(|pack| {
            let read = due > 0;
            due = due.saturating_sub(pack.bytes.into());
            Task { pack: **pack, read }
        })
        .collect()
}

impl Checker<'_> {
    fn run(&self) {
        let run = self.look.run;
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.look.options.workers.max(1) {
                scope.spawn(|| {
                    if let Err(error) = self.work(&next) {
                        run.fail(error);
                    }
                });
            }
        });
        for ended in [self.opaque_packs(), self.absent_packs()] {
            match ended {
                Err(Error::Cancelled) | Ok(()) => {}
                Err(error) => run.fail(error),
            }
        }
    }

    fn reader(&self) -> Result<ChunkReader> {
        let repo = self.look.repo;
        ChunkReader::new(repo.store().clone(), repo.keys().clone(), repo.chunk_params()?)
    }

    fn work(&self, next: &AtomicUsize) -> Result<()> {
        let mut reader = self.reader()?;
        while !self.look.is_over() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = self.tasks.get(number) else { break };
            let Some(rows) = self.ends(number, task)? else { continue };
            if task.read {
                // Header and table of contents were read before.
                let framed: u64 = rows.iter().map(|row| u64::from(row.stored_bytes)).sum();
                self.progress(u64::from(task.pack.bytes).saturating_sub(framed));
                let stop = || self.look.is_over();
                if !self.frames(number, &task.pack, &rows, &mut reader, &stop)? {
                    continue;
                }
                if stop() {
                    break;
                }
            }
            self.done(number);
        }
        Ok(())
    }

    fn done(&self, number: usize) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).add(number);
    }

    fn state(&self) -> MutexGuard<'_, PackState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self, bytes: u64) {
        Progress::add(&self.look.run.progress.done_bytes, bytes);
    }

    /// Looks at the ends of a pack. Its frames, or none if nothing more is to be done for it.
    fn ends(&self, number: usize, task: &Task) -> Result<Option<Vec<TocRow>>> {
        let (repo, pack) = (self.look.repo, &task.pack);
        match check_ends(repo.store().as_ref(), repo.keys(), pack)? {
            Ends::Sound(rows) => Ok(Some(rows)),
            Ends::Archived => {
                self.archived[0].fetch_add(1, Ordering::Relaxed);
                self.archived[1].fetch_add(pack.bytes.into(), Ordering::Relaxed);
                Ok(Some(Vec::new()))
            }
            Ends::Hurt { error, bytes: None, .. } => {
                self.absent(number, error);
                Ok(None)
            }
            Ends::Hurt { error, bytes, rows } => {
                self.look.problems.note(error)?;
                let there = bytes.unwrap_or(0);
                if there < u64::from(pack.bytes) {
                    self.state().short.insert(pack.id, there);
                }
                // Its contents may still be right where the index says.
                if task.read && there > 0 && rows.is_none() {
                    self.opaque.lock().unwrap_or_else(PoisonError::into_inner).push(number);
                    return Ok(None);
                }
                Ok(Some(rows.unwrap_or_default()))
            }
        }
    }

    /// Reads what the index says of packs that do not tell themselves what is in them, in the order of packs. A limit of
    /// time does not end it before the first: what is behind that is not done before it is, and the next run would begin
    /// with it again.
    fn opaque_packs(&self) -> Result<()> {
        let opaque = std::mem::take(&mut *self.opaque.lock().unwrap_or_else(PoisonError::into_inner));
        let mut left: HashMap<ObjectId, usize> =
            opaque.into_iter().map(|number| (self.tasks[number].pack.id, number)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let mut reader = self.reader()?;
        while !left.is_empty() {
            let wanted: HashSet<ObjectId> = left.keys().copied().collect();
            let stop = || self.look.run.stopped();
            let go_on = || if stop() { Err(Error::Cancelled) } else { Ok(()) };
            let gathered = self.index.rows_of(&wanted, ROWS_MAX, &go_on)?;
            if gathered.is_empty() {
                // No row is of any of them: nobody needs them.
                left.drain().for_each(|(_, number)| self.done(number));
            }
            for (id, (pack, rows)) in gathered {
                let Some(number) = left.remove(&id) else { continue };
                let there = self.frames(number, &pack, &rows, &mut reader, &stop)?;
                go_on()?;
                if there {
                    self.done(number);
                }
                if self.look.is_over() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn absent(&self, number: usize, error: Error) {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner).push((number, error));
    }

    /// Notes the packs that are not there, but for those that collectors have decided to delete meanwhile. Nothing is
    /// expected in those either: whoever needs it finds it elsewhere, or lacks it.
    fn absent_packs(&self) -> Result<()> {
        let absent = std::mem::take(&mut *self.absent.lock().unwrap_or_else(PoisonError::into_inner));
        if absent.is_empty() {
            return Ok(());
        }
        let repo = self.look.repo;
        let deleted = GcState::load_readable(repo.store().as_ref(), repo.keys())?.0.deleted();
        for (number, error) in absent {
            let pack = self.tasks[number].pack.id;
            if !deleted.contains(&pack) {
                self.look.problems.note(error)?;
            }
            self.state().short.insert(pack, 0);
            self.done(number);
        }
        Ok(())
    }

    /// Reads and decodes frames of a pack. False if the pack is gone.
    fn frames(
        &self,
        number: usize,
        pack: &PackRef,
        rows: &[TocRow],
        reader: &mut ChunkReader,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let (problems, progress) = (self.look.problems, &self.look.run.progress);
        let (mut bad, mut errors) = (Vec::new(), Vec::new());
        let read = reader.each_frame(pack, rows, stop, &mut |row, content| {
            Progress::add(&progress.read_bytes, row.stored_bytes.into());
            self.progress(row.stored_bytes.into());
            if let Err(error) = content {
                bad.push(row.offset);
                errors.push(error);
            }
            Ok(())
        });
        if !bad.is_empty() {
            let key = pack.kind.key(&pack.id.to_string());
            if self.look.repo.store().get(&key, Span::Last(1), &mut Vec::new())?.is_none() {
                let missing = Error::Missing { object: key, needed_by: "the index".into() };
                self.absent(number, missing);
                return Ok(false);
            }
            errors.into_iter().try_for_each(|error| problems.note(error))?;
            bad.sort_unstable();
            self.state().bad.insert(pack.id, bad);
        }
        self.read_bytes.fetch_add(read?, Ordering::Relaxed);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_known_without_gaps() {
        let mut done = Done::default();
        for number in [2, 0, 3] {
            done.add(number);
        }
        assert_eq!(done.all_below, 1);
        done.add(1);
        assert_eq!((done.all_below, done.ahead.len()), (4, 0));
    }
}
