//! The zero scan. Zero blocks are found before anything else is spent on them: never hashed, compressed or stored.
//!
//! **Format.** A block is a zero block if all its bytes are zero; this goes for the short last block of a volume too.

use crate::limits::BLOCK_BYTES;

/// A whole block.
pub(super) type Block = [u8; BLOCK_BYTES];

/// What zero blocks are compared with; also fills unused hashing lanes.
pub(super) static ZERO_BLOCK: Block = [0; BLOCK_BYTES];

/// True if every byte is zero, and for no bytes at all.
///
/// Compares with a block of zeros that stays in the first-level cache: the C library's compare is vectorised for the
/// processor it runs on, which code compiled for every x86-64 is not, and stops at the first difference.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, tail) = bytes.as_chunks::<BLOCK_BYTES>();
    blocks.iter().all(is_zero_block) && tail == &ZERO_BLOCK[..tail.len()]
}

/// [`is_zero`] for one whole block. The first bytes decide for most data, without a call.
#[inline]
pub(super) fn is_zero_block(block: &Block) -> bool {
    let (words, _) = block.as_chunks::<8>();
    words[0] == [0; 8] && block == &ZERO_BLOCK
}

/// Bytes from the start of `bytes` to the end of its leading zero blocks. The grid starts at `bytes[0]`.
pub(super) fn zero_prefix_bytes(bytes: &[u8]) -> usize {
    let (blocks, tail) = bytes.as_chunks::<BLOCK_BYTES>();
    match blocks.iter().position(|block| !is_zero_block(block)) {
        Some(index) => index * BLOCK_BYTES,
        None if is_zero(tail) => bytes.len(),
        None => blocks.len() * BLOCK_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_byte_anywhere_is_found() {
        for len in [1, 7, 8, 4095, 4096, 4097, 9000] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes));
            for at in (0..len).step_by(97).chain([len - 1]) {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "length {len}, byte {at}");
                bytes[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }

    #[test]
    fn zero_prefix_ends_at_a_block_or_at_the_end() {
        let mut bytes = vec![0u8; 3 * BLOCK_BYTES + 10];
        assert_eq!(zero_prefix_bytes(&bytes), bytes.len());
        bytes[3 * BLOCK_BYTES + 9] = 1;
        assert_eq!(zero_prefix_bytes(&bytes), 3 * BLOCK_BYTES);
        bytes[BLOCK_BYTES + 4095] = 1;
        assert_eq!(zero_prefix_bytes(&bytes), BLOCK_BYTES);
        bytes[0] = 1;
        assert_eq!(zero_prefix_bytes(&bytes), 0);
    }
}
