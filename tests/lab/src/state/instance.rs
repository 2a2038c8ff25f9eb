//! Instances.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Region, Tags, tag_set};
use crate::clock::{Ms, iso};

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RunState {
    /// Runs.
    Running,
    /// Does not.
    Stopped,
    /// Is gone for good.
    Terminated,
}

/// On the way to a state, or in it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lifecycle {
    /// Where it ends.
    pub to: RunState,
    /// When it is there.
    #[serde(skip)]
    pub at_ms: Ms,
}

impl Lifecycle {
    /// Code and name.
    pub fn state(&self, now: Ms) -> (u16, &'static str) {
        match (self.to, now >= self.at_ms) {
            (RunState::Running, false) => (0, "pending"),
            (RunState::Running, true) => (16, "running"),
            (RunState::Stopped, false) => (64, "stopping"),
            (RunState::Stopped, true) => (80, "stopped"),
            (RunState::Terminated, false) => (32, "shutting-down"),
            (RunState::Terminated, true) => (48, "terminated"),
        }
    }

    /// `<currentState>`.
    pub fn xml(&self, now: Ms) -> Value {
        let (code, name) = self.state(now);
        json!({"code": code, "name": name})
    }
}

/// Where an instance stands in the network.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// `vpc-…`.
    pub vpc_id: String,
    /// `subnet-…`.
    pub subnet_id: String,
    /// Primary address.
    pub private_ip: String,
    /// Further addresses.
    pub secondary_ips: Vec<String>,
    /// Ids of security groups.
    pub groups: Vec<String>,
    /// `eni-…`.
    pub interface_id: String,
}

/// An instance.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    /// `i-…`.
    pub id: String,
    /// `r-…`.
    pub reservation_id: String,
    /// `ami-…`.
    pub image_id: String,
    /// `m5.large`.
    pub instance_type: String,
    /// Availability zone.
    pub zone: String,
    /// State.
    pub lifecycle: Lifecycle,
    /// Where it stands.
    pub network: Network,
    /// Its key pair.
    pub key_name: Option<String>,
    /// Name of its instance profile.
    pub profile: Option<String>,
    /// Base64.
    pub user_data: Option<String>,
    /// Its tags.
    pub tags: Tags,
    /// `/dev/xvda`.
    pub root_device: String,
    /// `x86_64` or `arm64`.
    pub architecture: String,
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
    /// `legacy-bios`, `uefi`, …
    pub boot_mode: Option<String>,
    /// `v2.0`.
    pub tpm: Option<String>,
    /// UEFI variables, base64.
    pub uefi_data: Option<String>,
    /// Enhanced networking.
    pub ena: bool,
    /// `simple`.
    pub sriov: Option<String>,
    /// Own bandwidth for volumes.
    pub ebs_optimized: bool,
    /// Refuses TerminateInstances.
    pub disable_termination: bool,
    /// Refuses StopInstances.
    pub disable_stop: bool,
    /// `stop` or `terminate`.
    pub shutdown_behavior: String,
    /// Detailed monitoring.
    pub monitoring: bool,
    /// Drops foreign packets.
    pub source_dest_check: bool,
    /// `default`, `dedicated`, …
    pub tenancy: String,
    /// Token of the call that made it.
    pub client_token: Option<String>,
    /// httpTokens, httpPutResponseHopLimit, httpEndpoint, instanceMetadataTags.
    pub metadata: Value,
    /// cpuOptions, hibernationOptions, enclaveOptions, maintenanceOptions, privateDnsNameOptions: carried along.
    pub carried: Value,
    /// Volumes of the machine itself: `ephemeral0` → device.
    pub instance_store: Vec<(String, String)>,
    /// Whether it is this very machine.
    pub proxy: bool,
    /// What its console says.
    #[serde(skip)]
    pub console: String,
    /// Whether it does not answer the status check.
    #[serde(skip)]
    pub impaired: bool,
    /// When it was last rebooted.
    #[serde(skip)]
    pub reboot_ms: Option<Ms>,
    /// When it was last started.
    #[serde(skip)]
    pub launch_ms: Ms,
    /// From when on calls find it.
    #[serde(skip)]
    pub visible_ms: Ms,
}

/// What an instance has when nothing is said of it.
pub fn usual_options() -> Value {
    json!({
        "cpuOptions": {"coreCount": 1, "threadsPerCore": 2},
        "hibernationOptions": {"configured": false},
        "enclaveOptions": {"enabled": false},
        "maintenanceOptions": {"autoRecovery": "default"},
        "privateDnsNameOptions": {
            "hostnameType": "ip-name", "enableResourceNameDnsARecord": false, "enableResourceNameDnsAAAARecord": false,
        },
    })
}

impl Instance {
    /// As `DescribeInstances` shows it.
    pub fn xml(&self, region: &Region, now: Ms) -> Value {
        let gone = self.lifecycle.state(now).1 == "terminated";
        let volumes = region.attached(&self.id);
        let mappings: Vec<Value> = volumes
            .iter()
            .filter_map(|volume| volume.attachment.as_ref().map(|a| (volume, a)))
            .map(|(volume, a)| {
                json!({
                    "deviceName": a.device,
                    "ebs": {
                        "volumeId": volume.id,
                        "status": a.state(now),
                        "attachTime": iso(a.asked_ms),
                        "deleteOnTermination": a.delete_on_termination,
                    },
                })
            })
            .collect();
        let groups: Vec<Value> = self
            .network
            .groups
            .iter()
            .map(|id| json!({"groupId": id, "groupName": region.groups.get(id).map(|g| &g.name)}))
            .collect();
        let host = format!("ip-{}.ec2.internal", self.network.private_ip.replace('.', "-"));
        let addresses: Vec<Value> = std::iter::once((&self.network.private_ip, true))
            .chain(self.network.secondary_ips.iter().map(|ip| (ip, false)))
            .map(|(ip, primary)| json!({"privateIpAddress": ip, "primary": primary}))
            .collect();
        let interface = json!({
            "networkInterfaceId": self.network.interface_id,
            "subnetId": self.network.subnet_id,
            "vpcId": self.network.vpc_id,
            "ownerId": region.account,
            "status": "in-use",
            "description": "",
            "macAddress": "02:00:5e:10:00:01",
            "privateIpAddress": self.network.private_ip,
            "privateDnsName": host,
            "sourceDestCheck": self.source_dest_check,
            "groupSet": groups,
            "privateIpAddressesSet": addresses,
            "interfaceType": "interface",
            "attachment": {
                "attachmentId": format!("eni-attach-{}", self.network.interface_id.trim_start_matches("eni-")),
                "deviceIndex": 0, "status": "attached", "attachTime": iso(self.launch_ms),
                "deleteOnTermination": true, "networkCardIndex": 0,
            },
        });
        let codes: Vec<Value> =
            self.product_codes.iter().map(|c| json!({"productCode": c, "type": "marketplace"})).collect();
        let present = |value: Value| if gone { Value::Null } else { value };
        json!({
            "instanceId": self.id,
            "imageId": self.image_id,
            "instanceState": self.lifecycle.xml(now),
            "privateDnsName": if gone { "" } else { &host },
            "dnsName": "",
            "reason": "",
            "keyName": self.key_name,
            "amiLaunchIndex": 0,
            "productCodes": codes,
            "instanceType": self.instance_type,
            "launchTime": iso(self.launch_ms),
            "placement": {
                "availabilityZone": self.zone, "availabilityZoneId": region.zone_id(&self.zone),
                "groupName": "", "tenancy": self.tenancy,
            },
            "platform": self.platform,
            "platformDetails": self.platform_details,
            "usageOperation": self.usage_operation,
            "usageOperationUpdateTime": iso(self.launch_ms),
            "monitoring": {"state": if self.monitoring { "enabled" } else { "disabled" }},
            "subnetId": present(json!(self.network.subnet_id)),
            "vpcId": present(json!(self.network.vpc_id)),
            "privateIpAddress": present(json!(self.network.private_ip)),
            "sourceDestCheck": self.source_dest_check,
            "groupSet": groups,
            "architecture": self.architecture,
            "rootDeviceType": "ebs",
            "rootDeviceName": self.root_device,
            "blockDeviceMapping": mappings,
            "virtualizationType": "hvm",
            "clientToken": self.client_token.clone().unwrap_or_default(),
            "tagSet": if self.tags.is_empty() { Value::Null } else { tag_set(&self.tags) },
            "hypervisor": "xen",
            "networkInterfaceSet": if gone { json!([]) } else { json!([interface]) },
            "iamInstanceProfile": self.profile.as_ref().map(|name| self.profile_xml(region, name)),
            "ebsOptimized": self.ebs_optimized,
            "enaSupport": self.ena,
            "sriovNetSupport": self.sriov,
            "bootMode": self.boot_mode,
            "currentInstanceBootMode": self.boot_mode.as_ref().map(|m| if m == "legacy-bios" { m.as_str() } else { "uefi" }),
            "tpmSupport": self.tpm,
            "cpuOptions": self.carried["cpuOptions"],
            "capacityReservationSpecification": {"capacityReservationPreference": "open"},
            "hibernationOptions": self.carried["hibernationOptions"],
            "enclaveOptions": self.carried["enclaveOptions"],
            "maintenanceOptions": self.carried["maintenanceOptions"],
            "metadataOptions": self.metadata,
            "privateDnsNameOptions": self.carried["privateDnsNameOptions"],
        })
    }

    fn profile_xml(&self, region: &Region, name: &str) -> Value {
        let arn = format!("arn:aws:iam::{}:instance-profile/{name}", region.account);
        json!({"arn": arn, "id": format!("AIPA{:0>17}", self.id.trim_start_matches("i-").to_uppercase())})
    }

    /// The values that filters look at.
    pub fn field(&self, name: &str, region: &Region, now: Ms) -> Option<Vec<String>> {
        let volumes = || region.attached(&self.id).into_iter();
        let (code, state) = self.lifecycle.state(now);
        Some(match name {
            "instance-id" => vec![self.id.clone()],
            "instance-state-name" => vec![state.into()],
            "instance-state-code" => vec![code.to_string()],
            "instance-type" => vec![self.instance_type.clone()],
            "image-id" => vec![self.image_id.clone()],
            "availability-zone" => vec![self.zone.clone()],
            "vpc-id" | "network-interface.vpc-id" => vec![self.network.vpc_id.clone()],
            "subnet-id" | "network-interface.subnet-id" => vec![self.network.subnet_id.clone()],
            "private-ip-address" => vec![self.network.private_ip.clone()],
            "key-name" => self.key_name.iter().cloned().collect(),
            "platform" => self.platform.iter().cloned().collect(),
            "platform-details" => vec![self.platform_details.clone()],
            "architecture" => vec![self.architecture.clone()],
            "root-device-name" => vec![self.root_device.clone()],
            "root-device-type" => vec!["ebs".into()],
            "reservation-id" => vec![self.reservation_id.clone()],
            "owner-id" => vec![region.account.clone()],
            "client-token" => self.client_token.iter().cloned().collect(),
            "instance.group-id" | "group-id" => self.network.groups.clone(),
            "block-device-mapping.volume-id" => volumes().map(|v| v.id.clone()).collect(),
            "block-device-mapping.device-name" => {
                volumes().filter_map(|v| v.attachment.as_ref().map(|a| a.device.clone())).collect()
            }
            "iam-instance-profile.arn" => {
                let arn = |p: &String| format!("arn:aws:iam::{}:instance-profile/{p}", region.account);
                self.profile.iter().map(arn).collect()
            }
            "tenancy" => vec![self.tenancy.clone()],
            _ => return None,
        })
    }

    /// Whether devices are called as on Xen.
    pub fn xen(&self) -> bool {
        let family = self.instance_type.split('.').next().unwrap_or_default();
        [
            "t1", "t2", "m1", "m2", "m3", "m4", "c1", "c3", "c4", "r3", "r4", "i2", "d2", "x1", "x1e", "p2",
            "g3", "h1",
        ]
        .contains(&family)
    }
}
