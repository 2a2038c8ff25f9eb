//! A part of a volume in memory, to measure single steps on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use penstock_engine::limits::SEGMENT_BYTES;
use penstock_engine::source::{self, OpenOptions};

use crate::Outcome;

/// Bytes of a sample at most.
const SAMPLE_BYTES: usize = 256 << 20;

/// Offsets of the segments that hold data.
pub fn data_segments(path: &Path) -> Outcome<Vec<u64>> {
    let source = source::open(path, OpenOptions { force_live: true, raw_container: true })?;
    let mut segments = Vec::new();
    let mut from = 0;
    while let Some(data) = source.next_data(from)? {
        let first = data.start / SEGMENT_BYTES as u64 * SEGMENT_BYTES as u64;
        segments.extend((first..data.end).step_by(SEGMENT_BYTES));
        from = data.end;
    }
    segments.dedup();
    Ok(segments)
}

/// Segments spread evenly over the volume's data, dealt out to `threads` threads.
pub fn read(path: &Path, threads: usize) -> Outcome<Vec<Vec<Vec<u8>>>> {
    let offsets = data_segments(path)?;
    let count = (SAMPLE_BYTES / SEGMENT_BYTES).min(offsets.len());
    let file = File::open(path)?;
    let mut dealt = vec![Vec::new(); threads];
    for n in 0..count {
        let mut segment = vec![0; SEGMENT_BYTES];
        let len = file.read_at(&mut segment, offsets[n * offsets.len() / count])?;
        segment.truncate(len);
        dealt[n % threads].push(segment);
    }
    Ok(dealt)
}
