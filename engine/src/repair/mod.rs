//! Mends what can be mended of a damaged repository. Rows that no index segment has are taken from the packs' own
//! tables of contents; what can be read of damaged packs is moved into new ones, and the damaged ones are put aside:
//! nobody relies on them any more, so that the next backup stores again what the source still has. Nothing that
//! holds data is deleted here. `docs/CONCURRENCY.md` has the argument why all this may run beside anything else.
//!
//! ```text
//!  lease ─► gc/ ─► index (what of it is sound) ─► packs (check.rs) ─► rows (rows.rs) ─► contents of hurt packs (rescue.rs)
//!        ─► new index segments ─► hurt packs put aside ─► damaged segments superseded ─► records (records.rs) ─► merge
//! ```

mod check;
mod records;
mod rescue;
mod rows;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::format::collection::{Condemned, Pack, Stage, stage_name};
use crate::format::header::ObjectKind;
use crate::gc_state::{GcState, put_json};
use crate::id::ObjectId;
use crate::index::{BadSegment, Claims, Index, Merge};
use crate::lease::{self, Lease};
use crate::repo::{Listed, Repository};
use crate::run::Run;
use crate::store::PutOutcome;
use check::Checked;

/// Lines of a kind that a report lists; more are counted.
pub const LISTED_MAX: usize = 1000;

/// Options of a repair.
#[derive(Clone, Debug, Default)]
pub struct RepairOptions {
    /// Read every frame of every pack: flipped ones are found only so.
    pub read_data: bool,
    /// Find out and change nothing.
    pub dry_run: bool,
    /// Threads.
    pub workers: usize,
}

/// Lines of a report, the first of them if there are a great many.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// The first ones.
    pub lines: Vec<String>,
    /// How many there are.
    pub count: u64,
}

impl Lines {
    fn add(&mut self, line: impl std::fmt::Display) {
        self.count += 1;
        if self.lines.len() < LISTED_MAX {
            let line = line.to_string().replace(". `penstock verify` lists what is hurt", "");
            self.lines.push(line);
        }
    }
}

/// What a repair found and did, or would do.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// Packs looked at.
    pub packs: u64,
    /// Bytes of packs that were read.
    pub read_bytes: u64,
    /// Index segments that are damaged; new ones take their place.
    pub bad_segments: Lines,
    /// They could not be replaced, since not all packs can be read now.
    pub segments_kept: bool,
    /// Rows that no sound index segment had, written anew from packs.
    pub new_rows: u64,
    /// Packs that no sound index segment knew.
    pub unknown_packs: u64,
    /// Packs that are damaged or lost, put aside now.
    pub hurt: Lines,
    /// Packs that were put aside before.
    pub aside_before: u64,
    /// Contents that were moved out of hurt packs, and their bytes as stored.
    pub moved: (u64, u64),
    /// Contents of hurt packs that cannot be read, and are nowhere else. In a dry run, those that are in another
    /// hurt pack count too.
    pub lost: u64,
    /// Packs that are damaged, and of which no index segment tells what is in them: nothing of them can be used.
    pub useless: Lines,
    /// Archived packs whose contents would have to be known: they have to be thawed first.
    pub archived: u64,
    /// Recovery points that cannot be read. They stay: `forget` removes them.
    pub points: Lines,
    /// Leases that cannot be read. `gc` removes them when they are a day old.
    pub leases: Lines,
    /// Records of garbage collection that could not be read, and were removed.
    pub records: Lines,
    /// They could not be removed, since these collections may be under way.
    pub collectors: Vec<String>,
    /// Wall time.
    pub duration_ms: u64,
}

impl RepairReport {
    /// True if nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.new_rows == 0 && !self.has_damage()
    }

    /// True if something is wrong that is not mended by this.
    pub fn is_hurt(&self) -> bool {
        self.lost > 0 || self.points.count > 0
    }

    /// True if something could not be done now.
    pub fn is_in_part(&self) -> bool {
        self.archived > 0 || self.segments_kept || self.leases.count > 0 || !self.collectors.is_empty()
    }

    /// True if there is damage, mended or not. Rows that were only missing from the index are none: killed backups
    /// leave such.
    pub fn has_damage(&self) -> bool {
        let found =
            [&self.bad_segments, &self.hurt, &self.useless, &self.points, &self.leases, &self.records];
        self.lost > 0 || found.iter().any(|lines| lines.count > 0)
    }
}

/// Mends the repository.
pub fn run(repo: &Repository, options: &RepairOptions, run: &Arc<Run>) -> Result<RepairReport> {
    let started = Instant::now();
    // As any writer: the lease before all that this run will rely on, then what is condemned, then the index.
    let lease = if options.dry_run { None } else { Some(repo.lease("repair")?) };
    let (gc_state, damaged_records) = GcState::load_readable(repo.store().as_ref(), repo.keys())?;
    let mut report = RepairReport::default();
    for listed in repo.points()? {
        if let Listed::Damaged { error, .. } = listed {
            report.points.add(error);
        }
    }
    for error in lease::damaged(repo.store().as_ref(), repo.keys())? {
        report.leases.add(error);
    }
    let repair = Repair { repo, options, run, gc_state, lease: lease.as_ref() };
    repair.packs_and_index(&mut report)?;
    repair.remove_records(damaged_records, &mut report)?;
    repair.tidy()?;
    if let Some(lease) = lease {
        lease.end()?;
    }
    report.duration_ms = started.elapsed().as_millis() as u64;
    Ok(report)
}

struct Repair<'a> {
    repo: &'a Repository,
    options: &'a RepairOptions,
    run: &'a Arc<Run>,
    gc_state: GcState,
    /// `None` in a dry run.
    lease: Option<&'a Lease>,
}

impl Repair<'_> {
    fn go_on(&self) -> Result<()> {
        if self.run.stopped() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// An error if nothing may be published any more.
    fn may_publish(&self) -> Result<()> {
        self.go_on()?;
        self.lease.map_or(Ok(()), Lease::check)
    }

    fn packs_and_index(&self, report: &mut RepairReport) -> Result<()> {
        let (store, keys) = (self.repo.store().clone(), self.repo.keys().clone());
        let clock = self.repo.environment().clock.clone();
        let (sound, bad) = Index::load_sound(store, keys, clock, &|| self.go_on())?;
        let bad = note_bad_segments(bad, report)?;
        let sound = sound.excluding(self.gc_state.for_writers());
        let left = sound.after_supersede()?;
        // After the index: what it names was stored before, so what is not there now is lost or was deleted by a
        // collector.
        let checked = check::all(self, &sound, &left, report)?;
        // What hurt packs hold counts as absent from here on.
        let mut excluded = self.gc_state.for_writers();
        excluded.lost.extend(checked.hurt.keys().copied());
        let index = Arc::new(left.view(excluded));
        let claims = match self.lease {
            Some(lease) => Claims::with_permit(index, lease.permit()),
            None => Claims::new(index),
        };
        rows::rebuild(self, &claims, &checked, report)?;
        let unread = rescue::all(self, &sound, &claims, &checked, report)?;
        if self.lease.is_some() {
            self.may_publish()?;
            fail::fail_point!("repair-before-flush");
            claims.flush()?;
        }
        unread.count(&claims, report)?;
        if self.lease.is_none() {
            return Ok(());
        }
        self.put_aside(&checked)?;
        if !bad.is_empty() && !report.segments_kept {
            self.may_publish()?;
            fail::fail_point!("repair-before-supersede");
            claims.index().supersede(&bad)?;
            // Once more: who began between may have read of the damaged ones what is no more.
            self.publish_aside(Vec::new())?;
        }
        Ok(())
    }

    /// Publishes which packs are damaged or lost. All that can be read of them is elsewhere, and the index says where.
    /// The record is also the mark that something may be lost without a trace, as are packs that only a damaged or lost
    /// index segment named: no writer takes a parent on trust that does not know of it, until a collection has found
    /// that all points need is there.
    fn put_aside(&self, checked: &Checked) -> Result<()> {
        let known = self.gc_state.aside();
        let packs = checked.hurt.values().filter(|pack| !known.contains(&pack.id));
        self.publish_aside(packs.map(|pack| Pack { kind: pack.kind, id: pack.id }).collect())
    }

    fn publish_aside(&self, packs: Vec<Pack>) -> Result<()> {
        self.may_publish()?;
        let now_ms = self.repo.environment().clock.unix_ms();
        let name = stage_name(ObjectId::at(now_ms)?, Stage::Condemned);
        let knows = self.gc_state.known();
        let record = Condemned { id: name.to_string(), packs, knows, damaged: true, ..Condemned::default() };
        fail::fail_point!("repair-before-aside");
        let (store, keys) = (self.repo.store().as_ref(), self.repo.keys());
        if put_json(store, keys, ObjectKind::Collection, name, &record)? == PutOutcome::Exists {
            let object = ObjectKind::Collection.key(&name.to_string());
            return Err(Error::damaged(object, "a name just drawn was taken already"));
        }
        Ok(())
    }

    /// Merges what was written, and deletes what that superseded, as the end of any backup does.
    fn tidy(&self) -> Result<()> {
        if self.lease.is_none() {
            return Ok(());
        }
        self.may_publish()?;
        // Opened as by anybody: if that fails, it was told why.
        let opened = self.repo.gc_state().and_then(|gc_state| Ok((gc_state, self.repo.load_index()?)));
        let (gc_state, index) = match opened {
            Ok(opened) => opened,
            Err(error) if error.is_damage() => return Ok(()),
            Err(error) => return Err(error),
        };
        let index = index.excluding(gc_state.for_writers());
        match index.tidy(Merge::Tiers, &|| self.run.is_cancelled()) {
            Ok(done) => tracing::debug!(?done, "index tidied"),
            Err(error) => tracing::warn!("the index was not merged, the next backup will try again: {error}"),
        }
        Ok(())
    }
}

/// Names of damaged segments.
fn note_bad_segments(bad: Vec<BadSegment>, report: &mut RepairReport) -> Result<Vec<ObjectId>> {
    let mut names = Vec::new();
    for BadSegment { id, error } in bad {
        // Nothing of a later version is taken for damage.
        if matches!(error, Error::NewerVersion { .. }) {
            return Err(error);
        }
        report.bad_segments.add(error);
        match id {
            Some(id) => names.push(id),
            // What has no name of a segment cannot be superseded; it has to be moved away.
            None => report.segments_kept = true,
        }
    }
    Ok(names)
}

/// How many rows of the index are of each pack; of an id only the newest that counts.
fn rows_by_pack(index: &Index, go_on: &dyn Fn() -> Result<()>) -> Result<HashMap<ObjectId, u32>> {
    let mut counts = HashMap::new();
    let mut row = 0u32;
    index.each_row(&mut |_, at| {
        row = row.wrapping_add(1);
        if row.is_multiple_of(1 << 16) {
            go_on()?;
        }
        *counts.entry(at.pack.id).or_insert(0) += 1;
        Ok(())
    })?;
    Ok(counts)
}
