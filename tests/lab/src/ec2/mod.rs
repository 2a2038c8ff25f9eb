//! The EC2 Query API.

mod attach;
mod call;
mod groups;
mod images;
mod instances;
mod launch;
mod network;
mod snapshots;
mod tags;
pub mod types;
mod volumes;

use serde_json::Value;

pub(crate) use attach::appear;
pub use call::{Call, Target};
pub use launch::free_ip;

use crate::api::{ApiError, ApiResult};

/// Answers a call.
pub fn answer(call: &Call<'_>) -> ApiResult<Value> {
    meter(call)?;
    let body = dispatch(call)?;
    if !call.was_checked() {
        let message = format!("the lab's {} asks nobody whether it is allowed", call.action);
        return Err(ApiError::new(500, "InternalError", message));
    }
    Ok(body)
}

fn meter(call: &Call<'_>) -> ApiResult<()> {
    const HEAVY: [&str; 5] =
        ["RunInstances", "StartInstances", "StopInstances", "TerminateInstances", "CreateImage"];
    let quotas = &call.settings.quotas;
    let reads = call.action.starts_with("Describe") || call.action.starts_with("Get");
    let narrow = |name: &str| name.starts_with("Filter.") || name == "MaxResults" || name.contains("Id.");
    let bucket = if HEAVY.contains(&call.action) {
        ("ec2-heavy", quotas.ec2_heavy)
    } else if !reads {
        ("ec2-mutate", quotas.ec2_mutate)
    } else if call.params.names().any(narrow) {
        ("ec2-read", quotas.ec2_read)
    } else {
        ("ec2-unfiltered", quotas.ec2_unfiltered)
    };
    let empty = |_| ApiError::new(503, "RequestLimitExceeded", "Request limit exceeded.");
    call.core.meters.take(&[bucket]).map_err(empty)
}

fn dispatch(call: &Call<'_>) -> ApiResult<Value> {
    match call.action {
        "AttachVolume" => attach::attach(call),
        "DetachVolume" => attach::detach(call),
        "CreateVolume" => volumes::create(call),
        "DeleteVolume" => volumes::delete(call),
        "DescribeVolumes" => volumes::describe(call),
        "DescribeVolumeStatus" => volumes::status(call),
        "ModifyVolume" => volumes::modify(call),
        "DescribeVolumesModifications" => volumes::modifications(call),
        "CreateSnapshot" => snapshots::create(call),
        "CreateSnapshots" => snapshots::create_set(call),
        "DeleteSnapshot" => snapshots::delete(call),
        "DescribeSnapshots" => snapshots::describe(call),
        "CopySnapshot" => snapshots::copy(call),
        "ModifySnapshotAttribute" => snapshots::share(call),
        "CreateImage" => images::create(call),
        "RegisterImage" => images::register(call),
        "DeregisterImage" => images::deregister(call),
        "DescribeImages" => images::describe(call),
        "DescribeImageAttribute" => images::attribute(call),
        "RunInstances" => launch::run(call),
        "DescribeInstances" => instances::describe(call),
        "DescribeInstanceStatus" => instances::status(call),
        "DescribeInstanceAttribute" => instances::attribute(call),
        "ModifyInstanceAttribute" => instances::modify(call),
        "StartInstances" => instances::start(call),
        "StopInstances" => instances::stop(call),
        "TerminateInstances" => instances::terminate(call),
        "RebootInstances" => instances::reboot(call),
        "GetConsoleOutput" => instances::console(call),
        "GetInstanceUefiData" => instances::uefi_data(call),
        "DescribeInstanceTypes" => types::describe(call),
        "DescribeInstanceTypeOfferings" => types::offerings(call),
        "CreateTags" => tags::create(call),
        "DeleteTags" => tags::delete(call),
        "DescribeTags" => tags::describe(call),
        "DescribeAvailabilityZones" => network::zones(call),
        "DescribeRegions" => network::regions(call),
        "DescribeVpcs" => network::vpcs(call),
        "DescribeSubnets" => network::subnets(call),
        "DescribeSecurityGroups" => network::groups(call),
        "CreateSecurityGroup" => network::create_group(call),
        "DeleteSecurityGroup" => network::delete_group(call),
        "AuthorizeSecurityGroupIngress" => groups::authorize_ingress(call),
        "AuthorizeSecurityGroupEgress" => groups::authorize_egress(call),
        "RevokeSecurityGroupIngress" => groups::revoke_ingress(call),
        "RevokeSecurityGroupEgress" => groups::revoke_egress(call),
        "DescribeKeyPairs" => network::keys(call),
        "DescribeAccountAttributes" => network::account(call),
        "GetEbsEncryptionByDefault" => volumes::encryption(call),
        "GetEbsDefaultKmsKeyId" => volumes::default_key(call),
        other => Err(ApiError::client(
            "InvalidAction",
            format!("The action {other} is not valid for this web service."),
        )),
    }
}
