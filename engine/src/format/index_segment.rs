//! Index segments: sorted 48-byte rows in sealed 4 KiB pages, and a tail that makes a lookup one page read.

use super::header::{ObjectKind, TAG_BYTES};
use crate::error::{Error, Result};
use crate::id::ObjectId;
use xorf::BinaryFuse8;

/// Bytes of a row.
pub const ROW_BYTES: usize = 48;
/// Rows of a page.
pub const PAGE_ROWS: usize = 85;
/// Plaintext of a page.
pub const PAGE_BYTES: usize = ROW_BYTES * PAGE_ROWS;
/// A page as stored: one aligned 4 KiB read.
pub const PAGE_STORED_BYTES: usize = PAGE_BYTES + TAG_BYTES;
/// Where the first page begins.
pub const PAGES_OFFSET: u64 = 4096;
const _: () = assert!(PAGE_STORED_BYTES == 4096);

pub(super) const TAIL_FIXED_BYTES: usize = 24;
pub(super) const PACK_ROW_BYTES: usize = 48;
pub(super) const DESCRIPTOR_BYTES: usize = 20;

/// Where one content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// ChunkId or NodeId.
    pub id: [u8; 32],
    /// Index into the segment's pack table.
    pub pack_no: u32,
    /// Offset of the frame in the pack.
    pub offset: u32,
    /// Length of the frame, codec byte and tag included.
    pub stored_bytes: u32,
    /// Length of the content.
    pub raw_bytes: u32,
}

impl Row {
    fn put(&self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.id);
        out[32..36].copy_from_slice(&self.pack_no.to_le_bytes());
        out[36..40].copy_from_slice(&self.offset.to_le_bytes());
        out[40..44].copy_from_slice(&self.stored_bytes.to_le_bytes());
        out[44..48].copy_from_slice(&self.raw_bytes.to_le_bytes());
    }

    fn get(bytes: &[u8]) -> Row {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut id = [0u8; 32];
        id.copy_from_slice(&bytes[..32]);
        Row { id, pack_no: word(32), offset: word(36), stored_bytes: word(40), raw_bytes: word(44) }
    }
}

/// Writes up to [`PAGE_ROWS`] rows into a page; what is left is 0xff.
pub fn encode_page(rows: &[Row], page: &mut [u8; PAGE_BYTES]) {
    page.fill(0xff);
    for (row, slot) in rows.iter().zip(page.chunks_exact_mut(ROW_BYTES)) {
        row.put(slot);
    }
}

/// The row of `id` in a page that holds `rows` rows, and its number in the page.
pub fn find_at_in_page(page: &[u8], rows: usize, id: &[u8; 32]) -> Option<(usize, Row)> {
    let rows = rows.min(PAGE_ROWS);
    let key = |at: usize| &page[at * ROW_BYTES..at * ROW_BYTES + 32];
    let (mut low, mut high) = (0, rows);
    while low < high {
        let middle = (low + high) / 2;
        if key(middle) < &id[..] {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    (low < rows && key(low) == &id[..])
        .then(|| (low, Row::get(&page[low * ROW_BYTES..(low + 1) * ROW_BYTES])))
}

/// Appends all rows of a page to `rows`, checking that they ascend.
pub fn decode_page(object: &str, page: &[u8], count: usize, rows: &mut Vec<Row>) -> Result<()> {
    let first = rows.len();
    rows.extend(page.chunks_exact(ROW_BYTES).take(count.min(PAGE_ROWS)).map(Row::get));
    if !rows[first..].is_sorted_by(|one, other| one.id < other.id) {
        return Err(Error::damaged(object, "rows of an index page are not in order"));
    }
    Ok(())
}

/// A pack that rows refer to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackRef {
    /// Name of the pack.
    pub id: ObjectId,
    /// Salt of its header, so that a frame is opened without reading the header first.
    pub salt: [u8; 24],
    /// Length of the pack object.
    pub bytes: u32,
    /// Data or metadata.
    pub kind: ObjectKind,
}

/// Everything but the rows, to be written; it is read by [`TailView`](super::index_tail::TailView).
#[derive(Clone, Debug)]
pub struct Tail {
    /// Rows in the segment.
    pub entries: u64,
    /// Packs that `pack_no` counts through.
    pub packs: Vec<PackRef>,
    /// Index segments this one replaces.
    pub superseded: Vec<ObjectId>,
    /// First 8 bytes, big-endian, of each page's first id.
    pub fences: Vec<u64>,
    /// Membership filter, if there is one.
    pub filter: Option<BinaryFuse8>,
}

/// The filter's key of an id.
pub fn filter_key(id: &[u8; 32]) -> u64 {
    u64::from_le_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]])
}

/// The fence of an id: its first bytes in the order that rows are sorted by.
pub fn fence_key(id: &[u8; 32]) -> u64 {
    u64::from_be_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]])
}

/// Builds the filter over the filter keys of ids, each key once; `None` in the (practically impossible) case that
/// construction fails, which costs speed only.
pub fn build_filter_of(keys: &[u64]) -> Option<BinaryFuse8> {
    if keys.len() < 2 {
        return None;
    }
    BinaryFuse8::try_from(keys).ok()
}

impl Tail {
    /// The bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        let filter_bytes = self.filter.as_ref().map_or(0, |f| DESCRIPTOR_BYTES + f.fingerprints.len());
        let mut out = Vec::with_capacity(
            TAIL_FIXED_BYTES
                + self.packs.len() * PACK_ROW_BYTES
                + self.superseded.len() * 16
                + self.fences.len() * 8
                + filter_bytes,
        );
        out.extend_from_slice(&self.entries.to_le_bytes());
        for count in [self.fences.len(), self.packs.len(), self.superseded.len(), filter_bytes] {
            out.extend_from_slice(&(count as u32).to_le_bytes());
        }
        for pack in &self.packs {
            out.extend_from_slice(pack.id.as_bytes());
            out.extend_from_slice(&pack.salt);
            out.extend_from_slice(&pack.bytes.to_le_bytes());
            out.extend_from_slice(&[pack.kind as u8, 0, 0, 0]);
        }
        for id in &self.superseded {
            out.extend_from_slice(id.as_bytes());
        }
        for fence in &self.fences {
            out.extend_from_slice(&fence.to_be_bytes());
        }
        if let Some(filter) = &self.filter {
            out.extend_from_slice(&filter.descriptor.seed.to_le_bytes());
            for word in [
                filter.descriptor.segment_length,
                filter.descriptor.segment_length_mask,
                filter.descriptor.segment_count_length,
            ] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&filter.fingerprints);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::index_tail::TailView;
    use super::*;
    use proptest::prelude::*;
    use xorf::Filter;

    fn rows(count: usize) -> Vec<Row> {
        let mut rows: Vec<Row> = (0..count)
            .map(|i| Row {
                id: *blake3::hash(&i.to_le_bytes()).as_bytes(),
                pack_no: i as u32 % 3,
                offset: 96 + i as u32,
                stored_bytes: 100,
                raw_bytes: 4096,
            })
            .collect();
        rows.sort_by_key(|r| r.id);
        rows
    }

    fn tail(rows: &[Row]) -> Tail {
        Tail {
            entries: rows.len() as u64,
            packs: (0..3)
                .map(|i| PackRef {
                    id: ObjectId::new([i; 16]),
                    salt: [i; 24],
                    bytes: 1 << 20,
                    kind: ObjectKind::Data,
                })
                .collect(),
            superseded: vec![ObjectId::new([9; 16])],
            fences: rows.chunks(PAGE_ROWS).map(|page| fence_key(&page[0].id)).collect(),
            filter: build_filter_of(&rows.iter().map(|r| filter_key(&r.id)).collect::<Vec<_>>()),
        }
    }

    /// The filter as an open segment has it.
    fn filter_in(view: TailView<'_>, bytes: &[u8]) -> Option<BinaryFuse8> {
        let fingerprints = bytes[view.fingerprints_at..].into();
        view.filter.map(|descriptor| BinaryFuse8 { descriptor, fingerprints })
    }

    fn parse(bytes: &[u8], pages: u32) -> Result<TailView<'_>> {
        TailView::parse("x", bytes, pages)
    }

    #[test]
    fn what_is_written_is_read_and_every_row_is_in_its_page() {
        for count in [1, 2, 84, 85, 86, 1000] {
            let rows = rows(count);
            let written = tail(&rows);
            let bytes = written.encode();
            let view = parse(&bytes, rows.len().div_ceil(PAGE_ROWS) as u32).unwrap();
            assert_eq!(view.packs().collect::<Result<Vec<_>>>().unwrap(), written.packs);
            assert_eq!(view.superseded().collect::<Vec<_>>(), written.superseded);
            assert_eq!(view.fences().collect::<Vec<_>>(), written.fences);
            let filter = filter_in(view, &bytes);
            for (page, rows) in rows.chunks(PAGE_ROWS).enumerate() {
                let mut plain = [0; PAGE_BYTES];
                encode_page(rows, &mut plain);
                for (number, row) in rows.iter().enumerate() {
                    assert!(filter.as_ref().is_none_or(|filter| filter.contains(&filter_key(&row.id))));
                    assert_eq!(find_at_in_page(&plain, rows.len(), &row.id), Some((number, *row)), "{page}");
                }
                assert_eq!(find_at_in_page(&plain, rows.len(), &[0xab; 32]), None);
                let mut decoded = Vec::new();
                decode_page("x", &plain, rows.len(), &mut decoded).unwrap();
                assert_eq!(decoded, rows);
            }
            for keep in (0..bytes.len()).step_by(7) {
                assert!(parse(&bytes[..keep], written.fences.len() as u32).is_err());
            }
        }
    }

    #[test]
    fn a_filter_of_two_segments_is_refused() {
        let mut bytes = 1u64.to_le_bytes().to_vec();
        for n in [1u32, 0, 0, DESCRIPTOR_BYTES as u32 + 2] {
            bytes.extend_from_slice(&n.to_le_bytes());
        }
        bytes.extend_from_slice(&[0; 16]);
        for n in [1u32, 0, 0] {
            bytes.extend_from_slice(&n.to_le_bytes());
        }
        bytes.extend_from_slice(&[7; 2]);
        let error = parse(&bytes, 1).err().unwrap();
        assert!(error.to_string().contains("do not fit together"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(bytes in proptest::collection::vec(any::<u8>(), 0..300), pages in 0u32..4, id: [u8; 32]) {
            if let Ok(view) = parse(&bytes, pages) {
                filter_in(view, &bytes).map(|filter| filter.contains(&filter_key(&id)));
            }
        }

        #[test]
        fn a_hostile_filter_is_refused_or_harmless(seed: u64, length in 0u32..40, count in 0u32..80, extra in 0usize..200, id: [u8; 32]) {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&1u64.to_le_bytes());
            for n in [1u32, 0, 0, (DESCRIPTOR_BYTES + extra) as u32] { bytes.extend_from_slice(&n.to_le_bytes()); }
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(&seed.to_le_bytes());
            for n in [length, length.wrapping_sub(1), count] { bytes.extend_from_slice(&n.to_le_bytes()); }
            bytes.extend(std::iter::repeat_n(7, extra));
            if let Ok(view) = parse(&bytes, 1) {
                filter_in(view, &bytes).map(|filter| filter.contains(&filter_key(&id)));
            }
        }
    }
}
