//! Runs every target for some seconds on mutated valid inputs and on random bytes, with a fixed seed: `smoke [SECONDS]`.

use std::time::{Duration, Instant};

use penstock_engine::format::header::{Cipher, Header, ObjectKind, Trailer};
use penstock_engine::format::index_segment::{PackRef, Tail, build_filter, fence_key};
use penstock_engine::format::node::{Leaf, Piece, encode_inner};
use penstock_engine::format::pack::{TocRow, encode_toc};
use penstock_engine::format::plain;
use penstock_engine::id::{ChunkId, NodeId, ObjectId};
use penstock_fuzz::TARGETS;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let header = Header {
        kind: ObjectKind::Data,
        cipher: Cipher::Aes256Gcm,
        id: [1; 16],
        salt: [2; 24],
        commitment: [3; 32],
    };
    let trailer = Trailer { tail_offset: 96, tail_stored_bytes: 60, count: 1 };
    let config = br#"{"repository_id":"00000000000000000000000000000000","created_at":"","created_by":"","encryption":"none","chunker":"block","chunk_bytes":65536,"pack_bytes":33554432,"compression":"auto"}"#;
    let slot = br#"{"key_id":"00","created_at":"","label":"","kdf":{"kind":"argon2id","memory_kib":64,"iterations":1,"parallelism":1,"salt":"0000000000000000"},"nonce":"000000000000000000000000","wrapped":"00"}"#;
    let point = br#"{"id":"00000000000000000000000000000000","name":"n","started_at":"","finished_at":"","parent":null,"tags":{"a":"b"},"host":"h","program":"p","volumes":[{"name":"v","source":"s","source_kind":"image","size_bytes":5,"logical_block_bytes":512,"root":{"level":0,"node":null},"counts":{"read_bytes":0,"zero_bytes":0,"reused_bytes":0,"chunks":0,"new_chunks":0,"new_bytes":0,"stored_bytes":0}}]}"#;
    let rows = [TocRow { id: [1; 32], offset: 96, stored_bytes: 100, raw_bytes: 4096 }];
    let ids: Vec<[u8; 32]> = (0..90u8).map(|n| [n; 32]).collect();
    let tail = Tail {
        entries: 90,
        packs: vec![PackRef {
            id: ObjectId::new([1; 16]),
            salt: [2; 24],
            bytes: 1000,
            kind: ObjectKind::Data,
        }],
        superseded: vec![ObjectId::new([5; 16])],
        fences: vec![fence_key(&ids[0]), fence_key(&ids[85])],
        filter: build_filter(ids.iter().copied()),
    };
    let mut leaf = Leaf::default();
    for n in 1..9u8 {
        leaf.push(Piece { len: 4096 * u32::from(n), chunk: (n % 3 > 0).then(|| ChunkId::new([n; 32])) });
    }
    let mut leaf_bytes = Vec::new();
    leaf.encode_into(&mut leaf_bytes);
    let children: Vec<_> = (0..5u8).map(|n| (n % 2 == 0).then(|| NodeId::new([n; 32]))).collect();
    vec![
        header.encode().to_vec(),
        trailer.encode(&[0; 16]).to_vec(),
        plain::encode(ObjectKind::Config, config, &[0; 32]),
        config.to_vec(),
        slot.to_vec(),
        point.to_vec(),
        encode_toc(&rows),
        tail.encode(),
        leaf_bytes,
        encode_inner(2, &children),
        [&[0u8][..], &[9; 100]].concat(),
        [&[1u8, 0x28, 0xb5, 0x2f, 0xfd][..], &[0; 40]].concat(),
        b"{\"offset\": 0, \"length\": 4096}\n{\"offset\": 8192, \"length\": 1}\n".to_vec(),
    ]
}

fn mutate(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..rng.below(6) {
        let at = rng.below(data.len());
        match rng.below(6) {
            0 if !data.is_empty() => data[at] ^= 1 << rng.below(8),
            1 if !data.is_empty() => data[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
            2 => data.truncate(at),
            3 => data.insert(at.min(data.len()), rng.below(256) as u8),
            4 if data.len() >= 8 => {
                let at = rng.below(data.len() - 7);
                data[at..at + 8].copy_from_slice(&(u64::MAX >> rng.below(64)).to_le_bytes());
            }
            _ => data.extend((0..rng.below(64)).map(|_| rng.below(256) as u8).collect::<Vec<_>>()),
        }
    }
    data
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(20);
    let seeds = seeds();
    let mut rng = Rng(0x5eed_5eed_5eed_5eed);
    for (name, target) in TARGETS {
        let until = Instant::now() + Duration::from_secs(seconds) / TARGETS.len() as u32;
        let mut inputs = 0u64;
        seeds.iter().for_each(|seed| target(seed));
        while Instant::now() < until {
            let data = if rng.below(5) == 0 {
                (0..rng.below(300)).map(|_| rng.below(256) as u8).collect()
            } else {
                let which = rng.below(seeds.len());
                mutate(&seeds[which], &mut rng)
            };
            // If it panics, the input is on standard error by then.
            let shown = std::panic::catch_unwind(|| target(&data));
            if shown.is_err() {
                eprintln!("{name} failed on {data:02x?}");
                std::process::exit(1);
            }
            inputs += 1;
        }
        println!("{name}: {inputs} inputs");
    }
}
