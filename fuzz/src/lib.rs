//! The bodies of the fuzz targets: no input may panic, allocate without bound or loop; and what decodes must encode to the same bytes.

use penstock_engine::compress::Decompressor;
use penstock_engine::format::config::{Config, KeySlot};
use penstock_engine::format::header::{Header, ObjectKind, Trailer};
use penstock_engine::format::index_segment::{PAGE_BYTES, Tail, decode_page, find_in_page};
use penstock_engine::format::node::{Leaf, decode_inner, encode_inner};
use penstock_engine::format::pack::{decode_toc, encode_toc};
use penstock_engine::format::plain;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::id::PointId;
use penstock_engine::source::Extents;

/// A target by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("header", header),
    ("plain", plain_objects),
    ("toc", toc),
    ("index_segment", index_segment),
    ("node", node),
    ("point", point),
    ("frame", frame),
    ("extents", extents),
];

/// Headers and trailers of sealed objects.
pub fn header(data: &[u8]) {
    let id: [u8; 16] = data.get(16..32).and_then(|id| id.try_into().ok()).unwrap_or([0; 16]);
    if let Ok(header) = Header::decode("fuzz", data, ObjectKind::Data, &id) {
        assert_eq!(header.encode()[..], data[..96]);
    }
    if let Ok(trailer) = Trailer::decode("fuzz", data, &[0; 16], 1 << 30) {
        assert_eq!(trailer.encode(&[0; 16])[..], *data);
    }
}

/// Configuration and key slots.
pub fn plain_objects(data: &[u8]) {
    for kind in [ObjectKind::Config, ObjectKind::Key] {
        if let Ok(plain) = plain::decode("fuzz", data, kind) {
            let _ = Config::from_json("fuzz", plain.payload);
            plain.mac_matches(&[0; 32]);
        }
    }
    let _ = Config::from_json("fuzz", data);
    let _ = KeySlot::from_json("fuzz", data, "00");
}

/// Tables of contents.
pub fn toc(data: &[u8]) {
    let count = (data.len() / 44) as u32;
    let end = data.iter().map(|byte| u64::from(*byte)).sum();
    if let Ok(rows) = decode_toc("fuzz", data, count, end) {
        assert_eq!(encode_toc(&rows), data);
    }
}

/// Tails and pages of index segments.
pub fn index_segment(data: &[u8]) {
    for pages in 0..3 {
        if let Ok(tail) = Tail::decode("fuzz", data, pages) {
            assert_eq!(tail.encode(), data);
            for id in [[0; 32], [0xff; 32]] {
                tail.may_contain(&id);
                assert!(tail.pages_for(&id).end <= pages as usize);
            }
        }
    }
    if let Some(page) = data.get(..PAGE_BYTES) {
        let _ = decode_page("fuzz", page, 85);
        find_in_page(page, 85, &[7; 32]);
    }
}

/// Manifest nodes.
pub fn node(data: &[u8]) {
    let segment_bytes = data.get(1..5).and_then(|len| len.try_into().ok()).map_or(0, u32::from_le_bytes);
    if let Ok(leaf) = Leaf::decode("fuzz", data, segment_bytes as usize) {
        let mut again = Vec::new();
        leaf.encode_into(&mut again);
        assert_eq!(again, data);
    }
    let (level, count) = match data {
        [_, level, low, high, ..] => (*level, usize::from(u16::from_le_bytes([*low, *high]))),
        _ => (1, 1),
    };
    if (1..=5).contains(&level)
        && (1..=256).contains(&count)
        && let Ok(children) = decode_inner("fuzz", data, level, count)
    {
        assert_eq!(encode_inner(level, &children), data);
    }
}

/// Recovery points.
pub fn point(data: &[u8]) {
    let id = PointId::new([0; 16]);
    if let Ok(point) = RecoveryPoint::from_json("fuzz", data, &id) {
        let json = point.to_json().unwrap_or_default();
        assert_eq!(RecoveryPoint::from_json("fuzz", &json, &id).ok(), Some(point));
    }
}

/// Opened frames.
pub fn frame(data: &[u8]) {
    if let Ok(mut decompressor) = Decompressor::new() {
        for len in [0, 1, 4096, 65_536] {
            let _ = decompressor.decompress(data, &mut vec![0; len]);
        }
    }
}

/// Lists of changed extents.
pub fn extents(data: &[u8]) {
    if let Ok(extents) = Extents::parse(data, "fuzz", 1 << 40) {
        let mut last = 0;
        for range in extents.iter() {
            assert!(range.start < range.end && range.end <= 1 << 40 && (last == 0 || range.start > last));
            last = range.end;
        }
    }
}
