//! Leftovers: what runs made and did not take away, because they died.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aws_sdk_ec2::types::Filter;
use serde::Serialize;

use super::journal::{Dead, Loan, Runs, Thing};
use super::{Error, Result};
use crate::aws::clients::Clients;
use crate::aws::error::{AwsError, Kind};
use crate::aws::images::{self, Image};
use crate::aws::retry::{GRACE, Patience};
use crate::aws::tags::{self, Tags};
use crate::aws::{attach, describe, launch, network, snapshots};

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
    /// Volumes of the user's, brought back to where they belong.
    pub returned: Vec<Found>,
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
    // Instances first, which hold volumes and groups.
    for (id, tags) in launch::find(aws, &[], &filters, Patience::USUAL).await? {
        found.push(Tagged { thing: Thing::Instance, id, tags, image: None });
    }
    // Images before their snapshots, which cannot go before them.
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
    let groups = match network::groups(aws, &filters).await {
        // As with images.
        Err(error) if error.kind == Kind::Denied => Vec::new(),
        groups => groups?,
    };
    for (id, tags) in groups {
        found.push(Tagged { thing: Thing::Group, id, tags, image: None });
    }
    Ok(found)
}

async fn remove(aws: &Clients, found: &Tagged) -> Result<(), AwsError> {
    match (found.thing, &found.image) {
        (Thing::Volume, _) => attach::remove(aws, &found.id).await,
        (Thing::Snapshot, _) => snapshots::delete(aws, &found.id).await,
        (Thing::Image, Some(image)) => remove_image(aws, image).await,
        (Thing::Image, None) => Ok(()),
        (Thing::Instance, _) => launch::terminate(aws, &found.id).await,
        (Thing::Group, _) => network::remove_group(aws, &found.id).await,
    }
}

/// An image, and of its snapshots those that its run made for it: an image may have been made of an anchor, which stays.
async fn remove_image(aws: &Clients, image: &Image) -> Result<(), AwsError> {
    images::deregister(aws, &image.id).await?;
    for (_, id) in &image.snapshots {
        let found = look_up(aws, Thing::Snapshot, id, Patience::USUAL).await?;
        let of_run = |tags: &Tags| is_temporary(tags) && tags.get(tags::RUN) == image.tags.get(tags::RUN);
        if found.is_some_and(|snapshot| of_run(&snapshot.tags)) {
            snapshots::delete(aws, id).await?;
        }
    }
    Ok(())
}

fn is_temporary(tags: &Tags) -> bool {
    tags.get(tags::PURPOSE).is_some_and(|purpose| purpose == tags::TEMPORARY)
}

/// What a run made: what it is, and when, in seconds since 1970.
pub type Known = BTreeMap<String, (Thing, i64)>;

/// Takes away everything temporary that this run made, as its tags say. `known` is what the run remembers: looked up by id, since lists may be behind; for
/// the same reason `stay` names what does not go whatever a list says. What may not be taken away does not hold up the rest: returned are what is gone, and the first
/// error.
pub async fn remove_run(
    aws: &Clients,
    run: &str,
    known: &Known,
    stay: &BTreeSet<String>,
) -> (Vec<String>, Result<(), AwsError>) {
    let mut gone = Vec::new();
    let outcome = remove_all(aws, run, known, stay, &mut gone).await;
    (gone, outcome)
}

async fn remove_all(
    aws: &Clients,
    run: &str,
    known: &Known,
    stay: &BTreeSet<String>,
    gone: &mut Vec<String>,
) -> Result<(), AwsError> {
    let mut found = tagged(aws, Some(run)).await?;
    let now_s = jiff::Timestamp::now().as_second();
    for (id, (thing, at_s)) in known {
        if !found.iter().any(|f| f.id == *id) {
            // What was made long ago, and is not to be seen, is not there.
            let is_new = now_s - at_s < GRACE.as_secs() as i64;
            let patience = if is_new { Patience::FRESH } else { Patience::USUAL };
            match look_up(aws, *thing, id, patience).await? {
                Some(more) => found.push(more),
                None => gone.push(id.clone()),
            }
        }
    }
    found.retain(|f| !stay.contains(&f.id));
    // Instances end before what they hold, images before their snapshots, groups last.
    found.sort_by_key(|f| order_of(f.thing));
    let mut first = Ok(());
    let mut is_held = false;
    for found in found {
        // What an instance holds that stays, stays with it.
        if is_held && matches!(found.thing, Thing::Volume | Thing::Group) {
            continue;
        }
        let removed = if is_temporary(&found.tags) { remove(aws, &found).await } else { Ok(()) };
        match removed {
            Ok(()) => gone.push(found.id),
            Err(error) if matches!(error.kind, Kind::Denied | Kind::State | Kind::Refused) => {
                is_held |= found.thing == Thing::Instance;
                first = first.and(Err(error));
            }
            Err(error) => return first.and(Err(error)),
        }
    }
    first
}

/// What goes first.
fn order_of(thing: Thing) -> u8 {
    match thing {
        Thing::Instance => 0,
        Thing::Image => 1,
        Thing::Volume => 2,
        Thing::Snapshot => 3,
        Thing::Group => 4,
    }
}

/// Brings a volume of the user's back to where it belongs; it is well if it is there, or gone.
pub async fn bring_back(aws: &Clients, loan: &Loan) -> Result<(), AwsError> {
    let ids = [loan.volume.clone()];
    let found = match describe::volumes(aws, &ids, &[], Patience::USUAL).await {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        found => found?,
    };
    let at = found.iter().flat_map(|v| &v.attachments).find(|(_, _, state)| state != "detached");
    match (&loan.home, at) {
        (None, None) => Ok(()),
        (Some((instance, device)), Some((i, d, _))) if i == instance && d == device => Ok(()),
        (home, _) => {
            attach::detach(aws, &loan.volume).await?;
            match home {
                Some((instance, device)) => attach::attach_as(aws, instance, &loan.volume, device).await,
                None => Ok(()),
            }
        }
    }
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
        Thing::Image => images::find_with(aws, &ids, &[], patience).await.map(|mut list| {
            list.pop().map(|i| Tagged { thing, id: i.id.clone(), tags: i.tags.clone(), image: Some(i) })
        }),
        Thing::Instance => launch::find(aws, &ids, &[], patience)
            .await
            .map(|mut list| list.pop().map(|(id, tags)| Tagged { thing, id, tags, image: None })),
        Thing::Group => {
            let by_id = Filter::builder().name("group-id").values(id).build();
            network::groups(aws, &[by_id])
                .await
                .map(|mut list| list.pop().map(|(id, tags)| Tagged { thing, id, tags, image: None }))
        }
    };
    match found {
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        other => other,
    }
}

/// As [`sweep`], of dead runs of this machine only; nothing is asked if there are none. Restores that can be continued are left alone.
pub async fn sweep_dead(aws: &Clients, state_dir: &Path) -> Result<Vec<Found>> {
    let runs = Runs::read(state_dir).map_err(Error::Engine)?;
    if !runs.dead.iter().any(|dead| dead.planned.is_none() && dead.region == aws.region) {
        return Ok(Vec::new());
    }
    Ok(sweep_runs(aws, runs, Sweeping { spare_restores: true, ..Sweeping::default() }).await?.removed)
}

/// How leftovers are taken away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sweeping {
    /// Nothing is taken away.
    pub dry_run: bool,
    /// Also what runs of other machines made that is not expired.
    pub others: bool,
    /// Restores that died and can be continued are left alone.
    pub spare_restores: bool,
}

/// Finds and takes away leftovers.
pub async fn sweep(aws: &Clients, state_dir: &Path, how: Sweeping) -> Result<Swept> {
    sweep_runs(aws, Runs::read(state_dir).map_err(Error::Engine)?, how).await
}

async fn sweep_runs(aws: &Clients, mut runs: Runs, how: Sweeping) -> Result<Swept> {
    let Sweeping { dry_run, others, spare_restores } = how;
    // What another region has is not to be seen here.
    let (here, _) = std::mem::take(&mut runs.dead).into_iter().partition(|dead| dead.region == aws.region);
    runs.dead = here;
    if spare_restores {
        let (spared, dead) = std::mem::take(&mut runs.dead).into_iter().partition(|d| d.planned.is_some());
        runs.dead = dead;
        let spared: Vec<Dead> = spared;
        runs.alive.extend(spared.into_iter().map(|dead| dead.run));
    }
    let mut swept = Swept::default();
    for loan in runs.dead.iter().flat_map(|dead| &dead.loans) {
        let why = "its restore died: it is brought back to where it was".to_owned();
        let found = Found { thing: Thing::Volume, id: loan.volume.clone(), why };
        match if dry_run { Ok(()) } else { bring_back(aws, loan).await } {
            Ok(()) => swept.returned.push(found),
            Err(error) => swept.failed.push(Found { why: error.to_string(), ..found }),
        }
    }
    let mut going = Vec::new();
    let mut seen = BTreeSet::new();
    let mut anchors: BTreeMap<(String, String), Vec<(String, String)>> = BTreeMap::new();
    for found in tagged(aws, None).await? {
        seen.insert(found.id.clone());
        if !is_temporary(&found.tags) {
            note_anchor(&found, &mut anchors);
            continue;
        }
        if runs.dead.iter().any(|dead| dead.settled.contains(&found.id)) {
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
    going.sort_by_key(|(found, _)| order_of(found.thing));
    let mut held = BTreeSet::new();
    for (found, report) in going {
        let run = found.tags.get(tags::RUN).cloned().unwrap_or_default();
        if held.contains(&run) && matches!(found.thing, Thing::Volume | Thing::Group) {
            let why = "an instance of its run may hold it, and could not be ended".to_owned();
            swept.failed.push(Found { why, ..report });
            continue;
        }
        let outcome = if dry_run { Ok(()) } else { remove(aws, &found).await };
        match outcome {
            Ok(()) => swept.removed.push(report),
            Err(error) if error.kind == Kind::Cancelled => return Err(error.into()),
            Err(error) => {
                if found.thing == Thing::Instance {
                    held.insert(run.clone());
                }
                waiting.insert(run);
                swept.failed.push(Found { why: error.to_string(), ..report });
            }
        }
    }
    if !dry_run {
        let unreturned = |dead: &Dead| {
            dead.loans.iter().any(|loan| swept.failed.iter().any(|failed| failed.id == loan.volume))
        };
        let done = runs.dead.into_iter().filter(|dead| !waiting.contains(&dead.run) && !unreturned(dead));
        done.for_each(Dead::end);
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
