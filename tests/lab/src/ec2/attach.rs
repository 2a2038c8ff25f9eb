//! AttachVolume, DetachVolume, and what they do on this machine.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{Call, Target, types};
use crate::api::{ApiError, ApiResult};
use crate::core::Core;
use crate::state::{Attachment, Region, RunState};

/// `/dev/xvdf` and `/dev/sdf` are one place.
fn place(device: &str) -> String {
    let name = device.trim_start_matches("/dev/");
    let rest = name.strip_prefix("xvd").or_else(|| name.strip_prefix("sd")).unwrap_or(name);
    rest.strip_suffix('1').unwrap_or(rest).to_owned()
}

/// Refuses names that EC2 does not take.
pub fn check_device(device: &str) -> ApiResult<()> {
    let name = device.trim_start_matches("/dev/");
    let rest = name.strip_prefix("xvd").or_else(|| name.strip_prefix("sd"));
    let good = rest.is_some_and(|rest| {
        let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
        (1..=2).contains(&letters.len()) && letters.bytes().all(|b| b.is_ascii_lowercase())
    });
    if good {
        return Ok(());
    }
    let message =
        format!("Value ({device}) for parameter device is invalid. {device} is not a valid EBS device name.");
    Err(ApiError::value(message))
}

/// Whether another volume fits at an instance.
fn check_room(call: &Call<'_>, region: &Region, instance: &str, device: &str) -> ApiResult<()> {
    let attached = region.attached(instance);
    let taken = |a: &Attachment| place(&a.device) == place(device);
    if attached.iter().filter_map(|v| v.attachment.as_ref()).any(taken) {
        let message =
            format!("Invalid value '{device}' for unixDevice. Attachment point {device} is already in use");
        return Err(ApiError::value(message));
    }
    let instance = region.instance(instance, call.now)?;
    let (most, shared) = types::attachments(&instance.instance_type, call.settings.limits.attachments);
    // one network interface, and the disks of the machine itself
    let others = if shared { 1 + instance.instance_store.len() } else { 0 };
    if most > 0 && attached.len() + others >= most {
        let message =
            format!("The maximum number of attachments ({most}) of instance '{}' is reached", instance.id);
        return Err(ApiError::client("AttachmentLimitExceeded", message));
    }
    Ok(())
}

/// Makes the device of a volume that came to the proxy: now, or with the core handed over as `later`, after so many milliseconds, as udev does.
pub fn appear(
    core: &Core,
    region: &Region,
    volume: &str,
    device: &str,
    later: Option<(&Arc<Core>, i64)>,
) -> std::io::Result<()> {
    let Some(volume) = region.volumes.get(volume) else { return Ok(()) };
    let Some(attachment) = &volume.attachment else { return Ok(()) };
    let Some(proxy) = region.instances.get(&attachment.instance_id).filter(|i| i.proxy) else {
        return Ok(());
    };
    let xen = proxy.xen().then(|| format!("xvd{}", place(device)));
    volume.file.fill()?;
    volume.file.others_may_write();
    let shuffle = core.options.seed + region.volumes.len() as u64;
    core.devices.attach(&volume.id, volume.file.path(), xen.as_deref(), shuffle)?;
    let id = volume.id.clone();
    let Some((core, wait_ms)) = later.filter(|(_, wait_ms)| *wait_ms > 0) else {
        return core.devices.appear(&id);
    };
    let core = core.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0)));
        if let Err(error) = core.devices.appear(&id) {
            eprintln!("{id} does not appear: {error}");
        }
    });
    Ok(())
}

pub(super) fn attach(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("VolumeId")?;
    let instance_id = call.params.required("InstanceId")?;
    let device = call.params.required("Device")?;
    call.params.number::<u32>("EbsCardIndex")?;
    check_device(device)?;
    call.with(|region| {
        let volume = region.volume(id, call.now)?;
        let instance = region.instance(instance_id, call.now)?;
        call.allow(&[
            Target::of("volume", id, &volume.tags),
            Target::of("instance", instance_id, &instance.tags),
        ])?;
        match volume.state(call.now) {
            "available" => {}
            "in-use" => {
                let message = format!("{id} is already attached to an instance");
                return Err(ApiError::client("VolumeInUse", message));
            }
            _ => {
                return Err(ApiError::client("IncorrectState", format!("Volume '{id}' is not 'available'.")));
            }
        }
        let state = instance.lifecycle.state(call.now).1;
        if !matches!(state, "running" | "stopped") {
            let message = format!("Instance '{instance_id}' is not 'running'.");
            return Err(ApiError::client("IncorrectState", message));
        }
        if volume.zone != instance.zone {
            let message =
                format!("The volume '{id}' is not in the same availability zone as instance '{instance_id}'");
            return Err(ApiError::client("InvalidVolume.ZoneMismatch", message));
        }
        check_room(call, region, instance_id, device)?;
        let attachment = Attachment {
            instance_id: instance_id.to_owned(),
            device: device.to_owned(),
            asked_ms: call.now,
            attached_ms: call.now + call.settings.timing.attach_ms,
            gone_ms: None,
            delete_on_termination: false,
        };
        let answer = attachment.xml(id, "attaching");
        if let Some(volume) = region.volumes.get_mut(id) {
            volume.attachment = Some(attachment);
        }
        let timing = &call.settings.timing;
        let later = Some((call.core, timing.attach_ms + timing.udev_ms));
        appear(call.core, region, id, device, later)?;
        Ok(answer)
    })
}

pub(super) fn detach(call: &Call<'_>) -> ApiResult<Value> {
    let id = call.params.required("VolumeId")?;
    let (instance_id, device) = (call.params.get("InstanceId"), call.params.get("Device"));
    call.params.flag("Force")?;
    call.with(|region| {
        let volume = region.volume(id, call.now)?;
        let mut targets = vec![Target::of("volume", id, &volume.tags)];
        let instance = volume.attachment.as_ref().and_then(|a| region.instances.get(&a.instance_id));
        targets.extend(instance.map(|i| Target::of("instance", &i.id, &i.tags)));
        call.allow(&targets)?;
        let (Some(attachment), Some(instance)) = (&volume.attachment, instance) else {
            let message = format!("Volume '{id}' is in the 'available' state.");
            return Err(ApiError::client("IncorrectState", message));
        };
        let other = instance_id.is_some_and(|i| i != attachment.instance_id)
            || device.is_some_and(|d| place(d) != place(&attachment.device));
        if other {
            let message = format!("The volume '{id}' is not attached to that instance as that device");
            return Err(ApiError::client("InvalidAttachment.NotFound", message));
        }
        let root = place(&attachment.device) == place(&instance.root_device);
        if root && instance.lifecycle.to == RunState::Running {
            let message = format!("Unable to detach root volume '{id}' from instance '{}'", instance.id);
            return Err(ApiError::client("OperationNotPermitted", message));
        }
        let answer = attachment.xml(id, "detaching");
        if let Some(attachment) = region.volumes.get_mut(id).and_then(|v| v.attachment.as_mut()) {
            attachment.gone_ms = Some(call.now + call.settings.timing.detach_ms);
        }
        Ok(answer)
    })
}
