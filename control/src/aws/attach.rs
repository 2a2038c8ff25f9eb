//! Volumes: made of a snapshot or empty, attached to an instance, and taken away.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::types::{Filter, ResourceType, VolumeType};
use serde::{Deserialize, Serialize};

use super::clients::{Clients, Proxy};
use super::describe;
use super::error::{AwsError, Kind};
use super::prices;
use super::retry::{Patience, Poll};
use super::snapshots::gone_is_well;
use super::tags::{self, Tags};

/// Time for a volume to be made, attached or detached.
const STATE_MAX: Duration = Duration::from_secs(600);

/// A kind of volume. What is `None` is left to AWS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// `gp3`.
    pub kind: String,
    /// Where the kind has them to choose.
    pub iops: Option<u32>,
    /// MiB/s, likewise.
    pub throughput: Option<u32>,
    /// A KMS key to encrypt it with; an empty one is the account's default.
    pub key: Option<String>,
}

impl Form {
    /// gp3 of so many MiB/s.
    pub fn gp3(throughput: u32) -> Self {
        Self { kind: "gp3".into(), iops: Some(iops_for(throughput)), throughput: Some(throughput), key: None }
    }
}

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct VolumeSpec<'a> {
    /// Availability zone.
    pub zone: &'a str,
    /// What it holds; an empty one if `None`.
    pub snapshot: Option<&'a str>,
    /// Its size; the snapshot's if `None`.
    pub size_gib: Option<u64>,
    /// Its kind.
    pub form: &'a Form,
    /// AWS makes one volume for it.
    pub token: String,
    /// Its tags.
    pub tags: &'a Tags,
}

/// Makes a volume; it cannot be attached yet.
pub async fn create(aws: &Clients, spec: &VolumeSpec<'_>) -> Result<String, AwsError> {
    let number = |n: u64| i32::try_from(n).unwrap_or(i32::MAX);
    let form = spec.form;
    let object = spec.snapshot.unwrap_or("an empty volume");
    let made = aws
        .retry
        .call("CreateVolume", object, Patience::FRESH, || {
            let call = aws
                .ec2
                .create_volume()
                .availability_zone(spec.zone)
                .set_snapshot_id(spec.snapshot.map(str::to_owned))
                .set_size(spec.size_gib.map(number))
                .volume_type(VolumeType::from(form.kind.as_str()))
                .set_throughput(form.throughput.map(|n| number(n.into())))
                .set_iops(form.iops.map(|n| number(n.into())))
                .client_token(&spec.token)
                .tag_specifications(tags::specification(ResourceType::Volume, spec.tags));
            match &form.key {
                Some(key) => call.encrypted(true).set_kms_key_id(Some(key.clone()).filter(|k| !k.is_empty())),
                None => call,
            }
            .send()
        })
        .await?;
    Ok(made.volume_id().unwrap_or_default().to_owned())
}

/// IOPS that a throughput needs: AWS gives 0.25 MiB/s for each.
pub fn iops_for(throughput: u32) -> u32 {
    prices::GP3_IOPS.max(throughput.saturating_mul(4))
}

/// Waits until it can be attached.
pub async fn wait_available(aws: &Clients, volume: &str) -> Result<(), AwsError> {
    wait(aws, volume, "available", |v| v.state == "available").await
}

async fn wait(
    aws: &Clients,
    id: &str,
    wanted: &str,
    is_it: impl Fn(&describe::VolumeFacts) -> bool,
) -> Result<(), AwsError> {
    let mut poll = Poll::up_to(STATE_MAX);
    let ids = [id.to_owned()];
    loop {
        let found = describe::volumes(aws, &ids, &[], Patience::FRESH).await?.pop();
        let state = found.as_ref().map_or("gone", |v| v.state.as_str()).to_owned();
        match found {
            Some(volume) if is_it(&volume) => return Ok(()),
            Some(volume) if volume.state == "error" => {
                let message =
                    "the volume is in state error: quotas of the account, or a KMS key that may not be used";
                return Err(AwsError::new("CreateVolume", id, Kind::State, message));
            }
            _ => poll.again(&aws.retry, "DescribeVolumes", id, &format!("{state}, not {wanted}")).await?,
        }
    }
}

/// Device names that attachments under way have asked for: AWS does not list them yet.
#[derive(Debug, Default)]
pub struct Names(Mutex<BTreeSet<String>>);

/// A name that nobody else of this program asks for while this lives.
struct Reserved<'a> {
    names: &'a Names,
    device: String,
}

impl Names {
    /// The first that is free.
    fn reserve(&self, taken: &BTreeSet<String>) -> Option<Reserved<'_>> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let device = device_names().find(|name| !taken.contains(&letters(name)) && !asked.contains(name))?;
        asked.insert(device.clone());
        Some(Reserved { names: self, device })
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.names.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.device);
    }
}

/// Attaches a volume to the proxy under a device name that is free; returns the name.
pub async fn attach(aws: &Clients, proxy: &Proxy, volume: &str) -> Result<String, AwsError> {
    let mine = Filter::builder().name("attachment.instance-id").values(&proxy.instance).build();
    let attached = describe::volumes(aws, &[], &[mine], Patience::USUAL).await?;
    let mut taken: BTreeSet<String> = attached
        .iter()
        .flat_map(|v| &v.attachments)
        .filter(|(instance, ..)| *instance == proxy.instance)
        .map(|(_, device, _)| letters(device))
        .collect();
    loop {
        let Some(reserved) = aws.names.reserve(&taken) else {
            let message = "no device name is free";
            return Err(AwsError::new("AttachVolume", volume, Kind::Refused, message));
        };
        let device = reserved.device.clone();
        let outcome = aws
            .retry
            .call("AttachVolume", volume, Patience::FRESH, || {
                aws.ec2.attach_volume().volume_id(volume).instance_id(&proxy.instance).device(&device).send()
            })
            .await;
        let device = match outcome {
            Ok(_) => device,
            // The answer to an earlier attempt was lost, or somebody else took the name.
            Err(error) if error.kind == Kind::State || error.is("InvalidParameterValue") => {
                match attachment(aws, proxy, volume).await? {
                    Some(device) => device,
                    None if error.message.contains(&device) => {
                        taken.insert(letters(&device));
                        continue;
                    }
                    None => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        wait(aws, volume, "attached", |v| {
            v.attachments.iter().any(|(i, _, state)| *i == proxy.instance && state == "attached")
        })
        .await?;
        return Ok(device);
    }
}

/// The device under which the proxy has a volume.
pub async fn attachment(aws: &Clients, proxy: &Proxy, volume: &str) -> Result<Option<String>, AwsError> {
    let found = describe::volumes(aws, &[volume.to_owned()], &[], Patience::FRESH).await?;
    let at = found.iter().flat_map(|v| &v.attachments).find(|(i, ..)| *i == proxy.instance);
    Ok(at.map(|(_, device, _)| device.clone()))
}

/// Attaches a volume to an instance under a given device name; it is well if it is there already.
pub async fn attach_as(aws: &Clients, instance: &str, volume: &str, device: &str) -> Result<(), AwsError> {
    let is_there = |v: &describe::VolumeFacts| {
        v.attachments.iter().any(|(i, d, state)| i == instance && d == device && state == "attached")
    };
    let ids = [volume.to_owned()];
    if describe::volumes(aws, &ids, &[], Patience::FRESH).await?.iter().any(is_there) {
        return Ok(());
    }
    let outcome = aws
        .retry
        .call("AttachVolume", volume, Patience::FRESH, || {
            aws.ec2.attach_volume().volume_id(volume).instance_id(instance).device(device).send()
        })
        .await;
    match outcome {
        // The answer to an earlier attempt was lost: the wait says whether it was done.
        Err(error) if error.kind == Kind::State && error.is("VolumeInUse") => {}
        other => drop(other?),
    }
    wait(aws, volume, "attached", is_there).await
}

/// Detaches a volume, if it is attached, and waits until it is free. False if it is gone.
pub async fn detach(aws: &Clients, volume: &str) -> Result<bool, AwsError> {
    let ids = [volume.to_owned()];
    let mut poll = Poll::up_to(STATE_MAX);
    loop {
        let found = match describe::volumes(aws, &ids, &[], Patience::USUAL).await {
            Ok(mut found) => found.pop(),
            Err(error) if error.kind == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(found) = found else { return Ok(false) };
        match found.state.as_str() {
            "deleting" | "deleted" => return Ok(false),
            "available" | "error" => return Ok(true),
            _ => {}
        }
        if found.attachments.iter().any(|(_, _, state)| state == "attached" || state == "attaching") {
            let outcome = aws
                .retry
                .call("DetachVolume", volume, Patience::USUAL, || {
                    aws.ec2.detach_volume().volume_id(volume).send()
                })
                .await;
            match outcome {
                Err(error) if error.kind == Kind::State => {}
                other => gone_is_well(other.map(drop))?,
            }
        }
        poll.again(&aws.retry, "DescribeVolumes", volume, &found.state).await?;
    }
}

/// Detaches a volume, if it is attached, and deletes it. It is no error if it is gone.
pub async fn remove(aws: &Clients, volume: &str) -> Result<(), AwsError> {
    if !detach(aws, volume).await? {
        return Ok(());
    }
    let outcome = aws
        .retry
        .call("DeleteVolume", volume, Patience::USUAL, || aws.ec2.delete_volume().volume_id(volume).send())
        .await;
    gone_is_well(outcome.map(drop))
}

/// Names for data volumes of any type of instance, best first.
fn device_names() -> impl Iterator<Item = String> {
    let plain = ('f'..='p').map(|letter| format!("/dev/sd{letter}"));
    let far = ('b'..='c').flat_map(|a| ('a'..='z').map(move |b| format!("/dev/xvd{a}{b}")));
    plain.chain(far)
}

/// What two names have in common that mean the same device: `/dev/sdf` and `/dev/xvdf`.
fn letters(device: &str) -> String {
    let name = device.trim_start_matches("/dev/");
    name.trim_start_matches("xvd").trim_start_matches("sd").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_the_same() {
        assert_eq!(letters("/dev/sdf"), letters("xvdf"));
        assert_ne!(letters("/dev/xvdba"), letters("/dev/sdb"));
        assert_eq!(device_names().count(), 11 + 52);
    }

    #[test]
    fn two_attachments_ask_for_two_names() {
        let names = Names::default();
        let taken = BTreeSet::from([letters("/dev/xvdf")]);
        let one = names.reserve(&taken).unwrap();
        let other = names.reserve(&taken).unwrap();
        assert_eq!((one.device.as_str(), other.device.as_str()), ("/dev/sdg", "/dev/sdh"));
        drop(one);
        assert_eq!(names.reserve(&taken).unwrap().device, "/dev/sdg");
    }
}
