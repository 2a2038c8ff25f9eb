//! The records of garbage collection as one reading of them finds them: writers use them to decide what to trust, readers
//! to tell deleted packs from damage.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::fan;
use crate::format::collection::{
    Condemned, Decided, Fence, Pack, RECORD_BYTES_MAX, Stage, decision_name, decision_number, from_json,
    split_name, stage_name,
};
use crate::format::header::ObjectKind;
use crate::format::point::RecoveryPoint;
use crate::id::{ObjectId, PointId};
use crate::index::Excluded;
use crate::sealed;
use crate::simulation::{Bug, planted};
use crate::store::{Body, PutOutcome, Store, reread};

/// Times that the records are listed again because one was gone when it was read.
const TRIES: usize = 8;
/// The member of a recovery point that names the rounds and decisions its writer knew: it relies on none of their packs.
const GC_SEEN: &str = "gc_seen";

/// A round that is not decided.
#[derive(Clone, Debug)]
pub struct Round {
    /// Name of its first record.
    pub id: ObjectId,
    /// What it condemned.
    pub condemned: Condemned,
    /// Who may not have known, if that was written down.
    pub fence: Option<Fence>,
}

/// All records of a repository.
#[derive(Clone, Debug, Default)]
pub struct GcState {
    /// Rounds that are not decided.
    pub rounds: Vec<Round>,
    /// Decisions, by the names of their records.
    pub decided: Vec<(ObjectId, Decided)>,
    /// Records that a decision has made needless, and that are still there.
    pub needless: Vec<ObjectId>,
    /// The number of the next decision.
    pub next_decision: u64,
}

impl GcState {
    /// Reads all records: one listing, and one request for each, mostly few.
    pub fn load(store: &dyn Store, keys: &RepoKeys) -> Result<Self> {
        Self::read_all(store, keys, &mut |_, error| Err(error))
    }

    /// As [`load`](Self::load); what is damaged is told and left out: for those who look at damage and mend it.
    pub fn load_readable(store: &dyn Store, keys: &RepoKeys) -> Result<(Self, Vec<(ObjectId, Error)>)> {
        let mut damaged = Vec::new();
        let state = Self::read_all(store, keys, &mut |name, error| {
            damaged.push((name, error));
            Ok(())
        })?;
        // Records that were listed again are told once.
        damaged.sort_by_key(|(name, _)| *name);
        damaged.dedup_by_key(|(name, _)| *name);
        Ok((state, damaged))
    }

    fn read_all(store: &dyn Store, keys: &RepoKeys, on_damage: &mut OnDamage<'_>) -> Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::read_once(store, keys, on_damage) {
                // A record that was listed is gone. If a decision has removed it, the next listing has the decision.
                Err(Error::Missing { object, .. }) if tries < TRIES => {
                    tracing::debug!("{object} was removed while the records were read");
                }
                other => return other,
            }
        }
    }

    fn read_once(store: &dyn Store, keys: &RepoKeys, on_damage: &mut OnDamage<'_>) -> Result<Self> {
        let mut names = Vec::new();
        store.list(ObjectKind::Collection.prefix(), &mut |key, _| {
            names.extend(key.strip_prefix(ObjectKind::Collection.prefix()).and_then(ObjectId::from_hex));
        })?;
        names.sort_unstable();
        let mut state = Self::default();
        let mut of_round: BTreeMap<ObjectId, Vec<Stage>> = BTreeMap::new();
        let mut over: HashSet<String> = HashSet::new();
        let mut decisions = Vec::new();
        for name in names {
            if let Some(number) = decision_number(name) {
                decisions.push(name);
                state.next_decision = state.next_decision.max(number.saturating_add(1));
            } else if let Some((round, stage)) = split_name(name) {
                of_round.entry(round).or_default().push(stage);
            }
        }
        let one = |name: &ObjectId| read(store, keys, *name, |d: &Decided| &d.id);
        let read_decisions = fan::map(&decisions, store.habits().parallel_reads, |_| false, one);
        for (name, decided) in decisions.into_iter().zip(read_decisions) {
            if matches!(decided, Err(Error::Missing { .. })) && planted(Bug::AbsentRecordSkipped) {
                continue;
            }
            let Some(decided) = readable(name, decided, on_damage)? else { continue };
            over.extend(decided.rounds.iter().cloned());
            state.decided.push((name, decided));
        }
        for (round, stages) in of_round {
            if stages.contains(&Stage::Decided) {
                // Programs before the log of decisions named a decision after its one round.
                let name = stage_name(round, Stage::Decided);
                let decided = read(store, keys, name, |d: &Decided| &d.id);
                state.note_needless(round, &stages);
                let Some(mut decided) = readable(name, decided, on_damage)? else { continue };
                decided.rounds.push(round.to_string());
                state.decided.push((name, decided));
            } else if over.contains(&round.to_string()) {
                state.note_needless(round, &stages);
            } else if stages.contains(&Stage::Condemned) {
                let condemned = read(store, keys, round, |c: &Condemned| &c.id);
                let Some(condemned) = readable(round, condemned, on_damage)? else { continue };
                let name = stage_name(round, Stage::Fence);
                let fence = match stages.contains(&Stage::Fence) {
                    true => readable(name, read(store, keys, name, |f: &Fence| &f.id), on_damage)?,
                    false => None,
                };
                state.rounds.push(Round { id: round, condemned, fence });
            } else {
                // A fence alone: its round was removed, and the collector was killed in between.
                state.note_needless(round, &stages);
            }
        }
        Ok(state)
    }

    fn note_needless(&mut self, round: ObjectId, stages: &[Stage]) {
        let needless = stages.iter().filter(|stage| **stage != Stage::Decided);
        self.needless.extend(needless.map(|stage| stage_name(round, *stage)));
    }

    /// Packs that are deleted, or will be.
    pub fn deleted(&self) -> HashSet<ObjectId> {
        self.decided.iter().flat_map(|(_, decided)| &decided.packs).map(|pack| pack.id).collect()
    }

    /// Packs that are condemned, and not decided on.
    pub fn condemned(&self) -> HashSet<ObjectId> {
        self.rounds.iter().flat_map(|round| &round.condemned.packs).map(|pack| pack.id).collect()
    }

    /// Packs that were put aside as damaged or lost: condemned ones that stay condemned while a point needs them.
    pub fn aside(&self) -> HashSet<ObjectId> {
        let damaged = self.rounds.iter().filter(|round| round.condemned.damaged);
        damaged.flat_map(|round| &round.condemned.packs).map(|pack| pack.id).collect()
    }

    /// What a reader leaves out, and what it uses only where there is nothing else.
    pub fn for_readers(&self) -> Excluded {
        if planted(Bug::DeletedFound) {
            return Excluded::default();
        }
        Excluded { deleted: self.deleted(), aside: self.aside(), ..Excluded::default() }
    }

    /// What a writer leaves out: all that may be deleted before its recovery point is there.
    pub fn for_writers(&self) -> Excluded {
        let (mut condemned, mut aside) = (self.condemned(), self.aside());
        if planted(Bug::CondemnedTrusted) {
            condemned.clear();
        }
        if planted(Bug::AsideTrusted) {
            condemned.retain(|pack| !aside.contains(pack));
            aside.clear();
        }
        Excluded { deleted: self.deleted(), condemned, lost: HashSet::new(), aside }
    }

    /// Names of all rounds that are not decided, and of all decisions.
    pub fn known(&self) -> Vec<String> {
        let rounds = self.rounds.iter().map(|round| round.id.to_string());
        rounds.chain(self.decided.iter().map(|(name, _)| name.to_string())).collect()
    }

    /// Notes in a recovery point that its writer knew this state.
    pub fn stamp(&self, point: &mut RecoveryPoint) {
        point.other.remove(GC_SEEN);
        let known = self.known();
        if !known.is_empty() {
            point.other.insert(GC_SEEN.to_owned(), known.into());
        }
    }

    /// True if nothing that the point needs can be in a pack that is condemned or decided on: each round and decision has
    /// looked at it, or was known to its writer, and none can have counted on a pack that another one condemned.
    pub fn covers(&self, point: &RecoveryPoint) -> bool {
        let Some(id) = point.point_id() else { return false };
        let seen: HashSet<&str> = match point.other.get(GC_SEEN) {
            Some(serde_json::Value::Array(seen)) => seen.iter().filter_map(|name| name.as_str()).collect(),
            _ => HashSet::new(),
        };
        let knew = |name: &ObjectId| seen.contains(name.to_string().as_str());
        let round_is_fine = |(at, round): (usize, &Round)| {
            let knew_it = knew(&round.id);
            (knew_it || round.condemned.points.contains(&id))
                && self.rounds[..at].iter().filter(|_| !planted(Bug::RoundsUnaware)).all(|other| {
                    round.knows(&other.id) || other.knows(&round.id) || (knew_it && knew(&other.id))
                })
                && self
                    .decided
                    .iter()
                    .all(|(name, decided)| knew_it || round.knows(name) || round.knows_all(&decided.rounds))
        };
        self.rounds.iter().enumerate().all(round_is_fine)
            && self.decided.iter().all(|(name, decided)| decided.points.contains(&id) || knew(name))
    }

    /// Puts the next decision: what is deleted of some rounds. `Exists` if another collector has decided since this state
    /// was read, so that what is needed has to be found out anew.
    pub fn decide(
        &self,
        store: &dyn Store,
        keys: &RepoKeys,
        decided_ms: u64,
        rounds: &[ObjectId],
        packs: Vec<Pack>,
        points: Vec<PointId>,
    ) -> Result<PutOutcome> {
        let name = decision_name(self.next_decision);
        let rounds = rounds.iter().map(ObjectId::to_string).collect();
        let decided = Decided { id: name.to_string(), decided_ms, packs, rounds, points };
        put_json(store, keys, ObjectKind::Collection, name, &decided)
    }

    /// True if this is the newest decision, which stays so that its number is not given again.
    pub fn is_newest_decision(&self, name: ObjectId) -> bool {
        decision_number(name).is_some_and(|number| number + 1 == self.next_decision)
    }
}

impl Round {
    fn knows(&self, name: &ObjectId) -> bool {
        self.condemned.knows.contains(&name.to_string())
    }

    fn knows_all(&self, rounds: &[String]) -> bool {
        !rounds.is_empty() && rounds.iter().all(|round| self.condemned.knows.contains(round))
    }
}

/// Is told of a record that is damaged, and decides if that ends the reading.
type OnDamage<'a> = dyn FnMut(ObjectId, Error) -> Result<()> + 'a;

/// What was read, or `None` if it is damaged and that does not matter to the caller.
fn readable<T>(name: ObjectId, read: Result<T>, on_damage: &mut OnDamage<'_>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error @ Error::Damaged { .. }) => on_damage(name, error).map(|()| None),
        Err(error) => Err(error),
    }
}

/// Reads a record that was listed.
fn read<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    keys: &RepoKeys,
    name: ObjectId,
    id_of: impl Fn(&T) -> &str,
) -> Result<T> {
    read_json(store, keys, ObjectKind::Collection, name, id_of)?.ok_or_else(|| Error::Missing {
        object: ObjectKind::Collection.key(&name.to_string()),
        needed_by: "the list of records of garbage collection".into(),
    })
}

/// What is read of an object before anything of it is authenticated: names of packs are random, so records compress to
/// about half, and leases are small.
fn stored_bytes_max(kind: ObjectKind) -> usize {
    if kind == ObjectKind::Lease { 64 << 10 } else { RECORD_BYTES_MAX / 2 }
}

/// Reads a sealed JSON object; `None` if there is none.
pub fn read_json<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    keys: &RepoKeys,
    kind: ObjectKind,
    name: ObjectId,
    id_of: impl Fn(&T) -> &str,
) -> Result<Option<T>> {
    let object = kind.key(&name.to_string());
    reread(store, &object, || {
        let Some(mut bytes) = sealed::get(store, &object, stored_bytes_max(kind))? else { return Ok(None) };
        let packed = sealed::decode(keys, &object, kind, *name.as_bytes(), &mut bytes)?;
        let mut json = Vec::new();
        zstd::Decoder::new(&packed[..])
            .and_then(|decoder| decoder.take(RECORD_BYTES_MAX as u64).read_to_end(&mut json))
            .map_err(|e| Error::damaged(&object, e))?;
        from_json(&object, &json, &id_of).map(Some)
    })
}

/// Stores a sealed JSON object if its name is free.
pub fn put_json<T: serde::Serialize>(
    store: &dyn Store,
    keys: &RepoKeys,
    kind: ObjectKind,
    name: ObjectId,
    value: &T,
) -> Result<PutOutcome> {
    let unwritable =
        |e: &dyn std::fmt::Display| Error::Invalid { what: format!("cannot be written as JSON: {e}") };
    let json = serde_json::to_vec(value).map_err(|e| unwritable(&e))?;
    let packed = zstd::bulk::compress(&json, 3).map_err(|e| unwritable(&e))?;
    let bytes = sealed::encode(keys, kind, *name.as_bytes(), &packed)?;
    store.put_new(&kind.key(&name.to_string()), Body::Bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(at_ms: u64, knows: &[String], points: &[PointId]) -> Round {
        let id = stage_name(ObjectId::at(at_ms).unwrap(), Stage::Condemned);
        let condemned = Condemned { knows: knows.to_vec(), points: points.to_vec(), ..Condemned::default() };
        Round { id, condemned, fence: None }
    }

    fn point(id: PointId) -> RecoveryPoint {
        RecoveryPoint {
            id: id.to_string(),
            name: "n".into(),
            started_at: String::new(),
            finished_at: String::new(),
            parent: None,
            tags: BTreeMap::new(),
            host: String::new(),
            program: String::new(),
            volumes: Vec::new(),
            other: BTreeMap::new(),
        }
    }

    #[test]
    fn a_point_is_covered_by_rounds_that_saw_it_and_each_other() {
        let ids = (PointId::at(1).unwrap(), PointId::at(2).unwrap());
        let (one, other) = (point(ids.0), point(ids.1));
        let mut state = GcState::default();
        assert!(state.covers(&one));
        let first = round(10, &[], &[ids.0]);
        let second = round(20, &[first.id.to_string()], &[ids.0, ids.1]);
        let unaware = round(15, &[], &[ids.0, ids.1]);
        state.rounds = vec![first.clone(), second];
        assert!(state.covers(&one) && !state.covers(&other));
        let mut told = other.clone();
        state.stamp(&mut told);
        assert!(state.covers(&told), "its writer knew both rounds");
        state.rounds = vec![first, unaware];
        assert!(!state.covers(&one), "each may have counted on what the other condemned");
    }

    #[test]
    fn what_is_put_aside_is_absent_to_writers_and_the_last_resort_of_readers() {
        let [lost, needless] = [1, 2].map(|n| Pack { kind: ObjectKind::Data, id: ObjectId::new([n; 16]) });
        let (mut aside, mut other) = (round(10, &[], &[]), round(20, &[], &[]));
        (aside.condemned.packs, aside.condemned.damaged) = (vec![lost], true);
        other.condemned.packs = vec![needless];
        let state = GcState { rounds: vec![aside, other], ..GcState::default() };
        let (readers, writers) = (state.for_readers(), state.for_writers());
        assert!(writers.has(&lost.id) && writers.has(&needless.id));
        assert!(!readers.has(&lost.id) && !readers.has(&needless.id));
        assert_eq!(readers.aside, HashSet::from([lost.id]));
    }

    #[test]
    fn a_point_that_no_decision_saw_and_whose_writer_knew_none_is_looked_up() {
        let late = PointId::at(2).unwrap();
        let name = decision_name(0);
        let seen = GcState {
            decided: vec![(name, Decided { points: vec![PointId::at(1).unwrap()], ..Decided::default() })],
            next_decision: 1,
            ..GcState::default()
        };
        assert!(!seen.covers(&point(late)), "its writer may have lost its lease before that decision");
        let mut told = point(late);
        seen.stamp(&mut told);
        assert!(seen.covers(&told));
        assert!(seen.covers(&point(seen.decided[0].1.points[0])));
    }

    #[test]
    fn of_two_collectors_one_takes_the_next_number() {
        let store = crate::store::MemoryStore::default();
        let keys =
            RepoKeys::derive(&zeroize::Zeroizing::new([1; 32]), crate::format::header::Cipher::Aes256Gcm);
        let (one, other) = (GcState::load(&store, &keys).unwrap(), GcState::load(&store, &keys).unwrap());
        let decide = |state: &GcState| state.decide(&store, &keys, 5, &[], Vec::new(), Vec::new()).unwrap();
        assert_eq!(decide(&one), PutOutcome::Created);
        assert_eq!(decide(&other), PutOutcome::Exists);
        let now = GcState::load(&store, &keys).unwrap();
        assert_eq!((now.decided.len(), now.next_decision), (1, 1));
        assert!(now.is_newest_decision(now.decided[0].0));
        assert_eq!(decide(&now), PutOutcome::Created);
    }
}
