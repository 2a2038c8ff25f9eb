//! Where an instance goes: subnets, security groups, key pairs, and which types a zone has.

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{Filter, IpPermission, IpRange, LocationType, ResourceType, Subnet as Described};

use super::clients::Clients;
use super::error::{AwsError, Kind};
use super::retry::{GRACE, Patience, Poll};
use super::snapshots::gone_is_well;
use super::tags::{self, Tags};

/// Time for the last interface of a group to go.
const GROUP_FREE_MAX: std::time::Duration = std::time::Duration::from_secs(300);

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-…`.
    pub id: String,
    /// `vpc-…`.
    pub vpc: String,
    /// Its availability zone.
    pub zone: String,
    /// The one that instances of that zone go to by default.
    pub default_for_zone: bool,
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

/// Subnets by id, or by filters.
pub async fn subnets(aws: &Clients, ids: &[String], filters: &[Filter]) -> Result<Vec<Subnet>, AwsError> {
    let object = if ids.is_empty() { format!("in {}", aws.region) } else { ids.join(" ") };
    let answer = aws
        .retry
        .call("DescribeSubnets", &object, Patience::USUAL, || {
            let call = aws.ec2.describe_subnets();
            match ids {
                [] => call.set_filters(Some(filters.to_vec())),
                ids => call.set_subnet_ids(Some(ids.to_vec())),
            }
            .send()
        })
        .await?;
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    Ok(answer
        .subnets()
        .iter()
        .map(|s: &Described| Subnet {
            id: text(s.subnet_id()),
            vpc: text(s.vpc_id()),
            zone: text(s.availability_zone()),
            default_for_zone: s.default_for_az().unwrap_or_default(),
        })
        .collect())
}

/// Subnets of a VPC in a zone, the default one first.
pub async fn subnets_of(aws: &Clients, vpc: &str, zone: &str) -> Result<Vec<Subnet>, AwsError> {
    let mut found = subnets(aws, &[], &[filter("vpc-id", vpc), filter("availability-zone", zone)]).await?;
    found.sort_by(|a, b| (!a.default_for_zone, &a.id).cmp(&(!b.default_for_zone, &b.id)));
    Ok(found)
}

/// Names of the availability zones.
pub async fn zones(aws: &Clients) -> Result<BTreeSet<String>, AwsError> {
    let answer = aws
        .retry
        .call("DescribeAvailabilityZones", &aws.region, Patience::USUAL, || {
            aws.ec2.describe_availability_zones().send()
        })
        .await?;
    Ok(answer.availability_zones().iter().filter_map(|z| z.zone_name().map(str::to_owned)).collect())
}

/// An error unless all of these security groups are in that VPC.
pub async fn check_groups(aws: &Clients, ids: &[String], vpc: &str) -> Result<(), AwsError> {
    const CALL: &str = "DescribeSecurityGroups";
    let object = ids.join(" ");
    let answer = aws
        .retry
        .call(CALL, &object, Patience::USUAL, || {
            aws.ec2.describe_security_groups().set_group_ids(Some(ids.to_vec())).send()
        })
        .await?;
    match answer.security_groups().iter().find(|g| g.vpc_id().is_some_and(|v| v != vpc)) {
        Some(group) => {
            let (id, theirs) = (group.group_id().unwrap_or_default(), group.vpc_id().unwrap_or_default());
            let message =
                format!("it belongs to {theirs}, and the subnet to {vpc}: choose by --security-group");
            Err(AwsError::new(CALL, id, Kind::Refused, message))
        }
        None => Ok(()),
    }
}

/// An error unless there is a key pair of this name.
pub async fn check_key_pair(aws: &Clients, name: &str) -> Result<(), AwsError> {
    aws.retry
        .call("DescribeKeyPairs", name, Patience::USUAL, || {
            aws.ec2.describe_key_pairs().key_names(name).send()
        })
        .await
        .map(drop)
}

/// Whether a zone has instances of a type.
pub async fn has_type(aws: &Clients, instance_type: &str, zone: &str) -> Result<bool, AwsError> {
    let answer = aws
        .retry
        .call("DescribeInstanceTypeOfferings", instance_type, Patience::USUAL, || {
            aws.ec2
                .describe_instance_type_offerings()
                .location_type(LocationType::AvailabilityZone)
                .filters(filter("instance-type", instance_type))
                .filters(filter("location", zone))
                .send()
        })
        .await?;
    Ok(!answer.instance_type_offerings().is_empty())
}

/// Makes a security group that lets nothing in and nothing out, but what `from` (an address) asks of TCP `port`.
pub async fn make_closed_group(
    aws: &Clients,
    vpc: &str,
    name: &str,
    tags: &Tags,
) -> Result<String, AwsError> {
    let made = aws
        .retry
        .call("CreateSecurityGroup", name, Patience::USUAL, || {
            aws.ec2
                .create_security_group()
                .group_name(name)
                .description("penstock: a restored instance that is tried in isolation")
                .vpc_id(vpc)
                .tag_specifications(tags::specification(ResourceType::SecurityGroup, tags))
                .send()
        })
        .await;
    match made {
        Ok(made) => Ok(made.group_id().unwrap_or_default().to_owned()),
        // The answer to an earlier attempt was lost: names are unique, and this one is the run's own.
        Err(error) if error.is("InvalidGroup.Duplicate") => {
            let by_name = [filter("group-name", name), filter("vpc-id", vpc)];
            let mut poll = Poll::up_to(GRACE);
            loop {
                if let Some((id, _)) = groups(aws, &by_name).await?.pop() {
                    return Ok(id);
                }
                poll.again(&aws.retry, "DescribeSecurityGroups", name, "not to be seen").await?;
            }
        }
        Err(error) => Err(error),
    }
}

/// Takes away the rule that new groups have: everything may leave.
pub async fn close_egress(aws: &Clients, group: &str) -> Result<(), AwsError> {
    let everywhere = rule("-1", None, "0.0.0.0/0");
    let outcome = aws
        .retry
        .call("RevokeSecurityGroupEgress", group, Patience::FRESH, || {
            aws.ec2.revoke_security_group_egress().group_id(group).ip_permissions(everywhere.clone()).send()
        })
        .await;
    match outcome {
        // The answer to an earlier attempt was lost.
        Err(error) if error.is("InvalidPermission.NotFound") => Ok(()),
        other => other.map(drop),
    }
}

/// Lets one address in on a TCP port.
pub async fn open_port(aws: &Clients, group: &str, from: &str, port: u16) -> Result<(), AwsError> {
    let one = rule("tcp", Some(port), &format!("{from}/32"));
    let outcome = aws
        .retry
        .call("AuthorizeSecurityGroupIngress", group, Patience::FRESH, || {
            aws.ec2.authorize_security_group_ingress().group_id(group).ip_permissions(one.clone()).send()
        })
        .await;
    match outcome {
        Err(error) if error.is("InvalidPermission.Duplicate") => Ok(()),
        other => other.map(drop),
    }
}

/// A rule of a security group: `-1` is every protocol.
pub fn rule(protocol: &str, port: Option<u16>, range: &str) -> IpPermission {
    IpPermission::builder()
        .ip_protocol(protocol)
        .set_from_port(port.map(i32::from))
        .set_to_port(port.map(i32::from))
        .ip_ranges(IpRange::builder().cidr_ip(range).build())
        .build()
}

/// Security groups by filters: id and tags.
pub async fn groups(aws: &Clients, filters: &[Filter]) -> Result<Vec<(String, Tags)>, AwsError> {
    let answer = aws
        .retry
        .call("DescribeSecurityGroups", &aws.region, Patience::USUAL, || {
            aws.ec2.describe_security_groups().set_filters(Some(filters.to_vec())).send()
        })
        .await?;
    let of = |g: &aws_sdk_ec2::types::SecurityGroup| {
        (g.group_id().unwrap_or_default().to_owned(), tags::of(g.tags()))
    };
    Ok(answer.security_groups().iter().map(of).collect())
}

/// Takes a group away once nothing uses it any more. It is no error if it is gone.
pub async fn remove_group(aws: &Clients, group: &str) -> Result<(), AwsError> {
    let mut poll = Poll::up_to(GROUP_FREE_MAX);
    loop {
        let outcome = aws
            .retry
            .call("DeleteSecurityGroup", group, Patience::USUAL, || {
                aws.ec2.delete_security_group().group_id(group).send()
            })
            .await;
        match outcome {
            // The interface of an instance that was terminated goes a little later.
            Err(error) if error.is("DependencyViolation") => {
                poll.again(&aws.retry, "DeleteSecurityGroup", group, "in use").await?;
            }
            other => return gone_is_well(other.map(drop)),
        }
    }
}
