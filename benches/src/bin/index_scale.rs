//! The dedup index at scale.
//!
//! - `index_scale build PLACE [ROWS] [NIGHTS]`: writes an index of ROWS (default 160 million) synthetic chunks and NIGHTS (default 6) small segments after it, as
//!   backups would: rows of packs into segments, segments merged into one run. The last 200 packs of the big run are stored as objects too, so that their tables of contents can be read.
//! - `index_scale measure PLACE [ROWS]`: opens it and prints time, memory and lookups a second: absent ids, random present ones, and those of whole packs in the order they are stored in.
//!   Run it with a cold page cache as well.
//! - `index_scale simulate`: reads of the store for each lookup of a duplicate stream, by how long its runs of neighbours are. Those are what a store bills, and what decides at
//!   sizes at which no filter fits into memory.

#![allow(clippy::expect_used)] // a bench that cannot go on stops

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use penstock_engine::Result;
use penstock_engine::compress::Compressor;
use penstock_engine::crypto::RepoKeys;
use penstock_engine::format::header::{Cipher, ObjectKind};
use penstock_engine::format::index_segment::PackRef;
use penstock_engine::format::pack::TocRow;
use penstock_engine::id::ObjectId;
use penstock_engine::index::{Claims, Index, Merge};
use penstock_engine::io::BufPool;
use penstock_engine::pack::{PackBuilder, pack_buffer_bytes};
use penstock_engine::repo::cached_prefixes;
use penstock_engine::store::object::{self, AwsAccess, AwsCredential, ObjectOptions, Runtime};
use penstock_engine::store::{Body, CacheOptions, Cached, Limits, Place, Store};
use zeroize::Zeroizing;

/// Chunks of a pack: 80 MiB of chunks of 64 KiB, compressed to 32 MiB.
const PACK_ROWS: u64 = 1221;
/// Packs that are stored, at the end of the big run.
const STORED_PACKS: u64 = 200;
/// New chunks of a night.
const NIGHT_ROWS: u64 = 20_000;
const LOOKUPS: u64 = 1_000_000;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).map_or(Ok(default), |text| text.parse());
    match args.first().map(String::as_str) {
        Some("build") if args.len() > 1 => build(&args[1], number(2, 160_000_000)?, number(3, 6)?)?,
        Some("measure") if args.len() > 1 => measure(&args[1], number(2, 0)?)?,
        Some("simulate") => simulate()?,
        _ => {
            return Err(
                "usage: index_scale build PLACE [ROWS] [NIGHTS] | measure PLACE [ROWS] | simulate".into()
            );
        }
    }
    Ok(())
}

fn keys() -> Arc<RepoKeys> {
    Arc::new(RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm))
}

/// The id of chunk `n`: uniform, like a hash.
fn id(n: u64) -> [u8; 32] {
    let mut state = n;
    let mut id = [0u8; 32];
    for word in id.as_chunks_mut::<8>().0 {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *word = (z ^ (z >> 31)).to_le_bytes();
        state = state.rotate_left(32) ^ z;
    }
    id
}

/// A directory, or a bucket behind a cache, as the program has it.
fn open(place: &str) -> Result<Arc<dyn Store>> {
    let bucket = match Place::parse(place)? {
        Place::Bucket(bucket) => bucket,
        other => return penstock_engine::store::open(&other, true, &Limits::default()),
    };
    let options = ObjectOptions {
        endpoint: std::env::var("PENSTOCK_S3_ENDPOINT").ok(),
        region: std::env::var("AWS_REGION").ok(),
        aws: Some(AwsAccess {
            provider: Arc::new(object_store::StaticCredentialProvider::new(AwsCredential {
                key_id: std::env::var("AWS_ACCESS_KEY_ID").unwrap_or_default(),
                secret_key: std::env::var("AWS_SECRET_ACCESS_KEY").unwrap_or_default(),
                token: None,
            })),
            expired: Arc::new(|| {}),
        }),
        ..ObjectOptions::default()
    };
    let store = Arc::new(object::open(bucket, options, Runtime::start()?)?);
    let dir = std::env::temp_dir().join(format!("index-scale-{}", std::process::id()));
    let options = CacheOptions { dir, bytes_max: 1 << 30, prefixes: cached_prefixes() };
    Ok(Arc::new(Cached::new(store, &options)?))
}

/// A pack with these chunks that is in the index only.
fn unstored_pack(number: u64, chunks: std::ops::Range<u64>) -> (PackRef, Vec<TocRow>) {
    let mut name = [0; 16];
    name.copy_from_slice(&id(number ^ (1 << 60))[..16]);
    let pack = PackRef {
        id: ObjectId::new(name),
        salt: [number as u8; 24],
        bytes: 32 << 20,
        kind: ObjectKind::Data,
    };
    let row = |(n, chunk)| TocRow {
        id: id(chunk),
        offset: 96 + 27_000 * n as u32,
        stored_bytes: 27_000,
        raw_bytes: 65_536,
    };
    (pack, chunks.enumerate().map(row).collect())
}

/// A pack with these chunks that is stored, with next to nothing in each frame.
fn stored_pack(
    store: &dyn Store,
    keys: &RepoKeys,
    pool: &BufPool,
    compressor: &mut Compressor,
    chunks: std::ops::Range<u64>,
) -> Result<(PackRef, Vec<TocRow>)> {
    let buf = pool.get_blocking().expect("nobody else takes one");
    let mut builder = PackBuilder::start(keys, ObjectKind::Data, buf, 1 << 20)?;
    for chunk in chunks {
        builder.add(&id(chunk), &chunk.to_le_bytes(), compressor);
    }
    let done = builder.finish();
    let key = ObjectKind::Data.key(&done.pack.id.to_string());
    store.put_new(&key, Body::Bytes(&done.buf[..done.len]))?;
    Ok((done.pack, done.rows))
}

fn build(place: &str, rows: u64, nights: u64) -> Result<()> {
    let (store, keys) = (open(place)?, keys());
    let began = Instant::now();
    let packs = rows.div_ceil(PACK_ROWS);
    let pool = BufPool::new(1, pack_buffer_bytes(1 << 20, 1 << 18));
    let mut compressor = Compressor::new(None)?;
    let mut fill = |claims: &Claims, packs: std::ops::Range<u64>, stored: u64, rows: u64| -> Result<()> {
        for number in packs.clone() {
            let chunks = number * PACK_ROWS..((number + 1) * PACK_ROWS).min(rows);
            let (pack, contents) = if number + stored >= packs.end {
                stored_pack(store.as_ref(), &keys, &pool, &mut compressor, chunks)?
            } else {
                unstored_pack(number, chunks)
            };
            claims.add_durable(pack, contents)?;
        }
        claims.flush()
    };
    {
        // Many short runs rather than one long one, or the filters of all small segments would be in memory.
        let mut at = 0;
        while at < packs {
            let end = (at + 40_000).min(packs);
            let claims = Claims::new(Arc::new(Index::load(store.clone(), keys.clone())?));
            fill(&claims, at..end, if end == packs { STORED_PACKS } else { 0 }, rows)?;
            at = end;
        }
    }
    println!("{rows} rows of {packs} packs in small segments: {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let merged = Index::load(store.clone(), keys.clone())?.tidy(Merge::Rewrite, &|| false)?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "merged {} runs into {} parts: {seconds:.1} s, {:.2} million rows/s; peak memory {} MiB",
        merged.merged,
        merged.parts,
        rows as f64 / seconds / 1e6,
        status("VmHWM")
    );
    for night in 0..nights {
        let index = Arc::new(Index::load(store.clone(), keys.clone())?);
        let claims = Claims::new(index.clone());
        let first = packs + 1 + night * 20;
        fill(&claims, first..first + NIGHT_ROWS.div_ceil(PACK_ROWS), 0, u64::MAX)?;
        let tidied = index.tidy(Merge::Tiers, &|| false)?;
        println!("night {night}: {} runs merged, {} segments deleted", tidied.merged, tidied.deleted);
    }
    if let Some(dir) = Place::parse(place)?.dir() {
        fs::write(dir.join("rows"), rows.to_string()).expect("the directory can be written");
    }
    Ok(())
}

/// Packs of the simulated repository; all are stored.
const SIMULATED_PACKS: u64 = 2000;

fn simulate() -> Result<()> {
    let (store, keys) = (penstock_engine::store::open(&Place::Memory, true, &Limits::default())?, keys());
    let pool = BufPool::new(1, pack_buffer_bytes(1 << 20, 1 << 18));
    let mut compressor = Compressor::new(None)?;
    let claims = Claims::new(Arc::new(Index::load(store.clone(), keys.clone())?));
    for number in 0..SIMULATED_PACKS {
        let chunks = number * PACK_ROWS..(number + 1) * PACK_ROWS;
        let (pack, rows) = stored_pack(store.as_ref(), &keys, &pool, &mut compressor, chunks)?;
        claims.add_durable(pack, rows)?;
    }
    claims.flush()?;
    Index::load(store.clone(), keys.clone())?.tidy(Merge::Rewrite, &|| false)?;
    println!(
        "streams of duplicates that jump to another place after a run of neighbours, {SIMULATED_PACKS} packs of {PACK_ROWS} chunks"
    );
    for (streams, run) in
        [(1, 1), (1, 4), (1, 16), (1, 64), (1, 256), (1, 1221), (8, 64), (8, 1221), (32, 1221)]
    {
        let index = Index::load(store.clone(), keys.clone())?;
        let before = store.requests().get;
        let rows = SIMULATED_PACKS * PACK_ROWS;
        let mut places: Vec<(u64, u64)> = vec![(0, 0); streams];
        let (mut jumps, mut lookups) = (0, 0);
        while lookups < 500_000 {
            for (at, left) in &mut places {
                if *left == 0 {
                    jumps += 1;
                    (*at, *left) = (mix(jumps) % rows, run);
                }
                assert!(index.find_to_read(&id(*at % rows))?.is_some());
                (*at, *left) = (*at + 1, *left - 1);
                lookups += 1;
            }
        }
        let reads = store.requests().get - before;
        println!(
            "{streams} stream(s), runs of {run} chunks: {:.4} reads a lookup",
            reads as f64 / lookups as f64
        );
    }
    Ok(())
}

/// A line of /proc/self/status, in MiB.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(0) / 1024
}

fn measure(place: &str, rows: u64) -> Result<()> {
    let text = fs::read_to_string(Path::new(place).join("rows")).unwrap_or_default();
    let rows = if rows > 0 { rows } else { text.parse().expect("tell how many rows there are") };
    let (store, keys) = (open(place)?, keys());
    let before = status("VmRSS");
    let began = Instant::now();
    let index = Index::load(store.clone(), keys)?;
    println!(
        "opened {} segments in {:.2} s; memory {} MiB (before: {before}), peak {} MiB",
        index.segments().len(),
        began.elapsed().as_secs_f64(),
        status("VmRSS"),
        status("VmHWM")
    );
    let stored = rows - STORED_PACKS * PACK_ROWS..rows;
    for threads in [1, 2] {
        let absent = |n: u64| (1 << 50) + n;
        let random = |n: u64| mix(n) % rows;
        let ordered = |n: u64| stored.start + n % (stored.end - stored.start);
        rate("absent ids", threads, LOOKUPS * 4, &index, absent, false);
        rate("present ids, at random", threads, LOOKUPS, &index, random, true);
        rate(
            "present ids, in the order stored",
            threads,
            STORED_PACKS * PACK_ROWS * 8,
            &index,
            ordered,
            true,
        );
        // The same few pages again and again: what a page in penstock's own cache costs.
        rate(
            "present ids, 2000 of them at random",
            threads,
            LOOKUPS,
            &index,
            |n| mix(mix(n) % 700) % rows,
            true,
        );
    }
    println!(
        "{} reads of the store; memory {} MiB, peak {} MiB",
        store.requests().get,
        status("VmRSS"),
        status("VmHWM")
    );
    Ok(())
}

fn mix(n: u64) -> u64 {
    let word = id(n ^ 0x5555_5555_0000_0000);
    u64::from_le_bytes([word[8], word[9], word[10], word[11], word[12], word[13], word[14], word[15]])
}

fn rate(
    what: &str,
    threads: u64,
    lookups: u64,
    index: &Index,
    number: impl Fn(u64) -> u64 + Sync,
    present: bool,
) {
    // Ids are made beforehand, in batches, and their making is not counted.
    const BATCH: u64 = 10_000;
    let seconds: f64 = std::thread::scope(|scope| {
        let each: Vec<_> = (0..threads)
            .map(|thread| {
                let number = &number;
                scope.spawn(move || {
                    let share = lookups / threads;
                    let mut seconds = 0.0;
                    let mut at = thread * share;
                    let end = at + share;
                    while at < end {
                        let count = BATCH.min(end - at);
                        let ids: Vec<[u8; 32]> = (at..at + count).map(|n| id(number(n))).collect();
                        let began = Instant::now();
                        let mut found = 0;
                        for id in &ids {
                            found += u64::from(
                                black_box(index.find_to_read(id)).expect("the index can be read").is_some(),
                            );
                        }
                        seconds += began.elapsed().as_secs_f64();
                        assert_eq!(found, if present { count } else { 0 });
                        at += count;
                    }
                    seconds
                })
            })
            .collect();
        each.into_iter().map(|thread| thread.join().expect("no lookup panics")).sum()
    });
    // Seconds of all threads: lookups a second of one core.
    println!(
        "{what}, {threads} thread(s): {:.2} million/s a core, {:.0} ns each",
        lookups as f64 / seconds / 1e6,
        seconds / lookups as f64 * 1e9
    );
}
