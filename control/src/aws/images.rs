//! Images (AMIs) that mode ami keeps: made of an instance's root, waited for, taken away with their snapshots.

use std::time::Duration;

use aws_sdk_ec2::types::{BlockDeviceMapping, Filter, ResourceType};

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
        // The answer to an earlier attempt was lost.
        Err(error) if error.is("InvalidAMIName.Duplicate") => {
            let filter = Filter::builder().name("name").values(name).build();
            let mut poll = Poll::up_to(super::retry::GRACE);
            loop {
                if let Some(image) = find(aws, &[], std::slice::from_ref(&filter)).await?.pop() {
                    return Ok(image.id);
                }
                poll.again(&aws.retry, "DescribeImages", name, "not to be seen").await?;
            }
        }
        Err(error) => Err(error),
    }
}

/// Images of this account by ids or by filters.
pub async fn find(aws: &Clients, ids: &[String], filters: &[Filter]) -> Result<Vec<Image>, AwsError> {
    let object = if ids.is_empty() { format!("in {}", aws.region) } else { ids.join(" ") };
    let patience = if ids.is_empty() { Patience::USUAL } else { Patience::FRESH };
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

/// Takes an image away, and its snapshots.
pub async fn remove(aws: &Clients, image: &Image) -> Result<(), AwsError> {
    let outcome = aws
        .retry
        .call("DeregisterImage", &image.id, Patience::USUAL, || {
            aws.ec2.deregister_image().image_id(&image.id).send()
        })
        .await;
    snapshots::gone_is_well(outcome.map(drop))?;
    for (_, snapshot) in &image.snapshots {
        snapshots::delete(aws, snapshot).await?;
    }
    Ok(())
}
