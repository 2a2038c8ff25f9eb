//! Images (AMIs): made of an instance's root, or registered of a snapshot; waited for, taken away with their snapshots.

use std::time::Duration;

use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, Filter, ImdsSupportValues,
    ResourceType, TpmSupportValues,
};

use super::clients::Clients;
use super::describe::Machine;
use super::error::{AwsError, Kind};
use super::retry::{Patience, Poll};
use super::snapshots;
use super::tags::{self, Tags};

const AVAILABLE_MAX: Duration = Duration::from_secs(48 * 3600);

/// An image.
#[derive(Clone, Debug)]
pub struct Image {
    /// `ami-…`.
    pub id: String,
    /// `pending`, `available`, `failed`, …
    pub state: String,
    /// All tags.
    pub tags: Tags,
    /// Its snapshots: device, snapshot.
    pub snapshots: Vec<(String, String)>,
}

/// Makes an image of the root of `machine`, without a reboot; volumes besides the root are left out. The name is the token: a second call under it makes none.
pub async fn create(
    aws: &Clients,
    machine: &Machine,
    name: &str,
    description: &str,
    tags: &Tags,
) -> Result<String, AwsError> {
    let without: Vec<BlockDeviceMapping> = machine
        .attached
        .iter()
        .filter(|a| !a.root)
        .map(|a| BlockDeviceMapping::builder().device_name(&a.device).no_device("").build())
        .collect();
    let answer = aws
        .retry
        .call("CreateImage", &machine.id, Patience::USUAL, || {
            aws.ec2
                .create_image()
                .instance_id(&machine.id)
                .name(name)
                .description(description)
                .no_reboot(true)
                .set_block_device_mappings((!without.is_empty()).then(|| without.clone()))
                .tag_specifications(tags::specification(ResourceType::Image, tags))
                .tag_specifications(tags::specification(ResourceType::Snapshot, tags))
                .send()
        })
        .await;
    match answer {
        Ok(made) => Ok(made.image_id().unwrap_or_default().to_owned()),
        Err(error) if error.is("InvalidAMIName.Duplicate") => by_name(aws, name).await,
        Err(error) => Err(error),
    }
}

/// An image to be registered.
#[derive(Clone, Debug, Default)]
pub struct Registration<'a> {
    /// Unique in the region: a second call under it makes none.
    pub name: &'a str,
    /// For people.
    pub description: &'a str,
    /// `/dev/xvda`.
    pub root_device: &'a str,
    /// What the root holds.
    pub snapshot: &'a str,
    /// `x86_64`, `arm64`.
    pub architecture: &'a str,
    /// `legacy-bios`, `uefi`, `uefi-preferred`.
    pub boot_mode: Option<&'a str>,
    /// `v2.0`.
    pub tpm: Option<&'a str>,
    /// Variables of the firmware, as AWS gave them.
    pub uefi_data: Option<&'a str>,
    /// `v2.0`: instances of it demand IMDSv2.
    pub imds: Option<&'a str>,
    /// Network by ENA.
    pub ena: bool,
    /// `simple`.
    pub sriov: Option<&'a str>,
    /// Codes of licences that AWS charges for.
    pub billing_products: &'a [String],
}

/// Makes an image of a snapshot.
pub async fn register(aws: &Clients, of: &Registration<'_>, tags: &Tags) -> Result<String, AwsError> {
    let root = BlockDeviceMapping::builder()
        .device_name(of.root_device)
        .ebs(EbsBlockDevice::builder().snapshot_id(of.snapshot).delete_on_termination(true).build())
        .build();
    let answer = aws
        .retry
        .call("RegisterImage", of.snapshot, Patience::FRESH, || {
            let call = aws
                .ec2
                .register_image()
                .name(of.name)
                .description(of.description)
                .architecture(ArchitectureValues::from(of.architecture))
                .root_device_name(of.root_device)
                .virtualization_type("hvm")
                .ena_support(of.ena)
                .set_boot_mode(of.boot_mode.map(BootModeValues::from))
                .set_tpm_support(of.tpm.map(TpmSupportValues::from))
                .set_uefi_data(of.uefi_data.map(str::to_owned))
                .set_imds_support(of.imds.map(ImdsSupportValues::from))
                .set_sriov_net_support(of.sriov.map(str::to_owned))
                .block_device_mappings(root.clone())
                .tag_specifications(tags::specification(ResourceType::Image, tags));
            match of.billing_products {
                [] => call,
                codes => call.set_billing_products(Some(codes.to_vec())),
            }
            .send()
        })
        .await;
    match answer {
        Ok(made) => Ok(made.image_id().unwrap_or_default().to_owned()),
        Err(error) if error.is("InvalidAMIName.Duplicate") => by_name(aws, of.name).await,
        Err(error) => Err(error),
    }
}

/// The image of this name: it was made, and the answer was lost.
async fn by_name(aws: &Clients, name: &str) -> Result<String, AwsError> {
    let filter = Filter::builder().name("name").values(name).build();
    let mut poll = Poll::up_to(super::retry::GRACE);
    loop {
        if let Some(image) = find(aws, &[], std::slice::from_ref(&filter)).await?.pop() {
            return Ok(image.id);
        }
        poll.again(&aws.retry, "DescribeImages", name, "not to be seen").await?;
    }
}

/// Any image that this account may use.
pub async fn usable(aws: &Clients, id: &str) -> Result<Usable, AwsError> {
    let answer = aws
        .retry
        .call("DescribeImages", id, Patience::USUAL, || aws.ec2.describe_images().image_ids(id).send())
        .await?;
    let Some(image) = answer.images().first() else {
        return Err(AwsError::new("DescribeImages", id, Kind::NotFound, "there is no such image"));
    };
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    Ok(Usable {
        state: text(image.state().map(|s| s.as_str())),
        architecture: text(image.architecture().map(|a| a.as_str())),
        root_device: text(image.root_device_name()),
        devices: image
            .block_device_mappings()
            .iter()
            .filter_map(|m| m.device_name().map(str::to_owned))
            .collect(),
    })
}

/// What a launch wants to know of an image.
#[derive(Clone, Debug)]
pub struct Usable {
    /// `available`, …
    pub state: String,
    /// `x86_64`, `arm64`.
    pub architecture: String,
    /// `/dev/xvda`.
    pub root_device: String,
    /// All its devices.
    pub devices: Vec<String>,
}

/// Images of this account by ids or by filters; those named by id may have been made just now.
pub async fn find(aws: &Clients, ids: &[String], filters: &[Filter]) -> Result<Vec<Image>, AwsError> {
    find_with(aws, ids, filters, if ids.is_empty() { Patience::USUAL } else { Patience::FRESH }).await
}

/// As [`find`].
pub async fn find_with(
    aws: &Clients,
    ids: &[String],
    filters: &[Filter],
    patience: Patience,
) -> Result<Vec<Image>, AwsError> {
    let object = if ids.is_empty() { format!("in {}", aws.region) } else { ids.join(" ") };
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let page = aws
            .retry
            .call("DescribeImages", &object, patience, || {
                let call = aws.ec2.describe_images().owners("self").set_next_token(token.clone());
                match ids {
                    [] => call.set_filters(Some(filters.to_vec())),
                    ids => call.set_image_ids(Some(ids.to_vec())),
                }
                .send()
            })
            .await?;
        for image in page.images() {
            let snapshots = image
                .block_device_mappings()
                .iter()
                .filter_map(|m| Some((m.device_name()?.to_owned(), m.ebs()?.snapshot_id()?.to_owned())))
                .collect();
            found.push(Image {
                id: image.image_id().unwrap_or_default().to_owned(),
                state: image.state().map(|s| s.as_str()).unwrap_or_default().to_owned(),
                tags: tags::of(image.tags()),
                snapshots,
            });
        }
        token = page.next_token().filter(|t| !t.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// Waits until it can be used.
pub async fn wait(aws: &Clients, id: &str) -> Result<Image, AwsError> {
    let mut poll = Poll::up_to(AVAILABLE_MAX);
    let ids = [id.to_owned()];
    loop {
        match find(aws, &ids, &[]).await?.pop() {
            Some(image) if image.state == "available" => return Ok(image),
            Some(image) if image.state != "pending" => {
                let message = format!("the image is {}", image.state);
                return Err(AwsError::new("CreateImage", id, Kind::State, message));
            }
            _ => poll.again(&aws.retry, "DescribeImages", id, "pending").await?,
        }
    }
}

/// Takes an image away; its snapshots stay.
pub async fn deregister(aws: &Clients, id: &str) -> Result<(), AwsError> {
    let outcome = aws
        .retry
        .call("DeregisterImage", id, Patience::USUAL, || aws.ec2.deregister_image().image_id(id).send())
        .await;
    snapshots::gone_is_well(outcome.map(drop))
}

/// Takes an image away, and its snapshots.
pub async fn remove(aws: &Clients, image: &Image) -> Result<(), AwsError> {
    deregister(aws, &image.id).await?;
    for (_, snapshot) in &image.snapshots {
        snapshots::delete(aws, snapshot).await?;
    }
    Ok(())
}
