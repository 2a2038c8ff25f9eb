//! Volumes and their attachments.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Tags, tag_set};
use crate::blocks::VolumeFile;
use crate::clock::{Ms, iso};

/// A volume.
#[derive(Clone, Debug, Serialize)]
pub struct Volume {
    /// `vol-…`.
    pub id: String,
    /// Size in GiB.
    pub size_gib: u64,
    /// Availability zone.
    pub zone: String,
    /// `gp3`, …
    pub volume_type: String,
    /// Provisioned operations a second.
    pub iops: Option<u32>,
    /// Provisioned MiB a second.
    pub throughput: Option<u32>,
    /// MiB a second at which blocks of the snapshot come, if that was bought.
    pub initialization_rate: Option<u32>,
    /// Encrypted?
    pub encrypted: bool,
    /// ARN of its key.
    pub kms_key: Option<String>,
    /// The snapshot it was made of.
    pub snapshot_id: Option<String>,
    /// Its tags.
    pub tags: Tags,
    /// Where it is attached.
    pub attachment: Option<Attachment>,
    /// The last change of size or type.
    pub modification: Option<Modification>,
    /// What snapshots it can be compared with.
    #[serde(skip)]
    pub lineage: u64,
    /// When it was made.
    #[serde(skip)]
    pub created_ms: Ms,
    /// From when on it is `available`, if its blocks are there.
    #[serde(skip)]
    pub ready_ms: Ms,
    /// From when on calls find it.
    #[serde(skip)]
    pub visible_ms: Ms,
    /// When it goes, if it was deleted.
    #[serde(skip)]
    pub gone_ms: Option<Ms>,
    /// Shows as `error`: what the matter is.
    pub failed: Option<String>,
    /// When its last snapshot was taken.
    #[serde(skip)]
    pub last_snapshot_ms: Option<Ms>,
    /// Its bytes.
    #[serde(skip)]
    pub file: Arc<VolumeFile>,
}

/// A volume at an instance.
#[derive(Clone, Debug, Serialize)]
pub struct Attachment {
    /// `i-…`.
    pub instance_id: String,
    /// `/dev/sdf`.
    pub device: String,
    /// When it was asked for.
    #[serde(skip)]
    pub asked_ms: Ms,
    /// From when on it is `attached`.
    #[serde(skip)]
    pub attached_ms: Ms,
    /// When it goes, if it is `detaching`.
    #[serde(skip)]
    pub gone_ms: Option<Ms>,
    /// Whether the volume goes with the instance.
    pub delete_on_termination: bool,
}

/// A change of size or type.
#[derive(Clone, Debug, Serialize)]
pub struct Modification {
    /// Size, type, operations and throughput before.
    pub from: (u64, String, Option<u32>, Option<u32>),
    /// When it began.
    #[serde(skip)]
    pub start_ms: Ms,
    /// From when on it is `completed`.
    #[serde(skip)]
    pub end_ms: Ms,
}

impl Attachment {
    /// `attaching`, `attached` or `detaching`.
    pub fn state(&self, now: Ms) -> &'static str {
        match self.gone_ms {
            Some(_) => "detaching",
            None if now < self.attached_ms => "attaching",
            None => "attached",
        }
    }

    /// As answers show it.
    pub fn xml(&self, volume_id: &str, state: &str) -> Value {
        json!({
            "volumeId": volume_id,
            "instanceId": self.instance_id,
            "device": self.device,
            "status": state,
            "attachTime": iso(self.asked_ms),
            "deleteOnTermination": self.delete_on_termination,
        })
    }
}

impl Volume {
    /// `creating`, `available`, `in-use`, `deleting` or `error`.
    pub fn state(&self, now: Ms) -> &'static str {
        if self.failed.is_some() {
            "error"
        } else if self.gone_ms.is_some() {
            "deleting"
        } else if self.attachment.is_some() {
            "in-use"
        } else if now < self.ready_ms || !self.file.is_filled() {
            "creating"
        } else {
            "available"
        }
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_gib << 30
    }

    /// As answers show it.
    pub fn xml(&self, now: Ms, zone_id: Option<String>) -> Value {
        let attachments: Vec<Value> = self.attachment.iter().map(|a| a.xml(&self.id, a.state(now))).collect();
        json!({
            "volumeId": self.id,
            "size": self.size_gib,
            "snapshotId": self.snapshot_id.clone().unwrap_or_default(),
            "availabilityZone": self.zone,
            "availabilityZoneId": zone_id,
            "status": self.state(now),
            "createTime": iso(self.created_ms),
            "attachmentSet": attachments,
            "tagSet": if self.tags.is_empty() { Value::Null } else { tag_set(&self.tags) },
            "volumeType": self.volume_type,
            "iops": self.iops,
            "throughput": self.throughput,
            "volumeInitializationRate": self.initialization_rate,
            "encrypted": self.encrypted,
            "kmsKeyId": self.kms_key,
            "multiAttachEnabled": false,
            "operator": {"managed": false},
        })
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str, now: Ms) -> Option<Vec<String>> {
        let attachment = |of: fn(&Attachment) -> String| self.attachment.iter().map(of).collect();
        Some(match name {
            "volume-id" => vec![self.id.clone()],
            "status" => vec![self.state(now).into()],
            "snapshot-id" => self.snapshot_id.iter().cloned().collect(),
            "availability-zone" => vec![self.zone.clone()],
            "volume-type" => vec![self.volume_type.clone()],
            "size" => vec![self.size_gib.to_string()],
            "encrypted" => vec![self.encrypted.to_string()],
            "create-time" => vec![iso(self.created_ms)],
            "attachment.instance-id" => attachment(|a| a.instance_id.clone()),
            "attachment.device" => attachment(|a| a.device.clone()),
            "attachment.delete-on-termination" => attachment(|a| a.delete_on_termination.to_string()),
            "attachment.status" => self.attachment.iter().map(|a| a.state(now).into()).collect(),
            "multi-attach-enabled" => vec!["false".into()],
            _ => return None,
        })
    }
}

impl Modification {
    /// As answers show it.
    pub fn xml(&self, volume: &Volume, now: Ms) -> Value {
        let done = now >= self.end_ms;
        let span = (self.end_ms - self.start_ms).max(1);
        json!({
            "volumeId": volume.id,
            "modificationState": if done { "completed" } else { "optimizing" },
            "targetSize": volume.size_gib,
            "targetVolumeType": volume.volume_type,
            "targetIops": volume.iops,
            "targetThroughput": volume.throughput,
            "targetMultiAttachEnabled": false,
            "originalSize": self.from.0,
            "originalVolumeType": self.from.1,
            "originalIops": self.from.2,
            "originalThroughput": self.from.3,
            "originalMultiAttachEnabled": false,
            "progress": if done { 100 } else { (now - self.start_ms) * 100 / span },
            "startTime": iso(self.start_ms),
            "endTime": done.then(|| iso(self.end_ms)),
        })
    }
}
