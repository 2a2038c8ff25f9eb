//! Compression of frames: zstd with one context per thread, and an early decision for data that will not compress.

use zstd::bulk::{Compressor as ZstdCompressor, Decompressor as ZstdDecompressor};
use zstd::zstd_safe::CParameter;

use crate::error::{Error, Result};
use crate::format::pack::Codec;

/// Bytes looked at before a chunk is given to zstd: 16 runs spread over it.
const SAMPLE_RUNS: usize = 16;
const SAMPLE_RUN_BYTES: usize = 256;
const SAMPLE_BYTES: usize = SAMPLE_RUNS * SAMPLE_RUN_BYTES;
/// Order-0 entropy above which a sample counts as incompressible, in bits a byte. 4 KiB of random bytes show 7.95; deflated or
/// encrypted data 7.94 and more; text, code and databases stay below 7.
const INCOMPRESSIBLE_BITS: f32 = 7.90;
/// A compressed form must save at least 1/32, or decoding it is not worth the time.
const SAVING_SHIFT: u32 = 5;

/// Compresses chunks for one thread.
pub struct Compressor {
    zstd: Option<ZstdCompressor<'static>>,
    level: i32,
    /// Whether the last chunk became shorter. Contents of a kind lie together, so only after one that did not is the next one sampled: the
    /// samples cost 4 % of the CPU time of a first backup when they were taken of every chunk.
    last_shrank: bool,
}

impl Compressor {
    /// For a zstd level, or `None` to store everything as it is.
    pub fn new(level: Option<i32>) -> Result<Self> {
        let broken = |e: std::io::Error| Error::Invalid { what: format!("zstd cannot be set up: {e}") };
        let zstd = level
            .map(|level| {
                let mut zstd = ZstdCompressor::new(level)?;
                // The table of contents knows the length, the seal knows damage: neither is stored twice.
                zstd.set_parameter(CParameter::ContentSizeFlag(false))?;
                zstd.set_parameter(CParameter::ChecksumFlag(false))?;
                Ok(zstd)
            })
            .transpose()
            .map_err(broken)?;
        Ok(Self { zstd, level: level.unwrap_or_default(), last_shrank: true })
    }

    /// Uses another level from now on; nothing happens if this compressor does not compress.
    pub fn set_level(&mut self, level: i32) -> Result<()> {
        if let Some(zstd) = self.zstd.as_mut().filter(|_| level != self.level) {
            zstd.set_parameter(CParameter::CompressionLevel(level))
                .map_err(|e| Error::Invalid { what: format!("zstd refuses level {level}: {e}") })?;
            self.level = level;
        }
        Ok(())
    }

    /// Writes `raw` to the front of `out` in the shorter form; `out` must be at least as long as `raw`. Returns the codec and the length.
    pub fn compress(&mut self, raw: &[u8], out: &mut [u8]) -> (Codec, usize) {
        if let Some(zstd) = &mut self.zstd
            && (self.last_shrank || !looks_incompressible(raw))
        {
            let worth_bytes = raw.len() - (raw.len() >> SAVING_SHIFT) - 1;
            // An error here means that the result would be longer than is worth it.
            let result = zstd.compress_to_buffer(raw, &mut out[..worth_bytes]);
            self.last_shrank = result.is_ok();
            if let Ok(bytes) = result {
                return (Codec::Zstd, bytes);
            }
        }
        out[..raw.len()].copy_from_slice(raw);
        (Codec::Raw, raw.len())
    }
}

/// Decompresses chunks for one thread.
pub struct Decompressor {
    zstd: ZstdDecompressor<'static>,
}

impl Decompressor {
    /// A fresh context.
    pub fn new() -> Result<Self> {
        let zstd = ZstdDecompressor::new()
            .map_err(|e| Error::Invalid { what: format!("zstd cannot be set up: {e}") })?;
        Ok(Self { zstd })
    }

    /// Decodes the opened frame `codec ‖ payload` to exactly `raw.len()` bytes; the error says what was wrong with it.
    pub fn decompress(&mut self, frame: &[u8], raw: &mut [u8]) -> std::result::Result<(), String> {
        let Some((&codec, payload)) = frame.split_first() else { return Err("an empty frame".into()) };
        let bytes = match codec {
            c if c == Codec::Raw as u8 => {
                if payload.len() == raw.len() {
                    raw.copy_from_slice(payload);
                }
                payload.len()
            }
            c if c == Codec::Zstd as u8 => {
                self.zstd.decompress_to_buffer(payload, raw).map_err(|e| format!("zstd: {e}"))?
            }
            other => return Err(format!("unknown codec {other}")),
        };
        if bytes != raw.len() {
            return Err(format!("{bytes} bytes came out where {} are due", raw.len()));
        }
        Ok(())
    }
}

/// True if a sample of `raw` has no skew that an entropy coder could use. A chunk that repeats itself without any skew is missed; such
/// repetition is what deduplication finds.
fn looks_incompressible(raw: &[u8]) -> bool {
    if raw.len() < 2 * SAMPLE_BYTES {
        return false;
    }
    let mut counts = [0u16; 256];
    let stride = raw.len() / SAMPLE_RUNS;
    for run in raw.chunks_exact(stride).take(SAMPLE_RUNS) {
        for &byte in &run[..SAMPLE_RUN_BYTES] {
            counts[usize::from(byte)] += 1;
        }
    }
    // sum c·log2(c) over 256 counts: H = log2(n) − sum / n.
    let sum: f32 = counts.iter().filter(|&&c| c > 0).map(|&c| f32::from(c) * f32::from(c).log2()).sum();
    (SAMPLE_BYTES as f32).log2() - sum / SAMPLE_BYTES as f32 > INCOMPRESSIBLE_BITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    fn round_trip(raw: &[u8], level: Option<i32>) -> (Codec, usize) {
        let mut out = vec![0xee; raw.len().max(1)];
        let (codec, bytes) = Compressor::new(level).unwrap().compress(raw, &mut out);
        let frame = [&[codec as u8], &out[..bytes]].concat();
        let mut back = vec![0; raw.len()];
        Decompressor::new().unwrap().decompress(&frame, &mut back).unwrap();
        assert!(back == raw);
        (codec, bytes)
    }

    #[test]
    fn text_shrinks_and_random_data_stays() {
        let text = b"the quick brown fox jumps over the lazy dog. ".repeat(2000);
        assert_eq!(round_trip(&text, Some(1)).0, Codec::Zstd);
        assert_eq!(round_trip(&text, None).0, Codec::Raw);
        assert!(looks_incompressible(&random(65_536)));
        assert_eq!(round_trip(&random(65_536), Some(1)), (Codec::Raw, 65_536));
        assert!(!looks_incompressible(&text));
        round_trip(b"x", Some(1));
    }

    proptest! {
        #[test]
        fn any_data_comes_back(raw in proptest::collection::vec(0u8..4, 1..20_000), level in -7i32..19) {
            round_trip(&raw, Some(level));
        }

        #[test]
        fn hostile_frames_are_refused_calmly(frame in proptest::collection::vec(any::<u8>(), 0..200), bytes in 0usize..500) {
            let mut raw = vec![0; bytes];
            let _ = Decompressor::new().unwrap().decompress(&frame, &mut raw);
        }
    }
}
