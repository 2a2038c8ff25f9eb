//! What a run has made in the account and not taken away yet: in memory, in the journal, and by the tags that it puts on everything.
//! Several volumes are made ready at a time, so it can be shared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::journal::{Ask, Dead, Journal, Loan, Thing};
use super::sweep::Known;
use super::{Error, Result, sweep};
use crate::aws::clients::Clients;
use crate::aws::tags::RunTags;

/// Leftovers of a run that nobody knows may be swept after this: no backup takes longer.
const EXPIRES_H: i64 = 48;

/// Of one run.
pub struct Ledger {
    inner: Mutex<Inner>,
    /// What everything gets that the run makes.
    pub tags: RunTags,
}

struct Inner {
    journal: Journal,
    made: Known,
    /// What was made for what, by a run that is continued.
    roles: BTreeMap<String, String>,
    /// What stays: lists may still show it as temporary.
    settled: BTreeSet<String>,
    /// Parts of the work that need not be done again.
    done: BTreeSet<String>,
    loans: Vec<Loan>,
}

impl Ledger {
    /// Begins the journal. Nothing is made before. `subject` is for people.
    pub fn begin(aws: &Clients, subject: &str, state_dir: &Path) -> Result<Self> {
        let journal = Journal::begin(state_dir, subject, &aws.region)?;
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(EXPIRES_H);
        let expires = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let tags = RunTags { run: journal.run.clone(), expires };
        let inner = Inner {
            journal,
            made: BTreeMap::new(),
            roles: BTreeMap::new(),
            settled: BTreeSet::new(),
            done: BTreeSet::new(),
            loans: Vec::new(),
        };
        Ok(Self { inner: Mutex::new(inner), tags })
    }

    /// Begins that of a run that can be continued by its plan.
    pub fn begin_planned(aws: &Clients, subject: &str, state_dir: &Path, plan: &Value) -> Result<Self> {
        let ledger = Self::begin(aws, subject, state_dir)?;
        ledger.inner().journal.planned(&ledger.tags.expires, plan)?;
        Ok(ledger)
    }

    /// Goes on with a run that died, which has to have a plan.
    pub fn revive(dead: Dead) -> Result<Self> {
        let Some((expires, _)) = dead.planned.clone() else {
            return Err(Error::Refused(format!("the run {} cannot be continued", dead.run)));
        };
        let tags = RunTags { run: dead.run.clone(), expires };
        let made = dead.left.clone();
        let (roles, settled, done) = (dead.roles.clone(), dead.settled.clone(), dead.done.clone());
        let loans = dead.loans.clone();
        let inner = Inner { journal: dead.revive(), made, roles, settled, done, loans };
        Ok(Self { inner: Mutex::new(inner), tags })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is about to be asked for.
    pub fn asks(&self, thing: Thing) -> Result<Ask> {
        Ok(self.inner().journal.asks(thing)?)
    }

    /// It has this id. `ask` is `None` for what came with something else.
    pub fn made(&self, ask: Option<Ask>, thing: Thing, id: &str) -> Result<()> {
        self.note(ask, thing, id, None)
    }

    /// As [`made`](Self::made), for something that a continued run will look for by its role.
    pub fn made_as(&self, ask: Ask, thing: Thing, id: &str, role: &str) -> Result<()> {
        self.note(Some(ask), thing, id, Some(role))
    }

    fn note(&self, ask: Option<Ask>, thing: Thing, id: &str, role: Option<&str>) -> Result<()> {
        let mut inner = self.inner();
        inner.made.insert(id.to_owned(), (thing, jiff::Timestamp::now().as_second()));
        if let Some(role) = role {
            inner.roles.insert(role.to_owned(), id.to_owned());
        }
        Ok(inner.journal.made(ask, thing, id, role)?)
    }

    /// What was made for this, by this run or the one it continues.
    pub fn known(&self, role: &str) -> Option<String> {
        self.inner().roles.get(role).cloned()
    }

    /// A part of the work is done.
    pub fn done(&self, what: &str) -> Result<()> {
        let mut inner = self.inner();
        inner.done.insert(what.to_owned());
        Ok(inner.journal.done(what)?)
    }

    /// Whether it is, by this run or the one it continues.
    pub fn is_done(&self, what: &str) -> bool {
        self.inner().done.contains(what)
    }

    /// It was taken away, or made to stay.
    pub fn settled(&self, id: &str) -> Result<()> {
        let mut inner = self.inner();
        inner.made.remove(id);
        inner.settled.insert(id.to_owned());
        Ok(inner.journal.settled(id)?)
    }

    /// A volume of the user's is about to be taken from where it is.
    pub fn lent(&self, loan: Loan) -> Result<()> {
        let mut inner = self.inner();
        if inner.loans.iter().any(|l| l.volume == loan.volume) {
            return Ok(());
        }
        inner.journal.lent(&loan)?;
        inner.loans.push(loan);
        Ok(())
    }

    /// Brings every lent volume back to where it belongs.
    pub async fn bring_back(&self, aws: &Clients) -> Result<()> {
        let cleaning = aws.retry.clean_up();
        let volumes: Vec<String> = self.inner().loans.iter().map(|l| l.volume.clone()).collect();
        for volume in volumes {
            self.bring_back_one(aws, &volume).await?;
        }
        drop(cleaning);
        Ok(())
    }

    /// Brings one lent volume back.
    pub async fn bring_back_one(&self, aws: &Clients, volume: &str) -> Result<()> {
        let loan = self.inner().loans.iter().find(|l| l.volume == volume).cloned();
        let Some(loan) = loan else { return Ok(()) };
        sweep::bring_back(aws, &loan).await?;
        let mut inner = self.inner();
        inner.loans.retain(|l| l.volume != volume);
        Ok(inner.journal.returned(volume)?)
    }

    /// A file of this run's own, which goes with its end.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.inner().journal.beside(name)
    }

    /// Takes away what is still temporary. Goes on after the user asked to stop.
    pub async fn remove_made(&self, aws: &Clients) -> Result<()> {
        let cleaning = aws.retry.clean_up();
        let (known, stay) = {
            let inner = self.inner();
            (inner.made.clone(), inner.settled.clone())
        };
        let (gone, outcome) = sweep::remove_run(aws, &self.tags.run, &known, &stay).await;
        drop(cleaning);
        for id in gone {
            self.settled(&id)?;
        }
        Ok(outcome?)
    }

    /// Everything is settled.
    pub fn end(self) {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner).journal.end();
    }

    /// The run came to nothing: takes away everything, and gives `error` back.
    pub async fn undo_after(self, aws: &Clients, error: Error) -> Error {
        let undone = match self.bring_back(aws).await {
            Ok(()) => self.remove_made(aws).await,
            Err(second) => self.remove_made(aws).await.and(Err(second)),
        };
        match undone {
            Ok(()) => self.end(),
            Err(second) => tracing::warn!(
                "not everything temporary could be taken away, `penstock ec2 sweep` will: {second}"
            ),
        }
        error
    }
}
