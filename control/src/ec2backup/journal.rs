//! What a run makes in the account, written down before it is asked for and once its id is known. The file is locked while the run lives: one that is not
//! locked is of a run that died. Tags in the account say the same; the journal knows also what cannot be seen there yet.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use penstock_engine::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Kinds of things in an account.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thing {
    /// `vol-…`.
    Volume,
    /// `snap-…`.
    Snapshot,
    /// `ami-…`.
    Image,
}

impl Thing {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Thing::Volume => "volume",
            Thing::Snapshot => "snapshot",
            Thing::Image => "image",
        }
    }
}

/// Something that was asked for: several may be at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ask(u32);

/// A line of the journal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase")]
enum Step {
    Begun {
        run: String,
        instance: String,
        region: String,
        at_s: i64,
    },
    Asked {
        ask: Ask,
        thing: Thing,
        at_s: i64,
    },
    /// `ask` is not there for what came with something else.
    Made {
        ask: Option<Ask>,
        thing: Thing,
        id: String,
        at_s: i64,
    },
    /// Taken away, or made to stay.
    Settled {
        id: String,
    },
}

/// Of this run.
pub struct Journal {
    path: PathBuf,
    file: File,
    asked: u32,
    /// 16 hex digits.
    pub run: String,
}

/// Of a run that died.
#[derive(Debug)]
pub struct Dead {
    path: PathBuf,
    /// Its id.
    pub run: String,
    /// What it made and did not take away, and when (Unix seconds).
    pub left: BTreeMap<String, (Thing, i64)>,
    /// When it last asked for something without having noted an answer.
    pub unanswered_s: Option<i64>,
    // held, so that two sweeps do not meet
    _file: File,
}

/// What is known of runs of this machine.
#[derive(Debug, Default)]
pub struct Runs {
    /// Ids of those under way.
    pub alive: Vec<String>,
    /// Those that died.
    pub dead: Vec<Dead>,
}

fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn dir_of(state_dir: &Path) -> PathBuf {
    state_dir.join("ec2")
}

impl Journal {
    /// Begins one. Without it nothing is made: nobody would know whose it is.
    pub fn begin(state_dir: &Path, instance: &str, region: &str) -> Result<Self> {
        let dir = dir_of(state_dir);
        fs::create_dir_all(&dir).map_err(Error::io("create", dir.display()))?;
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::Invalid { what: format!("the system gives no random numbers: {e}") })?;
        let run = bytes.map(|byte| format!("{byte:02x}")).concat();
        let path = dir.join(format!("{run}.jsonl"));
        // Locked before it has its name: a sweep never sees it free.
        let fresh = dir.join(format!("{run}.new"));
        let io = |action| Error::io(action, fresh.display().to_string());
        let file =
            OpenOptions::new().read(true).append(true).create_new(true).open(&fresh).map_err(io("create"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| io("lock")(e.into()))?;
        let mut journal = Self { path: path.clone(), file, asked: 0, run: run.clone() };
        journal.write(&Step::Begun {
            run,
            instance: instance.to_owned(),
            region: region.to_owned(),
            at_s: now_s(),
        })?;
        fs::rename(&fresh, &path).map_err(io("rename"))?;
        Ok(journal)
    }

    /// Something is about to be asked for.
    pub fn asks(&mut self, thing: Thing) -> Result<Ask> {
        let ask = Ask(self.asked);
        self.asked += 1;
        self.write(&Step::Asked { ask, thing, at_s: now_s() })?;
        Ok(ask)
    }

    /// It has this id.
    pub fn made(&mut self, ask: Option<Ask>, thing: Thing, id: &str) -> Result<()> {
        self.write(&Step::Made { ask, thing, id: id.to_owned(), at_s: now_s() })
    }

    /// It was taken away, or made to stay.
    pub fn settled(&mut self, id: &str) -> Result<()> {
        self.write(&Step::Settled { id: id.to_owned() })
    }

    /// Everything is settled.
    pub fn end(self) {
        let _ = fs::remove_file(&self.path);
    }

    fn write(&mut self, step: &Step) -> Result<()> {
        let mut line = serde_json::to_vec(step)
            .map_err(|e| Error::Invalid { what: format!("a step cannot be written as JSON: {e}") })?;
        line.push(b'\n');
        let io = |action| Error::io(action, self.path.display().to_string());
        self.file.write_all(&line).map_err(io("write"))?;
        self.file.sync_data().map_err(io("write"))
    }
}

impl Dead {
    /// Nothing of it is left.
    pub fn end(self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Runs {
    /// Reads all journals of this machine.
    pub fn read(state_dir: &Path) -> Result<Self> {
        let dir = dir_of(state_dir);
        let mut runs = Self::default();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(runs),
            Err(e) => return Err(Error::io("list", dir.display())(e)),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let (Some(run), Some(end)) =
                (path.file_stem().and_then(|s| s.to_str()), path.extension().and_then(|e| e.to_str()))
            else {
                continue;
            };
            let run = run.to_owned();
            let Ok(file) = OpenOptions::new().read(true).append(true).open(&path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                runs.alive.push(run);
            } else if end == "jsonl" {
                runs.dead.push(read_dead(path, run, file));
            } else {
                // It died before it asked for anything.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(runs)
    }
}

fn read_dead(path: PathBuf, run: String, mut file: File) -> Dead {
    let mut text = String::new();
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    let mut left = BTreeMap::new();
    let mut unanswered: BTreeMap<Ask, i64> = BTreeMap::new();
    // A line that a crash cut short does not parse.
    for step in text.lines().filter_map(|line| serde_json::from_str::<Step>(line).ok()) {
        match step {
            Step::Begun { .. } => {}
            Step::Asked { ask, at_s, .. } => drop(unanswered.insert(ask, at_s)),
            Step::Made { ask, thing, id, at_s } => {
                ask.and_then(|ask| unanswered.remove(&ask));
                left.insert(id, (thing, at_s));
            }
            Step::Settled { id } => drop(left.remove(&id)),
        }
    }
    let unanswered_s = unanswered.into_values().max();
    Dead { path, run, left, unanswered_s, _file: file }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_died_is_known_by_what_it_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), "i-1", "us-east-1").unwrap();
        let ask = journal.asks(Thing::Snapshot).unwrap();
        let other = journal.asks(Thing::Volume).unwrap();
        journal.made(Some(ask), Thing::Snapshot, "snap-1").unwrap();
        journal.made(Some(ask), Thing::Snapshot, "snap-2").unwrap();
        journal.settled("snap-1").unwrap();
        let run = journal.run.clone();
        assert_eq!(Runs::read(dir.path()).unwrap().alive, std::slice::from_ref(&run));
        journal.file.write_all(b"{\"step\":\"made\",\"thi").unwrap();
        drop(journal);
        let mut runs = Runs::read(dir.path()).unwrap();
        let dead = runs.dead.pop().unwrap();
        assert_eq!((dead.run.as_str(), dead.left.len()), (run.as_str(), 1));
        assert!(dead.left.contains_key("snap-2") && dead.unanswered_s.is_some(), "the volume was asked for");
        dead.end();
        assert!(Runs::read(dir.path()).unwrap().dead.is_empty());
        assert_ne!(ask, other);
    }

    #[test]
    fn a_run_that_ended_leaves_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        Journal::begin(dir.path(), "i-1", "us-east-1").unwrap().end();
        let runs = Runs::read(dir.path()).unwrap();
        assert!(runs.alive.is_empty() && runs.dead.is_empty());
    }
}
