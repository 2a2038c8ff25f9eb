//! The new instance: which image it is launched from, where it goes, and what it gets, by what was recorded and what the user chose. Everything is asked for
//! before anything is written, so that a missing subnet is not found out after hours.

use serde::{Deserialize, Serialize};

use super::order::{Choice, Order};
use super::recorded::Recorded;
use super::{Error, Result};
use crate::aws::clients::Clients;
use crate::aws::error::Kind;
use crate::aws::images;
use crate::aws::launch::{Launch, Metadata};
use crate::aws::network::{self, Subnet};
use crate::aws::retry::Patience;
use crate::aws::tags::Tags;

/// What the instance is launched from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "from")]
pub enum ImagePlan {
    /// The image that mode ami kept of the root.
    Kept {
        /// `ami-…`.
        id: String,
    },
    /// One that the user named.
    Named {
        /// `ami-…`.
        id: String,
        /// Its devices.
        devices: Vec<String>,
        /// Its root.
        root_device: String,
    },
    /// One made of the restored root, and removed after the launch.
    Registered(Registered),
}

/// What an image made of a root says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// `/dev/xvda`.
    pub root_device: String,
    /// `x86_64`, `arm64`.
    pub architecture: String,
    /// `legacy-bios`, `uefi`, `uefi-preferred`.
    pub boot_mode: Option<String>,
    /// `v2.0`.
    pub tpm: Option<String>,
    /// Variables of the firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uefi_data: Option<String>,
    /// `v2.0`.
    pub imds: Option<String>,
    /// Network by ENA.
    pub ena: bool,
    /// `simple`.
    pub sriov: Option<String>,
    /// Codes of licences.
    pub billing_products: Vec<String>,
}

/// A new instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachinePlan {
    /// Of what.
    pub image: ImagePlan,
    /// Its zone.
    pub zone: String,
    /// Where and how; its image, volumes and token come later.
    pub launch: Launch,
    /// Its tags.
    pub tags: Tags,
    /// Protected against termination, and against being stopped.
    pub protect: (bool, bool),
}

impl MachinePlan {
    /// Decides, and asks AWS whether it is all there. `notes` are for the user.
    pub async fn make(
        aws: &Clients,
        recorded: &Recorded,
        order: &Order,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let image = image(aws, recorded, order, notes).await?;
        let subnet = subnet(aws, recorded, order).await?;
        let groups = match order.groups.as_slice() {
            [] if order.isolated => Vec::new(),
            [] => recorded.list("groupSet", "groupId"),
            chosen => chosen.to_vec(),
        };
        if !groups.is_empty() {
            network::check_groups(aws, &groups, &subnet.vpc).await.map_err(|error| match error.kind {
                Kind::NotFound => Error::Refused(format!("{}. Choose by --security-group", error.said())),
                _ => error.into(),
            })?;
        }
        let key_pair = order.key_pair.of(recorded.instance(&["keyName"]));
        if let Some(name) = &key_pair {
            network::check_key_pair(aws, name).await?;
        }
        let recorded_type = recorded.instance(&["instanceType"]).unwrap_or_default();
        let instance_type = order.instance_type.clone().unwrap_or_else(|| recorded_type.clone());
        match network::has_type(aws, &instance_type, &subnet.zone).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::Refused(format!(
                    "{} has no instances of type {instance_type}: choose by --instance-type or --zone",
                    subnet.zone
                )));
            }
            // The launch will tell.
            Err(error) if error.kind == Kind::Denied => notes.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        if recorded.list("networkInterfaceSet", "networkInterfaceId").len() > 1 {
            notes
                .push("the instance had several network interfaces: it gets one, in its first subnet".into());
        }
        let recorded_profile = recorded.instance(&["iamInstanceProfile", "arn"]).filter(|_| !order.isolated);
        let profile = order.profile.of(recorded_profile);
        let is_arn = |profile: &String| profile.starts_with("arn:");
        let private_ip = match &order.private_ip {
            Choice::Recorded => recorded.instance(&["privateIpAddress"]),
            other => other.of(None),
        };
        let tenancy = recorded.instance(&["placement", "tenancy"]).filter(|t| t != "default");
        if tenancy.as_deref() == Some("host") {
            notes.push("the instance was on a dedicated host: the new one has the default tenancy".into());
        }
        let same_type = instance_type == recorded_type;
        let launch = Launch {
            subnet: subnet.id,
            groups,
            key_pair,
            profile_arn: profile.clone().filter(is_arn),
            profile_name: profile.filter(|p| !is_arn(p)),
            private_ip,
            public_ip: order.isolated.then_some(false),
            user_data: order.user_data.of(recorded.attribute("userData")),
            ebs_optimized: recorded.flag(&["ebsOptimized"]),
            monitoring: recorded.instance(&["monitoring", "state"]).as_deref() == Some("enabled"),
            tenancy: tenancy.filter(|t| t == "dedicated"),
            shutdown_behavior: recorded.attribute("instanceInitiatedShutdownBehavior"),
            cpu: cpu(recorded).filter(|_| same_type),
            hibernation: same_type && recorded.flag(&["hibernationOptions", "configured"]),
            enclave: same_type && recorded.flag(&["enclaveOptions", "enabled"]),
            metadata: Metadata {
                tokens: recorded.instance(&["metadataOptions", "httpTokens"]),
                hop_limit: recorded.number(&["metadataOptions", "httpPutResponseHopLimit"]),
                endpoint: recorded.instance(&["metadataOptions", "httpEndpoint"]),
                tags: recorded.instance(&["metadataOptions", "instanceMetadataTags"]),
            },
            instance_type,
            ..Launch::default()
        };
        let mut tags = recorded.tags();
        tags.extend(order.tags.clone());
        let protected = |name: &str| recorded.attribute(name).as_deref() == Some("true");
        let protect = (protected("disableApiTermination"), protected("disableApiStop"));
        let protect = if order.isolated { (false, false) } else { protect };
        Ok(Self { image, zone: subnet.zone, launch, tags, protect })
    }
}

/// Cores and threads, where somebody chose them: hyperthreading that was switched off. A type's own numbers need not be said, and some types do not want to hear them.
fn cpu(recorded: &Recorded) -> Option<(i32, i32)> {
    let (cores, threads) =
        (recorded.number(&["cpuOptions", "coreCount"])?, recorded.number(&["cpuOptions", "threadsPerCore"])?);
    let intel = recorded.instance(&["architecture"]).as_deref() == Some("x86_64");
    (intel && threads == 1 && cores > 1).then_some((cores, threads))
}

async fn image(
    aws: &Clients,
    recorded: &Recorded,
    order: &Order,
    notes: &mut Vec<String>,
) -> Result<ImagePlan> {
    if let Some(id) = &order.image {
        let image = images::usable(aws, id).await?;
        if image.state != "available" {
            return Err(Error::Refused(format!("image {id} is {}, not available", image.state)));
        }
        let was = recorded.instance(&["architecture"]).unwrap_or_default();
        if order.instance_type.is_none() && image.architecture != was {
            return Err(Error::Refused(format!(
                "image {id} is for {}, the instance was {was}: choose another by --instance-type",
                image.architecture
            )));
        }
        notes.push(format!("the root is that of {id}: the recovery point's own is not restored"));
        let (devices, root_device) = (image.devices, image.root_device);
        return Ok(ImagePlan::Named { id: id.clone(), devices, root_device });
    }
    let mut gone = String::new();
    if let Some(id) = recorded.kept_image.as_ref().filter(|_| !order.write_root) {
        let here = aws.region == recorded.region;
        let found = if here { find_kept(aws, id).await? } else { false };
        if found {
            return Ok(ImagePlan::Kept { id: id.clone() });
        }
        let why = if here { "is gone".to_owned() } else { format!("is in {}", recorded.region) };
        gone = format!("its image {id}, which mode ami kept, {why}");
    }
    if recorded.is_windows() {
        let why = match gone.as_str() {
            "" => "no image of it was kept".to_owned(),
            gone => gone.to_owned(),
        };
        return Err(Error::Refused(format!(
            "Windows does not launch from an image that is made of a snapshot: AWS gives such images no licence. {why}. \
             Launch from another Windows image and get the data volumes back (--image ami-…), or restore volumes only (--volumes-only). \
             Backups with `ec2 backup --mode ami` keep an image of the root, which launches"
        )));
    }
    if !gone.is_empty() {
        notes.push(format!("{gone}: the root is written from the repository"));
    }
    let operation = recorded.instance(&["usageOperation"]).unwrap_or_default();
    if operation != "RunInstances" && !operation.is_empty() && order.billing_products.is_empty() {
        let what = recorded.instance(&["platformDetails"]).unwrap_or_default();
        notes.push(format!(
            "the licence of {what} ({operation}) does not come with an image that is made of a snapshot: name its code by --billing-product if the account may, or launch from a licensed image (--image)"
        ));
    }
    let codes = recorded.list("productCodes", "productCode");
    if !codes.is_empty() {
        notes.push(format!("marketplace codes are not carried over: {}", codes.join(", ")));
    }
    let of = |names: &[&str]| recorded.image(names).or_else(|| recorded.instance(names));
    if of(&["virtualizationType"]).is_some_and(|v| v != "hvm") {
        return Err(Error::Refused(
            "the instance is paravirtual: such images cannot be made any more. Restore volumes only".into(),
        ));
    }
    Ok(ImagePlan::Registered(Registered {
        root_device: recorded.instance(&["rootDeviceName"]).unwrap_or_else(|| "/dev/xvda".into()),
        architecture: recorded.instance(&["architecture"]).unwrap_or_else(|| "x86_64".into()),
        boot_mode: of(&["bootMode"]),
        tpm: of(&["tpmSupport"]),
        uefi_data: recorded.uefi_data(),
        imds: recorded.image(&["imdsSupport"]),
        ena: recorded.flag(&["enaSupport"]),
        sriov: recorded.instance(&["sriovNetSupport"]),
        billing_products: order.billing_products.clone(),
    }))
}

async fn find_kept(aws: &Clients, id: &str) -> Result<bool> {
    match images::find_with(aws, std::slice::from_ref(&id.to_owned()), &[], Patience::USUAL).await {
        Ok(found) => Ok(found.iter().any(|image| image.state == "available")),
        Err(error) if error.kind == Kind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn subnet(aws: &Clients, recorded: &Recorded, order: &Order) -> Result<Subnet> {
    let by_id = async |id: &str| match network::subnets(aws, &[id.to_owned()], &[]).await {
        Ok(mut found) => Ok(found.pop()),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(Error::from(error)),
    };
    let fits = |subnet: &Subnet| order.zone.as_ref().is_none_or(|zone| *zone == subnet.zone);
    if let Some(id) = &order.subnet {
        return match by_id(id).await? {
            Some(subnet) if fits(&subnet) => Ok(subnet),
            Some(subnet) => Err(Error::Refused(format!("subnet {id} is in {}, not in --zone", subnet.zone))),
            None => Err(Error::Refused(format!("there is no subnet {id} in {}", aws.region))),
        };
    }
    let recorded_id = recorded.instance(&["subnetId"]).unwrap_or_default();
    let was = if recorded.region == aws.region { by_id(&recorded_id).await? } else { None };
    let Some(was) = was else {
        return Err(Error::Refused(format!(
            "the instance was in {recorded_id} in {}, which {} does not have: choose by --subnet, and --security-group",
            recorded.region, aws.region
        )));
    };
    if fits(&was) {
        return Ok(was);
    }
    let zone = order.zone.clone().unwrap_or_default();
    let mut there = network::subnets_of(aws, &was.vpc, &zone).await?;
    match there.len() {
        0 => Err(Error::Refused(format!("{} has no subnet in {zone}: choose by --subnet", was.vpc))),
        1 => Ok(there.remove(0)),
        _ if there[0].default_for_zone => Ok(there.remove(0)),
        _ => {
            let ids: Vec<&str> = there.iter().map(|s| s.id.as_str()).collect();
            Err(Error::Refused(format!(
                "{} has several subnets in {zone}, choose by --subnet: {}",
                was.vpc,
                ids.join(", ")
            )))
        }
    }
}
