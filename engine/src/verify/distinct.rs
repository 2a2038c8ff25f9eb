//! Counts how many different numbers there are among any number of them, in little memory: what does not fit is
//! sorted and written to a file without a name, and merged at the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result};
use crate::id::random_bytes;

/// Numbers held before they are written: 8 MiB.
const HELD: usize = 1 << 20;
/// Numbers of a run that are read at a time: 32 KiB.
const READ: usize = 4 << 10;

/// The numbers so far.
pub struct Distinct {
    held: Vec<u64>,
    held_max: usize,
    spilled: Option<Spilled>,
}

/// Sorted runs in a file.
struct Spilled {
    file: File,
    /// Numbers in each run.
    runs: Vec<usize>,
    numbers: usize,
}

impl Default for Distinct {
    fn default() -> Self {
        Self::holding(HELD)
    }
}

impl Distinct {
    fn holding(held_max: usize) -> Self {
        Self { held: Vec::new(), held_max, spilled: None }
    }

    /// Adds a number.
    pub fn add(&mut self, number: u64) -> Result<()> {
        self.held.push(number);
        if self.held.len() < self.held_max {
            return Ok(());
        }
        self.settle();
        // If most were known, there is room again.
        if self.held.len() > self.held_max / 2 { self.spill() } else { Ok(()) }
    }

    fn settle(&mut self) {
        self.held.sort_unstable();
        self.held.dedup();
    }

    fn spill(&mut self) -> Result<()> {
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            slot => slot.insert(Spilled { file: nameless_file()?, runs: Vec::new(), numbers: 0 }),
        };
        let bytes: Vec<u8> = self.held.iter().flat_map(|number| number.to_le_bytes()).collect();
        let written = spilled.file.write_all_at(&bytes, spilled.numbers as u64 * 8);
        written.map_err(Error::io("write", "a temporary file"))?;
        spilled.runs.push(self.held.len());
        spilled.numbers += self.held.len();
        self.held.clear();
        Ok(())
    }

    /// How many different ones were added.
    pub fn count(mut self) -> Result<u64> {
        self.settle();
        if self.spilled.is_none() {
            return Ok(self.held.len() as u64);
        }
        if !self.held.is_empty() {
            self.spill()?;
        }
        self.spilled.map_or(Ok(0), |spilled| spilled.count())
    }
}

impl Spilled {
    fn count(self) -> Result<u64> {
        let mut at = 0;
        let mut runs: Vec<RunReader> = Vec::with_capacity(self.runs.len());
        for len in &self.runs {
            runs.push(RunReader { next: at, end: at + len, read: Vec::new(), given: 0 });
            at += len;
        }
        let mut heap = BinaryHeap::with_capacity(runs.len());
        for (run, reader) in runs.iter_mut().enumerate() {
            heap.extend(reader.next(&self.file)?.map(|number| Reverse((number, run))));
        }
        let (mut count, mut last) = (0, None);
        while let Some(Reverse((number, run))) = heap.pop() {
            count += u64::from(last != Some(number));
            last = Some(number);
            heap.extend(runs[run].next(&self.file)?.map(|number| Reverse((number, run))));
        }
        Ok(count)
    }
}

/// Reads one run.
struct RunReader {
    next: usize,
    end: usize,
    read: Vec<u64>,
    given: usize,
}

impl RunReader {
    fn next(&mut self, file: &File) -> Result<Option<u64>> {
        if self.given == self.read.len() {
            let count = READ.min(self.end - self.next);
            let mut bytes = vec![0; count * 8];
            file.read_exact_at(&mut bytes, self.next as u64 * 8)
                .map_err(Error::io("read", "a temporary file"))?;
            self.read = bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes).collect();
            (self.next, self.given) = (self.next + count, 0);
        }
        let number = self.read.get(self.given).copied();
        self.given += 1;
        Ok(number)
    }
}

/// A file that is gone when it is closed.
fn nameless_file() -> Result<File> {
    let path = std::env::temp_dir().join(format!("penstock-{}", hex::encode(random_bytes::<8>()?)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(Error::io("create", path.display()))?;
    std::fs::remove_file(&path).map_err(Error::io("remove", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn counts_as_a_set_does(numbers in proptest::collection::vec(0u64..200, 0..600), held_max in 2usize..50) {
            let mut distinct = Distinct::holding(held_max);
            for number in &numbers {
                distinct.add(*number).unwrap();
            }
            let expected = numbers.iter().collect::<HashSet<_>>().len() as u64;
            prop_assert_eq!(distinct.count().unwrap(), expected);
        }
    }

    #[test]
    fn long_runs_are_read_piece_by_piece() {
        let mut distinct = Distinct::holding(3 * READ);
        for number in 0..10 * READ as u64 {
            distinct.add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
            distinct.add(7).unwrap();
        }
        assert_eq!(distinct.count().unwrap(), 10 * READ as u64 + 1);
    }
}
