//! Rows of runs in the order of their ids, read as a stream: one run, or several merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

use super::runs::Run;
use super::segment::Segment;
use crate::error::Result;
use crate::format::index_segment::Row;
use crate::simulation::{Bug, planted};
use crate::store::Store;

/// Pages read at a time over all runs that are merged: 8 MiB, and as much again decoded.
const PAGES_AT_A_TIME: usize = 2048;
/// Pages read at a time from one run: 1 MiB, and not less than 64 KiB.
const PAGES_PER_RUN: std::ops::RangeInclusive<usize> = 16..=256;

/// The rows of one run.
struct RunRows {
    parts: Vec<Arc<Segment>>,
    /// The part that `rows` are of, and the page behind them.
    part: usize,
    next_page: usize,
    pages_at_a_time: usize,
    stored: Vec<u8>,
    rows: Vec<Row>,
    at: usize,
    last: Option<[u8; 32]>,
}

impl RunRows {
    fn new(run: &Run, pages_at_a_time: usize) -> Self {
        let parts = run.parts().to_vec();
        Self {
            parts,
            part: 0,
            next_page: 0,
            pages_at_a_time,
            stored: Vec::new(),
            rows: Vec::new(),
            at: 0,
            last: None,
        }
    }

    fn current(&self) -> Option<&Row> {
        self.rows.get(self.at)
    }

    /// Goes on to the next row, or to the first.
    fn advance(&mut self, store: &dyn Store) -> Result<()> {
        self.at += 1;
        if self.at < self.rows.len() {
            return Ok(());
        }
        self.last = self.rows.last().map(|row| row.id).or(self.last);
        self.rows.clear();
        self.at = 0;
        while let Some(part) = self.parts.get(self.part) {
            let count = self.pages_at_a_time.min(part.page_count() - self.next_page);
            if count == 0 {
                (self.part, self.next_page) = (self.part + 1, 0);
                continue;
            }
            part.read_rows(store, self.next_page, count, &mut self.stored, &mut self.rows)?;
            self.next_page += count;
            let ascending = self.rows.is_sorted_by(|one, other| one.id < other.id)
                && self.rows.first().is_none_or(|row| self.last.is_none_or(|last| last < row.id));
            if !ascending {
                return Err(part.disordered());
            }
            break;
        }
        Ok(())
    }
}

/// What a row is worth, the worst first. Of the rows of one id the best is kept, and of equal ones the newest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowStatus {
    /// Its pack is deleted: it does not count.
    Deleted,
    /// Its pack was put aside as damaged. It counts if its id has no better one.
    Aside,
    /// Its pack is missing. It counts if its id has no better one.
    Lost,
    /// Its pack may be deleted. It counts if its id has no better one.
    Condemned,
    /// Its pack is there to stay.
    Live,
}

/// A row, and who has it.
#[derive(Clone, Copy)]
pub struct Found {
    /// The row; its pack number counts through the segment's packs.
    pub row: Row,
    /// Number of the run in the order they were given in.
    pub run: usize,
    /// Number of the part in the run.
    pub part: usize,
}

/// The rows of several runs, merged: every id once, from the newest run of the best status.
pub struct MergedRows<'s> {
    store: &'s dyn Store,
    runs: Vec<RunRows>,
    /// The current id of each run that has rows left; the least is on top, of equal ones that of the newest run.
    heap: BinaryHeap<Reverse<([u8; 32], Reverse<usize>)>>,
}

impl<'s> MergedRows<'s> {
    /// Runs are given oldest first.
    pub fn new(store: &'s dyn Store, runs: &[Run]) -> Result<Self> {
        let at_a_time =
            (PAGES_AT_A_TIME / runs.len().max(1)).clamp(*PAGES_PER_RUN.start(), *PAGES_PER_RUN.end());
        let mut merged = Self {
            store,
            runs: runs.iter().map(|run| RunRows::new(run, at_a_time)).collect(),
            heap: BinaryHeap::with_capacity(runs.len()),
        };
        for (number, run) in merged.runs.iter_mut().enumerate() {
            run.advance(store)?;
            merged.heap.extend(run.current().map(|row| Reverse((row.id, Reverse(number)))));
        }
        Ok(merged)
    }

    /// The row of the next id that has one that counts. Of several it is the newest of the best status.
    pub fn next(&mut self, status: &dyn Fn(&Row, &Segment) -> RowStatus) -> Result<Option<Found>> {
        let mut chosen: Option<(Found, RowStatus)> = None;
        while let Some(Reverse((_, Reverse(run)))) = self.heap.peek().copied() {
            let Some(row) = self.runs[run].current().copied() else { break };
            if chosen.is_some_and(|(chosen, _)| chosen.row.id != row.id) {
                break;
            }
            let found = Found { row, run, part: self.runs[run].part };
            let best_so_far = chosen.map_or(RowStatus::Deleted, |(_, status)| status);
            if best_so_far < RowStatus::Live || planted(Bug::MergeTakesOlder) {
                let of_row = status(&row, self.segment(&found));
                let taken = of_row != RowStatus::Deleted && planted(Bug::MergeTakesOlder);
                if of_row > best_so_far || taken {
                    chosen = Some((found, of_row));
                }
            }
            self.step()?;
        }
        Ok(chosen.map(|(found, _)| found))
    }

    /// The segment that has a row.
    pub fn segment(&self, found: &Found) -> &Segment {
        &self.runs[found.run].parts[found.part]
    }

    /// True if all rows were given out.
    pub fn is_done(&self) -> bool {
        self.heap.is_empty()
    }

    /// Advances the run at the top of the heap.
    fn step(&mut self) -> Result<()> {
        let Some(mut top) = self.heap.peek_mut() else { return Ok(()) };
        let Reverse((id, Reverse(number))) = &mut *top;
        let run = &mut self.runs[*number];
        run.advance(self.store)?;
        match run.current() {
            Some(row) => *id = row.id,
            None => drop(PeekMut::pop(top)),
        }
        Ok(())
    }
}
