//! Finds the live segments of a repository: newest first, so that what a merge superseded is not even opened.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::runs::{Runs, part_id, part_number, run_name};
use super::segment::Segment;
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::header::ObjectKind;
use crate::id::ObjectId;
use crate::simulation::{Bug, planted};
use crate::store::Store;

/// Times that the list is read again because a segment in it was gone when it was opened.
const TRIES: usize = 8;

/// Segments that are not opened, since they are damaged.
#[derive(Clone, Default)]
pub struct Skip {
    /// Which.
    pub ids: HashSet<ObjectId>,
    /// They count as if they were there, without rows, as they do once another segment has superseded them: what the
    /// merge superseded that they are parts of is not asked. Otherwise as if they were not there.
    pub as_superseded: bool,
}

/// Live segments, and those that they supersede and that are still there.
pub struct Loaded {
    /// What lookups ask.
    pub runs: Runs,
    /// What may be deleted, once nobody is likely to hold it.
    pub superseded: Vec<ObjectId>,
}

/// Is told of a segment that cannot be opened (or of an object with a name that none has), and decides if that ends the
/// loading.
pub type OnDamage<'a> = dyn FnMut(Option<ObjectId>, Error) -> Result<()> + 'a;

/// Opens all live segments but those in `skip`. Those that `known` has are not
/// opened again.
pub fn load(
    store: &dyn Store,
    keys: &RepoKeys,
    known: &Runs,
    skip: &Skip,
    on_damage: &mut OnDamage<'_>,
) -> Result<Loaded> {
    let known: HashMap<ObjectId, &Arc<Segment>> = known.segments().map(|s| (s.id(), s)).collect();
    let mut tries = 0;
    loop {
        tries += 1;
        match open_all(store, keys, &known, skip, on_damage) {
            // Gone between list and open: a merge superseded it, and its result is in the next list.
            Err(Error::SegmentGone { object }) if tries < TRIES => {
                tracing::debug!("{object} was deleted while the index was opened");
            }
            other => return other,
        }
    }
}

/// Names and lengths of all segments, oldest first.
fn list(store: &dyn Store, on_damage: &mut OnDamage<'_>) -> Result<Vec<(ObjectId, u64)>> {
    let mut names = Vec::new();
    store.list(ObjectKind::Index.prefix(), &mut |key, bytes| names.push((key.to_owned(), bytes)))?;
    let mut listed = Vec::with_capacity(names.len());
    for (object, bytes) in names {
        match object.strip_prefix(ObjectKind::Index.prefix()).and_then(ObjectId::from_hex) {
            Some(id) => listed.push((id, bytes)),
            None => on_damage(None, Error::damaged(&object, "its name is not an id"))?,
        }
    }
    listed.sort_unstable();
    Ok(listed)
}

fn open_all(
    store: &dyn Store,
    keys: &RepoKeys,
    known: &HashMap<ObjectId, &Arc<Segment>>,
    skip: &Skip,
    on_damage: &mut OnDamage<'_>,
) -> Result<Loaded> {
    let mut listed = list(store, on_damage)?;
    let counts = |id: &ObjectId| skip.as_superseded || !skip.ids.contains(id);
    let names: HashSet<ObjectId> = listed.iter().map(|(id, _)| *id).filter(counts).collect();
    listed.retain(|(id, _)| !skip.ids.contains(id));
    let mut superseded = HashSet::new();
    let mut live: Vec<Arc<Segment>> = Vec::new();
    for (id, bytes) in listed.into_iter().rev() {
        if superseded.contains(&id) {
            continue;
        }
        let segment = match known.get(&id) {
            Some(segment) => Arc::clone(segment),
            None => match Segment::open(store, keys, id, bytes, live.last().map(|s| &**s)) {
                Ok(segment) => Arc::new(segment),
                Err(error @ (Error::Damaged { .. } | Error::NewerVersion { .. })) => {
                    on_damage(Some(id), error)?;
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        if !segment.superseded().is_empty() && is_whole(id, &names) {
            superseded.extend(segment.superseded());
        }
        live.push(segment);
    }
    // A name may be superseded by a segment that sorts before it only if clocks or writers are strange; it is live no more all the same.
    live.retain(|segment| !superseded.contains(&segment.id()));
    superseded.retain(|id| names.contains(id));
    let mut superseded: Vec<ObjectId> = superseded.into_iter().collect();
    superseded.sort_unstable(); // in the same order every time
    Ok(Loaded { runs: Runs::new(live, names), superseded })
}

/// True if all parts before this one, which is the last that its merge published, are listed. Otherwise the list was read while they came,
/// or they were superseded in turn; either way this part alone does not stand for what it names.
fn is_whole(last: ObjectId, listed: &HashSet<ObjectId>) -> bool {
    planted(Bug::HalfMergeBelieved)
        || (0..part_number(last)).all(|number| listed.contains(&part_id(run_name(last), number)))
}
