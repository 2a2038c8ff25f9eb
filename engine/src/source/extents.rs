//! The changed-extents file: which ranges of a volume changed since its parent, from whoever tracks that (dm-era, a
//! hypervisor, changed block tracking of a cloud).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// Longest line that is accepted; the longest sensible one has 64 bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Sorted, disjoint, non-empty ranges of a volume, in bytes. Ranges that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Range<u64>>);

#[derive(Deserialize)]
struct Line {
    offset: u64,
    length: u64,
}

impl Extents {
    /// Reads the file at `path`; see [`Extents::parse`].
    pub fn load(path: &Path, volume_bytes: u64) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io("open", &name))?;
        Self::parse(BufReader::new(file), &name, volume_bytes)
    }

    /// Reads one JSON object a line, `{"offset": n, "length": n}` in bytes, in any order; further members are
    /// ignored, and so are empty lines and what lies past `volume_bytes`.
    ///
    /// Fails with [`Error::Invalid`], naming `name` and the line, if a line is something else or its end overflows 64
    /// bits.
    pub fn parse(mut input: impl BufRead, name: &str, volume_bytes: u64) -> Result<Self> {
        let mut ranges = Vec::new();
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
            let Line { offset, length } = serde_json::from_slice(&text).map_err(|e| invalid(&e))?;
            let end = offset.checked_add(length).ok_or_else(|| invalid(&"offset + length overflows"))?;
            ranges.push(offset..end.min(volume_bytes));
        }
        Ok(Self::from_ranges(ranges))
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
        Self(ranges)
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// Bytes in all ranges.
    pub fn total_bytes(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }

    /// True if a byte of `range` is in one of the ranges.
    pub fn intersects(&self, range: &Range<u64>) -> bool {
        self.next(range.start).is_some_and(|found| found.start < range.end)
    }

    /// The first range that ends after `from`, cut to begin there; the counterpart of [`super::Source::next_data`].
    pub fn next(&self, from: u64) -> Option<Range<u64>> {
        let index = self.0.partition_point(|r| r.end <= from);
        self.0.get(index).map(|r| r.start.max(from)..r.end)
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
