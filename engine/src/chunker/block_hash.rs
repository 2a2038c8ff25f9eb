//! Hashes of 4 KiB blocks, many side by side, and the chunk ids made from them.
//!
//! **Format.**
//! - Block hash = `BLAKE3.keyed_hash(block_key, block)`, 32 bytes. The result is standard BLAKE3, however it is computed.
//! - Chunk id = `BLAKE3.keyed_hash(chunk_key, h0 ‖ h1 ‖ …)`, where `hi` is the block hash of the i-th 4096-byte piece of
//!   the chunk, counted from the chunk's first byte; the last piece may be shorter. `chunk_key` differs from `block_key`,
//!   so no block hash is ever a chunk id.
//!
//! A 4 KiB block is four BLAKE3 chunks of 1024 bytes, which fill 4 of the 16 lanes of AVX-512 (of 8 with AVX2). So the
//! same BLAKE3 chunk of [`LANES`] blocks is hashed at once, then their parents, then their roots, through the hidden
//! `blake3::platform` module (`blake3` is pinned for this). Tests hold the result against `blake3::keyed_hash`.

use blake3::IncrementCounter;
use blake3::platform::Platform;
use zeroize::Zeroize;

use super::zero::{Block, ZERO_BLOCK};
use crate::id::ChunkId;
use crate::limits::BLOCK_BYTES;

/// Blocks hashed side by side: the widest SIMD degree that BLAKE3 has.
pub(super) const LANES: usize = 16;

/// A block hash.
pub(super) type Hash = [u8; 32];

/// Bytes of a BLAKE3 chunk, and how many make a block.
const LEAF_BYTES: usize = 1024;
const LEAVES: usize = BLOCK_BYTES / LEAF_BYTES;
const _: () = assert!(LEAVES == 4, "hash_lanes has two parent levels");

/// Domain flags of the BLAKE3 specification, section 2.2.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// Up to this SIMD degree one block fills the lanes by itself and side by side gains nothing.
const DEGREE_OF_ONE_BLOCK: usize = LEAVES;

/// Fewest blocks for which side by side is faster than `keyed_hash` on each: 3.1 against 3.4 µs for 4 blocks, and 8.0
/// against 13.6 µs for 16 (measured with AVX-512).
const BATCH_MIN: usize = 4;

/// Hashes blocks and chunks under the keys of a repository. Owns its scratch space: one per thread.
pub(super) struct BlockHasher {
    platform: Platform,
    block_key: [u8; 32],
    block_key_words: [u32; 8],
    chunk_key: [u8; 32],
    /// Chaining values of the leaves: leaf-major, as `hash_many` writes them.
    leaf_cvs: [[Hash; LANES]; LEAVES],
    /// The same, two leaves of a block together, as its parents are hashed.
    pairs: [[u8; 64]; LANES * LEAVES / 2],
    parent_cvs: [Hash; LANES * LEAVES / 2],
    /// Block hashes of the chunk whose id is asked for.
    hashes: Vec<Hash>,
}

impl Drop for BlockHasher {
    fn drop(&mut self) {
        self.block_key.zeroize();
        self.block_key_words.zeroize();
        self.chunk_key.zeroize();
    }
}

impl BlockHasher {
    pub(super) fn new(block_key: &[u8; 32], chunk_key: &[u8; 32], chunk_blocks_max: usize) -> Self {
        let mut block_key_words = [0u32; 8];
        for (word, bytes) in block_key_words.iter_mut().zip(block_key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self {
            platform: Platform::detect(),
            block_key: *block_key,
            block_key_words,
            chunk_key: *chunk_key,
            leaf_cvs: [[[0; 32]; LANES]; LEAVES],
            pairs: [[0; 64]; LANES * LEAVES / 2],
            parent_cvs: [[0; 32]; LANES * LEAVES / 2],
            hashes: Vec::with_capacity(chunk_blocks_max),
        }
    }

    /// Hash of one block of any length up to [`BLOCK_BYTES`].
    pub(super) fn hash_one(&self, block: &[u8]) -> Hash {
        *blake3::keyed_hash(&self.block_key, block).as_bytes()
    }

    /// Hashes of up to [`LANES`] blocks, `out[i]` of `blocks[i]`. Fastest with all lanes in use.
    pub(super) fn hash_batch(&mut self, blocks: &[&Block], out: &mut [Hash; LANES]) {
        debug_assert!(blocks.len() <= LANES);
        if blocks.len() < BATCH_MIN || self.platform.simd_degree() <= DEGREE_OF_ONE_BLOCK {
            for (hash, block) in out.iter_mut().zip(blocks) {
                *hash = self.hash_one(*block);
            }
            return;
        }
        // 16 lanes take less time for 15 blocks than 8, 4, 2 and 1 lanes, which `hash_many` would use.
        let lanes = blocks.len().next_power_of_two().min(LANES);
        let mut padded = [&ZERO_BLOCK; LANES];
        for (lane, block) in padded.iter_mut().zip(blocks) {
            *lane = block;
        }
        self.hash_lanes(&padded, lanes, out);
    }

    /// The first `lanes` of `blocks`, all BLAKE3 steps side by side.
    fn hash_lanes(&mut self, blocks: &[&Block; LANES], lanes: usize, out: &mut [Hash; LANES]) {
        let Self { platform, block_key_words: key, leaf_cvs, pairs, parent_cvs, .. } = self;
        let many = IncrementCounter::No;
        for (leaf, cvs) in leaf_cvs.iter_mut().enumerate() {
            let inputs: [&[u8; LEAF_BYTES]; LANES] = blocks.map(|block| &block.as_chunks().0[leaf]);
            let (counter, cvs) = (leaf as u64, cvs.as_flattened_mut());
            platform.hash_many(&inputs[..lanes], key, counter, many, KEYED_HASH, CHUNK_START, CHUNK_END, cvs);
        }
        for lane in 0..lanes {
            for half in 0..2 {
                let pair = &mut pairs[lane * 2 + half];
                pair[..32].copy_from_slice(&leaf_cvs[half * 2][lane]);
                pair[32..].copy_from_slice(&leaf_cvs[half * 2 + 1][lane]);
            }
        }
        let inputs: [&[u8; 64]; LANES * 2] = std::array::from_fn(|i| &pairs[i]);
        let cvs = parent_cvs.as_flattened_mut();
        platform.hash_many(&inputs[..lanes * 2], key, 0, many, KEYED_HASH | PARENT, 0, 0, cvs);
        // The two parents of a block lie next to each other: the input of its root.
        let roots = parent_cvs.as_flattened().as_chunks::<64>().0;
        let inputs: [&[u8; 64]; LANES] = std::array::from_fn(|i| &roots[i]);
        let hashes = out.as_flattened_mut();
        platform.hash_many(&inputs[..lanes], key, 0, many, KEYED_HASH | PARENT | ROOT, 0, 0, hashes);
    }

    /// The id of a chunk whose block hashes are known.
    pub(super) fn id_of_hashes(&self, hashes: &[Hash]) -> ChunkId {
        ChunkId::new(*blake3::keyed_hash(&self.chunk_key, hashes.as_flattened()).as_bytes())
    }

    /// The id of a chunk, from its bytes.
    pub(super) fn id_of_bytes(&mut self, bytes: &[u8]) -> ChunkId {
        let mut hashes = std::mem::take(&mut self.hashes);
        hashes.clear();
        let (blocks, tail) = bytes.as_chunks::<BLOCK_BYTES>();
        for batch in blocks.chunks(LANES) {
            let mut lanes = [&ZERO_BLOCK; LANES];
            for (lane, block) in lanes.iter_mut().zip(batch) {
                *lane = block;
            }
            let mut out = [[0; 32]; LANES];
            self.hash_batch(&lanes[..batch.len()], &mut out);
            hashes.extend_from_slice(&out[..batch.len()]);
        }
        if !tail.is_empty() {
            hashes.push(self.hash_one(tail));
        }
        let id = self.id_of_hashes(&hashes);
        self.hashes = hashes;
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunker::tests::{KEYS, random};

    #[test]
    fn batches_equal_blake3_for_every_count() {
        let mut hasher = BlockHasher::new(&KEYS.block_key, &KEYS.chunk_key, 64);
        let data = random(1, LANES * BLOCK_BYTES);
        let blocks: Vec<&Block> = data.as_chunks().0.iter().collect();
        for count in 0..=LANES {
            let mut out = [[0; 32]; LANES];
            hasher.hash_batch(&blocks[..count], &mut out);
            for (hash, block) in out.iter().zip(&blocks[..count]) {
                assert_eq!(hash, blake3::keyed_hash(&KEYS.block_key, *block).as_bytes(), "of {count}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_lane_width_equals_blake3() {
        let mut hasher = BlockHasher::new(&KEYS.block_key, &KEYS.chunk_key, 64);
        let data = random(2, LANES * BLOCK_BYTES);
        let blocks: [&Block; LANES] = std::array::from_fn(|i| &data.as_chunks().0[i]);
        let x86 = [Platform::sse2(), Platform::sse41(), Platform::avx2(), Platform::avx512()];
        for platform in x86.into_iter().flatten().chain([Platform::portable()]) {
            hasher.platform = platform;
            for lanes in [1, 2, 4, 8, 16] {
                let mut out = [[0; 32]; LANES];
                hasher.hash_lanes(&blocks, lanes, &mut out);
                for (hash, block) in out.iter().zip(blocks).take(lanes) {
                    assert_eq!(hash, blake3::keyed_hash(&KEYS.block_key, block).as_bytes(), "{platform:?}");
                }
            }
        }
    }

    #[test]
    fn id_is_the_keyed_hash_of_block_hashes() {
        let mut hasher = BlockHasher::new(&KEYS.block_key, &KEYS.chunk_key, 64);
        for blocks in 0..40 {
            for tail in [0, 1, 63, 64, 1024, 1025, 4095] {
                let data = random(blocks as u64, blocks * BLOCK_BYTES + tail);
                let mut concatenated = Vec::new();
                for piece in data.chunks(BLOCK_BYTES) {
                    concatenated.extend_from_slice(blake3::keyed_hash(&KEYS.block_key, piece).as_bytes());
                }
                let want = blake3::keyed_hash(&KEYS.chunk_key, &concatenated);
                assert_eq!(hasher.id_of_bytes(&data).as_bytes(), want.as_bytes(), "{blocks} blocks + {tail}");
            }
        }
    }
}
