//! What a verb is given: the global options, the way to its repository, runs that a signal cancels, and their display.

use std::sync::Arc;

use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::repo::Repository;
use penstock_engine::store::{self, Place, Store};
use penstock_engine::{Error, Run};

use super::access::{self, Purpose};
use super::args::Globals;
use super::exit::Failure;
use super::interrupt::Interrupt;
use super::progress::{Display, Kind, Mode, Shown};

/// One invocation of the program.
pub struct Session {
    /// Options of all verbs.
    pub globals: Globals,
    /// Signals.
    pub interrupt: Interrupt,
}

impl Session {
    /// The repository's URL.
    pub fn repo_url(&self) -> Result<&str, Failure> {
        match self.globals.repo.as_deref() {
            Some("") | None => Err(Failure::usage(
                "which repository? Name it by --repo URL or PENSTOCK_REPO: a path, file:///path, s3://bucket/prefix, \
                 gs://bucket/prefix or az://container/prefix",
            )),
            Some(url) => Ok(url),
        }
    }

    /// The store behind `--repo`, which has to exist.
    pub fn store(&self) -> Result<Arc<dyn Store>, Failure> {
        self.open_store(false, true)
    }

    /// The store behind `--repo`. `create` makes a directory that is not there; `cache` allows answers from local disk.
    pub fn open_store(&self, create: bool, cache: bool) -> Result<Arc<dyn Store>, Failure> {
        open_store(self.repo_url()?, &self.globals, create, cache)
    }

    /// Opens the repository; asks for a key only if it has one.
    pub fn repository(&self) -> Result<Repository, Failure> {
        self.repository_on(self.store()?, &self.globals, Purpose::Open)
    }

    /// Opens the repository to read from it only: nothing is locked there, and it need not be possible.
    pub fn source(&self) -> Result<Repository, Failure> {
        let mut options = self.globals.clone();
        options.far.object_lock = None;
        self.repository_on(open_store(self.repo_url()?, &options, false, true)?, &options, Purpose::Open)
    }

    /// Opens the repository at `url`, the destination of a copy, by `options`.
    pub fn destination(&self, url: &str, options: &Globals) -> Result<Repository, Failure> {
        self.repository_on(open_store(url, options, false, true)?, options, Purpose::OpenDestination)
    }

    /// As [`repository`](Self::repository), but every byte comes from the store itself: for checking what is there.
    pub fn repository_as_stored(&self) -> Result<Repository, Failure> {
        self.repository_on(self.open_store(false, false)?, &self.globals, Purpose::Open)
    }

    fn repository_on(
        &self,
        store: Arc<dyn Store>,
        options: &Globals,
        purpose: Purpose,
    ) -> Result<Repository, Failure> {
        let access = match Repository::needs_key(&*store)? {
            true => access::access_key(options, &self.interrupt, purpose)?,
            // Whoever gives a key expects an encrypted repository: this one may have been put in its place.
            false if access::is_given(options, purpose) => {
                let to = if purpose == Purpose::OpenDestination { "TO_" } else { "" };
                return Err(Error::WrongKey {
                    location: store.location().to_owned(),
                    why: format!(
                        "a key was given, but it is not encrypted. If that is meant, give none \
                         (unset PENSTOCK_{to}PASSWORD, PENSTOCK_{to}PASSWORD_FILE)"
                    ),
                }
                .into());
            }
            false => AccessKey::None,
        };
        Ok(Repository::open(store, &access)?)
    }

    /// Runs `work` as a run that a signal cancels, and shows its progress in the way that fits where standard error goes.
    pub fn with_run<T>(
        &self,
        kind: Kind,
        work: impl FnOnce(&Arc<Run>) -> penstock_engine::Result<T>,
    ) -> Result<T, Failure> {
        self.with_run_in(kind, Mode::of(&self.globals), work)
    }

    /// As [`with_run`](Self::with_run), with a display of the caller's choice.
    pub fn with_run_in<T>(
        &self,
        kind: Kind,
        shown: impl Into<Shown>,
        work: impl FnOnce(&Arc<Run>) -> penstock_engine::Result<T>,
    ) -> Result<T, Failure> {
        let run = self.interrupt.new_run();
        let display = Display::start(Arc::clone(&run), kind, &shown.into());
        let result = work(&run);
        display.finish();
        Ok(result?)
    }
}

/// The store at `url`. `create` makes a directory that is not there; `cache` allows answers from local disk.
fn open_store(url: &str, options: &Globals, create: bool, cache: bool) -> Result<Arc<dyn Store>, Failure> {
    match Place::parse(url)? {
        Place::Bucket(place) => options.far.open(place, cache),
        place => Ok(store::open(&place, create, &options.far.limits())?),
    }
}
