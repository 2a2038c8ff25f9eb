//! What the steps of a restore cost, each measured by itself with the engine's own code.

use std::collections::BTreeMap;
use std::path::Path;

use penstock_engine::chunker::Chunker;
use penstock_engine::format::header::ObjectKind;
use penstock_engine::io::{BufPool, IoEngineChoice, WriteJob, choose, spawn_writers};
use penstock_engine::limits::SEGMENT_BYTES;
use penstock_engine::pack::{FrameReader, Location};
use penstock_engine::repo::Repository;
use penstock_engine::target::{self, TargetOptions};

use crate::Outcome;
use crate::backup_cost::chunk_keys;
use crate::meter::{Used, best_cpu_of, best_of, measure};
use crate::table::Step;

/// Stored bytes looked at, at most.
const SAMPLE_BYTES: usize = 256 << 20;
/// Segments being written at a time, as the restore has them.
const WRITE_DEPTH: usize = 4;
/// Bytes of one request to the store, as the restore has them.
const FETCH_BYTES: usize = 8 << 20;

/// A pack in memory with the frames in it.
struct Pack {
    bytes: Vec<u8>,
    frames: Vec<([u8; 32], Location)>,
}

/// One thread's packs, and the contents as they were decoded.
struct Part {
    packs: Vec<Pack>,
    raw: Vec<u8>,
    frames: FrameReader,
    chunker: Chunker,
}

/// Measures the steps of a restore of all that `repo` holds to `target`, which has room for `volume_bytes`.
pub fn steps(repo: &Repository, target: &Path, volume_bytes: u64, cores: usize) -> Outcome<Vec<Step>> {
    let mut by_pack: BTreeMap<String, Vec<([u8; 32], Location)>> = BTreeMap::new();
    repo.index()?.each_row(&mut |id, at| {
        if at.pack.kind == ObjectKind::Data {
            by_pack.entry(at.pack_key()).or_default().push((*id, at));
        }
        Ok(())
    })?;
    let (packs, fetched) = fetch(repo, by_pack)?;
    let stored: usize = packs.iter().map(|pack| pack.bytes.len()).sum();
    let mut parts = deal(repo, packs, cores)?;
    let frames = |part: &Part| -> f64 {
        part.packs.iter().flat_map(|p| &p.frames).map(|(_, at)| f64::from(at.raw_bytes)).sum()
    };
    let bytes: f64 = parts.iter().map(frames).sum();
    let mut steps = vec![Step::device("fetch", fetched, bytes)];
    steps.push(Step::own("open, decode", decode(repo, &mut parts)?, bytes));
    steps.push(Step::own("check ids", check(&mut parts)?, bytes));
    drop(parts);
    if stored == 0 {
        return Err("the repository holds no data to restore".into());
    }
    steps.push(write(target, volume_bytes)?);
    Ok(steps)
}

fn fetch(
    repo: &Repository,
    by_pack: BTreeMap<String, Vec<([u8; 32], Location)>>,
) -> Outcome<(Vec<Pack>, Used)> {
    let mut packs = Vec::new();
    let mut room = SAMPLE_BYTES;
    for (key, frames) in by_pack {
        let len = frames.iter().map(|(_, at)| at.end() as usize).max().unwrap_or(0);
        if len > room && !packs.is_empty() {
            break;
        }
        room = room.saturating_sub(len);
        packs.push((key, Pack { bytes: vec![1; len], frames }));
    }
    let ((), used) = best_of(|| {
        measure(|| {
            for (key, pack) in &mut packs {
                for (n, part) in pack.bytes.chunks_mut(FETCH_BYTES).enumerate() {
                    let found = repo.store().get_into(key, (n * FETCH_BYTES) as u64, part)?;
                    if found != Some(part.len()) {
                        return Err(format!("{key} is cut short").into());
                    }
                }
            }
            Ok(())
        })
    })?;
    Ok((packs.into_iter().map(|(_, pack)| pack).collect(), used))
}

fn deal(repo: &Repository, packs: Vec<Pack>, threads: usize) -> Outcome<Vec<Part>> {
    let params = repo.chunk_params()?;
    let mut parts = (0..threads)
        .map(|_| {
            let chunker = Chunker::new(params, &chunk_keys(repo.keys()));
            let raw = vec![0; SEGMENT_BYTES + params.max_bytes() as usize];
            Ok(Part { packs: Vec::new(), raw, frames: FrameReader::new()?, chunker })
        })
        .collect::<Outcome<Vec<Part>>>()?;
    for (n, pack) in packs.into_iter().enumerate() {
        parts[n % threads].packs.push(pack);
    }
    Ok(parts)
}

fn decode(repo: &Repository, parts: &mut [Part]) -> Outcome<(f64, f64)> {
    best_cpu_of(parts, |part| {
        let mut filled = 0;
        for pack in &part.packs {
            for (id, at) in &pack.frames {
                let stored = &pack.bytes[at.offset as usize..at.end() as usize];
                // Contents land behind each other in a segment's buffer, as they do in a restore.
                let raw = &mut part.raw[filled..filled + at.raw_bytes as usize];
                part.frames.read(repo.keys(), at, id, stored, raw)?;
                filled = (filled + at.raw_bytes as usize) % SEGMENT_BYTES;
            }
        }
        Ok(())
    })
}

/// Hashes as many bytes as the chunks have, warm as they are after decoding.
fn check(parts: &mut [Part]) -> Outcome<(f64, f64)> {
    best_cpu_of(parts, |part| {
        for (_, at) in part.packs.iter().flat_map(|pack| &pack.frames) {
            std::hint::black_box(part.chunker.chunk_id(&part.raw[..at.raw_bytes as usize]));
        }
        Ok(())
    })
}

/// The engine's writer threads with full buffers.
fn write(path: &Path, bytes: u64) -> Outcome<Step> {
    let ((), used) = best_of(|| measure(|| write_volume(path, bytes)))?;
    Ok(Step::device("write", used, bytes as f64))
}

/// Writes all of a volume as a restore does, over what is there.
pub fn write_volume(path: &Path, bytes: u64) -> Outcome<()> {
    let (engine, _) = choose(IoEngineChoice::Auto)?;
    let options = TargetOptions { size_bytes: bytes, force: true, ..TargetOptions::default() };
    let target = target::open(path, options)?;
    let pool = BufPool::new(WRITE_DEPTH + 2, SEGMENT_BYTES);
    let (jobs, job_queue) = async_channel::unbounded();
    let (done, results) = crossbeam::channel::unbounded();
    let writers = spawn_writers(engine, 1, WRITE_DEPTH, job_queue, done)?;
    for offset_bytes in (0..bytes).step_by(SEGMENT_BYTES) {
        let buf = pool.get_blocking().ok_or("the pool is closed")?;
        let len = (bytes - offset_bytes).min(SEGMENT_BYTES as u64) as u32;
        let whole = 0..len;
        let job = WriteJob {
            tag: (),
            file: target.file(),
            offset_bytes,
            buf,
            ranges: vec![whole],
            scattered: Vec::new(),
        };
        jobs.send_blocking(job)?;
    }
    drop(jobs);
    for result in results {
        result.map_err(|(_, error)| error)?;
    }
    writers.into_iter().try_for_each(|w| w.join().map_err(|_| "a writer panicked"))?;
    Ok(target.finish()?)
}
