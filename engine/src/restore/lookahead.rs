//! The look-ahead: knows the chunks of many segments ahead, and asks for what they need of a pack in few long ranges,
//! each once, in the order in which it is needed first. Segments go to the decoders in the order of the volume, with
//! the ranges that hold their chunks, fetched or not.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use crossbeam::channel::{Receiver, Sender};

use super::decode::{Fetched, Placed};
use super::deferred::{DEFERRED_BYTES_MAX, DeferredChunk, DeferredQueue};
use super::frames::{Frame, Located};
use super::segment::{SegmentPlan, SegmentWork};
use super::shared::Shared;
use super::stored::{Budget, Request, StoredRange};
use crate::error::Result;
use crate::id::ObjectId;
use crate::limits::IO_ALIGN;
use crate::pack::Location;

/// Longest request, before it is widened to 4 KiB borders: a pack of 32 MiB comes in four.
const REQUEST_BYTES_MAX: u64 = (17 << 19) - 2 * IO_ALIGN as u64;
/// Segments known ahead.
const SEGMENTS_MAX: usize = 256;
/// Chunks known ahead, about: some 4 MB of memory.
const FRAMES_MAX: usize = 16 << 10;
/// Stored bytes known ahead before the first request; twice as many before each further one.
const FIRST_BYTES: u64 = 16 << 20;

/// A chunk that segments ahead need.
struct Want {
    stored_bytes: u32,
    /// How often.
    uses: u32,
    /// What it comes with, once that was asked for.
    range: Option<Arc<StoredRange>>,
}

impl Want {
    fn end(&self, offset: u32) -> u64 {
        u64::from(offset) + u64::from(self.stored_bytes)
    }
}

/// What segments ahead need of a pack.
#[derive(Default)]
struct OfPack {
    /// By offset in the pack.
    wants: BTreeMap<u32, Want>,
    /// Stored bytes of those not asked for.
    unasked_bytes: u64,
    /// Ranges asked for, as long as somebody needs them.
    ranges: Vec<Weak<StoredRange>>,
}

/// The thread that looks ahead.
pub struct LookAhead {
    shared: Arc<Shared>,
    budget: Arc<Budget>,
    /// Where chunks go that may be written later than their segment, if any may.
    deferred: Option<DeferredQueue>,
    requests: Sender<Request>,
    output: Sender<Fetched>,
    ahead: VecDeque<Located>,
    packs: HashMap<ObjectId, OfPack>,
    ahead_bytes: u64,
    ahead_frames: usize,
    /// Stored bytes to know ahead now.
    ahead_bytes_wanted: u64,
}

impl LookAhead {
    /// Prepares it.
    pub fn new(
        shared: Arc<Shared>,
        budget: Arc<Budget>,
        deferred: Option<DeferredQueue>,
        requests: Sender<Request>,
        output: Sender<Fetched>,
    ) -> Self {
        Self {
            shared,
            budget,
            deferred,
            requests,
            output,
            ahead: VecDeque::new(),
            packs: HashMap::new(),
            ahead_bytes: 0,
            ahead_frames: 0,
            ahead_bytes_wanted: FIRST_BYTES,
        }
    }

    /// Works until the channel is closed and empty and all segments were sent on.
    pub fn run(mut self, input: &Receiver<Receiver<Located>>) -> Result<()> {
        let bytes_max = self.budget.limit_bytes() as u64 / 3 * 2;
        loop {
            while self.ahead_bytes < self.ahead_bytes_wanted
                && self.ahead_frames < FRAMES_MAX
                && self.ahead.len() < SEGMENTS_MAX
            {
                let Ok(answer) = input.recv() else { break };
                if let Ok(located) = answer.recv() {
                    self.add(located);
                } // else the run has failed
            }
            self.ahead_bytes_wanted = (self.ahead_bytes_wanted * 2).min(bytes_max);
            let Some(Located { work, frames }) = self.ahead.pop_front() else { break };
            if self.shared.run.stopped() {
                self.forget();
                continue;
            }
            self.issue(work, frames);
        }
        if let Some(deferred) = self.deferred {
            deferred.finish();
        }
        Ok(())
    }

    /// Gives back everything, so that nobody waits for bytes held here.
    fn forget(&mut self) {
        self.ahead.clear();
        self.packs.clear();
        (self.ahead_bytes, self.ahead_frames) = (0, 0);
    }

    fn add(&mut self, located: Located) {
        for Frame { at, .. } in &located.frames {
            let of_pack = self.packs.entry(at.pack.id).or_default();
            if let Some(want) = of_pack.wants.get_mut(&at.offset) {
                want.uses += 1;
                continue;
            }
            let range = of_pack.ranges.iter().filter_map(Weak::upgrade).find(|range| range.covers(at));
            if range.is_none() {
                of_pack.unasked_bytes += u64::from(at.stored_bytes);
            }
            self.ahead_bytes += u64::from(at.stored_bytes);
            self.ahead_frames += 1;
            of_pack.wants.insert(at.offset, Want { stored_bytes: at.stored_bytes, uses: 1, range });
        }
        self.ahead.push_back(located);
    }

    /// Asks for what the segment needs and nobody has asked for, and sends it to the decoders.
    fn issue(&mut self, mut work: SegmentWork, frames: Vec<Frame>) {
        let mut placed = Vec::with_capacity(frames.len());
        let mut put_off = Vec::new();
        for of_pack in frames.chunk_by(|a, b| a.at.pack.id == b.at.pack.id) {
            let last = of_pack.last().map_or(0, |frame| frame.at.end());
            let little = self.deferred.is_some()
                && self
                    .packs
                    .get(&of_pack[0].at.pack.id)
                    .is_some_and(|p| p.unasked_bytes < DEFERRED_BYTES_MAX);
            for frame in of_pack {
                if little && self.unasked(&frame.at) && defer(&mut work, frame, &mut put_off) {
                    self.used(&frame.at);
                    continue;
                }
                if let Some(range) = self.range_of(&frame.at, last) {
                    placed.push(Placed { frame: frame.clone(), range });
                }
                self.used(&frame.at);
            }
        }
        if let Some(deferred) = &mut self.deferred {
            deferred.put_off(put_off);
        }
        let out = self.budget.segment_out();
        let _ = self.output.send(Fetched::Segment { work, frames: placed, out });
    }

    fn unasked(&self, at: &Location) -> bool {
        let want = self.packs.get(&at.pack.id).and_then(|of_pack| of_pack.wants.get(&at.offset));
        want.is_some_and(|want| want.range.is_none())
    }

    /// One use of a chunk has been dealt with.
    fn used(&mut self, at: &Location) {
        let Some(of_pack) = self.packs.get_mut(&at.pack.id) else { return };
        let Some(want) = of_pack.wants.get_mut(&at.offset) else { return };
        want.uses -= 1;
        if want.uses > 0 {
            return;
        }
        self.ahead_bytes -= u64::from(want.stored_bytes);
        self.ahead_frames -= 1;
        if want.range.is_none() {
            of_pack.unasked_bytes -= u64::from(want.stored_bytes);
        }
        of_pack.wants.remove(&at.offset);
        if of_pack.wants.is_empty() {
            self.packs.remove(&at.pack.id);
        }
    }

    /// The range that a wanted chunk comes with, asked for if need be. `own_end` is where the last chunk ends that
    /// the same segment needs of that pack.
    fn range_of(&mut self, at: &Location, own_end: u64) -> Option<Arc<StoredRange>> {
        let of_pack = self.packs.get_mut(&at.pack.id)?;
        if let Some(range) = &of_pack.wants.get(&at.offset)?.range {
            return Some(range.clone());
        }
        let gap_bytes = self.shared.store.habits().gap_bytes;
        let mut span = of_pack.grow(at, u64::MAX, gap_bytes);
        if !self.budget.wait_for_room((span.end - span.start) as usize + 2 * IO_ALIGN) {
            // All bytes are held for segments behind this one: it gets what it needs, and no more.
            span = of_pack.grow(at, own_end, gap_bytes);
        }
        let request = Request::new(&self.budget, *at, span.start, span.end, IO_ALIGN as u64);
        let range = request.range().clone();
        of_pack.asked(&range, span);
        let _ = self.requests.send(request); // on a closed channel the dropped request wakes its waiters
        Some(range)
    }
}

impl OfPack {
    /// Widens the chunk at `at` by chunks that were not asked for, first those behind it that end by `end_max`, then,
    /// if there is no such bound, those before it.
    fn grow(&self, at: &Location, end_max: u64, gap_bytes: u64) -> std::ops::Range<u64> {
        let (mut start, mut end) = (u64::from(at.offset), at.end());
        let mut useful = end - start;
        for (offset, want) in self.wants.range(at.offset + 1..) {
            let wanted_end = want.end(*offset);
            useful += u64::from(want.stored_bytes);
            let reached = want.range.is_none()
                && wanted_end <= end_max
                && u64::from(*offset) <= end + gap_bytes
                && worth(wanted_end.max(end) - start, useful, gap_bytes);
            if !reached {
                useful -= u64::from(want.stored_bytes);
                break;
            }
            end = end.max(wanted_end);
        }
        if end_max < u64::MAX {
            return start..end;
        }
        for (offset, want) in self.wants.range(..at.offset).rev() {
            useful += u64::from(want.stored_bytes);
            let reached = want.range.is_none()
                && want.end(*offset) + gap_bytes >= start
                && worth(end - u64::from(*offset), useful, gap_bytes);
            if !reached {
                break;
            }
            start = u64::from(*offset);
        }
        start..end
    }

    /// Notes that `span` was asked for.
    fn asked(&mut self, range: &Arc<StoredRange>, span: std::ops::Range<u64>) {
        for (offset, want) in self.wants.range_mut(span.start as u32..span.end as u32) {
            if want.range.is_none() && want.end(*offset) <= span.end {
                self.unasked_bytes -= u64::from(want.stored_bytes);
                want.range = Some(range.clone());
            }
        }
        self.ranges.retain(|range| range.strong_count() > 0);
        self.ranges.push(Arc::downgrade(range));
    }
}

/// True if a request may be so long: but for one gap, half of it is useful. It occupies the budget as long as the
/// last of its chunks is not needed.
fn worth(bytes: u64, useful_bytes: u64, gap_bytes: u64) -> bool {
    bytes <= REQUEST_BYTES_MAX && bytes <= 2 * useful_bytes + gap_bytes
}

/// Takes a chunk out of what is written with its segment; false if it has to stay.
fn defer(work: &mut SegmentWork, frame: &Frame, put_off: &mut Vec<DeferredChunk>) -> bool {
    let SegmentPlan::Write(set) = &mut work.plan else { return false };
    let Some(parts) = set.defer(frame.offset, frame.at.raw_bytes) else { return false };
    let position = work.segment.offset_bytes() + u64::from(frame.offset);
    put_off.extend(parts.into_iter().map(|part| DeferredChunk {
        at: frame.at,
        id: frame.id,
        position,
        part,
    }));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::ObjectKind;
    use crate::format::index_segment::PackRef;
    use proptest::prelude::*;

    const GAP_BYTES: u64 = 64 << 10;

    fn at(offset: u32, stored_bytes: u32) -> Location {
        let pack =
            PackRef { id: ObjectId::new([1; 16]), salt: [1; 24], bytes: 1 << 30, kind: ObjectKind::Data };
        Location { pack, offset, stored_bytes, raw_bytes: stored_bytes }
    }

    fn of_pack(frames: &[(u32, u32)]) -> OfPack {
        let mut of_pack = OfPack::default();
        for &(offset, stored_bytes) in frames {
            of_pack.wants.insert(offset, Want { stored_bytes, uses: 1, range: None });
            of_pack.unasked_bytes += u64::from(stored_bytes);
        }
        of_pack
    }

    proptest! {
        #[test]
        fn every_chunk_is_asked_for_once(
            gaps in proptest::collection::vec((0u32..200_000, 1u32..300_000), 1..300), first in 0usize..300
        ) {
            let mut frames = Vec::new();
            let mut end = 0;
            for (gap, stored_bytes) in gaps {
                frames.push((end + gap, stored_bytes));
                end += gap + stored_bytes;
            }
            let mut of_pack = of_pack(&frames);
            let budget = Budget::new(1 << 20);
            let (mut requests, mut previous) = (Vec::new(), Vec::new());
            for no in (0..frames.len()).map(|no| (no + first) % frames.len()) {
                let at = at(frames[no].0, frames[no].1);
                if of_pack.wants[&at.offset].range.is_some() {
                    continue;
                }
                let span = of_pack.grow(&at, u64::MAX, GAP_BYTES);
                prop_assert!(span.end - span.start <= REQUEST_BYTES_MAX);
                prop_assert!(previous.iter().all(|p: &std::ops::Range<u64>| p.end <= span.start || span.end <= p.start));
                let request = Request::new(&budget, at, span.start, span.end, IO_ALIGN as u64);
                let range = request.range().clone();
                of_pack.asked(&range, span.clone());
                previous.push(span);
                requests.push(request);
            }
            prop_assert_eq!(of_pack.unasked_bytes, 0);
            for (offset, want) in &of_pack.wants {
                prop_assert!(want.range.as_ref().unwrap().covers(&at(*offset, want.stored_bytes)));
            }
        }
    }

    #[test]
    fn short_of_room_a_segment_gets_its_own() {
        let of_pack = of_pack(&[(0, 100), (100, 100), (200, 100), (300, 100)]);
        assert_eq!(of_pack.grow(&at(100, 100), u64::MAX, GAP_BYTES), 0..400);
        assert_eq!(of_pack.grow(&at(100, 100), 300, GAP_BYTES), 100..300);
    }
}
