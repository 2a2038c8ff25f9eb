//! What exists: regions, and in each its volumes, snapshots, images, instances and network.

mod ids;
mod image;
mod instance;
mod network;
mod rules;
mod settle;
mod snapshot;
mod volume;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use ids::Ids;
pub use image::{Image, ImageMapping};
pub use instance::{Instance, Lifecycle, Network as InstanceNetwork, RunState, usual_options};
pub use network::{KeyPair, SecurityGroup, Subnet, Vpc, Zone};
pub use rules::{GroupRule, Peer, Permission, ipv4_range, permission_set};
pub use settle::Settled;
pub use snapshot::{Origin, Snapshot, Writing};
pub use volume::{Attachment, Modification, Volume};

use crate::api::{ApiError, ApiResult};
use crate::clock::Ms;

/// Keys and values.
pub type Tags = BTreeMap<String, String>;

/// `<tagSet>`.
pub fn tag_set(tags: &Tags) -> serde_json::Value {
    tags.iter().map(|(key, value)| serde_json::json!({"key": key, "value": value})).collect()
}

/// Everything, by region.
#[derive(Debug, Default, Serialize)]
pub struct World {
    /// Regions that were named so far.
    pub regions: BTreeMap<String, Region>,
}

/// One region.
#[derive(Debug, Serialize)]
pub struct Region {
    /// `us-east-1`.
    pub name: String,
    /// Owner of everything.
    pub account: String,
    /// Makes ids.
    #[serde(skip)]
    pub ids: Ids,
    /// Availability zones.
    pub zones: Vec<Zone>,
    /// VPCs by id.
    pub vpcs: BTreeMap<String, Vpc>,
    /// Subnets by id.
    pub subnets: BTreeMap<String, Subnet>,
    /// Security groups by id.
    pub groups: BTreeMap<String, SecurityGroup>,
    /// Key pairs by name.
    pub keys: BTreeMap<String, KeyPair>,
    /// Names of instance profiles.
    pub profiles: Vec<String>,
    /// Zones and instance types that are not offered there.
    pub missing_types: BTreeSet<(String, String)>,
    /// Volumes by id.
    pub volumes: BTreeMap<String, Volume>,
    /// Snapshots by id.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Images by id.
    pub images: BTreeMap<String, Image>,
    /// Instances by id.
    pub instances: BTreeMap<String, Instance>,
    /// New volumes are encrypted.
    pub encryption_by_default: bool,
    /// The key they are encrypted with.
    pub default_kms_key: String,
    /// KMS keys the caller may not use: ids or ARNs.
    pub denied_kms_keys: Vec<String>,
    /// Instances that are started from now on fail their status check.
    #[serde(skip)]
    pub impair_new: bool,
    /// Lineages given out.
    #[serde(skip)]
    pub lineages: u64,
    /// Answers to client tokens: action and token → fingerprint of the parameters, ids of what was made.
    #[serde(skip)]
    pub tokens: BTreeMap<(String, String), (String, Vec<String>)>,
}

/// When something new can be seen, and its tags.
pub trait Resource {
    /// From when on calls find it.
    fn visible_ms(&self) -> Ms;
    /// Its tags.
    fn tags_mut(&mut self) -> &mut Tags;
}

macro_rules! resource {
    ($($kind:ty),*) => {$(
        impl Resource for $kind {
            fn visible_ms(&self) -> Ms { self.visible_ms }
            fn tags_mut(&mut self) -> &mut Tags { &mut self.tags }
        }
    )*};
}
resource!(Volume, Snapshot, Image, Instance);

/// What an id names, or the refusal that it does not exist, or not yet.
pub fn find<'a, T: Resource>(
    all: &'a BTreeMap<String, T>,
    id: &str,
    now: Ms,
    prefix: &str,
    (malformed, missing, noun): (&str, &str, &str),
) -> ApiResult<&'a T> {
    well_formed(id, prefix, malformed, noun)?;
    let found = all.get(id).filter(|thing| thing.visible_ms() <= now);
    found.ok_or_else(|| ApiError::not_found(missing, noun, id))
}

fn well_formed(id: &str, prefix: &str, malformed: &str, noun: &str) -> ApiResult<()> {
    let hex = id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    let good = hex.is_some_and(|hex| {
        (hex.len() == 8 || hex.len() == 17) && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    if good {
        return Ok(());
    }
    Err(ApiError::client(
        malformed,
        format!("Invalid id: \"{id}\" (expecting \"{prefix}-...\") for the {noun}"),
    ))
}

/// Codes of volumes, for [`find`].
pub const VOLUME: (&str, &str, &str) = ("InvalidParameterValue", "InvalidVolume.NotFound", "volume");
/// Codes of snapshots.
pub const SNAPSHOT: (&str, &str, &str) =
    ("InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound", "snapshot");
/// Codes of images.
pub const IMAGE: (&str, &str, &str) = ("InvalidAMIID.Malformed", "InvalidAMIID.NotFound", "image id");
/// Codes of instances.
pub const INSTANCE: (&str, &str, &str) =
    ("InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound", "instance ID");

impl World {
    /// A region; made with three zones and a default VPC when it is first named.
    pub fn region(&mut self, name: &str, account: &str, seed: u64) -> &mut Region {
        self.regions.entry(name.to_owned()).or_insert_with(|| Region::new(name, account, seed))
    }
}

impl Region {
    /// Three zones, a default VPC with a subnet in each, a default security group.
    pub fn new(name: &str, account: &str, seed: u64) -> Self {
        let mut ids = Ids::new(name, seed);
        let zones: Vec<Zone> = ["a", "b", "c"].iter().zip(1..).map(|(z, n)| Zone::new(name, z, n)).collect();
        let vpc = Vpc::default_one(&mut ids);
        let subnets = zones.iter().zip(0..).map(|(zone, n)| Subnet::default_one(&mut ids, &vpc, zone, n));
        let subnets = subnets.map(|subnet| (subnet.id.clone(), subnet)).collect();
        let group = SecurityGroup::default_one(&mut ids, &vpc.id);
        let key = ids.uuid();
        Self {
            name: name.to_owned(),
            account: account.to_owned(),
            ids,
            zones,
            vpcs: BTreeMap::from([(vpc.id.clone(), vpc)]),
            subnets,
            groups: BTreeMap::from([(group.id.clone(), group)]),
            keys: BTreeMap::new(),
            profiles: Vec::new(),
            missing_types: BTreeSet::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            images: BTreeMap::new(),
            instances: BTreeMap::new(),
            encryption_by_default: false,
            default_kms_key: format!("arn:aws:kms:{name}:{account}:key/{key}"),
            denied_kms_keys: Vec::new(),
            impair_new: false,
            lineages: 0,
            tokens: BTreeMap::new(),
        }
    }

    /// A volume that can be seen.
    pub fn volume(&self, id: &str, now: Ms) -> ApiResult<&Volume> {
        find(&self.volumes, id, now, "vol", VOLUME)
    }

    /// A snapshot that can be seen.
    pub fn snapshot(&self, id: &str, now: Ms) -> ApiResult<&Snapshot> {
        find(&self.snapshots, id, now, "snap", SNAPSHOT)
    }

    /// An image that can be seen.
    pub fn image(&self, id: &str, now: Ms) -> ApiResult<&Image> {
        find(&self.images, id, now, "ami", IMAGE)
    }

    /// An instance that can be seen.
    pub fn instance(&self, id: &str, now: Ms) -> ApiResult<&Instance> {
        find(&self.instances, id, now, "i", INSTANCE)
    }

    /// Volumes attached to an instance, by device name.
    pub fn attached(&self, instance: &str) -> Vec<&Volume> {
        let mine = |v: &&Volume| v.attachment.as_ref().is_some_and(|a| a.instance_id == instance);
        let mut found: Vec<&Volume> = self.volumes.values().filter(mine).collect();
        found.sort_by_key(|v| v.attachment.as_ref().map(|a| a.device.clone()));
        found
    }

    /// A lineage that nothing belongs to yet.
    pub fn new_lineage(&mut self) -> u64 {
        self.lineages += 1;
        self.lineages
    }

    /// Id of the default VPC.
    pub fn default_vpc(&self) -> String {
        self.vpcs.values().find(|vpc| vpc.default).map(|vpc| vpc.id.clone()).unwrap_or_default()
    }

    /// A zone's id by its name.
    pub fn zone_id(&self, zone: &str) -> Option<String> {
        self.zones.iter().find(|z| z.name == zone).map(|z| z.id.clone())
    }

    /// The full ARN of a key given in any way.
    pub fn kms_arn(&self, key: &str) -> String {
        if key.starts_with("arn:") {
            return key.to_owned();
        }
        format!(
            "arn:aws:kms:{}:{}:{}",
            self.name,
            self.account,
            if key.starts_with("alias/") { key.to_owned() } else { format!("key/{key}") }
        )
    }

    /// Whether the caller may not use a key.
    pub fn kms_denied(&self, arn: Option<&str>) -> bool {
        arn.is_some_and(|arn| {
            self.denied_kms_keys.iter().any(|denied| arn == denied || arn.ends_with(&format!("/{denied}")))
        })
    }

    /// Tags of anything with an id, to be changed.
    pub fn tags_mut(&mut self, id: &str, now: Ms) -> ApiResult<&mut Tags> {
        fn of<'a, T: Resource>(
            all: &'a mut BTreeMap<String, T>,
            id: &str,
            now: Ms,
            (_, code, noun): (&str, &str, &str),
        ) -> ApiResult<&'a mut Tags> {
            let found = all.get_mut(id).filter(|thing| thing.visible_ms() <= now);
            found.map(T::tags_mut).ok_or_else(|| ApiError::not_found(code, noun, id))
        }
        match id.split('-').next().unwrap_or_default() {
            "vol" => of(&mut self.volumes, id, now, VOLUME),
            "snap" => of(&mut self.snapshots, id, now, SNAPSHOT),
            "ami" => of(&mut self.images, id, now, IMAGE),
            "i" => of(&mut self.instances, id, now, INSTANCE),
            "sg" => {
                let missing = || ApiError::not_found("InvalidGroup.NotFound", "security group", id);
                self.groups.get_mut(id).map(|g| &mut g.tags).ok_or_else(missing)
            }
            "subnet" => {
                let missing = || ApiError::not_found("InvalidSubnetID.NotFound", "subnet ID", id);
                self.subnets.get_mut(id).map(|s| &mut s.tags).ok_or_else(missing)
            }
            "vpc" => {
                let missing = || ApiError::not_found("InvalidVpcID.NotFound", "vpc ID", id);
                self.vpcs.get_mut(id).map(|s| &mut s.tags).ok_or_else(missing)
            }
            _ => Err(ApiError::client("InvalidID", format!("The ID '{id}' is not valid"))),
        }
    }
}
