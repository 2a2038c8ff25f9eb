//! Writes an index segment from sorted rows, as a stream: in memory are one page, and for each row the eight bytes its filter is made of.

use std::io::Write;

use crate::crypto::{ObjectKey, RepoKeys, seal::NO_CONTEXT};
use crate::error::{Error, Result};
use crate::format::header::{ObjectKind, TAG_BYTES};
use crate::format::index_segment::{
    PAGE_BYTES, PAGE_ROWS, PAGE_STORED_BYTES, PAGES_OFFSET, PackRef, Row, Tail, build_filter_of, encode_page,
    fence_key, filter_key,
};
use crate::id::ObjectId;
use crate::sealed;

/// A row to be written.
pub type NewRow = Row;

/// Writes one segment. Rows must come in the order of their ids, each id once.
pub struct SegmentWriter<'w> {
    out: &'w mut dyn Write,
    object: String,
    id: ObjectId,
    key: ObjectKey,
    page: Vec<Row>,
    fences: Vec<u64>,
    filter_keys: Vec<u64>,
    offset: u64,
    entries: u64,
}

impl<'w> SegmentWriter<'w> {
    /// Begins segment `id`.
    pub fn start(keys: &RepoKeys, id: ObjectId, out: &'w mut dyn Write) -> Result<Self> {
        let (header, key) = keys.new_object(ObjectKind::Index, *id.as_bytes())?;
        let mut first = vec![0; PAGES_OFFSET as usize];
        let header = header.encode();
        first[..header.len()].copy_from_slice(&header);
        let mut writer = Self {
            out,
            object: ObjectKind::Index.key(&id.to_string()),
            id,
            key,
            page: Vec::with_capacity(PAGE_ROWS),
            fences: Vec::new(),
            filter_keys: Vec::new(),
            offset: 0,
            entries: 0,
        };
        writer.write(&first)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::io("write", &self.object))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Adds the next row.
    pub fn add(&mut self, row: Row) -> Result<()> {
        debug_assert!(self.page.last().is_none_or(|last| last.id < row.id));
        let key = filter_key(&row.id);
        // Ids with the same first 8 bytes are neighbours, and one key to the filter.
        if self.filter_keys.last() != Some(&key) {
            self.filter_keys.push(key);
        }
        self.page.push(row);
        self.entries += 1;
        if self.page.len() == PAGE_ROWS { self.close_page() } else { Ok(()) }
    }

    fn close_page(&mut self) -> Result<()> {
        let Some(first) = self.page.first() else { return Ok(()) };
        self.fences.push(fence_key(&first.id));
        let mut stored = [0u8; PAGE_STORED_BYTES];
        let mut plain = [0u8; PAGE_BYTES];
        encode_page(&self.page, &mut plain);
        stored[..PAGE_BYTES].copy_from_slice(&plain);
        self.key.seal(self.offset, &NO_CONTEXT, &mut stored);
        self.page.clear();
        self.write(&stored)
    }

    /// Writes what is left and the tail.
    pub fn finish(mut self, packs: &[PackRef], superseded: &[ObjectId]) -> Result<()> {
        self.close_page()?;
        let pages = self.fences.len() as u32;
        let tail = Tail {
            entries: self.entries,
            packs: packs.to_vec(),
            superseded: superseded.to_vec(),
            fences: std::mem::take(&mut self.fences),
            filter: build_filter_of(&std::mem::take(&mut self.filter_keys)),
        };
        let mut plain = tail.encode();
        drop(tail);
        plain.extend_from_slice(&[0; TAG_BYTES]);
        self.key.seal(self.offset, &NO_CONTEXT, &mut plain);
        let trailer = sealed::trailer(self.offset, plain.len(), pages).encode(self.id.as_bytes());
        self.write(&plain)?;
        self.write(&trailer)
    }
}

/// The bytes of segment `id`; `rows` must ascend strictly by id.
pub fn encode_segment(
    keys: &RepoKeys,
    id: ObjectId,
    rows: &[NewRow],
    packs: &[PackRef],
    superseded: &[ObjectId],
) -> Result<Vec<u8>> {
    let pages = rows.len().div_ceil(PAGE_ROWS);
    let mut out =
        Vec::with_capacity(PAGES_OFFSET as usize + pages * PAGE_STORED_BYTES + rows.len() * 2 + 1024);
    let mut writer = SegmentWriter::start(keys, id, &mut out)?;
    for row in rows {
        writer.add(*row)?;
    }
    writer.finish(packs, superseded)?;
    Ok(out)
}
