//! What a backup relies on: packs that are neither condemned nor lost, and a parent that leans on no others. A point that was published after packs were condemned may still do that.

use std::collections::HashSet;

use crate::collection::Collection;
use crate::error::{Error, Result};
use crate::format::point::{RecoveryPoint, Root, root_level};
use crate::index::Claims;
use crate::manifest::each_difference;
use crate::repo::Repository;

/// Leaves out packs that are condemned, gone, or (where that is cheaply asked) lost; returns how many are lost.
pub fn exclude(repo: &Repository, claims: &Claims, collection: &Collection) -> Result<usize> {
    let mut excluded = collection.for_writers();
    let lost = match repo.store().habits().lists_cheaply {
        true => claims.index().lost_packs(&excluded.absent)?,
        false => HashSet::new(),
    };
    let count = lost.len();
    excluded.absent.extend(lost);
    claims.index().exclude(excluded);
    Ok(count)
}

/// True if nothing of `parent` is in a condemned pack. Most often its name is enough; else what it has beyond an older point that is known to be whole is looked up.
/// The index must leave out condemned packs already.
pub fn is_whole(repo: &Repository, collection: &Collection, parent: &RecoveryPoint) -> Result<bool> {
    let Some(id) = parent.point_id() else { return Ok(false) };
    if collection.vouches_for(&id) {
        return Ok(true);
    }
    let vouched: Vec<_> =
        repo.point_ids()?.into_iter().filter(|known| *known < id && collection.vouches_for(known)).collect();
    let base = repo.newest(&vouched, Some(&parent.name))?;
    match all_found(repo, base.as_ref(), parent) {
        Err(error) if error.is_damage() => Ok(false),
        found => found,
    }
}

fn all_found(repo: &Repository, base: Option<&RecoveryPoint>, parent: &RecoveryPoint) -> Result<bool> {
    let index = repo.index()?;
    for volume in &parent.volumes {
        let (old_bytes, old_root) = match base.and_then(|base| base.volume(&volume.name)) {
            Some(old) => (old.size_bytes, old.root),
            None => (volume.size_bytes, Root { level: root_level(volume.size_bytes), node: None }),
        };
        let mut old = repo.tree(old_bytes, old_root)?;
        let mut new = repo.tree(volume.size_bytes, volume.root)?;
        // Nodes on the way are found by being read.
        each_difference(&mut old, &mut new, &mut |_, new, change| {
            let leaf = new.load_leaf(change.segment, change.new)?;
            for chunk in leaf.pieces.iter().filter_map(|piece| piece.chunk) {
                if index.find(chunk.as_bytes())?.is_none() {
                    let needed_by = format!("recovery point {}", parent.id);
                    return Err(Error::Missing { object: format!("chunk {chunk}"), needed_by });
                }
            }
            Ok(())
        })?;
    }
    Ok(true)
}
