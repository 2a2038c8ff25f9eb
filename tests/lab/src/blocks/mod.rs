//! The one store of blocks behind volumes, snapshots and images.
//!
//! A volume is a sparse file. A snapshot is a sorted list of 512 KiB blocks that were ever written in its lineage; equal blocks are kept once, without their zero pages, and
//! counted, so that the space of deleted snapshots comes back.

mod map;
mod store;
mod volume_file;

pub use map::BlockMap;
pub use store::{BlockStore, PackedBlock, ZERO_BLOCK};
pub use volume_file::VolumeFile;

/// Unit of the EBS direct APIs.
pub const BLOCK_BYTES: usize = 512 * 1024;
/// What is kept or left out of a block.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a block.
pub const BLOCK_PAGES: usize = BLOCK_BYTES / PAGE_BYTES;
/// Blocks of a GiB.
pub const BLOCKS_PER_GIB: u64 = (1 << 30) / BLOCK_BYTES as u64;
