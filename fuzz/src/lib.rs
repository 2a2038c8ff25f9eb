//! Bodies of the fuzz targets: one for each decoder of bytes that come from a repository or a file of the user.
//!
//! A body must return for any input. It panics if a decoder does, or if a decoder accepts what it could not have
//! written: where an encoder exists, what was decoded has to encode to the same bytes again (JSON: to the same value).
//!
//! Checksums would stop a fuzzer at the door, so bodies whose format has one try the input twice: as it is, and with
//! the checksum put right. Lengths and ids that a caller knows from elsewhere are taken from the input too.
//!
//! `README.md` says how they are run: guided by coverage, or on stable Rust as part of `tests/run`.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_engine::Error;
use penstock_engine::compress::{Compressor, Decompressor};
use penstock_engine::format::config::{Config, KeySlot};
use penstock_engine::format::header::{HEADER_BYTES, Header, ObjectKind, TRAILER_BYTES, Trailer};
use penstock_engine::format::index_segment::{
    PAGE_BYTES, PAGE_ROWS, ROW_BYTES, Tail, decode_page, encode_page, fence_key, filter_key, find_at_in_page,
};
use penstock_engine::format::index_tail::TailView;
use penstock_engine::format::node::{LEVEL_MAX, Leaf, decode_inner, encode_inner};
use penstock_engine::format::pack::{TOC_ROW_BYTES, decode_toc, encode_toc};
use penstock_engine::format::plain;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::id::PointId;
use penstock_engine::index::Fences;
use penstock_engine::limits::{NODE_FANOUT, SEGMENT_BYTES};
use penstock_engine::source::Extents;
use penstock_engine::source::qcow2::header::Header as Header2;
use penstock_engine::source::qcow2::image::{Image, Kind, ReadAt};
use xorf::{BinaryFuse8, Filter};

mod records;
mod seeds;
mod texts;

pub use records::{
    backup_journal, cache_entry, gc_record, lease, pack, packed_record, restore_journal, sealed_object,
};
pub use seeds::seeds;
pub use texts::{ec2_answer, mount_tables, text};

/// Name of the object in error texts.
const OBJECT: &str = "fuzz";

/// How often a decoder accepted something in this process: a body whose inputs are all refused at the door tests
/// little.
pub static ACCEPTED: AtomicU64 = AtomicU64::new(0);

/// A body.
pub type Body = fn(&[u8]);

/// All bodies by the names of their targets.
pub const BODIES: [(&str, Body); 26] = [
    ("header", header),
    ("trailer", trailer),
    ("plain", plain),
    ("config", config),
    ("key_slot", key_slot),
    ("pack_toc", pack_toc),
    ("index_tail", index_tail),
    ("index_filter", index_filter),
    ("index_page", index_page),
    ("node_leaf", node_leaf),
    ("node_inner", node_inner),
    ("point", point),
    ("decompress", decompress),
    ("extents", extents),
    ("lease", lease),
    ("gc_record", gc_record),
    ("packed_record", packed_record),
    ("sealed_object", sealed_object),
    ("pack", pack),
    ("backup_journal", backup_journal),
    ("restore_journal", restore_journal),
    ("cache_entry", cache_entry),
    ("text", text),
    ("mount_tables", mount_tables),
    ("ec2_answer", ec2_answer),
    ("qcow2", qcow2),
];

/// The header of a sealed object.
///
/// Input: the header; its kind and id are also those that are expected, if the input's length is even.
pub fn header(data: &[u8]) {
    let matching = data.len().is_multiple_of(2);
    let kind = data.get(10).and_then(|&n| ObjectKind::from_u8(n)).filter(|_| matching);
    let id = data.get(16..32).filter(|_| matching).and_then(|id| id.try_into().ok()).unwrap_or([7; 16]);
    twice(
        data,
        88,
        |bytes| *blake3::hash(bytes).as_bytes(),
        |bytes| {
            if let Some(header) =
                decoded(Header::decode(OBJECT, bytes, kind.unwrap_or(ObjectKind::Data), &id))
            {
                assert_eq!(header.encode(), bytes[..HEADER_BYTES]);
            }
        },
    );
}

/// The trailer of a sealed object.
///
/// Input: the trailer, then the length of the object in 8 bytes; without them, the length that fits.
pub fn trailer(data: &[u8]) {
    let id = [7; 16];
    let (data, rest) = data.split_at(data.len().min(TRAILER_BYTES));
    let fitting = u64_at(data, 0).wrapping_add(u32_at(data, 8).into()).wrapping_add(TRAILER_BYTES as u64);
    let object_bytes = if rest.len() < 8 { fitting } else { u64_at(rest, 0) };
    let sum = |bytes: &[u8]| *blake3::Hasher::new().update(&id).update(bytes).finalize().as_bytes();
    twice(data, 24, sum, |bytes| {
        if let Some(trailer) = decoded(Trailer::decode(OBJECT, bytes, &id, object_bytes)) {
            assert_eq!(trailer.encode(&id), bytes);
            assert!(trailer.tail_offset + u64::from(trailer.tail_stored_bytes) < object_bytes);
        }
    });
}

/// The container of configuration and key slots. Input: the object.
pub fn plain(data: &[u8]) {
    let digest_at = data.len().saturating_sub(64);
    let check = |bytes: &[u8]| {
        for kind in [ObjectKind::Config, ObjectKind::Key] {
            let Some(plain) = decoded(plain::decode(OBJECT, bytes, kind)) else { continue };
            let again = plain::encode(kind, plain.payload, &[3; 32]);
            assert_eq!(again[..again.len() - 32], bytes[..bytes.len() - 32], "all but the MAC");
            assert_eq!(plain.mac_matches(&[3; 32]), again == bytes);
        }
    };
    check(data);
    if digest_at > 0 {
        let mut mended = data.to_vec();
        let digest = blake3::hash(&data[..digest_at]);
        mended[digest_at..digest_at + 32].copy_from_slice(digest.as_bytes());
        check(&mended);
    }
}

/// The JSON of the configuration.
pub fn config(data: &[u8]) {
    if let Some(config) = decoded(Config::from_json(OBJECT, data)) {
        let json = serde_json::to_vec(&config).expect("a configuration can be written");
        assert_eq!(Config::from_json(OBJECT, &json).expect("what was written can be read"), config);
        assert!(config.check().is_ok());
    }
}

/// The JSON of a key slot.
pub fn key_slot(data: &[u8]) {
    // The name that the slot gives itself, so that the checks behind the comparison are reached.
    let Ok(own) = serde_json::from_slice::<KeySlot>(data) else {
        assert!(KeySlot::from_json(OBJECT, data, "00").is_err());
        return;
    };
    if let Some(slot) = decoded(KeySlot::from_json(OBJECT, data, &own.key_id)) {
        let json = serde_json::to_vec(&slot).expect("a key slot can be written");
        assert_eq!(KeySlot::from_json(OBJECT, &json, &slot.key_id).expect("and read"), slot);
    }
}

/// The table of contents of a pack.
///
/// Input: offset of the table in 8 bytes, then its rows. Tried as it is, and with offsets that leave no gaps.
pub fn pack_toc(data: &[u8]) {
    let Some((tail_offset, rows)) = data.split_at_checked(8) else { return };
    let check = |bytes: &[u8], tail_offset: u64| {
        let count = (bytes.len() / TOC_ROW_BYTES) as u32;
        if let Some(rows) = decoded(decode_toc(OBJECT, bytes, count, tail_offset)) {
            assert_eq!(encode_toc(&rows), bytes);
        }
        assert!(decode_toc(OBJECT, bytes, count ^ 1, tail_offset).is_err());
        assert!(decode_toc(OBJECT, bytes, u32::MAX, tail_offset).is_err());
    };
    check(rows, u64_at(tail_offset, 0));
    let mut mended = rows.to_vec();
    let mut next = HEADER_BYTES as u64;
    for row in mended.chunks_exact_mut(TOC_ROW_BYTES) {
        row[32..36].copy_from_slice(&(next as u32).to_le_bytes());
        next += u64::from(u32_at(row, 36));
    }
    check(&mended, next);
}

/// The tail of an index segment, and lookups in what was accepted: every one must stay within fences and filter.
///
/// Input: number of pages in 2 bytes, then the tail.
pub fn index_tail(data: &[u8]) {
    let Some((pages, bytes)) = data.split_at_checked(2) else { return };
    let pages = u32::from(u16::from_le_bytes([pages[0], pages[1]]));
    let Some(tail) = decoded(TailView::parse(OBJECT, bytes, pages)) else { return };
    assert_eq!(tail.fences().len(), pages as usize);
    look_up(tail, bytes);
}

/// The tail to be written that `bytes` are of, with its filter as an open segment has it; `None` if its packs are refused.
fn written(tail: TailView<'_>, bytes: &[u8]) -> Option<Tail> {
    Some(Tail {
        entries: tail.entries,
        packs: tail.packs().map(decoded).collect::<Option<_>>()?,
        superseded: tail.superseded().collect(),
        fences: tail.fences().collect(),
        filter: tail
            .filter
            .map(|descriptor| BinaryFuse8 { descriptor, fingerprints: bytes[tail.fingerprints_at..].into() }),
    })
}

/// The filter in the tail of an index segment, whose parts must fit together or else be refused: mutation of whole
/// tails rarely gets there.
///
/// Input: seed of the filter in 8 bytes, logarithm of its segment length, number of segments but two, fingerprints.
/// As many fingerprints are used as fit, if there are enough.
pub fn index_filter(data: &[u8]) {
    let Some((head, fingerprints)) = data.split_at_checked(10) else { return };
    let length = 1u32 << (head[8] & 15);
    let count_length = length * u32::from(head[9] & 15);
    let fingerprints = &fingerprints[..fingerprints.len().min((count_length + 2 * length) as usize)];
    let filter_bytes = 20 + fingerprints.len() as u32;
    let mut tail = 1u64.to_le_bytes().to_vec();
    for count in [1, 0, 0, filter_bytes] {
        tail.extend_from_slice(&u32::to_le_bytes(count));
    }
    tail.extend_from_slice(&[0; 8]);
    tail.extend_from_slice(&head[..8]);
    for word in [length, length - 1, count_length] {
        tail.extend_from_slice(&word.to_le_bytes());
    }
    tail.extend_from_slice(fingerprints);
    if let Some(view) = decoded(TailView::parse(OBJECT, &tail, 1)) {
        look_up(view, &tail);
    }
}

/// Looks ids up in a tail that was accepted: near its fences, at the ends, and anywhere.
fn look_up(tail: TailView<'_>, bytes: &[u8]) {
    let Some(tail) = written(tail, bytes) else { return };
    assert_eq!(tail.encode(), bytes);
    let spread = (0..16u8).map(|n| *blake3::hash(&[n]).as_bytes());
    let edges = [[0; 32], [0xff; 32]].into_iter();
    let of_fences = tail.fences.iter().take(16).map(|fence| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&fence.to_be_bytes());
        id
    });
    let fences = Fences::new(tail.fences.iter().copied());
    for id in spread.chain(edges).chain(of_fences) {
        tail.filter.as_ref().map(|filter| filter.contains(&filter_key(&id)));
        let found = fences.pages_for(fence_key(&id));
        assert!(found.start <= found.end && found.end <= fences.len());
    }
}

/// A page of an index segment. Input: number of rows, then the page; it is filled up or cut to its fixed length.
pub fn index_page(data: &[u8]) {
    let Some((&rows, data)) = data.split_first() else { return };
    let rows = usize::from(rows);
    let mut page = [0xff; PAGE_BYTES];
    let bytes = data.len().min(PAGE_BYTES);
    page[..bytes].copy_from_slice(&data[..bytes]);
    let some_id: [u8; 32] = page[ROW_BYTES..ROW_BYTES + 32].try_into().expect("32 bytes");
    // In a page without order anything may be found, but only what is there.
    if let Some((_, row)) = find_at_in_page(&page, rows, &some_id) {
        assert_eq!(row.id, some_id);
    }
    let mut decoded_rows = Vec::new();
    let Some(()) = decoded(decode_page(OBJECT, &page, rows, &mut decoded_rows)) else { return };
    let decoded = decoded_rows;
    assert_eq!(decoded.len(), rows.min(PAGE_ROWS));
    let mut again = [0; PAGE_BYTES];
    encode_page(&decoded, &mut again);
    assert_eq!(again[..decoded.len() * ROW_BYTES], page[..decoded.len() * ROW_BYTES]);
    for (number, row) in decoded.iter().enumerate() {
        assert_eq!(find_at_in_page(&page, rows, &row.id), Some((number, *row)));
    }
}

/// A leaf of a manifest. Input: the leaf; it is expected to cover what it says, and once a whole segment.
pub fn node_leaf(data: &[u8]) {
    for segment_bytes in [u32_at(data, 1) as usize, SEGMENT_BYTES] {
        let Some(leaf) = decoded(Leaf::decode(OBJECT, data, segment_bytes)) else { continue };
        let mut again = Vec::new();
        leaf.encode_into(&mut again);
        assert_eq!(again, data);
        assert_eq!(leaf.segment_bytes() as usize, segment_bytes);
        assert!(!leaf.is_zero() && leaf.pieces.iter().all(|piece| piece.len > 0));
        let end = leaf.with_offsets().last().map(|(offset, piece)| offset + piece.len);
        assert_eq!(end, Some(segment_bytes as u32));
    }
}

/// An inner node of a manifest. Input: the node; it is expected to be what it says, and once a full one of level 1.
pub fn node_inner(data: &[u8]) {
    let own = (data.get(1).copied().unwrap_or(1).clamp(1, LEVEL_MAX), (u32_at(data, 2) & 0xffff) as usize);
    for (level, count) in [own, (1, NODE_FANOUT)] {
        let Some(children) = decoded(decode_inner(OBJECT, data, level, count)) else { continue };
        assert_eq!(children.len(), count);
        assert_eq!(encode_inner(level, &children), data);
    }
}

/// The JSON of a recovery point.
pub fn point(data: &[u8]) {
    // The id that it gives itself, so that the checks behind the comparison are reached.
    let own = serde_json::from_slice::<RecoveryPoint>(data).ok().and_then(|point| point.point_id());
    let id = own.unwrap_or(PointId::new([7; 16]));
    let Some(point) = decoded(RecoveryPoint::from_json(OBJECT, data, &id)) else { return };
    assert_eq!(point.point_id(), Some(id));
    for volume in &point.volumes {
        assert!(point.volume(&volume.name).is_some());
    }
    let json = point.to_json().expect("a recovery point can be written");
    let again = RecoveryPoint::from_json(OBJECT, &json, &id).expect("what was written can be read");
    assert_eq!(again, point);
}

/// An opened frame, `codec ‖ payload`, after the length that is due in 3 bytes. What it holds must survive being
/// compressed again.
pub fn decompress(data: &[u8]) {
    thread_local! {
        static CODERS: RefCell<(Compressor, Decompressor)> = RefCell::new((
            Compressor::new(Some(1)).expect("zstd"),
            Decompressor::new().expect("zstd"),
        ));
    }
    let Some((length, frame)) = data.split_at_checked(3) else { return };
    // Up to 1 MiB: frames of the largest chunks are longer, but no different.
    let length = u32_at(&[length[0], length[1], length[2], 0], 0) as usize & 0xf_ffff;
    CODERS.with_borrow_mut(|(compressor, decompressor)| {
        let mut raw = vec![0; length];
        if decompressor.decompress(frame, &mut raw).is_err() || raw.is_empty() {
            return;
        }
        ACCEPTED.fetch_add(1, Ordering::Relaxed);
        let mut out = vec![0; raw.len() + 1];
        let (codec, bytes) = compressor.compress(&raw, &mut out[1..]);
        out[0] = codec as u8;
        let mut again = vec![0; raw.len()];
        decompressor.decompress(&out[..1 + bytes], &mut again).expect("what was compressed decompresses");
        assert!(again == raw);
    });
}

/// The file of `--changed-extents`. Input: size of the volume in 8 bytes, then the lines.
pub fn extents(data: &[u8]) {
    let Some((volume_bytes, lines)) = data.split_at_checked(8) else { return };
    let volume_bytes = u64_at(volume_bytes, 0);
    let extents = match Extents::parse(lines, OBJECT, volume_bytes) {
        Ok(extents) => extents,
        Err(error) => {
            // The user's file, not the repository's: never called damage, and the line is named.
            assert!(matches!(&error, Error::Invalid { what } if what.contains("line ")), "{error}");
            return;
        }
    };
    ACCEPTED.fetch_add(1, Ordering::Relaxed);
    let ranges: Vec<_> = extents.iter().collect();
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= volume_bytes));
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
    assert!(extents.total_bytes() <= volume_bytes);
    for range in &ranges {
        assert_eq!(extents.next(range.start).as_ref(), Some(range));
        assert!(extents.intersects(range));
    }
    let mut text = extents.base().map(|id| format!("{{\"base\":\"{id}\"}}\n")).unwrap_or_default();
    for range in &ranges {
        text += &format!("{{\"offset\":{},\"length\":{}}}\n", range.start, range.end - range.start);
    }
    assert_eq!(Extents::parse(text.as_bytes(), OBJECT, volume_bytes).expect("own lines"), extents);
}

/// A qcow2 image: header, tables, compressed clusters. Input: the file.
///
/// The tables are walked from the disk's beginning, and what they name is read, so far as that is little.
pub fn qcow2(data: &[u8]) {
    let Ok(header) = Header2::decode(data) else { return };
    ACCEPTED.fetch_add(1, Ordering::Relaxed);
    assert!(header.l1_entries * header.bytes_per_l2_table() >= header.size_bytes);
    let file: Arc<dyn ReadAt> = Arc::new(InMemory(data.to_vec()));
    let (size_bytes, cluster_bytes) = (header.size_bytes, header.cluster_bytes());
    let image = Image::new(OBJECT, header, file, None);
    let (mut at, mut bytes) = (0, Vec::new());
    for _ in 0..QCOW2_STEPS {
        if at >= size_bytes {
            break;
        }
        let limit = (size_bytes - at).min(QCOW2_STEP_BYTES);
        let Ok(extent) = image.extent(at, limit) else {
            at = (at / cluster_bytes + 1) * cluster_bytes;
            continue;
        };
        assert!(extent.len > 0 && extent.len <= limit, "{extent:?} of {limit}");
        match extent.kind {
            Kind::Data(offset) => {
                bytes.resize(extent.len.min(4096) as usize, 1);
                image.read_data(&mut bytes, offset).expect("memory can be read");
            }
            Kind::Compressed(place) => {
                assert!(extent.len + place.within <= cluster_bytes);
                if image.read_compressed(&place, &mut bytes).is_ok() {
                    assert_eq!(bytes.len() as u64, cluster_bytes);
                }
            }
            Kind::Unallocated | Kind::Zero => {}
        }
        at += extent.len;
    }
}

/// Extents that [`qcow2`] looks at, and the longest that it asks for.
const QCOW2_STEPS: usize = 64;
const QCOW2_STEP_BYTES: u64 = 1 << 30;

struct InMemory(Vec<u8>);

impl ReadAt for InMemory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = buf.len().min(self.0.len() - from);
        buf[..count].copy_from_slice(&self.0[from..from + count]);
        Ok(count)
    }
}

/// Counts an input that a decoder took.
fn accepted() {
    ACCEPTED.fetch_add(1, Ordering::Relaxed);
}

/// The value, or nothing; errors of decoders must be damage or a newer version, and must have a text.
fn decoded<T>(result: penstock_engine::Result<T>) -> Option<T> {
    result
        .inspect(|_| _ = ACCEPTED.fetch_add(1, Ordering::Relaxed))
        .inspect_err(|error| {
            assert!(error.is_damage() || matches!(error, Error::NewerVersion { .. }), "{error}");
            assert!(error.to_string().contains(OBJECT), "{error}");
        })
        .ok()
}

/// Calls `check` with `data`, and with the 8-byte checksum at `at` put right.
fn twice(data: &[u8], at: usize, sum: impl Fn(&[u8]) -> [u8; 32], check: impl Fn(&[u8])) {
    check(data);
    if data.len() >= at + 8 {
        let mut mended = data.to_vec();
        let sum = sum(&data[..at]);
        mended[at..at + 8].copy_from_slice(&sum[..8]);
        check(&mended);
    }
}

/// Little-endian number at `at`; 0 if the bytes end before.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Little-endian number at `at`; 0 if the bytes end before.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
