//! Writing a snapshot: StartSnapshot, PutSnapshotBlock, CompleteSnapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Call, json};
use crate::api::{ApiError, ApiResult};
use crate::blocks::{BLOCK_BYTES, BLOCKS_PER_GIB, BlockMap, PackedBlock};
use crate::clock::epoch_seconds;
use crate::http::Answer;
use crate::state::{Origin, Region, Snapshot, Tags, Writing};

const NEVER_MS: i64 = i64::MAX / 4;
const MINUTE_MS: i64 = 60_000;
const SIZE_MAX_GIB: u64 = 65_536;

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::validation("INVALID_PARAMETER_VALUE", message)
}

/// The body of StartSnapshot.
struct Wanted {
    size_gib: u64,
    parent: Option<String>,
    tags: Tags,
    description: String,
    client_token: Option<String>,
    encrypted: Option<bool>,
    key: Option<String>,
    timeout_ms: i64,
}

impl Wanted {
    fn parse(body: &Value) -> ApiResult<Self> {
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        let size_gib =
            body["VolumeSize"].as_u64().filter(|s| (1..=SIZE_MAX_GIB).contains(s)).ok_or_else(|| {
                ApiError::validation("INVALID_VOLUME_SIZE", "VolumeSize must be between 1 and 65536 GiB")
            })?;
        let mut tags = Tags::new();
        for tag in body["Tags"].as_array().into_iter().flatten() {
            let key = tag["Key"].as_str().unwrap_or_default();
            if key.is_empty() || key.starts_with("aws:") || key.len() > 127 || tags.contains_key(key) {
                return Err(ApiError::validation("INVALID_TAG", format!("Invalid tag key: {key}")));
            }
            tags.insert(key.to_owned(), tag["Value"].as_str().unwrap_or_default().to_owned());
        }
        let minutes = match &body["Timeout"] {
            Value::Null => 60,
            value => value
                .as_i64()
                .filter(|m| (10..=4320).contains(m))
                .ok_or_else(|| invalid("Timeout must be between 10 and 4320 minutes"))?,
        };
        let wanted = Self {
            size_gib,
            parent: text("ParentSnapshotId"),
            tags,
            description: text("Description").unwrap_or_default(),
            client_token: text("ClientToken"),
            encrypted: body["Encrypted"].as_bool(),
            key: text("KmsKeyArn"),
            timeout_ms: minutes * MINUTE_MS,
        };
        if wanted.parent.is_some() && wanted.encrypted.is_some() {
            return Err(invalid("Encrypted and ParentSnapshotId cannot be specified in the same request"));
        }
        if wanted.key.is_some() && wanted.encrypted != Some(true) {
            return Err(invalid("KmsKeyArn requires Encrypted to be true"));
        }
        if wanted.client_token.as_ref().is_some_and(|t| t.is_empty() || t.len() > 255) {
            return Err(invalid("ClientToken must have 1 to 255 characters"));
        }
        Ok(wanted)
    }
}

pub(super) fn start(call: &Call<'_>) -> ApiResult<Answer> {
    let body: Value = serde_json::from_slice(&call.request.body).map_err(|e| invalid(e.to_string()))?;
    let wanted = Wanted::parse(&body)?;
    let settings = call.core.settings();
    let now = call.core.clock.now_ms();
    call.core.try_with(call.region, |region: &mut Region| {
        call.allow("StartSnapshot", "*", &Tags::new(), &wanted.tags)?;
        call.meter("start", settings.quotas.start, None)?;
        let token = wanted.client_token.clone().map(|token| ("StartSnapshot".to_owned(), token));
        let mut fingerprint = body.clone();
        fingerprint["ClientToken"] = Value::Null;
        let fingerprint = fingerprint.to_string();
        if let Some((same, ids)) = token.as_ref().and_then(|token| region.tokens.get(token)) {
            if *same != fingerprint {
                let message =
                    "The request uses the same client token as a previous, but non-identical request.";
                return Err(ApiError::new(409, "ConflictException", message));
            }
            if let Some(snapshot) = region.snapshots.get(&ids[0]) {
                return Ok(started(snapshot, now));
            }
        }
        let pending = region.snapshots.values().filter(|s| s.state(now) == "pending").count();
        if settings.limits.pending_snapshots > 0 && pending >= settings.limits.pending_snapshots {
            let message = "You have reached the limit for concurrent API requests: pending snapshots";
            return Err(ApiError::new(400, "ConcurrentLimitExceededException", message));
        }
        let (mut base, mut lineage, mut key) = (BlockMap::empty(&call.core.store), None, None);
        let mut encrypted = wanted.encrypted.unwrap_or(region.encryption_by_default);
        if let Some(parent) = &wanted.parent {
            let parent = call.snapshot(region, "StartSnapshot", parent)?;
            let (Some(map), "completed") = (&parent.map, parent.state(now)) else {
                return Err(ApiError::validation(
                    "INVALID_SNAPSHOT_ID",
                    "The parent snapshot is not completed",
                ));
            };
            if wanted.size_gib < parent.size_gib {
                let message = "VolumeSize is smaller than that of the parent snapshot";
                return Err(ApiError::validation("INVALID_VOLUME_SIZE", message));
            }
            if region.encryption_by_default && !parent.encrypted {
                let message =
                    "An unencrypted parent snapshot cannot be used while encryption by default is enabled";
                return Err(invalid(message));
            }
            base = map.duplicate();
            lineage = Some(parent.lineage);
            encrypted = parent.encrypted;
            key = parent.kms_key.clone();
        }
        if encrypted && key.is_none() {
            key = Some(wanted.key.clone().unwrap_or_else(|| region.default_kms_key.clone()));
        }
        let may = |key: &str| {
            call.caller.may_use_key(region, key, &["kms:GenerateDataKeyWithoutPlaintext", "kms:CreateGrant"])
        };
        if region.kms_denied(key.as_deref()) || !key.as_deref().is_none_or(may) {
            let message = "The caller may not use the KMS key";
            return Err(ApiError::direct(403, "AccessDeniedException", "DEPENDENCY_ACCESS_DENIED", message));
        }
        let id = region.ids.id("snap");
        let snapshot = Snapshot {
            id: id.clone(),
            volume_id: "vol-ffffffff".into(),
            size_gib: wanted.size_gib,
            description: wanted.description,
            tags: wanted.tags,
            encrypted,
            kms_key: key,
            owner: region.account.clone(),
            origin: Origin::Direct,
            parent: wanted.parent,
            shared_with: Vec::new(),
            lineage: lineage.unwrap_or_else(|| region.new_lineage()),
            start_ms: now,
            complete_ms: NEVER_MS,
            visible_ms: now + settings.timing.eventual_ms,
            failed: None,
            will_fail: call.ends_in_error.then(|| "An internal error has occurred".to_owned()),
            map: None,
            writing: Some(Writing {
                deadline_ms: now + wanted.timeout_ms,
                timeout_ms: wanted.timeout_ms,
                base: Arc::new(base),
                blocks: BTreeMap::new(),
            }),
        };
        let answer = started(&snapshot, now);
        region.snapshots.insert(id.clone(), snapshot);
        if let Some(token) = token {
            region.tokens.insert(token, (fingerprint, vec![id]));
        }
        Ok(answer)
    })
}

fn started(snapshot: &Snapshot, now: i64) -> Answer {
    let tags: Vec<Value> = snapshot.tags.iter().map(|(k, v)| json!({"Key": k, "Value": v})).collect();
    let mut body = json!({
        "SnapshotId": snapshot.id,
        "OwnerId": snapshot.owner,
        "Status": snapshot.state(now),
        "StartTime": epoch_seconds(snapshot.start_ms),
        "VolumeSize": snapshot.size_gib,
        "BlockSize": BLOCK_BYTES,
        "Tags": tags,
        "SseType": if snapshot.encrypted { "sse-kms" } else { "none" },
    });
    if !snapshot.description.is_empty() {
        body["Description"] = json!(snapshot.description);
    }
    if let Some(parent) = &snapshot.parent {
        body["ParentSnapshotId"] = json!(parent);
    }
    if let Some(key) = &snapshot.kms_key {
        body["KmsKeyArn"] = json!(key);
    }
    json(201, &body)
}

/// Refuses what is not being written.
fn writable(snapshot: &Snapshot) -> ApiResult<&Writing> {
    let message = || format!("The snapshot '{}' is not being written, or is already sealed", snapshot.id);
    snapshot.writing.as_ref().ok_or_else(|| ApiError::validation("INVALID_SNAPSHOT_ID", message()))
}

pub(super) fn put(call: &Call<'_>, id: &str, index: u32) -> ApiResult<Answer> {
    let header = |name: &str| {
        call.request.header(name).ok_or_else(|| invalid(format!("The header {name} is missing")))
    };
    call.core.try_with(call.region, |region: &mut Region| {
        let snapshot = call.snapshot(region, "PutSnapshotBlock", id)?;
        writable(snapshot)?;
        if u64::from(index) >= snapshot.size_gib * BLOCKS_PER_GIB {
            let message = format!("The block index {index} is beyond the end of the volume");
            return Err(ApiError::validation("INVALID_BLOCK", message));
        }
        Ok(())
    })?;
    let quotas = call.core.settings().quotas;
    call.meter("put", quotas.put, Some((id, quotas.put_per_snapshot)))?;
    let length = header("x-amz-data-length")?;
    if length.parse() != Ok(BLOCK_BYTES) || call.request.body.len() != BLOCK_BYTES {
        return Err(invalid(format!("DataLength must be {BLOCK_BYTES}, as long as the data")));
    }
    if header("x-amz-checksum-algorithm")? != "SHA256" {
        return Err(invalid("ChecksumAlgorithm must be SHA256"));
    }
    if let Some(progress) = call.request.header("x-amz-progress")
        && !progress.parse::<u8>().is_ok_and(|p| p <= 100)
    {
        return Err(invalid("Progress must be between 0 and 100"));
    }
    let digest: [u8; 32] = Sha256::digest(&call.request.body).into();
    let checksum = STANDARD.encode(digest);
    if header("x-amz-checksum")? != checksum {
        return Err(invalid("The checksum does not match the data"));
    }
    let stored = call.core.store.put(&PackedBlock::of(&call.request.body))?;
    let kept = call.core.try_with(call.region, |region: &mut Region| {
        let now = call.core.clock.now_ms();
        let writing = region.snapshots.get_mut(id).and_then(|s| s.writing.as_mut());
        let gone =
            || ApiError::validation("INVALID_SNAPSHOT_ID", "The snapshot is not being written any more");
        let writing = writing.ok_or_else(gone)?;
        writing.deadline_ms = now + writing.timeout_ms;
        Ok(writing.blocks.insert(index, (stored, digest)))
    });
    match kept {
        Ok(before) => call.core.store.release(before.into_iter().map(|b| b.0)),
        Err(error) => {
            call.core.store.release([stored].into_iter());
            return Err(error);
        }
    }
    Ok(json(201, &json!({})).with("x-amz-Checksum", checksum).with("x-amz-Checksum-Algorithm", "SHA256"))
}

pub(super) fn complete(call: &Call<'_>, id: &str) -> ApiResult<Answer> {
    let header = |name: &str| call.request.header(name);
    let count = header("x-amz-changedblockscount").and_then(|n| n.parse::<usize>().ok());
    let count = count.ok_or_else(|| invalid("The header x-amz-ChangedBlocksCount is missing"))?;
    let settings = call.core.settings();
    call.core.try_with(call.region, |region: &mut Region| {
        let now = call.core.clock.now_ms();
        let snapshot = call.snapshot(region, "CompleteSnapshot", id)?;
        call.meter("complete", settings.quotas.complete, None)?;
        if snapshot.origin == Origin::Direct && snapshot.map.is_some() {
            // the same call again, after its answer was lost
            return Ok(json(202, &json!({"Status": snapshot.state(now)})));
        }
        let writing = writable(snapshot)?;
        if writing.blocks.len() != count {
            let message =
                format!("ChangedBlocksCount is {count}, and {} blocks were written", writing.blocks.len());
            return Err(invalid(message));
        }
        if let Some(checksum) = header("x-amz-checksum") {
            if header("x-amz-checksum-algorithm") != Some("SHA256")
                || header("x-amz-checksum-aggregation-method") != Some("LINEAR")
            {
                return Err(invalid("A checksum needs the algorithm SHA256 and the aggregation LINEAR"));
            }
            let mut all = Sha256::new();
            writing.blocks.values().for_each(|(_, digest)| all.update(digest));
            if STANDARD.encode(all.finalize()) != checksum {
                return Err(invalid("The checksum does not match the checksums of the blocks"));
            }
        }
        let Some(snapshot) = region.snapshots.get_mut(id) else {
            return Err(ApiError::new(500, "InternalServerException", "the snapshot is gone"));
        };
        if let Some(writing) = snapshot.writing.take() {
            let changes = writing.blocks.iter().map(|(index, block)| (*index, block.0)).collect();
            snapshot.map = Some(Arc::new(BlockMap::over(&writing.base, changes)));
            snapshot.complete_ms = now + settings.timing.snapshot_ms;
        }
        Ok(json(202, &json!({"Status": snapshot.state(now)})))
    })
}
