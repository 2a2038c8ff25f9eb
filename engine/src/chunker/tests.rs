//! What both chunkers promise, held against a slow chunker that is written down from the definitions.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

pub(super) static KEYS: ChunkKeys = ChunkKeys { block_key: [1; 32], chunk_key: [2; 32], cut_seed: 3 };

/// Reproducible noise (splitmix64).
pub(super) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// Small chunks, so that small inputs have many, but with every rule in use.
const TARGET: u32 = 32 << 10;

fn params(kind: ChunkerKind) -> ChunkParams {
    ChunkParams::new(kind, TARGET).unwrap()
}

fn pieces_of<'a>(chunker: &mut Chunker, data: &'a [u8], start: usize) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let done = chunker.for_each(data, start as u32, |piece| {
        pieces.push(piece);
        Ok::<(), ()>(())
    });
    done.unwrap();
    pieces
}

fn cut(kind: ChunkerKind, data: &[u8]) -> Vec<Piece<'_>> {
    pieces_of(&mut Chunker::new(params(kind), &KEYS), data, 0)
}

/// A segment with zero runs, nearly zero blocks, noise and repetition, and a tail of any length.
fn segment() -> impl Strategy<Value = Vec<u8>> {
    let stretch = (0..5u8, 1..40usize, any::<u64>());
    let tail = prop_oneof![Just(0), 1..BLOCK_BYTES];
    (prop::collection::vec(stretch, 0..8), tail, any::<bool>()).prop_map(|(stretches, tail, zero_tail)| {
        let mut data = Vec::new();
        for (what, blocks, seed) in stretches {
            let len = blocks * BLOCK_BYTES;
            match what {
                0 | 1 => data.resize(data.len() + len, 0),
                2 => data.extend(random(seed % 4, BLOCK_BYTES).repeat(blocks)),
                3 => {
                    let from = data.len();
                    data.resize(from + len, 0);
                    (from..from + len).step_by(BLOCK_BYTES).for_each(|at| data[at + 4095] = 1);
                }
                _ => data.extend(random(seed, len)),
            }
        }
        data.extend(if zero_tail { vec![0; tail] } else { random(tail as u64, tail) });
        data
    })
}

/// Lengths of the chunks of a run of non-zero blocks, by the definition of each chunker.
fn expected_cuts(kind: ChunkerKind, run: &[u8]) -> Vec<usize> {
    let target = TARGET as usize;
    if kind == ChunkerKind::FastCdc {
        let level = fastcdc::v2020::Normalization::Level1;
        let cdc = fastcdc::v2020::FastCDC::with_level_and_seed(
            run,
            target / 4,
            target,
            target * 4,
            level,
            KEYS.cut_seed,
        );
        return cdc.map(|chunk| chunk.length).collect();
    }
    let (mut cuts, mut len) = (Vec::new(), 0);
    for block in run.chunks(BLOCK_BYTES) {
        len += block.len();
        let hash = blake3::keyed_hash(&KEYS.block_key, block);
        let value = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap());
        let blocks = len.div_ceil(BLOCK_BYTES);
        // T = 8, k = 3.
        let bits = if blocks < 8 { 3 } else { 2 };
        if blocks >= 2 && value % (1 << bits) == 0 || blocks == 32 {
            cuts.push(std::mem::take(&mut len));
        }
    }
    cuts.extend(Some(len).filter(|len| *len > 0));
    cuts
}

fn expected_id(bytes: &[u8]) -> ChunkId {
    let hashes: Vec<u8> = bytes
        .chunks(BLOCK_BYTES)
        .flat_map(|piece| *blake3::keyed_hash(&KEYS.block_key, piece).as_bytes())
        .collect();
    ChunkId::new(*blake3::keyed_hash(&KEYS.chunk_key, &hashes).as_bytes())
}

/// (offset, length, id of data), by the definitions.
fn expected(kind: ChunkerKind, data: &[u8]) -> Vec<(u32, usize, Option<ChunkId>)> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    let blocks: Vec<&[u8]> = data.chunks(BLOCK_BYTES).collect();
    let zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
    for run in blocks.chunk_by(|a, b| zero(a) == zero(b)) {
        let run_len: usize = run.iter().map(|block| block.len()).sum();
        let (run_bytes, is_zero) = (&data[at..at + run_len], zero(&run[0]));
        let cuts = if is_zero { vec![run_len] } else { expected_cuts(kind, run_bytes) };
        for len in cuts {
            let id = Some(expected_id(&data[at..at + len])).filter(|_| !is_zero);
            pieces.push((at as u32, len, id));
            at += len;
        }
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_are_what_the_definitions_say(data in segment()) {
        for kind in ChunkerKind::ALL {
            let mut chunker = Chunker::new(params(kind), &KEYS);
            let pieces = pieces_of(&mut chunker, &data, 0);
            let got: Vec<_> = pieces.iter().map(|piece| {
                let id = match piece.kind {
                    PieceKind::Zero => None,
                    PieceKind::Data { id, .. } => Some(id),
                };
                (piece.offset, piece.bytes.len(), id)
            }).collect();
            prop_assert_eq!(got, expected(kind, &data));
            prop_assert_eq!(pieces.iter().map(|piece| piece.bytes).collect::<Vec<_>>().concat(), &data[..]);
            let bounds = params(kind).min_bytes() as usize..=params(kind).max_bytes() as usize;
            for pair in pieces.windows(2) {
                let (PieceKind::Data { id, natural_end }, len) = (pair[0].kind, pair[0].bytes.len()) else {
                    prop_assert_ne!(pair[1].kind, PieceKind::Zero, "zero runs are maximal");
                    continue;
                };
                prop_assert_eq!(chunker.chunk_id(pair[0].bytes), id);
                prop_assert!(natural_end && len <= *bounds.end());
                prop_assert!(len >= *bounds.start() || pair[1].kind == PieceKind::Zero);
            }
        }
    }

    #[test]
    fn cutting_resumes_at_any_cut_and_stops_anywhere(data in segment(), stop in any::<prop::sample::Index>()) {
        for kind in ChunkerKind::ALL {
            let mut chunker = Chunker::new(params(kind), &KEYS);
            let whole = pieces_of(&mut chunker, &data, 0);
            for (index, piece) in whole.iter().enumerate() {
                let from = piece.offset as usize;
                prop_assert_eq!(&pieces_of(&mut chunker, &data[from..], from), &whole[index..]);
            }
            // A slice that stops early, on the grid, has the same pieces but for the last.
            let from = whole.get(whole.len() / 3).map_or(0, |piece| piece.offset as usize);
            let to = (stop.index(data.len() + 1) / BLOCK_BYTES * BLOCK_BYTES).max(from.min(data.len()));
            if !to.is_multiple_of(BLOCK_BYTES) {
                continue;
            }
            let part = pieces_of(&mut chunker, &data[from..to], from);
            let mut same = part.len();
            match part.last().map(|piece| piece.kind) {
                None | Some(PieceKind::Data { natural_end: true, .. }) => {}
                Some(PieceKind::Data { natural_end: false, .. } | PieceKind::Zero) => same -= 1,
            }
            prop_assert_eq!(&part[..same], &whole[whole.len() / 3..][..same]);
        }
    }
}

#[test]
fn edge_sizes() {
    for kind in ChunkerKind::ALL {
        for len in [0, 1, 4095, 4096, 4097, SEGMENT_BYTES - 1, SEGMENT_BYTES] {
            let zeros = vec![0; len];
            let zero = Piece { offset: 0, bytes: &zeros, kind: PieceKind::Zero };
            assert_eq!(cut(kind, &zeros), Vec::from_iter(Some(zero).filter(|_| len > 0)), "{len} zeros");
            let noise = random(7, len);
            let pieces = cut(kind, &noise);
            assert_eq!(
                pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>(),
                len,
                "{len} bytes of noise"
            );
            if len == SEGMENT_BYTES {
                let last = pieces.last().unwrap();
                assert!(
                    matches!(last.kind, PieceKind::Data { natural_end: true, .. }),
                    "segment end is natural"
                );
            } else if (1..4096).contains(&len) {
                let id = expected_id(&noise);
                let kind = PieceKind::Data { id, natural_end: false };
                let cut_by_chance = PieceKind::Data { id, natural_end: true };
                assert!(pieces.len() == 1 && [kind, cut_by_chance].contains(&pieces[0].kind));
            }
        }
    }
}

#[test]
fn insertion_resynchronises() {
    let before = random(11, 3 << 20);
    for (kind, inserted) in [(ChunkerKind::Block, 3 * BLOCK_BYTES), (ChunkerKind::FastCdc, 777)] {
        let mut after = before.clone();
        after.splice((1 << 20)..(1 << 20), random(12, inserted));
        let known: HashSet<&[u8]> = cut(kind, &before).iter().map(|piece| piece.bytes).collect();
        let pieces = cut(kind, &after);
        let new = pieces.iter().map(|piece| piece.bytes).filter(|bytes| !known.contains(bytes));
        let new: usize = new.map(<[u8]>::len).sum();
        assert!(new <= 256 << 10, "{kind:?}: {new} bytes are new after an insertion of {inserted}");
    }
}

#[test]
fn keys_decide_cuts_and_ids() {
    let data = random(13, 1 << 20);
    let ends = |pieces: &[Piece<'_>]| pieces.iter().map(|piece| piece.offset).collect::<Vec<_>>();
    for kind in ChunkerKind::ALL {
        let ours = cut(kind, &data);
        let mut keys = KEYS.clone();
        (keys.block_key[0], keys.cut_seed) = (9, 9);
        assert_ne!(ends(&ours), ends(&pieces_of(&mut Chunker::new(params(kind), &keys), &data, 0)));
        let mut keys = KEYS.clone();
        keys.chunk_key[31] = 9;
        let other_ids = pieces_of(&mut Chunker::new(params(kind), &keys), &data, 0);
        assert_eq!(ends(&ours), ends(&other_ids));
        assert!(ours.iter().zip(&other_ids).all(|(a, b)| a.kind != b.kind));
    }
}

#[test]
fn mean_size_on_noise_is_near_the_target() {
    let data = random(14, SEGMENT_BYTES);
    for (kind, percent) in [(ChunkerKind::Block, 85..115), (ChunkerKind::FastCdc, 105..140)] {
        for target in [16 << 10, 32 << 10, 64 << 10] {
            let mut chunker = Chunker::new(ChunkParams::new(kind, target).unwrap(), &KEYS);
            let mean = data.len() / pieces_of(&mut chunker, &data, 0).len();
            assert!(percent.contains(&(mean * 100 / target as usize)), "{kind:?} {target}: mean {mean}");
        }
    }
}

#[test]
fn an_error_stops_and_leaves_the_chunker_usable() {
    let data = random(15, 1 << 20);
    for kind in ChunkerKind::ALL {
        let mut chunker = Chunker::new(params(kind), &KEYS);
        let mut calls = 0;
        let stopped = chunker.for_each(&data, 0, |_| {
            calls += 1;
            if calls == 3 { Err("full") } else { Ok(()) }
        });
        assert_eq!((stopped, calls), (Err("full"), 3));
        assert_eq!(pieces_of(&mut chunker, &data, 0), cut(kind, &data));
    }
}

#[test]
fn parameters_and_kinds() {
    for bad in [0, 1, 8 << 10, (64 << 10) + 1, 96 << 10, 2 << 20, u32::MAX] {
        let error = ChunkParams::new(ChunkerKind::Block, bad).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains("16 to 1024 KiB"));
    }
    for kind in ChunkerKind::ALL {
        assert_eq!(ChunkerKind::from_name(kind.name()), Some(kind));
        let params = ChunkParams::new(kind, CHUNK_TARGET_BYTES_MAX).unwrap();
        assert_eq!((params.min_bytes(), params.max_bytes()), (256 << 10, 4 << 20));
    }
    assert_eq!(ChunkerKind::from_name("fixed"), None);
    assert_eq!(format!("{KEYS:?}"), "ChunkKeys { .. }");
}

/// The format. If this fails, repositories written before no longer deduplicate, and verify reports them damaged.
#[test]
fn known_answers() {
    let mut data = random(16, 640 << 10);
    data[100 << 10..140 << 10].fill(0);
    data.truncate((640 << 10) - 1000);
    let block =
        "94208 102400 143360 208896 249856 282624 311296 348160 368640 409600 450560 507904 589824 654360";
    let fastcdc = "101244 102400 143360 182728 228599 359599 486516 537915 654360";
    let first_ids = [
        "7c4e38167df5a47036a3b5c8e77634859b99f8675328d7846ecf221343a5a4b4",
        "9409c635a56e5a1172049834d473729f98f51e468e7959e2b404724908437a38",
    ];
    let last_ids = [
        "4ad3689f03489af3d44cfbed73757f6d3f0c07dbca6aedcb3efc089f9a445911",
        "674ff9d72d96674aff9d0167e5f0078052b0b1419812d4c447773b3a4e761e9e",
    ];
    for (index, (kind, ends)) in ChunkerKind::ALL.into_iter().zip([block, fastcdc]).enumerate() {
        let mut chunker = Chunker::new(ChunkParams::new(kind, 64 << 10).unwrap(), &KEYS);
        let pieces = pieces_of(&mut chunker, &data, 0);
        let got = pieces.iter().map(|piece| (piece.offset as usize + piece.bytes.len()).to_string());
        assert_eq!(got.collect::<Vec<_>>().join(" "), ends);
        let id = |piece: Option<&Piece<'_>>| chunker.chunk_id(piece.unwrap().bytes).to_string();
        assert_eq!([pieces.first(), pieces.last()].map(id), [first_ids[index], last_ids[index]]);
        assert_eq!(pieces.iter().filter(|piece| piece.kind == PieceKind::Zero).count(), 1);
    }
}
