//! The EBS direct APIs.

mod read;
mod token;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::access::Caller;
use crate::api::{ApiError, ApiResult};
use crate::core::Core;
use crate::http::{Answer, Request};
use crate::options::Bucket;
use crate::policy::{Decision, Question, decide};
use crate::state::{Region, Snapshot, Tags};

/// A call while it is answered.
#[derive(Debug)]
pub struct Call<'a> {
    /// The lab.
    pub core: &'a Arc<Core>,
    /// What was sent.
    pub request: &'a Request,
    /// Who calls.
    pub caller: &'a Caller,
    /// Region called.
    pub region: &'a str,
    /// A bit of the block is to be wrong.
    pub corrupt: bool,
    /// The snapshot is to end in error.
    pub ends_in_error: bool,
}

/// What stands in a path below `/snapshots`.
fn parts(request: &Request) -> Vec<&str> {
    request.path.trim_matches('/').split('/').skip(1).collect()
}

/// The action of a request; empty if there is none.
pub fn action(request: &Request) -> &'static str {
    match (request.method.as_str(), parts(request).as_slice()) {
        ("POST", []) => "StartSnapshot",
        ("POST", ["completion", _]) => "CompleteSnapshot",
        ("GET", [_, "blocks"]) => "ListSnapshotBlocks",
        ("GET", [_, "changedblocks"]) => "ListChangedBlocks",
        ("GET", [_, "blocks", _]) => "GetSnapshotBlock",
        ("PUT", [_, "blocks", _]) => "PutSnapshotBlock",
        _ => "",
    }
}

/// Answers a call.
pub fn answer(call: &Call<'_>, action: &str) -> ApiResult<Answer> {
    match (action, parts(call.request).as_slice()) {
        ("StartSnapshot", _) => write::start(call),
        ("CompleteSnapshot", [_, id]) => write::complete(call, id),
        ("ListSnapshotBlocks", [id, ..]) => read::list(call, id),
        ("ListChangedBlocks", [id, ..]) => read::changed(call, id),
        ("GetSnapshotBlock", [id, _, index]) => read::get(call, id, block_index(index)?),
        ("PutSnapshotBlock", [id, _, index]) => write::put(call, id, block_index(index)?),
        _ => Err(ApiError::new(404, "UnknownOperationException", "There is no such operation")),
    }
}

fn block_index(text: &str) -> ApiResult<u32> {
    text.parse().map_err(|_| ApiError::validation("INVALID_BLOCK", format!("Invalid block index: {text}")))
}

/// `RequestThrottledException`.
pub fn throttled(reason: &'static str) -> ApiError {
    ApiError::direct(
        400,
        "RequestThrottledException",
        reason,
        "The request was denied due to request throttling.",
    )
}

fn json(status: u16, value: &Value) -> Answer {
    Answer::new(status, "application/json", value.to_string())
}

impl Call<'_> {
    /// Takes tokens: of the account, and of the snapshot where that has its own.
    fn meter(&self, name: &str, account: Bucket, snapshot: Option<(&str, Bucket)>) -> ApiResult<()> {
        let own = snapshot.map(|(id, bucket)| (format!("{name}/{id}"), bucket));
        let mut buckets = vec![(name, account)];
        buckets.extend(own.as_ref().map(|(name, bucket)| (name.as_str(), *bucket)));
        self.core.meters.take(&buckets).map_err(|empty| {
            throttled(if empty == name { "ACCOUNT_THROTTLED" } else { "RESOURCE_LEVEL_THROTTLE" })
        })
    }

    /// Whether the policy allows this action on a snapshot.
    fn allow(&self, action: &str, id: &str, tags: &Tags, request_tags: &Tags) -> ApiResult<()> {
        let Some(policy) = &self.caller.policy else { return Ok(()) };
        let mut context = BTreeMap::from([("aws:RequestedRegion".to_owned(), vec![self.region.to_owned()])]);
        for (key, value) in tags {
            context.insert(format!("aws:ResourceTag/{key}"), vec![value.clone()]);
        }
        for (key, value) in request_tags {
            context.insert(format!("aws:RequestTag/{key}"), vec![value.clone()]);
        }
        if !request_tags.is_empty() {
            context.insert("aws:TagKeys".into(), request_tags.keys().cloned().collect());
        }
        let resource = format!("arn:aws:ec2:{}::snapshot/{id}", self.region);
        let action = format!("ebs:{action}");
        let because =
            match decide(policy, &Question { action: &action, resource: &resource, context: &context }) {
                Decision::Allowed => return Ok(()),
                Decision::Denied => "with an explicit deny in an identity-based policy".to_owned(),
                Decision::NotAllowed => {
                    format!("because no identity-based policy allows the {action} action")
                }
            };
        let message = format!(
            "User: {} is not authorized to perform: {action} on resource: {resource} {because}",
            self.caller.arn
        );
        Err(ApiError::direct(403, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT", message))
    }

    /// A snapshot that can be seen, and that the caller may use in this way.
    fn snapshot<'r>(&self, region: &'r Region, action: &str, id: &str) -> ApiResult<&'r Snapshot> {
        let hex = id.strip_prefix("snap-");
        let good = |hex: &str| !hex.is_empty() && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex.is_some_and(good) {
            return Err(ApiError::validation("INVALID_SNAPSHOT_ID", format!("Invalid snapshot id: {id}")));
        }
        let now = self.core.clock.now_ms();
        let snapshot = region.snapshots.get(id).filter(|s| s.visible_ms <= now);
        let nothing = Tags::new();
        self.allow(action, id, snapshot.map_or(&nothing, |s| &s.tags), &nothing)?;
        let snapshot = snapshot.ok_or_else(|| {
            let message = format!("The snapshot '{id}' does not exist.");
            ApiError::direct(404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", message)
        })?;
        let may = |key: &str| self.caller.may_use_key(region, key, &["kms:Decrypt"]);
        if region.kms_denied(snapshot.kms_key.as_deref()) || !snapshot.kms_key.as_deref().is_none_or(may) {
            let message = format!("The caller may not use the KMS key of snapshot {id}");
            return Err(ApiError::direct(403, "AccessDeniedException", "DEPENDENCY_ACCESS_DENIED", message));
        }
        Ok(snapshot)
    }
}
