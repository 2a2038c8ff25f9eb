//! Valid inputs for every body, made by the encoders: what mutation starts from.

use penstock_engine::compress::Compressor;
use penstock_engine::format::config::{Config, Encryption, Kdf, KeySlot};
use penstock_engine::format::header::{Cipher, Header, ObjectKind, Trailer};
use penstock_engine::format::index_segment::{
    PAGE_BYTES, PAGE_ROWS, PackRef, Row, Tail, build_filter_of, encode_page, fence_key, filter_key,
};
use penstock_engine::format::node::{Leaf, NodeRef, Piece, encode_inner};
use penstock_engine::format::pack::{TocRow, encode_toc};
use penstock_engine::format::plain;
use penstock_engine::id::{ChunkId, NodeId, ObjectId};
use penstock_engine::limits::SEGMENT_BYTES;

/// Valid inputs for the body of this name; none for a name that is not there.
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "header" => [ObjectKind::Data, ObjectKind::Meta, ObjectKind::Index, ObjectKind::Point]
            .into_iter()
            .flat_map(|kind| [Cipher::Aes256Gcm, Cipher::None].map(|cipher| header(kind, cipher)))
            .collect(),
        "trailer" => trailers(),
        "plain" => vec![
            plain::encode(ObjectKind::Config, &config("block"), &[3; 32]),
            plain::encode(ObjectKind::Key, &key_slot(Kdf::KeyFile), &[3; 32]),
            plain::encode(ObjectKind::Config, b"", &[3; 32]),
        ],
        "config" => vec![config("block"), config("fastcdc")],
        "key_slot" => {
            let salt = "5a".repeat(16);
            let argon2id = Kdf::Argon2id { memory_kib: 65_536, iterations: 3, parallelism: 4, salt };
            vec![key_slot(argon2id), key_slot(Kdf::KeyFile), key_slot(Kdf::None)]
        }
        "pack_toc" => [0, 1, 3, 40].map(pack_toc).into(),
        "index_tail" => [1, 2, 85, 86, 700].map(index_tail).into(),
        "index_filter" => [(2, 1, 12), (3, 2, 32), (0, 5, 7)].map(filter).into(),
        "index_page" => [0, 1, 2, 84, 85].map(index_page).into(),
        "node_leaf" => leaves(),
        "node_inner" => [(1, 1), (1, 3), (2, 256), (5, 17)].map(|(level, count)| inner(level, count)).into(),
        "point" => vec![point(&[]), point(&[1]), point(&[4096, 8 << 30, 5 << 40])],
        "decompress" => frames(),
        "extents" => extents(),
        "lease" | "gc_record" => records(),
        "packed_record" => records().iter().map(|json| packed(json)).collect(),
        "sealed_object" => vec![Vec::new(), records().remove(0), vec![0; 300]],
        "pack" => {
            vec![vec![0; 4], [&200u32.to_le_bytes()[..], &[7; 300]].concat(), pack_toc(3)[8..].to_vec()]
        }
        "backup_journal" => backup_journals(),
        "restore_journal" => restore_journals(),
        "cache_entry" => [0usize, 5, 70_000].map(cache_entry).into(),
        "text" => TEXTS.map(|text| text.as_bytes().to_vec()).into(),
        "mount_tables" => vec![MOUNTS.into(), b"12:3".to_vec()],
        "ec2_answer" => vec![ANSWER.into(), b"<a/>".to_vec()],
        "qcow2" => [(9, 2), (9, 3), (12, 3), (16, 3)].map(|(bits, version)| qcow2(bits, version)).into(),
        _ => Vec::new(),
    }
}

fn id(n: usize) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

fn header(kind: ObjectKind, cipher: Cipher) -> Vec<u8> {
    Header { kind, cipher, id: [7; 16], salt: [8; 24], commitment: [9; 32] }.encode().into()
}

fn trailers() -> Vec<Vec<u8>> {
    let trailer = Trailer { tail_offset: 1000, tail_stored_bytes: 60, count: 1 }.encode(&[7; 16]);
    let huge = Trailer { tail_offset: 1 << 40, tail_stored_bytes: u32::MAX, count: u32::MAX };
    vec![
        trailer.into(),
        [&trailer[..], &1092u64.to_le_bytes()].concat(),
        huge.encode(&[7; 16]).into(),
        [&trailer[..], &u64::MAX.to_le_bytes()].concat(),
    ]
}

fn config(chunker: &str) -> Vec<u8> {
    let config = Config {
        repository_id: "0a".repeat(16),
        created_at: "2026-11-24T00:00:00Z".into(),
        created_by: "penstock 0.1.0".into(),
        encryption: Encryption::Aes256Gcm,
        chunker: chunker.into(),
        chunk_bytes: 65_536,
        pack_bytes: 32 << 20,
        compression: "auto".into(),
    };
    serde_json::to_vec(&config).expect("a configuration can be written")
}

fn key_slot(kdf: Kdf) -> Vec<u8> {
    let slot = KeySlot {
        key_id: "0b".repeat(16),
        created_at: "2026-11-24T00:00:00Z".into(),
        label: "first".into(),
        kdf,
        nonce: "0c".repeat(12),
        wrapped: "0d".repeat(48),
    };
    serde_json::to_vec(&slot).expect("a key slot can be written")
}

fn pack_toc(rows: usize) -> Vec<u8> {
    let mut offset = 96;
    let rows: Vec<TocRow> = (0..rows)
        .map(|n| {
            let row = TocRow { id: id(n), offset, stored_bytes: 17 + 100 * n as u32, raw_bytes: 65_536 };
            offset += row.stored_bytes;
            row
        })
        .collect();
    [&u64::from(offset).to_le_bytes()[..], &encode_toc(&rows)].concat()
}

fn index_rows(count: usize) -> Vec<Row> {
    let row = |n| Row { id: id(n), pack_no: n as u32 % 3, offset: 96, stored_bytes: 100, raw_bytes: 4096 };
    let mut rows: Vec<Row> = (0..count).map(row).collect();
    rows.sort_by_key(|row| row.id);
    rows
}

fn index_tail(count: usize) -> Vec<u8> {
    let rows = index_rows(count);
    let pack = |n: u8, kind| PackRef { id: ObjectId::new([n; 16]), salt: [n; 24], bytes: 1 << 20, kind };
    let tail = Tail {
        entries: count as u64,
        packs: vec![pack(1, ObjectKind::Data), pack(2, ObjectKind::Meta)],
        superseded: vec![ObjectId::new([9; 16])],
        fences: rows.chunks(PAGE_ROWS).map(|page| fence_key(&page[0].id)).collect(),
        filter: build_filter_of(&rows.iter().map(|row| filter_key(&row.id)).collect::<Vec<_>>()),
    };
    [&(tail.fences.len() as u16).to_le_bytes()[..], &tail.encode()].concat()
}

fn filter((log_length, segments, fingerprints): (u8, u8, usize)) -> Vec<u8> {
    [&[1, 2, 3, 4, 5, 6, 7, 8, log_length, segments], &vec![7; fingerprints][..]].concat()
}

fn index_page(count: usize) -> Vec<u8> {
    let mut page = [0; PAGE_BYTES];
    encode_page(&index_rows(count), &mut page);
    [&[count as u8], &page[..]].concat()
}

fn leaves() -> Vec<Vec<u8>> {
    let chunk = |n| Some(ChunkId::new(id(n)));
    let lists: [&[(u32, Option<ChunkId>)]; 4] = [
        &[(4096, chunk(1))],
        &[(1, chunk(1)), (4095, None), (70_000, chunk(2))],
        &[(SEGMENT_BYTES as u32 - 4096, None), (4096, chunk(1))],
        &[(65_536, chunk(0)), (65_536, chunk(1)), (65_536, None), (65_536, chunk(2)), (12_345, chunk(3))],
    ];
    lists
        .map(|list| {
            let pieces = list.iter().map(|&(len, chunk)| Piece { len, chunk }).collect();
            let mut out = Vec::new();
            Leaf { pieces }.encode_into(&mut out);
            out
        })
        .into()
}

fn inner(level: u8, count: usize) -> Vec<u8> {
    let children: Vec<NodeRef> =
        (0..count).map(|n| (!n.is_multiple_of(3) || n == 0).then(|| NodeId::new(id(n)))).collect();
    encode_inner(level, &children)
}

fn point(sizes: &[u64]) -> Vec<u8> {
    let volumes: Vec<_> = sizes
        .iter()
        .map(|&size_bytes| {
            let level = penstock_engine::format::point::root_level(size_bytes);
            serde_json::json!({
                "name": format!("v{size_bytes}"), "source": "/dev/vda", "source_kind": "device",
                "size_bytes": size_bytes, "logical_block_bytes": 512,
                "root": {"level": level, "node": (level > 0).then(|| "0e".repeat(32))},
                "counts": {"read_bytes": 1, "zero_bytes": 2, "reused_bytes": 3, "chunks": 4, "new_chunks": 5,
                           "new_bytes": 6, "stored_bytes": 7},
                "filesystem": {"kind": "ext4", "clean": true},
            })
        })
        .collect();
    let point = serde_json::json!({
        "id": "0f".repeat(16), "name": "web-01", "started_at": "2026-11-24T00:00:00Z",
        "finished_at": "2026-11-24T00:01:00Z", "parent": null, "tags": {"env": "prod"}, "host": "h",
        "program": "penstock 0.1.0", "volumes": volumes, "instance": {"type": "m7i.large", "cores": [1, 2.5]},
    });
    point.to_string().into_bytes()
}

fn frames() -> Vec<Vec<u8>> {
    let text = b"the quick brown fox jumps over the lazy dog. ".repeat(200);
    let zeros = vec![0; 100_000];
    let raws: [(&[u8], Option<i32>); 5] = [
        (&text, Some(1)),
        (&text, Some(9)),
        (&zeros, Some(1)),
        (b"raw bytes", None),
        (&text[..100], Some(1)),
    ];
    raws.map(|(raw, level)| {
        let mut out = vec![0; raw.len()];
        let (codec, bytes) = Compressor::new(level).expect("zstd").compress(raw, &mut out);
        [&(raw.len() as u32).to_le_bytes()[..3], &[codec as u8], &out[..bytes]].concat()
    })
    .into()
}

fn extents() -> Vec<Vec<u8>> {
    let lines = [
        "{\"offset\": 900, \"length\": 900}\n\n{\"length\":10,\"offset\":20,\"type\":\"x\"}\n{\"offset\":30,\"length\":5}\r\n",
        "{\"offset\":0,\"length\":18446744073709551615}\n{\"offset\":7,\"length\":0}",
        "",
    ];
    lines.map(|text| [&(1u64 << 40).to_le_bytes()[..], text.as_bytes()].concat()).into()
}

/// A lease and the three stages of a round.
fn records() -> Vec<Vec<u8>> {
    let (id, pack) = ("0a".repeat(16), "0b".repeat(16));
    let values = [
        serde_json::json!({"id": id, "purpose": "backup", "host": "h", "renewed_ms": 1, "boot": "b",
            "pid": 7, "process_start": 9}),
        serde_json::json!({"id": id, "packs": [format!("d{pack}"), format!("m{pack}")],
            "candidates": [format!("d{id}")], "knows": [id], "points": [pack]}),
        serde_json::json!({"id": id, "writers": ["0c".repeat(14)]}),
        serde_json::json!({"id": id, "decided_ms": 3, "packs": [format!("m{pack}")]}),
    ];
    values.iter().map(|value| value.to_string().into_bytes()).collect()
}

/// As records are stored: one zstd frame.
fn packed(json: &[u8]) -> Vec<u8> {
    let mut out = vec![0; json.len()];
    let (_, bytes) = Compressor::new(Some(3)).expect("zstd").compress(json, &mut out);
    out.truncate(bytes);
    out
}

fn backup_journals() -> Vec<Vec<u8>> {
    let head = serde_json::json!({"version": 1, "repository_id": "0a".repeat(16), "name": "web", "volumes":
        [{"name": "vda", "size_bytes": 1 << 30, "identity": "x"}]});
    let record = |kind: u8, has: u8, segment: u64| {
        let mut record = [[kind, has, 0, 0].as_slice(), &segment.to_le_bytes(), &id(3)].concat();
        record.extend_from_slice(&blake3::hash(&record).as_bytes()[..4]);
        record
    };
    let records = [record(b'P', 1, 0), record(b'P', 2, 0), record(b'S', 1, 5), record(b'S', 0, 6)].concat();
    vec![records.clone(), [head.to_string().as_bytes(), b"\n", &records].concat()]
}

fn restore_journals() -> Vec<Vec<u8>> {
    let head = serde_json::json!({"repository_id": "0a".repeat(16), "point": "0b".repeat(16), "volume": "vda",
        "base": null, "compare": false, "fresh": true});
    let record = |segment: u64| {
        let number = segment.to_le_bytes();
        [&number[..], &blake3::hash(&number).as_bytes()[..4]].concat()
    };
    let whole = [head.to_string().as_bytes(), b"\n", &record(0), &record(1), &record(9)].concat();
    vec![whole[..whole.len() - 5].to_vec(), whole]
}

fn cache_entry(object_bytes: usize) -> Vec<u8> {
    let pieces = object_bytes.div_ceil(64 << 10);
    let object = vec![3; object_bytes];
    let sum = |bytes: &[u8]| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        hasher.finalize().as_bytes()[..16].to_vec()
    };
    let mut entry = [&b"pnstckC1"[..], &(object_bytes as u64).to_le_bytes()].concat();
    (0..pieces).for_each(|n| entry.extend(sum(&object[n << 16..object_bytes.min((n + 1) << 16)])));
    entry.extend_from_slice(&[0; 16]); // the body puts the sum of the head right
    entry.extend_from_slice(&object);
    entry
}

const TEXTS: [&str; 14] = [
    "4096",
    "1.5 GiB",
    "64KiB",
    "16383PiB",
    "64MB",
    "5%",
    "0.05",
    "14d",
    "1y 6mo",
    "auto:-3..9",
    "off",
    "s3://bucket/a/b",
    "az://container",
    "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
];

const MOUNTS: &str = "27 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw,discard\n\
30 27 0:44 /sub /mnt/my\\040disk rw - btrfs /dev/sdb:/dev/sdc rw\n\0Filename\tType\n/dev/sdd partition 8 0 -2\n";

const ANSWER: &str =
    "<?xml version=\"1.0\"?><R xmlns=\"u\"><set><item><a>1 &lt; &#50;</a><b/></item></set></R>";

/// An image of 64 clusters: one of data, one of zeros, one compressed (a stored block of deflate), the rest not there.
fn qcow2(cluster_bits: u32, version: u32) -> Vec<u8> {
    let cluster = 1usize << cluster_bits;
    let mut image = vec![0; 5 * cluster];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &cluster_bits.to_be_bytes());
    put(24, &(64 * cluster as u64).to_be_bytes());
    put(36, &64u32.to_be_bytes());
    put(40, &(cluster as u64).to_be_bytes());
    if version == 3 {
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
    }
    let (l2, data) = (2 * cluster, 3 * cluster);
    put(cluster, &(l2 as u64 | 1 << 63).to_be_bytes());
    put(l2, &(data as u64 | 1 << 63).to_be_bytes());
    put(l2 + 8, &1u64.to_be_bytes());
    put(l2 + 16, &(1u64 << 62 | (data + 512) as u64).to_be_bytes());
    put(data, &[7; 300]);
    let len = (cluster as u32).min(65_535) as u16;
    put(data + 512, &[&[1][..], &len.to_le_bytes(), &(!len).to_le_bytes()].concat());
    image
}
