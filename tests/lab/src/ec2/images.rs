//! Images: made of instances, registered from snapshots, described, removed.

use serde_json::{Value, json};

use super::{Call, Target, snapshots};
use crate::api::{ApiError, ApiResult, Filters, Params, page};
use crate::state::{Image, ImageMapping, Region, Volume};

/// `BlockDeviceMapping.N` of a call.
pub fn mappings(params: &Params) -> ApiResult<Vec<ImageMapping>> {
    let mut found = Vec::new();
    for mapping in params.structures("BlockDeviceMapping") {
        let mut image = ImageMapping {
            device: mapping.required("DeviceName")?.to_owned(),
            virtual_name: mapping.text("VirtualName"),
            no_device: mapping.get("NoDevice").is_some(),
            ..ImageMapping::default()
        };
        if let Some(ebs) = mapping.below("Ebs") {
            image.snapshot_id = ebs.text("SnapshotId");
            image.size_gib = ebs.number("VolumeSize")?;
            image.volume_type = ebs.text("VolumeType");
            image.iops = ebs.number("Iops")?;
            image.throughput = ebs.number("Throughput")?;
            image.delete_on_termination = ebs.flag("DeleteOnTermination")?;
            image.encrypted = ebs.flag("Encrypted")?;
            image.kms_key = ebs.text("KmsKeyId");
        }
        found.push(image);
    }
    Ok(found)
}

fn check_name(region: &Region, name: &str) -> ApiResult<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    if !(3..=128).contains(&name.len()) || !name.chars().all(allowed) {
        let message = "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', ')', '[', ']', ' ', '.', '/', '-', ''', '@' and '_'";
        return Err(ApiError::client("InvalidAMIName.Malformed", message));
    }
    if let Some(image) = region.images.values().find(|i| i.name == name) {
        let message = format!("AMI name {name} is already in use by AMI {}", image.id);
        return Err(ApiError::client("InvalidAMIName.Duplicate", message));
    }
    Ok(())
}

fn of_volume(volume: &Volume, device: &str, snapshot: &str, delete: bool) -> ImageMapping {
    ImageMapping {
        device: device.to_owned(),
        snapshot_id: Some(snapshot.to_owned()),
        size_gib: Some(volume.size_gib),
        volume_type: Some(volume.volume_type.clone()),
        iops: volume.iops.filter(|_| volume.volume_type != "gp2"),
        throughput: volume.throughput,
        delete_on_termination: Some(delete),
        encrypted: Some(volume.encrypted),
        ..ImageMapping::default()
    }
}

pub(super) fn create(call: &Call<'_>) -> ApiResult<Value> {
    let instance_id = call.params.required("InstanceId")?;
    let name = call.params.required("Name")?;
    let description = call.params.text("Description").unwrap_or_default();
    call.params.flag("NoReboot")?;
    let overrides = mappings(call.params)?;
    let (tags, snapshot_tags) = (call.tags_for("image")?, call.tags_for("snapshot")?);
    let (image_id, taken) = call.with(|region| {
        let instance = region.instance(instance_id, call.now)?.clone();
        check_name(region, name)?;
        call.allow(&[
            Target::of("instance", instance_id, &instance.tags),
            Target::new("image"),
            Target::new("snapshot"),
        ])?;
        let state = instance.lifecycle.state(call.now).1;
        if !matches!(state, "running" | "stopped" | "stopping") {
            let message = format!(
                "Instance '{instance_id}' is not in a state from which an image can be made: {state}"
            );
            return Err(ApiError::client("IncorrectInstanceState", message));
        }
        let volumes: Vec<Volume> = region.attached(instance_id).into_iter().cloned().collect();
        let image_id = region.ids.id("ami");
        let text = format!("Created by CreateImage({instance_id}) for {image_id}");
        let (mut taken, mut of_image) = (Vec::new(), Vec::new());
        for volume in &volumes {
            let Some(attachment) = &volume.attachment else { continue };
            let device = &attachment.device;
            let other = overrides.iter().find(|o| o.device == *device);
            if other.is_some_and(|o| o.no_device) {
                continue;
            }
            snapshots::check_rate(call, region, volume)?;
            let snapshot = snapshots::announce(call, region, volume, &text, snapshot_tags.clone());
            let delete =
                other.and_then(|o| o.delete_on_termination).unwrap_or(attachment.delete_on_termination);
            let mut mapping = of_volume(volume, device, &snapshot.id, delete);
            if let Some(other) = other {
                mapping.size_gib = other.size_gib.or(mapping.size_gib);
                mapping.volume_type = other.volume_type.clone().or(mapping.volume_type);
            }
            of_image.push(mapping);
            taken.push(snapshot);
        }
        for (virtual_name, device) in &instance.instance_store {
            let virtual_name = Some(virtual_name.clone());
            of_image.push(ImageMapping { device: device.clone(), virtual_name, ..ImageMapping::default() });
        }
        let image = Image {
            id: image_id.clone(),
            name: name.to_owned(),
            description,
            architecture: instance.architecture,
            root_device: instance.root_device,
            virtualization: "hvm".into(),
            ena: instance.ena,
            sriov: instance.sriov,
            boot_mode: instance.boot_mode,
            tpm: instance.tpm,
            uefi_data: instance.uefi_data,
            imds: None,
            platform: instance.platform,
            platform_details: instance.platform_details,
            usage_operation: instance.usage_operation,
            product_codes: instance.product_codes,
            billing_products: instance.billing_products,
            kernel: None,
            ramdisk: None,
            mappings: of_image,
            source_instance: Some(instance_id.to_owned()),
            tags,
            owner: region.account.clone(),
            failed: call.ends_in_error.then(|| "An internal error has occurred".to_owned()),
            created_ms: call.now,
            ready_ms: call.now + call.settings.timing.image_ms,
            visible_ms: call.visible_ms(),
        };
        region.images.insert(image_id.clone(), image);
        Ok((image_id, taken))
    })?;
    snapshots::take(call, &taken)?;
    Ok(json!({"imageId": image_id}))
}

const BOOT_MODES: [&str; 3] = ["legacy-bios", "uefi", "uefi-preferred"];

/// Platform, its details and the usage operation that follow from billing products.
fn billed(codes: &[String]) -> (Option<&'static str>, &'static str, &'static str) {
    let has = |wanted: &[&str]| codes.iter().any(|code| wanted.contains(&code.as_str()));
    if has(&["bp-6ba54002"]) {
        (Some("windows"), "Windows", "RunInstances:0002")
    } else if has(&["bp-6fa54006", "bp-63a5400a"]) {
        (None, "Red Hat Enterprise Linux", "RunInstances:0010")
    } else {
        (None, "Linux/UNIX", "RunInstances")
    }
}

pub(super) fn register(call: &Call<'_>) -> ApiResult<Value> {
    let params = call.params;
    let name = params.required("Name")?;
    let root_device = params.text("RootDeviceName").unwrap_or_else(|| "/dev/sda1".into());
    let mut of_image = mappings(params)?;
    let virtualization = params.text("VirtualizationType").unwrap_or_else(|| "paravirtual".into());
    let architecture = params.text("Architecture").unwrap_or_else(|| "i386".into());
    let boot_mode = params.text("BootMode");
    let tpm = params.text("TpmSupport");
    if tpm.is_some() && boot_mode.as_deref() != Some("uefi") {
        return Err(ApiError::combination("TpmSupport requires the boot mode uefi"));
    }
    if !["i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac"].contains(&architecture.as_str()) {
        return Err(ApiError::value(format!(
            "Value ({architecture}) for parameter architecture is invalid."
        )));
    }
    let (uefi_data, imds) = (params.text("UefiData"), params.text("ImdsSupport"));
    if let Some(mode) = boot_mode.as_ref().filter(|m| !BOOT_MODES.contains(&m.as_str())) {
        return Err(ApiError::value(format!("Value ({mode}) for parameter bootMode is invalid.")));
    }
    if uefi_data.is_some() && !boot_mode.as_ref().is_some_and(|mode| mode.starts_with("uefi")) {
        return Err(ApiError::combination("UefiData requires the boot mode uefi or uefi-preferred"));
    }
    let (ena, sriov) = (params.flag("EnaSupport")?.unwrap_or(false), params.text("SriovNetSupport"));
    let codes = params.list("BillingProduct");
    let (kernel, ramdisk) = (params.text("KernelId"), params.text("RamdiskId"));
    let description = params.text("Description").unwrap_or_default();
    let tags = call.tags_for("image")?;
    call.with(|region| {
        check_name(region, name)?;
        let root = of_image.iter().find(|m| m.device == root_device && m.snapshot_id.is_some());
        if root.is_none() {
            let message =
                format!("Invalid device name {root_device}: the root device needs a mapping with a snapshot");
            return Err(ApiError::client("InvalidBlockDeviceMapping", message));
        }
        let mut targets = vec![Target::new("image")];
        for mapping in of_image.iter_mut() {
            let Some(id) = &mapping.snapshot_id else { continue };
            let snapshot = region.snapshot(id, call.now)?;
            targets.push(Target::of("snapshot", id, &snapshot.tags));
            if snapshot.state(call.now) != "completed" {
                let message = format!("Snapshot {id} is in invalid state - {}", snapshot.state(call.now));
                return Err(ApiError::client("IncorrectState", message));
            }
            if mapping.encrypted.is_some() {
                return Err(ApiError::client(
                    "InvalidBlockDeviceMapping",
                    "the encrypted flag cannot be specified since device has a snapshot specified.",
                ));
            }
            let size = mapping.size_gib.unwrap_or(snapshot.size_gib);
            if size < snapshot.size_gib {
                let message = format!(
                    "Volume of size {size}GB is smaller than snapshot '{id}', expect size >= {}GB",
                    snapshot.size_gib
                );
                return Err(ApiError::client("InvalidBlockDeviceMapping", message));
            }
            mapping.size_gib = Some(size);
            mapping.encrypted = Some(snapshot.encrypted);
        }
        call.allow(&targets)?;
        let (platform, details, operation) = billed(&codes);
        let image = Image {
            id: region.ids.id("ami"),
            name: name.to_owned(),
            description,
            architecture,
            root_device,
            virtualization,
            ena,
            sriov,
            boot_mode,
            tpm,
            uefi_data,
            imds,
            platform: platform.map(str::to_owned),
            platform_details: details.into(),
            usage_operation: operation.into(),
            product_codes: Vec::new(),
            billing_products: codes,
            kernel,
            ramdisk,
            mappings: of_image,
            source_instance: None,
            tags,
            owner: region.account.clone(),
            failed: call.ends_in_error.then(|| "An internal error has occurred".to_owned()),
            created_ms: call.now,
            ready_ms: call.now + call.settings.timing.image_ms,
            visible_ms: call.visible_ms(),
        };
        let answer = json!({"imageId": image.id});
        region.images.insert(image.id.clone(), image);
        Ok(answer)
    })
}

pub(super) fn deregister(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("ImageId")?;
    let with_snapshots = call.params.flag("DeleteAssociatedSnapshots")?.unwrap_or(false);
    call.with(|region| {
        let image = region.image(id, call.now)?.clone();
        let mut targets = vec![Target::of("image", id, &image.tags)];
        let snapshots: Vec<String> = image.mappings.iter().filter_map(|m| m.snapshot_id.clone()).collect();
        if with_snapshots {
            let found = snapshots.iter().filter_map(|id| region.snapshots.get(id));
            targets.extend(found.map(|s| Target::of("snapshot", &s.id, &s.tags)));
        }
        call.allow(&targets)?;
        region.images.remove(id);
        let mut results = Vec::new();
        for snapshot in snapshots.into_iter().filter(|_| with_snapshots) {
            let shared = region.images.values().any(|i| {
                i.mappings.iter().any(|m| m.snapshot_id.as_deref() == Some(snapshot.as_str()))
            });
            if !shared {
                region.snapshots.remove(&snapshot);
            }
            let code = if shared { "skipped" } else { "success" };
            results.push(json!({"snapshotId": snapshot, "returnCode": code}));
        }
        Ok(json!({"return": true, "deleteSnapshotResultSet": if with_snapshots { json!(results) } else { Value::Null }}))
    })
}

/// Names of filters of images.
const FILTERS: [&str; 18] = [
    "image-id",
    "name",
    "state",
    "description",
    "architecture",
    "owner-id",
    "root-device-name",
    "root-device-type",
    "virtualization-type",
    "platform",
    "image-type",
    "is-public",
    "ena-support",
    "creation-date",
    "block-device-mapping.snapshot-id",
    "block-device-mapping.device-name",
    "block-device-mapping.volume-size",
    "source-instance-id",
];

pub(super) fn describe(call: &Call<'_>) -> ApiResult<Value> {
    let filters = Filters::of(call.params)?;
    filters.check(&FILTERS)?;
    let ids = call.params.list("ImageId");
    let owners = call.params.list("Owner");
    call.params.list("ExecutableBy");
    call.params.flag("IncludeDeprecated")?;
    call.params.flag("IncludeDisabled")?;
    call.with(|region| {
        call.allow(&[])?;
        let mut found = Vec::new();
        if ids.is_empty() {
            found.extend(region.images.values().filter(|i| i.visible_ms <= call.now));
        } else {
            for id in &ids {
                found.push(region.image(id, call.now)?);
            }
            found.sort_by_key(|i| &i.id);
            found.dedup_by_key(|i| &i.id);
        }
        let mut passed = Vec::new();
        for image in found {
            let mine = |o: &String| *o == image.owner || (o == "self" && image.owner == region.account);
            let waiting = region.waiting(image, call.now);
            if (owners.is_empty() || owners.iter().any(mine))
                && filters.pass(&image.tags, |name| image.field(name, call.now, waiting))?
            {
                passed.push(image);
            }
        }
        let page =
            page::page(call.params, passed, |i| &i.id, (1, 1000), call.settings.limits.empty_page_every)?;
        let set: Vec<Value> =
            page.items.iter().map(|i| i.xml(call.now, region.waiting(i, call.now))).collect();
        Ok(json!({"imagesSet": set, "nextToken": page.next}))
    })
}

pub(super) fn attribute(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("ImageId")?;
    let attribute = call.params.required("Attribute")?;
    call.with(|region| {
        let image = region.image(id, call.now)?;
        call.allow(&[Target::of("image", id, &image.tags)])?;
        let value = |v: Option<&String>| v.map_or(json!({}), |v| json!({"value": v}));
        let (name, value) = match attribute {
            "description" => ("description", value(Some(&image.description))),
            "kernel" => ("kernel", value(image.kernel.as_ref())),
            "ramdisk" => ("ramdisk", value(image.ramdisk.as_ref())),
            "sriovNetSupport" => ("sriovNetSupport", value(image.sriov.as_ref())),
            "bootMode" => ("bootMode", value(image.boot_mode.as_ref())),
            "tpmSupport" => ("tpmSupport", value(image.tpm.as_ref())),
            "uefiData" => ("uefiData", value(image.uefi_data.as_ref())),
            "imdsSupport" => ("imdsSupport", value(image.imds.as_ref())),
            "launchPermission" => ("launchPermission", json!([])),
            "productCodes" => {
                let code = |c: &String| json!({"productCode": c, "type": "marketplace"});
                ("productCodes", image.product_codes.iter().map(code).collect())
            }
            "blockDeviceMapping" => {
                ("blockDeviceMapping", image.mappings.iter().map(ImageMapping::xml).collect())
            }
            other => {
                return Err(ApiError::value(format!("Value ({other}) for parameter attribute is invalid.")));
            }
        };
        let mut answer = json!({"imageId": id});
        answer[name] = value;
        Ok(answer)
    })
}
