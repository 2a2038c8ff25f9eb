//! Snapshots: taken, copied, described, deleted.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Call, Target};
use crate::api::{ApiError, ApiResult, Filters, page};
use crate::blocks::VolumeFile;
use crate::state::{Origin, Region, Snapshot, Tags, Volume};

const NEVER_MS: i64 = i64::MAX / 4;

/// A snapshot of a volume that is taken after the region is let go.
#[derive(Debug)]
pub struct Taken {
    /// Its id.
    pub id: String,
    file: Arc<VolumeFile>,
}

/// Puts a snapshot of a volume into the account, without its blocks.
pub fn announce(
    call: &Call<'_>,
    region: &mut Region,
    volume: &Volume,
    description: &str,
    tags: Tags,
) -> Taken {
    let id = region.ids.id("snap");
    let snapshot = Snapshot {
        id: id.clone(),
        volume_id: volume.id.clone(),
        size_gib: volume.size_gib,
        description: description.to_owned(),
        tags,
        encrypted: volume.encrypted,
        kms_key: volume.kms_key.clone(),
        owner: region.account.clone(),
        origin: Origin::Volume,
        parent: None,
        shared_with: Vec::new(),
        lineage: volume.lineage,
        start_ms: call.now,
        complete_ms: NEVER_MS,
        visible_ms: call.visible_ms(),
        failed: None,
        will_fail: call.ends_in_error.then(|| "An error occurred while the snapshot was taken".to_owned()),
        map: None,
        writing: None,
    };
    region.snapshots.insert(id.clone(), snapshot);
    if let Some(volume) = region.volumes.get_mut(&volume.id) {
        volume.last_snapshot_ms = Some(call.now);
    }
    Taken { id, file: volume.file.clone() }
}

/// Reads the blocks, of all volumes at one moment; from now on the snapshots are on their way to `completed`.
pub fn take(call: &Call<'_>, taken: &[Taken]) -> ApiResult<()> {
    let files: Vec<Arc<VolumeFile>> = taken.iter().map(|t| t.file.clone()).collect();
    let maps = VolumeFile::snapshot_together(&files);
    let done_ms = call.core.clock.now_ms() + call.settings.timing.snapshot_ms;
    call.with(|region| match maps {
        Ok(maps) => {
            for (taken, map) in taken.iter().zip(maps) {
                if let Some(snapshot) = region.snapshots.get_mut(&taken.id) {
                    snapshot.map = Some(Arc::new(map));
                    snapshot.complete_ms = done_ms;
                }
            }
            Ok(())
        }
        Err(error) => {
            taken.iter().for_each(|taken| drop(region.snapshots.remove(&taken.id)));
            Err(error.into())
        }
    })
}

/// Whether a snapshot of this volume may be begun now.
pub fn check_rate(call: &Call<'_>, region: &Region, volume: &Volume) -> ApiResult<()> {
    let limits = &call.settings.limits;
    if volume.state(call.now) == "creating" {
        let message = format!("Volume '{}' is in the 'creating' state", volume.id);
        return Err(ApiError::client("IncorrectState", message));
    }
    if volume.last_snapshot_ms.is_some_and(|last| call.now - last < limits.snapshot_interval_ms) {
        let message = "The maximum per volume CreateSnapshot request rate has been exceeded. Use an increasing or variable sleep interval between requests.";
        return Err(ApiError::client("SnapshotCreationPerVolumeRateExceeded", message));
    }
    let pending = || region.snapshots.values().filter(|s| s.state(call.now) == "pending");
    let of_volume = pending().filter(|s| s.volume_id == volume.id).count();
    if limits.pending_per_volume > 0 && of_volume >= limits.pending_per_volume {
        let message =
            format!("Maximum allowed in-progress snapshots for a single volume exceeded: {}", volume.id);
        return Err(ApiError::client("ConcurrentSnapshotLimitExceeded", message));
    }
    if limits.pending_snapshots > 0 && pending().count() >= limits.pending_snapshots {
        let message = "You have exceeded the maximum number of pending snapshots.";
        return Err(ApiError::client("PendingSnapshotLimitExceeded", message));
    }
    Ok(())
}

/// As the answer of the call that made it shows it.
fn fresh(snapshot: &Snapshot, now: i64, set: bool) -> Value {
    let mut answer = snapshot.xml(now, set);
    answer[if set { "state" } else { "status" }] = json!("pending");
    answer["progress"] = json!(if set { "" } else { "0%" });
    answer["completionTime"] = Value::Null;
    answer["fullSnapshotSizeInBytes"] = Value::Null;
    answer["statusMessage"] = Value::Null;
    answer
}

pub(super) fn create(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("VolumeId")?;
    let description = call.params.text("Description").unwrap_or_default();
    let tags = call.tags_for("snapshot")?;
    let taken = call.with(|region| {
        let volume = region.volume(id, call.now)?.clone();
        call.allow(&[Target::of("volume", id, &volume.tags), Target::new("snapshot")])?;
        check_rate(call, region, &volume)?;
        Ok(announce(call, region, &volume, &description, tags))
    })?;
    take(call, std::slice::from_ref(&taken))?;
    call.with(|region| {
        let snapshot = region.snapshots.get(&taken.id);
        let lost = || ApiError::new(500, "InternalError", "the snapshot was deleted while it was taken");
        Ok(fresh(snapshot.ok_or_else(lost)?, call.now, false))
    })
}

pub(super) fn create_set(call: &Call<'_>) -> ApiResult<Value> {
    let missing = || ApiError::missing("InstanceSpecification");
    let specification = call.params.below("InstanceSpecification").ok_or_else(missing)?;
    let instance_id = specification.required("InstanceId")?;
    let without_root = specification.flag("ExcludeBootVolume")?.unwrap_or(false);
    let excluded = specification.list("ExcludeDataVolumeId");
    let description = call.params.text("Description").unwrap_or_default();
    let copy_tags = call.params.get("CopyTagsFromSource") == Some("volume");
    let tags = call.tags_for("snapshot")?;
    let taken = call.with(|region| {
        let instance = region.instance(instance_id, call.now)?.clone();
        let attached: Vec<Volume> = region.attached(instance_id).into_iter().cloned().collect();
        let is_root = |v: &Volume| v.attachment.as_ref().is_some_and(|a| a.device == instance.root_device);
        for id in &excluded {
            let Some(volume) = attached.iter().find(|v| v.id == *id) else {
                let message = format!("The volume '{id}' is not attached to the instance '{instance_id}'.");
                return Err(ApiError::value(message));
            };
            if is_root(volume) {
                let message = format!("The volume '{id}' is the root volume: use ExcludeBootVolume.");
                return Err(ApiError::value(message));
            }
        }
        if excluded.len() > 40 {
            return Err(ApiError::value("At most 40 data volumes can be excluded."));
        }
        let chosen: Vec<&Volume> = attached
            .iter()
            .filter(|v| !excluded.contains(&v.id))
            .filter(|v| !without_root || !is_root(v))
            .collect();
        if chosen.is_empty() {
            return Err(ApiError::value("There are no volumes to take snapshots of"));
        }
        let mut targets = vec![Target::of("instance", instance_id, &instance.tags), Target::new("snapshot")];
        targets.extend(chosen.iter().map(|v| Target::of("volume", &v.id, &v.tags)));
        call.allow(&targets)?;
        for volume in &chosen {
            check_rate(call, region, volume)?;
        }
        let mut taken = Vec::new();
        for volume in chosen {
            let mut all = if copy_tags { volume.tags.clone() } else { Tags::new() };
            all.extend(tags.clone());
            taken.push(announce(call, region, volume, &description, all));
        }
        Ok(taken)
    })?;
    take(call, &taken)?;
    call.with(|region| {
        let made = taken.iter().filter_map(|taken| region.snapshots.get(&taken.id));
        Ok(json!({"snapshotSet": made.map(|s| fresh(s, call.now, true)).collect::<Vec<_>>()}))
    })
}

pub(super) fn delete(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("SnapshotId")?;
    call.with(|region| {
        let snapshot = region.snapshot(id, call.now)?;
        call.allow(&[Target::of("snapshot", id, &snapshot.tags)])?;
        let uses = |image: &&crate::state::Image| {
            image.mappings.iter().any(|m| m.snapshot_id.as_deref() == Some(id))
        };
        if let Some(image) = region.images.values().find(uses) {
            let message = format!("The snapshot {id} is currently in use by {}", image.id);
            return Err(ApiError::client("InvalidSnapshot.InUse", message));
        }
        if let Some(mut snapshot) = region.snapshots.remove(id) {
            snapshot.abandon();
        }
        Ok(json!({"return": true}))
    })
}

/// Names of filters of snapshots.
const FILTERS: [&str; 11] = [
    "snapshot-id",
    "volume-id",
    "status",
    "description",
    "owner-id",
    "owner-alias",
    "progress",
    "start-time",
    "volume-size",
    "encrypted",
    "storage-tier",
];

pub(super) fn describe(call: &Call<'_>) -> ApiResult<Value> {
    let filters = Filters::of(call.params)?;
    filters.check(&FILTERS)?;
    let ids = call.params.list("SnapshotId");
    let owners = call.params.list("Owner");
    call.params.list("RestorableBy");
    call.with(|region| {
        call.allow(&[])?;
        if !ids.is_empty() && call.params.get("MaxResults").is_some() {
            let message = "The parameter snapshotSet cannot be used with the parameter maxResults";
            return Err(ApiError::combination(message));
        }
        let mut found = Vec::new();
        if ids.is_empty() {
            found.extend(region.snapshots.values().filter(|s| s.visible_ms <= call.now));
        } else {
            for id in &ids {
                found.push(region.snapshot(id, call.now)?);
            }
            found.sort_by_key(|s| &s.id);
            found.dedup_by_key(|s| &s.id);
        }
        let mine = |o: &String, s: &Snapshot| o == &s.owner || (o == "self" && s.owner == region.account);
        let mut passed = Vec::new();
        for snapshot in found {
            let owned = owners.is_empty() || owners.iter().any(|o| mine(o, snapshot));
            if owned && filters.pass(&snapshot.tags, |name| snapshot.field(name, call.now))? {
                passed.push(snapshot);
            }
        }
        let page =
            page::page(call.params, passed, |s| &s.id, (5, 1000), call.settings.limits.empty_page_every)?;
        let set: Vec<Value> = page.items.iter().map(|s| s.xml(call.now, false)).collect();
        Ok(json!({"snapshotSet": set, "nextToken": page.next}))
    })
}

pub(super) fn copy(call: &Call<'_>) -> ApiResult<Value> {
    let params = call.params;
    let from = params.required("SourceRegion")?;
    let id = params.required("SourceSnapshotId")?;
    if params.get("DestinationRegion").is_some_and(|to| to != call.region) {
        return Err(ApiError::value("The destination region is the one that is called"));
    }
    for signed in ["PresignedUrl", "CompletionDurationMinutes"] {
        params.get(signed);
    }
    let description = params.text("Description");
    let encrypted = params.flag("Encrypted")?;
    let key = params.text("KmsKeyId");
    let tags = call.tags_for("snapshot")?;
    let source = call.core.try_with(from, |region| region.snapshot(id, call.now).cloned())?;
    call.with(|region| {
        call.allow(&[Target::new("snapshot"), Target::of("snapshot", id, &source.tags)])?;
        if source.state(call.now) != "completed" {
            let message = format!("Snapshot {id} is in state {}", source.state(call.now));
            return Err(ApiError::client("IncorrectState", message));
        }
        let encrypted = encrypted.unwrap_or(false) || source.encrypted || region.encryption_by_default;
        let key =
            key.map(|key| region.kms_arn(&key)).or_else(|| encrypted.then(|| region.default_kms_key.clone()));
        let denied =
            !call.may_use_key(region, key.as_deref()) || region.kms_denied(source.kms_key.as_deref());
        let copy = Snapshot {
            id: region.ids.id("snap"),
            volume_id: "vol-ffffffff".into(),
            description: description.unwrap_or_else(|| format!("[Copied {id} from {from}]")),
            tags: tags.clone(),
            encrypted,
            kms_key: key,
            origin: Origin::Copy,
            parent: None,
            lineage: region.new_lineage(),
            start_ms: call.now,
            complete_ms: call.now + call.settings.timing.snapshot_ms,
            visible_ms: call.visible_ms(),
            will_fail: denied.then(|| "Given key ID is not accessible".to_owned()),
            ..source
        };
        let answer = json!({"snapshotId": copy.id, "tagSet": crate::state::tag_set(&tags)});
        region.snapshots.insert(copy.id.clone(), copy);
        Ok(answer)
    })
}

pub(super) fn share(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("SnapshotId")?;
    call.params.get("Attribute");
    let mut add = Vec::new();
    let mut remove = Vec::new();
    if let Some(permission) = call.params.below("CreateVolumePermission") {
        let users =
            |list: &str| permission.structures(list).iter().filter_map(|p| p.text("UserId")).collect();
        (add, remove) = (users("Add"), users("Remove"));
    }
    match call.params.get("OperationType") {
        Some("add") => add.extend(call.params.list("UserId")),
        Some("remove") => remove.extend(call.params.list("UserId")),
        _ => {}
    }
    call.with(|region| {
        let snapshot = region.snapshot(id, call.now)?;
        call.allow(&[Target::of("snapshot", id, &snapshot.tags)])?;
        if let Some(snapshot) = region.snapshots.get_mut(id) {
            snapshot.shared_with.retain(|user| !remove.contains(user));
            snapshot.shared_with.extend(add);
        }
        Ok(json!({"return": true}))
    })
}
