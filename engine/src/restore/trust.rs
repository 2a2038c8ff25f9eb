//! Trust by looking: before the journal of a killed restore is believed, some of what it says is compared with what
//! the target holds. The target may have been written, or have lost writes, since.

use super::compare::{differences, read_held};
use super::journal::Earlier;
use crate::chunker::{Chunker, is_zero};
use crate::error::Result;
use crate::id::SegmentNo;
use crate::io::AlignedBuf;
use crate::limits::{IO_ALIGN, SEGMENT_BYTES};
use crate::manifest::TreeReader;
use crate::target::{Locked, TargetKind, padded};

/// Finished segments that are read, besides the newest.
const SEGMENTS_READ: u64 = 24;
/// Places at which a target that was all zero is looked at where the volume has zeros.
const ZEROS_READ: u64 = 16;

/// Reads some of a target, and says what is not as the journal has it; `None` if nothing was found.
pub fn contradiction(
    earlier: &Earlier,
    target: &Locked,
    tree: &mut TreeReader,
    chunker: &mut Chunker,
) -> Result<Option<String>> {
    let size_bytes = tree.shape().size_bytes;
    let held_bytes = target.held_bytes();
    let sized = [size_bytes, padded(size_bytes)].contains(&held_bytes);
    if target.kind() == TargetKind::File && earlier.done.len() > 0 && !sized {
        return Ok(Some(format!("it has {held_bytes} bytes, which is no length it had then")));
    }
    let mut look = Look { target, tree, chunker, buf: AlignedBuf::new(SEGMENT_BYTES) };
    for segment in sample(earlier) {
        if let Some(at) = look.first_difference(segment)? {
            return Ok(Some(format!("what it holds at byte {at} is not what was written there")));
        }
    }
    let segments = look.tree.shape().segments();
    if earlier.fresh && held_bytes > 0 {
        for no in 0..ZEROS_READ.min(segments) {
            if let Some(at) = look.first_data_in_zeros(SegmentNo(segments * no / ZEROS_READ.min(segments)))? {
                return Ok(Some(format!(
                    "there is data near byte {at}, where all was zero and nothing was written"
                )));
            }
        }
    }
    Ok(None)
}

/// The newest finished segments, and some of all others.
fn sample(earlier: &Earlier) -> Vec<SegmentNo> {
    let step = earlier.done.len().div_ceil(SEGMENTS_READ).max(1) as usize;
    let mut segments: Vec<SegmentNo> = earlier.newest.iter().copied().collect();
    segments.extend(earlier.done.iter().step_by(step));
    segments.sort_unstable();
    segments.dedup();
    segments
}

struct Look<'a> {
    target: &'a Locked,
    tree: &'a mut TreeReader,
    chunker: &'a mut Chunker,
    buf: AlignedBuf,
}

impl Look<'_> {
    /// Reads a segment, and returns its length without what is less than 4 KiB at the volume's end: on a device that
    /// cannot be read by itself.
    fn read(&mut self, segment: SegmentNo) -> Result<usize> {
        let len = segment.len_in(self.tree.shape().size_bytes) / IO_ALIGN * IO_ALIGN;
        read_held(self.target.file(), self.target.name(), segment.offset_bytes(), len, &mut self.buf)?;
        Ok(len)
    }

    fn first_difference(&mut self, segment: SegmentNo) -> Result<Option<u64>> {
        let leaf = self.tree.leaf(segment)?;
        let len = self.read(segment)?;
        self.buf[len..].fill(0);
        let different = differences(&leaf, &self.buf[..leaf.segment_bytes() as usize], self.chunker);
        // A piece that reaches into that last part is not known.
        let known = different.into_iter().find(|range| range.end as usize <= len);
        Ok(known.map(|range| segment.offset_bytes() + u64::from(range.start)))
    }

    fn first_data_in_zeros(&mut self, segment: SegmentNo) -> Result<Option<u64>> {
        let leaf = self.tree.leaf(segment)?;
        let len = self.read(segment)?;
        let zeros = leaf.with_offsets().filter(|(_, piece)| piece.chunk.is_none());
        let wrong = zeros.map(|(offset, piece)| offset as usize..((offset + piece.len) as usize).min(len));
        let mut wrong = wrong.filter(|range| !range.is_empty() && !is_zero(&self.buf[range.clone()]));
        Ok(wrong.next().map(|range| segment.offset_bytes() + range.start as u64))
    }
}
