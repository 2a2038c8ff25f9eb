//! Leftovers: what runs made and did not take away, because they died.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::journal::{Runs, Thing};
use super::{Error, Result};
use crate::aws::clients::Clients;
use crate::aws::error::{AwsError, Kind};
use crate::aws::images::{self, Image};
use crate::aws::retry::{GRACE, Patience};
use crate::aws::tags::{self, Tags};
use crate::aws::{attach, describe, snapshots};

/// Something in the account that penstock made.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// What.
    pub thing: Thing,
    /// Its id.
    pub id: String,
    /// Why it goes, or stays.
    pub why: String,
}

/// What a sweep did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Swept {
    /// Taken away, or to be taken away in a dry run.
    pub removed: Vec<Found>,
    /// Left alone.
    pub kept: Vec<Found>,
    /// What could not be taken away, with the reason.
    pub failed: Vec<Found>,
}

/// An object with its tags.
struct Tagged {
    thing: Thing,
    id: String,
    tags: Tags,
    image: Option<Image>,
}

/// Everything with the tag of a run, or of this run.
async fn tagged(aws: &Clients, run: Option<&str>) -> Result<Vec<Tagged>, AwsError> {
    let filters = [match run {
        Some(run) => tags::filter(tags::RUN, run),
        None => tags::with_key(tags::RUN),
    }];
    let mut found = Vec::new();
    // Images first: their snapshots cannot go before them.
    let images = match images::find(aws, &[], &filters).await {
        // Whoever may not look at images makes none; volumes and snapshots go nevertheless.
        Err(error) if error.kind == Kind::Denied => {
            tracing::warn!("images are not looked at: {error}");
            Vec::new()
        }
        images => images?,
    };
    for image in images {
        let (id, tags) = (image.id.clone(), image.tags.clone());
        found.push(Tagged { thing: Thing::Image, id, tags, image: Some(image) });
    }
    for volume in describe::volumes(aws, &[], &filters, Patience::USUAL).await? {
        if volume.state != "deleting" && volume.state != "deleted" {
            found.push(Tagged { thing: Thing::Volume, id: volume.id, tags: volume.tags, image: None });
        }
    }
    for snapshot in snapshots::find(aws, &[], &filters, Patience::USUAL).await? {
        found.push(Tagged { thing: Thing::Snapshot, id: snapshot.id, tags: snapshot.tags, image: None });
    }
    Ok(found)
}

async fn remove(aws: &Clients, found: &Tagged) -> Result<(), AwsError> {
    match (found.thing, &found.image) {
        (Thing::Volume, _) => attach::remove(aws, &found.id).await,
        (Thing::Snapshot, _) => snapshots::delete(aws, &found.id).await,
        (Thing::Image, Some(image)) => images::remove(aws, image).await,
        (Thing::Image, None) => Ok(()),
    }
}

fn is_temporary(tags: &Tags) -> bool {
    tags.get(tags::PURPOSE).is_some_and(|purpose| purpose == tags::TEMPORARY)
}

/// Takes away everything temporary that this run made, as its tags say. `known` is what the run remembers: looked up by id, since lists may be behind.
pub async fn remove_run(
    aws: &Clients,
    run: &str,
    known: &BTreeMap<String, Thing>,
) -> Result<Vec<String>, AwsError> {
    let mut gone = BTreeSet::new();
    for found in tagged(aws, Some(run)).await? {
        if is_temporary(&found.tags) {
            remove(aws, &found).await?;
            gone.insert(found.id);
        }
    }
    for (id, thing) in known {
        if !gone.contains(id)
            && let Some(found) = look_up(aws, *thing, id, Patience::FRESH).await?
        {
            if is_temporary(&found.tags) {
                remove(aws, &found).await?;
            }
            gone.insert(id.clone());
        }
    }
    Ok(gone.into_iter().collect())
}

/// An object by its id; `None` if there is none.
async fn look_up(
    aws: &Clients,
    thing: Thing,
    id: &str,
    patience: Patience,
) -> Result<Option<Tagged>, AwsError> {
    let ids = [id.to_owned()];
    let found = match thing {
        Thing::Volume => describe::volumes(aws, &ids, &[], patience)
            .await
            .map(|mut list| list.pop().map(|v| Tagged { thing, id: v.id, tags: v.tags, image: None })),
        Thing::Snapshot => snapshots::find(aws, &ids, &[], patience)
            .await
            .map(|mut list| list.pop().map(|s| Tagged { thing, id: s.id, tags: s.tags, image: None })),
        Thing::Image => images::find(aws, &ids, &[]).await.map(|mut list| {
            list.pop().map(|i| Tagged { thing, id: i.id.clone(), tags: i.tags.clone(), image: Some(i) })
        }),
    };
    match found {
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        other => other,
    }
}

/// As [`sweep`], of dead runs of this machine only; nothing is asked if there are none.
pub async fn sweep_dead(aws: &Clients, state_dir: &Path) -> Result<Vec<Found>> {
    if Runs::read(state_dir).map_err(Error::Engine)?.dead.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sweep(aws, state_dir, false, false).await?.removed)
}

/// Finds and takes away leftovers. `others`: also of runs of other machines that are not expired.
pub async fn sweep(aws: &Clients, state_dir: &Path, dry_run: bool, others: bool) -> Result<Swept> {
    let runs = Runs::read(state_dir).map_err(Error::Engine)?;
    let mut swept = Swept::default();
    let mut going = Vec::new();
    let mut seen = BTreeSet::new();
    let mut anchors: BTreeMap<(String, String), Vec<(String, String)>> = BTreeMap::new();
    for found in tagged(aws, None).await? {
        seen.insert(found.id.clone());
        if !is_temporary(&found.tags) {
            note_anchor(&found, &mut anchors);
            continue;
        }
        let run = found.tags.get(tags::RUN).cloned().unwrap_or_default();
        let expires = found.tags.get(tags::EXPIRES).cloned().unwrap_or_default();
        let (goes, why) = if runs.alive.contains(&run) {
            (false, format!("its run {run} is under way"))
        } else if runs.dead.iter().any(|dead| dead.run == run) {
            (true, format!("its run {run} died"))
        } else if expires.parse::<jiff::Timestamp>().is_ok_and(|at| at < jiff::Timestamp::now()) {
            (true, format!("it expired at {expires}"))
        } else if others {
            (true, format!("its run {run} is not known here"))
        } else {
            (false, format!("its run {run} is of another machine, until {expires}"))
        };
        let report = Found { thing: found.thing, id: found.id.clone(), why };
        if goes { going.push((found, report)) } else { swept.kept.push(report) }
    }
    // Known to a dead run, and not to be seen by tags: too new, or gone.
    let now_s = jiff::Timestamp::now().as_second();
    let grace_s = GRACE.as_secs() as i64;
    let mut waiting = BTreeSet::new();
    for dead in &runs.dead {
        for (id, (thing, at_s)) in dead.left.iter().filter(|(id, _)| !seen.contains(*id)) {
            match look_up(aws, *thing, id, Patience::USUAL).await? {
                Some(found) if is_temporary(&found.tags) => {
                    let why = format!("its run {} died", dead.run);
                    going.push((found, Found { thing: *thing, id: id.clone(), why }));
                }
                Some(_) => {}
                None if now_s - at_s < grace_s => {
                    let why = format!("made {} s ago and not to be seen yet: sweep again", now_s - at_s);
                    swept.kept.push(Found { thing: *thing, id: id.clone(), why });
                    waiting.insert(dead.run.clone());
                }
                None => {}
            }
        }
        if dead.unanswered_s.is_some_and(|at_s| now_s - at_s < grace_s) {
            waiting.insert(dead.run.clone());
        }
    }
    for (_, mut list) in anchors {
        list.sort();
        list.pop();
        for (_, id) in list {
            let why = "an anchor that a newer one replaces".to_owned();
            let thing = Thing::Snapshot;
            let found = Tagged { thing, id: id.clone(), tags: Tags::new(), image: None };
            going.push((found, Found { thing, id, why }));
        }
    }
    for (found, report) in going {
        let outcome = if dry_run { Ok(()) } else { remove(aws, &found).await };
        match outcome {
            Ok(()) => swept.removed.push(report),
            Err(error) if error.kind == Kind::Cancelled => return Err(error.into()),
            Err(error) => {
                waiting.extend(found.tags.get(tags::RUN).cloned());
                swept.failed.push(Found { why: error.to_string(), ..report });
            }
        }
    }
    if !dry_run {
        let done = runs.dead.into_iter().filter(|dead| !waiting.contains(&dead.run));
        done.for_each(super::journal::Dead::end);
    }
    Ok(swept)
}

/// Anchors by volume and repository, with the ids of their points, which begin with the time.
fn note_anchor(found: &Tagged, anchors: &mut BTreeMap<(String, String), Vec<(String, String)>>) {
    if found.thing == Thing::Snapshot
        && found.tags.get(tags::PURPOSE).is_some_and(|p| p == tags::ANCHOR)
        && let (Some(volume), Some(repository), Some(point)) =
            (found.tags.get(tags::VOLUME), found.tags.get(tags::REPOSITORY), found.tags.get(tags::POINT))
    {
        let key = (volume.clone(), repository.clone());
        anchors.entry(key).or_default().push((point.clone(), found.id.clone()));
    }
}
