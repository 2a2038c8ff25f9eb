//! What a run has made in the account and not taken away yet: in memory, in the journal, and by the tags that it puts on everything.
//! Several volumes are made ready at a time, so it can be shared.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::journal::{Ask, Journal, Thing};
use super::{Error, Result, sweep};
use crate::aws::clients::Clients;
use crate::aws::describe::Machine;
use crate::aws::tags::RunTags;

/// Leftovers of a run that nobody knows may be swept after this: no backup takes longer.
const EXPIRES_H: i64 = 48;

/// Of one run on one machine.
pub struct Ledger {
    inner: Mutex<Inner>,
    /// What everything gets that the run makes.
    pub tags: RunTags,
}

struct Inner {
    journal: Journal,
    made: BTreeMap<String, Thing>,
}

impl Ledger {
    /// Begins the journal. Nothing is made before.
    pub fn begin(aws: &Clients, machine: &Machine, state_dir: &Path) -> Result<Self> {
        let journal = Journal::begin(state_dir, &machine.id, &aws.region)?;
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(EXPIRES_H);
        let expires = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let tags = RunTags { run: journal.run.clone(), expires };
        Ok(Self { inner: Mutex::new(Inner { journal, made: BTreeMap::new() }), tags })
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
        let mut inner = self.inner();
        inner.made.insert(id.to_owned(), thing);
        Ok(inner.journal.made(ask, thing, id)?)
    }

    /// It was taken away, or made to stay.
    pub fn settled(&self, id: &str) -> Result<()> {
        let mut inner = self.inner();
        inner.made.remove(id);
        Ok(inner.journal.settled(id)?)
    }

    /// Takes away what is still temporary. Goes on after the user asked to stop.
    pub async fn remove_made(&self, aws: &Clients) -> Result<()> {
        let cleaning = aws.retry.clean_up();
        let known = self.inner().made.clone();
        let outcome = sweep::remove_run(aws, &self.tags.run, &known).await;
        drop(cleaning);
        for id in outcome? {
            self.settled(&id)?;
        }
        Ok(())
    }

    /// Everything is settled.
    pub fn end(self) {
        self.inner.into_inner().unwrap_or_else(PoisonError::into_inner).journal.end();
    }

    /// The run came to nothing: takes away everything, and gives `error` back.
    pub async fn undo_after(self, aws: &Clients, error: Error) -> Error {
        match self.remove_made(aws).await {
            Ok(()) => self.end(),
            Err(second) => tracing::warn!(
                "not everything temporary could be taken away, `penstock ec2 sweep` will: {second}"
            ),
        }
        error
    }
}
