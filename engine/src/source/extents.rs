//! The changed-extents file: which ranges of a volume changed since its parent, from whoever tracks that (dm-era, a
//! hypervisor, changed block tracking of a cloud).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::id::PointId;

/// Longest line that is accepted; the longest sensible one has 64 bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Sorted, disjoint, non-empty ranges of a volume, in bytes. Ranges that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    ranges: Vec<Range<u64>>,
    base: Option<PointId>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Range { offset: u64, length: u64 },
    Base { base: String },
}

impl Extents {
    /// Reads the file at `path`; see [`Extents::parse`].
    pub fn load(path: &Path, volume_bytes: u64) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io("open", &name))?;
        Self::parse(BufReader::new(file), &name, volume_bytes)
    }

    /// Reads one JSON object a line, `{"offset": n, "length": n}` in bytes, in any order; further members are
    /// ignored, and so are empty lines and what lies past `volume_bytes`. The first line may be `{"base": id}`: the
    /// recovery point that the list is relative to.
    ///
    /// Fails with [`Error::Invalid`], naming `name` and the line, if a line is something else or its end overflows 64
    /// bits.
    pub fn parse(mut input: impl BufRead, name: &str, volume_bytes: u64) -> Result<Self> {
        let mut ranges = Vec::new();
        let mut base = None;
        let mut is_first = true;
        let mut text = Vec::new();
        for line_no in 1u64.. {
            let invalid = |why: &dyn std::fmt::Display| Error::Invalid {
                what: format!(
                    "{name}, line {line_no}: {why}. Each line is {{\"offset\": bytes, \"length\": bytes}}"
                ),
            };
            text.clear();
            let mut line = input.by_ref().take(LINE_BYTES_MAX);
            if line.read_until(b'\n', &mut text).map_err(Error::io("read", name))? == 0 {
                break;
            }
            if text.len() as u64 == LINE_BYTES_MAX && text.last() != Some(&b'\n') {
                return Err(invalid(&format_args!("longer than {LINE_BYTES_MAX} bytes")));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&text).map_err(|e| invalid(&e))? {
                Line::Range { offset, length } => {
                    let end =
                        offset.checked_add(length).ok_or_else(|| invalid(&"offset + length overflows"))?;
                    ranges.push(offset..end.min(volume_bytes));
                }
                Line::Base { base: id } if is_first => {
                    let id = PointId::from_hex(&id);
                    base =
                        Some(id.ok_or_else(|| {
                            invalid(&"the base is no id of a recovery point (32 hex digits)")
                        })?);
                }
                Line::Base { .. } => return Err(invalid(&"the base is named by the first line only")),
            }
            is_first = false;
        }
        Ok(Self { base, ..Self::from_ranges(ranges) })
    }

    /// The same ranges, relative to this recovery point.
    pub fn relative_to(self, base: PointId) -> Self {
        Self { base: Some(base), ..self }
    }

    /// The recovery point that the ranges are relative to, if the list names it.
    pub fn base(&self) -> Option<PointId> {
        self.base
    }

    /// The same ranges and `more`.
    pub fn with(mut self, more: impl IntoIterator<Item = Range<u64>>) -> Self {
        self.ranges.extend(more);
        Self { base: self.base, ..Self::from_ranges(self.ranges) }
    }

    /// From ranges in any order, which may overlap or be empty.
    pub fn from_ranges(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|r| r.start < r.end);
        ranges.sort_unstable_by_key(|r| r.start);
        ranges.dedup_by(|next, kept| {
            let touches = next.start <= kept.end;
            if touches {
                kept.end = kept.end.max(next.end);
            }
            touches
        });
        Self { ranges, base: None }
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().cloned()
    }

    /// Bytes in all ranges.
    pub fn total_bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.start).sum()
    }

    /// True if a byte of `range` is in one of the ranges.
    pub fn intersects(&self, range: &Range<u64>) -> bool {
        self.next(range.start).is_some_and(|found| found.start < range.end)
    }

    /// The first range that ends after `from`, cut to begin there; the counterpart of [`super::Source::next_data`].
    pub fn next(&self, from: u64) -> Option<Range<u64>> {
        let index = self.ranges.partition_point(|r| r.end <= from);
        self.ranges.get(index).map(|r| r.start.max(from)..r.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Extents> {
        Extents::parse(text.as_bytes(), "changed.json", 1000)
    }

    #[test]
    fn merges_sorts_and_clips() {
        let text = "{\"offset\": 900, \"length\": 900}\n\n{\"length\":10,\"offset\":20,\"type\":\"x\"}\n\
                    {\"offset\":30,\"length\":5}\r\n{\"offset\":5000,\"length\":1}\n{\"offset\":7,\"length\":0}";
        let extents = parse(text).unwrap();
        assert_eq!(extents.iter().collect::<Vec<_>>(), [20..35, 900..1000]);
        assert_eq!(extents.total_bytes(), 115);
        assert_eq!(extents.next(25), Some(25..35));
        assert_eq!(extents.next(35), Some(900..1000));
        assert_eq!(extents.next(1000), None);
        assert!(extents.intersects(&(34..36)) && !extents.intersects(&(35..900)));
    }

    #[test]
    fn errors_name_the_line() {
        let overflow = format!("{{\"offset\":0,\"length\":1}}\n{{\"offset\":{},\"length\":1}}\n", u64::MAX);
        let text = parse(&overflow).unwrap_err().to_string();
        assert!(text.contains("changed.json, line 2: offset + length overflows"), "{text}");
        for bad in ["[]", "{}", "{\"offset\":-1,\"length\":1}", "{\"offset\":1.5,\"length\":1}", "nonsense"] {
            let text = parse(&format!("\n\n{bad}")).unwrap_err().to_string();
            assert!(text.contains("line 3"), "{text}");
        }
        let base = "0123456789abcdef".repeat(2);
        let text = format!("{{\"offset\":0,\"length\":1}}\n{{\"base\":\"{base}\"}}");
        assert!(parse(&text).unwrap_err().to_string().contains("line 2: the base is named by the first"));
        assert!(
            parse("{\"base\":\"latest\"}").unwrap_err().to_string().contains("line 1: the base is no id")
        );
        let named = parse(&format!("\n{{\"base\":\"{base}\"}}\n{{\"offset\":0,\"length\":1}}")).unwrap();
        assert_eq!(named.base(), PointId::from_hex(&base));
        let more = named.with([5..6, 1..2]);
        assert_eq!((more.base().is_some(), more.iter().collect::<Vec<_>>()), (true, vec![0..2, 5..6]));
        assert!(parse(&" ".repeat(5000)).unwrap_err().to_string().contains("line 1: longer"));
    }

    proptest! {
        /// Byte by byte the same set as was given, in sorted ranges with gaps between.
        #[test]
        fn same_bytes_as_given(given in prop::collection::vec((0u64..1200, 0u64..200), 0..30), from in 0u64..1100) {
            let text: String =
                given.iter().map(|(o, l)| format!("{{\"offset\":{o},\"length\":{l}}}\n")).collect();
            let extents = parse(&text).unwrap();
            let in_given = |byte: u64| given.iter().any(|&(o, l)| (o..o + l).contains(&byte));
            for byte in 0..1000 {
                prop_assert_eq!(extents.intersects(&(byte..byte + 1)), in_given(byte), "byte {}", byte);
            }
            let ranges: Vec<_> = extents.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(ranges.iter().all(|r| r.start < r.end && r.end <= 1000));
            let first = (from..1000).find(|&byte| in_given(byte));
            prop_assert_eq!(extents.next(from).map(|r| r.start), first);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extents::parse(bytes.as_slice(), "x", 1000);
        }
    }
}
