//! Snapshots: finished, in work, or being written through the EBS direct APIs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Tags, tag_set};
use crate::blocks::BlockMap;
use crate::clock::{Ms, iso};

/// How a snapshot came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Origin {
    /// Of a volume.
    Volume,
    /// Written through the EBS direct APIs.
    Direct,
    /// A copy.
    Copy,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// `snap-…`.
    pub id: String,
    /// The volume; `vol-ffffffff` if there is none.
    pub volume_id: String,
    /// Size in GiB.
    pub size_gib: u64,
    /// For people.
    pub description: String,
    /// Its tags.
    pub tags: Tags,
    /// Encrypted?
    pub encrypted: bool,
    /// ARN of its key.
    pub kms_key: Option<String>,
    /// Account that owns it.
    pub owner: String,
    /// How it came to be.
    pub origin: Origin,
    /// The snapshot it was started from.
    pub parent: Option<String>,
    /// Accounts that may make volumes of it.
    pub shared_with: Vec<String>,
    /// What it can be compared with.
    #[serde(skip)]
    pub lineage: u64,
    /// The moment it shows.
    #[serde(skip)]
    pub start_ms: Ms,
    /// From when on it is `completed`; far away while it is written.
    #[serde(skip)]
    pub complete_ms: Ms,
    /// From when on calls find it.
    #[serde(skip)]
    pub visible_ms: Ms,
    /// Shows as `error`: what the matter is.
    pub failed: Option<String>,
    /// Ends as `error` at `complete_ms`, with this message.
    #[serde(skip)]
    pub will_fail: Option<String>,
    /// Its blocks; `None` while it is written.
    #[serde(skip)]
    pub map: Option<Arc<BlockMap>>,
    /// What was put so far.
    #[serde(skip)]
    pub writing: Option<Writing>,
}

/// A snapshot that is being written.
#[derive(Clone, Debug)]
pub struct Writing {
    /// Fails if nothing is put until then.
    pub deadline_ms: Ms,
    /// Length of that deadline.
    pub timeout_ms: Ms,
    /// What it starts from.
    pub base: Arc<BlockMap>,
    /// Block index → stored block and its SHA-256. A reference is held for each.
    pub blocks: BTreeMap<u32, (u32, [u8; 32])>,
}

/// Never.
pub const NEVER_MS: Ms = Ms::MAX / 4;

impl Snapshot {
    /// `pending`, `completed` or `error`.
    pub fn state(&self, now: Ms) -> &'static str {
        if self.failed.is_some() || (self.will_fail.is_some() && now >= self.complete_ms) {
            "error"
        } else if self.map.is_none() || now < self.complete_ms {
            "pending"
        } else {
            "completed"
        }
    }

    /// Percent done.
    pub fn progress(&self, now: Ms) -> i64 {
        if self.state(now) == "completed" {
            return 100;
        }
        let span = self.complete_ms - self.start_ms;
        if span <= 0 || span > NEVER_MS / 2 { 0 } else { ((now - self.start_ms) * 100 / span).clamp(0, 99) }
    }

    /// As answers show it; `set` for those of CreateSnapshots, which are shorter.
    pub fn xml(&self, now: Ms, set: bool) -> Value {
        let state = self.state(now);
        let message = self.failed.clone().or_else(|| self.will_fail.clone().filter(|_| state == "error"));
        let mut value = json!({
            "snapshotId": self.id,
            "volumeId": self.volume_id,
            "startTime": iso(self.start_ms),
            "progress": format!("{}%", self.progress(now)),
            "ownerId": self.owner,
            "volumeSize": self.size_gib,
            "description": self.description,
            "encrypted": self.encrypted,
            "tagSet": if self.tags.is_empty() { Value::Null } else { tag_set(&self.tags) },
        });
        if set {
            value["state"] = json!(state);
        } else {
            value["status"] = json!(state);
            value["statusMessage"] = json!(message);
            value["kmsKeyId"] = json!(self.kms_key);
            value["storageTier"] = json!("standard");
            if state == "completed" {
                value["completionTime"] = json!(iso(self.complete_ms));
                let blocks = self.map.as_ref().map_or(0, |map| map.entries().len());
                value["fullSnapshotSizeInBytes"] = json!(blocks * crate::blocks::BLOCK_BYTES);
            }
        }
        value
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str, now: Ms) -> Option<Vec<String>> {
        Some(match name {
            "snapshot-id" => vec![self.id.clone()],
            "volume-id" => vec![self.volume_id.clone()],
            "status" => vec![self.state(now).into()],
            "description" => vec![self.description.clone()],
            "owner-id" => vec![self.owner.clone()],
            "owner-alias" => vec![],
            "progress" => vec![format!("{}%", self.progress(now))],
            "start-time" => vec![iso(self.start_ms)],
            "volume-size" => vec![self.size_gib.to_string()],
            "encrypted" => vec![self.encrypted.to_string()],
            "storage-tier" => vec!["standard".into()],
            _ => return None,
        })
    }

    /// Gives up what was put.
    pub fn abandon(&mut self) {
        if let Some(writing) = self.writing.take() {
            writing.base.store().release(writing.blocks.values().map(|b| b.0));
        }
    }
}
