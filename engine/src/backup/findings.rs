//! What workers find that makes a recovery point less than a whole and faithful copy: it is recorded in the point.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::point::Volume;
use crate::id::SegmentNo;

/// Members of a volume in a recovery point: ranges that could not be read and are stored as zeros; ranges that a list
/// of changes did not name and that had changed all the same; the image format that the volume was read out of.
pub const UNREADABLE: &str = "unreadable";
/// See [`UNREADABLE`].
pub const UNLISTED: &str = "unlisted_changes";
/// See [`UNREADABLE`].
pub const CONTAINER: &str = "container";

/// Ranges of a volume that are recorded at most. A device with more is failing as a whole.
const RANGES_MAX: usize = 10_000;

/// A range as recorded: the shape of a line of `--changed-extents`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The findings of a run.
#[derive(Default)]
pub struct Findings(Mutex<BTreeMap<u16, OfVolume>>);

#[derive(Default)]
struct OfVolume {
    unreadable: Vec<Range<u64>>,
    unlisted: Vec<Range<u64>>,
    /// Bytes that no list named and that were read and compared.
    compared_bytes: u64,
}

impl Findings {
    /// Ranges of a volume that could not be read. Fails if there are too many.
    pub fn unreadable(&self, volume: u16, ranges: &[Range<u64>], source: &str) -> Result<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = &mut all.entry(volume).or_default().unreadable;
        found.extend_from_slice(ranges);
        if found.len() > RANGES_MAX {
            merge(found);
        }
        if found.len() > RANGES_MAX {
            let text = format!("more than {RANGES_MAX} places cannot be read: it is failing as a whole");
            return Err(Error::io("read", source)(std::io::Error::other(text)));
        }
        Ok(())
    }

    /// A segment of a volume that a list did not name was read; `differs` from the parent or not.
    pub fn compared(&self, volume: u16, range: Range<u64>, differs: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.entry(volume).or_default();
        found.compared_bytes += range.end - range.start;
        // Enough to tell; that there are more changes nothing.
        if differs && found.unlisted.len() < RANGES_MAX {
            found.unlisted.push(range);
        }
    }

    /// True if something of the segment was found amiss: a run that goes on after this one has to find it again.
    pub fn is_hurt(&self, volume: u16, segment: SegmentNo) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (segment.offset_bytes(), SegmentNo(segment.0 + 1).offset_bytes());
        all.get(&volume).is_some_and(|found| {
            found.unreadable.iter().chain(&found.unlisted).any(|range| range.start < end && range.end > start)
        })
    }

    /// Writes the findings into the volumes of a point, and what they mean into `notes`. True if there is anything that
    /// makes the point less than was asked for.
    ///
    /// Fails if nothing of a volume could be read.
    pub fn record(&self, volumes: &mut [Volume], notes: &mut Vec<String>) -> Result<bool> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut in_part = false;
        for (number, volume) in volumes.iter_mut().enumerate() {
            let Some(found) = u16::try_from(number).ok().and_then(|n| all.get_mut(&n)) else { continue };
            merge(&mut found.unreadable);
            merge(&mut found.unlisted);
            if !found.unreadable.is_empty() {
                let bytes = bytes_of(&found.unreadable);
                if bytes >= volume.size_bytes {
                    let text = "nothing of it can be read";
                    return Err(Error::io("read", &volume.source)(std::io::Error::other(text)));
                }
                in_part = true;
                volume.other.insert(UNREADABLE.into(), recorded(&found.unreadable)?);
                notes.push(format!(
                    "{}: {bytes} bytes in {} places could not be read and are stored as ZEROS, the first at byte {}. \
                     `penstock show` lists them; the next backup reads them again",
                    volume.name,
                    found.unreadable.len(),
                    found.unreadable[0].start
                ));
            }
            if !found.unlisted.is_empty() {
                in_part = true;
                volume.other.insert(UNLISTED.into(), recorded(&found.unlisted)?);
                notes.push(format!(
                    "{}: THE LIST OF CHANGES IS NOT COMPLETE: {} of {} bytes that it did not name and that were \
                     compared are in segments that had changed, the first at byte {}. What was compared is right in \
                     this recovery point, the rest may be stale, here and in points before it: make a backup without \
                     --changed-extents, and look at what makes the list",
                    volume.name,
                    bytes_of(&found.unlisted),
                    found.compared_bytes,
                    found.unlisted[0].start
                ));
            }
        }
        Ok(in_part)
    }
}

/// The ranges that a point's volume has recorded as unreadable.
pub fn unreadable_of(volume: &Volume) -> Vec<Range<u64>> {
    ranges_of(volume, UNREADABLE)
}

/// The ranges that a point's volume has recorded under a name; none if there is nothing of that shape.
pub fn ranges_of(volume: &Volume, member: &str) -> Vec<Range<u64>> {
    let value = volume.other.get(member).cloned().unwrap_or_default();
    let ranges: Vec<Recorded> = serde_json::from_value(value).unwrap_or_default();
    ranges.iter().map(|r| r.offset..r.offset.saturating_add(r.length)).collect()
}

fn recorded(ranges: &[Range<u64>]) -> Result<Value> {
    let ranges = ranges.iter().map(|r| Recorded { offset: r.start, length: r.end - r.start });
    serde_json::to_value(ranges.collect::<Vec<_>>())
        .map_err(|e| Error::Invalid { what: format!("internal error: ranges as JSON: {e}") })
}

fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Sorts, and joins what touches.
fn merge(ranges: &mut Vec<Range<u64>>) {
    *ranges = crate::source::Extents::from_ranges(std::mem::take(ranges)).iter().collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hurt_segments_are_known_and_too_many_places_are_refused() {
        let findings = Findings::default();
        findings.unreadable(1, &[(4 << 20)..(4 << 20) + 512, 100..200], "disk").unwrap();
        assert!(findings.is_hurt(1, SegmentNo(0)) && findings.is_hurt(1, SegmentNo(1)));
        assert!(!findings.is_hurt(1, SegmentNo(2)) && !findings.is_hurt(0, SegmentNo(0)));
        let touching: Vec<_> = (0..20_000u64).map(|n| n * 512..(n + 1) * 512).collect();
        findings.unreadable(2, &touching, "disk").unwrap();
        let apart: Vec<_> = (0..20_000u64).map(|n| n * 8192..n * 8192 + 512).collect();
        assert!(findings.unreadable(3, &apart, "disk").unwrap_err().to_string().contains("failing"));
    }
}
