//! What each zstd level takes and saves on the chunks of an image: `compress_levels IMAGE [every Nth segment]`.
//! The table that the bounds of `--compression auto` rest on.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use penstock_engine::chunker::{ChunkKeys, ChunkParams, Chunker, ChunkerKind, PieceKind};
use penstock_engine::compress::Compressor;
use penstock_engine::limits::{CHUNK_TARGET_BYTES_DEFAULT, SEGMENT_BYTES};

const LEVELS: [i32; 12] = [-5, -3, -1, 1, 2, 3, 4, 5, 6, 7, 9, 12];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: compress_levels IMAGE [every Nth segment]")?;
    let step: u64 = args.next().map_or(Ok(8), |text| text.parse())?;
    let chunks = unique_chunks(&File::open(&path)?, step.max(1))?;
    let total: usize = chunks.iter().map(Vec::len).sum();
    println!("{path}: {} unique chunks, {} MiB, on one core\n", chunks.len(), total >> 20);
    println!("| level | MB/s | ratio | stored, level 1 = 100 | time, level 1 = 100 |\n|---|---|---|---|---|");
    let mut out = vec![0; 4 * CHUNK_TARGET_BYTES_DEFAULT as usize + SEGMENT_BYTES];
    let (stored_1, seconds_1) = measure(1, &chunks, &mut out)?; // also warms up
    for level in LEVELS {
        let (stored, seconds) = measure(level, &chunks, &mut out)?;
        println!(
            "| {level} | {:.0} | {:.2} | {:.1} | {:.0} |",
            total as f64 / seconds / 1e6,
            total as f64 / stored as f64,
            stored as f64 * 100.0 / stored_1 as f64,
            seconds * 100.0 / seconds_1
        );
    }
    Ok(())
}

/// Bytes stored and seconds taken: the better of two rounds.
fn measure(level: i32, chunks: &[Vec<u8>], out: &mut [u8]) -> penstock_engine::Result<(usize, f64)> {
    let mut compressor = Compressor::new(Some(level))?;
    let (mut stored, mut best) = (0, f64::INFINITY);
    for _ in 0..2 {
        let begin = Instant::now();
        stored = chunks.iter().map(|chunk| black_box(compressor.compress(chunk, out)).1).sum();
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok((stored, best))
}

fn unique_chunks(file: &File, step: u64) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let keys = ChunkKeys { block_key: [1; 32], chunk_key: [2; 32], cut_seed: 3 };
    let mut chunker = Chunker::new(ChunkParams::new(ChunkerKind::Block, CHUNK_TARGET_BYTES_DEFAULT)?, &keys);
    let (mut seen, mut chunks) = (HashSet::new(), Vec::new());
    let mut segment = vec![0; SEGMENT_BYTES];
    for offset in (0..file.metadata()?.len()).step_by(SEGMENT_BYTES * step as usize) {
        let len = file.read_at(&mut segment, offset)?;
        let Ok(()) = chunker.for_each(&segment[..len], 0, |piece| {
            if let PieceKind::Data { id, .. } = piece.kind
                && seen.insert(*id.as_bytes())
            {
                chunks.push(piece.bytes.to_vec());
            }
            Ok::<(), Infallible>(())
        });
    }
    Ok(chunks)
}
