//! Listing and reading.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::token::Sealer;
use super::{Call, json};
use crate::api::{ApiError, ApiResult};
use crate::blocks::{BLOCK_BYTES, BlockMap};
use crate::clock::epoch_seconds;
use crate::http::Answer;
use crate::state::{Region, Snapshot};

/// A snapshot's blocks; refused while it is not complete.
fn complete(call: &Call<'_>, snapshot: &Snapshot) -> ApiResult<Arc<BlockMap>> {
    let state = snapshot.state(call.core.clock.now_ms());
    match &snapshot.map {
        Some(map) if state == "completed" => Ok(map.clone()),
        _ => {
            let message = format!("The snapshot '{}' is not completed: {state}", snapshot.id);
            Err(ApiError::validation("INVALID_SNAPSHOT_ID", message))
        }
    }
}

/// One page of a listing.
struct Page {
    /// First index of the page.
    from: u32,
    size: usize,
    number: usize,
    sealer: Sealer,
    expires_ms: i64,
    now: i64,
}

impl Page {
    fn of(call: &Call<'_>, subject: &str) -> ApiResult<Self> {
        let size = match call.request.query("maxResults") {
            None => 10_000,
            Some(text) => text.parse().ok().filter(|n| (100..=10_000).contains(n)).ok_or_else(|| {
                let message = format!("maxResults must be between 100 and 10000: {text}");
                ApiError::validation("INVALID_PARAMETER_VALUE", message)
            })?,
        };
        let now = call.core.clock.now_ms();
        let sealer = Sealer::new(call.core.options.seed);
        let (mut from, mut number) = (0, 0);
        if let Some(text) = call.request.query("startingBlockIndex") {
            let wrong =
                |_| ApiError::validation("INVALID_PARAMETER_VALUE", format!("Invalid block index: {text}"));
            from = text.parse().map_err(wrong)?;
        }
        if let Some(token) = call.request.query("pageToken") {
            let invalid =
                || ApiError::validation("INVALID_PAGE_TOKEN", "The page token is invalid or expired");
            let what = sealer.open(&token, now).ok_or_else(invalid)?;
            let mut parts = what.rsplitn(3, '/');
            let next = parts.next().and_then(|n| n.parse().ok()).ok_or_else(invalid)?;
            number = parts.next().and_then(|n| n.parse().ok()).ok_or_else(invalid)?;
            if parts.next() != Some(&format!("page/{subject}")) {
                return Err(invalid());
            }
            from = next;
        }
        let expires_ms = now + call.core.settings().timing.block_token_ms;
        Ok(Self { from, size, number, sealer, expires_ms, now })
    }

    /// The page's items out of all, and the token of the next page.
    fn cut<'t, T>(
        &self,
        call: &Call<'_>,
        subject: &str,
        all: &'t [T],
        index: fn(&T) -> u32,
    ) -> (&'t [T], Option<String>) {
        let settings = call.core.settings();
        let start = all.partition_point(|item| index(item) < self.from);
        let every = settings.limits.empty_page_every;
        let empty = every > 0 && (self.number + 1).is_multiple_of(every) && start < all.len();
        let end = if empty { start } else { all.len().min(start + self.size) };
        let next = all.get(end).map(|item| {
            let what = format!("page/{subject}/{}/{}", self.number + 1, index(item));
            self.sealer.make(&what, self.now + settings.timing.page_token_ms, self.now)
        });
        (&all[start..end], next)
    }

    fn block_token(&self, snapshot: &str, index: u32) -> String {
        self.sealer.make(&format!("block/{snapshot}/{index}"), self.expires_ms, self.now)
    }

    fn answer(&self, name: &str, items: Vec<Value>, next: Option<String>, size_gib: u64) -> Answer {
        let mut body = json!({
            "ExpiryTime": epoch_seconds(self.expires_ms), "VolumeSize": size_gib, "BlockSize": BLOCK_BYTES,
        });
        body[name] = Value::from(items);
        if let Some(next) = next {
            body["NextToken"] = json!(next);
        }
        json(200, &body)
    }
}

pub(super) fn list(call: &Call<'_>, id: &str) -> ApiResult<Answer> {
    let (map, size_gib) = call.core.try_with(call.region, |region: &mut Region| {
        let snapshot = call.snapshot(region, "ListSnapshotBlocks", id)?;
        Ok((complete(call, snapshot)?, snapshot.size_gib))
    })?;
    call.meter("list", call.core.settings().quotas.list, None)?;
    let page = Page::of(call, id)?;
    let (entries, next) = page.cut(call, id, map.entries(), |e| e.0);
    let block =
        |(index, _): &(u32, u32)| json!({"BlockIndex": index, "BlockToken": page.block_token(id, *index)});
    let blocks = entries.iter().map(block).collect();
    Ok(page.answer("Blocks", blocks, next, size_gib))
}

pub(super) fn changed(call: &Call<'_>, id: &str) -> ApiResult<Answer> {
    let Some(first_id) = call.request.query("firstSnapshotId") else {
        let message = "firstSnapshotId must be specified";
        return Err(ApiError::validation("INVALID_SNAPSHOT_ID", message));
    };
    let (first, second, size_gib) = call.core.try_with(call.region, |region: &mut Region| {
        let second = call.snapshot(region, "ListChangedBlocks", id)?;
        let first = call.snapshot(region, "ListChangedBlocks", &first_id)?;
        if first.lineage != second.lineage {
            let message = format!("The snapshots {first_id} and {id} are unrelated");
            return Err(ApiError::validation("UNRELATED_SNAPSHOTS", message));
        }
        Ok((complete(call, first)?, complete(call, second)?, second.size_gib))
    })?;
    call.meter("list-changed", call.core.settings().quotas.list, None)?;
    let subject = format!("{first_id}+{id}");
    let page = Page::of(call, &subject)?;
    let all = second.differences(&first);
    let (entries, next) = page.cut(call, &subject, &all, |e| e.0);
    let block = |(index, in_first, in_second): &(u32, bool, bool)| {
        let mut block = json!({"BlockIndex": index});
        if *in_first {
            block["FirstBlockToken"] = json!(page.block_token(&first_id, *index));
        }
        if *in_second {
            block["SecondBlockToken"] = json!(page.block_token(id, *index));
        }
        block
    };
    let blocks = entries.iter().map(block).collect();
    Ok(page.answer("ChangedBlocks", blocks, next, size_gib))
}

pub(super) fn get(call: &Call<'_>, id: &str, index: u32) -> ApiResult<Answer> {
    let map = call.core.try_with(call.region, |region: &mut Region| {
        complete(call, call.snapshot(region, "GetSnapshotBlock", id)?)
    })?;
    let quotas = call.core.settings().quotas;
    call.meter("get", quotas.get, Some((id, quotas.get_per_snapshot)))?;
    let token = call.request.query("blockToken").unwrap_or_default();
    let what = Sealer::new(call.core.options.seed).open(&token, call.core.clock.now_ms());
    if what != Some(format!("block/{id}/{index}")) {
        let message = "The block token is invalid, expired, or of another block";
        return Err(ApiError::validation("INVALID_BLOCK_TOKEN", message));
    }
    let mut block = vec![0; BLOCK_BYTES];
    let whole: &mut [u8; BLOCK_BYTES] =
        block.as_mut_slice().try_into().map_err(|_| ApiError::new(500, "InternalServerException", "size"))?;
    map.read(index, whole)?;
    let checksum = STANDARD.encode(Sha256::digest(&block));
    if call.corrupt {
        block[BLOCK_BYTES / 3] ^= 4;
    }
    Ok(Answer::new(200, "application/octet-stream", block)
        .with("x-amz-Data-Length", BLOCK_BYTES.to_string())
        .with("x-amz-Checksum", checksum)
        .with("x-amz-Checksum-Algorithm", "SHA256"))
}
