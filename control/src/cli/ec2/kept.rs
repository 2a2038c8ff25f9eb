//! What recovery points keep in accounts goes with them: for `penstock forget`, and for what it could not reach `penstock ec2 sweep`.

use std::collections::{BTreeMap, BTreeSet};

use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::Repository;

use super::super::exit::Failure;
use super::super::session::Session;
use super::Reach;
use crate::aws::clients::Clients;
use crate::ec2restore::kept::{self, Removed};

/// What became of the things of forgotten points.
#[derive(Default)]
pub struct Outcome {
    /// Gone, and not gone.
    pub things: Removed,
    /// Accounts that could not be asked, and why.
    pub problems: Vec<String>,
}

/// Takes away what these points kept, in each region. Nothing is asked if none of them is of an EC2 instance. What does not work is told, and is no failure: the points
/// are forgotten, and a sweep finds the rest.
pub fn forget<'a>(
    session: &Session,
    repo: &Repository,
    points: impl Iterator<Item = &'a RecoveryPoint>,
    dry_run: bool,
) -> Outcome {
    let mut by_region: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for point in points {
        if let Some(region) = kept::region_of(point) {
            by_region.entry(region).or_default().insert(&point.id);
        }
    }
    let mut outcome = Outcome::default();
    for (region, points) in by_region {
        match in_region(session, repo, region, &points, dry_run) {
            Ok(found) => {
                outcome.things.removed.extend(found.removed);
                outcome.things.failed.extend(found.failed);
            }
            Err(failure) => outcome.problems.push(format!("{region}: {failure}")),
        }
    }
    outcome
}

fn in_region(
    session: &Session,
    repo: &Repository,
    region: &str,
    points: &BTreeSet<&str>,
    dry_run: bool,
) -> Result<Removed, Failure> {
    let aws = Reach::of_environment(region).clients(session)?;
    let _hold = session.interrupt.hold();
    let repository = &repo.config().repository_id;
    Ok(aws.block_on(async {
        let mut going = kept::list(&aws, repository).await?;
        going.retain(|kept| points.contains(kept.point.as_str()));
        Ok::<_, crate::ec2run::Error>(kept::remove(&aws, &going, dry_run).await)
    })?)
}

/// Takes away what points kept that are no longer in the repository.
pub fn sweep(aws: &Clients, repo: &Repository, dry_run: bool) -> Result<Removed, Failure> {
    let mut going = aws.block_on(kept::list(aws, &repo.config().repository_id))?;
    if going.is_empty() {
        return Ok(Removed::default());
    }
    // Read after the account was: a point is published before anything gets its tags.
    let known: BTreeSet<String> = repo.point_ids()?.iter().map(ToString::to_string).collect();
    going.retain(|kept| !known.contains(&kept.point));
    Ok(aws.block_on(kept::remove(aws, &going, dry_run)))
}
