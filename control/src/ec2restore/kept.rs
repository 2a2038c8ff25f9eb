//! What a recovery point kept in the account: the image of its root in mode ami, and the anchors that were read for it. When the point is forgotten, they go.

use penstock_engine::format::point::RecoveryPoint;
use serde::Serialize;

use super::Result;
use crate::aws::clients::Clients;
use crate::aws::retry::Patience;
use crate::aws::tags;
use crate::aws::{images, snapshots};
use crate::ec2run::journal::Thing;
use crate::ec2run::sweep::Found;

/// Whether a recovery point may have kept something in an account.
pub fn may_have(point: &RecoveryPoint) -> Option<&str> {
    let instance = point.other.get("instance")?;
    instance["region"]
        .as_str()
        .filter(|_| instance["kept_image"].is_string() || instance["devices"].is_array())
}

/// What was taken away, and what could not be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Removed {
    /// Gone.
    pub removed: Vec<Found>,
    /// Still there, and why.
    pub failed: Vec<Found>,
}

/// Takes away what carries the tags of these recovery points of this repository, and nothing else. `dry_run`: only says so.
pub async fn remove(aws: &Clients, repository: &str, points: &[String], dry_run: bool) -> Result<Removed> {
    let mut outcome = Removed::default();
    let gone = |tags: &tags::Tags| tags.get(tags::POINT).is_some_and(|point| points.contains(point));
    forgotten(aws, repository, &gone, dry_run, &mut outcome).await?;
    Ok(outcome)
}

/// Takes away what recovery points kept that are no longer in this repository. `known` are those that are.
pub async fn sweep(aws: &Clients, repository: &str, known: &[String], dry_run: bool) -> Result<Removed> {
    let mut outcome = Removed::default();
    let gone = |tags: &tags::Tags| tags.get(tags::POINT).is_some_and(|point| !known.contains(point));
    forgotten(aws, repository, &gone, dry_run, &mut outcome).await?;
    Ok(outcome)
}

async fn forgotten(
    aws: &Clients,
    repository: &str,
    gone: &dyn Fn(&tags::Tags) -> bool,
    dry_run: bool,
    outcome: &mut Removed,
) -> Result<()> {
    let filters = [tags::filter(tags::REPOSITORY, repository), tags::with_key(tags::POINT)];
    let ours = |tags: &tags::Tags| {
        let purpose = tags.get(tags::PURPOSE).map(String::as_str);
        matches!(purpose, Some(tags::KEPT | tags::ANCHOR)) && gone(tags)
    };
    let why = |tags: &tags::Tags| {
        format!("of recovery point {}, which is forgotten", tags.get(tags::POINT).map_or("", String::as_str))
    };
    // Images first: their snapshots cannot go before them.
    for image in images::find(aws, &[], &filters).await?.into_iter().filter(|i| ours(&i.tags)) {
        let done = if dry_run { Ok(()) } else { images::remove(aws, &image).await };
        note(outcome, Thing::Image, &image.id, why(&image.tags), done);
    }
    let found = snapshots::find(aws, &[], &filters, Patience::USUAL).await?;
    for snapshot in found.into_iter().filter(|s| ours(&s.tags)) {
        let done = if dry_run { Ok(()) } else { snapshots::delete(aws, &snapshot.id).await };
        note(outcome, Thing::Snapshot, &snapshot.id, why(&snapshot.tags), done);
    }
    Ok(())
}

fn note(
    outcome: &mut Removed,
    thing: Thing,
    id: &str,
    why: String,
    done: std::result::Result<(), crate::aws::AwsError>,
) {
    match done {
        Ok(()) => outcome.removed.push(Found { thing, id: id.to_owned(), why }),
        Err(error) => outcome.failed.push(Found { thing, id: id.to_owned(), why: error.to_string() }),
    }
}
