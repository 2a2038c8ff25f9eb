//! Opens the target of a restore together with its journal. Nothing of the target is changed before it is this
//! restore's alone, was checked, and has a journal that is right whenever the restore is killed.

use std::path::Path;

use super::RestoreOptions;
use super::journal::{self, Earlier, Journal, SegmentSet, Subject, Unusable};
use super::trust;
use crate::error::{Error, Result};
use crate::format::point::{RecoveryPoint, Volume};
use crate::limits::SEGMENT_BYTES;
use crate::repo::Repository;
use crate::target::{Identity, Locked, Target, TargetOptions, probe};

/// An open target with the journal of its restore.
pub struct Opened {
    /// The target.
    pub target: Target,
    /// What is written to it.
    pub journal: Journal,
    /// Segments that a killed run finished.
    pub done: SegmentSet,
    /// Zeros need not be written.
    pub fresh: bool,
}

/// What is restored, and how.
struct Wanted<'a> {
    repo: &'a Repository,
    volume: &'a Volume,
    subject: Subject,
}

/// Opens `path` for a volume.
pub fn open(
    repo: &Repository,
    point: &RecoveryPoint,
    volume: &Volume,
    path: &Path,
    options: &RestoreOptions,
) -> Result<Opened> {
    let wanted = Wanted { repo, volume, subject: Subject::of(repo, point, volume, options) };
    let must_hold_data = options.base.is_some() || options.compare;
    let target_options = TargetOptions {
        size_bytes: volume.size_bytes,
        force: options.force,
        must_hold_data,
        ..Default::default()
    };
    target_options.check_size()?;
    let probed = probe(path)?;
    let existed = probed.exists();
    let place = match &options.journal {
        Some(place) => place.clone(),
        None => journal::place_of(path, probed.kind(), options.state_dir.as_deref())?,
    };
    let locked = probed.lock(must_hold_data)?;
    let identity = locked.identity()?;
    let earlier = match options.resume.then(|| wanted.earlier(&place, &identity, &locked)).transpose()? {
        None => None,
        Some(Ok(earlier)) => Some(earlier),
        // Killed before it began, or of another state: nothing to go on from, and with --force, or in an empty file,
        // nothing to lose.
        Some(Err(unusable)) if options.force || !existed || is_empty_file(&locked) => {
            tracing::warn!("starting anew. {}", unusable.explain(locked.name()));
            None
        }
        Some(Err(unusable)) => return Err(unusable.explain(locked.name())),
    };
    let target_options = TargetOptions {
        resume: earlier.is_some(),
        // Not if a restore of something else was begun here, and is given up now.
        zero: options.zero_target && (earlier.is_some() || !options.resume || !place.exists()),
        ..target_options
    };
    let checked =
        locked.check(target_options).map_err(|refusal| wanted.with_hint(refusal, &place, &identity))?;
    let Some(earlier) = earlier else {
        let fresh = checked.will_be_fresh();
        // As if there were no zeros to rely on, until there are: a kill in between must find a journal that is right.
        journal::begin(&place, &wanted.subject, &identity, false)?;
        let target = checked.prepare()?;
        if fresh {
            target.settle()?;
            journal::begin(&place, &wanted.subject, &identity, true)?;
        }
        let journal = Journal::start(&place)?;
        return Ok(Opened { target, journal, done: SegmentSet::default(), fresh });
    };
    let target = checked.prepare()?;
    let fresh = earlier.fresh || target.is_fresh();
    let journal = Journal::resume(&place, &earlier)?;
    Ok(Opened { target, journal, done: earlier.done, fresh })
}

fn is_empty_file(target: &Locked) -> bool {
    target.held_bytes() == 0
}

impl Wanted<'_> {
    fn segments(&self) -> u64 {
        self.volume.size_bytes.div_ceil(SEGMENT_BYTES as u64)
    }

    /// What a killed restore left, if its journal is of this one, and the target is as it says.
    fn earlier(
        &self,
        place: &Path,
        identity: &Identity,
        target: &Locked,
    ) -> Result<std::result::Result<Earlier, Unusable>> {
        let earlier = match journal::read(place, &self.subject, identity, self.segments())? {
            Ok(earlier) => earlier,
            Err(unusable) => return Ok(Err(unusable)),
        };
        let mut tree = self.repo.tree(self.volume.size_bytes, self.volume.root)?;
        let mut chunker = self.repo.keys().chunker_for(self.repo.chunk_params()?);
        Ok(match trust::contradiction(&earlier, target, &mut tree, &mut chunker)? {
            None => Ok(earlier),
            Some(found) => Err(Unusable::Target(format!(
                "it was changed since the interrupted restore: {found}. Restore without --resume"
            ))),
        })
    }

    /// Says of a target that holds something that it was a restore like this one that wrote it.
    fn with_hint(&self, refusal: Error, place: &Path, identity: &Identity) -> Error {
        let Error::TargetRefused { target, why } = refusal else { return refusal };
        let is_ours = matches!(journal::read(place, &self.subject, identity, self.segments()), Ok(Ok(_)));
        let why = match is_ours {
            true => format!(
                "an interrupted restore of this volume began to write it: --resume continues it. Else: {why}"
            ),
            false => why,
        };
        Error::TargetRefused { target, why }
    }
}
