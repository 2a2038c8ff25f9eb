//! Cost of each step of the data path on one core: `cargo bench -p penstock-benches`. The order is that of the data: read, zero scan, hash, cut,
//! lookup, compress, seal, pack write; decode, check, restore write. Data is synthetic: text-like (compresses about 4:1), random, and zeros.
//! Files are in PENSTOCK_BENCH_DIR, or in memory (`/dev/shm`): what is measured is the path to the device, not a device.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use penstock_benches::workload::{Fill, Rng, make};
use penstock_benches::{backup_cost, restore_cost, sample};
use penstock_engine::chunker::{ChunkKeys, ChunkParams, Chunker, ChunkerKind, is_zero};
use penstock_engine::compress::{Compressor, Decompressor};
use penstock_engine::crypto::{ObjectKey, RepoKeys};
use penstock_engine::format::header::{Cipher, ObjectKind};
use penstock_engine::format::index_segment::PackRef;
use penstock_engine::format::node::{Leaf, Piece};
use penstock_engine::format::pack::TocRow;
use penstock_engine::id::{ChunkId, ObjectId};
use penstock_engine::index::{Claims, Index};
use penstock_engine::io::{BufPool, IoEngineChoice, choose};
use penstock_engine::store::{Body, Limits, MemoryStore, Place};
use zeroize::Zeroizing;

const SEGMENT: usize = 4 << 20;
const CHUNK: usize = 64 << 10;

fn random(len: usize) -> Vec<u8> {
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    (0..len / 8).flat_map(|_| rng.draw().to_le_bytes()).collect()
}

fn text(len: usize) -> Vec<u8> {
    let words =
        ["kernel: ", "Started Session ", "of user root.\n", "GET /index.html ", "INSERT INTO t VALUES ("];
    let mut rng = Rng(7);
    let mut out = Vec::with_capacity(len + 32);
    while out.len() < len {
        out.extend_from_slice(words[(rng.draw() % 5) as usize].as_bytes());
        out.extend_from_slice(format!("{}", rng.draw() % 100_000).as_bytes());
    }
    out.truncate(len);
    out
}

fn chunker(kind: ChunkerKind) -> Chunker {
    let keys = ChunkKeys { block_key: [1; 32], chunk_key: [2; 32], cut_seed: 3 };
    Chunker::new(ChunkParams::new(kind, CHUNK as u32).unwrap(), &keys)
}

fn chunking(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment");
    group.throughput(Throughput::Bytes(SEGMENT as u64));
    let zeros = vec![0u8; SEGMENT];
    group.bench_function("zero_scan", |b| b.iter(|| is_zero(black_box(&zeros))));
    let data = random(SEGMENT);
    let mut block_chunker = chunker(ChunkerKind::Block);
    group.bench_function("hash", |b| b.iter(|| block_chunker.chunk_id(black_box(&data))));
    for (name, data) in [("text", text(SEGMENT)), ("random", data), ("zeros", zeros)] {
        for kind in [ChunkerKind::Block, ChunkerKind::FastCdc] {
            let mut chunker = chunker(kind);
            group.bench_function(format!("cut_{}_{name}", kind.name()), |b| {
                b.iter(|| {
                    chunker.for_each(black_box(&data), 0, |piece| {
                        black_box(piece);
                        Ok::<(), ()>(())
                    })
                })
            });
        }
    }
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunk_64KiB");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    let mut compressor = Compressor::new(Some(1)).unwrap();
    let mut out = vec![0; CHUNK + 64];
    for (name, data) in [("text", text(CHUNK)), ("random", random(CHUNK))] {
        group.bench_function(format!("compress_zstd1_{name}"), |b| {
            b.iter(|| compressor.compress(black_box(&data), &mut out))
        });
    }
    let data = text(CHUNK);
    let (codec, len) = compressor.compress(&data, &mut out);
    let frame = [&[codec as u8], &out[..len]].concat();
    let mut decompressor = Decompressor::new().unwrap();
    let mut raw = vec![0; CHUNK];
    group.bench_function("decompress_text", |b| {
        b.iter(|| decompressor.decompress(black_box(&frame), &mut raw).unwrap())
    });
    let key = ObjectKey::new(Cipher::Aes256Gcm, ObjectKind::Data, [1; 16], &[2; 32]);
    let mut region = vec![7; CHUNK + 16];
    group.bench_function("seal", |b| b.iter(|| key.seal(96, &[3; 32], black_box(&mut region))));
    key.seal(96, &[3; 32], &mut region);
    group
        .bench_function("open", |b| b.iter(|| key.open(96, &[3; 32], black_box(&region), &mut raw).unwrap()));
    group.finish();
}

fn index(c: &mut Criterion) {
    const ROWS: u64 = 1 << 20;
    let keys = Arc::new(RepoKeys::derive(&Zeroizing::new([1; 32]), Cipher::Aes256Gcm));
    let shared = Arc::new(Index::load(Arc::new(MemoryStore::default()), keys).unwrap());
    let id = |n: u64| {
        let mut rng = Rng(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut id = [0u8; 32];
        id.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.draw().to_le_bytes()));
        id
    };
    let claims = Claims::new(shared.clone());
    let pack =
        PackRef { id: ObjectId::new([1; 16]), salt: [0; 24], bytes: 200 << 20, kind: ObjectKind::Data };
    let rows =
        (0..ROWS).map(|n| TocRow { id: id(n), offset: 96, stored_bytes: 100, raw_bytes: 65_536 }).collect();
    claims.add_durable(pack, rows).unwrap();
    claims.flush().unwrap();
    let mut group = c.benchmark_group("index_1Mi_rows");
    group.throughput(Throughput::Elements(1));
    let mut rng = Rng(5);
    group.bench_function("find_present", |b| {
        b.iter_batched(
            || id(rng.draw() % ROWS),
            |id| assert!(shared.find_to_read(&id).unwrap().is_some()),
            BatchSize::SmallInput,
        )
    });
    group.bench_function("find_absent", |b| {
        b.iter_batched(
            || id(ROWS + rng.draw() % ROWS),
            |id| assert!(shared.find_to_read(&id).unwrap().is_none()),
            BatchSize::SmallInput,
        )
    });
    let mut fresh = 10 * ROWS;
    group.bench_function("reserve_new", |b| {
        b.iter_batched(
            || {
                fresh += 1;
                id(fresh)
            },
            |id| claims.reserve(&id).unwrap(),
            BatchSize::SmallInput,
        )
    });
    group.finish();
}

fn nodes(c: &mut Criterion) {
    let mut leaf = Leaf::default();
    for n in 0..64u8 {
        leaf.push(Piece { len: CHUNK as u32, chunk: Some(ChunkId::new([n; 32])) });
    }
    let mut bytes = Vec::new();
    leaf.encode_into(&mut bytes);
    let mut group = c.benchmark_group("leaf");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |b| {
        b.iter(|| {
            let mut out = Vec::with_capacity(bytes.len());
            leaf.encode_into(&mut out);
            out
        })
    });
    group.bench_function("decode", |b| b.iter(|| Leaf::decode("bench", black_box(&bytes), SEGMENT).unwrap()));
    group.finish();
}

fn devices(c: &mut Criterion) {
    const VOLUME: u64 = 256 << 20;
    const PACK: usize = 32 << 20;
    let parent = std::env::var("PENSTOCK_BENCH_DIR").unwrap_or_else(|_| "/dev/shm".into());
    let dir = tempfile::tempdir_in(parent).unwrap();
    let volume = dir.path().join("volume");
    make(&volume, Fill::Random, VOLUME).unwrap();
    let offsets = sample::data_segments(&volume).unwrap();
    let mut group = c.benchmark_group("device");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(VOLUME));
    group.bench_function("read", |b| b.iter(|| backup_cost::read_volume(&volume, &offsets).unwrap()));
    group
        .bench_function("restore_write", |b| b.iter(|| restore_cost::write_volume(&volume, VOLUME).unwrap()));

    let store =
        penstock_engine::store::open(&Place::Dir(dir.path().join("repo")), true, &Limits::default()).unwrap();
    store.set_io_engine(choose(IoEngineChoice::Auto).unwrap().0);
    let pool = BufPool::new(1, PACK);
    group.throughput(Throughput::Bytes(PACK as u64));
    group.bench_function("pack_write", |b| {
        b.iter(|| {
            let key = ObjectKind::Data.key(&ObjectId::random().unwrap().to_string());
            let buf = pool.get_blocking().unwrap();
            store.put_new(&key, Body::Pooled { buf, len: PACK }).unwrap();
            store.delete(&key).unwrap(); // or memory runs out
        })
    });
    group.finish();
}

criterion_group!(steps, chunking, frames, index, nodes, devices);
criterion_main!(steps);
