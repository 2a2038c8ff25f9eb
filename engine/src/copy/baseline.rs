//! Which recovery points the destination holds a copy of, and which of those to compare with.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::format::point::RecoveryPoint;
use crate::id::PointId;
use crate::repo::Repository;
use crate::write_session::WriteSession;

/// Points read at most in search of one of the same name.
const TRIES: usize = 64;

/// An earlier point of the source, and its copy in the destination: segments in which the source's points agree are taken from the copy.
pub struct Baseline {
    /// In the source.
    pub original: RecoveryPoint,
    /// In the destination.
    pub copy: RecoveryPoint,
}

/// True if `copy` is a copy of `original`. The id alone says so, unless somebody tampered with one of them.
pub fn is_copy(original: &RecoveryPoint, copy: &RecoveryPoint) -> bool {
    let volumes = |point: &RecoveryPoint| -> Vec<(String, u64)> {
        point.volumes.iter().map(|v| (v.name.clone(), v.size_bytes)).collect()
    };
    (&original.id, &original.name, &original.started_at) == (&copy.id, &copy.name, &copy.started_at)
        && volumes(original) == volumes(copy)
}

/// The copy of `point` in the destination, which has a point of that id.
pub fn existing_copy(destination: &Repository, point: &RecoveryPoint, id: PointId) -> Result<RecoveryPoint> {
    let location = destination.location();
    let copy = destination.read_point(id).map_err(|e| e.in_repository(location))?;
    if is_copy(point, &copy) {
        return Ok(copy);
    }
    Err(Error::TargetRefused {
        target: location.to_owned(),
        why: format!(
            "its recovery point {id} ({}) is not the one called {} in the source",
            copy.name, point.name
        ),
    })
}

/// What to compare `point` with: its parent, else the nearest point of the same name, of those that both repositories hold.
pub fn find(
    source: &Repository,
    session: &WriteSession<'_>,
    both: &BTreeSet<PointId>,
    copied: &BTreeSet<PointId>,
    point: &RecoveryPoint,
) -> Result<Option<Baseline>> {
    let destination = session.repository();
    let Some(own) = point.point_id() else { return Ok(None) };
    let parent = point.parent.as_deref().and_then(PointId::from_hex).filter(|id| both.contains(id));
    let near = both.range(..own).rev().chain(both.range(own..)).filter(|id| **id != own);
    for id in parent.iter().chain(near).take(TRIES) {
        let original = match source.read_point(*id) {
            Ok(original) if original.name == point.name || Some(*id) == parent => original,
            Ok(_) => continue,
            Err(error) if passed_over(&error) => continue,
            Err(error) => return Err(error.in_repository(source.location())),
        };
        match destination.read_point(*id) {
            Ok(copy) if is_copy(&original, &copy) => {
                // Of what this run has copied itself it knows what it relies on.
                if copied.contains(id) || session.covers(&copy) {
                    return Ok(Some(Baseline { original, copy }));
                }
            }
            Ok(_) => {}
            Err(error) if passed_over(&error) => {}
            Err(error) => return Err(error.in_repository(destination.location())),
        }
    }
    Ok(None)
}

fn passed_over(error: &Error) -> bool {
    error.is_damage() || matches!(error, Error::NewerVersion { .. })
}
