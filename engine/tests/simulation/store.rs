//! The store that all simulated processes share: objects in memory, each operation of which the scheduler
//! decides on.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use penstock_engine::store::custody::{Custody, Extended, Facts, LockMode, ObjectLock, Thaw, Thawing};
use penstock_engine::store::{Body, Habits, PutOutcome, ReadAt, Span, Store};
use penstock_engine::{Error, Result};

use super::stage::Stage;

pub type Contents = Arc<[u8]>;

/// What a process asks for.
#[derive(Clone)]
pub enum Op {
    Put(String, Contents),
    Get(String, Span),
    /// A page of keys behind one.
    List(String, Option<String>),
    Delete(String),
    /// When an object was stored.
    Time(String),
    /// Locks that end before the first time are to last until the second.
    Lock(Vec<(String, Option<u64>)>, u64, u64),
}

/// What it is told.
#[derive(Clone)]
pub enum Answer {
    Put(PutOutcome),
    Got(Option<(u64, Contents)>),
    /// Keys and lengths; true if there are more.
    Listed(Vec<(String, u64)>, bool),
    Deleted,
    Time(Option<u64>),
    Locked(Extended),
    Failed(&'static str),
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put(key, _) | Op::Get(key, _) | Op::List(key, _) | Op::Delete(key) | Op::Time(key) => key,
            Op::Lock(objects, ..) => objects.first().map_or("", |(key, _)| key),
        }
    }

    pub fn verb(&self) -> &'static str {
        match self {
            Op::Put(..) => "put",
            Op::Get(..) => "get",
            Op::List(..) => "list",
            Op::Delete(_) => "delete",
            Op::Time(_) => "time of",
            Op::Lock(..) => "lock",
        }
    }

    pub fn changes(&self) -> bool {
        matches!(self, Op::Put(..) | Op::Delete(_) | Op::Lock(..))
    }

    /// In the same order in every replay, whichever thread came first.
    pub fn rank(&self) -> (String, &'static str, usize) {
        let more = match self {
            Op::Get(_, Span::At { offset, .. }) => *offset as usize,
            Op::Get(_, Span::Last(_)) => usize::MAX,
            _ => 0,
        };
        (self.key().to_owned(), self.verb(), more)
    }
}

/// The objects of one repository.
#[derive(Default)]
pub struct Objects {
    pub all: BTreeMap<String, Contents>,
    stored_ms: BTreeMap<String, u64>,
    /// Until when objects are locked.
    pub locked_ms: BTreeMap<String, u64>,
}

/// Locks of everything that is written, in worlds that have them.
pub const LOCK: ObjectLock =
    ObjectLock { mode: LockMode::Compliance, period: std::time::Duration::from_secs(10 * 86_400) };

impl Objects {
    /// Does it. `page` keys at most are listed at a time.
    pub fn apply(&mut self, op: &Op, page: usize, now_ms: u64) -> Answer {
        match op {
            Op::Put(key, _) if self.all.contains_key(key) => Answer::Put(PutOutcome::Exists),
            Op::Put(key, bytes) => {
                self.all.insert(key.clone(), bytes.clone());
                self.stored_ms.insert(key.clone(), now_ms);
                self.locked_ms.insert(key.clone(), until_ms(now_ms));
                Answer::Put(PutOutcome::Created)
            }
            Op::Get(key, span) => Answer::Got(self.all.get(key).map(|bytes| {
                let range = span.within(bytes.len() as u64);
                let all = *span == Span::All;
                let part =
                    if all { bytes.clone() } else { bytes[range.start as usize..range.end as usize].into() };
                (bytes.len() as u64, part)
            })),
            Op::List(prefix, after) => {
                let from = after.as_ref().unwrap_or(prefix).clone();
                let mut keys: Vec<(String, u64)> = Vec::new();
                let mut more = false;
                let behind = |key: &String| after.as_ref().is_none_or(|after| key > after);
                for (key, bytes) in self.all.range(from..).filter(|(key, _)| behind(key)) {
                    if !key.starts_with(prefix.as_str()) {
                        break;
                    }
                    if keys.len() == page {
                        more = true;
                        break;
                    }
                    keys.push((key.clone(), bytes.len() as u64));
                }
                Answer::Listed(keys, more)
            }
            Op::Delete(key) => {
                self.all.remove(key);
                self.stored_ms.remove(key);
                self.locked_ms.remove(key);
                Answer::Deleted
            }
            Op::Time(key) => Answer::Time(self.stored_ms.get(key).copied()),
            Op::Lock(objects, required_ms, until_ms) => {
                Answer::Locked(self.lock(objects, *required_ms, *until_ms))
            }
        }
    }
}

impl Objects {
    fn lock(&mut self, objects: &[(String, Option<u64>)], required_ms: u64, until_ms: u64) -> Extended {
        let mut done = Extended::default();
        for (key, bytes) in objects {
            match self.all.get(key) {
                Some(there) if bytes.is_none_or(|bytes| there.len() as u64 == bytes) => {
                    let locked_ms = self.locked_ms.entry(key.clone()).or_default();
                    if *locked_ms < required_ms {
                        *locked_ms = until_ms;
                        done.extended.push(key.clone());
                    } else {
                        done.long_enough += 1;
                    }
                }
                _ => done.wrong.push(format!("{key} is missing or has another length")),
            }
        }
        done
    }
}

fn until_ms(now_ms: u64) -> u64 {
    LOCK.until(timestamp(now_ms)).as_millisecond() as u64
}

pub fn timestamp(unix_ms: u64) -> Timestamp {
    Timestamp::from_millisecond(unix_ms as i64).unwrap()
}

/// One repository as one process reaches it.
pub struct SimStore {
    pub stage: Arc<Stage>,
    pub process: usize,
    pub repo: usize,
    pub location: String,
    pub habits: Habits,
    /// Objects can be held open, as files can.
    pub holds_open: bool,
    /// It has a clock of its own, which is right.
    pub tells_time: bool,
    /// It locks what is written.
    pub locks: bool,
}

impl SimStore {
    fn ask(&self, op: Op) -> Result<Answer> {
        let (action, object) = (op.verb(), format!("{}/{}", self.location, op.key()));
        match self.stage.ask(self.process, self.repo, op) {
            Answer::Failed(why) => Err(Error::io(action, object)(io::Error::other(why))),
            answer => Ok(answer),
        }
    }
}

impl Store for SimStore {
    fn location(&self) -> &str {
        &self.location
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        match self.ask(Op::Put(key.to_owned(), body.as_bytes().into()))? {
            Answer::Put(outcome) => Ok(outcome),
            _ => unreachable!("a put is answered as one"),
        }
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        out.clear();
        match self.ask(Op::Get(key.to_owned(), span))? {
            Answer::Got(found) => Ok(found.map(|(object_bytes, part)| {
                out.extend_from_slice(&part);
                object_bytes
            })),
            _ => unreachable!("a get is answered as one"),
        }
    }

    fn open_object(&self, key: &str) -> Result<Option<Box<dyn ReadAt>>> {
        if !self.holds_open {
            return Ok(None);
        }
        match self.ask(Op::Get(key.to_owned(), Span::All))? {
            Answer::Got(found) => Ok(found.map(|(_, bytes)| Box::new(Held(bytes)) as Box<dyn ReadAt>)),
            _ => unreachable!("a get is answered as one"),
        }
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        let mut after = None;
        loop {
            let Answer::Listed(keys, more) = self.ask(Op::List(prefix.to_owned(), after))? else {
                unreachable!("a listing is answered as one")
            };
            keys.iter().for_each(|(key, bytes)| each(key, *bytes));
            if !more {
                return Ok(());
            }
            after = keys.last().map(|(key, _)| key.clone());
        }
    }

    fn modified_ms(&self, key: &str) -> Result<Option<u64>> {
        if !self.tells_time {
            return Ok(None);
        }
        match self.ask(Op::Time(key.to_owned()))? {
            Answer::Time(time_ms) => Ok(time_ms),
            _ => unreachable!("a question for the time is answered as one"),
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.ask(Op::Delete(key.to_owned())).map(drop)
    }

    fn habits(&self) -> Habits {
        self.habits
    }

    fn custody(&self) -> Option<&dyn Custody> {
        self.locks.then_some(self)
    }

    fn distrust(&self, _key: &str) -> bool {
        !self.holds_open
    }
}

impl Custody for SimStore {
    fn lock(&self) -> Option<ObjectLock> {
        Some(LOCK)
    }

    fn archives(&self) -> bool {
        false
    }

    fn facts(&self, _keys: &[String]) -> Result<Vec<Option<Facts>>> {
        unimplemented!("nothing here is archived")
    }

    fn thaw(&self, _objects: &[(String, Facts)], _how: Thaw) -> Result<Vec<Thawing>> {
        unimplemented!("nothing here is archived")
    }

    fn extend(
        &self,
        objects: &[(String, Option<u64>)],
        required: Timestamp,
        until: Timestamp,
    ) -> Result<Extended> {
        let (required_ms, until_ms) = (required.as_millisecond() as u64, until.as_millisecond() as u64);
        match self.ask(Op::Lock(objects.to_vec(), required_ms, until_ms))? {
            Answer::Locked(done) => Ok(done),
            _ => unreachable!("a lock is answered as one"),
        }
    }
}

struct Held(Contents);

impl ReadAt for Held {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let range = Span::At { offset, len: out.len() }.within(self.0.len() as u64);
        let part = &self.0[range.start as usize..range.end as usize];
        out[..part.len()].copy_from_slice(part);
        Ok(part.len())
    }
}
