//! What a run makes in the account, written down before it is asked for and once its id is known. The file is locked while the run lives: one that is not
//! locked is of a run that died. Tags in the account say the same; the journal knows also what cannot be seen there yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use penstock_engine::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// `i-…`.
    Instance,
    /// `sg-…`.
    Group,
}

impl Thing {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Thing::Volume => "volume",
            Thing::Snapshot => "snapshot",
            Thing::Image => "image",
            Thing::Instance => "instance",
            Thing::Group => "security group",
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
    /// What a restore is to do, so that it can be continued, and until when its things are not leftovers.
    Planned {
        expires: String,
        plan: Value,
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
        /// What a continued run knows it by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
    },
    /// Taken away, or made to stay.
    Settled {
        id: String,
    },
    /// A part of the work is done, and need not be done again.
    Done {
        what: String,
    },
    /// A volume of the user's was taken from where it was.
    Lent(Loan),
    /// It is there again.
    Returned {
        volume: String,
    },
}

/// A volume of the user's that is at the proxy for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Loan {
    /// `vol-…`.
    pub volume: String,
    /// Where it belongs: instance and device; nowhere if `None`.
    pub home: Option<(String, String)>,
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
    /// Where.
    pub region: String,
    /// What it made and did not take away, and when (Unix seconds).
    pub left: BTreeMap<String, (Thing, i64)>,
    /// What was made for what, also what stays.
    pub roles: BTreeMap<String, String>,
    /// What was made to stay, or is gone.
    pub settled: BTreeSet<String>,
    /// Parts of the work that are done.
    pub done: BTreeSet<String>,
    /// What a restore was to do, and until when its things are no leftovers.
    pub planned: Option<(String, Value)>,
    /// Volumes of the user's that are not where they belong.
    pub loans: Vec<Loan>,
    /// When it last asked for something without having noted an answer.
    pub unanswered_s: Option<i64>,
    asked: u32,
    // held, so that two sweeps do not meet
    file: File,
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

    /// It has this id. `role`: what a continued run knows it by.
    pub fn made(&mut self, ask: Option<Ask>, thing: Thing, id: &str, role: Option<&str>) -> Result<()> {
        let role = role.map(str::to_owned);
        self.write(&Step::Made { ask, thing, id: id.to_owned(), at_s: now_s(), role })
    }

    /// What a restore is to do.
    pub fn planned(&mut self, expires: &str, plan: &Value) -> Result<()> {
        self.write(&Step::Planned { expires: expires.to_owned(), plan: plan.clone() })
    }

    /// A part of the work is done.
    pub fn done(&mut self, what: &str) -> Result<()> {
        self.write(&Step::Done { what: what.to_owned() })
    }

    /// A volume of the user's is about to be taken from where it is.
    pub fn lent(&mut self, loan: &Loan) -> Result<()> {
        self.write(&Step::Lent(loan.clone()))
    }

    /// It is there again.
    pub fn returned(&mut self, volume: &str) -> Result<()> {
        self.write(&Step::Returned { volume: volume.to_owned() })
    }

    /// A file of this run's own beside the journal, which goes with it.
    pub fn beside(&self, name: &str) -> PathBuf {
        beside(&self.path, name)
    }

    /// It was taken away, or made to stay.
    pub fn settled(&mut self, id: &str) -> Result<()> {
        self.write(&Step::Settled { id: id.to_owned() })
    }

    /// Everything is settled.
    pub fn end(self) {
        remove(&self.path);
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

/// `RUN.NAME` beside `RUN.jsonl`.
fn beside(path: &Path, name: &str) -> PathBuf {
    path.with_extension(name)
}

/// Removes a journal, and what lies beside it: that first, since nobody finds it without the journal.
fn remove(path: &Path) {
    let of_run = |entry: &fs::DirEntry| {
        let other = entry.path();
        let stem = |p: &Path| Some(p.file_name()?.to_str()?.split('.').next()?.to_owned());
        other != path && stem(&other) == stem(path)
    };
    let entries = path.parent().and_then(|dir| fs::read_dir(dir).ok());
    for entry in entries.into_iter().flatten().flatten().filter(of_run) {
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_file(path);
}

impl Dead {
    /// Nothing of it is left.
    pub fn end(self) {
        remove(&self.path);
    }

    /// Goes on with it.
    pub fn revive(self) -> Journal {
        Journal { path: self.path, file: self.file, asked: self.asked, run: self.run }
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
            if !matches!(end, "jsonl" | "new") {
                continue;
            }
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
    let mut unanswered: BTreeMap<Ask, i64> = BTreeMap::new();
    let mut dead = Dead {
        path,
        run,
        region: String::new(),
        left: BTreeMap::new(),
        roles: BTreeMap::new(),
        settled: BTreeSet::new(),
        done: BTreeSet::new(),
        planned: None,
        loans: Vec::new(),
        unanswered_s: None,
        asked: 0,
        file,
    };
    // A line that a crash cut short does not parse.
    for step in text.lines().filter_map(|line| serde_json::from_str::<Step>(line).ok()) {
        match step {
            Step::Begun { region, .. } => dead.region = region,
            Step::Planned { expires, plan } => dead.planned = Some((expires, plan)),
            Step::Asked { ask, at_s, .. } => {
                dead.asked = dead.asked.max(ask.0 + 1);
                unanswered.insert(ask, at_s);
            }
            Step::Made { ask, thing, id, at_s, role } => {
                ask.and_then(|ask| unanswered.remove(&ask));
                if let Some(role) = role {
                    dead.roles.insert(role, id.clone());
                }
                dead.left.insert(id, (thing, at_s));
            }
            Step::Settled { id } => {
                dead.left.remove(&id);
                dead.settled.insert(id);
            }
            Step::Done { what } => drop(dead.done.insert(what)),
            Step::Lent(loan) => dead.loans.push(loan),
            Step::Returned { volume } => dead.loans.retain(|loan| loan.volume != volume),
        }
    }
    dead.unanswered_s = unanswered.into_values().max();
    // What was cut short must not run into what a continued run writes.
    if !text.is_empty() && !text.ends_with('\n') {
        let _ = dead.file.write_all(b"\n");
    }
    dead
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
        journal.made(Some(ask), Thing::Snapshot, "snap-1", None).unwrap();
        journal.made(Some(ask), Thing::Snapshot, "snap-2", Some("of vol-1")).unwrap();
        journal.settled("snap-1").unwrap();
        let run = journal.run.clone();
        assert_eq!(Runs::read(dir.path()).unwrap().alive, std::slice::from_ref(&run));
        journal.file.write_all(b"{\"step\":\"made\",\"thi").unwrap();
        drop(journal);
        let mut runs = Runs::read(dir.path()).unwrap();
        let dead = runs.dead.pop().unwrap();
        assert_eq!((dead.run.as_str(), dead.left.len()), (run.as_str(), 1));
        assert!(dead.left.contains_key("snap-2") && dead.unanswered_s.is_some(), "the volume was asked for");
        assert_eq!(dead.region, "us-east-1");
        let beside = dead.path.with_extension("vol-1.sums");
        std::fs::write(&beside, "x").unwrap();
        let mut again = dead.revive();
        assert_eq!(again.beside("vol-1.sums"), beside);
        let third = again.asks(Thing::Instance).unwrap();
        assert!(third != ask && third != other);
        drop(again);
        let dead = Runs::read(dir.path()).unwrap().dead.pop().unwrap();
        assert_eq!(dead.roles["of vol-1"], "snap-2");
        assert!(dead.settled.contains("snap-1"));
        dead.end();
        assert!(Runs::read(dir.path()).unwrap().dead.is_empty());
        assert!(!beside.exists(), "what lies beside a journal goes with it");
        assert_ne!(ask, other);
    }

    #[test]
    fn loans_are_known_until_they_are_returned() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), "i-1", "us-east-1").unwrap();
        let home = Some(("i-9".to_owned(), "/dev/sdf".to_owned()));
        for volume in ["vol-1", "vol-2"] {
            journal.lent(&Loan { volume: volume.into(), home: home.clone() }).unwrap();
        }
        journal.returned("vol-1").unwrap();
        journal.planned("2030-01-01T00:00:00Z", &serde_json::json!({"a": 1})).unwrap();
        drop(journal);
        let dead = Runs::read(dir.path()).unwrap().dead.pop().unwrap();
        assert_eq!(dead.loans, [Loan { volume: "vol-2".into(), home }]);
        assert_eq!(dead.planned.as_ref().unwrap().1["a"], 1);
    }

    #[test]
    fn a_run_that_ended_leaves_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        Journal::begin(dir.path(), "i-1", "us-east-1").unwrap().end();
        let runs = Runs::read(dir.path()).unwrap();
        assert!(runs.alive.is_empty() && runs.dead.is_empty());
    }
}
