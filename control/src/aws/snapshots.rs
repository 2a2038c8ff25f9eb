//! Snapshots: taken of all volumes of an instance at one moment, waited for, found by their tags, deleted.

use std::time::Duration;

use aws_sdk_ec2::types::{Filter, InstanceSpecification, ResourceType};

use super::clients::Clients;
use super::describe::Machine;
use super::error::{AwsError, Kind};
use super::retry::{Patience, Poll};
use super::tags::{self, Tags};

const PAGE: i32 = 200;
/// First snapshots of large volumes take hours.
const COMPLETE_MAX: Duration = Duration::from_secs(48 * 3600);

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `snap-…`.
    pub id: String,
    /// The volume it is of.
    pub volume: String,
    /// `pending`, `completed`, `error`, …
    pub state: String,
    /// Size of the volume.
    pub size_gib: u64,
    /// All tags.
    pub tags: Tags,
    /// When it was taken, RFC 3339.
    pub started: String,
    why: Option<String>,
}

/// Takes snapshots of the machine's volumes but those `excluded`, all of the same moment. AWS copies no tags of volumes. Returns their ids.
///
/// There is no client token for this: an answer that is lost may have left a set behind. It has the run's tags, and so it goes with the run's end.
pub async fn take(
    aws: &Clients,
    machine: &Machine,
    excluded: &[String],
    description: &str,
    tags: &Tags,
) -> Result<Vec<String>, AwsError> {
    let is_out = |volume: &String| excluded.contains(volume);
    let root_out = machine.attached.iter().any(|a| a.root && is_out(&a.volume));
    let data_out: Vec<String> =
        machine.attached.iter().filter(|a| !a.root && is_out(&a.volume)).map(|a| a.volume.clone()).collect();
    let mut of = InstanceSpecification::builder().instance_id(&machine.id);
    if root_out {
        of = of.exclude_boot_volume(true);
    }
    if !data_out.is_empty() {
        of = of.set_exclude_data_volume_ids(Some(data_out));
    }
    let of = of.build();
    let answer = aws
        .retry
        .call("CreateSnapshots", &machine.id, Patience::USUAL, || {
            aws.ec2
                .create_snapshots()
                .instance_specification(of.clone())
                .description(description)
                .tag_specifications(tags::specification(ResourceType::Snapshot, tags))
                .send()
        })
        .await?;
    Ok(answer.snapshots().iter().filter_map(|s| s.snapshot_id().map(str::to_owned)).collect())
}

/// Takes a snapshot of one volume. There is no client token for this: whoever repeats it looks for what the first call made, by its tags.
pub async fn take_one(
    aws: &Clients,
    volume: &str,
    description: &str,
    tags: &Tags,
) -> Result<String, AwsError> {
    let answer = aws
        .retry
        .call("CreateSnapshot", volume, Patience::FRESH, || {
            aws.ec2
                .create_snapshot()
                .volume_id(volume)
                .description(description)
                .tag_specifications(tags::specification(ResourceType::Snapshot, tags))
                .send()
        })
        .await?;
    Ok(answer.snapshot_id().unwrap_or_default().to_owned())
}

/// Snapshots of this account by ids or by filters.
pub async fn find(
    aws: &Clients,
    ids: &[String],
    filters: &[Filter],
    patience: Patience,
) -> Result<Vec<Snapshot>, AwsError> {
    let object = if ids.is_empty() { format!("in {}", aws.region) } else { ids.join(" ") };
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let page = aws
            .retry
            .call("DescribeSnapshots", &object, patience, || {
                let call = aws.ec2.describe_snapshots().owner_ids("self").set_next_token(token.clone());
                match ids {
                    [] => call.max_results(PAGE).set_filters(Some(filters.to_vec())),
                    ids => call.set_snapshot_ids(Some(ids.to_vec())),
                }
                .send()
            })
            .await?;
        for snapshot in page.snapshots() {
            found.push(Snapshot {
                id: snapshot.snapshot_id().unwrap_or_default().to_owned(),
                volume: snapshot.volume_id().unwrap_or_default().to_owned(),
                state: snapshot.state().map(|s| s.as_str()).unwrap_or_default().to_owned(),
                size_gib: snapshot.volume_size().and_then(|s| u64::try_from(s).ok()).unwrap_or_default(),
                tags: tags::of(snapshot.tags()),
                started: snapshot.start_time().map(ToString::to_string).unwrap_or_default(),
                why: snapshot.state_message().map(str::to_owned),
            });
        }
        token = page.next_token().filter(|t| !t.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// Complete snapshots of these volumes that match the filters.
pub async fn completed_of(
    aws: &Clients,
    volumes: &[String],
    filters: &[Filter],
) -> Result<Vec<Snapshot>, AwsError> {
    let mut all = vec![
        Filter::builder().name("volume-id").set_values(Some(volumes.to_vec())).build(),
        Filter::builder().name("status").values("completed").build(),
    ];
    all.extend_from_slice(filters);
    find(aws, &[], &all, Patience::USUAL).await
}

/// Waits until all of them are complete; in the order of `ids`.
pub async fn wait(aws: &Clients, ids: &[String]) -> Result<Vec<Snapshot>, AwsError> {
    let mut poll = Poll::up_to(COMPLETE_MAX);
    loop {
        let found = find(aws, ids, &[], Patience::FRESH).await?;
        if let Some(failed) = found.iter().find(|s| s.state == "error") {
            let why = failed.why.as_deref().unwrap_or("no reason is given");
            let message = format!("the snapshot of {} ended in error: {why}", failed.volume);
            return Err(AwsError::new("CreateSnapshots", &failed.id, Kind::State, message));
        }
        let ordered: Vec<Snapshot> =
            ids.iter().filter_map(|id| found.iter().find(|s| s.id == *id).cloned()).collect();
        if ordered.len() == ids.len() && ordered.iter().all(|s| s.state == "completed") {
            return Ok(ordered);
        }
        poll.again(&aws.retry, "DescribeSnapshots", &ids.join(" "), "pending").await?;
    }
}

/// Deletes one; it is no error if it is gone already.
pub async fn delete(aws: &Clients, id: &str) -> Result<(), AwsError> {
    let outcome = aws
        .retry
        .call("DeleteSnapshot", id, Patience::USUAL, || aws.ec2.delete_snapshot().snapshot_id(id).send())
        .await;
    gone_is_well(outcome.map(drop))
}

/// For calls that take something away.
pub fn gone_is_well(outcome: Result<(), AwsError>) -> Result<(), AwsError> {
    match outcome {
        Err(error) if error.kind == Kind::NotFound => Ok(()),
        other => other,
    }
}

/// Sets tags of snapshots, volumes or images, all by one call, and takes `without` away.
pub async fn retag(aws: &Clients, ids: &[&str], set: &Tags, without: &[&str]) -> Result<(), AwsError> {
    let object = ids.join(" ");
    let resources: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    aws.retry
        .call("CreateTags", &object, Patience::FRESH, || {
            aws.ec2
                .create_tags()
                .set_resources(Some(resources.clone()))
                .set_tags(Some(tags::list(set)))
                .send()
        })
        .await?;
    untag(aws, ids, without).await
}

/// Takes tags away, all by one call.
pub async fn untag(aws: &Clients, ids: &[&str], without: &[&str]) -> Result<(), AwsError> {
    if without.is_empty() {
        return Ok(());
    }
    let object = ids.join(" ");
    let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    let keys: Vec<_> =
        without.iter().map(|key| aws_sdk_ec2::types::Tag::builder().key(*key).build()).collect();
    aws.retry
        .call("DeleteTags", &object, Patience::FRESH, || {
            aws.ec2.delete_tags().set_resources(Some(ids.clone())).set_tags(Some(keys.clone())).send()
        })
        .await
        .map(drop)
}
