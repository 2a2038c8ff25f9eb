//! Fetches blocks: as many at a time as memory allows, as fast as the account's rate allows, each checked against its SHA-256.

use std::ops::Range;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use aws_lc_rs::digest;
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use penstock_engine::source::{Fetched, RangeSource};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use super::super::clients::Clients;
use super::super::error::{AwsError, Kind};
use super::super::retry::Patience;
use super::listing::{Listing, Window};
use super::{BLOCK_BYTES, Subject};

/// Blocks in flight or waiting for a buffer. docs/PERFORMANCE.md has what part of the quota they use by the time that answers take. Each takes 1.5 MiB with what the HTTP client holds for it.
const BLOCKS: usize = 32;
/// Blocks that come damaged, or whose token has expired, are asked for again so often.
const TRIES: u32 = 4;

/// Buffers of one block each, used again and again: so many large pieces taken and given back by many threads would leave the allocator's memory in holes.
#[derive(Default)]
struct Buffers(StdMutex<Vec<Vec<u8>>>);

/// A buffer that goes back.
struct Block(Vec<u8>, Arc<Buffers>);

impl Buffers {
    fn take(self: &Arc<Self>) -> Block {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Block(free.unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES as usize)), self.clone())
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        self.1.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Reads one snapshot.
pub struct Reader {
    aws: Arc<Clients>,
    subject: Subject,
    /// What differs from an earlier snapshot: asked first, if there is one.
    changed: Option<Mutex<Window>>,
    all: Mutex<Window>,
    credit: Arc<Semaphore>,
    buffers: Arc<Buffers>,
}

impl Reader {
    /// `since`: an earlier snapshot of the same lineage, whose differences will be read.
    pub fn new(aws: Arc<Clients>, subject: Subject, since: Option<String>) -> Self {
        let window = |since| Mutex::new(Window::new(Listing { snapshot: subject.snapshot.clone(), since }));
        Self {
            changed: since.map(|since| window(Some(since))),
            all: window(None),
            credit: Arc::new(Semaphore::new(BLOCKS)),
            buffers: Arc::default(),
            aws,
            subject,
        }
    }

    /// The next run of blocks that were ever written.
    pub fn next_data(&self, from: u64) -> penstock_engine::Result<Option<Range<u64>>> {
        let Ok(index) = u32::try_from(from / BLOCK_BYTES) else { return Ok(None) };
        if from >= self.subject.size_bytes {
            return Ok(None);
        }
        let found = self.aws.block_on(async {
            let mut all = self.all.lock().await;
            let first = all.first_from(&self.aws, index).await?;
            Ok::<_, AwsError>(first.map(|first| first..all.run_from(first)))
        })?;
        Ok(found.and_then(|blocks| {
            let start = (u64::from(blocks.start) * BLOCK_BYTES).max(from);
            let end = (u64::from(blocks.end) * BLOCK_BYTES).min(self.subject.size_bytes);
            (start < end).then_some(start..end)
        }))
    }

    /// The token of a block; `None` if the block is zero.
    async fn token(&self, index: u32) -> Result<Option<Box<str>>, AwsError> {
        if let Some(changed) = &self.changed
            && let Some(token) = changed.lock().await.token(&self.aws, index).await?
        {
            return Ok(token);
        }
        Ok(self.all.lock().await.token(&self.aws, index).await?.flatten())
    }

    async fn forget(&self, index: u32) {
        if let Some(changed) = &self.changed {
            changed.lock().await.forget(index);
        }
        self.all.lock().await.forget(index);
    }

    /// The bytes of a block; `None` if it is zero.
    pub async fn block(&self, index: u32) -> Result<Option<Bytes>, AwsError> {
        let object = format!("{} block {index}", self.subject.snapshot);
        let mut tries = 0;
        loop {
            tries += 1;
            let Some(token) = self.token(index).await? else { return Ok(None) };
            match self.get(index, &token, &object).await {
                Ok(bytes) => return Ok(Some(bytes)),
                // An old token is refused as invalid, whatever the reason.
                Err(error) if tries < TRIES && error.is("ValidationException") => {
                    tracing::debug!(object, "its token is not accepted, another is asked for: {error}");
                    self.forget(index).await;
                }
                Err(error) if tries < TRIES && error.kind == Kind::Transient => {
                    tracing::warn!("{error}; it is asked for again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn get(&self, index: u32, token: &str, object: &str) -> Result<Bytes, AwsError> {
        const CALL: &str = "GetSnapshotBlock";
        let answer = self
            .aws
            .retry
            .call(CALL, object, Patience::FRESH, || async {
                self.aws.get_rate.turn().await;
                let answer = self
                    .aws
                    .ebs
                    .get_snapshot_block()
                    .snapshot_id(&self.subject.snapshot)
                    .block_index(i32::try_from(index).unwrap_or(i32::MAX))
                    .block_token(token)
                    .send()
                    .await;
                if answer.as_ref().is_err_and(|e| {
                    e.raw_response().is_some_and(|r| matches!(r.status().as_u16(), 429 | 503))
                }) {
                    self.aws.get_rate.refused();
                }
                answer
            })
            .await?;
        let request_id = aws_sdk_ebs::operation::RequestId::request_id(&answer).map(str::to_owned);
        let damaged = |what: String| AwsError {
            request_id: request_id.clone(),
            ..AwsError::new(CALL, object, Kind::Transient, what)
        };
        let expected = answer.checksum().map(str::to_owned);
        let mut body = answer.block_data;
        let mut bytes = self.buffers.take();
        let mut sum = digest::Context::new(&digest::SHA256);
        while let Some(part) = body.next().await {
            let part = part.map_err(|error| damaged(format!("the answer broke off: {error}")))?;
            if bytes.0.len() + part.len() > BLOCK_BYTES as usize {
                return Err(damaged(format!("more than {BLOCK_BYTES} bytes came")));
            }
            sum.update(&part);
            bytes.0.extend_from_slice(&part);
        }
        if bytes.0.len() as u64 != BLOCK_BYTES {
            return Err(damaged(format!("{} bytes came instead of {BLOCK_BYTES}", bytes.0.len())));
        }
        let found = BASE64_STANDARD.encode(sum.finish());
        match expected {
            Some(expected) if expected == found => Ok(Bytes::from_owner(bytes)),
            Some(_) => Err(damaged("its bytes do not have the SHA-256 that came with them".into())),
            None => Err(damaged("it came without a checksum".into())),
        }
    }

    /// Indexes of the blocks that the ranges touch.
    fn blocks(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> Vec<u32> {
        let end = self.subject.size_bytes.div_ceil(BLOCK_BYTES);
        let mut blocks: Vec<u32> = ranges
            .iter()
            .filter(|r| r.start < r.end)
            .flat_map(|r| {
                let first = (offset_bytes + u64::from(r.start)) / BLOCK_BYTES;
                first..(offset_bytes + u64::from(r.end)).div_ceil(BLOCK_BYTES).min(end)
            })
            .filter_map(|index| u32::try_from(index).ok())
            .collect();
        blocks.dedup();
        blocks
    }

    async fn fetch_blocks(
        reader: &Arc<Self>,
        offset_bytes: u64,
        ranges: &[Range<u32>],
    ) -> Result<Fetched, AwsError> {
        let blocks = reader.blocks(offset_bytes, ranges);
        let wanted = u32::try_from(blocks.len().min(BLOCKS)).unwrap_or(1);
        let held = reader.credit.clone().acquire_many_owned(wanted).await.map_err(|_| {
            AwsError::new("GetSnapshotBlock", &reader.subject.snapshot, Kind::Cancelled, "closed")
        })?;
        let mut tasks = JoinSet::new();
        for index in blocks {
            let reader = reader.clone();
            tasks.spawn(async move { reader.block(index).await.map(|bytes| (index, bytes)) });
        }
        let mut parts = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (index, bytes) = done.map_err(|e| {
                AwsError::new("GetSnapshotBlock", &reader.subject.snapshot, Kind::Refused, e.to_string())
            })??;
            if let Some(bytes) = bytes {
                let place = u64::from(index) * BLOCK_BYTES - offset_bytes;
                let len = (reader.subject.size_bytes - u64::from(index) * BLOCK_BYTES).min(BLOCK_BYTES);
                parts.push((u32::try_from(place).unwrap_or(u32::MAX), bytes.slice(..len as usize)));
            }
        }
        Ok(Fetched { parts, kept: Vec::new(), held: Box::new(held) })
    }
}

/// The engine's fetchers hold this.
impl RangeSource for SharedReader {
    fn name(&self) -> &str {
        &self.0.subject.snapshot
    }

    fn parallel(&self) -> usize {
        BLOCKS
    }

    fn fetch(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> penstock_engine::Result<Fetched> {
        Ok(self.0.aws.block_on(Reader::fetch_blocks(&self.0, offset_bytes, ranges))?)
    }
}

/// A reader that its own tasks share.
pub struct SharedReader(pub Arc<Reader>);
