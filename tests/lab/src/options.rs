//! How the lab behaves: times, limits, quotas.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;

/// What [`crate::Lab::start`] is told. `Options::default()` is a quick account of three zones without machines in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where volumes, blocks and devices are kept; `None`: a temporary directory, removed at the end. State is not read back: a lab starts afresh.
    pub root: Option<PathBuf>,
    /// The region of the scenario. Other regions exist, and are empty.
    pub region: String,
    /// Twelve digits.
    pub account: String,
    /// Everything random follows from it: ids, tokens, faults.
    pub seed: u64,
    /// How long things take.
    pub timing: Timing,
    /// How much there may be of something.
    pub limits: Limits,
    /// How fast calls may come.
    pub quotas: Quotas,
    /// What an attached volume of the proxy is on this machine.
    pub devices: Devices,
    /// Whether signatures are checked against the secrets of known access keys.
    pub verify_signatures: bool,
    /// Every call goes there, a JSON object a line.
    pub log: Option<PathBuf>,
    /// The account at the start.
    pub scenario: Scenario,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            root: None,
            region: "us-east-1".into(),
            account: "123456789012".into(),
            seed: 1,
            timing: Timing::default(),
            limits: Limits::default(),
            quotas: Quotas::default(),
            devices: Devices::default(),
            verify_signatures: true,
            log: None,
            scenario: Scenario::default(),
        }
    }
}

/// What an attached volume of the proxy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Devices {
    /// A loop device; needs root.
    #[default]
    Loop,
    /// The volume's file itself, behind the same links: for machines without loop devices.
    File,
    /// Nothing appears.
    None,
}

/// Durations in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// `pending` to `completed`, with progress in between.
    pub snapshot_ms: i64,
    /// `creating` to `available`.
    pub volume_ms: i64,
    /// How long a deleted volume is seen as `deleting`.
    pub delete_ms: i64,
    /// `attaching` to `attached`.
    pub attach_ms: i64,
    /// `detaching` until it is gone.
    pub detach_ms: i64,
    /// From `attached` until the by-id link is there.
    pub udev_ms: i64,
    /// `pending` to `available`.
    pub image_ms: i64,
    /// `pending` to `running`, `stopping` to `stopped`, `shutting-down` to `terminated`.
    pub instance_ms: i64,
    /// From `running` until both status checks are `ok`.
    pub checks_ms: i64,
    /// How long a terminated instance is still described.
    pub terminated_ms: i64,
    /// How long something new is not found.
    pub eventual_ms: i64,
    /// Lifetime of block tokens.
    pub block_token_ms: i64,
    /// Lifetime of page tokens.
    pub page_token_ms: i64,
    /// How long a volume modification is `optimizing`.
    pub modify_ms: i64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            snapshot_ms: 200,
            volume_ms: 50,
            delete_ms: 0,
            attach_ms: 50,
            detach_ms: 50,
            udev_ms: 50,
            image_ms: 200,
            instance_ms: 100,
            checks_ms: 100,
            terminated_ms: 3_600_000,
            eventual_ms: 0,
            block_token_ms: 7 * 24 * 3_600_000,
            page_token_ms: 3_600_000,
            modify_ms: 100,
        }
    }
}

impl Timing {
    /// Every state is reached at once.
    pub fn instant() -> Self {
        Self {
            snapshot_ms: 0,
            volume_ms: 0,
            attach_ms: 0,
            detach_ms: 0,
            udev_ms: 0,
            image_ms: 0,
            instance_ms: 0,
            checks_ms: 0,
            modify_ms: 0,
            ..Self::default()
        }
    }
}

/// How much there may be. 0 means without limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Attachments of an instance, network interfaces among them, where the instance type shares them.
    pub attachments: usize,
    /// Volumes of the account.
    pub volumes: usize,
    /// GiB of all volumes of one type.
    pub storage_gib: u64,
    /// Snapshots that may be pending at a time for one volume.
    pub pending_per_volume: usize,
    /// Snapshots that may be pending at a time for the account.
    pub pending_snapshots: usize,
    /// Least milliseconds between two snapshots of a volume.
    pub snapshot_interval_ms: i64,
    /// Rules of a security group, for what comes in and for what goes out each.
    pub group_rules: usize,
    /// Tags of a resource.
    pub tags: usize,
    /// An answer with pages is empty every so many pages, and goes on in the next.
    pub empty_page_every: usize,
    /// Milliseconds that the time in a signature may be off; 0: it is not looked at.
    pub signature_ms: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attachments: 28,
            volumes: 5000,
            storage_gib: 51_200,
            pending_per_volume: 5,
            pending_snapshots: 100,
            snapshot_interval_ms: 0,
            group_rules: 60,
            tags: 50,
            empty_page_every: 0,
            signature_ms: 0,
        }
    }
}

/// A token bucket: how many calls at once, and how many come back each second. `per_second` 0 means without limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Calls at once.
    pub burst: f64,
    /// Calls a second.
    pub per_second: f64,
}

impl Bucket {
    /// A bucket of this size and refill.
    pub const fn new(burst: f64, per_second: f64) -> Self {
        Self { burst, per_second }
    }

    /// No limit.
    pub const OFF: Self = Self::new(0.0, 0.0);
}

/// Request quotas.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// GetSnapshotBlock, per account.
    pub get: Bucket,
    /// GetSnapshotBlock, per snapshot.
    pub get_per_snapshot: Bucket,
    /// PutSnapshotBlock, per account.
    pub put: Bucket,
    /// PutSnapshotBlock, per snapshot.
    pub put_per_snapshot: Bucket,
    /// ListSnapshotBlocks and ListChangedBlocks each.
    pub list: Bucket,
    /// StartSnapshot.
    pub start: Bucket,
    /// CompleteSnapshot.
    pub complete: Bucket,
    /// EC2 calls that only read.
    pub ec2_read: Bucket,
    /// EC2 calls that list everything: no filter, no ids, no page size.
    pub ec2_unfiltered: Bucket,
    /// EC2 calls that change something.
    pub ec2_mutate: Bucket,
    /// EC2 calls that are dear: RunInstances, StartInstances, CreateImage and the like.
    pub ec2_heavy: Bucket,
}

impl Default for Quotas {
    fn default() -> Self {
        let thousand = Bucket::new(1000.0, 1000.0);
        Self {
            get: thousand,
            get_per_snapshot: thousand,
            put: thousand,
            put_per_snapshot: thousand,
            list: Bucket::new(50.0, 50.0),
            start: Bucket::new(10.0, 10.0),
            complete: Bucket::new(10.0, 10.0),
            ec2_read: Bucket::new(100.0, 20.0),
            ec2_unfiltered: Bucket::new(50.0, 10.0),
            ec2_mutate: Bucket::new(200.0, 5.0),
            ec2_heavy: Bucket::new(50.0, 5.0),
        }
    }
}

impl Quotas {
    /// No limits.
    pub fn off() -> Self {
        Self {
            get: Bucket::OFF,
            get_per_snapshot: Bucket::OFF,
            put: Bucket::OFF,
            put_per_snapshot: Bucket::OFF,
            list: Bucket::OFF,
            start: Bucket::OFF,
            complete: Bucket::OFF,
            ec2_read: Bucket::OFF,
            ec2_unfiltered: Bucket::OFF,
            ec2_mutate: Bucket::OFF,
            ec2_heavy: Bucket::OFF,
        }
    }
}
