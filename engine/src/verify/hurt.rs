//! Which byte ranges of a volume cannot be restored.

use std::ops::Range;

/// Ranges listed of one volume; more are counted.
const LISTED_MAX: usize = 10_000;

/// Byte ranges of a volume that cannot be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hurt {
    /// Id of the recovery point.
    pub point: String,
    /// Its name.
    pub name: String,
    /// Name of the volume.
    pub volume: String,
    /// Merged ranges, the first of them if there are a great many.
    pub ranges: Vec<Range<u64>>,
    /// How many ranges there are.
    pub range_count: u64,
    /// Bytes in all of them.
    pub bytes: u64,
}

/// Adds up ranges that come in ascending order.
#[derive(Default)]
pub struct Tally {
    ranges: Vec<Range<u64>>,
    last: Option<Range<u64>>,
    count: u64,
    bytes: u64,
}

impl Tally {
    /// Adds a range, which begins at or behind the end of the one before.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match &mut self.last {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => {
                self.close();
                self.last = Some(range);
            }
        }
    }

    fn close(&mut self) {
        let Some(range) = self.last.take() else { return };
        self.count += 1;
        self.bytes += range.end - range.start;
        if self.ranges.len() < LISTED_MAX {
            self.ranges.push(range);
        }
    }

    /// What is hurt of a volume; `None` if nothing is. `listed_max` bounds the ranges.
    pub fn end(mut self, point: &str, name: &str, volume: &str, listed_max: usize) -> Option<Hurt> {
        self.close();
        self.ranges.truncate(listed_max);
        (self.count > 0).then(|| Hurt {
            point: point.to_owned(),
            name: name.to_owned(),
            volume: volume.to_owned(),
            ranges: self.ranges,
            range_count: self.count,
            bytes: self.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_and_all_are_counted() {
        let mut tally = Tally::default();
        for range in [0..10, 10..20, 20..20, 30..40] {
            tally.add(range);
        }
        let hurt = tally.end("p", "n", "v", 1).unwrap();
        assert_eq!((hurt.ranges, hurt.range_count, hurt.bytes), (std::iter::once(0..20).collect(), 2, 30));
        assert_eq!(Tally::default().end("p", "n", "v", 9), None);
    }
}
