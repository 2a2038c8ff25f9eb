//! What restores need beside backups: launches, security groups of trials, blocks written to snapshots.

use aws_sdk_ebs::primitives::ByteStream;
use aws_sdk_ebs::types::ChecksumAlgorithm;
use aws_sdk_ec2::types::{
    ArchitectureValues, AttributeBooleanValue, BlockDeviceMapping, EbsBlockDevice,
    IamInstanceProfileSpecification, InstanceType, ResourceType, TagSpecification,
};

use super::super::clients::Clients;
use super::super::describe::Machine;
use super::super::direct::BLOCK_BYTES;
use super::super::error::AwsError;
use super::super::identity::BRIEF;
use super::super::network::rule;
use super::super::permissions::call_of;
use super::{NO_SNAPSHOT, Refusal, Subjects, Verdict, dry, not_known};

/// Calls that only look.
pub(super) async fn look(aws: &Clients, action: &'static str, on: &Subjects) -> Result<Verdict, AwsError> {
    let (ec2, object) = (&aws.ec2, aws.region.as_str());
    match action {
        "ec2:DescribeSubnets" => {
            dry(aws, action, object, || ec2.describe_subnets().dry_run(true).send()).await
        }
        "ec2:DescribeSecurityGroups" => {
            dry(aws, action, object, || ec2.describe_security_groups().dry_run(true).send()).await
        }
        "ec2:DescribeKeyPairs" => {
            dry(aws, action, object, || ec2.describe_key_pairs().dry_run(true).send()).await
        }
        "ec2:DescribeInstanceTypeOfferings" => {
            dry(aws, action, object, || ec2.describe_instance_type_offerings().dry_run(true).send()).await
        }
        "ec2:DescribeAvailabilityZones" => {
            dry(aws, action, object, || ec2.describe_availability_zones().dry_run(true).send()).await
        }
        "ec2:DescribeInstanceStatus" => {
            dry(aws, action, object, || ec2.describe_instance_status().dry_run(true).send()).await
        }
        "ec2:GetConsoleOutput" | "ec2:GetInstanceUefiData" => {
            let machine = match &on.instance {
                Ok(machine) => machine,
                Err(why) => return Ok(Verdict::Undecided(why.clone())),
            };
            let id = machine.id.as_str();
            match action {
                "ec2:GetConsoleOutput" => {
                    dry(aws, action, id, || ec2.get_console_output().instance_id(id).dry_run(true).send())
                        .await
                }
                _ => {
                    dry(aws, action, id, || ec2.get_instance_uefi_data().instance_id(id).dry_run(true).send())
                        .await
                }
            }
        }
        _ => Ok(not_known()),
    }
}

/// Something of what AWS says of the machine.
fn said(machine: &Machine, names: &[&str]) -> Option<String> {
    let found = names.iter().fold(&machine.whole, |value, name| &value[*name]);
    found.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Calls that make something.
pub(super) async fn make(
    aws: &Clients,
    action: &'static str,
    on: &Subjects,
    machine: &Machine,
    tagged: impl Fn(&[ResourceType]) -> Option<Vec<TagSpecification>>,
) -> Result<Verdict, AwsError> {
    let ec2 = &aws.ec2;
    match action {
        "ec2:CreateSnapshot" => {
            let Some(volume) = machine.attached.first().map(|a| a.volume.as_str()) else {
                return Ok(Verdict::Undecided(format!("{} has no volume", machine.id)));
            };
            dry(aws, action, volume, || {
                let call = ec2.create_snapshot().volume_id(volume);
                call.set_tag_specifications(tagged(&[ResourceType::Snapshot])).dry_run(true).send()
            })
            .await
        }
        "ec2:RegisterImage" => {
            let snapshot = match &on.snapshot {
                Ok(snapshot) => snapshot,
                Err(why) => return Ok(Verdict::Undecided((*why).into())),
            };
            let device = if machine.root_device.is_empty() { "/dev/xvda" } else { &machine.root_device };
            let root = BlockDeviceMapping::builder()
                .device_name(device)
                .ebs(EbsBlockDevice::builder().snapshot_id(snapshot).build())
                .build();
            dry(aws, action, snapshot, || {
                ec2.register_image()
                    .name("penstock-doctor")
                    .architecture(ArchitectureValues::X8664)
                    .root_device_name(device)
                    .virtualization_type("hvm")
                    .block_device_mappings(root.clone())
                    .set_tag_specifications(tagged(&[ResourceType::Image]))
                    .dry_run(true)
                    .send()
            })
            .await
        }
        "ec2:RunInstances" => {
            launch(aws, machine, None, tagged(&[ResourceType::Instance, ResourceType::Volume])).await
        }
        "ec2:CreateSecurityGroup" => {
            let vpc = said(machine, &["vpcId"]);
            dry(aws, action, vpc.as_deref().unwrap_or(&aws.region), || {
                ec2.create_security_group()
                    .group_name("penstock-doctor")
                    .description("penstock: a trial of the permission")
                    .set_vpc_id(vpc.clone())
                    .set_tag_specifications(tagged(&[ResourceType::SecurityGroup]))
                    .dry_run(true)
                    .send()
            })
            .await
        }
        _ => Ok(not_known()),
    }
}

/// A launch of the machine's own kind, from the image it was launched from.
async fn launch(
    aws: &Clients,
    machine: &Machine,
    profile: Option<&str>,
    tags: Option<Vec<TagSpecification>>,
) -> Result<Verdict, AwsError> {
    let Some(image) = &machine.image else {
        return Ok(Verdict::Undecided(format!("the image of {} is not known", machine.id)));
    };
    let groups: Vec<String> = machine.whole["groupSet"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group["groupId"].as_str().map(str::to_owned))
        .collect();
    let profile = profile.map(|arn| IamInstanceProfileSpecification::builder().arn(arn).build());
    dry(aws, "ec2:RunInstances", image, || {
        aws.ec2
            .run_instances()
            .image_id(image)
            .min_count(1)
            .max_count(1)
            .instance_type(InstanceType::from(machine.instance_type.as_str()))
            .set_subnet_id(said(machine, &["subnetId"]))
            .set_security_group_ids(Some(groups.clone()).filter(|g| !g.is_empty()))
            .set_key_name(said(machine, &["keyName"]))
            .set_iam_instance_profile(profile.clone())
            .set_tag_specifications(tags.clone())
            .dry_run(true)
            .send()
    })
    .await
}

/// Whether the role of the machine's instance profile may be given to another instance.
pub(super) async fn pass_role(aws: &Clients, on: &Subjects) -> Result<Verdict, AwsError> {
    let machine = match &on.instance {
        Ok(machine) => machine,
        Err(why) => return Ok(Verdict::Undecided(why.clone())),
    };
    let Some(profile) = said(machine, &["iamInstanceProfile", "arn"]) else {
        return Ok(Verdict::NotNeeded(format!("{} has no instance profile", machine.id)));
    };
    Ok(match launch(aws, machine, Some(&profile), None).await? {
        Verdict::Refused(refusal) if !refusal.names("iam:PassRole") => {
            Verdict::Undecided("it is tried with ec2:RunInstances, which is not allowed".into())
        }
        other => other,
    })
}

/// Calls on instances and security groups that this program made.
pub(super) async fn own(aws: &Clients, action: &'static str, id: &str) -> Result<Verdict, AwsError> {
    let ec2 = &aws.ec2;
    match action {
        "ec2:TerminateInstances" => {
            dry(aws, action, id, || ec2.terminate_instances().instance_ids(id).dry_run(true).send()).await
        }
        "ec2:ModifyInstanceAttribute" => {
            let yes = AttributeBooleanValue::builder().value(true).build();
            dry(aws, action, id, || {
                let call = ec2.modify_instance_attribute().instance_id(id);
                call.disable_api_termination(yes.clone()).dry_run(true).send()
            })
            .await
        }
        "ec2:RevokeSecurityGroupEgress" => {
            dry(aws, action, id, || {
                let call = ec2.revoke_security_group_egress().group_id(id);
                call.ip_permissions(rule("-1", None, "0.0.0.0/0")).dry_run(true).send()
            })
            .await
        }
        "ec2:AuthorizeSecurityGroupIngress" => {
            dry(aws, action, id, || {
                let call = ec2.authorize_security_group_ingress().group_id(id);
                call.ip_permissions(rule("tcp", Some(22), "192.0.2.1/32")).dry_run(true).send()
            })
            .await
        }
        "ec2:DeleteSecurityGroup" => {
            dry(aws, action, id, || ec2.delete_security_group().group_id(id).dry_run(true).send()).await
        }
        _ => Ok(not_known()),
    }
}

/// Calls that write snapshots know no DryRun. A snapshot is begun on a parent that does not exist, and a block is sent to a complete snapshot, which takes none:
/// both fail, and only the answer tells why.
pub(super) async fn write(
    aws: &Clients,
    action: &'static str,
    on: &Subjects,
) -> Result<(Verdict, Option<&'static str>), AwsError> {
    const AS_FAR: &str = "as far as a parent that does not exist can tell";
    const ZEROS: &str = "0000000000000000000000000000000000000000000=";
    let call = call_of(action);
    if action == "ebs:StartSnapshot" {
        let outcome = aws
            .retry
            .call(call, NO_SNAPSHOT, BRIEF, || {
                aws.ebs.start_snapshot().volume_size(1).parent_snapshot_id(NO_SNAPSHOT).send()
            })
            .await;
        return Ok(match reached(Verdict::of(outcome.map(drop))?, action) {
            Verdict::Allowed => (Verdict::Allowed, Some(AS_FAR)),
            other => (other, None),
        });
    }
    let id = match &on.snapshot {
        Ok(id) => id,
        Err(why) => return Ok((Verdict::Undecided((*why).into()), None)),
    };
    let outcome = match action {
        "ebs:PutSnapshotBlock" => aws
            .retry
            .call(call, id, BRIEF, || {
                aws.ebs
                    .put_snapshot_block()
                    .snapshot_id(id)
                    .block_index(0)
                    .block_data(ByteStream::from(vec![0; BLOCK_BYTES as usize]))
                    .data_length(BLOCK_BYTES as i32)
                    .checksum(ZEROS)
                    .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                    .send()
            })
            .await
            .map(drop),
        // What is complete stays as it is, whatever the number.
        "ebs:CompleteSnapshot" => aws
            .retry
            .call(call, id, BRIEF, || {
                aws.ebs.complete_snapshot().snapshot_id(id).changed_blocks_count(0).send()
            })
            .await
            .map(drop),
        _ => return Ok((not_known(), None)),
    };
    Ok((reached(Verdict::of(outcome)?, action), None))
}

/// An answer that speaks of the request came after the permission was looked at.
fn reached(verdict: Verdict, action: &str) -> Verdict {
    match verdict {
        Verdict::Undecided(why)
            if ["ValidationException", "ResourceNotFound", "ConflictException"]
                .iter()
                .any(|code| why.contains(code)) =>
        {
            Verdict::Allowed
        }
        Verdict::Refused(refusal) if !refusal.names(action) && refusal != Refusal::default() => {
            Verdict::Undecided("AWS refuses it, and not for the lack of this permission: a KMS key?".into())
        }
        other => other,
    }
}
