//! Writes an index segment from sorted rows.

use crate::crypto::{RepoKeys, seal::NO_CONTEXT};
use crate::error::Result;
use crate::format::header::{ObjectKind, TAG_BYTES};
use crate::format::index_segment::{
    PAGE_BYTES, PAGE_ROWS, PAGE_STORED_BYTES, PAGES_OFFSET, PackRef, Row, Tail, build_filter, encode_page,
    fence_key,
};
use crate::id::ObjectId;
use crate::sealed;

/// A row to be written.
pub type NewRow = Row;

/// The bytes of segment `id`; `rows` must ascend strictly by id.
pub fn encode_segment(
    keys: &RepoKeys,
    id: ObjectId,
    rows: &[NewRow],
    packs: &[PackRef],
    superseded: &[ObjectId],
) -> Result<Vec<u8>> {
    debug_assert!(rows.windows(2).all(|pair| pair[0].id < pair[1].id));
    let (header, key) = keys.new_object(ObjectKind::Index, *id.as_bytes())?;
    let pages = rows.len().div_ceil(PAGE_ROWS);
    let mut out =
        Vec::with_capacity(PAGES_OFFSET as usize + pages * PAGE_STORED_BYTES + rows.len() * 2 + 1024);
    out.extend_from_slice(&header.encode());
    out.resize(PAGES_OFFSET as usize, 0);
    let mut page = [0u8; PAGE_BYTES];
    for chunk in rows.chunks(PAGE_ROWS) {
        let offset = out.len();
        encode_page(chunk, &mut page);
        out.extend_from_slice(&page);
        out.extend_from_slice(&[0; TAG_BYTES]);
        key.seal(offset as u64, &NO_CONTEXT, &mut out[offset..]);
    }
    let tail = Tail {
        entries: rows.len() as u64,
        packs: packs.to_vec(),
        superseded: superseded.to_vec(),
        fences: rows.chunks(PAGE_ROWS).map(|chunk| fence_key(&chunk[0].id)).collect(),
        filter: build_filter(rows.iter().map(|row| row.id)),
    };
    sealed::append_tail(&mut out, &key, id.as_bytes(), &tail.encode(), pages as u32);
    Ok(out)
}
