//! What a target holds, against what a leaf says it should.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::chunker::{Chunker, is_zero};
use crate::error::{Error, Result};
use crate::format::node::Leaf;
use crate::limits::{BLOCK_BYTES, IO_ALIGN};
use crate::manifest::merge_ranges;

/// The parts of a segment that are not as `leaf` says, in order and apart.
pub fn differences(leaf: &Leaf, held: &[u8], chunker: &mut Chunker) -> Vec<Range<u32>> {
    let mut different = Vec::new();
    for (offset, piece) in leaf.with_offsets() {
        let range = offset..offset + piece.len;
        let held = &held[range.start as usize..range.end as usize];
        match piece.chunk {
            Some(id) if chunker.chunk_id(held) != id => different.push(range),
            Some(_) => {}
            None if is_zero(held) => {}
            // Within a run of zeros, only the blocks that are not.
            None => different.extend(nonzero_blocks(held, offset)),
        }
    }
    merge_ranges(different)
}

fn nonzero_blocks(held: &[u8], offset: u32) -> Vec<Range<u32>> {
    merge_ranges(held.chunks(BLOCK_BYTES).enumerate().filter(|(_, bytes)| !is_zero(bytes)).map(
        |(n, bytes)| {
            let start = offset + (n * BLOCK_BYTES) as u32;
            start..start + bytes.len() as u32
        },
    ))
}

/// Reads `len` bytes, and up to the next 4 KiB border, of what a target holds at `position`, which is aligned; past
/// its end there are zeros.
pub fn read_held(file: &File, name: &str, position: u64, len: usize, buf: &mut [u8]) -> Result<()> {
    let end = len.next_multiple_of(IO_ALIGN);
    let mut at = 0;
    while at < end {
        match file.read_at(&mut buf[at..end], position + at as u64) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                let object = format!("{name} at byte {}", position + at as u64);
                return Err(Error::io("read", object)(e));
            }
        }
    }
    buf[at..end].fill(0);
    Ok(())
}
