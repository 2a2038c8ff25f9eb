//! Images.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Tags, tag_set};
use crate::clock::{Ms, iso};

/// An AMI.
#[derive(Clone, Debug, Serialize)]
pub struct Image {
    /// `ami-…`.
    pub id: String,
    /// Its name, unique in the account.
    pub name: String,
    /// For people.
    pub description: String,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// `/dev/xvda`.
    pub root_device: String,
    /// `hvm` or `paravirtual`.
    pub virtualization: String,
    /// Enhanced networking.
    pub ena: bool,
    /// `simple`, if the older kind of enhanced networking is there.
    pub sriov: Option<String>,
    /// `legacy-bios`, `uefi`, `uefi-preferred`.
    pub boot_mode: Option<String>,
    /// `v2.0`.
    pub tpm: Option<String>,
    /// UEFI variables, base64.
    pub uefi_data: Option<String>,
    /// `v2.0`.
    pub imds: Option<String>,
    /// `windows`, or nothing.
    pub platform: Option<String>,
    /// `Linux/UNIX`.
    pub platform_details: String,
    /// `RunInstances`.
    pub usage_operation: String,
    /// Product codes.
    pub product_codes: Vec<String>,
    /// Codes of what AWS bills for the system itself: `bp-…`.
    pub billing_products: Vec<String>,
    /// Kernel of paravirtual images.
    pub kernel: Option<String>,
    /// RAM disk of paravirtual images.
    pub ramdisk: Option<String>,
    /// Devices.
    pub mappings: Vec<ImageMapping>,
    /// The instance it was made of.
    pub source_instance: Option<String>,
    /// Its tags.
    pub tags: Tags,
    /// Account that owns it.
    pub owner: String,
    /// Shows as `failed`: what the matter is.
    pub failed: Option<String>,
    /// When it was made.
    #[serde(skip)]
    pub created_ms: Ms,
    /// From when on it is `available`, if its snapshots are complete.
    #[serde(skip)]
    pub ready_ms: Ms,
    /// From when on calls find it.
    #[serde(skip)]
    pub visible_ms: Ms,
}

/// A device of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageMapping {
    /// `/dev/sdf`.
    pub device: String,
    /// `ephemeral0`, for instance storage.
    pub virtual_name: Option<String>,
    /// The snapshot; `None` for an empty volume.
    pub snapshot_id: Option<String>,
    /// Size in GiB.
    pub size_gib: Option<u64>,
    /// `gp3`, …
    pub volume_type: Option<String>,
    /// Operations a second.
    pub iops: Option<u32>,
    /// MiB a second.
    pub throughput: Option<u32>,
    /// Whether volumes go with the instance.
    pub delete_on_termination: Option<bool>,
    /// Encrypted?
    pub encrypted: Option<bool>,
    /// Key of new volumes.
    pub kms_key: Option<String>,
    /// Nothing at this device, whatever the image says.
    pub no_device: bool,
}

impl ImageMapping {
    /// As answers show it.
    pub fn xml(&self) -> Value {
        if let Some(name) = &self.virtual_name {
            return json!({"deviceName": self.device, "virtualName": name});
        }
        json!({
            "deviceName": self.device,
            "ebs": {
                "snapshotId": self.snapshot_id,
                "volumeSize": self.size_gib,
                "volumeType": self.volume_type.clone().unwrap_or_else(|| "gp2".into()),
                "iops": self.iops,
                "throughput": self.throughput,
                "deleteOnTermination": self.delete_on_termination.unwrap_or(true),
                "encrypted": self.encrypted.unwrap_or(false),
                "kmsKeyId": self.kms_key,
            },
        })
    }
}

impl Image {
    /// `pending`, `available` or `failed`. `waiting`: a snapshot of it is not complete.
    pub fn state(&self, now: Ms, waiting: bool) -> &'static str {
        match self.failed {
            Some(_) => "failed",
            None if now < self.ready_ms || waiting => "pending",
            None => "available",
        }
    }

    /// As answers show it.
    pub fn xml(&self, now: Ms, waiting: bool) -> Value {
        let mappings: Vec<Value> = self.mappings.iter().map(ImageMapping::xml).collect();
        let codes: Vec<Value> =
            self.product_codes.iter().map(|c| json!({"productCode": c, "type": "marketplace"})).collect();
        json!({
            "imageId": self.id,
            "imageLocation": format!("{}/{}", self.owner, self.name),
            "imageState": self.state(now, waiting),
            "stateReason": self.failed.as_ref().map(|m| json!({"code": "Client.InternalError", "message": m})),
            "imageOwnerId": self.owner,
            "creationDate": iso(self.created_ms),
            "isPublic": false,
            "productCodes": if codes.is_empty() { Value::Null } else { Value::from(codes) },
            "architecture": self.architecture,
            "imageType": "machine",
            "kernelId": self.kernel,
            "ramdiskId": self.ramdisk,
            "platform": self.platform,
            "platformDetails": self.platform_details,
            "usageOperation": self.usage_operation,
            "blockDeviceMapping": mappings,
            "description": if self.description.is_empty() { None } else { Some(&self.description) },
            "enaSupport": self.ena,
            "hypervisor": "xen",
            "name": self.name,
            "rootDeviceName": self.root_device,
            "rootDeviceType": "ebs",
            "sriovNetSupport": self.sriov,
            "tagSet": if self.tags.is_empty() { Value::Null } else { tag_set(&self.tags) },
            "virtualizationType": self.virtualization,
            "bootMode": self.boot_mode,
            "tpmSupport": self.tpm,
            "imdsSupport": self.imds,
            "sourceInstanceId": self.source_instance,
        })
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str, now: Ms, waiting: bool) -> Option<Vec<String>> {
        let ebs = |of: fn(&ImageMapping) -> Option<String>| self.mappings.iter().filter_map(of).collect();
        Some(match name {
            "image-id" => vec![self.id.clone()],
            "name" => vec![self.name.clone()],
            "state" => vec![self.state(now, waiting).into()],
            "description" => vec![self.description.clone()],
            "architecture" => vec![self.architecture.clone()],
            "owner-id" => vec![self.owner.clone()],
            "root-device-name" => vec![self.root_device.clone()],
            "root-device-type" => vec!["ebs".into()],
            "virtualization-type" => vec![self.virtualization.clone()],
            "platform" => self.platform.iter().cloned().collect(),
            "image-type" => vec!["machine".into()],
            "is-public" => vec!["false".into()],
            "ena-support" => vec![self.ena.to_string()],
            "creation-date" => vec![iso(self.created_ms)],
            "block-device-mapping.snapshot-id" => ebs(|m| m.snapshot_id.clone()),
            "block-device-mapping.device-name" => ebs(|m| Some(m.device.clone())),
            "block-device-mapping.volume-size" => ebs(|m| m.size_gib.map(|s| s.to_string())),
            "source-instance-id" => self.source_instance.iter().cloned().collect(),
            _ => return None,
        })
    }
}
