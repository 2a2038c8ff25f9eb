//! What is wrong, gathered by several threads: counted exactly, listed up to a bound.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::distinct::Distinct;
use crate::error::{Error, Result};
use crate::run::Run;

/// Problems that are listed; more are counted.
pub const LISTED_MAX: usize = 1000;

/// Problems met so far.
pub struct Problems<'a> {
    run: &'a Run,
    state: Mutex<State>,
}

/// A problem that is listed, and what tells it from others.
pub type Listed = (u64, String);

#[derive(Default)]
struct State {
    lines: Vec<Listed>,
    /// What `lines` are of.
    listed: HashSet<u64>,
    seen: Distinct,
    /// Of an earlier part of this verification, and not in `lines`.
    before: u64,
}

impl<'a> Problems<'a> {
    /// Those of an earlier part: `count` in all, of which `lines` were listed.
    pub fn after(run: &'a Run, lines: Vec<Listed>, count: u64) -> Result<Self> {
        let mut state = State { before: count.saturating_sub(lines.len() as u64), ..State::default() };
        for (print, _) in &lines {
            state.listed.insert(*print);
            state.seen.add(*print)?;
        }
        state.lines = lines;
        Ok(Self { run, state: Mutex::new(state) })
    }

    /// Notes damage; other errors end the verification.
    pub fn note(&self, error: Error) -> Result<()> {
        if !is_problem(&error) {
            return Err(error);
        }
        let line = error.to_string().replace(". `penstock verify` lists what is hurt", "");
        self.add(print_of(&line), || line)
    }

    /// Notes that a content is nowhere. There may be a great many of them, so no text is made that is not listed.
    pub fn note_lost(&self, id: &[u8; 32]) -> Result<()> {
        let print = u64::from_le_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]]);
        self.add(print, || format!("content {} is missing, but a manifest needs it", hex::encode(id)))
    }

    fn add(&self, print: u64, line: impl FnOnce() -> String) -> Result<()> {
        self.run.progress.problems.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.seen.add(print)?;
        if state.lines.len() < LISTED_MAX && state.listed.insert(print) {
            state.lines.push((print, line()));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each critical section is a push or two: a panic leaves no half of one that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines, and how many problems there are in all.
    pub fn end(self) -> Result<(Vec<Listed>, u64)> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((state.lines, state.before + state.seen.count()?))
    }
}

/// True for what is wrong with an object; other errors end the verification.
pub fn is_problem(error: &Error) -> bool {
    error.is_damage() || matches!(error, Error::NewerVersion { .. })
}

/// Tells one line from another.
fn print_of(line: &str) -> u64 {
    let hash = blake3::hash(line.as_bytes());
    u64::from_le_bytes(hash.as_bytes().first_chunk().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_counts_once_and_not_all_are_listed() {
        let run = Run::new();
        let problems = Problems::after(&run, Vec::new(), 0).unwrap();
        for n in 0..3 * LISTED_MAX as u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n / 2).to_le_bytes());
            problems.note_lost(&id).unwrap();
        }
        problems.note(Error::damaged("data/ab/x", "a bad tag")).unwrap();
        assert!(matches!(problems.note(Error::Cancelled), Err(Error::Cancelled)));
        let (lines, count) = problems.end().unwrap();
        assert_eq!((lines.len(), count), (LISTED_MAX, 3 * LISTED_MAX as u64 / 2 + 1));
        // A second part that meets some of them again.
        let part = Problems::after(&run, lines, count).unwrap();
        part.note_lost(&[0; 32]).unwrap();
        part.note(Error::damaged("data/cd/y", "a bad tag")).unwrap();
        assert_eq!(part.end().unwrap().1, count + 1);
    }
}
