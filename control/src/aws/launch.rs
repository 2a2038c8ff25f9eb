//! New instances: launched, waited for, looked at, terminated.

use std::time::Duration;

use aws_sdk_ec2::types::{
    AttributeBooleanValue, BlockDeviceMapping, CpuOptionsRequest, EbsBlockDevice, EnclaveOptionsRequest,
    Filter, HibernationOptionsRequest, HttpTokensState, IamInstanceProfileSpecification,
    InstanceMetadataEndpointState, InstanceMetadataOptionsRequest, InstanceMetadataTagsState,
    InstanceNetworkInterfaceSpecification, InstanceType, Placement, ResourceType,
    RunInstancesMonitoringEnabled, ShutdownBehavior, Tenancy, VolumeType,
};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};

use super::attach::Form;
use super::clients::Clients;
use super::describe::{self, Machine};
use super::error::{AwsError, Kind};
use super::retry::{Patience, Poll};
use super::snapshots::gone_is_well;
use super::tags::{self, Tags};

/// Time for an instance to run, or to be gone.
const STATE_MAX: Duration = Duration::from_secs(900);

/// A volume that comes with the instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mapping {
    /// `/dev/sdf`.
    pub device: String,
    /// What it holds; `None` for the image's own.
    pub snapshot: Option<String>,
    /// Its kind; as the image says if `None`.
    pub form: Option<Form>,
    /// Gone with the instance.
    pub delete_on_termination: Option<bool>,
    /// The image has something there that is left out.
    pub no_device: bool,
}

/// How the metadata service answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// `required`, `optional`.
    pub tokens: Option<String>,
    /// Hops of an answer.
    pub hop_limit: Option<i32>,
    /// `enabled`, `disabled`.
    pub endpoint: Option<String>,
    /// Whether it tells tags.
    pub tags: Option<String>,
}

/// An instance to be launched.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Launch {
    /// `ami-…`.
    pub image: String,
    /// `m5.large`.
    pub instance_type: String,
    /// `subnet-…`, which has its zone.
    pub subnet: String,
    /// `sg-…`.
    pub groups: Vec<String>,
    /// Name of a key pair.
    pub key_pair: Option<String>,
    /// ARN of an instance profile.
    pub profile_arn: Option<String>,
    /// Its name, where it was given by name.
    pub profile_name: Option<String>,
    /// One of the subnet.
    pub private_ip: Option<String>,
    /// Whether it gets a public address; by the subnet if `None`.
    pub public_ip: Option<bool>,
    /// Base64.
    pub user_data: Option<String>,
    /// Own bandwidth for volumes.
    pub ebs_optimized: bool,
    /// Detailed monitoring.
    pub monitoring: bool,
    /// `default`, `dedicated`, `host`.
    pub tenancy: Option<String>,
    /// What a shutdown from inside does.
    pub shutdown_behavior: Option<String>,
    /// Cores, and threads of each.
    pub cpu: Option<(i32, i32)>,
    /// Can hibernate.
    pub hibernation: bool,
    /// Has Nitro Enclaves.
    pub enclave: bool,
    /// The metadata service.
    pub metadata: Metadata,
    /// Its volumes.
    pub mappings: Vec<Mapping>,
    /// AWS launches one for it.
    pub token: String,
}

impl Launch {
    fn mapping(of: &Mapping) -> BlockDeviceMapping {
        if of.no_device {
            return BlockDeviceMapping::builder().device_name(&of.device).no_device("").build();
        }
        let mut ebs = EbsBlockDevice::builder()
            .set_snapshot_id(of.snapshot.clone())
            .set_delete_on_termination(of.delete_on_termination);
        if let Some(form) = &of.form {
            let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
            ebs = ebs
                .volume_type(VolumeType::from(form.kind.as_str()))
                .set_iops(form.iops.map(number))
                .set_throughput(form.throughput.map(number));
            if let Some(key) = &form.key {
                ebs = ebs.encrypted(true).set_kms_key_id(Some(key.clone()).filter(|k| !k.is_empty()));
            }
        }
        BlockDeviceMapping::builder().device_name(&of.device).ebs(ebs.build()).build()
    }

    fn metadata(&self) -> Option<InstanceMetadataOptionsRequest> {
        let of = &self.metadata;
        if *of == Metadata::default() {
            return None;
        }
        Some(
            InstanceMetadataOptionsRequest::builder()
                .set_http_tokens(of.tokens.as_deref().map(HttpTokensState::from))
                .set_http_put_response_hop_limit(of.hop_limit)
                .set_http_endpoint(of.endpoint.as_deref().map(InstanceMetadataEndpointState::from))
                .set_instance_metadata_tags(of.tags.as_deref().map(InstanceMetadataTagsState::from))
                .build(),
        )
    }

    /// Launches it; returns its id. All its volumes get `volume_tags`.
    pub async fn run(&self, aws: &Clients, tags: &Tags, volume_tags: &Tags) -> Result<String, AwsError> {
        let placement =
            self.tenancy.as_deref().map(|t| Placement::builder().tenancy(Tenancy::from(t)).build());
        let profile = (self.profile_arn.is_some() || self.profile_name.is_some()).then(|| {
            IamInstanceProfileSpecification::builder()
                .set_arn(self.profile_arn.clone())
                .set_name(self.profile_name.clone())
                .build()
        });
        let cpu = self.cpu.map(|(cores, threads)| {
            CpuOptionsRequest::builder().core_count(cores).threads_per_core(threads).build()
        });
        let hibernation =
            self.hibernation.then(|| HibernationOptionsRequest::builder().configured(true).build());
        let enclave = self.enclave.then(|| EnclaveOptionsRequest::builder().enabled(true).build());
        // A public address can only be refused or asked for at an interface.
        let interface = self.public_ip.map(|public| {
            InstanceNetworkInterfaceSpecification::builder()
                .device_index(0)
                .subnet_id(&self.subnet)
                .set_groups(Some(self.groups.clone()))
                .set_private_ip_address(self.private_ip.clone())
                .associate_public_ip_address(public)
                .delete_on_termination(true)
                .build()
        });
        let answer = aws
            .retry
            .call("RunInstances", &self.image, Patience::FRESH, || {
                let call = aws
                    .ec2
                    .run_instances()
                    .image_id(&self.image)
                    .min_count(1)
                    .max_count(1)
                    .instance_type(InstanceType::from(self.instance_type.as_str()))
                    .set_key_name(self.key_pair.clone())
                    .set_iam_instance_profile(profile.clone())
                    .set_user_data(self.user_data.clone())
                    .ebs_optimized(self.ebs_optimized)
                    .monitoring(RunInstancesMonitoringEnabled::builder().enabled(self.monitoring).build())
                    .set_placement(placement.clone())
                    .set_instance_initiated_shutdown_behavior(
                        self.shutdown_behavior.as_deref().map(ShutdownBehavior::from),
                    )
                    .set_cpu_options(cpu.clone())
                    .set_hibernation_options(hibernation.clone())
                    .set_enclave_options(enclave.clone())
                    .set_metadata_options(self.metadata())
                    .set_block_device_mappings(Some(self.mappings.iter().map(Self::mapping).collect()))
                    .client_token(&self.token)
                    .tag_specifications(tags::specification(ResourceType::Instance, tags))
                    .tag_specifications(tags::specification(ResourceType::Volume, volume_tags));
                match &interface {
                    Some(interface) => call.network_interfaces(interface.clone()),
                    None => call
                        .subnet_id(&self.subnet)
                        .set_security_group_ids(Some(self.groups.clone()).filter(|g| !g.is_empty()))
                        .set_private_ip_address(self.private_ip.clone()),
                }
                .send()
            })
            .await?;
        let id = answer.instances().first().and_then(|i| i.instance_id()).unwrap_or_default().to_owned();
        Ok(id)
    }
}

/// Instances with their state, also those that are terminated, by id or by filters.
async fn states(
    aws: &Clients,
    ids: &[String],
    filters: &[Filter],
    patience: Patience,
) -> Result<Vec<(String, String, Tags, String)>, AwsError> {
    let object = if ids.is_empty() { format!("in {}", aws.region) } else { ids.join(" ") };
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let page = aws
            .retry
            .call("DescribeInstances", &object, patience, || {
                let call = aws.ec2.describe_instances().set_next_token(token.clone());
                match ids {
                    [] => call.set_filters(Some(filters.to_vec())),
                    ids => call.set_instance_ids(Some(ids.to_vec())),
                }
                .send()
            })
            .await?;
        for instance in page.reservations().iter().flat_map(|r| r.instances()) {
            let state = instance.state().and_then(|s| s.name()).map(|n| n.as_str()).unwrap_or_default();
            let why = instance.state_reason().and_then(|r| r.message()).unwrap_or_default();
            let id = instance.instance_id().unwrap_or_default();
            found.push((id.to_owned(), state.to_owned(), tags::of(instance.tags()), why.to_owned()));
        }
        token = page.next_token().filter(|t| !t.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// Instances that are not terminated, with their tags.
pub async fn find(
    aws: &Clients,
    ids: &[String],
    filters: &[Filter],
    patience: Patience,
) -> Result<Vec<(String, Tags)>, AwsError> {
    let found = states(aws, ids, filters, patience).await?;
    let there = found.into_iter().filter(|(_, state, ..)| state != "terminated" && state != "shutting-down");
    Ok(there.map(|(id, _, tags, _)| (id, tags)).collect())
}

/// Waits until it runs; as it is then.
pub async fn wait_running(aws: &Clients, instance: &str) -> Result<Machine, AwsError> {
    let mut poll = Poll::up_to(STATE_MAX);
    let ids = [instance.to_owned()];
    loop {
        let found = states(aws, &ids, &[], Patience::FRESH).await?.pop();
        match found {
            Some((_, state, ..)) if state == "running" => {
                let mut found = describe::machines(aws, &ids, &[]).await?;
                if let Some(machine) = found.pop() {
                    return Ok(machine);
                }
            }
            Some((_, state, _, why)) if state != "pending" => {
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                let message = format!(
                    "it is {state} right after its launch{why}. A KMS key that may not be used ends instances so, too: kms:CreateGrant"
                );
                return Err(AwsError::new("RunInstances", instance, Kind::State, message));
            }
            _ => {}
        }
        poll.again(&aws.retry, "DescribeInstances", instance, "not running").await?;
    }
}

/// Terminates an instance and waits until it is gone. It is no error if it is gone already.
pub async fn terminate(aws: &Clients, instance: &str) -> Result<(), AwsError> {
    let outcome = aws
        .retry
        .call("TerminateInstances", instance, Patience::USUAL, || {
            aws.ec2.terminate_instances().instance_ids(instance).send()
        })
        .await;
    match outcome {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        other => gone_is_well(other.map(drop))?,
    }
    let mut poll = Poll::up_to(STATE_MAX);
    let ids = [instance.to_owned()];
    loop {
        match states(aws, &ids, &[], Patience::USUAL).await {
            Ok(found) if found.iter().all(|(_, state, ..)| state == "terminated") => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        poll.again(&aws.retry, "DescribeInstances", instance, "shutting down").await?;
    }
}

/// Protects an instance against being terminated or stopped by a call.
pub async fn protect(aws: &Clients, instance: &str, termination: bool, stop: bool) -> Result<(), AwsError> {
    let yes = AttributeBooleanValue::builder().value(true).build();
    if termination {
        aws.retry
            .call("ModifyInstanceAttribute", instance, Patience::FRESH, || {
                aws.ec2
                    .modify_instance_attribute()
                    .instance_id(instance)
                    .disable_api_termination(yes.clone())
                    .send()
            })
            .await?;
    }
    if stop {
        aws.retry
            .call("ModifyInstanceAttribute", instance, Patience::FRESH, || {
                aws.ec2.modify_instance_attribute().instance_id(instance).disable_api_stop(yes.clone()).send()
            })
            .await?;
    }
    Ok(())
}

/// What AWS's checks of an instance say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checks {
    /// `ok`, `initializing`, `impaired`, …: whether it answers on the network.
    pub instance: String,
    /// The same of the host below it.
    pub system: String,
}

/// Asks AWS's checks.
pub async fn checks(aws: &Clients, instance: &str) -> Result<Checks, AwsError> {
    let answer = aws
        .retry
        .call("DescribeInstanceStatus", instance, Patience::FRESH, || {
            aws.ec2.describe_instance_status().instance_ids(instance).include_all_instances(true).send()
        })
        .await?;
    let status = answer.instance_statuses().first();
    let text = |s: Option<&aws_sdk_ec2::types::InstanceStatusSummary>| {
        s.and_then(|s| s.status()).map(|s| s.as_str()).unwrap_or("not to be seen").to_owned()
    };
    Ok(Checks {
        instance: text(status.and_then(|s| s.instance_status())),
        system: text(status.and_then(|s| s.system_status())),
    })
}

/// What its serial console said last; empty if nothing is to be had.
pub async fn console(aws: &Clients, instance: &str) -> Result<String, AwsError> {
    let answer = aws
        .retry
        .call("GetConsoleOutput", instance, Patience::FRESH, || {
            aws.ec2.get_console_output().instance_id(instance).latest(true).send()
        })
        .await?;
    let bytes = answer.output().map(|text| BASE64_STANDARD.decode(text.trim()).unwrap_or_default());
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}
