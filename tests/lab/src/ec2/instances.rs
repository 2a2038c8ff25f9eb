//! Instances: described, started, stopped, ended, changed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Call, Target, types};
use crate::api::{ApiError, ApiResult, Filters, page};
use crate::clock::iso;
use crate::state::{Instance, Lifecycle, Region, RunState};

/// Names of filters of instances.
const FILTERS: [&str; 27] = [
    "instance-id",
    "instance-state-name",
    "instance-state-code",
    "instance-type",
    "image-id",
    "availability-zone",
    "vpc-id",
    "subnet-id",
    "private-ip-address",
    "key-name",
    "platform",
    "platform-details",
    "architecture",
    "root-device-name",
    "root-device-type",
    "reservation-id",
    "owner-id",
    "client-token",
    "instance.group-id",
    "group-id",
    "block-device-mapping.volume-id",
    "block-device-mapping.device-name",
    "iam-instance-profile.arn",
    "tenancy",
    "network-interface.vpc-id",
    "network-interface.subnet-id",
    "instance-lifecycle",
];

/// Instances that ids and filters name.
fn named<'r>(call: &Call<'_>, region: &'r Region) -> ApiResult<Vec<&'r Instance>> {
    let filters = Filters::of(call.params)?;
    filters.check(&FILTERS)?;
    let ids = call.params.list("InstanceId");
    if !ids.is_empty() && call.params.get("MaxResults").is_some() {
        return Err(ApiError::combination(
            "The parameter instancesSet cannot be used with the parameter maxResults",
        ));
    }
    let mut found = Vec::new();
    if ids.is_empty() {
        found.extend(region.instances.values().filter(|i| i.visible_ms <= call.now));
    } else {
        for id in &ids {
            found.push(region.instance(id, call.now)?);
        }
        found.sort_by_key(|i| &i.id);
        found.dedup_by_key(|i| &i.id);
    }
    let mut passed = Vec::new();
    for instance in found {
        if filters.pass(&instance.tags, |name| instance.field(name, region, call.now))? {
            passed.push(instance);
        }
    }
    Ok(passed)
}

pub(super) fn describe(call: &Call<'_>) -> ApiResult<Value> {
    call.with(|region| {
        call.allow(&[])?;
        let every = call.settings.limits.empty_page_every;
        let page = page::page(call.params, named(call, region)?, |i| &i.id, (5, 1000), every)?;
        let reservation = |i: &&Instance| {
            json!({
                "reservationId": i.reservation_id, "ownerId": region.account, "groupSet": [],
                "instancesSet": [i.xml(region, call.now)],
            })
        };
        let set: Vec<Value> = page.items.iter().map(reservation).collect();
        Ok(json!({"reservationSet": set, "nextToken": page.next}))
    })
}

pub(super) fn status(call: &Call<'_>) -> ApiResult<Value> {
    let all = call.params.flag("IncludeAllInstances")?.unwrap_or(false);
    call.with(|region| {
        call.allow(&[])?;
        let mut found = named(call, region)?;
        found.retain(|i| all || i.lifecycle.state(call.now).1 == "running");
        let page =
            page::page(call.params, found, |i| &i.id, (5, 1000), call.settings.limits.empty_page_every)?;
        let status = |i: &&Instance| {
            let running = i.lifecycle.state(call.now).1 == "running";
            let from_ms = i.reboot_ms.map_or(i.lifecycle.at_ms, |at_ms| at_ms.max(i.lifecycle.at_ms));
            let checked_ms = from_ms + call.settings.timing.checks_ms;
            let check = |impaired: bool| {
                let (word, passed) = match (running, call.now >= checked_ms) {
                    (false, _) => return json!({"status": "not-applicable"}),
                    (true, false) => ("initializing", "initializing"),
                    (true, true) if impaired => ("impaired", "failed"),
                    (true, true) => ("ok", "passed"),
                };
                let since = (word == "impaired").then(|| iso(checked_ms));
                json!({"status": word, "details": [{"name": "reachability", "status": passed, "impairedSince": since}]})
            };
            json!({
                "instanceId": i.id, "availabilityZone": i.zone, "availabilityZoneId": region.zone_id(&i.zone),
                "instanceState": i.lifecycle.xml(call.now), "instanceStatus": check(i.impaired),
                "systemStatus": check(false), "attachedEbsStatus": check(false),
            })
        };
        let set: Vec<Value> = page.items.iter().map(status).collect();
        Ok(json!({"instanceStatusSet": set, "nextToken": page.next}))
    })
}

pub(super) fn attribute(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("InstanceId")?;
    let attribute = call.params.required("Attribute")?;
    call.with(|region| {
        let i = region.instance(id, call.now)?;
        call.allow(&[Target::of("instance", id, &i.tags)])?;
        let full = i.xml(region, call.now);
        let value = |v: Value| if v.is_null() { json!({}) } else { json!({"value": v}) };
        let value = match attribute {
            "userData" => value(json!(i.user_data)),
            "disableApiTermination" => value(json!(i.disable_termination)),
            "disableApiStop" => value(json!(i.disable_stop)),
            "instanceInitiatedShutdownBehavior" => value(json!(i.shutdown_behavior)),
            "instanceType" => value(json!(i.instance_type)),
            "kernel" | "ramdisk" => value(Value::Null),
            "rootDeviceName" => value(json!(i.root_device)),
            "ebsOptimized" => value(json!(i.ebs_optimized)),
            "enaSupport" => value(json!(i.ena)),
            "sourceDestCheck" => value(json!(i.source_dest_check)),
            "sriovNetSupport" => value(json!(i.sriov)),
            "enclaveOptions" => json!({"enabled": false}),
            "blockDeviceMapping" | "productCodes" | "groupSet" => full[attribute].clone(),
            other => {
                return Err(ApiError::value(format!("Value ({other}) for parameter attribute is invalid.")));
            }
        };
        let mut answer = json!({"instanceId": id});
        answer[attribute] = value;
        Ok(answer)
    })
}

pub(super) fn modify(call: &Call<'_>) -> ApiResult<Value> {
    let params = call.params;
    let id = params.required("InstanceId")?;
    let termination = params.flag("DisableApiTermination.Value")?;
    let stop = params.flag("DisableApiStop.Value")?;
    let source_dest = params.flag("SourceDestCheck.Value")?;
    let optimized = params.flag("EbsOptimized.Value")?;
    let ena = params.flag("EnaSupport.Value")?;
    let named = params.get("Attribute");
    let value = params.text("Value");
    let of = |name: &str| if named == Some(name) { value.clone() } else { None };
    let kind = params.text("InstanceType.Value").or_else(|| of("instanceType"));
    let behavior = params
        .text("InstanceInitiatedShutdownBehavior.Value")
        .or_else(|| of("instanceInitiatedShutdownBehavior"));
    let user_data = params.text("UserData.Value").or_else(|| of("userData"));
    let groups = params.list("GroupId");
    let mut deletes = Vec::new();
    for mapping in params.structures("BlockDeviceMapping") {
        let device = mapping.required("DeviceName")?.to_owned();
        mapping.get("Ebs.VolumeId");
        deletes.extend(mapping.flag("Ebs.DeleteOnTermination")?.map(|delete| (device, delete)));
    }
    call.with(|region| {
        let instance = region.instance(id, call.now)?;
        call.allow(&[Target::of("instance", id, &instance.tags)])?;
        let stopped = instance.lifecycle.state(call.now).1 == "stopped";
        if (kind.is_some() || user_data.is_some() || ena.is_some() || optimized.is_some()) && !stopped {
            let message = format!("The instance '{id}' is not in the 'stopped' state.");
            return Err(ApiError::client("IncorrectInstanceState", message));
        }
        if let Some(kind) = &kind {
            types::architecture(kind)?;
        }
        if let Some(unknown) = groups.iter().find(|g| !region.groups.contains_key(*g)) {
            return Err(ApiError::not_found("InvalidGroup.NotFound", "security group", unknown));
        }
        for (device, delete) in deletes {
            let mine = |a: &&mut crate::state::Attachment| a.instance_id == *id && a.device == device;
            let attachment = region.volumes.values_mut().filter_map(|v| v.attachment.as_mut()).find(mine);
            let missing = || {
                let message = format!("No device is currently mapped at {device}");
                ApiError::client("InvalidInstanceAttributeValue", message)
            };
            attachment.ok_or_else(missing)?.delete_on_termination = delete;
        }
        let Some(instance) = region.instances.get_mut(id) else {
            return Err(ApiError::missing("InstanceId"));
        };
        instance.disable_termination = termination.unwrap_or(instance.disable_termination);
        instance.disable_stop = stop.unwrap_or(instance.disable_stop);
        instance.source_dest_check = source_dest.unwrap_or(instance.source_dest_check);
        instance.ebs_optimized = optimized.unwrap_or(instance.ebs_optimized);
        instance.ena = ena.unwrap_or(instance.ena);
        instance.instance_type = kind.unwrap_or(std::mem::take(&mut instance.instance_type));
        instance.shutdown_behavior = behavior.unwrap_or(std::mem::take(&mut instance.shutdown_behavior));
        instance.user_data = user_data.or(instance.user_data.take());
        if !groups.is_empty() {
            instance.network.groups = groups;
        }
        Ok(json!({"return": true}))
    })
}

/// Brings instances on their way to a state. `from`: states it can be left from; others are already there, or refused.
fn go(
    call: &Call<'_>,
    to: RunState,
    from: &[&str],
    already: &[&str],
    refuse: impl Fn(&Instance) -> Option<ApiError>,
) -> ApiResult<Value> {
    let ids = call.params.list("InstanceId");
    if ids.is_empty() {
        return Err(ApiError::missing("InstanceId"));
    }
    call.with(|region| {
        let mut targets = Vec::new();
        for id in &ids {
            targets.push(Target::of("instance", id, &region.instance(id, call.now)?.tags));
        }
        call.allow(&targets)?;
        for id in &ids {
            let instance = region.instance(id, call.now)?;
            let state = instance.lifecycle.state(call.now).1;
            if !from.contains(&state) && !already.contains(&state) {
                let message = format!(
                    "The instance '{id}' is not in a state from which it can be {}: {state}",
                    match to {
                        RunState::Running => "started",
                        RunState::Stopped => "stopped",
                        RunState::Terminated => "terminated",
                    }
                );
                return Err(ApiError::client("IncorrectInstanceState", message));
            }
            if let Some(error) = refuse(instance) {
                return Err(error);
            }
        }
        let mut set = Vec::new();
        for id in &ids {
            let Some(instance) = region.instances.get_mut(id) else { continue };
            let previous = instance.lifecycle.xml(call.now);
            if from.contains(&instance.lifecycle.state(call.now).1) {
                instance.lifecycle =
                    Lifecycle { to, at_ms: call.now + call.settings.timing.instance_ms.max(1) };
                if to == RunState::Running {
                    instance.launch_ms = call.now;
                }
            }
            let current = instance.lifecycle.xml(call.now);
            set.push(json!({"instanceId": id, "previousState": previous, "currentState": current}));
        }
        Ok(json!({"instancesSet": set}))
    })
}

pub(super) fn start(call: &Call<'_>) -> ApiResult<Value> {
    call.params.get("AdditionalInfo");
    go(call, RunState::Running, &["stopped"], &["pending", "running"], |_| None)
}

pub(super) fn stop(call: &Call<'_>) -> ApiResult<Value> {
    call.params.flag("Force")?;
    call.params.flag("Hibernate")?;
    go(call, RunState::Stopped, &["running"], &["stopping", "stopped"], |instance| {
        let message = format!(
            "The instance '{}' may not be stopped. Modify its 'disableApiStop' instance attribute and try again.",
            instance.id
        );
        instance.disable_stop.then(|| ApiError::client("OperationNotPermitted", message))
    })
}

pub(super) fn terminate(call: &Call<'_>) -> ApiResult<Value> {
    call.params.flag("Force")?;
    let from = ["pending", "running", "stopping", "stopped"];
    go(call, RunState::Terminated, &from, &["shutting-down", "terminated"], |instance| {
        let message = format!(
            "The instance '{}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.",
            instance.id
        );
        instance.disable_termination.then(|| ApiError::client("OperationNotPermitted", message))
    })
}

/// The machine stays `running`; its status checks begin anew.
pub(super) fn reboot(call: &Call<'_>) -> ApiResult<Value> {
    let ids = call.params.list("InstanceId");
    if ids.is_empty() {
        return Err(ApiError::missing("InstanceId"));
    }
    call.with(|region| {
        let mut targets = Vec::new();
        for id in &ids {
            targets.push(Target::of("instance", id, &region.instance(id, call.now)?.tags));
        }
        call.allow(&targets)?;
        for id in &ids {
            let state = region.instance(id, call.now)?.lifecycle.state(call.now).1;
            if !matches!(state, "running" | "shutting-down" | "terminated") {
                let message = format!("The instance '{id}' is not in the 'running' state: {state}");
                return Err(ApiError::client("IncorrectInstanceState", message));
            }
        }
        for id in &ids {
            if let Some(instance) = region.instances.get_mut(id) {
                instance.reboot_ms = Some(call.now);
            }
        }
        Ok(json!({"return": true}))
    })
}

/// Machines that boot by BIOS have no variables.
pub(super) fn uefi_data(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("InstanceId")?;
    call.with(|region| {
        let instance = region.instance(id, call.now)?;
        call.allow(&[Target::of("instance", id, &instance.tags)])?;
        Ok(json!({"instanceId": id, "uefiData": instance.uefi_data}))
    })
}

pub(super) fn console(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("InstanceId")?;
    call.params.flag("Latest")?;
    call.with(|region| {
        let instance = region.instance(id, call.now)?;
        call.allow(&[Target::of("instance", id, &instance.tags)])?;
        let output = (!instance.console.is_empty()).then(|| STANDARD.encode(&instance.console));
        Ok(json!({"instanceId": id, "timestamp": iso(call.now), "output": output}))
    })
}
