//! The tail of an index segment as it lies in a buffer: checked, and read without a copy of its large parts.

use super::bytes::Reader;
use super::header::ObjectKind;
use super::index_segment::{DESCRIPTOR_BYTES, PACK_ROW_BYTES, PAGE_ROWS, PackRef, TAIL_FIXED_BYTES};
use crate::error::{Error, Result};
use crate::id::ObjectId;
use crate::limits::PACK_BYTES_MAX;
use xorf::Descriptor;

/// A checked tail. All but the kinds and lengths of packs is known to be right.
pub struct TailView<'a> {
    object: &'a str,
    /// Rows in the segment.
    pub entries: u64,
    packs: &'a [u8],
    superseded: &'a [u8],
    fences: &'a [u8],
    /// How the filter is laid out, if there is one.
    pub filter: Option<Descriptor>,
    /// Where in the buffer the filter's fingerprints begin; they are the last thing in it.
    pub fingerprints_at: usize,
}

impl<'a> TailView<'a> {
    /// Checks the tail of a segment with `pages` pages.
    pub fn parse(object: &'a str, bytes: &'a [u8], pages: u32) -> Result<Self> {
        let mut reader = Reader::new(object, bytes);
        let entries = reader.u64()?;
        let fence_count = reader.u32()?;
        let counts = [reader.u32()? as usize, reader.u32()? as usize, reader.u32()? as usize];
        let [pack_count, superseded_count, filter_bytes] = counts;
        debug_assert_eq!(reader.position(), TAIL_FIXED_BYTES);
        if fence_count != pages || entries.div_ceil(PAGE_ROWS as u64) != u64::from(pages) {
            return Err(reader.damaged(format_args!("{entries} rows cannot stand in {pages} pages")));
        }
        let parts = [pack_count * PACK_ROW_BYTES, superseded_count * 16, pages as usize * 8];
        let expected = parts.iter().sum::<usize>() + filter_bytes;
        if reader.remaining() != expected {
            return Err(
                reader.damaged(format_args!("{expected} bytes expected, {} found", reader.remaining()))
            );
        }
        let [packs, superseded, fences] =
            [reader.take(parts[0])?, reader.take(parts[1])?, reader.take(parts[2])?];
        if !words(fences).is_sorted() {
            return Err(reader.damaged("page fences are not in order"));
        }
        let filter = (filter_bytes > 0).then(|| descriptor(&mut reader, filter_bytes)).transpose()?;
        let fingerprints_at = reader.position();
        Ok(Self { object, entries, packs, superseded, fences, filter, fingerprints_at })
    }

    /// Packs that rows count through, in order.
    pub fn packs(&self) -> impl ExactSizeIterator<Item = Result<PackRef>> + use<'a> {
        let object = self.object;
        self.packs.chunks_exact(PACK_ROW_BYTES).map(move |row| pack(object, row))
    }

    /// Index segments that this one replaces.
    pub fn superseded(&self) -> impl Iterator<Item = ObjectId> + use<'a> {
        self.superseded.as_chunks().0.iter().copied().map(ObjectId::new)
    }

    /// First 8 bytes of each page's first id, as a number.
    pub fn fences(&self) -> impl ExactSizeIterator<Item = u64> + Clone + use<'a> {
        words(self.fences)
    }
}

fn words(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + Clone {
    bytes.as_chunks().0.iter().copied().map(u64::from_be_bytes)
}

fn pack(object: &str, row: &[u8]) -> Result<PackRef> {
    let mut reader = Reader::new(object, row);
    let id = ObjectId::new(reader.array()?);
    let salt = reader.array()?;
    let bytes = reader.u32()?;
    let kind = match reader.array::<4>()? {
        [1, 0, 0, 0] => ObjectKind::Data,
        [2, 0, 0, 0] => ObjectKind::Meta,
        _ => return Err(Error::damaged(object, "a pack of unknown kind in its tail")),
    };
    if bytes > PACK_BYTES_MAX {
        return Err(Error::damaged(object, "a pack of impossible length in its tail"));
    }
    Ok(PackRef { id, salt, bytes, kind })
}

/// Decodes the filter's layout, checking all that lookups take for granted.
fn descriptor(reader: &mut Reader<'_, '_>, filter_bytes: usize) -> Result<Descriptor> {
    let descriptor = Descriptor {
        seed: reader.u64()?,
        segment_length: reader.u32()?,
        segment_length_mask: reader.u32()?,
        segment_count_length: reader.u32()?,
    };
    let fingerprints = filter_bytes.saturating_sub(DESCRIPTOR_BYTES) as u64;
    let length = u64::from(descriptor.segment_length);
    let total = u64::from(descriptor.segment_count_length) + 2 * length;
    if !descriptor.segment_length.is_power_of_two()
        || u64::from(descriptor.segment_length_mask) != length - 1
        // Lookups touch three segments in a row, so a filter without one to begin in has no room for them.
        || descriptor.segment_count_length == 0
        || !u64::from(descriptor.segment_count_length).is_multiple_of(length)
        || total != fingerprints
    {
        return Err(reader.damaged("a filter whose parts do not fit together"));
    }
    Ok(descriptor)
}
