//! Writes a snapshot: StartSnapshot, PutSnapshotBlock for each block that is to differ, CompleteSnapshot with the checksum of all of them.
//!
//! The checksums of the blocks that were put are kept in a file, 32 bytes at the place of each block's index, in a sparse file: they make up the checksum of
//! the whole in the end, and after a kill they say which blocks need not be put again. A block that was put and not noted is put again; that changes nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use aws_sdk_ebs::primitives::ByteStream;
use aws_sdk_ebs::types::{ChecksumAggregationMethod, ChecksumAlgorithm, Tag};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use penstock_engine::Error;
use penstock_engine::target::BlockSink;
use rustix::fs::{SeekFrom, seek};

use super::super::clients::Clients;
use super::super::error::{AwsError, Kind};
use super::super::retry::Patience;
use super::super::tags::Tags;
use super::BLOCK_BYTES;

/// Blocks in flight: what a quota of 1000 a second takes with answers in some 60 ms.
const BLOCKS: usize = 64;
/// Bytes of a SHA-256.
const SUM_BYTES: usize = 32;
/// Checksums read from the file at a time.
const SUMS_READ: usize = 4096;
/// Minutes without a block after which AWS gives a snapshot up: time to continue a restore that was killed.
const TIMEOUT_MINUTES: i32 = 720;
/// Blocks that arrive damaged are sent again so often.
const TRIES: u32 = 4;

/// A snapshot to be written.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// What it holds where no block is put; nothing but zeros if `None`.
    pub parent: Option<&'a str>,
    /// GiB of the volume.
    pub size_gib: u64,
    /// Without a parent: encrypted with this key; an empty one is the account's default.
    pub key: Option<&'a str>,
    /// For people.
    pub description: &'a str,
    /// AWS makes one snapshot for it.
    pub token: String,
    /// Its tags.
    pub tags: &'a Tags,
}

/// Begins a snapshot; returns its id.
pub async fn start(aws: &Clients, wanted: &Wanted<'_>) -> Result<String, AwsError> {
    let object = wanted.parent.unwrap_or("a new snapshot");
    let tags: Vec<Tag> = wanted.tags.iter().map(|(k, v)| Tag::builder().key(k).value(v).build()).collect();
    let answer = aws
        .retry
        .call("StartSnapshot", object, Patience::FRESH, || {
            let call = aws
                .ebs
                .start_snapshot()
                .volume_size(i64::try_from(wanted.size_gib).unwrap_or(i64::MAX))
                .set_parent_snapshot_id(wanted.parent.map(str::to_owned))
                .description(wanted.description)
                .client_token(&wanted.token)
                .timeout(TIMEOUT_MINUTES)
                .set_tags(Some(tags.clone()));
            match wanted.key.filter(|_| wanted.parent.is_none()) {
                Some(key) => {
                    call.encrypted(true).set_kms_key_arn(Some(key.to_owned()).filter(|k| !k.is_empty()))
                }
                None => call,
            }
            .send()
        })
        .await?;
    Ok(answer.snapshot_id().unwrap_or_default().to_owned())
}

/// Checksums of blocks that were put.
struct Sums {
    file: File,
    path: PathBuf,
    /// A bit for each block that has one.
    there: Vec<u64>,
}

impl Sums {
    fn open(path: &Path, blocks: u64) -> penstock_engine::Result<Self> {
        let fail = |action| Error::io(action, path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail("open"))?;
        file.set_len(blocks * SUM_BYTES as u64).map_err(fail("set the size of"))?;
        let words = usize::try_from(blocks.div_ceil(64)).unwrap_or(usize::MAX);
        let mut sums = Self { file, path: path.to_owned(), there: vec![0; words] };
        let mut there = std::mem::take(&mut sums.there);
        sums.each(&mut |index, _| there[(index / 64) as usize] |= 1 << (index % 64))?;
        sums.there = there;
        Ok(sums)
    }

    fn has(&self, block: u64) -> bool {
        self.there.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    fn note(&mut self, block: u64, sum: &[u8]) -> penstock_engine::Result<()> {
        self.file
            .write_all_at(sum, block * SUM_BYTES as u64)
            .map_err(Error::io("write", self.path.display()))?;
        if let Some(word) = self.there.get_mut((block / 64) as usize) {
            *word |= 1 << (block % 64);
        }
        Ok(())
    }

    /// All checksums in the order of their blocks. None is all zeros: those are holes.
    fn each(&self, visit: &mut dyn FnMut(u64, &[u8])) -> penstock_engine::Result<()> {
        let fail = || Error::io("read", self.path.display());
        let mut at = 0;
        let mut buf = vec![0; SUMS_READ * SUM_BYTES];
        loop {
            at = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data / SUM_BYTES as u64 * SUM_BYTES as u64,
                Err(rustix::io::Errno::NXIO) => return Ok(()),
                Err(e) => return Err(fail()(e.into())),
            };
            let count = self.file.read_at(&mut buf, at).map_err(fail())? / SUM_BYTES * SUM_BYTES;
            if count == 0 {
                return Ok(());
            }
            for (n, sum) in buf[..count].chunks(SUM_BYTES).enumerate() {
                if sum.iter().any(|byte| *byte != 0) {
                    visit(at / SUM_BYTES as u64 + n as u64, sum);
                }
            }
            at += count as u64;
        }
    }
}

/// A snapshot that is being written.
pub struct SnapshotWriter {
    aws: Arc<Clients>,
    /// Its id.
    snapshot: String,
    sums: Mutex<Sums>,
}

impl SnapshotWriter {
    /// Goes on with a snapshot that was begun. `sums` is the file of checksums: there if an earlier run put blocks.
    pub fn new(
        aws: Arc<Clients>,
        snapshot: &str,
        size_bytes: u64,
        sums: &Path,
    ) -> penstock_engine::Result<Self> {
        let sums = Mutex::new(Sums::open(sums, size_bytes.div_ceil(BLOCK_BYTES))?);
        Ok(Self { aws, snapshot: snapshot.to_owned(), sums })
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it: all blocks are there. Returns their number.
    pub async fn complete(&self) -> Result<u64, penstock_engine::Error> {
        let mut all = digest::Context::new(&digest::SHA256);
        let mut count: u64 = 0;
        self.sums().each(&mut |_, sum| {
            all.update(sum);
            count += 1;
        })?;
        let sum = BASE64_STANDARD.encode(all.finish());
        self.aws
            .retry
            .call("CompleteSnapshot", &self.snapshot, Patience::FRESH, || {
                let call = self
                    .aws
                    .ebs
                    .complete_snapshot()
                    .snapshot_id(&self.snapshot)
                    .changed_blocks_count(i32::try_from(count).unwrap_or(i32::MAX));
                match count {
                    // There is nothing to have a checksum.
                    0 => call,
                    _ => call
                        .checksum(&sum)
                        .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                        .checksum_aggregation_method(ChecksumAggregationMethod::ChecksumAggregationLinear),
                }
                .send()
            })
            .await?;
        Ok(count)
    }

    async fn put_block(&self, block: u64, bytes: Bytes) -> Result<digest::Digest, AwsError> {
        const CALL: &str = "PutSnapshotBlock";
        let object = format!("{} block {block}", self.snapshot);
        let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        let sum = digest::digest(&digest::SHA256, &bytes);
        let text = BASE64_STANDARD.encode(sum);
        let mut tries = 0;
        loop {
            tries += 1;
            let outcome = self
                .aws
                .retry
                .call(CALL, &object, Patience::FRESH, || async {
                    self.aws.put_rate.turn().await;
                    let answer = self
                        .aws
                        .ebs
                        .put_snapshot_block()
                        .snapshot_id(&self.snapshot)
                        .block_index(i32::try_from(block).unwrap_or(i32::MAX))
                        .block_data(ByteStream::from(bytes.clone()))
                        .data_length(length)
                        .checksum(&text)
                        .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                        .send()
                        .await;
                    if answer.as_ref().is_err_and(|e| {
                        e.raw_response().is_some_and(|r| matches!(r.status().as_u16(), 429 | 503))
                    }) {
                        self.aws.put_rate.refused();
                    }
                    answer
                })
                .await;
            match outcome {
                Ok(answer) if answer.checksum().is_none_or(|theirs| theirs == text) => return Ok(sum),
                Ok(answer) if tries >= TRIES => {
                    let mut error = AwsError::new(
                        CALL,
                        &object,
                        Kind::Transient,
                        "AWS says that it stored other bytes than were sent",
                    );
                    error.request_id =
                        aws_sdk_ebs::operation::RequestId::request_id(&answer).map(str::to_owned);
                    return Err(error);
                }
                Ok(_) => tracing::warn!("{object}: AWS stored other bytes than were sent; it is sent again"),
                // What a network did to it: the checksum is refused.
                Err(error)
                    if tries < TRIES
                        && error.is("ValidationException")
                        && error.message.to_ascii_lowercase().contains("checksum") =>
                {
                    tracing::warn!("{error}; it is sent again");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl BlockSink for SnapshotWriter {
    fn name(&self) -> &str {
        &self.snapshot
    }

    fn block_bytes(&self) -> u32 {
        BLOCK_BYTES as u32
    }

    fn parallel(&self) -> usize {
        BLOCKS
    }

    fn has(&self, block: u64) -> bool {
        self.sums().has(block)
    }

    fn put(&self, block: u64, bytes: Bytes) -> penstock_engine::Result<()> {
        let sum = self.aws.block_on(self.put_block(block, bytes))?;
        self.sums().note(block, sum.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_found_again_in_the_order_of_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sums");
        let blocks = 100_000;
        let mut sums = Sums::open(&path, blocks).unwrap();
        for block in [99_999, 3, 70_000, 0] {
            assert!(!sums.has(block));
            sums.note(block, &[block as u8 | 1; SUM_BYTES]).unwrap();
            assert!(sums.has(block));
        }
        drop(sums);
        let sums = Sums::open(&path, blocks).unwrap();
        let mut found = Vec::new();
        sums.each(&mut |block, sum| found.push((block, sum[0]))).unwrap();
        assert_eq!(found, [(0, 1), (3, 3), (70_000, 70_000_u32 as u8 | 1), (99_999, 99_999_u32 as u8 | 1)]);
        assert!(sums.has(70_000) && !sums.has(70_001) && !sums.has(blocks + 5));
    }
}
