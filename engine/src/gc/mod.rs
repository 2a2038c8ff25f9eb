//! Garbage collection without locks, in rounds: condemn packs that no recovery point needs, wait until every writer that may not know that has ended, decide, delete.
//! `docs/CONCURRENCY.md` has the protocol and its argument.
//!
//! ```text
//!  mark (mark.rs) ──► which packs are needed (packs.rs) ──► decide on earlier rounds ──► delete ──► repack (repack.rs) ──► condemn
//! ```

mod mark;
mod packs;
mod repack;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::collection::{Collection, Round, put_json};
use crate::error::{Error, Result};
use crate::format::collection::{Condemned, Decided, Fence, Pack, Stage, stage_name};
use crate::format::header::ObjectKind;
use crate::id::{ObjectId, PointId};
use crate::index::{Excluded, Index, Merge};
use crate::lease::{self, Lease};
use crate::repo::Repository;
use crate::run::Run;
use crate::store::PutOutcome;
use packs::{Present, Use, Uses};

/// How long a decision is remembered after its packs were deleted: a writer that was cut off may still publish an index segment that names them.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A pack is worth being moved if less than this part of it is needed: 7 of 10.
const WORTH_MOVING: (u64, u64) = (7, 10);
/// The index is written anew once this part of its rows point to deleted packs: one of 8.
const GONE_ROWS: u64 = 8;
/// Times that marking begins anew because others merged the index meanwhile.
const TRIES: usize = 5;

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
    let lease = if options.dry_run { None } else { Some(repo.lease("gc")?) };
    let mut report = GcReport::default();
    let mut pass = Pass { repo, options, run, lease: lease.as_ref(), report: &mut report };
    let condemned = pass.run()?;
    if condemned && options.grace.is_zero() {
        let first = std::mem::take(pass.report);
        pass.run()?;
        report.continues(first);
    }
    if let Some(lease) = lease {
        lease.end()?;
    }
    Ok(report)
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
struct Sight {
    present: Present,
    index: Arc<Index>,
    uses: Uses,
    /// Packs that earlier rounds are about.
    spoken_for: HashSet<ObjectId>,
}

/// True if an index segment was merged into another one and deleted since the list was read.
fn is_merged_away(error: &Error) -> bool {
    matches!(error, Error::Missing { object, .. } if object.starts_with(ObjectKind::Index.prefix()))
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
    /// True if something was condemned.
    fn run(&mut self) -> Result<bool> {
        // The order matters. Packs before writers before the index: a pack that is there, belongs to no writer under way and is in no index read afterwards, is nobody's.
        // Rounds before writers before points: who is in a fence and has no lease now has ended, and what it published is among the points.
        let present = packs::list(self.repo.store().as_ref())?;
        let collection = self.repo.collection()?;
        let writers = self.writers()?;
        let points = self.repo.point_ids()?;
        let (index, uses) = self.mark(&collection, &points, &present)?;
        self.report.points = points.len() as u64;
        present.each(|_, bytes| self.report.present.add(bytes));
        self.report.needed_bytes = uses.needed_bytes();
        self.report.writers = writers.iter().map(lease::Seen::describe).collect();
        (self.report.index_rows, self.report.gone_rows) = (uses.rows, uses.gone_rows);

        let mut gone = collection.gone();
        let mut known_candidates = HashSet::new();
        for round in &collection.rounds {
            self.stop()?;
            if self.is_ripe(round, &writers)? {
                known_candidates.extend(round.condemned.candidates.iter().copied());
                if round.condemned.packs.is_empty() {
                    self.delete_records(round.id)?; // it only waited to know who is under way
                    continue;
                }
                gone.extend(self.decide(round, &uses, &present)?);
            }
        }
        self.delete(&gone, &present)?;
        self.forget_decisions(&collection, &index, &present)?;

        let mut spoken_for = gone;
        spoken_for.extend(collection.condemned());
        let knows = collection.rounds.iter().map(|round| round.id.to_string()).collect();
        let record = Condemned { knows, points, ..Condemned::default() };
        let sight = Sight { present, index, uses, spoken_for };
        let condemned =
            self.condemn(&sight, record, |pack| writers.is_empty() || known_candidates.contains(&pack))?;
        self.rewrite_index(&sight.uses)?;
        Ok(condemned)
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
    fn writers(&mut self) -> Result<Vec<lease::Seen>> {
        let me = self.lease.map(Lease::writer);
        let mut writers = Vec::new();
        for seen in lease::list(self.repo.store().as_ref(), self.repo.keys())? {
            if Some(seen.writer) == me {
                continue;
            }
            if !seen.is_dead(self.repo.environment()) {
                writers.push(seen);
                continue;
            }
            self.report.dead_leases += 1;
            if self.lease.is_some() {
                tracing::info!("the lease of a dead writer is removed: {}", seen.describe());
                for name in &seen.names {
                    self.repo.store().delete(&ObjectKind::Lease.key(&name.to_string()))?;
                }
            }
        }
        Ok(writers)
    }

    /// Marks all that points need. Begins anew if the index is merged meanwhile.
    fn mark(
        &self,
        collection: &Collection,
        points: &[PointId],
        present: &Present,
    ) -> Result<(Arc<Index>, Uses)> {
        let mut tries = 0;
        loop {
            tries += 1;
            let index = self.repo.fresh_index()?;
            index.exclude(Excluded { absent: collection.gone(), gone: collection.gone() });
            match mark::all(self.repo, &index, collection, points, present, self.run) {
                Err(error) if is_merged_away(&error) && tries < TRIES => {
                    tracing::debug!("marking again: {error}");
                }
                Err(error) => return Err(error),
                Ok(uses) => return Ok((index, uses)),
            }
        }
    }

    /// True if all who may not have known of the round have ended, and the grace is over.
    fn is_ripe(&mut self, round: &Round, writers: &[lease::Seen]) -> Result<bool> {
        let fence = match &round.fence {
            Some(fence) => fence.clone(),
            // Its collector was killed. Whoever is under way now includes all who were then and have not ended.
            None => self.fence(round.id, writers)?,
        };
        let waited_for: Vec<String> = writers
            .iter()
            .filter(|writer| fence.writers.contains(&writer.writer.to_hex()))
            .map(lease::Seen::describe)
            .collect();
        let not_before_ms = round.id.unix_ms() + self.options.grace.as_millis() as u64;
        let ripe = waited_for.is_empty() && self.now_ms() >= not_before_ms;
        if !ripe && !round.condemned.packs.is_empty() {
            let condemned = Amount { packs: round.condemned.packs.len() as u64, bytes: 0 };
            self.report.waiting.push(Waiting { condemned, not_before_ms, writers: waited_for });
        }
        Ok(ripe)
    }

    /// Writes down who is under way.
    fn fence(&self, round: ObjectId, writers: &[lease::Seen]) -> Result<Fence> {
        let name = stage_name(round, Stage::Fence);
        let fence = Fence {
            id: name.to_string(),
            writers: writers.iter().map(|writer| writer.writer.to_hex()).collect(),
        };
        if self.lease.is_some() {
            fail::fail_point!("gc-before-fence");
            // Another collector's is as good.
            put_json(self.repo.store().as_ref(), self.repo.keys(), ObjectKind::Collection, name, &fence)?;
        }
        Ok(fence)
    }

    /// Decides what of a round is deleted, and returns that. The first decision counts, whoever made it.
    fn decide(&mut self, round: &Round, uses: &Uses, present: &Present) -> Result<Vec<ObjectId>> {
        let (needed, needless): (Vec<Pack>, Vec<Pack>) =
            round.condemned.packs.iter().partition(|pack| uses.is_needed(&pack.id));
        for pack in &needed {
            self.report.rescued.add(present.bytes_of(&pack.id));
        }
        if self.lease.is_none() {
            return Ok(needless.iter().map(|pack| pack.id).collect());
        }
        let name = stage_name(round.id, Stage::Decided);
        let decided = Decided { id: name.to_string(), decided_ms: self.now_ms(), packs: needless };
        self.stop()?;
        fail::fail_point!("gc-before-decision");
        let (store, keys) = (self.repo.store().as_ref(), self.repo.keys());
        let decided = match put_json(store, keys, ObjectKind::Collection, name, &decided)? {
            PutOutcome::Created => decided,
            PutOutcome::Exists => {
                // Made by another collector. What it deletes, this one must not use either.
                let made = Collection::load(store, keys)?.decided;
                made.into_iter().find(|(id, _)| *id == round.id).map(|(_, made)| made).unwrap_or_default()
            }
        };
        self.delete_records(round.id)?;
        Ok(decided.packs.iter().map(|pack| pack.id).collect())
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
    fn delete(&mut self, gone: &HashSet<ObjectId>, present: &Present) -> Result<()> {
        for (pack, bytes) in present.of(gone) {
            self.stop()?;
            if self.lease.is_some() {
                fail::fail_point!("gc-before-pack-delete");
                self.repo.store().delete(&pack.key())?;
            }
            self.report.deleted.add(bytes);
        }
        Ok(())
    }

    /// Removes decisions that nothing refers to any more, and records that decisions made needless.
    fn forget_decisions(&self, collection: &Collection, index: &Index, present: &Present) -> Result<()> {
        if self.lease.is_none() {
            return Ok(());
        }
        let delete =
            |name: ObjectId| self.repo.store().delete(&ObjectKind::Collection.key(&name.to_string()));
        for name in &collection.needless {
            delete(*name)?;
        }
        if collection.decided.is_empty() || index.has_superseded() {
            return Ok(());
        }
        let known: HashSet<ObjectId> = index.packs_named().into_iter().map(|pack| pack.id).collect();
        for (round, decided) in &collection.decided {
            let old = self.now_ms().saturating_sub(decided.decided_ms) > REMEMBERED.as_millis() as u64;
            let named = |pack: &Pack| known.contains(&pack.id) || present.has(&pack.id);
            if old && !decided.packs.iter().any(named) {
                delete(stage_name(*round, Stage::Decided))?;
            }
        }
        Ok(())
    }

    /// Condemns what nothing needs, and packs of which little is needed after moving that. `may` says which of the needless ones cannot be those of a writer under way.
    fn condemn(&mut self, sight: &Sight, mut record: Condemned, may: impl Fn(Pack) -> bool) -> Result<bool> {
        let mut to_move: Vec<(Pack, Use, u64)> = Vec::new();
        sight.present.each(|pack, bytes| {
            if sight.spoken_for.contains(&pack.id) {
                return;
            }
            match sight.uses.of(&pack.id) {
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
            Some(_) => match repack::run(self.repo, &sight.index, &sight.uses, &moving, &|| self.stop()) {
                Err(error) if is_merged_away(&error) => {
                    tracing::debug!("nothing is moved this time: {error}");
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
        let collection = self.repo.collection()?;
        let index = self.repo.fresh_index()?;
        index.exclude(collection.for_writers());
        let done = index.tidy(Merge::Rewrite, &|| self.run.is_cancelled())?;
        tracing::debug!(?done, "rows of deleted packs were dropped from the index");
        Ok(())
    }
}
