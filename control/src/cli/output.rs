//! What goes to standard output: tables and facts for people, one JSON value a run for programs.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::exit::Failure;

/// Writes `text` as it is.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::io("write", "standard output")(e),
    })
}

/// Writes the one object (or array) of a `--json` run, on one line.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&(json_text(value)? + "\n"))
}

/// `value` as JSON text.
pub fn json_text(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|e| Failure::Failed(format!("the result cannot be written as JSON: {e}")))
}

/// Tells the user something beside the result. A closed standard error is no reason to fail.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// True if standard output may be coloured: a terminal, and no `NO_COLOR`.
pub fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && io::stdout().is_terminal()
}

/// RFC 3339 to whole seconds; anything else as it is.
pub fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => match jiff::Timestamp::from_second(time.as_second()) {
            Ok(seconds) => seconds.to_string(),
            Err(_) => text.to_owned(),
        },
        Err(_) => text.to_owned(),
    }
}

/// The first 12 of 32 hex digits: the milliseconds of a recovery point, enough to name it.
pub fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Columns padded to their widest cell. Numbers are set flush right.
pub struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// `>` before a heading sets its column flush right.
    pub fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|h| h.starts_with('>')).collect();
        Self { right, rows: vec![headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect()] }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.right.len());
        self.rows.push(cells);
    }

    /// The text, a line a row, without trailing blanks.
    pub fn text(&self) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&self.right) {
                line += &if right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Labelled facts, one a line.
#[derive(Default)]
pub struct Facts(Vec<(String, String)>);

impl Facts {
    /// Adds a fact.
    pub fn add(&mut self, label: impl Into<String>, value: impl Into<String>) {
        self.0.push((label.into(), value.into()));
    }

    /// The text, indented by two.
    pub fn text(&self) -> String {
        let width = self.0.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        self.0.iter().map(|(label, value)| format!("  {label:<width$}  {value}\n")).collect()
    }
}

/// A byte range as the rest of the program writes it (the same shape as a line of `--changed-extents`).
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct JsonRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

impl From<&std::ops::Range<u64>> for JsonRange {
    fn from(range: &std::ops::Range<u64>) -> Self {
        Self { offset: range.start, length: range.end.saturating_sub(range.start) }
    }
}

/// Up to `shown` ranges, one a line, then how many more there are.
pub fn ranges_text(ranges: &[std::ops::Range<u64>], shown: usize, indent: &str) -> String {
    let mut text = String::new();
    for range in ranges.iter().take(shown) {
        let length = range.end.saturating_sub(range.start);
        text += &format!("{indent}at {:>16}  {}\n", range.start, super::units::size(length));
    }
    if ranges.len() > shown {
        text += &format!("{indent}… and {} more\n", super::units::count((ranges.len() - shown) as u64));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&["name", ">size"]);
        table.row(vec!["a".into(), "1 KiB".into()]);
        table.row(vec!["längst".into(), "12.5 MiB".into()]);
        assert_eq!(table.text(), "name        size\na          1 KiB\nlängst  12.5 MiB\n");
        let mut facts = Facts::default();
        facts.add("read", "1 KiB");
        facts.add("reused", "2 KiB");
        assert_eq!(facts.text(), "  read    1 KiB\n  reused  2 KiB\n");
    }

    #[test]
    fn long_lists_of_ranges_are_cut() {
        let ranges: Vec<_> = (0..25u64).map(|i| i * 8192..i * 8192 + 4096).collect();
        let text = ranges_text(&ranges, 20, "  ");
        assert_eq!(text.lines().count(), 21);
        assert!(text.ends_with("… and 5 more\n"));
        assert_eq!(ranges_text(&ranges, usize::MAX, "").lines().count(), 25);
        assert_eq!(JsonRange::from(&(4..10)), JsonRange { offset: 4, length: 6 });
    }

    #[test]
    fn times_are_cut_to_seconds() {
        assert_eq!(time("2026-11-24T05:44:01.123456Z"), "2026-11-24T05:44:01Z");
        assert_eq!(time("yesterday"), "yesterday");
        assert_eq!(short_id("0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("01"), "01");
    }
}
