//! Instances and volumes as they are.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Filter, Instance, InstanceAttributeName};
use serde_json::{Map, Value, json};

use super::clients::Clients;
use super::error::{AwsError, Kind};
use super::retry::Patience;
use super::tags::{self, Tags};
use super::whole::Capture;

const PAGE: i32 = 200;

/// An instance.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `i-…`.
    pub id: String,
    /// All tags.
    pub tags: Tags,
    /// `m5.large`.
    pub instance_type: String,
    /// Its availability zone.
    pub zone: String,
    /// `running`, `stopped`, …
    pub state: String,
    /// `Linux/UNIX`, `Windows`, …
    pub platform: String,
    /// The image it was launched from.
    pub image: Option<String>,
    /// `/dev/xvda`.
    pub root_device: String,
    /// Its EBS volumes.
    pub attached: Vec<Attached>,
    /// All that AWS says of it.
    pub whole: Value,
}

/// A volume at an instance.
#[derive(Clone, Debug)]
pub struct Attached {
    /// `/dev/sdf`.
    pub device: String,
    /// `vol-…`.
    pub volume: String,
    /// True for the root.
    pub root: bool,
}

/// A volume.
#[derive(Clone, Debug)]
pub struct VolumeFacts {
    /// `vol-…`.
    pub id: String,
    /// Its size.
    pub size_gib: u64,
    /// `gp3`.
    pub kind: String,
    /// `available`, `in-use`, …
    pub state: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// All tags.
    pub tags: Tags,
    /// Attachments: instance, device, state.
    pub attachments: Vec<(String, String, String)>,
    /// All that AWS says of it.
    pub whole: Value,
}

impl Machine {
    /// Its tag `Name`.
    pub fn name(&self) -> &str {
        self.tags.get("Name").map_or("", String::as_str)
    }

    /// True for Windows, whose images made of snapshots do not launch.
    pub fn is_windows(&self) -> bool {
        self.platform.to_ascii_lowercase().contains("windows")
    }

    /// True if its firmware is UEFI, as it started last.
    pub fn boots_by_uefi(&self) -> bool {
        self.whole["currentInstanceBootMode"].as_str().or(self.whole["bootMode"].as_str()) == Some("uefi")
    }
}

/// Instances by ids, or by filters, or all; terminated ones are left out.
pub async fn machines(aws: &Clients, ids: &[String], filters: &[Filter]) -> Result<Vec<Machine>, AwsError> {
    let object = format!("{} in {}", ids.join(" "), aws.region);
    let object = object.trim_start();
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let capture = Capture::default();
        let page = aws
            .retry
            .call("DescribeInstances", object, Patience::USUAL, || {
                let call = aws.ec2.describe_instances().set_next_token(token.clone());
                let call = match ids {
                    // A page size and ids exclude each other.
                    [] => call.max_results(PAGE).set_filters(Some(filters.to_vec())),
                    ids => call.set_instance_ids(Some(ids.to_vec())),
                };
                call.customize().interceptor(capture.clone()).send()
            })
            .await?;
        let whole = by_id(&capture.json()["reservationSet"], Some("instancesSet"), "instanceId");
        for instance in page.reservations().iter().flat_map(|r| r.instances()) {
            let machine = machine(instance, &whole);
            if machine.state != "terminated" && machine.state != "shutting-down" {
                found.push(machine);
            }
        }
        token = page.next_token().filter(|t| !t.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// Items of an answer by their id; with `inner`, of a list in each.
fn by_id(list: &Value, inner: Option<&str>, id: &str) -> BTreeMap<String, Value> {
    let outer = list.as_array().into_iter().flatten();
    let items: Vec<&Value> = match inner {
        Some(inner) => outer.flat_map(|item| item[inner].as_array().into_iter().flatten()).collect(),
        None => outer.collect(),
    };
    items.into_iter().filter_map(|item| Some((item[id].as_str()?.to_owned(), item.clone()))).collect()
}

fn machine(instance: &Instance, whole: &BTreeMap<String, Value>) -> Machine {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let id = text(instance.instance_id());
    let root_device = text(instance.root_device_name());
    let mut attached: Vec<Attached> = instance
        .block_device_mappings()
        .iter()
        .filter_map(|mapping| {
            let device = mapping.device_name()?.to_owned();
            let volume = mapping.ebs()?.volume_id()?.to_owned();
            Some(Attached { root: device == root_device, device, volume })
        })
        .collect();
    // AWS lists them in no order.
    attached.sort_by(|a, b| (!a.root, &a.device).cmp(&(!b.root, &b.device)));
    let platform = instance
        .platform_details()
        .or_else(|| instance.platform().map(|p| p.as_str()))
        .unwrap_or("Linux/UNIX");
    Machine {
        tags: tags::of(instance.tags()),
        instance_type: text(instance.instance_type().map(|t| t.as_str())),
        zone: text(instance.placement().and_then(|p| p.availability_zone())),
        state: text(instance.state().and_then(|s| s.name()).map(|n| n.as_str())),
        platform: platform.to_owned(),
        image: instance.image_id().map(str::to_owned),
        root_device,
        attached,
        whole: whole.get(&id).cloned().unwrap_or_default(),
        id,
    }
}

/// The instances asked for by id; an error names those that are not there.
pub async fn machines_by_id(aws: &Clients, ids: &[String]) -> Result<Vec<Machine>, AwsError> {
    let found = machines(aws, ids, &[]).await?;
    let missing: Vec<&str> =
        ids.iter().filter(|id| !found.iter().any(|m| m.id == **id)).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(found);
    }
    let message = format!("there is no such instance in {}, or it is terminated", aws.region);
    Err(AwsError::new("DescribeInstances", missing.join(" "), Kind::NotFound, message))
}

/// Volumes by ids, or by filters.
pub async fn volumes(
    aws: &Clients,
    ids: &[String],
    filters: &[Filter],
    patience: Patience,
) -> Result<Vec<VolumeFacts>, AwsError> {
    let object = if ids.is_empty() { format!("in {}", aws.region) } else { ids.join(" ") };
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let capture = Capture::default();
        let page = aws
            .retry
            .call("DescribeVolumes", &object, patience, || {
                let call = aws.ec2.describe_volumes().set_next_token(token.clone());
                let call = match ids {
                    [] => call.max_results(PAGE).set_filters(Some(filters.to_vec())),
                    ids => call.set_volume_ids(Some(ids.to_vec())),
                };
                call.customize().interceptor(capture.clone()).send()
            })
            .await?;
        let whole = by_id(&capture.json()["volumeSet"], None, "volumeId");
        for volume in page.volumes() {
            let id = volume.volume_id().unwrap_or_default().to_owned();
            let attachments = volume.attachments().iter().map(|a| {
                (
                    a.instance_id().unwrap_or_default().to_owned(),
                    a.device().unwrap_or_default().to_owned(),
                    a.state().map(|s| s.as_str()).unwrap_or_default().to_owned(),
                )
            });
            found.push(VolumeFacts {
                size_gib: volume.size().and_then(|s| u64::try_from(s).ok()).unwrap_or_default(),
                kind: volume.volume_type().map(|t| t.as_str()).unwrap_or_default().to_owned(),
                state: volume.state().map(|s| s.as_str()).unwrap_or_default().to_owned(),
                encrypted: volume.encrypted().unwrap_or_default(),
                tags: tags::of(volume.tags()),
                attachments: attachments.collect(),
                whole: whole.get(&id).cloned().unwrap_or_default(),
                id,
            });
        }
        token = page.next_token().filter(|t| !t.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// The variables of an instance's firmware (Secure Boot keys, boot entries), as AWS encodes them; `None` if it has none.
async fn uefi_data(aws: &Clients, instance: &str) -> Result<Option<String>, AwsError> {
    let answer = aws
        .retry
        .call("GetInstanceUefiData", instance, Patience::USUAL, || {
            aws.ec2.get_instance_uefi_data().instance_id(instance).send()
        })
        .await?;
    Ok(answer.uefi_data().filter(|data| !data.is_empty()).map(str::to_owned))
}

/// Attributes of an instance that its description does not have.
const ATTRIBUTES: [(InstanceAttributeName, &str); 4] = [
    (InstanceAttributeName::UserData, "userData"),
    (InstanceAttributeName::DisableApiTermination, "disableApiTermination"),
    (InstanceAttributeName::DisableApiStop, "disableApiStop"),
    (InstanceAttributeName::InstanceInitiatedShutdownBehavior, "instanceInitiatedShutdownBehavior"),
];

/// Everything that a restore of the machine may want to know, as AWS says it: `instance`, `attributes`, `image`, `volumes`, `uefi_data` of one that boots by UEFI,
/// `notes` on what could not be asked.
pub async fn configuration(
    aws: &Clients,
    machine: &Machine,
    volumes: &[VolumeFacts],
) -> Result<Value, AwsError> {
    let mut attributes = Map::new();
    let mut notes: Vec<String> = Vec::new();
    for (attribute, name) in ATTRIBUTES {
        let capture = Capture::default();
        let answer = aws
            .retry
            .call("DescribeInstanceAttribute", &machine.id, Patience::USUAL, || {
                let call = aws
                    .ec2
                    .describe_instance_attribute()
                    .instance_id(&machine.id)
                    .attribute(attribute.clone());
                call.customize().interceptor(capture.clone()).send()
            })
            .await;
        match answer {
            Ok(_) => drop(attributes.insert(name.into(), capture.json()[name]["value"].clone())),
            // A backup without it is better than none.
            Err(error) if error.kind == Kind::Denied => notes.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let mut uefi_data = Value::Null;
    if machine.boots_by_uefi() {
        match self::uefi_data(aws, &machine.id).await {
            Ok(data) => uefi_data = data.into(),
            Err(error) if matches!(error.kind, Kind::Denied | Kind::Refused | Kind::State) => {
                notes.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    let mut image = Value::Null;
    if let Some(id) = &machine.image {
        let capture = Capture::default();
        let answer = aws
            .retry
            .call("DescribeImages", id, Patience::USUAL, || {
                aws.ec2.describe_images().image_ids(id).customize().interceptor(capture.clone()).send()
            })
            .await;
        match answer {
            Ok(_) => image = capture.json()["imagesSet"][0].clone(),
            Err(error) if matches!(error.kind, Kind::Denied | Kind::NotFound | Kind::Refused) => {
                notes.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(json!({
        "id": machine.id,
        "region": aws.region,
        "instance": machine.whole,
        "attributes": attributes,
        "image": image,
        "uefi_data": uefi_data,
        "volumes": volumes.iter().map(|v| &v.whole).collect::<Vec<_>>(),
        "notes": notes,
    }))
}
