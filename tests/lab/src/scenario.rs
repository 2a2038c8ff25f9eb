//! The account at the start: a JSON file, or the same by library calls.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::access::{Key, Role};
use crate::state::Tags;

/// What is there at the start, besides three zones, a default VPC with a subnet in each, and a default security group.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// Further security groups of the default VPC: name → description.
    pub security_groups: std::collections::BTreeMap<String, String>,
    /// Further subnets of the default VPC.
    pub subnets: Vec<SubnetSpec>,
    /// Instance types that some zones do not have.
    pub missing_types: Vec<MissingType>,
    /// Names of key pairs.
    pub key_pairs: Vec<String>,
    /// Names of instance profiles.
    pub instance_profiles: Vec<String>,
    /// Access keys besides the one that may do everything.
    pub access_keys: Vec<Key>,
    /// Roles besides that of the proxy.
    pub roles: Vec<Role>,
    /// KMS keys that the caller may not use.
    pub denied_kms_keys: Vec<String>,
    /// New volumes are encrypted.
    pub encryption_by_default: bool,
    /// Instances. Without one that is the proxy, a `m5.large` named `proxy` is added in the first zone.
    pub instances: Vec<InstanceSpec>,
    /// Volumes that are attached nowhere.
    pub volumes: Vec<VolumeSpec>,
}

/// An instance type that a zone does not have.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MissingType {
    /// `m5.large`.
    pub instance_type: String,
    /// Letter of the zone.
    pub zone: String,
}

/// A subnet of the scenario.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubnetSpec {
    /// Letter of its zone.
    pub zone: String,
    /// Its addresses: `172.31.64.0/24`.
    pub cidr: String,
    /// Whether it stands in a VPC of its own, which is not the default one.
    pub own_vpc: bool,
    /// Its tags.
    pub tags: Tags,
}

/// An instance of the scenario. `InstanceSpec::default()` is a `m5.large` in the first zone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceSpec {
    /// Its tag `Name`.
    pub name: String,
    /// Type, one that the lab knows: `DescribeInstanceTypes` lists them.
    pub instance_type: String,
    /// Letter of its zone.
    pub zone: String,
    /// Whether it is this very machine.
    pub proxy: bool,
    /// `windows`, or nothing.
    pub platform: Option<String>,
    /// `legacy-bios`, `uefi`, …
    pub boot_mode: Option<String>,
    /// `v2.0`.
    pub tpm: Option<String>,
    /// UEFI variables, base64.
    pub uefi_data: Option<String>,
    /// Further addresses of its network interface.
    pub secondary_ips: Vec<String>,
    /// `/dev/xvda`.
    pub root_device: String,
    /// Whether it runs; it is stopped otherwise.
    pub running: bool,
    /// Its key pair, which is made if it is not there.
    pub key_name: Option<String>,
    /// Its instance profile, which is made if it is not there.
    pub profile: Option<String>,
    /// Names of security groups; `default` if there are none.
    pub security_groups: Vec<String>,
    /// Plain text.
    pub user_data: Option<String>,
    /// Product codes of a marketplace image.
    pub product_codes: Vec<String>,
    /// Its tags besides `Name`.
    pub tags: Tags,
    /// Its volumes; the first is the root unless it says otherwise.
    pub volumes: Vec<VolumeSpec>,
    /// Devices of its own disks.
    pub instance_store: Vec<String>,
}

impl Default for InstanceSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            instance_type: "m5.large".into(),
            zone: "a".into(),
            proxy: false,
            platform: None,
            boot_mode: None,
            tpm: None,
            uefi_data: None,
            secondary_ips: Vec::new(),
            root_device: "/dev/xvda".into(),
            running: true,
            key_name: None,
            profile: None,
            security_groups: Vec::new(),
            user_data: None,
            product_codes: Vec::new(),
            tags: Tags::new(),
            volumes: Vec::new(),
            instance_store: Vec::new(),
        }
    }
}

/// A volume of the scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeSpec {
    /// Device name at its instance; the root device for the first, `/dev/sdf` and on for others.
    pub device: Option<String>,
    /// GiB; as much as the file needs if there is none.
    pub size_gib: Option<u64>,
    /// A file with its contents.
    pub file: Option<PathBuf>,
    /// `gp3`, …
    pub volume_type: String,
    /// Encrypted with the default key.
    pub encrypted: bool,
    /// Encrypted with this key.
    pub kms_key: Option<String>,
    /// Whether it goes with its instance.
    pub delete_on_termination: bool,
    /// Letter of its zone, for volumes without an instance.
    pub zone: String,
    /// Its tags.
    pub tags: Tags,
}

impl Default for VolumeSpec {
    fn default() -> Self {
        Self {
            device: None,
            size_gib: None,
            file: None,
            volume_type: "gp3".into(),
            encrypted: false,
            kms_key: None,
            delete_on_termination: true,
            zone: "a".into(),
            tags: Tags::new(),
        }
    }
}
