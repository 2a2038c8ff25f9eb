//! The open segments in the order of lookups. A *run* is what one flush or one merge wrote: a segment, or the parts of a merge, each with a range of the ids.

use std::collections::HashSet;
use std::sync::Arc;

use super::segment::Segment;
use crate::format::index_segment::{PackRef, fence_key};
use crate::id::ObjectId;

/// Bytes of a name that the parts of a merge have in common.
pub const RUN_NAME_BYTES: usize = 14;

/// The common part of a segment's name.
pub fn run_name(id: ObjectId) -> [u8; RUN_NAME_BYTES] {
    let mut name = [0; RUN_NAME_BYTES];
    name.copy_from_slice(&id.as_bytes()[..RUN_NAME_BYTES]);
    name
}

/// Number of a part within its run; of a segment that is none, anything.
pub fn part_number(id: ObjectId) -> u16 {
    let bytes = id.as_bytes();
    u16::from_be_bytes([bytes[14], bytes[15]])
}

/// The name of a part.
pub fn part_id(run: [u8; RUN_NAME_BYTES], number: u16) -> ObjectId {
    let mut bytes = [0; 16];
    bytes[..RUN_NAME_BYTES].copy_from_slice(&run);
    bytes[RUN_NAME_BYTES..].copy_from_slice(&number.to_be_bytes());
    ObjectId::new(bytes)
}

/// What one flush or merge wrote.
#[derive(Clone)]
pub struct Run {
    name: [u8; RUN_NAME_BYTES],
    /// By number, which is the order of ids.
    parts: Vec<Arc<Segment>>,
    /// Where the ids of each part begin.
    starts: Vec<u64>,
}

impl Run {
    /// A run of these parts, which are of one name and ascend.
    fn new(parts: Vec<Arc<Segment>>) -> Option<Self> {
        let name = run_name(parts.first()?.id());
        let starts: Vec<u64> = parts.iter().map(|part| part.first_key()).collect();
        Some(Self { name, parts, starts })
    }

    /// The common part of its segments' names.
    pub fn name(&self) -> [u8; RUN_NAME_BYTES] {
        self.name
    }

    /// Its segments.
    pub fn parts(&self) -> &[Arc<Segment>] {
        &self.parts
    }

    /// Rows in all parts.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|part| part.entries()).sum()
    }

    /// The parts in whose range `id` lies: one, unless ids share their first 8 bytes across a border.
    pub fn parts_for(&self, id: &[u8; 32]) -> &[Arc<Segment>] {
        let key = fence_key(id);
        // Parts that do not ascend can only come from names that agree by chance; then all are asked.
        if self.parts.len() == 1 || !self.starts.is_sorted() {
            return &self.parts;
        }
        let end = self.starts.partition_point(|start| *start <= key);
        let start = self.starts[..end].partition_point(|start| *start < key).saturating_sub(1);
        &self.parts[start.min(end)..end]
    }
}

/// All runs, and the names that were listed with them.
#[derive(Clone, Default)]
pub struct Runs {
    /// Oldest first.
    runs: Vec<Run>,
    /// Every segment that was there, live or superseded.
    listed: HashSet<ObjectId>,
}

impl Runs {
    /// From live segments in any order, and all names that were listed.
    pub fn new(mut segments: Vec<Arc<Segment>>, listed: HashSet<ObjectId>) -> Self {
        segments.sort_by_key(|segment| segment.id());
        let mut runs = Vec::new();
        for parts in segments.chunk_by(|one, other| run_name(one.id()) == run_name(other.id())) {
            runs.extend(Run::new(parts.to_vec()));
        }
        Self { runs, listed }
    }

    /// The same with one more segment, the newest.
    pub fn with(&self, segment: Segment) -> Self {
        let mut more = self.clone();
        if !more.listed.insert(segment.id()) {
            return more; // a thread that read the list again has opened it already
        }
        more.runs.extend(Run::new(vec![Arc::new(segment)]));
        more
    }

    /// Oldest first.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Names that were there, live or not.
    pub fn listed(&self) -> &HashSet<ObjectId> {
        &self.listed
    }

    /// All live segments, oldest first.
    pub fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.runs.iter().flat_map(|run| run.parts.iter())
    }

    /// The segments to ask for an id, newest first: those whose filter says maybe.
    pub fn candidates<'a>(&'a self, id: &'a [u8; 32]) -> impl Iterator<Item = &'a Arc<Segment>> {
        self.runs.iter().rev().flat_map(move |run| run.parts_for(id)).filter(move |part| part.may_contain(id))
    }

    /// All packs that segments know, each once.
    pub fn packs(&self) -> Vec<PackRef> {
        let mut packs: Vec<PackRef> = Vec::new();
        let mut last: Option<&Arc<[PackRef]>> = None;
        for segment in self.segments() {
            if !last.is_some_and(|last| Arc::ptr_eq(last, segment.packs())) {
                packs.extend_from_slice(segment.packs());
            }
            last = Some(segment.packs());
        }
        packs.sort_by_key(|pack| pack.id);
        packs.dedup_by_key(|pack| pack.id);
        packs
    }
}
