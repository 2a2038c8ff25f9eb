//! Brings a scenario into the account.

use std::io;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::access::PROXY_ROLE;
use crate::blocks::BlockMap;
use crate::clock::Ms;
use crate::core::Core;
use crate::ec2::types;
use crate::scenario::{InstanceSpec, Scenario, VolumeSpec};
use crate::state::{
    Attachment, Image, ImageMapping, Instance, InstanceNetwork, KeyPair, Lifecycle, Region, RunState,
    SecurityGroup, Subnet, Tags, Volume, Vpc, usual_options,
};

/// An instance that was put into the account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// `i-…`.
    pub instance: String,
    /// Ids of its volumes, in the order of the specification.
    pub volumes: Vec<String>,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.into())
}

impl Core {
    /// Everything of a scenario.
    pub(crate) fn set_up(&self, scenario: &Scenario) -> io::Result<()> {
        scenario.access_keys.iter().for_each(|key| self.access.add_key(key.clone()));
        scenario.roles.iter().for_each(|role| self.access.add_role(role.clone()));
        self.with(&self.options.region, |region| {
            region.encryption_by_default = scenario.encryption_by_default;
            region.denied_kms_keys.clone_from(&scenario.denied_kms_keys);
            region.profiles.extend(scenario.instance_profiles.iter().cloned());
            let vpc = region.default_vpc();
            for (name, description) in &scenario.security_groups {
                let group = SecurityGroup::new(&mut region.ids, name, description, &vpc);
                region.groups.insert(group.id.clone(), group);
            }
            for spec in &scenario.subnets {
                let vpc_id = if spec.own_vpc { add_vpc(region, &spec.cidr) } else { vpc.clone() };
                let subnet = Subnet {
                    id: region.ids.id("subnet"),
                    vpc_id,
                    zone: format!("{}{}", region.name, spec.zone),
                    cidr: spec.cidr.clone(),
                    default_for_zone: false,
                    tags: spec.tags.clone(),
                };
                region.subnets.insert(subnet.id.clone(), subnet);
            }
            scenario.key_pairs.iter().for_each(|name| add_key_pair(region, name));
        });
        scenario
            .missing_types
            .iter()
            .for_each(|missing| self.withhold_type(&missing.instance_type, &missing.zone));
        if !scenario.instances.iter().any(|i| i.proxy) {
            let root = VolumeSpec { size_gib: Some(8), ..VolumeSpec::default() };
            let proxy = InstanceSpec {
                name: "proxy".into(),
                proxy: true,
                profile: Some(PROXY_ROLE.into()),
                volumes: vec![root],
                ..InstanceSpec::default()
            };
            self.add_instance(&proxy)?;
        }
        for instance in &scenario.instances {
            self.add_instance(instance)?;
        }
        for volume in &scenario.volumes {
            self.add_volume(volume)?;
        }
        Ok(())
    }

    fn zone(&self, letter: &str) -> String {
        format!("{}{letter}", self.options.region)
    }

    /// Puts an instance into the account that has been there for a while, and an image it was made of. The proxy's volumes but the first have devices.
    pub fn add_instance(&self, spec: &InstanceSpec) -> io::Result<Placed> {
        let architecture = types::architecture(&spec.instance_type).map_err(|e| invalid(e.message))?;
        let zone = self.zone(&spec.zone);
        let mut volumes = Vec::new();
        for volume in &spec.volumes {
            volumes.push(self.new_volume(volume, &zone)?);
        }
        let now = self.clock.now_ms();
        self.with(&self.options.region, |region| {
            let id = region.ids.id("i");
            let mut placed = Placed { instance: id.clone(), volumes: Vec::new() };
            for ((mut volume, spec_of), number) in volumes.into_iter().zip(&spec.volumes).zip(0_u8..) {
                let device = match (&spec_of.device, number) {
                    (Some(device), _) => device.clone(),
                    (None, 0) => spec.root_device.clone(),
                    (None, number) => format!("/dev/sd{}", char::from(b'e' + number)),
                };
                finish(region, &mut volume);
                volume.attachment = Some(Attachment {
                    instance_id: id.clone(),
                    device,
                    asked_ms: now,
                    attached_ms: now,
                    gone_ms: None,
                    delete_on_termination: spec_of.delete_on_termination,
                });
                placed.volumes.push(volume.id.clone());
                region.volumes.insert(volume.id.clone(), volume);
            }
            let instance = instance(region, spec, &id, architecture, now)?;
            region.instances.insert(id, instance);
            for volume in placed.volumes.iter().skip(usize::from(spec.proxy)).filter(|_| spec.proxy) {
                let device = region.volumes[volume].attachment.as_ref().map(|a| a.device.clone());
                crate::ec2::appear(self, region, volume, &device.unwrap_or_default(), None)?;
            }
            Ok(placed)
        })
    }

    /// Puts a volume into the account that is attached nowhere.
    pub fn add_volume(&self, spec: &VolumeSpec) -> io::Result<String> {
        let zone = self.zone(&spec.zone);
        let mut volume = self.new_volume(spec, &zone)?;
        Ok(self.with(&self.options.region, |region| {
            finish(region, &mut volume);
            let id = volume.id.clone();
            region.volumes.insert(id.clone(), volume);
            id
        }))
    }

    fn new_volume(&self, spec: &VolumeSpec, zone: &str) -> io::Result<Volume> {
        let least_gib = match &spec.file {
            Some(file) => std::fs::metadata(file)?.len().div_ceil(1 << 30),
            None => 1,
        };
        let size_gib = spec.size_gib.unwrap_or(least_gib).max(least_gib).max(1);
        let file = self.volume_file(size_gib, &BlockMap::empty(&self.store))?;
        if let Some(source) = &spec.file {
            file.write_file(Path::new(source))?;
        }
        let now = self.clock.now_ms();
        let gp3 = spec.volume_type == "gp3";
        Ok(Volume {
            id: String::new(),
            size_gib,
            zone: zone.to_owned(),
            volume_type: spec.volume_type.clone(),
            iops: gp3.then_some(3000),
            throughput: gp3.then_some(125),
            initialization_rate: None,
            encrypted: spec.encrypted || spec.kms_key.is_some(),
            kms_key: spec.kms_key.clone(),
            snapshot_id: None,
            tags: spec.tags.clone(),
            attachment: None,
            modification: None,
            lineage: 0,
            created_ms: now,
            ready_ms: now,
            visible_ms: now,
            gone_ms: None,
            failed: None,
            last_snapshot_ms: None,
            file: Arc::new(file),
        })
    }
}

fn finish(region: &mut Region, volume: &mut Volume) {
    volume.id = region.ids.id("vol");
    volume.lineage = region.new_lineage();
    if volume.encrypted {
        let key = volume.kms_key.take().unwrap_or_else(|| region.default_kms_key.clone());
        volume.kms_key = Some(region.kms_arn(&key));
    }
}

/// A VPC beside the default one, with its default group; its id.
fn add_vpc(region: &mut Region, cidr: &str) -> String {
    let vpc = Vpc { id: region.ids.id("vpc"), cidr: cidr.to_owned(), default: false, tags: Tags::new() };
    let group = SecurityGroup::default_one(&mut region.ids, &vpc.id);
    region.groups.insert(group.id.clone(), group);
    let id = vpc.id.clone();
    region.vpcs.insert(id.clone(), vpc);
    id
}

fn add_key_pair(region: &mut Region, name: &str) {
    if !region.keys.contains_key(name) {
        let key = KeyPair { id: region.ids.id("key"), name: name.to_owned(), tags: Tags::new() };
        region.keys.insert(name.to_owned(), key);
    }
}

fn instance(
    region: &mut Region,
    spec: &InstanceSpec,
    id: &str,
    architecture: &str,
    now: Ms,
) -> io::Result<Instance> {
    let zone = format!("{}{}", region.name, spec.zone);
    let subnet = region.subnets.values().find(|s| s.zone == zone && s.default_for_zone).cloned();
    let subnet = subnet.ok_or_else(|| invalid(format!("there is no zone {zone}")))?;
    let names = if spec.security_groups.is_empty() {
        vec!["default".to_owned()]
    } else {
        spec.security_groups.clone()
    };
    let mut groups = Vec::new();
    for name in names {
        let found = region.groups.values().find(|g| g.name == name && g.vpc_id == subnet.vpc_id);
        let found = found.map(|g| g.id.clone());
        groups.push(found.ok_or_else(|| invalid(format!("there is no security group {name}")))?);
    }
    spec.key_name.iter().for_each(|name| add_key_pair(region, name));
    if let Some(profile) = spec.profile.as_ref().filter(|p| !region.profiles.contains(p)) {
        region.profiles.push(profile.clone());
    }
    let private_ip = crate::ec2::free_ip(region, &subnet.id).map_err(|e| invalid(e.message))?;
    let mut tags = spec.tags.clone();
    if !spec.name.is_empty() {
        tags.insert("Name".into(), spec.name.clone());
    }
    let windows = spec.platform.as_deref() == Some("windows");
    let image_id = region.ids.id("ami");
    let details = if windows { "Windows" } else { "Linux/UNIX" };
    let operation = if windows { "RunInstances:0002" } else { "RunInstances" };
    let billing_products: Vec<String> = windows.then(|| "bp-6ba54002".to_owned()).into_iter().collect();
    let instance = Instance {
        id: id.to_owned(),
        reservation_id: region.ids.id("r"),
        image_id: image_id.clone(),
        instance_type: spec.instance_type.clone(),
        zone,
        lifecycle: Lifecycle {
            to: if spec.running { RunState::Running } else { RunState::Stopped },
            at_ms: now,
        },
        network: InstanceNetwork {
            vpc_id: subnet.vpc_id,
            subnet_id: subnet.id,
            private_ip,
            secondary_ips: spec.secondary_ips.clone(),
            groups,
            interface_id: region.ids.id("eni"),
        },
        key_name: spec.key_name.clone(),
        profile: spec.profile.clone(),
        user_data: spec.user_data.as_ref().map(|text| STANDARD.encode(text)),
        tags,
        root_device: spec.root_device.clone(),
        architecture: architecture.to_owned(),
        platform: spec.platform.clone(),
        platform_details: details.into(),
        usage_operation: operation.into(),
        product_codes: spec.product_codes.clone(),
        billing_products: billing_products.clone(),
        boot_mode: spec.boot_mode.clone(),
        tpm: spec.tpm.clone(),
        uefi_data: spec.uefi_data.clone(),
        ena: true,
        sriov: None,
        ebs_optimized: true,
        disable_termination: false,
        disable_stop: false,
        shutdown_behavior: "stop".into(),
        monitoring: false,
        source_dest_check: true,
        tenancy: "default".into(),
        client_token: None,
        metadata: json!({
            "state": "applied", "httpTokens": "required", "httpPutResponseHopLimit": 2,
            "httpEndpoint": "enabled", "httpProtocolIpv6": "disabled", "instanceMetadataTags": "disabled",
        }),
        carried: usual_options(),
        instance_store: spec
            .instance_store
            .iter()
            .zip(0..)
            .map(|(d, n)| (format!("ephemeral{n}"), d.clone()))
            .collect(),
        proxy: spec.proxy,
        console: String::new(),
        impaired: false,
        reboot_ms: None,
        launch_ms: now,
        visible_ms: now,
    };
    // somebody else's image: it is described, and launches with an empty root
    let root =
        ImageMapping { device: spec.root_device.clone(), size_gib: Some(8), ..ImageMapping::default() };
    let image = Image {
        id: image_id.clone(),
        name: format!("origin of {id}"),
        description: String::new(),
        architecture: architecture.to_owned(),
        root_device: spec.root_device.clone(),
        virtualization: "hvm".into(),
        ena: true,
        sriov: None,
        boot_mode: spec.boot_mode.clone(),
        tpm: None,
        uefi_data: None,
        imds: None,
        platform: spec.platform.clone(),
        platform_details: details.into(),
        usage_operation: operation.into(),
        product_codes: spec.product_codes.clone(),
        billing_products,
        kernel: None,
        ramdisk: None,
        mappings: vec![root],
        source_instance: None,
        tags: Tags::new(),
        owner: "137112412989".into(),
        failed: None,
        created_ms: now,
        ready_ms: now,
        visible_ms: now,
    };
    region.images.insert(image_id, image);
    Ok(instance)
}
