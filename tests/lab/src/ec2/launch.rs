//! RunInstances.

use serde_json::{Value, json};

use super::volumes::{Planned, Wanted};
use super::{Call, Target, attach, images, types, volumes};
use crate::api::{ApiError, ApiResult};
use crate::state::{
    Attachment, Image, ImageMapping, Instance, InstanceNetwork, Lifecycle, Region, RunState, Tags,
    usual_options,
};

pub(super) fn run(call: &Call<'_>) -> ApiResult<Value> {
    let params = call.params;
    let count: usize = params.number("MaxCount")?.ok_or_else(|| ApiError::missing("MaxCount"))?;
    let least: usize = params.number("MinCount")?.ok_or_else(|| ApiError::missing("MinCount"))?;
    if least == 0 || count < least {
        return Err(ApiError::value("MinCount must be at least 1 and at most MaxCount"));
    }
    let image_id = params.required("ImageId")?;
    call.with(|region| {
        if let Some(ids) = call.replay(region)? {
            call.allow(&[Target::new("instance")])?;
            return reservation(region, &ids, call.now);
        }
        let image = region.image(image_id, call.now)?.clone();
        let plan = Launch::of(call, region, &image)?;
        let mut targets = vec![
            Target::new("instance"),
            Target::of("image", image_id, &image.tags),
            Target::of("subnet", &plan.network.subnet_id, &region.subnets[&plan.network.subnet_id].tags),
            Target::new("volume"),
            Target::new("network-interface"),
        ];
        if let Some(key) = plan.key_name.as_ref().and_then(|name| region.keys.get(name)) {
            targets.push(Target::of("key-pair", &key.name, &key.tags));
        }
        let snapshots = plan.named_snapshots.iter().filter_map(|id| region.snapshots.get(id));
        targets.extend(snapshots.map(|s| Target::of("snapshot", &s.id, &s.tags)));
        let groups = plan.network.groups.iter().filter_map(|id| region.groups.get(id));
        targets.extend(groups.map(|g| Target::of("security-group", &g.id, &g.tags)));
        call.allow(&targets)?;
        let reservation_id = region.ids.id("r");
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(plan.start(call, region, &image, &reservation_id)?);
        }
        call.remember(region, ids.clone());
        reservation(region, &ids, call.now)
    })
}

fn reservation(region: &Region, ids: &[String], now: i64) -> ApiResult<Value> {
    let instances: Vec<&Instance> = ids.iter().filter_map(|id| region.instances.get(id)).collect();
    let first = instances
        .first()
        .ok_or_else(|| ApiError::not_found("InvalidInstanceID.NotFound", "instance ID", &ids.concat()))?;
    Ok(json!({
        "reservationId": first.reservation_id,
        "ownerId": region.account,
        "groupSet": [],
        "instancesSet": instances.iter().map(|i| i.xml(region, now)).collect::<Vec<_>>(),
    }))
}

/// An instance as it shall be.
struct Launch {
    network: InstanceNetwork,
    zone: String,
    fixed_ip: bool,
    instance_type: String,
    mappings: Vec<ImageMapping>,
    /// Snapshots that the call names itself, beside those of the image.
    named_snapshots: Vec<String>,
    instance: Value,
    tags: Tags,
    volume_tags: Tags,
    profile: Option<String>,
    key_name: Option<String>,
}

impl Launch {
    fn of(call: &Call<'_>, region: &Region, image: &Image) -> ApiResult<Self> {
        let params = call.params;
        if image.state(call.now, region.waiting(image, call.now)) != "available" {
            let message = format!("The image '{}' is not available", image.id);
            return Err(ApiError::client("InvalidAMIID.Unavailable", message));
        }
        let instance_type = params.text("InstanceType").unwrap_or_else(|| "m1.small".into());
        let architecture = types::architecture(&instance_type)?;
        if architecture != image.architecture {
            let message = format!(
                "The architecture '{architecture}' of the specified instance type does not match the architecture '{}' of the specified AMI.",
                image.architecture
            );
            return Err(ApiError::value(message));
        }
        if image.virtualization != "hvm" {
            let message = format!(
                "Non-Windows AMIs with a virtualization type of '{}' are not supported by the instance type '{instance_type}'.",
                image.virtualization
            );
            return Err(ApiError::combination(message));
        }
        if types::needs_ena(&instance_type) && !image.ena {
            let message = format!(
                "Enhanced networking with the Elastic Network Adapter (ENA) is required for the '{instance_type}' instance type. Ensure that you are using an AMI that is enabled for ENA."
            );
            return Err(ApiError::combination(message));
        }
        if image.tpm.is_some() && architecture == "arm64" {
            return Err(ApiError::combination("NitroTPM is not supported by the instance type"));
        }
        let key_name = params.text("KeyName");
        if let Some(key) = key_name.as_ref().filter(|key| !region.keys.contains_key(*key)) {
            return Err(ApiError::not_found("InvalidKeyPair.NotFound", "key pair", key));
        }
        let (network, zone, fixed_ip) = network(call, region)?;
        types::check_offered(region, &zone, &instance_type)?;
        let profile = profile(call, region)?;
        for ignored in ["EbsOptimized", "AdditionalInfo"] {
            params.get(ignored);
        }
        let overrides = images::mappings(params)?;
        Ok(Self {
            network,
            zone,
            fixed_ip,
            named_snapshots: overrides.iter().filter_map(|m| m.snapshot_id.clone()).collect(),
            mappings: merged(image, overrides),
            instance: options(call, image)?,
            tags: call.tags_for("instance")?,
            volume_tags: call.tags_for("volume")?,
            profile,
            key_name,
            instance_type,
        })
    }

    fn start(
        &self,
        call: &Call<'_>,
        region: &mut Region,
        image: &Image,
        reservation: &str,
    ) -> ApiResult<String> {
        let mut planned: Vec<(&ImageMapping, Planned)> = Vec::new();
        let mut instance_store = Vec::new();
        for mapping in &self.mappings {
            if let Some(name) = &mapping.virtual_name {
                instance_store.push((name.clone(), mapping.device.clone()));
                continue;
            }
            attach::check_device(&mapping.device)?;
            let of_snapshot = mapping.snapshot_id.as_ref().and_then(|id| region.snapshots.get(id));
            let wanted = Wanted {
                zone: self.zone.clone(),
                size_gib: mapping.size_gib,
                snapshot_id: mapping.snapshot_id.clone(),
                volume_type: mapping.volume_type.clone(),
                iops: mapping.iops,
                throughput: mapping.throughput,
                encrypted: mapping.encrypted.filter(|e| *e || of_snapshot.is_none_or(|s| !s.encrypted)),
                kms_key: mapping.kms_key.clone(),
                initialization_rate: None,
                tags: self.volume_tags.clone(),
            };
            planned.push((mapping, volumes::plan(call, region, wanted)?));
        }
        instance_store.truncate(types::disks(&self.instance_type) as usize);
        let id = region.ids.id("i");
        let text = |name: &str| self.instance[name].as_str().map(str::to_owned);
        let flag = |name: &str| self.instance[name].as_bool().unwrap_or(false);
        let mut network = self.network.clone();
        network.interface_id = region.ids.id("eni");
        if !self.fixed_ip {
            network.private_ip = free_ip(region, &network.subnet_id)?;
        }
        let mut denied = false;
        for (mapping, plan) in planned {
            let volume = match volumes::make(call, region, plan) {
                Ok(volume) => volume,
                Err(error) => {
                    // all or nothing
                    region.volumes.retain(|_, v| v.attachment.as_ref().is_none_or(|a| a.instance_id != id));
                    return Err(error);
                }
            };
            let Some(volume) = region.volumes.get_mut(&volume.id) else {
                denied = true;
                continue;
            };
            volume.attachment = Some(Attachment {
                instance_id: id.clone(),
                device: mapping.device.clone(),
                asked_ms: call.now,
                attached_ms: call.now + call.settings.timing.attach_ms,
                gone_ms: None,
                delete_on_termination: mapping.delete_on_termination.unwrap_or(true),
            });
        }
        // without the right to its key, EC2 ends the instance while it starts: Client.InternalError
        let to = if denied || call.ends_in_error { RunState::Terminated } else { RunState::Running };
        let instance = Instance {
            id: id.clone(),
            reservation_id: reservation.to_owned(),
            image_id: image.id.clone(),
            instance_type: self.instance_type.clone(),
            zone: self.zone.clone(),
            lifecycle: Lifecycle { to, at_ms: call.now + call.settings.timing.instance_ms },
            network,
            key_name: self.key_name.clone(),
            profile: self.profile.clone(),
            user_data: text("user_data"),
            tags: self.tags.clone(),
            root_device: image.root_device.clone(),
            architecture: image.architecture.clone(),
            platform: image.platform.clone(),
            platform_details: image.platform_details.clone(),
            usage_operation: image.usage_operation.clone(),
            product_codes: image.product_codes.clone(),
            billing_products: image.billing_products.clone(),
            boot_mode: image.boot_mode.clone(),
            tpm: image.tpm.clone(),
            uefi_data: image.uefi_data.clone(),
            ena: image.ena,
            sriov: image.sriov.clone(),
            ebs_optimized: flag("ebs_optimized"),
            disable_termination: flag("disable_termination"),
            disable_stop: flag("disable_stop"),
            shutdown_behavior: text("shutdown_behavior").unwrap_or_else(|| "stop".into()),
            monitoring: flag("monitoring"),
            source_dest_check: true,
            tenancy: text("tenancy").unwrap_or_else(|| "default".into()),
            client_token: text("client_token"),
            metadata: self.instance["metadata"].clone(),
            carried: self.instance["carried"].clone(),
            instance_store,
            proxy: false,
            console: format!("penstock-lab: {id} started\r\n"),
            impaired: region.impair_new,
            reboot_ms: None,
            launch_ms: call.now,
            visible_ms: call.visible_ms(),
        };
        region.instances.insert(id.clone(), instance);
        Ok(id)
    }
}

/// What is only carried along.
fn options(call: &Call<'_>, image: &Image) -> ApiResult<Value> {
    let params = call.params;
    // an image may ask for tokens, which containers get at, too
    let (tokens, hops) = if image.imds.is_some() { ("required", 2) } else { ("optional", 1) };
    let mut carried = usual_options();
    let dns = "privateDnsNameOptions";
    for (parameter, option, name) in [
        ("CpuOptions.CoreCount", "cpuOptions", "coreCount"),
        ("CpuOptions.ThreadsPerCore", "cpuOptions", "threadsPerCore"),
        ("HibernationOptions.Configured", "hibernationOptions", "configured"),
        ("EnclaveOptions.Enabled", "enclaveOptions", "enabled"),
        ("MaintenanceOptions.AutoRecovery", "maintenanceOptions", "autoRecovery"),
        ("PrivateDnsNameOptions.HostnameType", dns, "hostnameType"),
        ("PrivateDnsNameOptions.EnableResourceNameDnsARecord", dns, "enableResourceNameDnsARecord"),
        ("PrivateDnsNameOptions.EnableResourceNameDnsAAAARecord", dns, "enableResourceNameDnsAAAARecord"),
    ] {
        if let Some(value) = params.get(parameter) {
            carried[option][name] = json!(value);
        }
    }
    params.get("CreditSpecification.CpuCredits");
    let metadata = |name: &str, default: &str| {
        params.get(&format!("MetadataOptions.{name}")).unwrap_or(default).to_owned()
    };
    Ok(json!({
        "user_data": params.get("UserData"),
        "ebs_optimized": params.flag("EbsOptimized")?,
        "disable_termination": params.flag("DisableApiTermination")?,
        "disable_stop": params.flag("DisableApiStop")?,
        "shutdown_behavior": params.get("InstanceInitiatedShutdownBehavior"),
        "monitoring": params.flag("Monitoring.Enabled")?,
        "tenancy": params.get("Placement.Tenancy"),
        "client_token": params.get("ClientToken"),
        "carried": carried,
        "metadata": {
            "state": "applied",
            "httpTokens": metadata("HttpTokens", tokens),
            "httpPutResponseHopLimit": params.number::<u32>("MetadataOptions.HttpPutResponseHopLimit")?.unwrap_or(hops),
            "httpEndpoint": metadata("HttpEndpoint", "enabled"),
            "httpProtocolIpv6": metadata("HttpProtocolIpv6", "disabled"),
            "instanceMetadataTags": metadata("InstanceMetadataTags", "disabled"),
        },
    }))
}

/// The image's devices, with what the call says about them.
fn merged(image: &Image, overrides: Vec<ImageMapping>) -> Vec<ImageMapping> {
    let mut all = image.mappings.clone();
    for other in overrides {
        let Some(at) = all.iter().position(|m| m.device == other.device) else {
            all.push(other);
            continue;
        };
        if other.virtual_name.is_some() || other.no_device {
            all[at] = other;
            continue;
        }
        let of = &mut all[at];
        // what belongs to a type does not outlive it
        if other.volume_type.is_some() && other.volume_type != of.volume_type {
            (of.iops, of.throughput) = (None, None);
        }
        of.snapshot_id = other.snapshot_id.or(of.snapshot_id.take());
        of.size_gib = other.size_gib.or(of.size_gib);
        of.volume_type = other.volume_type.or(of.volume_type.take());
        of.iops = other.iops.or(of.iops);
        of.throughput = other.throughput.or(of.throughput);
        of.delete_on_termination = other.delete_on_termination.or(of.delete_on_termination);
        of.encrypted = other.encrypted.or(of.encrypted);
        of.kms_key = other.kms_key.or(of.kms_key.take());
    }
    all.retain(|m| !m.no_device);
    all
}

fn profile(call: &Call<'_>, region: &Region) -> ApiResult<Option<String>> {
    let Some(profile) = call.params.below("IamInstanceProfile") else { return Ok(None) };
    let arn = profile.get("Arn").and_then(|arn| arn.rsplit('/').next());
    let name = profile.get("Name").or(arn).ok_or_else(|| ApiError::missing("IamInstanceProfile.Name"))?;
    if !region.profiles.iter().any(|p| p == name) {
        let message = format!(
            "Value ({name}) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
        );
        return Err(ApiError::value(message));
    }
    Ok(Some(name.to_owned()))
}

/// Subnet, groups and address; zone; whether the address was asked for.
fn network(call: &Call<'_>, region: &Region) -> ApiResult<(InstanceNetwork, String, bool)> {
    let interfaces = call.params.structures("NetworkInterface");
    let interface = interfaces.first();
    if interfaces.len() > 1 {
        return Err(ApiError::client(
            "UnsupportedOperation",
            "the lab gives an instance one network interface",
        ));
    }
    if let Some(interface) = interface {
        interface.number::<u32>("DeviceIndex")?;
        for ignored in ["DeleteOnTermination", "AssociatePublicIpAddress", "Description", "InterfaceType"] {
            interface.get(ignored);
        }
    }
    let text = |name: &str| match interface {
        Some(interface) => interface.text(name),
        None => call.params.text(name),
    };
    if interface.is_some()
        && (call.params.get("SubnetId").is_some() || !call.params.list("SecurityGroupId").is_empty())
    {
        let message = "Network interfaces and an instance-level subnet ID or security groups may not be specified on the same request";
        return Err(ApiError::combination(message));
    }
    let zone = call.params.text("Placement.AvailabilityZone");
    let subnet = match text("SubnetId") {
        Some(id) => region.subnets.get(&id).ok_or_else(|| {
            ApiError::client("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
        })?,
        None => {
            let fits =
                |s: &&crate::state::Subnet| s.default_for_zone && zone.as_ref().is_none_or(|z| *z == s.zone);
            let message = "No default subnet for this availability zone";
            region.subnets.values().find(fits).ok_or_else(|| ApiError::client("MissingInput", message))?
        }
    };
    if let Some(zone) = zone.filter(|zone| *zone != subnet.zone) {
        let message = format!("The subnet '{}' is not in the availability zone '{zone}'", subnet.id);
        return Err(ApiError::value(message));
    }
    let mut groups = match interface {
        Some(interface) => interface.list("SecurityGroupId"),
        None => call.params.list("SecurityGroupId"),
    };
    for name in call.params.list("SecurityGroup") {
        let found = region.groups.values().find(|g| g.name == name && g.vpc_id == subnet.vpc_id);
        let missing = || ApiError::not_found("InvalidGroup.NotFound", "security group", &name);
        groups.push(found.ok_or_else(missing)?.id.clone());
    }
    for id in &groups {
        match region.groups.get(id) {
            None => return Err(ApiError::not_found("InvalidGroup.NotFound", "security group", id)),
            Some(group) if group.vpc_id != subnet.vpc_id => {
                let message =
                    format!("Security group {id} and subnet {} belong to different networks.", subnet.id);
                return Err(ApiError::client("InvalidParameter", message));
            }
            Some(_) => {}
        }
    }
    if groups.is_empty() {
        let default = region.groups.values().find(|g| g.name == "default" && g.vpc_id == subnet.vpc_id);
        groups.extend(default.map(|g| g.id.clone()));
    }
    let mut wanted = text("PrivateIpAddress");
    let mut secondary_ips = Vec::new();
    for address in interface.map(|i| i.structures("PrivateIpAddresses")).unwrap_or_default() {
        let ip = address.required("PrivateIpAddress")?.to_owned();
        if address.flag("Primary")?.unwrap_or(false) {
            wanted = Some(ip);
        } else {
            secondary_ips.push(ip);
        }
    }
    if let Some(ip) = &wanted {
        let taken = region.instances.values().any(|i| {
            i.network.private_ip == *ip
                && i.network.subnet_id == subnet.id
                && i.lifecycle.state(call.now).1 != "terminated"
        });
        if taken {
            return Err(ApiError::client("InvalidIPAddress.InUse", format!("Address {ip} is in use.")));
        }
        if !inside(&subnet.cidr, ip) {
            let message = "Address does not fall within the subnet's address range";
            return Err(ApiError::value(message));
        }
    }
    let fixed_ip = wanted.is_some();
    let network = InstanceNetwork {
        vpc_id: subnet.vpc_id.clone(),
        subnet_id: subnet.id.clone(),
        private_ip: wanted.unwrap_or_default(),
        secondary_ips,
        groups,
        interface_id: String::new(),
    };
    Ok((network, subnet.zone.clone(), fixed_ip))
}

fn range(cidr: &str) -> Option<(u32, u32)> {
    let (base, bits) = cidr.split_once('/')?;
    let base = u32::from(base.parse::<std::net::Ipv4Addr>().ok()?);
    let size = 1_u32.checked_shl(32 - bits.parse::<u32>().ok()?)?;
    Some((base, size))
}

fn inside(cidr: &str, ip: &str) -> bool {
    let ip = ip.parse::<std::net::Ipv4Addr>().map(u32::from);
    matches!((range(cidr), ip), (Some((base, size)), Ok(ip)) if (base + 4..base + size - 1).contains(&ip))
}

/// The lowest free address of a subnet; EC2 keeps the first four.
pub fn free_ip(region: &Region, subnet: &str) -> ApiResult<String> {
    let none =
        || ApiError::client("InsufficientFreeAddressesInSubnet", "There are no free addresses in the subnet");
    let (base, size) = region.subnets.get(subnet).and_then(|s| range(&s.cidr)).ok_or_else(none)?;
    let taken = |ip: &String| region.instances.values().any(|i| i.network.private_ip == *ip);
    let mut free = (base + 4..base + size - 1).map(|ip| std::net::Ipv4Addr::from(ip).to_string());
    free.find(|ip| !taken(ip)).ok_or_else(none)
}
