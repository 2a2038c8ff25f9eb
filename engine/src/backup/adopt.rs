//! Takes over what a killed run left: its packs get into the index, its finished segments are not read again.

use std::collections::HashSet;

use super::journal::{Contents, FinishedSegments, Journal};
use crate::error::{Error, Result};
use crate::id::ObjectId;
use crate::index::Claims;
use crate::pack::read_contents;
use crate::repo::Repository;

/// Leaves of segments that a killed run finished, still to be checked against the index.
#[derive(Default)]
pub struct Finished {
    segments: Vec<FinishedSegments>,
}

impl Finished {
    /// Takes the segments of one volume.
    pub fn volume(&mut self, volume: u16) -> Option<FinishedSegments> {
        let at = self.segments.iter().position(|of| of.volume == volume)?;
        Some(self.segments.swap_remove(at))
    }
}

/// Reads the journal, adopts packs, and readies the journal for this run.
pub fn take_over(
    repo: &Repository,
    claims: &Claims,
    mut journal: Journal,
    resume: bool,
    notes: &mut Vec<String>,
) -> Result<(Journal, Finished)> {
    notes.extend(journal.why_none.take());
    let contents = journal.read();
    let adopted = adopt_packs(repo, claims, &contents)?;
    if adopted > 0 {
        notes.push(format!("an earlier run was interrupted; {adopted} packs that it stored are used"));
    }
    let mut finished = Finished::default();
    if resume && contents.same_sources && !contents.segments.is_empty() {
        finished.segments = contents.segments;
        journal.resume();
    } else {
        if !contents.segments.is_empty() && resume {
            notes.push("an earlier run was interrupted, but its source has changed since: it is read again from the start".into());
        }
        journal.restart();
    }
    Ok((journal, finished))
}

/// Puts packs that no index segment knows into the index. A pack that is gone or damaged is left alone: then its chunks are stored again.
fn adopt_packs(repo: &Repository, claims: &Claims, contents: &Contents) -> Result<usize> {
    let mut known: HashSet<ObjectId> = claims.index().packs().into_iter().map(|pack| pack.id).collect();
    known.extend(claims.index().excluded().iter()); // what garbage collection has condemned is not relied on
    let mut settled = HashSet::new();
    let mut adopted = 0;
    for (kind, id) in contents.packs.iter().filter(|(_, id)| !known.contains(id)) {
        match read_contents(repo.store().as_ref(), repo.keys(), *kind, *id) {
            Ok((pack, rows)) => {
                // Its writer may have been killed between publishing and syncing it.
                let key = kind.key(&id.to_string());
                let dir = &key[..key.rfind('/').map_or(0, |at| at + 1)];
                if settled.insert(dir.to_owned()) {
                    repo.store().settle(dir)?;
                }
                claims.add_durable(pack, rows)?;
                adopted += 1;
            }
            // Data that was archived as it was stored: what is in it cannot be known. It is stored again.
            Err(error) if error.is_damage() || matches!(error, Error::Archived { .. }) => {
                tracing::warn!("not taken over: {error}")
            }
            Err(error) => return Err(error),
        }
    }
    claims.flush()?;
    Ok(adopted)
}
