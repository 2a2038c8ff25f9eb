//! Cuts segments into chunks and names them: `&[u8] → Piece`, on one worker thread, without a queue or an allocation.
//!
//! ```text
//! segment ─► zero scan ─► 16 block hashes at a time ─► cut? ─► chunk id ─► f(Piece)        block
//! segment ─► zero scan ─► FastCDC cut ─► block hashes of the chunk ─► chunk id ─► f(Piece)  fastcdc
//! ```
//!
//! **Format.** What a piece is and how long is defined at the top of `block_cdc.rs` and `byte_cdc.rs`, what its id is at
//! the top of `block_hash.rs`. The same bytes under the same keys and parameters give the same pieces for ever; the
//! known-answer tests fail if not. Segments are cut independently of each other. Within one, a chunk's end depends on
//! nothing before its start, so cutting can resume at any cut (incremental backups cut only around what changed).

mod block_cdc;
mod block_hash;
mod byte_cdc;
#[cfg(test)]
mod tests;
mod zero;

use std::fmt;

use zeroize::Zeroize;

use self::block_cdc::BlockCutter;
use self::block_hash::BlockHasher;
use self::byte_cdc::ByteCutter;
pub use self::zero::is_zero;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::limits::{BLOCK_BYTES, CHUNK_TARGET_BYTES_MAX, CHUNK_TARGET_BYTES_MIN, SEGMENT_BYTES};

/// How cut points are found. Recorded in the repository's configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChunkerKind {
    /// Cuts behind 4 KiB blocks, where the block hashes say so. For disks.
    Block,
    /// Cuts behind any byte, with FastCDC. For data that shifts by less than a block.
    FastCdc,
}

impl ChunkerKind {
    /// All kinds.
    pub const ALL: [ChunkerKind; 2] = [ChunkerKind::Block, ChunkerKind::FastCdc];

    /// Name on the command line and in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            ChunkerKind::Block => "block",
            ChunkerKind::FastCdc => "fastcdc",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How a repository cuts chunks. Always valid: a chunker can be made from any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkParams {
    kind: ChunkerKind,
    target_bytes: u32,
}

// With a power of two in these bounds every size is a whole number of blocks, and no chunk is larger than a segment.
const _: () = assert!(CHUNK_TARGET_BYTES_MIN as usize >= 4 * BLOCK_BYTES);
const _: () = assert!(CHUNK_TARGET_BYTES_MAX as usize * 4 <= SEGMENT_BYTES);

impl ChunkParams {
    /// Chunks of `target_bytes` on average.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `target_bytes` is a power of two from [`CHUNK_TARGET_BYTES_MIN`] to
    /// [`CHUNK_TARGET_BYTES_MAX`].
    pub fn new(kind: ChunkerKind, target_bytes: u32) -> Result<Self> {
        let range = CHUNK_TARGET_BYTES_MIN..=CHUNK_TARGET_BYTES_MAX;
        if !target_bytes.is_power_of_two() || !range.contains(&target_bytes) {
            return Err(Error::Invalid {
                what: format!(
                    "chunk size {target_bytes} bytes: must be a power of two from {} to {} KiB",
                    CHUNK_TARGET_BYTES_MIN >> 10,
                    CHUNK_TARGET_BYTES_MAX >> 10
                ),
            });
        }
        Ok(Self { kind, target_bytes })
    }

    /// How cut points are found.
    pub const fn kind(self) -> ChunkerKind {
        self.kind
    }

    /// Average chunk size in bytes.
    pub const fn target_bytes(self) -> u32 {
        self.target_bytes
    }

    /// Smallest chunk in bytes. Only the end of the data or a zero run behind it makes a chunk smaller.
    pub const fn min_bytes(self) -> u32 {
        self.target_bytes / 4
    }

    /// Largest chunk in bytes.
    pub const fn max_bytes(self) -> u32 {
        self.target_bytes * 4
    }
}

/// The repository's secrets that chunking needs. Wiped on drop.
#[derive(Clone)]
pub struct ChunkKeys {
    /// Key of the block hashes, and so of the block chunker's cut points.
    pub block_key: [u8; 32],
    /// Key of the chunk ids. Must differ from `block_key`.
    pub chunk_key: [u8; 32],
    /// Seed of FastCDC's cut points.
    pub cut_seed: u64,
}

impl Drop for ChunkKeys {
    fn drop(&mut self) {
        self.block_key.zeroize();
        self.chunk_key.zeroize();
        self.cut_seed.zeroize();
    }
}

impl fmt::Debug for ChunkKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkKeys").finish_non_exhaustive()
    }
}

/// A run of bytes of a segment: a chunk, or zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Offset of the first byte, in bytes from the start of the segment.
    pub offset: u32,
    /// The bytes. Never empty.
    pub bytes: &'a [u8],
    /// What they are.
    pub kind: PieceKind,
}

/// What a [`Piece`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// All bytes are zero: a run of zero blocks, as long as it goes in the slice. Nothing to store.
    Zero,
    /// A chunk.
    Data {
        /// Its id.
        id: ChunkId,
        /// True if the chunk would end here in a longer slice too: by content, by size, before zeros, or at the end of
        /// a whole segment. False if only the slice ended; so also at the end of a volume's short last segment.
        natural_end: bool,
    },
}

/// Cuts and names chunks. One per worker thread: owns its scratch space and allocates nothing per chunk.
pub struct Chunker {
    hasher: BlockHasher,
    cutter: Cutter,
}

enum Cutter {
    Block(BlockCutter),
    Byte(ByteCutter),
}

impl Chunker {
    /// A chunker for a repository with these parameters and keys.
    pub fn new(params: ChunkParams, keys: &ChunkKeys) -> Chunker {
        let blocks_max = params.max_bytes() as usize / BLOCK_BYTES;
        let cutter = match params.kind {
            ChunkerKind::Block => Cutter::Block(BlockCutter::new(params)),
            ChunkerKind::FastCdc => Cutter::Byte(ByteCutter::new(params, keys.cut_seed)),
        };
        Chunker { hasher: BlockHasher::new(&keys.block_key, &keys.chunk_key, blocks_max), cutter }
    }

    /// Cuts `data`, which lies `start` bytes into its segment, and calls `f` with each piece in order as soon as it is
    /// cut, while its bytes are in the cache. The pieces are `data`, without gap or overlap.
    ///
    /// `data` is a segment or a slice of one. A slice starts at a cut of the segment (a boundary between two pieces) and
    /// ends on the segment's 4 KiB grid or where the segment ends: then its pieces are those of the segment, but for
    /// the last one, which may go on behind the slice if it is zero or its end is not natural.
    ///
    /// # Errors
    /// The first error of `f`; it is not called again.
    pub fn for_each<'a, E>(
        &mut self,
        data: &'a [u8],
        start: u32,
        f: impl FnMut(Piece<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(start as usize + data.len() <= SEGMENT_BYTES, "the slice leaves its segment");
        match &mut self.cutter {
            Cutter::Block(cutter) => cutter.for_each(&mut self.hasher, data, start, f),
            Cutter::Byte(cutter) => cutter.for_each(&mut self.hasher, data, start, f),
        }
    }

    /// The id of the chunk with these bytes, as [`Chunker::for_each`] gives it. Restore and verify compare it.
    pub fn chunk_id(&mut self, bytes: &[u8]) -> ChunkId {
        self.hasher.id_of_bytes(bytes)
    }
}
