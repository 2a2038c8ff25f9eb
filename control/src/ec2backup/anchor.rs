//! Anchors: the snapshot of each volume that a recovery point was read from, kept so that the next backup can ask what changed since.

use std::collections::BTreeMap;

use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::Repository;

use crate::aws::clients::Clients;
use crate::aws::error::AwsError;
use crate::aws::snapshots::{self, Snapshot};
use crate::aws::tags;

/// The anchors that one backup can use: all are of one recovery point, since a backup is compared with one.
#[derive(Debug, Default)]
pub struct Anchors {
    /// The recovery point they are of.
    pub point: Option<RecoveryPoint>,
    /// Volume → snapshot.
    pub of_volume: BTreeMap<String, Snapshot>,
    /// All that there are, also those that this backup cannot use.
    pub all: Vec<Snapshot>,
}

/// Snapshots of these volumes that are anchors of this repository, newest first.
pub async fn list(aws: &Clients, repository: &str, volumes: &[String]) -> Result<Vec<Snapshot>, AwsError> {
    let of_repository = [tags::filter(tags::REPOSITORY, repository), tags::with_key(tags::POINT)];
    let mut found = snapshots::completed_of(aws, volumes, &of_repository).await?;
    found.sort_by(|a, b| b.started.cmp(&a.started).then_with(|| b.id.cmp(&a.id)));
    Ok(found)
}

impl Anchors {
    /// Chooses the newest recovery point that anchors most of the volumes and is still in the repository.
    pub fn choose(repo: &Repository, all: Vec<Snapshot>) -> penstock_engine::Result<Self> {
        let mut by_point: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
        for snapshot in &all {
            if let Some(point) = snapshot.tags.get(tags::POINT) {
                by_point.entry(point).or_default().push(snapshot);
            }
        }
        // Ids of points begin with their time.
        let mut candidates: Vec<(&str, Vec<&Snapshot>)> = by_point.into_iter().collect();
        candidates.sort_by_key(|(point, snapshots)| {
            (std::cmp::Reverse(snapshots.len()), std::cmp::Reverse(*point))
        });
        let known = repo.point_ids()?;
        for (point, snapshots) in candidates {
            let Some(id) = known.iter().find(|id| id.to_string() == point) else { continue };
            let point = match repo.read_point(*id) {
                Ok(point) => point,
                // Forgotten or damaged: there may be another.
                Err(error) => {
                    tracing::warn!("an anchor's recovery point cannot be read: {error}");
                    continue;
                }
            };
            let of_volume: BTreeMap<String, Snapshot> = snapshots
                .into_iter()
                .filter(|s| point.volume(&s.volume).is_some())
                .map(|s| (s.volume.clone(), s.clone()))
                .collect();
            if !of_volume.is_empty() {
                return Ok(Self { point: Some(point), of_volume, all });
            }
        }
        Ok(Self { all, ..Self::default() })
    }
}
