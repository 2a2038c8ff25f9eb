//! `verify` and `repair` of a repository with millions of problems.
//!
//! - `verify_scale build DIR [CHUNKS]`: a repository of one volume with CHUNKS (default 16 million) chunks of 64 KiB.
//!   Its packs and its manifest are there and sound (but for the payload of the frames, which is a few bytes); the index
//!   segments with the rows of all chunks are not: they are lost.
//! - `verify_scale verify DIR`, `verify_scale repair DIR`: what that takes. Run each as a process of its own: memory is
//!   its peak.

#![allow(clippy::expect_used)] // a bench that cannot go on stops

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use penstock_engine::compress::Compressor;
use penstock_engine::crypto::RepoKeys;
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::config::Encryption;
use penstock_engine::format::header::ObjectKind;
use penstock_engine::format::node::{Leaf, NODE_BYTES_MAX, Piece};
use penstock_engine::format::point::{Counts, RecoveryPoint, Volume};
use penstock_engine::id::{ChunkId, NodeId, PointId};
use penstock_engine::index::Claims;
use penstock_engine::io::BufPool;
use penstock_engine::limits::SEGMENT_BYTES;
use penstock_engine::manifest::{GROUP_SEGMENTS, NodeSink, TreeBuilder};
use penstock_engine::pack::{FinishedPack, PackBuilder, pack_buffer_bytes};
use penstock_engine::repair::{self, RepairOptions};
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::store::{self, Body, Limits, Place, Store};
use penstock_engine::verify::{self, VerifyOptions};
use penstock_engine::{Result, Run};

/// Bytes of a chunk, and how many are in a segment and in a pack of 32 MiB.
const CHUNK_BYTES: usize = 64 << 10;
const SEGMENT_CHUNKS: u64 = (SEGMENT_BYTES / CHUNK_BYTES) as u64;
const PACK_CHUNKS: u64 = 1221;
const PACK_BYTES: usize = 4 << 20;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("build") if args.len() > 1 => {
            let chunks = args.get(2).map_or(Ok(16_000_000), |text| text.parse())?;
            build(Path::new(&args[1]), chunks)?;
        }
        Some("verify") if args.len() > 1 => measure_verify(Path::new(&args[1]))?,
        Some("repair") if args.len() > 1 => measure_repair(Path::new(&args[1]))?,
        _ => return Err("usage: verify_scale build DIR [CHUNKS] | verify DIR | repair DIR".into()),
    }
    Ok(())
}

fn key() -> Result<AccessKey> {
    AccessKey::key_file(vec![7; 40])
}

fn open(dir: &Path) -> Result<Repository> {
    Repository::open(store::open(&Place::Dir(dir.to_owned()), false, &Limits::default())?, &key()?)
}

/// The id of chunk `n`: uniform, like a hash.
fn id(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

/// Fills packs of one kind.
struct Packs<'a> {
    store: &'a dyn Store,
    keys: &'a RepoKeys,
    kind: ObjectKind,
    pool: BufPool,
    open: Option<PackBuilder>,
    compressor: Compressor,
}

impl<'a> Packs<'a> {
    fn new(repo: &'a Repository, kind: ObjectKind) -> Result<Self> {
        Ok(Self {
            store: repo.store().as_ref(),
            keys: repo.keys(),
            kind,
            pool: BufPool::new(1, pack_buffer_bytes(PACK_BYTES, NODE_BYTES_MAX.max(CHUNK_BYTES))),
            open: None,
            compressor: Compressor::new(None)?,
        })
    }

    fn open(&mut self) -> Result<(&mut PackBuilder, &mut Compressor)> {
        if self.open.is_none() {
            let buf = self.pool.get_blocking().expect("nobody else takes one");
            self.open = Some(PackBuilder::start(self.keys, self.kind, buf, PACK_BYTES)?);
        }
        Ok((self.open.as_mut().expect("made just now"), &mut self.compressor))
    }

    /// Stores the open pack.
    fn close(&mut self, claims: Option<&Claims>) -> Result<()> {
        let Some(builder) = self.open.take() else { return Ok(()) };
        let FinishedPack { pack, rows, buf, len } = builder.finish();
        self.store.put_new(&pack.kind.key(&pack.id.to_string()), Body::Bytes(&buf[..len]))?;
        claims.map_or(Ok(()), |claims| claims.add_durable(pack, rows))
    }
}

/// Puts nodes into metadata packs, and their rows into the index.
struct Nodes<'a> {
    packs: Packs<'a>,
    claims: &'a Claims,
}

impl NodeSink for Nodes<'_> {
    fn put(&mut self, node: &[u8]) -> Result<NodeId> {
        let id = self.packs.keys.node_id(node);
        let (builder, compressor) = self.packs.open()?;
        builder.add(id.as_bytes(), node, compressor);
        if builder.is_full() {
            self.packs.close(Some(self.claims))?;
        }
        Ok(id)
    }
}

fn build(dir: &Path, chunks: u64) -> Result<()> {
    let began = Instant::now();
    let options = InitOptions { encryption: Encryption::Aes256Gcm, ..InitOptions::default() };
    let repo = Repository::init(
        store::open(&Place::Dir(dir.to_owned()), true, &Limits::default())?,
        &options,
        &key()?,
    )?;
    let mut data = Packs::new(&repo, ObjectKind::Data)?;
    for n in 0..chunks {
        // As it would be stored raw, but for its length: nobody opens it.
        data.open()?.0.add_encoded(&id(n), &[0, 1, 2, 3], CHUNK_BYTES as u32);
        if (n + 1) % PACK_CHUNKS == 0 {
            data.close(None)?;
        }
    }
    data.close(None)?;
    println!(
        "{chunks} chunks in {} packs: {:.1} s",
        chunks.div_ceil(PACK_CHUNKS),
        began.elapsed().as_secs_f64()
    );
    let claims = Claims::new(repo.index()?);
    let mut nodes = Nodes { packs: Packs::new(&repo, ObjectKind::Meta)?, claims: &claims };
    let mut tree = TreeBuilder::default();
    let segments = chunks.div_ceil(SEGMENT_CHUNKS);
    for group in 0..segments.div_ceil(GROUP_SEGMENTS) {
        let end = ((group + 1) * GROUP_SEGMENTS).min(segments);
        let mut leaves = Vec::new();
        for segment in group * GROUP_SEGMENTS..end {
            let mut leaf = Leaf::default();
            for n in segment * SEGMENT_CHUNKS..((segment + 1) * SEGMENT_CHUNKS).min(chunks) {
                leaf.push(Piece { len: CHUNK_BYTES as u32, chunk: Some(ChunkId::new(id(n))) });
            }
            let mut bytes = Vec::new();
            leaf.encode_into(&mut bytes);
            leaves.push(Some(nodes.put(&bytes)?));
        }
        tree.set_leaves(group, &leaves, &mut nodes)?;
    }
    let size_bytes = chunks * CHUNK_BYTES as u64;
    let root = tree.finish(size_bytes, &mut nodes)?;
    nodes.packs.close(Some(&claims))?;
    claims.flush()?;
    let now = "2026-01-01T00:00:00Z".to_owned();
    let volume = Volume {
        name: "disk".into(),
        source: "/dev/disk".into(),
        source_kind: "device".into(),
        size_bytes,
        logical_block_bytes: 512,
        root,
        counts: Counts::default(),
        other: BTreeMap::new(),
    };
    let point = RecoveryPoint {
        id: PointId::at(1_767_225_600_000)?.to_string(),
        name: "scale".into(),
        started_at: now.clone(),
        finished_at: now,
        parent: None,
        tags: BTreeMap::new(),
        host: "bench".into(),
        program: "verify_scale".into(),
        volumes: vec![volume],
        other: BTreeMap::new(),
    };
    repo.publish(&point)?;
    println!("the repository is there: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn measure_verify(dir: &Path) -> Result<()> {
    let (repo, began) = (open(dir)?, Instant::now());
    let options = VerifyOptions { workers: 2, ..VerifyOptions::default() };
    let report = verify::run(&repo, &options, &Arc::new(Run::new()))?;
    let seconds = began.elapsed().as_secs_f64();
    let ranges: u64 = report.hurt.iter().map(|hurt| hurt.range_count).sum();
    println!(
        "verify: {seconds:.1} s, peak memory {} MiB; {} chunks, {} problems, {} listed; hurt: {} bytes in {ranges} ranges",
        peak_mib(),
        report.chunks,
        report.problem_count,
        report.problems.len(),
        report.hurt.iter().map(|hurt| hurt.bytes).sum::<u64>(),
    );
    Ok(())
}

fn measure_repair(dir: &Path) -> Result<()> {
    let (repo, began) = (open(dir)?, Instant::now());
    let options = RepairOptions { workers: 2, ..RepairOptions::default() };
    let report = repair::run(&repo, &options, &Arc::new(Run::new()))?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "repair: {seconds:.1} s, peak memory {} MiB; {} packs, {} rows written",
        peak_mib(),
        report.packs,
        report.new_rows
    );
    Ok(())
}

fn peak_mib() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(0) / 1024
}
