//! Which rows are needed: a bit per row, so that a collector's memory is an eighth of a byte for each content of the repository.

use std::collections::HashMap;
use std::sync::Arc;

use super::Index;
use super::runs::Runs;
use crate::error::Result;
use crate::format::index_segment::Row;
use crate::id::ObjectId;
use crate::pack::Location;

/// Pages read at a time when all rows are looked at: 1 MiB.
const PAGES_AT_A_TIME: usize = 256;

/// Marks on the rows of the segments that were live when it was made. A segment that is deleted meanwhile makes lookups fail with `Missing`: then marking begins anew.
pub struct Marks {
    runs: Arc<Runs>,
    bits: HashMap<ObjectId, Vec<u64>>,
}

/// What marking found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marked {
    /// Nobody had marked it.
    New(Location),
    /// It was marked before.
    Already,
    /// No row of it is usable at all.
    Nowhere,
}

/// Takes the id of a row, where it is, and whether it is marked.
pub type EachRow<'a> = dyn FnMut(&[u8; 32], &Location, bool) -> Result<()> + 'a;

/// The best rank of a pack: see [`Index::mark`].
pub const RANK_BEST: u8 = 4;

impl Index {
    /// No marks yet.
    pub fn marks(&self) -> Marks {
        let runs = Arc::clone(&self.lock_runs());
        let words = |entries: u64| vec![0; entries.div_ceil(64) as usize];
        let bits = runs.segments().map(|segment| (segment.id(), words(segment.entries()))).collect();
        Marks { runs, bits }
    }

    /// Marks one row of `id`: the newest in a pack of the best `rank`, at most [`RANK_BEST`]; packs of rank 0 have none.
    /// Of the same id it is always the same row.
    pub fn mark(&self, marks: &mut Marks, id: &[u8; 32], rank: &dyn Fn(&ObjectId) -> u8) -> Result<Marked> {
        let (mut chosen, mut best) = (None, 0);
        for segment in marks.runs.candidates(id) {
            let Some((row, location)) = segment.find_row(self.store.as_ref(), &self.pages, id)? else {
                continue;
            };
            let of_pack = rank(&location.pack.id);
            if of_pack > best {
                best = of_pack;
                chosen = Some((segment.id(), row, location));
            }
            if best >= RANK_BEST {
                break;
            }
        }
        let Some((segment, row, location)) = chosen else { return Ok(Marked::Nowhere) };
        let word = marks.bits.get_mut(&segment).and_then(|words| words.get_mut((row / 64) as usize));
        let Some(word) = word else { return Ok(Marked::Nowhere) };
        let bit = 1 << (row % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        Ok(if fresh { Marked::New(location) } else { Marked::Already })
    }

    /// Calls `each(id, location, marked)` for every row, in no particular order of ids.
    pub fn each_row_with_mark(&self, marks: &Marks, each: &mut EachRow<'_>) -> Result<()> {
        let (mut stored, mut rows) = (Vec::new(), Vec::<Row>::new());
        for segment in marks.runs.segments() {
            let bits = marks.bits.get(&segment.id());
            let mut number = 0usize;
            for first in (0..segment.page_count()).step_by(PAGES_AT_A_TIME) {
                let count = PAGES_AT_A_TIME.min(segment.page_count() - first);
                segment.read_rows(self.store.as_ref(), first, count, &mut stored, &mut rows)?;
                for row in &rows {
                    let word = bits.and_then(|words| words.get(number / 64)).copied().unwrap_or(0);
                    each(&row.id, &segment.location(row)?, word >> (number % 64) & 1 == 1)?;
                    number += 1;
                }
            }
        }
        Ok(())
    }
}
