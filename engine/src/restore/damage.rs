//! What of a volume cannot be read, and why: with `skip_damaged` a restore goes on past it.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::id::{ObjectId, SegmentNo};
use crate::limits::SEGMENT_BYTES;
use crate::manifest::merge_ranges;

/// Ranges kept before they are put in order and joined.
const RANGES_LOOSE: usize = 64 << 10;
/// Ranges kept at all (16 MiB). Beyond that, what lies between two that are near each other is told as damaged too.
const RANGES_MAX: usize = 1 << 20;
/// Reasons kept.
const REASONS_MAX: usize = 100;

/// Damage that was met.
pub struct DamageLog {
    skip: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ranges: Vec<Range<u64>>,
    /// Of `ranges`, so many are in order and apart.
    joined: usize,
    reasons: Vec<String>,
    known_reasons: HashSet<String>,
    more_reasons: u64,
    lost_packs: HashSet<ObjectId>,
}

/// What a restore left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Damage {
    /// Byte ranges of the volume that are not as they were backed up, in order and apart.
    pub ranges: Vec<Range<u64>>,
    /// What could not be read, and why: the first hundred.
    pub reasons: Vec<String>,
    /// How many more reasons there are.
    pub more_reasons: u64,
}

impl Damage {
    /// Bytes in all ranges.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

impl DamageLog {
    /// A log that lets a restore go on, or not.
    pub fn new(skip: bool) -> Self {
        Self { skip, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each critical section ends in a state that is whole, or nearly: a panic ends the run anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the restore goes on without what this failure to read the repository is about.
    pub fn skips(&self, error: &Error) -> bool {
        self.skip && (error.is_damage() || is_unreadable(error))
    }

    /// Notes why something cannot be read.
    pub fn note_reason(&self, error: &Error) {
        let (reason, mut state) = (error.to_string(), self.state());
        if state.known_reasons.contains(&reason) {
            return;
        }
        if state.reasons.len() < REASONS_MAX {
            tracing::warn!("left out: {reason}");
            state.known_reasons.insert(reason.clone());
            state.reasons.push(reason);
        } else {
            state.more_reasons += 1;
        }
    }

    /// Notes a range that is not right.
    pub fn note_range(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut state = self.state();
        state.ranges.push(range);
        if state.ranges.len() >= state.joined + RANGES_LOOSE {
            state.join();
        }
    }

    /// Notes ranges of a segment that are not right.
    pub fn note_in(&self, segment: SegmentNo, ranges: &[Range<u32>]) {
        let start = segment.offset_bytes();
        ranges.iter().for_each(|r| self.note_range(start + u64::from(r.start)..start + u64::from(r.end)));
    }

    /// Notes that a pack is not there.
    pub fn note_lost_pack(&self, pack: ObjectId) {
        self.state().lost_packs.insert(pack);
    }

    /// True if that was noted of a pack.
    pub fn is_lost_pack(&self, pack: ObjectId) -> bool {
        self.state().lost_packs.contains(&pack)
    }

    /// All that was noted.
    pub fn take(&self) -> Damage {
        let mut state = self.state();
        state.join();
        let State { ranges, reasons, more_reasons, .. } = std::mem::take(&mut *state);
        Damage { ranges, reasons, more_reasons }
    }
}

impl State {
    fn join(&mut self) {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.sort_unstable_by_key(|range| range.start);
        self.ranges = merge_ranges(ranges);
        if self.ranges.len() > RANGES_MAX {
            self.ranges = coarser(std::mem::take(&mut self.ranges));
        }
        self.joined = self.ranges.len();
    }
}

/// Joins ranges with less than a segment between them: at most one is left for each segment.
fn coarser(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start < last.end + SEGMENT_BYTES as u64 => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// The disk below the repository does not give its bytes back. Other failures (no connection, no permission) pass, or
/// are the user's to mend.
fn is_unreadable(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EIO | libc::EBADMSG | libc::EUCLEAN))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_out_in_order_and_reasons_once() {
        let log = DamageLog::new(true);
        for range in [8..12, 0..4, 4..6, 10..20, 30..30] {
            log.note_range(range);
        }
        let reason = Error::damaged("data/x", "flipped");
        (0..3).for_each(|_| log.note_reason(&reason));
        let damage = log.take();
        assert_eq!(damage.ranges, vec![0..6, 8..20]);
        assert_eq!((damage.bytes(), damage.reasons.len(), damage.more_reasons), (18, 1, 0));
    }

    #[test]
    fn there_is_a_bound_to_what_is_kept() {
        let log = DamageLog::new(true);
        let blocks = 2 * RANGES_MAX as u64;
        (0..blocks).rev().for_each(|no| log.note_range(no * 8192..no * 8192 + 4096));
        (0..2 * REASONS_MAX).for_each(|no| log.note_reason(&Error::damaged("data/x", no)));
        let damage = log.take();
        assert!(damage.ranges.len() <= RANGES_MAX, "{}", damage.ranges.len());
        assert_eq!(damage.ranges.last().map(|r| r.end), Some((blocks - 1) * 8192 + 4096));
        assert!(damage.bytes() >= blocks * 4096);
        assert_eq!((damage.reasons.len(), damage.more_reasons), (REASONS_MAX, REASONS_MAX as u64));
    }

    #[test]
    fn only_what_cannot_be_read_is_passed_over() {
        let io = |code| Error::io("read", "data/x")(std::io::Error::from_raw_os_error(code));
        let log = DamageLog::new(true);
        assert!(log.skips(&Error::damaged("x", "y")) && log.skips(&io(libc::EIO)));
        assert!(!log.skips(&io(libc::EACCES)) && !log.skips(&Error::Cancelled));
        assert!(!log.skips(&Error::Archived { object: "x".into() }));
        assert!(!DamageLog::new(false).skips(&Error::damaged("x", "y")));
    }
}
