//! Garbage collection without locks, in rounds: condemn packs that no recovery point needs, wait until every writer that may not know that has ended, decide, delete.
//! `docs/CONCURRENCY.md` has the protocol and its argument.
//!
//! ```text
//!  delete what was decided on ──► mark (mark.rs) ──► which packs are needed (packs.rs) ──► decide on earlier rounds
//!    ──► delete ──► repack (repack.rs) ──► condemn
//! ```

mod aside;
mod mark;
mod packs;
mod repack;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::collection::{Condemned, Fence, Pack, Stage, stage_name};
use crate::format::header::ObjectKind;
use crate::gc_state::{GcState, Round, put_json};
use crate::id::{ObjectId, PointId};
use crate::index::{Index, Merge};
use crate::lease::{self, Lease, SeenLease};
use crate::repo::Repository;
use crate::run::Run;
use crate::simulation::{Bug, planted};
use crate::store::PutOutcome;
use packs::{Present, Use, Uses};

/// How long a decision is remembered after its packs were deleted: a writer that was cut off may still publish an index segment that names them.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A pack is worth being moved if less than this part of it is needed: 7 of 10.
const WORTH_MOVING: (u64, u64) = (7, 10);
/// The index is written anew once this part of its rows point to deleted packs: one of 8.
const GONE_ROWS: u64 = 8;
/// Times that a pass or its marking begins anew because others decided, or merged the index, meanwhile.
const TRIES: usize = 5;
/// How far the clocks of a collector and of the store may be apart. A renewal of a lease takes a part of it.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(15 * 60);

/// Options of a collection.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// Nothing is deleted that was not condemned for so long.
    pub grace: Duration,
    /// Needed bytes that are moved out of little used packs at most.
    pub max_repack_bytes: u64,
    /// Find out and change nothing.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { grace: Duration::from_secs(24 * 60 * 60), max_repack_bytes: 16 << 30, dry_run: false }
    }
}

/// Packs and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub packs: u64,
    /// Their stored length.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// A round that has to wait.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// What it condemned.
    pub condemned: Amount,
    /// Unix milliseconds before which nothing happens.
    pub not_before_ms: u64,
    /// Writers that are waited for.
    pub writers: Vec<String>,
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default)]
pub struct GcReport {
    /// Recovery points whose contents were marked.
    pub points: u64,
    /// All packs at the start.
    pub present: Amount,
    /// Bytes of them that are needed.
    pub needed_bytes: u64,
    /// Packs condemned now.
    pub condemned: Amount,
    /// Packs that seem needless, left alone since writers are under way that may have just stored them.
    pub candidates: Amount,
    /// Packs condemned earlier that are in use again.
    pub rescued: Amount,
    /// Packs that were put aside as damaged and stay, since recovery points need what is only in them.
    pub aside: Amount,
    /// Packs deleted.
    pub deleted: Amount,
    /// Packs whose needed contents were moved (they are among those condemned), and the bytes moved.
    pub moved: Amount,
    /// Rounds that wait.
    pub waiting: Vec<Waiting>,
    /// Writers under way.
    pub writers: Vec<String>,
    /// Leases of dead writers that were removed.
    pub dead_leases: u64,
    /// Rows in the index, and those of them that point to deleted packs.
    pub index_rows: u64,
    /// See `index_rows`.
    pub gone_rows: u64,
}

/// Collects garbage: one pass, and with no grace and no writers a second one that deletes what the first one condemned.
pub fn run(repo: &Repository, options: &GcOptions, run: &Arc<Run>) -> Result<GcReport> {
    let report = match run_once(repo, options, run) {
        Err(error) if error.is_full() && repo.store().release_reserve() => {
            tracing::warn!("{error}");
            tracing::warn!(
                "{}: room that is kept for this is given up, and the collection begins anew",
                repo.location()
            );
            run_once(repo, options, run)?
        }
        other => other?,
    };
    if !options.dry_run {
        repo.store().keep_reserve();
    }
    Ok(report)
}

fn run_once(repo: &Repository, options: &GcOptions, run: &Arc<Run>) -> Result<GcReport> {
    let mut report = GcReport::default();
    if !options.dry_run {
        // Decisions are final, so this needs no lease, and a full repository gets room for one.
        let (present, state) = (packs::list(repo.store().as_ref())?, repo.gc_state()?);
        Pass { repo, options, run, lease: None, report: &mut report }.delete(
            &state.deleted(),
            &present,
            true,
        )?;
    }
    let lease = if options.dry_run { None } else { Some(repo.lease("gc")?) };
    if let Some(lease) = &lease {
        check_clock(repo, lease)?;
    }
    let mut pass = Pass { repo, options, run, lease: lease.as_ref(), report: &mut report };
    let condemned = pass.run_until_current()?;
    if condemned && options.grace.is_zero() {
        let first = std::mem::take(pass.report);
        pass.run_until_current()?;
        report.continues(first);
    }
    if let Some(lease) = lease {
        lease.end()?;
    }
    Ok(report)
}

/// What is deleted is a matter of time: a collector whose clock disagrees with the store's does nothing.
fn check_clock(repo: &Repository, lease: &Lease) -> Result<()> {
    let Some(store_ms) = lease.store_now_ms()? else { return Ok(()) };
    let own_ms = repo.environment().clock.unix_ms();
    if Duration::from_millis(own_ms.abs_diff(store_ms)) <= CLOCK_SKEW_MAX {
        return Ok(());
    }
    let (hours, direction) =
        (own_ms.abs_diff(store_ms) as f64 / 3.6e6, if own_ms > store_ms { "ahead of" } else { "behind" });
    Err(Error::ClockDisagrees {
        location: repo.location().to_owned(),
        what: format!("this machine's clock is {hours:.1} h {direction} that of the store"),
    })
}

impl GcReport {
    /// Makes this the report of both passes.
    fn continues(&mut self, first: GcReport) {
        self.present = first.present;
        self.dead_leases += first.dead_leases;
        for (mine, of_first) in [
            (&mut self.condemned, first.condemned),
            (&mut self.rescued, first.rescued),
            (&mut self.deleted, first.deleted),
            (&mut self.moved, first.moved),
        ] {
            mine.packs += of_first.packs;
            mine.bytes += of_first.bytes;
        }
    }
}

/// What a pass has seen.
struct Snapshot {
    present: Present,
    index: Arc<Index>,
    uses: Uses,
    /// Packs that earlier rounds are about.
    already_condemned: HashSet<ObjectId>,
}

/// How a pass ended.
enum Passed {
    /// Done; true if something was condemned.
    Done(bool),
    /// Another collector has decided meanwhile: what this one found to be needed may rely on what that one deletes.
    Outdated,
}

struct Pass<'a> {
    repo: &'a Repository,
    options: &'a GcOptions,
    run: &'a Arc<Run>,
    /// `None` in a dry run.
    lease: Option<&'a Lease>,
    report: &'a mut GcReport,
}

impl Pass<'_> {
    /// Passes until none was outdated. True if something was condemned.
    fn run_until_current(&mut self) -> Result<bool> {
        for _ in 0..TRIES {
            let before = self.report.clone();
            match self.run()? {
                Passed::Done(condemned) => return Ok(condemned),
                Passed::Outdated => {
                    tracing::debug!("another collector has decided meanwhile: this one begins its pass anew");
                    *self.report = before;
                }
            }
        }
        Err(Error::Busy {
            location: self.repo.location().to_owned(),
            what: "other collections decide faster than this one can follow".into(),
        })
    }

    fn run(&mut self) -> Result<Passed> {
        // The order matters. Packs before writers before the index: a pack that is listed, whose writer holds no lease, and
        // that no index read afterwards names, is an orphan.
        // Rounds before writers: a writer that is in a fence and has no lease now has ended. Records again behind the
        // writers, then points, then the index: what those that have ended published, condemned or merged is seen.
        let present = packs::list(self.repo.store().as_ref())?;
        let before: HashSet<ObjectId> = self.repo.gc_state()?.rounds.iter().map(|round| round.id).collect();
        let early = planted(Bug::PointsBeforeLeases).then(|| self.repo.point_ids()).transpose()?;
        let writers = self.writers()?;
        let state = self.repo.gc_state()?;
        let points = early.map_or_else(|| self.repo.point_ids(), Ok)?;
        let (index, uses) = self.mark(&state, &points, &present)?;
        if self.lease.is_some() {
            // Packs are deleted on the strength of what was listed: what is gone must stay so in a power cut, and what is
            // there too. Whoever forgot, merged or decided may have been killed before he came to that.
            for prefix in
                [ObjectKind::Point, ObjectKind::Index, ObjectKind::Collection].map(ObjectKind::prefix)
            {
                self.repo.store().settle(prefix)?;
            }
        }
        self.report.points = points.len() as u64;
        present.each(|_, bytes| self.report.present.add(bytes));
        self.report.needed_bytes = uses.needed_bytes();
        self.report.writers = writers.iter().map(SeenLease::describe).collect();
        (self.report.index_rows, self.report.gone_rows) = (uses.rows, uses.gone_rows);

        let mut decidable: Vec<&Round> = Vec::new();
        for round in state.rounds.iter() {
            if !before.contains(&round.id) && !planted(Bug::NewRoundsDecided) {
                continue;
            }
            self.stop()?;
            if self.is_decidable(round, &writers)? {
                decidable.push(round);
            }
        }
        let mut deleted = state.deleted();
        let mut known_candidates = HashSet::new();
        for round in &decidable {
            known_candidates.extend(round.condemned.candidates.iter().copied());
            if round.condemned.packs.is_empty() {
                self.delete_records(round.id)?; // it only waited to know who is under way
            }
        }
        decidable.retain(|round| !round.condemned.packs.is_empty());
        self.keep_aside(&state, &mut decidable, &uses, &present)?;
        match self.decide(&state, &decidable, &uses, &present, &points)? {
            Some(packs) => deleted.extend(packs),
            None => return Ok(Passed::Outdated),
        }
        self.delete(&deleted, &present, false)?;
        self.forget_decisions(&state, &index, &present)?;

        let mut already_condemned = deleted;
        already_condemned.extend(state.condemned());
        let record = Condemned { knows: state.known(), points, ..Condemned::default() };
        let snapshot = Snapshot { present, index, uses, already_condemned };
        let condemned =
            self.condemn(&snapshot, record, |pack| writers.is_empty() || known_candidates.contains(&pack))?;
        self.rewrite_index(&snapshot.uses)?;
        Ok(Passed::Done(condemned))
    }

    fn now_ms(&self) -> u64 {
        self.repo.environment().clock.unix_ms()
    }

    fn stop(&self) -> Result<()> {
        if self.run.is_cancelled() {
            return Err(Error::Cancelled);
        }
        // A collector that lost its lease knows no more what others have decided.
        self.lease.map_or(Ok(()), Lease::check)
    }

    /// Writers under way besides this one. Leases of dead ones are removed.
    fn writers(&mut self) -> Result<Vec<SeenLease>> {
        self.stop()?;
        let me = self.lease.map(Lease::writer);
        let store_now_ms = self.lease.map_or(Ok(None), Lease::store_now_ms)?;
        let (mut writers, mut removed) = (Vec::new(), HashSet::new());
        for seen in lease::list(self.repo.store().as_ref(), self.repo.keys())? {
            if Some(seen.writer) == me {
                continue;
            }
            if !seen.is_dead(self.repo.environment(), store_now_ms) {
                writers.push(seen);
                continue;
            }
            self.report.dead_leases += 1;
            if self.lease.is_some() && !planted(Bug::DeadLeaseKept) {
                tracing::info!("the lease of a dead writer is removed: {}", seen.describe());
                for name in &seen.names {
                    self.repo.store().delete(&ObjectKind::Lease.key(&name.to_string()))?;
                }
                removed.insert(seen.writer);
            }
        }
        if !removed.is_empty() {
            // Who has a lease all the same was renewing it just then: it lives.
            let again = lease::list(self.repo.store().as_ref(), self.repo.keys())?;
            writers.extend(again.into_iter().filter(|seen| removed.contains(&seen.writer)));
        }
        Ok(writers)
    }

    /// Marks all that points need. Begins anew if the index is merged meanwhile.
    fn mark(&self, state: &GcState, points: &[PointId], present: &Present) -> Result<(Arc<Index>, Uses)> {
        let mut tries = 0;
        loop {
            tries += 1;
            let index = Arc::new(self.repo.load_index()?.excluding(state.for_readers()));
            match mark::all(self.repo, &index, state, points, present, self.run) {
                Err(error @ Error::SegmentGone { .. }) if tries < TRIES => {
                    tracing::debug!("marking again: {error}");
                }
                Err(error) => return Err(error),
                Ok(uses) => return Ok((index, uses)),
            }
        }
    }

    /// True if all who may not have known of the round have ended, and the grace is over.
    fn is_decidable(&mut self, round: &Round, writers: &[SeenLease]) -> Result<bool> {
        let fence = match &round.fence {
            Some(fence) => fence.clone(),
            // Its collector was killed. Whoever is under way now includes all who were then and have not ended.
            None => self.fence(round.id, writers)?,
        };
        let waited_for: Vec<String> = writers
            .iter()
            .filter(|writer| fence.writers.contains(&writer.writer.to_hex()))
            .map(SeenLease::describe)
            .collect();
        let not_before_ms = round.id.unix_ms() + self.options.grace.as_millis() as u64;
        let decidable =
            waited_for.is_empty() && (self.now_ms() >= not_before_ms || planted(Bug::SweptBeforeGrace));
        if !decidable && !round.condemned.packs.is_empty() {
            let condemned = Amount { packs: round.condemned.packs.len() as u64, bytes: 0 };
            self.report.waiting.push(Waiting { condemned, not_before_ms, writers: waited_for });
        }
        Ok(decidable)
    }

    /// Writes down who is under way.
    fn fence(&self, round: ObjectId, writers: &[SeenLease]) -> Result<Fence> {
        let name = stage_name(round, Stage::Fence);
        let fence = Fence {
            id: name.to_string(),
            writers: match planted(Bug::FenceNotWritten) {
                true => Vec::new(),
                false => writers.iter().map(|writer| writer.writer.to_hex()).collect(),
            },
        };
        if self.lease.is_some() {
            fail::fail_point!("gc-before-fence");
            // Another collector's is as good.
            put_json(self.repo.store().as_ref(), self.repo.keys(), ObjectKind::Collection, name, &fence)?;
        }
        Ok(fence)
    }

    /// Decides what of the rounds is deleted, and returns that. `None` if another collector has decided since the records
    /// were read.
    fn decide(
        &mut self,
        state: &GcState,
        rounds: &[&Round],
        uses: &Uses,
        present: &Present,
        points: &[PointId],
    ) -> Result<Option<Vec<ObjectId>>> {
        if rounds.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let condemned = rounds.iter().flat_map(|round| round.condemned.packs.iter().copied());
        let needed = |pack: &Pack| uses.is_needed(&pack.id) && !planted(Bug::RescueIgnored);
        let (needed, needless): (Vec<Pack>, Vec<Pack>) = condemned.partition(needed);
        let deleted = needless.iter().map(|pack| pack.id).collect();
        if self.lease.is_some() {
            self.stop()?;
            fail::fail_point!("gc-before-decision");
            let (store, keys) = (self.repo.store().as_ref(), self.repo.keys());
            let ids: Vec<ObjectId> = rounds.iter().map(|round| round.id).collect();
            let decided = state.decide(store, keys, self.now_ms(), &ids, needless, points.to_vec())?;
            if decided == PutOutcome::Exists && !planted(Bug::OutdatedDecides) {
                return Ok(None);
            }
            ids.into_iter().try_for_each(|round| self.delete_records(round))?;
        }
        let aside = state.aside();
        let rescued = needed.iter().filter(|pack| !aside.contains(&pack.id));
        rescued.for_each(|pack| self.report.rescued.add(present.bytes_of(&pack.id)));
        Ok(Some(deleted))
    }

    /// Deletes the first two records of a round.
    fn delete_records(&self, round: ObjectId) -> Result<()> {
        if self.lease.is_none() {
            return Ok(());
        }
        for stage in [Stage::Fence, Stage::Condemned] {
            fail::fail_point!("gc-before-record-delete");
            self.repo.store().delete(&ObjectKind::Collection.key(&stage_name(round, stage).to_string()))?;
        }
        Ok(())
    }

    /// Deletes packs that were decided on, now or earlier.
    fn delete(&mut self, deleted: &HashSet<ObjectId>, present: &Present, without_lease: bool) -> Result<()> {
        for (pack, bytes) in present.of(deleted) {
            self.stop()?;
            if self.lease.is_some() || without_lease {
                fail::fail_point!("gc-before-pack-delete");
                self.repo.store().delete(&pack.key())?;
            }
            self.report.deleted.add(bytes);
        }
        Ok(())
    }

    /// Removes decisions that nothing refers to any more, and records that decisions made needless.
    fn forget_decisions(&self, state: &GcState, index: &Index, present: &Present) -> Result<()> {
        if self.lease.is_none() {
            return Ok(());
        }
        let delete =
            |name: ObjectId| self.repo.store().delete(&ObjectKind::Collection.key(&name.to_string()));
        for name in &state.needless {
            delete(*name)?;
        }
        if state.decided.is_empty() || index.has_superseded() {
            return Ok(());
        }
        let known: HashSet<ObjectId> = index.packs_named().into_iter().map(|pack| pack.id).collect();
        for (name, decided) in &state.decided {
            let old = self.now_ms().saturating_sub(decided.decided_ms) > REMEMBERED.as_millis() as u64;
            let named = |pack: &Pack| known.contains(&pack.id) || present.has(&pack.id);
            let forgotten = planted(Bug::DecisionsForgotten);
            if (old && !state.is_newest_decision(*name) && !decided.packs.iter().any(named)) || forgotten {
                delete(*name)?;
            }
        }
        Ok(())
    }

    /// Condemns what nothing needs, and packs of which little is needed after moving that. `may` says which of the needless ones cannot be those of a writer under way.
    fn condemn(
        &mut self,
        snapshot: &Snapshot,
        mut record: Condemned,
        may: impl Fn(Pack) -> bool,
    ) -> Result<bool> {
        let mut to_move: Vec<(Pack, Use, u64)> = Vec::new();
        snapshot.present.each(|pack, bytes| {
            if snapshot.already_condemned.contains(&pack.id) {
                return;
            }
            match snapshot.uses.of(&pack.id) {
                Some(used) if used.needed_bytes > 0 => {
                    if used.needed_bytes * WORTH_MOVING.1 < bytes * WORTH_MOVING.0 {
                        to_move.push((pack, used, bytes));
                    }
                }
                _ if may(pack) => {
                    self.report.condemned.add(bytes);
                    record.packs.push(pack);
                }
                _ => {
                    self.report.candidates.add(bytes);
                    record.candidates.push(pack);
                }
            }
        });
        // The least used first: most space for the bytes moved.
        to_move.sort_by_key(|(pack, used, bytes)| (used.needed_bytes * 1000 / bytes.max(&1), pack.id));
        let mut budget = self.options.max_repack_bytes;
        to_move.retain(|(_, used, _)| {
            let fits = used.needed_bytes <= budget;
            budget -= if fits { used.needed_bytes } else { 0 };
            fits
        });
        let moving: HashSet<ObjectId> = to_move.iter().map(|(pack, ..)| pack.id).collect();
        let moved = match self.lease {
            None => true,
            Some(lease) => match repack::run(
                self.repo,
                &snapshot.index,
                &snapshot.uses,
                &moving,
                lease.permit(),
                &|| self.stop(),
            ) {
                Err(error @ Error::SegmentGone { .. }) => {
                    tracing::debug!("nothing is moved this time: {error}");
                    false
                }
                Err(error) if error.is_full() => {
                    tracing::warn!("nothing is moved out of little used packs this time: {error}");
                    false
                }
                Err(Error::Archived { .. }) => {
                    tracing::warn!(
                        "nothing is moved out of little used packs: some are archived. --max-repack 0 does without, and saves trying"
                    );
                    false
                }
                done => done.map(|()| true)?,
            },
        };
        for (pack, used, bytes) in to_move.iter().filter(|_| moved) {
            self.report.condemned.add(*bytes);
            self.report.moved.packs += 1;
            self.report.moved.bytes += used.needed_bytes;
            record.packs.push(*pack);
        }
        if self.lease.is_none() || (record.packs.is_empty() && record.candidates.is_empty()) {
            return Ok(false);
        }
        let round = stage_name(ObjectId::at(self.now_ms())?, Stage::Condemned);
        record.id = round.to_string();
        self.stop()?;
        fail::fail_point!("gc-before-condemn");
        let (store, keys) = (self.repo.store().as_ref(), self.repo.keys());
        if put_json(store, keys, ObjectKind::Collection, round, &record)? == PutOutcome::Exists {
            let object = ObjectKind::Collection.key(&round.to_string());
            return Err(Error::damaged(object, "a name just drawn was taken already"));
        }
        // After the record can be seen: whoever takes a lease later reads the record.
        let writers = self.writers()?;
        self.fence(round, &writers)?;
        Ok(!record.packs.is_empty())
    }

    /// Writes the index anew if many of its rows are of deleted packs.
    fn rewrite_index(&self, uses: &Uses) -> Result<()> {
        if self.lease.is_none() || uses.gone_rows == 0 || uses.gone_rows * GONE_ROWS < uses.rows {
            return Ok(());
        }
        self.stop()?;
        // As a writer does it: of two rows of a content the one in a condemned pack must not be the one that stays.
        let state = self.repo.gc_state()?;
        let index = self.repo.load_index()?.excluding(state.for_writers());
        let done = index.tidy(Merge::Rewrite, &|| self.run.is_cancelled())?;
        tracing::debug!(?done, "rows of deleted packs were dropped from the index");
        Ok(())
    }
}
