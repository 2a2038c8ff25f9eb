//! A target without a descriptor: what takes whole blocks, one call each (a snapshot behind an API, an image in a
//! format of its own).

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};

/// Where a volume is put in whole, aligned blocks, in any order. Blocks that are never put read as zeros, or as what
/// the base of the restore holds there. Its methods are called on several threads at a time.
pub trait BlockSink: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// Bytes of a block: a power of two, at least 4 KiB, at most a segment's.
    fn block_bytes(&self) -> u32;

    /// Calls of [`BlockSink::put`] that may be under way at a time.
    fn parallel(&self) -> usize;

    /// True if an earlier, interrupted run put this block, so that it need not be put again.
    fn has(&self, block: u64) -> bool;

    /// Puts a block: exactly [`BlockSink::block_bytes`] bytes; what is behind the volume's end in the last one is
    /// zero. Waits until it is safe there. The bytes are part of a larger buffer, which the restore waits for: they
    /// are not to be kept after the call.
    fn put(&self, block: u64, bytes: Bytes) -> Result<()>;
}

/// The bytes of a sink's blocks, if they are something to work with.
pub fn checked_block_bytes(sink: &dyn BlockSink) -> Result<u32> {
    let bytes = sink.block_bytes();
    if bytes.is_power_of_two() && (BLOCK_BYTES..=SEGMENT_BYTES).contains(&(bytes as usize)) {
        return Ok(bytes);
    }
    let what = format!(
        "internal error: {} takes blocks of {bytes} bytes; a power of two from 4 KiB to 4 MiB is possible",
        sink.name()
    );
    Err(Error::Invalid { what })
}
