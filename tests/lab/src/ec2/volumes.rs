//! Volumes: made, changed, described, deleted.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Call, Target};
use crate::api::{ApiError, ApiResult, Filters, page};
use crate::blocks::{BlockMap, VolumeFile};
use crate::state::{Modification, Region, Tags, Volume};

/// What a volume shall be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Availability zone.
    pub zone: String,
    /// GiB; that of the snapshot if there is none.
    pub size_gib: Option<u64>,
    /// Its snapshot.
    pub snapshot_id: Option<String>,
    /// `gp2` if there is none.
    pub volume_type: Option<String>,
    /// Operations a second.
    pub iops: Option<u32>,
    /// MiB a second.
    pub throughput: Option<u32>,
    /// Encrypted?
    pub encrypted: Option<bool>,
    /// Key.
    pub kms_key: Option<String>,
    /// MiB a second.
    pub initialization_rate: Option<u32>,
    /// Its tags.
    pub tags: Tags,
}

/// A volume not yet in the account: described, but without its file.
#[derive(Debug)]
pub struct Planned {
    volume: Wanted,
    size_gib: u64,
    volume_type: String,
    encrypted: bool,
    kms_key: Option<String>,
    lineage: Option<u64>,
    base: Option<Arc<BlockMap>>,
}

/// Finds out whether a volume can be made.
pub fn plan(call: &Call<'_>, region: &Region, wanted: Wanted) -> ApiResult<Planned> {
    let (mut snapshot_size, mut lineage, mut base) = (None, None, None);
    let mut encrypted = wanted.encrypted.unwrap_or(false) || region.encryption_by_default;
    let mut kms_key = wanted.kms_key.as_ref().map(|key| region.kms_arn(key));
    if let Some(id) = wanted.snapshot_id.as_deref().filter(|id| !id.is_empty()) {
        let snapshot = region.snapshot(id, call.now)?;
        if snapshot.state(call.now) != "completed" {
            let message = format!("Snapshot is in invalid state - {}", snapshot.state(call.now));
            return Err(ApiError::client("IncorrectState", message));
        }
        snapshot_size = Some(snapshot.size_gib);
        lineage = Some(snapshot.lineage);
        base = snapshot.map.clone();
        if snapshot.encrypted {
            if wanted.encrypted == Some(false) {
                let message = "The parameter encrypted cannot be false for a volume of an encrypted snapshot";
                return Err(ApiError::combination(message));
            }
            encrypted = true;
            kms_key = kms_key.or_else(|| snapshot.kms_key.clone());
        }
    }
    if kms_key.is_some() && !encrypted {
        return Err(ApiError::client(
            "InvalidParameterDependency",
            "The parameter KmsKeyId requires the parameter Encrypted to be set.",
        ));
    }
    let size_gib = wanted.size_gib.or(snapshot_size).ok_or_else(|| ApiError::missing("size/snapshot"))?;
    if let Some(least) = snapshot_size.filter(|least| size_gib < *least) {
        let message = format!("Volume of {size_gib}GiB is smaller than snapshot, expect size>= {least}GiB");
        return Err(ApiError::value(message));
    }
    let volume_type = wanted.volume_type.clone().unwrap_or_else(|| "gp2".into());
    check_kind(&volume_type, size_gib, wanted.iops, wanted.throughput)?;
    if let Some(rate) = wanted.initialization_rate {
        if wanted.snapshot_id.is_none() {
            return Err(ApiError::combination("VolumeInitializationRate requires a snapshot"));
        }
        if !(100..=300).contains(&rate) {
            return Err(ApiError::value(format!(
                "Value ({rate}) for VolumeInitializationRate must be between 100 and 300"
            )));
        }
    }
    let kms_key = kms_key.or_else(|| encrypted.then(|| region.default_kms_key.clone()));
    Ok(Planned { size_gib, volume_type, encrypted, kms_key, lineage, base, volume: wanted })
}

/// Whether size, type, operations and throughput go together.
fn check_kind(kind: &str, size_gib: u64, iops: Option<u32>, throughput: Option<u32>) -> ApiResult<()> {
    let (least, most) = match kind {
        "gp2" => (1, 16_384),
        "gp3" => (1, 65_536),
        "io1" => (4, 16_384),
        "io2" => (4, 65_536),
        "st1" | "sc1" => (125, 16_384),
        "standard" => (1, 1024),
        other => {
            return Err(ApiError::value(format!("Value ({other}) for parameter volumeType is invalid.")));
        }
    };
    if !(least..=most).contains(&size_gib) {
        let message = format!(
            "Volume of {size_gib}GiB is too {} for volume type {kind}; minimum is {least}GiB, maximum is {most}GiB.",
            if size_gib < least { "small" } else { "large" }
        );
        return Err(ApiError::value(message));
    }
    let provisioned = matches!(kind, "io1" | "io2");
    match iops {
        None if provisioned => return Err(ApiError::missing("iops")),
        Some(_) if !provisioned && kind != "gp3" => {
            return Err(ApiError::combination(format!(
                "The parameter iops is not supported for {kind} volumes."
            )));
        }
        Some(iops) if kind == "gp3" => {
            let most = (size_gib.saturating_mul(500)).clamp(3000, 80_000);
            if !(3000..=most).contains(&u64::from(iops)) {
                return Err(ApiError::value(format!(
                    "Volume iops of {iops} is out of range; gp3 of {size_gib}GiB takes 3000 to {most}."
                )));
            }
        }
        Some(iops) if provisioned && !(100..=256_000).contains(&iops) => {
            return Err(ApiError::value(format!("Volume iops of {iops} is out of range.")));
        }
        _ => {}
    }
    match throughput {
        Some(_) if kind != "gp3" => Err(ApiError::combination(format!(
            "The parameter throughput is not supported for {kind} volumes."
        ))),
        Some(throughput) if !(125..=2000).contains(&throughput) => Err(ApiError::value(format!(
            "Throughput of {throughput} MiB/s is out of range; 125 to 2000 are possible."
        ))),
        Some(throughput) if f64::from(throughput) > f64::from(iops.unwrap_or(3000)) * 0.25 => Err(
            ApiError::value("Throughput (MiB/s) to iops ratio is too high; maximum is 0.25 MiB/s per iops."),
        ),
        _ => Ok(()),
    }
}

/// Puts a planned volume into the account. `None` if its key may not be used: then nobody ever finds it, as in EC2.
pub fn make(call: &Call<'_>, region: &mut Region, planned: Planned) -> ApiResult<Volume> {
    let limits = &call.settings.limits;
    if limits.volumes > 0 && region.volumes.len() >= limits.volumes {
        let message = "You have exceeded your maximum number of volumes";
        return Err(ApiError::client("VolumeLimitExceeded", message));
    }
    let same = region.volumes.values().filter(|v| v.volume_type == planned.volume_type);
    let stored_gib: u64 = same.map(|v| v.size_gib).sum();
    if limits.storage_gib > 0 && stored_gib + planned.size_gib > limits.storage_gib {
        let message = format!("You have exceeded your maximum {} storage limit", planned.volume_type);
        return Err(ApiError::client("VolumeLimitExceeded", message));
    }
    let empty;
    let base = match &planned.base {
        Some(base) => base.as_ref(),
        None => {
            empty = BlockMap::empty(&call.core.store);
            &empty
        }
    };
    let file = Arc::new(call.core.volume_file(planned.size_gib, base)?);
    fill_behind(&file);
    let gp3 = planned.volume_type == "gp3";
    let wanted = planned.volume;
    let burst = |size_gib: u64| u32::try_from((size_gib * 3).clamp(100, 16_000)).unwrap_or(16_000);
    let iops = wanted.iops.or(match planned.volume_type.as_str() {
        "gp3" => Some(3000),
        "gp2" => Some(burst(planned.size_gib)),
        _ => None,
    });
    let volume = Volume {
        id: region.ids.id("vol"),
        size_gib: planned.size_gib,
        zone: wanted.zone,
        volume_type: planned.volume_type,
        iops,
        throughput: wanted.throughput.or(gp3.then_some(125)),
        initialization_rate: wanted.initialization_rate,
        encrypted: planned.encrypted,
        kms_key: planned.kms_key,
        snapshot_id: wanted.snapshot_id.filter(|id| !id.is_empty()),
        tags: wanted.tags,
        attachment: None,
        modification: None,
        lineage: planned.lineage.unwrap_or_else(|| region.new_lineage()),
        created_ms: call.now,
        ready_ms: call.now + call.settings.timing.volume_ms,
        visible_ms: call.visible_ms(),
        gone_ms: None,
        failed: call.ends_in_error.then(|| "asked for".to_owned()),
        last_snapshot_ms: None,
        file,
    };
    if call.may_use_key(region, volume.kms_key.as_deref()) {
        region.volumes.insert(volume.id.clone(), volume.clone());
    }
    Ok(volume)
}

fn fill_behind(file: &Arc<VolumeFile>) {
    if file.is_filled() {
        return;
    }
    let file = file.clone();
    std::thread::spawn(move || {
        if let Err(error) = file.fill() {
            eprintln!("{} cannot be filled: {error}", file.path().display());
        }
    });
}

pub(super) fn create(call: &Call<'_>) -> ApiResult<Value> {
    let params = call.params;
    let mut wanted = Wanted {
        zone: params.text("AvailabilityZone").unwrap_or_default(),
        size_gib: params.number("Size")?,
        snapshot_id: params.text("SnapshotId"),
        volume_type: params.text("VolumeType"),
        iops: params.number("Iops")?,
        throughput: params.number("Throughput")?,
        encrypted: params.flag("Encrypted")?,
        kms_key: params.text("KmsKeyId"),
        initialization_rate: params.number("VolumeInitializationRate")?,
        tags: call.tags_for("volume")?,
    };
    if params.flag("MultiAttachEnabled")? == Some(true) {
        return Err(ApiError::client("UnsupportedOperation", "the lab has no multi-attach volumes"));
    }
    call.with(|region| {
        if let Some(id) = params.get("AvailabilityZoneId") {
            wanted.zone =
                region.zones.iter().find(|z| z.id == id).map(|z| z.name.clone()).unwrap_or_default();
        }
        if wanted.zone.is_empty() {
            return Err(ApiError::missing("AvailabilityZone"));
        }
        if !region.zones.iter().any(|z| z.name == wanted.zone) {
            let message = format!("The zone '{}' does not exist.", wanted.zone);
            return Err(ApiError::client("InvalidZone.NotFound", message));
        }
        if let Some(ids) = call.replay(region)? {
            call.allow(&[Target::new("volume")])?;
            let volume = region.volume(&ids[0], call.now)?;
            return Ok(volume.xml(call.now, region.zone_id(&volume.zone)));
        }
        let planned = plan(call, region, wanted)?;
        let mut targets = vec![Target::new("volume")];
        if let Some(snapshot) = planned.volume.snapshot_id.as_ref().and_then(|id| region.snapshots.get(id)) {
            targets.push(Target::of("snapshot", &snapshot.id, &snapshot.tags));
        }
        call.allow(&targets)?;
        let volume = make(call, region, planned)?;
        call.remember(region, vec![volume.id.clone()]);
        let mut answer = volume.xml(call.now, region.zone_id(&volume.zone));
        answer["status"] = json!("creating");
        Ok(answer)
    })
}

pub(super) fn delete(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("VolumeId")?;
    call.with(|region| {
        let volume = region.volume(id, call.now)?;
        call.allow(&[Target::of("volume", id, &volume.tags)])?;
        if let Some(attachment) = &volume.attachment {
            let message = format!("Volume {id} is currently attached to {}", attachment.instance_id);
            return Err(ApiError::client("VolumeInUse", message));
        }
        if volume.state(call.now) == "creating" {
            let message = format!("The volume '{id}' is in the state 'creating'");
            return Err(ApiError::client("IncorrectState", message));
        }
        if let Some(volume) = region.volumes.get_mut(id) {
            volume.gone_ms = Some(call.now + call.settings.timing.delete_ms);
        }
        Ok(json!({"return": true}))
    })
}

/// Names of filters of volumes.
const FILTERS: [&str; 13] = [
    "volume-id",
    "status",
    "snapshot-id",
    "availability-zone",
    "volume-type",
    "size",
    "encrypted",
    "create-time",
    "attachment.instance-id",
    "attachment.device",
    "attachment.delete-on-termination",
    "attachment.status",
    "multi-attach-enabled",
];

/// Volumes that ids and filters name.
fn named<'r>(call: &Call<'_>, region: &'r Region) -> ApiResult<Vec<&'r Volume>> {
    let filters = Filters::of(call.params)?;
    filters.check(&FILTERS)?;
    let ids = call.params.list("VolumeId");
    if !ids.is_empty() && call.params.get("MaxResults").is_some() {
        return Err(ApiError::combination(
            "The parameter volumeSet cannot be used with the parameter maxResults",
        ));
    }
    let mut found = Vec::new();
    if ids.is_empty() {
        found.extend(region.volumes.values().filter(|v| v.visible_ms <= call.now));
    } else {
        for id in &ids {
            found.push(region.volume(id, call.now)?);
        }
        found.sort_by_key(|v| &v.id);
        found.dedup_by_key(|v| &v.id);
    }
    let mut passed = Vec::new();
    for volume in found {
        if filters.pass(&volume.tags, |name| volume.field(name, call.now))? {
            passed.push(volume);
        }
    }
    Ok(passed)
}

pub(super) fn describe(call: &Call<'_>) -> ApiResult<Value> {
    call.with(|region| {
        call.allow(&[])?;
        let every = call.settings.limits.empty_page_every;
        let page = page::page(call.params, named(call, region)?, |v| &v.id, (5, 1000), every)?;
        let volumes: Vec<Value> =
            page.items.iter().map(|v| v.xml(call.now, region.zone_id(&v.zone))).collect();
        Ok(json!({"volumeSet": volumes, "nextToken": page.next}))
    })
}

pub(super) fn status(call: &Call<'_>) -> ApiResult<Value> {
    call.with(|region| {
        call.allow(&[])?;
        let every = call.settings.limits.empty_page_every;
        let page = page::page(call.params, named(call, region)?, |v| &v.id, (5, 1000), every)?;
        let status = |v: &&Volume| {
            let done = v.file.is_filled();
            json!({
                "volumeId": v.id, "availabilityZone": v.zone, "availabilityZoneId": region.zone_id(&v.zone),
                "volumeStatus": {"status": "ok", "details": [{"name": "io-enabled", "status": "passed"}]},
                "actionsSet": [], "eventsSet": [], "attachmentStatuses": [],
                "initializationStatusDetails": v.snapshot_id.as_ref().map(|_| json!({
                    "initializationType": if v.initialization_rate.is_some() { "provisioned-rate" } else { "default" },
                    "progress": if done { 100 } else { 0 },
                })),
            })
        };
        let volumes: Vec<Value> = page.items.iter().map(status).collect();
        Ok(json!({"volumeStatusSet": volumes, "nextToken": page.next}))
    })
}

pub(super) fn modify(call: &Call<'_>) -> ApiResult<Value> {
    let params = call.params;
    let id = params.required("VolumeId")?;
    let (size, iops, throughput) =
        (params.number("Size")?, params.number("Iops")?, params.number("Throughput")?);
    let kind = params.text("VolumeType");
    params.flag("MultiAttachEnabled")?;
    call.with(|region| {
        let volume = region.volume(id, call.now)?;
        call.allow(&[Target::of("volume", id, &volume.tags)])?;
        if size.is_none() && iops.is_none() && throughput.is_none() && kind.is_none() {
            return Err(ApiError::value(
                "You must specify at least one of: Size, Iops, Throughput, VolumeType.",
            ));
        }
        if volume.modification.as_ref().is_some_and(|m| call.now < m.end_ms) {
            let message = format!("Volume {id} cannot be modified in modification state OPTIMIZING");
            return Err(ApiError::client("IncorrectModificationState", message));
        }
        let new_size = size.unwrap_or(volume.size_gib);
        if new_size < volume.size_gib {
            return Err(ApiError::value("New size cannot be smaller than existing size"));
        }
        let new_kind = kind.unwrap_or_else(|| volume.volume_type.clone());
        check_kind(&new_kind, new_size, iops, throughput)?;
        let from = (volume.size_gib, volume.volume_type.clone(), volume.iops, volume.throughput);
        let end_ms = call.now + call.settings.timing.modify_ms;
        let Some(volume) = region.volumes.get_mut(id) else { return Err(ApiError::missing("VolumeId")) };
        volume.file.grow(new_size << 30)?;
        volume.size_gib = new_size;
        let gp3 = new_kind == "gp3";
        if volume.volume_type != new_kind {
            volume.iops = iops.or(gp3.then_some(3000));
            volume.throughput = throughput.or(gp3.then_some(125));
        } else {
            volume.iops = iops.or(volume.iops);
            volume.throughput = throughput.or(volume.throughput);
        }
        volume.volume_type = new_kind;
        volume.modification = Some(Modification { from, start_ms: call.now, end_ms });
        let volume = volume.clone();
        call.core.devices.resized(id)?;
        Ok(json!({"volumeModification": volume.modification.as_ref().map(|m| {
            let mut answer = m.xml(&volume, call.now);
            answer["modificationState"] = json!("modifying");
            answer
        })}))
    })
}

pub(super) fn modifications(call: &Call<'_>) -> ApiResult<Value> {
    call.with(|region| {
        call.allow(&[])?;
        let ids = call.params.list("VolumeId");
        for id in &ids {
            if region.volume(id, call.now)?.modification.is_none() {
                let message = format!("Modification for volume '{id}' does not exist.");
                return Err(ApiError::client("InvalidVolumeModification.NotFound", message));
            }
        }
        let wanted = |v: &&Volume| ids.is_empty() || ids.contains(&v.id);
        let found: Vec<&Volume> =
            region.volumes.values().filter(wanted).filter(|v| v.modification.is_some()).collect();
        let page = page::page(call.params, found, |v| &v.id, (1, 500), 0)?;
        let set: Vec<Value> =
            page.items.iter().filter_map(|v| v.modification.as_ref().map(|m| m.xml(v, call.now))).collect();
        Ok(json!({"volumeModificationSet": set, "nextToken": page.next}))
    })
}

pub(super) fn encryption(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    call.with(|region| Ok(json!({"ebsEncryptionByDefault": region.encryption_by_default, "sseType": "none"})))
}

pub(super) fn default_key(call: &Call<'_>) -> ApiResult<Value> {
    call.allow(&[])?;
    call.with(|region| Ok(json!({"kmsKeyId": region.default_kms_key})))
}
