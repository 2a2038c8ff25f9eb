//! What recovery points keep in the account: the image of a root in mode ami with its snapshot, and anchors. When a point is forgotten, they go.

use penstock_engine::format::point::RecoveryPoint;
use serde::Serialize;

use super::Result;
use crate::aws::clients::Clients;
use crate::aws::error::Kind;
use crate::aws::images::{self, Image};
use crate::aws::retry::Patience;
use crate::aws::snapshots;
use crate::aws::tags::{self, Tags};
use crate::ec2run::journal::Thing;
use crate::ec2run::sweep::Found;

/// The region in which a recovery point may have kept something; `None` if it is of no EC2 instance.
pub fn region_of(point: &RecoveryPoint) -> Option<&str> {
    point.other.get("instance")?["region"].as_str()
}

/// Something that a recovery point keeps.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its id.
    pub id: String,
    /// The point.
    pub point: String,
    /// `None` for a snapshot.
    image: Option<Image>,
}

/// What was taken away, and what could not be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Removed {
    /// Gone.
    pub removed: Vec<Found>,
    /// Still there, and why.
    pub failed: Vec<Found>,
}

/// All that recovery points of a repository keep, as its tags say. What the user made, and what `ec2 snapshot` took, has no such tags.
pub async fn list(aws: &Clients, repository: &str) -> Result<Vec<Kept>> {
    let filters = [tags::filter(tags::REPOSITORY, repository), tags::with_key(tags::POINT)];
    let point = |tags: &Tags| {
        let purpose = tags.get(tags::PURPOSE).map(String::as_str);
        tags.get(tags::POINT).filter(|_| matches!(purpose, Some(tags::KEPT | tags::ANCHOR))).cloned()
    };
    let mut found = Vec::new();
    // Images first: their snapshots, which have the same tags, cannot go before them.
    let images = match images::find(aws, &[], &filters).await {
        // Whoever may not look at images made none.
        Err(error) if error.kind == Kind::Denied => Vec::new(),
        images => images?,
    };
    for image in images {
        if let Some(point) = point(&image.tags) {
            found.push(Kept { id: image.id.clone(), point, image: Some(image) });
        }
    }
    for snapshot in snapshots::find(aws, &[], &filters, Patience::USUAL).await? {
        if let Some(point) = point(&snapshot.tags) {
            found.push(Kept { id: snapshot.id, point, image: None });
        }
    }
    Ok(found)
}

/// Takes them away; what cannot go is in the outcome.
pub async fn remove(aws: &Clients, going: &[Kept], dry_run: bool) -> Removed {
    let mut outcome = Removed::default();
    for kept in going {
        let done = match (&kept.image, dry_run) {
            (_, true) => Ok(()),
            (Some(image), _) => images::deregister(aws, &image.id).await,
            (None, _) => snapshots::delete(aws, &kept.id).await,
        };
        let thing = if kept.image.is_some() { Thing::Image } else { Thing::Snapshot };
        let found = |why| Found { thing, id: kept.id.clone(), why };
        match done {
            Ok(()) => {
                let why = format!("of recovery point {}, which is forgotten", kept.point);
                outcome.removed.push(found(why));
            }
            Err(error) => outcome.failed.push(found(error.to_string())),
        }
    }
    outcome
}
