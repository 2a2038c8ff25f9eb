//! Every bound of the engine in one place. Sizes that are part of the on-disk format say so; changing one of
//! those needs a new format version (`docs/FORMAT.md`), the others are tuning.

use crate::simulation::sized;

/// Bytes in a block: the unit of the zero scan, of block hashes and of cut points. **Format.**
pub const BLOCK_BYTES: usize = 4096;

/// Bytes in a segment: the unit of scheduling, of reuse from the parent and of resume. **Format.**
pub const SEGMENT_BYTES: usize = 4 << 20;

/// Blocks in a whole segment.
pub const SEGMENT_BLOCKS: usize = SEGMENT_BYTES / BLOCK_BYTES;

/// Children of an inner manifest node. **Format.**
pub const NODE_FANOUT: usize = 256;

/// Largest volume: 4 PiB, far above EBS's 64 TiB. Decoders refuse larger sizes, so arithmetic on offsets cannot overflow.
pub const VOLUME_BYTES_MAX: u64 = 1 << 52;

/// Smallest and largest chunk that `init --chunk-size` can ask for as the average. **Format** (checked on open).
pub const CHUNK_TARGET_BYTES_MIN: u32 = 16 << 10;
/// See [`CHUNK_TARGET_BYTES_MIN`].
pub const CHUNK_TARGET_BYTES_MAX: u32 = 1 << 20;
/// Average chunk when nothing is asked for. 64 KiB: measured best between index size and dedup (docs/PERFORMANCE.md).
pub const CHUNK_TARGET_BYTES_DEFAULT: u32 = 64 << 10;

/// Alignment of every buffer that O_DIRECT sees: the largest logical block size in use, and a page.
pub const IO_ALIGN: usize = 4096;

/// Bytes a pack aims at before it is sealed, and the range `init --pack-size` accepts.
pub const PACK_BYTES_DEFAULT: u32 = 32 << 20;
/// See [`PACK_BYTES_DEFAULT`].
pub const PACK_BYTES_MIN: u32 = sized(8 << 20, 64 << 10) as u32;
/// See [`PACK_BYTES_DEFAULT`]. Also the bound decoders hold a pack's table of contents against.
pub const PACK_BYTES_MAX: u32 = 256 << 20;

/// How far a recovery point may be dated after this machine's clock before it counts as one of the future: clocks of
/// machines that share a repository differ by seconds, minutes at most.
pub const CLOCK_TOLERANCE_MS: u64 = 10 * 60 * 1000;

/// Descriptors that are for everything but connections and cached files: sources, targets, rings, pipes, logs.
const DESCRIPTORS_KEPT: f64 = 24.0;

/// How many descriptors a part of the program may hold that can do with fewer: a share of what the process may open.
/// At least 2.
pub fn descriptors_for(share: f64) -> usize {
    let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    descriptors_of(max, share)
}

fn descriptors_of(max: u64, share: f64) -> usize {
    (((max as f64 - DESCRIPTORS_KEPT) * share) as usize).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_shared() {
        assert_eq!(
            (descriptors_of(64, 0.25), descriptors_of(1024, 0.25), descriptors_of(16, 0.25)),
            (10, 250, 2)
        );
    }
}
