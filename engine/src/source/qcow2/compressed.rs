//! Compressed clusters: raw deflate or zstd, padded with whatever follows up to the next 512 bytes.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress as inflate, inflate_flags};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;

/// Largest window that a zstd frame may ask for, as a binary logarithm: 8 MiB, four times the largest cluster.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Fills all of `cluster` from `stored`. The error is the reason, for people.
pub fn decompress(kind: Compression, stored: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let filled = match kind {
        Compression::Deflate => deflate(stored, cluster)?,
        Compression::Zstd => zstd(stored, cluster)?,
    };
    match filled == cluster.len() {
        true => Ok(()),
        false => Err(format!("it holds {filled} bytes, not the {} of a cluster", cluster.len())),
    }
}

fn deflate(stored: &[u8], cluster: &mut [u8]) -> Result<usize, String> {
    let mut state = Box::<DecompressorOxide>::default();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, filled) = inflate(&mut state, stored, cluster, 0, flags);
    match status {
        // A stream that goes on behind the cluster, or has its end in bytes that are not there, has filled it as well.
        TINFLStatus::Done
        | TINFLStatus::HasMoreOutput
        | TINFLStatus::NeedsMoreInput
        | TINFLStatus::FailedCannotMakeProgress => Ok(filled),
        other => Err(format!("no deflate stream ({other:?})")),
    }
}

fn zstd(stored: &[u8], cluster: &mut [u8]) -> Result<usize, String> {
    let words = |e: std::io::Error| format!("zstd: {e}");
    let mut decoder = Decoder::new().map_err(words)?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(words)?;
    let size = cluster.len();
    let (mut input, mut output) = (InBuffer::around(stored), OutBuffer::around(cluster));
    while output.pos() < size {
        let before = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output).map_err(words)?;
        if before == (input.pos(), output.pos()) {
            break;
        }
    }
    Ok(output.pos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cluster_is_an_error() {
        let contents: Vec<u8> = (0..65_536u32).map(|n| (n / 100) as u8).collect();
        let mut packed = zstd::bulk::compress(&contents, 3).unwrap();
        let mut cluster = vec![1; 65_536];
        packed.extend([0xff; 300]);
        decompress(Compression::Zstd, &packed, &mut cluster).unwrap();
        assert!(cluster == contents);
        // A stored block of four bytes.
        let short = [1, 4, 0, 0xfb, 0xff, 9, 9, 9, 9];
        let text = decompress(Compression::Deflate, &short, &mut cluster).unwrap_err();
        assert!(text.contains("4 bytes"), "{text}");
        decompress(Compression::Deflate, &short, &mut cluster[..4]).unwrap();
        assert_eq!(cluster[..4], [9; 4]);
        for kind in [Compression::Deflate, Compression::Zstd] {
            assert!(decompress(kind, &[0xff; 600], &mut cluster).is_err());
            assert!(decompress(kind, &[], &mut cluster).is_err());
        }
    }
}
