//! Tells when the process that computes has come to rest: when each of its threads waits. The world's
//! threads run on one processor, so nothing moves while this
//! thread looks at them, unless it was interrupted; then it looks again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::stage::{Stage, thread_id};

/// Longest that a process may compute between two operations.
const PATIENCE: Duration = Duration::from_secs(120);

/// The threads of this program.
pub struct Watch {
    own: u32,
    own_turns: File,
    program: File,
    /// Threads of the program that are none of the world's.
    strangers: BTreeSet<u32>,
    /// Threads, and which process each belongs to.
    threads: BTreeMap<u32, (usize, File)>,
    listed: u64,
}

enum State {
    Waits,
    Runs,
    Gone,
}

impl Watch {
    pub fn new() -> Self {
        let own = thread_id();
        let mut watch = Self {
            own,
            own_turns: File::open(format!("/proc/self/task/{own}/schedstat")).unwrap(),
            program: File::open("/proc/self/stat").unwrap(),
            strangers: BTreeSet::new(),
            threads: BTreeMap::new(),
            listed: 0,
        };
        watch.strangers = watch.list().into_iter().collect();
        watch
    }

    fn list(&self) -> Vec<u32> {
        let entries = std::fs::read_dir("/proc/self/task").unwrap();
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }

    /// Waits until the process that computes rests.
    pub fn settle(&mut self, stage: &Stage) -> Result<(), String> {
        let began = Instant::now();
        for turn in 0u64.. {
            std::thread::yield_now();
            if self.rests(stage) {
                return Ok(());
            }
            if turn > 20 {
                std::thread::park_timeout(Duration::from_micros(50));
                if began.elapsed() > PATIENCE {
                    return Err(format!("a process computes for more than {PATIENCE:?}"));
                }
            }
        }
        Ok(())
    }

    fn rests(&mut self, stage: &Stage) -> bool {
        let turns = number(&self.own_turns, 2);
        let (running, parked) = {
            let state = stage.state();
            let parked: BTreeSet<u32> = state.parked.iter().map(|parked| parked.thread_id).collect();
            (state.running, parked)
        };
        if number(&self.program, 19) != self.listed {
            self.look_for_new_threads(running);
        }
        let mut gone = Vec::new();
        let mut rests = true;
        for (id, (process, file)) in &self.threads {
            if *process != running || parked.contains(id) {
                continue;
            }
            match state_of(file) {
                State::Waits => {}
                State::Runs => {
                    rests = false;
                    break;
                }
                State::Gone => gone.push(*id),
            }
        }
        if !gone.is_empty() {
            gone.iter().for_each(|id| drop(self.threads.remove(id)));
            self.listed = 0; // others may have come in their place
            return false;
        }
        rests && number(&self.own_turns, 2) == turns
    }

    fn look_for_new_threads(&mut self, running: usize) {
        let ids = self.list();
        self.listed = ids.len() as u64;
        for id in ids {
            if id != self.own && !self.strangers.contains(&id) && !self.threads.contains_key(&id) {
                // One that is gone already is in the next list no more.
                if let Ok(file) = File::open(format!("/proc/self/task/{id}/stat")) {
                    self.threads.insert(id, (running, file));
                }
            }
        }
    }
}

/// A field of a line of numbers, behind the name in brackets if there is one.
fn number(file: &File, field: usize) -> u64 {
    let mut bytes = [0; 1024];
    let count = file.read_at(&mut bytes, 0).unwrap_or(0);
    let text = std::str::from_utf8(&bytes[..count]).unwrap_or_default();
    let (skipped, text) = text.rsplit_once(") ").map_or((0, text), |(_, rest)| (2, rest));
    text.split_ascii_whitespace().nth(field - skipped).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn state_of(file: &File) -> State {
    let mut bytes = [0; 64];
    let Ok(count) = file.read_at(&mut bytes, 0) else { return State::Gone };
    // `12 (name) S …`, and no name of a thread here has brackets in it.
    match bytes[..count].iter().position(|byte| *byte == b')').and_then(|at| bytes.get(at + 2)) {
        Some(b'S') => State::Waits,
        Some(b'X' | b'Z') | None => State::Gone,
        Some(_) => State::Runs,
    }
}
