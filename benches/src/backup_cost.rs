//! What the steps of a backup cost on a sample of the volume, each measured by itself with the engine's own code.

use std::path::Path;
use std::sync::Arc;

use penstock_engine::chunker::{ChunkKeys, Chunker, PieceKind};
use penstock_engine::compress::Compressor;
use penstock_engine::crypto::RepoKeys;
use penstock_engine::format::config::Compression;
use penstock_engine::format::header::ObjectKind;
use penstock_engine::id::{ChunkId, ObjectId};
use penstock_engine::index::Claims;
use penstock_engine::io::{BufPool, IoEngineChoice, ReadJob, choose, spawn_readers};
use penstock_engine::limits::SEGMENT_BYTES;
use penstock_engine::pack::{PackBuilder, pack_buffer_bytes};
use penstock_engine::repo::Repository;
use penstock_engine::source::{self, OpenOptions};
use penstock_engine::store::{Body, Limits, Place, Store};

use crate::Outcome;
use crate::meter::{Used, best_cpu_of, best_of, measure};
use crate::sample;
use crate::table::Step;

/// Segments in flight and pack writers, as the backup has them.
const READ_DEPTH: usize = 8;
const PACK_WRITERS: usize = 2;
/// Bytes written to find out what storing packs costs.
const WRITE_BYTES: usize = 1 << 30;

/// One thread's part of the sample.
struct Part {
    segments: Vec<Vec<u8>>,
    /// Chunks: segment, place in it, id.
    chunks: Vec<(usize, std::ops::Range<usize>, ChunkId)>,
    chunker: Chunker,
    compressor: Compressor,
    out: Vec<u8>,
    stored_bytes: u64,
}

/// Which chunks the repository has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// None of them.
    No,
    /// All, and each is looked up.
    Lookup,
    /// All, in the same place as the parent's: nothing is looked up.
    Parent,
}

/// Measures the steps of a backup of `volume` to `repo`, which knows its chunks or does not.
pub fn steps(volume: &Path, repo: &Repository, known: Known, cores: usize) -> Outcome<Vec<Step>> {
    let mut steps = vec![read(volume)?];
    let mut parts = parts(volume, repo, cores)?;
    let bytes: f64 = parts.iter().flat_map(|p| &p.segments).map(|s| s.len() as f64).sum();
    let cut = best_cpu_of(&mut parts, |part| {
        for segment in &part.segments {
            part.chunker.for_each(segment, 0, |piece| {
                std::hint::black_box(piece);
                Ok::<(), penstock_engine::Error>(())
            })?;
        }
        Ok(())
    })?;
    // One loop over the segment's blocks: there is no telling its parts from each other without making them slower.
    let has_chunks = parts.iter().any(|part| !part.chunks.is_empty());
    steps.push(Step::own(if has_chunks { "zero scan, hash, cut" } else { "zero scan" }, cut, bytes));
    if !has_chunks || known == Known::Parent {
        return Ok(steps);
    }
    steps.push(Step::own("lookup", lookup(repo, &mut parts)?, bytes));
    if known == Known::No {
        let level = Compression::parse(&repo.config().compression)?.levels().map(|levels| *levels.start());
        let compress = best_cpu_of(&mut parts, |part| {
            part.compressor = Compressor::new(level)?;
            for (segment, range, _) in &part.chunks {
                let raw = &part.segments[*segment][range.clone()];
                std::hint::black_box(part.compressor.compress(raw, &mut part.out));
            }
            Ok(())
        })?;
        let packed = pack(repo, &mut parts)?;
        steps.push(Step::own("compress", compress, bytes));
        steps.push(Step::own("seal, frame", (packed.0 - compress.0, packed.1 - compress.1), bytes));
        let stored: u64 = parts.iter().map(|part| part.stored_bytes).sum();
        let (written, used) = write_packs(repo)?;
        steps.push(Step::device("pack write", used, written * bytes / stored as f64));
    }
    Ok(steps)
}

/// The engine's reader threads, with nobody to use what they read.
fn read(volume: &Path) -> Outcome<Step> {
    let offsets = sample::data_segments(volume)?;
    let (bytes, used) = best_of(|| measure(|| read_volume(volume, &offsets)))?;
    Ok(Step::device("read", used, bytes))
}

/// Reads the segments at these offsets as a backup does, and returns how many bytes they were.
pub fn read_volume(volume: &Path, offsets: &[u64]) -> Outcome<f64> {
    let source = source::open(volume, OpenOptions { force_live: true, raw_container: true })?;
    let file = source.file().ok_or("a stream cannot be measured")?;
    let (engine, _) = choose(IoEngineChoice::Auto)?;
    let pool = BufPool::new(READ_DEPTH + 2, SEGMENT_BYTES);
    let (jobs, job_queue) = async_channel::bounded(READ_DEPTH);
    let (done, results) = crossbeam::channel::bounded(pool.buf_count() + 1);
    let readers = spawn_readers(engine, 1, READ_DEPTH, job_queue, pool, done)?;
    let mut bytes = 0;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for &offset_bytes in offsets {
                let len = (file.size_bytes - offset_bytes).min(SEGMENT_BYTES as u64) as u32;
                let whole = 0..len;
                let job = ReadJob { tag: (), file: file.clone(), offset_bytes, ranges: vec![whole] };
                if jobs.send_blocking(job).is_err() {
                    break;
                }
            }
        });
        for result in results {
            bytes += result.map_err(|(_, error)| error)?.read_bytes;
        }
        Outcome::Ok(())
    })?;
    readers.into_iter().try_for_each(|r| r.join().map_err(|_| "a reader panicked"))?;
    Ok(bytes as f64)
}

fn parts(volume: &Path, repo: &Repository, threads: usize) -> Outcome<Vec<Part>> {
    let params = repo.chunk_params()?;
    sample::read(volume, threads)?
        .into_iter()
        .map(|segments| {
            let mut chunker = Chunker::new(params, &chunk_keys(repo.keys()));
            let mut chunks = Vec::new();
            for (number, segment) in segments.iter().enumerate() {
                chunker.for_each(segment, 0, |piece| {
                    if let PieceKind::Data { id, .. } = piece.kind {
                        let start = piece.offset as usize;
                        chunks.push((number, start..start + piece.bytes.len(), id));
                    }
                    Ok::<(), penstock_engine::Error>(())
                })?;
            }
            let out = vec![0; params.max_bytes() as usize];
            Ok(Part { segments, chunks, chunker, compressor: Compressor::new(None)?, out, stored_bytes: 0 })
        })
        .collect()
}

/// The keys that chunks are cut and named with.
pub fn chunk_keys(keys: &RepoKeys) -> ChunkKeys {
    let (block_key, chunk_key, cut_seed) = keys.chunker();
    ChunkKeys { block_key, chunk_key, cut_seed }
}

fn lookup(repo: &Repository, parts: &mut [Part]) -> Outcome<(f64, f64)> {
    best_cpu_of(parts, |part| {
        // Claims are remembered and pages are kept: each thread of each run begins without any.
        let claims = Claims::new(repo.index_now()?);
        for (_, _, id) in &part.chunks {
            std::hint::black_box(claims.reserve(id.as_bytes())?);
        }
        Ok(())
    })
}

/// Packs filled as a worker fills them, and thrown away.
fn pack(repo: &Repository, parts: &mut [Part]) -> Outcome<(f64, f64)> {
    let pack_bytes = repo.config().pack_bytes as usize;
    let level = Compression::parse(&repo.config().compression)?.levels().map(|levels| *levels.start());
    let pool = BufPool::new(
        parts.len() * 2,
        pack_buffer_bytes(pack_bytes, repo.chunk_params()?.max_bytes() as usize),
    );
    let keys: &Arc<RepoKeys> = repo.keys();
    best_cpu_of(parts, |part| {
        part.compressor = Compressor::new(level)?;
        part.stored_bytes = 0;
        let start = || {
            let buf = pool.get_blocking().ok_or("the pool is closed")?;
            Outcome::Ok(PackBuilder::start(keys, ObjectKind::Data, buf, pack_bytes)?)
        };
        let mut builder = start()?;
        for (segment, range, id) in &part.chunks {
            let raw = &part.segments[*segment][range.clone()];
            part.stored_bytes += u64::from(builder.add(id.as_bytes(), raw, &mut part.compressor));
            if builder.is_full() {
                drop(builder.finish());
                builder = start()?;
            }
        }
        drop(builder.finish());
        Ok(())
    })
}

/// Stores packs of the repository's size in a store beside it.
fn write_packs(repo: &Repository) -> Outcome<(f64, Used)> {
    let beside = Path::new(repo.location()).with_extension("packs");
    let pack_bytes = repo.config().pack_bytes as usize;
    let count = WRITE_BYTES / pack_bytes / PACK_WRITERS;
    let pool = BufPool::new(PACK_WRITERS, pack_bytes);
    let engine = choose(IoEngineChoice::Auto)?.0;
    best_of(|| {
        let store = penstock_engine::store::open(&Place::Dir(beside.clone()), true, &Limits::default())?;
        store.set_io_engine(engine);
        let result = measure(|| {
            std::thread::scope(|scope| {
                let put = || put(store.as_ref(), &pool, pack_bytes, count);
                let threads: Vec<_> = (0..PACK_WRITERS).map(|_| scope.spawn(put)).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().unwrap_or_else(|_| Err("a pack writer panicked".into())))
                    .sum()
            })
        })?;
        drop(store);
        std::fs::remove_dir_all(&beside)?;
        Ok(result)
    })
}

fn put(store: &dyn Store, pool: &BufPool, pack_bytes: usize, count: usize) -> Outcome<f64> {
    for _ in 0..count {
        let buf = pool.get_blocking().ok_or("the pool is closed")?;
        let key = ObjectKind::Data.key(&ObjectId::random()?.to_string());
        store.put_new(&key, Body::Pooled { buf, len: pack_bytes })?;
    }
    Ok((count * pack_bytes) as f64)
}
