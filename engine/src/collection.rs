//! What garbage collection has said so far: read by every writer before it trusts that something is stored, and by readers to know what is no damage.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::collection::{
    Condemned, Decided, Fence, RECORD_BYTES_MAX, Stage, from_json, split_name, stage_name,
};
use crate::format::header::ObjectKind;
use crate::id::{ObjectId, PointId};
use crate::index::Excluded;
use crate::sealed;
use crate::store::{Body, PutOutcome, Span, Store, reread};

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

/// All rounds of a repository.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// Not decided.
    pub rounds: Vec<Round>,
    /// Decided.
    pub decided: Vec<(ObjectId, Decided)>,
    /// Records that a decision has made needless, and that are still there.
    pub needless: Vec<ObjectId>,
}

impl Collection {
    /// Reads all records: one listing, and one request for each, mostly none.
    pub fn load(store: &dyn Store, keys: &RepoKeys) -> Result<Self> {
        let mut names = Vec::new();
        store.list(ObjectKind::Collection.prefix(), &mut |key, _| {
            let id = key.strip_prefix(ObjectKind::Collection.prefix()).and_then(ObjectId::from_hex);
            names.extend(id.and_then(split_name));
        })?;
        let mut of_round: BTreeMap<ObjectId, Vec<Stage>> = BTreeMap::new();
        for (round, stage) in names {
            of_round.entry(round).or_default().push(stage);
        }
        let mut collection = Self::default();
        for (round, stages) in of_round {
            // A decision that another process makes right now may take the first two records away: then it is there.
            let decided = match read(store, keys, round, Stage::Decided, |d: &Decided| &d.id, &stages)? {
                None if stages.contains(&Stage::Condemned) => {
                    match read(store, keys, round, Stage::Condemned, |c: &Condemned| &c.id, &stages)? {
                        Some(condemned) => {
                            let fence = read(store, keys, round, Stage::Fence, |f: &Fence| &f.id, &stages)?;
                            collection.rounds.push(Round { id: round, condemned, fence });
                            continue;
                        }
                        None => {
                            read(store, keys, round, Stage::Decided, |d: &Decided| &d.id, &[Stage::Decided])?
                        }
                    }
                }
                found => found,
            };
            let needless = stages.iter().filter(|stage| **stage != Stage::Decided);
            collection.needless.extend(needless.map(|stage| stage_name(round, *stage)));
            collection.decided.extend(decided.map(|decided| (round, decided)));
        }
        Ok(collection)
    }

    /// Packs that are deleted, or will be.
    pub fn gone(&self) -> HashSet<ObjectId> {
        self.decided.iter().flat_map(|(_, decided)| &decided.packs).map(|pack| pack.id).collect()
    }

    /// Packs that are condemned, and not decided on.
    pub fn condemned(&self) -> HashSet<ObjectId> {
        self.rounds.iter().flat_map(|round| &round.condemned.packs).map(|pack| pack.id).collect()
    }

    /// What a reader leaves out.
    pub fn for_readers(&self) -> Excluded {
        Excluded { absent: self.gone(), gone: self.gone() }
    }

    /// What a writer leaves out: all that may be deleted before its recovery point is there.
    pub fn for_writers(&self) -> Excluded {
        let mut absent = self.gone();
        absent.extend(self.condemned());
        Excluded { absent, gone: self.gone() }
    }

    /// True if nothing that the point needs can be in a condemned pack: each round has looked at it, and none can have counted on a pack that another one condemned.
    pub fn vouches_for(&self, point: &PointId) -> bool {
        let in_sight = |one: &Round, other: &Round| one.condemned.knows.contains(&other.id.to_string());
        self.rounds.iter().all(|round| round.condemned.points.contains(point))
            && self.rounds.iter().enumerate().all(|(at, one)| {
                self.rounds[..at].iter().all(|other| in_sight(one, other) || in_sight(other, one))
            })
    }
}

fn read<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    keys: &RepoKeys,
    round: ObjectId,
    stage: Stage,
    id_of: impl Fn(&T) -> &str,
    there: &[Stage],
) -> Result<Option<T>> {
    if !there.contains(&stage) {
        return Ok(None);
    }
    let name = stage_name(round, stage);
    read_json(store, keys, ObjectKind::Collection, name, id_of)
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
        let mut bytes = Vec::new();
        if store.get(&object, Span::All, &mut bytes)?.is_none() {
            return Ok(None);
        }
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

    fn round(at_ms: u64, knows: &[&Round], points: &[PointId]) -> Round {
        let id = stage_name(ObjectId::at(at_ms).unwrap(), Stage::Condemned);
        let condemned = Condemned {
            knows: knows.iter().map(|round| round.id.to_string()).collect(),
            points: points.to_vec(),
            ..Condemned::default()
        };
        Round { id, condemned, fence: None }
    }

    #[test]
    fn a_point_is_vouched_for_by_rounds_that_saw_it_and_each_other() {
        let (one, other) = (PointId::at(1).unwrap(), PointId::at(2).unwrap());
        let mut collection = Collection::default();
        assert!(collection.vouches_for(&one));
        let first = round(10, &[], &[one]);
        let second = round(20, &[&first], &[one, other]);
        let unaware = round(15, &[], &[one, other]);
        collection.rounds = vec![first.clone(), second];
        assert!(collection.vouches_for(&one) && !collection.vouches_for(&other));
        collection.rounds = vec![first, unaware];
        assert!(!collection.vouches_for(&one), "each may have counted on what the other condemned");
    }
}
