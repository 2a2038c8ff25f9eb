//! Snapshots that stay in the account by the user's wish, without any repository: sets of one moment, taken, found again by their tags, and removed by policy.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use penstock_engine::id::PointId;
use penstock_engine::retention::{self, Policy};
use serde::Serialize;

use super::Result;
use super::chosen::{Exclude, Excluded};
use super::look::{Look, Mode};
use super::shots;
use crate::aws::clients::Clients;
use crate::aws::describe::Machine;
use crate::aws::images::{self, Image};
use crate::aws::snapshots;
use crate::aws::tags::{self, Tags};
use crate::ec2run::ledger::Ledger;

/// What belongs together.
#[derive(Clone, Debug, Serialize)]
pub struct Set {
    /// 16 hex digits.
    pub set: String,
    /// When it was begun, RFC 3339.
    pub time: String,
    /// Its image, in mode ami.
    pub image: Option<String>,
    /// Volume → snapshot.
    pub snapshots: BTreeMap<String, String>,
    /// Tags of any of them.
    #[serde(skip)]
    tags: Tags,
}

/// A set, and what becomes of it.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// Which.
    #[serde(flatten)]
    pub set: Set,
    /// `keep` or `remove`.
    pub action: &'static str,
    /// Why it stays.
    pub reasons: Vec<String>,
}

/// A set that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// It.
    pub set: Set,
    /// How.
    pub mode: Mode,
    /// Volumes left out.
    pub excluded: Vec<Excluded>,
    /// For the user.
    pub notes: Vec<String>,
}

/// Takes a set and waits until it is complete. What was made is taken away again if that fails.
pub async fn take(
    aws: &Clients,
    machine: Machine,
    exclude: &Exclude,
    mode: Option<Mode>,
    state_dir: &Path,
) -> Result<Taken> {
    let look = Look::at(aws, machine, exclude, mode).await?;
    let ledger = Ledger::begin(aws, &look.machine.id, state_dir)?;
    match keep(aws, &look, &ledger).await {
        Ok(set) => {
            ledger.remove_made(aws).await?;
            ledger.end();
            Ok(Taken { set, mode: look.mode, excluded: look.excluded, notes: look.notes })
        }
        Err(error) => Err(ledger.undo_after(aws, error).await),
    }
}

async fn keep(aws: &Clients, look: &Look, ledger: &Ledger) -> Result<Set> {
    let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let set = ledger.tags.run.clone();
    let shots = shots::take(aws, ledger, look, "snapshot").await?;
    let common = Tags::from([
        (tags::PURPOSE.to_owned(), tags::KEPT.to_owned()),
        (tags::SET.to_owned(), set.clone()),
        (tags::TAKEN.to_owned(), time.clone()),
        (tags::INSTANCE.to_owned(), look.machine.id.clone()),
    ]);
    let who = if look.machine.name().is_empty() { &look.machine.id } else { look.machine.name() };
    let mut members: Vec<(String, Tags)> = Vec::new();
    let mut of_volume = BTreeMap::new();
    for chosen in &look.chosen {
        let volume = &chosen.facts.id;
        let snapshot = shots.of(look, volume)?;
        let name = format!("{who} {}", chosen.attached.device);
        let own = Tags::from([(tags::VOLUME.into(), volume.clone()), ("Name".into(), name)]);
        members.push((snapshot.id.clone(), own));
        of_volume.insert(volume.clone(), snapshot.id.clone());
    }
    if let Some(image) = &shots.image {
        members.push((image.id.clone(), Tags::from([("Name".into(), who.to_owned())])));
    }
    for (id, own) in &members {
        snapshots::retag(aws, &[id], own, &[]).await?;
    }
    // All of them stay, or none: by one call.
    let ids: Vec<&str> = members.iter().map(|(id, _)| id.as_str()).collect();
    snapshots::retag(aws, &ids, &common, &[tags::EXPIRES]).await?;
    ids.into_iter().try_for_each(|id| ledger.settled(id))?;
    Ok(Set { set, time, image: shots.image.map(|i| i.id), snapshots: of_volume, tags: common })
}

/// Sets of an instance, oldest first, with what the policy makes of each.
pub async fn judge(
    aws: &Clients,
    instance: &str,
    policy: &Policy,
    zone: &TimeZone,
) -> Result<Vec<(Judged, Vec<Image>)>> {
    let found = find(aws, instance).await?;
    let mut ids = BTreeMap::new();
    let mut candidates = Vec::new();
    for (set, _) in &found {
        let time: Option<Timestamp> = set.time.parse().ok();
        let ms = time.map_or(0, |t| u64::try_from(t.as_millisecond()).unwrap_or(0));
        let id = PointId::at(ms)?;
        ids.insert(set.set.clone(), id);
        candidates.push(retention::Point { id, name: instance.to_owned(), time, tags: set.tags.clone() });
    }
    let reasons = retention::decide(policy, &candidates, Timestamp::now(), zone)?;
    let judged = |(set, images): (Set, Vec<Image>)| {
        let reasons = ids.get(&set.set).and_then(|id| reasons.get(id));
        // What the policy did not speak of stays.
        let goes = reasons.is_some_and(Vec::is_empty);
        let reasons = reasons.into_iter().flatten().map(ToString::to_string).collect();
        (Judged { set, action: if goes { "remove" } else { "keep" }, reasons }, images)
    };
    Ok(found.into_iter().map(judged).collect())
}

async fn find(aws: &Clients, instance: &str) -> Result<Vec<(Set, Vec<Image>)>> {
    let filters = [tags::with_key(tags::SET), tags::filter(tags::INSTANCE, instance)];
    let mut sets: BTreeMap<String, (Set, Vec<Image>)> = BTreeMap::new();
    let mut note = |with: &Tags| -> Option<String> {
        let name = with.get(tags::SET)?;
        let (set, _) = sets.entry(name.clone()).or_insert_with(|| {
            let time = with.get(tags::TAKEN).cloned().unwrap_or_default();
            let (image, snapshots) = (None, BTreeMap::new());
            (Set { set: name.clone(), time, image, snapshots, tags: Tags::new() }, Vec::new())
        });
        set.tags.extend(with.clone());
        Some(name.clone())
    };
    let mut members: Vec<(String, String, String)> = Vec::new();
    for snapshot in snapshots::find(aws, &[], &filters, crate::aws::retry::Patience::USUAL).await? {
        if let Some(set) = note(&snapshot.tags) {
            let volume = snapshot.tags.get(tags::VOLUME).unwrap_or(&snapshot.volume).clone();
            members.push((set, volume, snapshot.id));
        }
    }
    let mut of_sets: Vec<(String, Image)> = Vec::new();
    for image in images::find(aws, &[], &filters).await? {
        if let Some(set) = note(&image.tags) {
            of_sets.push((set, image));
        }
    }
    for (set, volume, id) in members {
        if let Some((set, _)) = sets.get_mut(&set) {
            set.snapshots.insert(volume, id);
        }
    }
    for (set, image) in of_sets {
        if let Some((set, images)) = sets.get_mut(&set) {
            set.image = Some(image.id.clone());
            images.push(image);
        }
    }
    let mut sets: Vec<(Set, Vec<Image>)> = sets.into_values().collect();
    sets.sort_by(|(a, _), (b, _)| (&a.time, &a.set).cmp(&(&b.time, &b.set)));
    Ok(sets)
}

/// Removes a set: its images first, since their snapshots cannot go before them.
pub async fn remove(aws: &Clients, set: &Set, images: &[Image]) -> Result<()> {
    let mut gone = BTreeSet::new();
    for image in images {
        images::remove(aws, image).await?;
        gone.extend(image.snapshots.iter().map(|(_, id)| id.clone()));
    }
    for snapshot in set.snapshots.values().filter(|id| !gone.contains(*id)) {
        snapshots::delete(aws, snapshot).await?;
    }
    Ok(())
}
