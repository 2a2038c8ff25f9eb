//! Progress through one aligned range of a buffer. Both engines, reading and writing, use this to go on after a
//! short transfer.

use std::ops::Range;

use crate::limits::IO_ALIGN;

const ALIGN: u64 = IO_ALIGN as u64;

/// What is left of a transfer. After a short one it resumes at the last 4 KiB border that was reached, because
/// O_DIRECT refuses any other position: up to 4095 bytes are then transferred twice.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Position in the file of the buffer's first byte.
    base: u64,
    /// Position in the file of the next transfer, aligned.
    at: u64,
    /// End of what was transferred so far.
    reach: u64,
    /// The transfer is complete when `reach` gets here. Less than `end` where the file ends inside its last 4 KiB.
    until: u64,
    /// End of the next transfer, aligned.
    end: u64,
}

impl Cursor {
    /// A transfer of `range` (aligned, relative to `base`) that is complete at `until`, a position in the file.
    pub fn new(base: u64, range: &Range<u32>, until: u64) -> Self {
        let at = base + u64::from(range.start);
        let end = base + u64::from(range.end);
        debug_assert!(at.is_multiple_of(ALIGN) && end.is_multiple_of(ALIGN));
        Self { base, at, reach: at, until: until.min(end), end }
    }

    /// The next transfer, as its range in the buffer and its position in the file; `None` when complete.
    pub fn next(&self) -> Option<(Range<usize>, u64)> {
        (self.reach < self.until)
            .then(|| ((self.at - self.base) as usize..(self.end - self.base) as usize, self.at))
    }

    /// Takes note of a transfer of `moved_bytes`. False if that was no progress: the file ends at [`Cursor::reach`].
    pub fn advance(&mut self, moved_bytes: usize) -> bool {
        let reach = (self.at + moved_bytes as u64).min(self.end);
        if reach <= self.reach {
            return false;
        }
        self.reach = reach;
        self.at = reach / ALIGN * ALIGN;
        true
    }

    /// Position in the file up to which the transfer came.
    pub fn reach(&self) -> u64 {
        self.reach
    }
}

/// `ranges` widened to 4 KiB, sorted, merged where they touch. `None` if one is reversed or ends after `buf_bytes`.
pub(super) fn widen(ranges: &[Range<u32>], buf_bytes: usize) -> Option<Vec<Range<u32>>> {
    let mut wide: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        if range.start > range.end || range.end as usize > buf_bytes {
            return None;
        }
        if range.start < range.end {
            let align = IO_ALIGN as u32;
            wide.push(range.start / align * align..range.end.checked_next_multiple_of(align)?);
        }
    }
    wide.sort_unstable_by_key(|r| r.start);
    wide.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
    Some(wide)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn widened_ranges_merge() {
        assert_eq!(
            widen(&[5000..5001, 0..1, 9000..9000, 12288..12289], 16384),
            Some(vec![0..8192, 12288..16384])
        );
        assert_eq!(widen(&[0..1, 8192..8193], 16384), Some(vec![0..4096, 8192..12288]));
        assert_eq!(widen(&[0..1, 0..16385], 16384), None);
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 2..1;
        assert_eq!(widen(&[0..1, reversed], 16384), None);
    }

    #[test]
    fn an_end_that_moved_inwards_is_no_progress() {
        let mut cursor = Cursor::new(0, &(0..8192), 8192);
        assert!(cursor.advance(1000));
        assert_eq!(cursor.next(), Some((0..8192, 0)));
        assert!(!cursor.advance(1000));
        assert_eq!(cursor.reach(), 1000);
    }

    proptest! {
        /// Whatever the lengths of the transfers, all positions asked for are aligned and the end is reached.
        #[test]
        fn short_transfers_resume_aligned(moves in prop::collection::vec(1usize..20_000, 1..100), tail in 1u64..4097) {
            let until = 40_960 + 61_440 - 4096 + tail;
            let mut cursor = Cursor::new(40_960, &(0..61_440), until);
            for moved in moves.into_iter().cycle() {
                let Some((range, at)) = cursor.next() else { break };
                prop_assert!(at % 4096 == 0 && range.start % 4096 == 0 && range.end % 4096 == 0);
                prop_assert_eq!(range.start as u64 + 40_960, at);
                let left = (until - at) as usize;
                // A transfer that makes no progress stands for one that was cut at a border.
                if !cursor.advance(moved.min(left)) {
                    cursor.advance(left.min(moved + 4096));
                }
            }
            prop_assert_eq!(cursor.reach(), until);
        }

        #[test]
        fn widened_ranges_cover_and_are_disjoint(ends in prop::collection::vec((0u32..65_536, 0u32..9000), 0..20)) {
            let ranges: Vec<_> = ends.iter().map(|&(start, len)| start..(start + len).min(65_536)).collect();
            let wide = widen(&ranges, 65_536).unwrap();
            for range in ranges.iter().filter(|r| !r.is_empty()) {
                prop_assert!(wide.iter().any(|w| w.start <= range.start && range.end <= w.end));
            }
            prop_assert!(wide.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(wide.iter().all(|w| w.start % 4096 == 0 && w.end % 4096 == 0 && w.start < w.end));
        }
    }
}
