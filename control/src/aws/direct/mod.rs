//! Snapshots read and written by the EBS direct APIs, as sources and sinks of the engine: blocks of 512 KiB that exist are listed, fetched many at a time,
//! and checked; new ones are put many at a time, each with its checksum.

mod listing;
mod reader;
pub mod writer;

use std::ops::Range;
use std::sync::Arc;

use penstock_engine::source::{Extents, OpenFile, RangeSource, Source, SourceKind};

use super::clients::Clients;
use super::error::{AwsError, Kind};
use listing::Listing;
use reader::{Reader, SharedReader};

/// Bytes of a block of a snapshot.
pub const BLOCK_BYTES: u64 = 512 << 10;

/// What is read.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The snapshot, complete.
    pub snapshot: String,
    /// Bytes of its volume.
    pub size_bytes: u64,
}

/// Which blocks of a snapshot exist, or differ from an earlier one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// In bytes.
    pub extents: Extents,
    /// The listing is of what differs from this snapshot.
    pub since: Option<String>,
}

/// Lists what differs from `anchor`. `None` if the two are not of one lineage, or the anchor is gone: then there is no such list.
pub async fn changed(
    aws: &Clients,
    subject: &Subject,
    anchor: &str,
) -> Result<Result<Map, AwsError>, AwsError> {
    match ranges(aws, subject, Some(anchor)).await {
        Ok(extents) => Ok(Ok(Map { extents, since: Some(anchor.to_owned()) })),
        Err(error)
            if error.is("ValidationException")
                || (error.kind == Kind::NotFound && error.message.contains(anchor)) =>
        {
            Ok(Err(error))
        }
        Err(error) => Err(error),
    }
}

/// Lists all blocks that were ever written.
pub async fn written(aws: &Clients, subject: &Subject) -> Result<Map, AwsError> {
    Ok(Map { extents: ranges(aws, subject, None).await?, since: None })
}

async fn ranges(aws: &Clients, subject: &Subject, since: Option<&str>) -> Result<Extents, AwsError> {
    let listing = Listing { snapshot: subject.snapshot.clone(), since: since.map(str::to_owned) };
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut from = 0;
    loop {
        let page = listing.page(aws, from).await?;
        for index in page.indexes() {
            let start = u64::from(index) * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(subject.size_bytes);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        match page.next() {
            Some(next) => from = next,
            None => return Ok(Extents::from_ranges(ranges)),
        }
    }
}

/// Reads the first block of a listing: an error if that is not allowed.
pub async fn try_block(aws: &Arc<Clients>, subject: &Subject, map: &Map) -> Result<(), AwsError> {
    let Some(first) = map.extents.next(0) else { return Ok(()) };
    let reader = Reader::new(aws.clone(), subject.clone(), map.since.clone());
    let index = u32::try_from(first.start / BLOCK_BYTES).unwrap_or(u32::MAX);
    reader.block(index).await.map(drop)
}

/// A snapshot as a source.
pub struct SnapshotSource {
    reader: Arc<Reader>,
    subject: Subject,
    written: Option<Extents>,
}

impl SnapshotSource {
    /// `map` is a listing that was made; without the list of all written blocks, they are listed as they are asked for.
    pub fn new(aws: Arc<Clients>, subject: Subject, map: Option<Map>) -> Self {
        let since = map.as_ref().and_then(|m| m.since.clone());
        let written = map.filter(|m| m.since.is_none()).map(|m| m.extents);
        let reader = Arc::new(Reader::new(aws, subject.clone(), since));
        Self { reader, subject, written }
    }
}

impl Source for SnapshotSource {
    fn name(&self) -> &str {
        &self.subject.snapshot
    }

    fn size_bytes(&self) -> Option<u64> {
        Some(self.subject.size_bytes)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Snapshot
    }

    fn logical_block_bytes(&self) -> u32 {
        512
    }

    fn next_data(&self, from: u64) -> penstock_engine::Result<Option<Range<u64>>> {
        match &self.written {
            Some(written) => Ok(written.next(from)),
            None => self.reader.next_data(from),
        }
    }

    /// Snapshots never change.
    fn identity(&self) -> Option<String> {
        Some(identity(&self.subject.snapshot))
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        None
    }

    fn ranges(&self) -> Option<Arc<dyn RangeSource>> {
        Some(Arc::new(SharedReader(self.reader.clone())))
    }
}

/// A device made of a snapshot: its blocks that were never written are known, and neither read nor loaded from behind it.
pub struct MappedDevice {
    device: Box<dyn Source>,
    snapshot: String,
    written: Option<Extents>,
}

impl MappedDevice {
    /// `device` holds what `snapshot` does.
    pub fn new(device: Box<dyn Source>, snapshot: &str, written: Option<Extents>) -> Self {
        Self { device, snapshot: snapshot.to_owned(), written }
    }
}

impl Source for MappedDevice {
    fn name(&self) -> &str {
        &self.snapshot
    }

    fn size_bytes(&self) -> Option<u64> {
        self.device.size_bytes()
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Snapshot
    }

    fn logical_block_bytes(&self) -> u32 {
        self.device.logical_block_bytes()
    }

    fn next_data(&self, from: u64) -> penstock_engine::Result<Option<Range<u64>>> {
        match &self.written {
            Some(written) => Ok(written.next(from)),
            None => self.device.next_data(from),
        }
    }

    fn identity(&self) -> Option<String> {
        Some(identity(&self.snapshot))
    }

    fn file(&self) -> Option<Arc<OpenFile>> {
        self.device.file()
    }
}

fn identity(snapshot: &str) -> String {
    format!("ebs-snapshot:{snapshot}")
}
