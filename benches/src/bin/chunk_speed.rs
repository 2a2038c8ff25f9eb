//! Speed of the chunkers on one core, on data in memory: `chunk_speed [file] [MiB] [offset MiB]`.
//! Prints the best of several rounds in GB/s (10^9 bytes of input a second).

use std::convert::Infallible;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use penstock_engine::chunker::{ChunkKeys, ChunkParams, Chunker, ChunkerKind, PieceKind, is_zero};
use penstock_engine::limits::{BLOCK_BYTES, CHUNK_TARGET_BYTES_DEFAULT, SEGMENT_BYTES};

const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: chunk_speed FILE [MIB]")?;
    let mib: usize = args.next().map_or(Ok(256), |text| text.parse())?;
    let offset: u64 = args.next().map_or(Ok(1200), |text| text.parse())?;
    let mut data = vec![1; mib << 20];
    read_at_most(&File::open(&path)?, &mut data, offset << 20)?;
    let zero = data.chunks(BLOCK_BYTES).filter(|block| is_zero(block)).count();
    println!("{path} + {offset} MiB: {mib} MiB, {} % zero", zero * 100 / data.len().div_ceil(BLOCK_BYTES));

    let keys = ChunkKeys { block_key: [1; 32], chunk_key: [2; 32], cut_seed: 3 };
    // Written to, or all pages would be the kernel's one page of zeros, in the cache.
    let mut zeros = vec![1; data.len()];
    zeros.fill(0);
    measure("is_zero, zeros", zeros.len(), || usize::from(is_zero(black_box(&zeros))));
    measure("is_zero per block, data", data.len(), || {
        data.chunks(BLOCK_BYTES).filter(|block| is_zero(block)).count()
    });
    measure("keyed_hash per block, data", data.len(), || {
        data.chunks(BLOCK_BYTES)
            .map(|block| blake3::keyed_hash(&keys.block_key, block).as_bytes()[0])
            .max()
            .into_iter()
            .count()
    });
    for kind in ChunkerKind::ALL {
        let mut chunker = Chunker::new(ChunkParams::new(kind, CHUNK_TARGET_BYTES_DEFAULT)?, &keys);
        let name = kind.name();
        measure(&format!("{name}: chunk_id per segment, data"), data.len(), || {
            data.chunks(SEGMENT_BYTES)
                .map(|segment| usize::from(chunker.chunk_id(segment).as_bytes()[0]))
                .sum()
        });
        for (what, bytes) in [("data", &data), ("zeros", &zeros)] {
            measure(&format!("{name}: for_each per segment, {what}"), bytes.len(), || {
                let chunks = count_chunks(&mut chunker, bytes);
                black_box(chunks)
            });
        }
        let chunks = count_chunks(&mut chunker, &data);
        println!("{name}: {chunks} chunks");
    }
    Ok(())
}

fn count_chunks(chunker: &mut Chunker, data: &[u8]) -> usize {
    let mut chunks = 0;
    for segment in data.chunks(SEGMENT_BYTES) {
        let Ok(()) = chunker.for_each(segment, 0, |piece| {
            chunks += usize::from(piece.kind != PieceKind::Zero);
            Ok::<(), Infallible>(())
        });
    }
    chunks
}

fn measure(what: &str, bytes: usize, mut work: impl FnMut() -> usize) {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        black_box(work());
        best = best.min(begin.elapsed().as_secs_f64());
    }
    println!("{what:42} {:6.2} GB/s", bytes as f64 / best / 1e9);
}

fn read_at_most(file: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        match file.read_at(&mut data[done..], offset + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(())
}
