//! A writer's lease: as long as it is there, garbage collection deletes nothing that the writer may rely on. A writer that could not renew its lease for long publishes nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};

use crate::crypto::RepoKeys;
use crate::environment::{Environment, Pause, ProcessId, ProcessState};
use crate::error::{Error, Result};
use crate::fan;
use crate::format::collection::{LeaseBody, WRITER_BYTES, Writer};
use crate::format::header::ObjectKind;
use crate::gc_state::{put_json, read_json};
use crate::id::ObjectId;
use crate::index::Permit;
use crate::simulation::{Bug, planted, sized};
use crate::store::{PutOutcome, Store};

/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(60 * sized(15, 180) as u64);
/// When a renewal that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(60 * sized(1, 30) as u64);
/// A writer that has not renewed its lease for so long publishes nothing any more.
const TRUSTED: Duration = Duration::from_secs(12 * 60 * 60);
/// A lease that was not renewed for so long is nobody's. What lies between this and [`TRUSTED`] is for clocks that disagree and requests that take their time.
const DEAD_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The lease of one run.
pub struct Lease {
    shared: Arc<Shared>,
    renewing: Option<(Sender<()>, JoinHandle<()>)>,
}

struct Shared {
    store: Arc<dyn Store>,
    keys: Arc<RepoKeys>,
    writer: Writer,
    purpose: &'static str,
    environment: Environment,
    state: Mutex<State>,
}

struct State {
    renewals: u16,
    /// The highest number that was put, with or without an answer.
    tried: u16,
    /// Before the renewal was asked for: how long others may have been told that this writer lives.
    renewed: Moment,
    /// By the clock that never steps, after the answer to it came: the store had it by then.
    answered: Duration,
    lost: bool,
}

impl Lease {
    /// Takes a lease: before the writer reads anything that it will rely on.
    pub fn take(
        store: &Arc<dyn Store>,
        keys: &Arc<RepoKeys>,
        environment: &Environment,
        purpose: &'static str,
    ) -> Result<Self> {
        let renewed = Moment::now(environment);
        let writer = Writer::of(ObjectId::at(renewed.unix_ms)?);
        let state = State { renewals: 0, tried: 0, renewed, answered: renewed.monotonic, lost: false };
        let shared = Arc::new(Shared {
            store: store.clone(),
            keys: keys.clone(),
            writer,
            purpose,
            environment: environment.clone(),
            state: Mutex::new(state),
        });
        if shared.put(0)? == PutOutcome::Exists {
            let object = ObjectKind::Lease.key(&writer.lease(0).to_string());
            return Err(Error::damaged(
                object,
                "a random name that was taken: the random source repeats itself",
            ));
        }
        shared.state().answered = environment.clock.monotonic();
        let (stop, stopped) = bounded::<()>(0);
        let renewed = shared.clone();
        let thread = std::thread::Builder::new()
            .name("lease".into())
            .spawn(move || {
                let mut pause = RENEW_EVERY;
                while renewed.environment.clock.pause(&stopped, pause) == Pause::Over {
                    pause = match renewed.renew() {
                        Ok(()) => RENEW_EVERY,
                        Err(error) => {
                            tracing::warn!("the lease was not renewed, another try follows: {error}");
                            TRY_AGAIN
                        }
                    };
                }
            })
            .map_err(Error::io("start", "the thread that renews the lease"))?;
        Ok(Self { shared, renewing: Some((stop, thread)) })
    }

    /// Whose it is.
    pub fn writer(&self) -> Writer {
        self.shared.writer
    }

    /// An error if the writer must not publish anything any more, as far as this process knows. Costs nothing.
    pub fn check(&self) -> Result<()> {
        self.shared.check()
    }

    /// [`check`](Self::check), for whoever publishes in the name of this run.
    pub fn permit(&self) -> Arc<Permit> {
        let shared = self.shared.clone();
        Arc::new(move || shared.check())
    }

    /// Asks the store if the lease is still there.
    pub fn ask(&self) -> Result<LeaseState> {
        let mut renewals = self.shared.state().renewals;
        loop {
            if self.shared.read(renewals)?.is_some() {
                return Ok(LeaseState::There);
            }
            let now = self.shared.state().renewals;
            if now == renewals {
                self.shared.state().lost = true;
                return Ok(LeaseState::Gone);
            }
            renewals = now; // it was renewed meanwhile
        }
    }

    /// The error of a run whose lease is lost.
    pub fn lost(&self) -> Error {
        self.shared.lost()
    }

    /// A time that the store's clock shows by now, if the store has one: when the lease was last renewed there, and the
    /// time since the answer came. It lags by what that took, never the other way: nobody seems to be older than he is.
    pub fn store_now_ms(&self) -> Result<Option<u64>> {
        loop {
            let (renewals, answered) = {
                let state = self.shared.state();
                (state.renewals, state.answered)
            };
            let name = self.shared.writer.lease(renewals);
            let then_ms = self.shared.store.modified_ms(&ObjectKind::Lease.key(&name.to_string()))?;
            if then_ms.is_none() {
                if self.ask()? == LeaseState::Gone {
                    return Err(self.lost()); // not a store without a clock: it would be taken for one
                }
                if self.shared.state().renewals != renewals {
                    continue; // it was renewed meanwhile
                }
            }
            let since = self.shared.environment.clock.monotonic().saturating_sub(answered);
            return Ok(then_ms.map(|then_ms| then_ms + since.as_millis() as u64));
        }
    }

    /// Gives it back.
    pub fn end(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let Some((stop, thread)) = self.renewing.take() else { return Ok(()) };
        drop(stop);
        let _ = thread.join();
        let (renewals, tried) = {
            let state = self.shared.state();
            (state.renewals, state.tried)
        };
        // A renewal that failed may have reached the store all the same.
        for number in renewals..=tried {
            self.shared.delete(number)?;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("the lease is left behind, `penstock gc` removes it in time: {error}");
        }
    }
}

/// What the store says of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseState {
    /// It is there.
    There,
    /// A collector has taken its writer for dead.
    Gone,
}

impl Shared {
    fn check(&self) -> Result<()> {
        let state = self.state();
        let old = state.renewed.age(&self.environment) > TRUSTED;
        if (state.lost || old) && !planted(Bug::LeaseNotChecked) {
            return Err(self.lost());
        }
        Ok(())
    }

    fn lost(&self) -> Error {
        Error::LeaseLost { location: self.store.location().to_owned() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, renewals: u16) -> Result<PutOutcome> {
        let name = self.writer.lease(renewals);
        let process = self.environment.liveness.this();
        let body = LeaseBody {
            id: name.to_string(),
            purpose: self.purpose.into(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            renewed_ms: self.environment.clock.unix_ms(),
            boot: process.boot,
            pid: process.pid,
            process_start: process.start,
        };
        put_json(self.store.as_ref(), &self.keys, ObjectKind::Lease, name, &body)
    }

    fn read(&self, renewals: u16) -> Result<Option<LeaseBody>> {
        read_json(
            self.store.as_ref(),
            &self.keys,
            ObjectKind::Lease,
            self.writer.lease(renewals),
            |body: &LeaseBody| &body.id,
        )
    }

    fn delete(&self, renewals: u16) -> Result<()> {
        self.store.delete(&ObjectKind::Lease.key(&self.writer.lease(renewals).to_string()))
    }

    fn renew(&self) -> Result<()> {
        let (renewals, tried) = {
            let state = self.state();
            (state.renewals, state.tried)
        };
        if self.read(renewals)?.is_none() {
            self.state().lost = true;
            return Err(self.lost());
        }
        let now = Moment::now(&self.environment);
        // A put whose answer was lost may have stored its object long ago: its number is not used again, since others
        // count from then. If all numbers are used up, 65,536 renewals from now, the lease runs out.
        let next = tried.checked_add(1).ok_or_else(|| self.lost())?;
        self.state().tried = next;
        if self.put(next)? == PutOutcome::Exists {
            let object = ObjectKind::Lease.key(&self.writer.lease(next).to_string());
            return Err(Error::damaged(object, "another writer's lease has the name of this one's renewal"));
        }
        let answered = self.environment.clock.monotonic();
        // A collector that took this writer for dead may have removed the lease between the look and the put. Either it is
        // seen here, or the collector, which lists again after it removed a lease, sees the new one.
        if self.read(renewals)?.is_none() {
            self.state().lost = true;
            self.delete(next)?;
            return Err(self.lost());
        }
        {
            let mut state = self.state();
            (state.renewals, state.renewed, state.answered) = (next, now, answered);
        }
        (renewals..next).try_for_each(|number| self.delete(number))
    }
}

/// A moment by two clocks: one never steps, the other goes on while the machine sleeps.
#[derive(Clone, Copy)]
struct Moment {
    monotonic: Duration,
    unix_ms: u64,
}

impl Moment {
    fn now(environment: &Environment) -> Self {
        Self { monotonic: environment.clock.monotonic(), unix_ms: environment.clock.unix_ms() }
    }

    /// Time since then, by the clock that says more.
    fn age(&self, environment: &Environment) -> Duration {
        let now = Self::now(environment);
        let by_wall = Duration::from_millis(now.unix_ms.saturating_sub(self.unix_ms));
        now.monotonic.saturating_sub(self.monotonic).max(by_wall)
    }
}

/// A lease as a collector sees it.
pub struct SeenLease {
    /// Whose.
    pub writer: Writer,
    /// The names it stands under: two while it is renewed.
    pub names: Vec<ObjectId>,
    /// What the newest says; `None` if it cannot be read.
    pub body: Option<LeaseBody>,
    /// Unix milliseconds by the store's clock when it was last renewed; `None` if the store does not tell.
    pub renewed_ms: Option<u64>,
}

impl SeenLease {
    /// True if its writer is gone: a process of this machine that has ended, or one that has not renewed it for a day.
    /// `store_now_ms` is the time by the clock of the store; the clocks of writers and collectors are asked only where
    /// the store has none.
    pub fn is_dead(&self, environment: &Environment, store_now_ms: Option<u64>) -> bool {
        if let Some(body) = &self.body {
            let process = ProcessId { boot: body.boot.clone(), pid: body.pid, start: body.process_start };
            match environment.liveness.state(&process) {
                ProcessState::Runs => return false,
                ProcessState::Ended => return true,
                ProcessState::Unknown if planted(Bug::HiddenIsDead) => {
                    if body.boot == environment.liveness.this().boot {
                        return true;
                    }
                }
                ProcessState::Unknown => {}
            }
        }
        let is_old =
            |now_ms: u64, then_ms: u64| now_ms.saturating_sub(then_ms) > DEAD_AFTER.as_millis() as u64;
        if let Some(now_ms) = store_now_ms {
            // One that is gone since it was listed was renewed or given back just now.
            return self.renewed_ms.is_some_and(|renewed_ms| is_old(now_ms, renewed_ms));
        }
        let now_ms = environment.clock.unix_ms();
        match &self.body {
            Some(body) => is_old(now_ms, body.renewed_ms),
            // Cut short or of a later version: judged by its name alone, which tells when it was taken and how often it
            // was renewed since.
            None => self.names.iter().all(|name| is_old(now_ms, renewed_at_ms(*name))),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match &self.body {
            Some(body) => format!("{} on {} (process {})", body.purpose, body.host, body.pid),
            None => "a writer whose lease cannot be read".into(),
        }
    }
}

/// When a lease of this name was renewed at the earliest.
fn renewed_at_ms(name: ObjectId) -> u64 {
    let bytes = name.as_bytes();
    let renewals = u64::from(u16::from_be_bytes([bytes[WRITER_BYTES], bytes[WRITER_BYTES + 1]]));
    name.unix_ms() + renewals * RENEW_EVERY.as_millis() as u64
}

/// What is wrong with leases that cannot be read.
pub fn damaged(store: &dyn Store, keys: &RepoKeys) -> Result<Vec<Error>> {
    let mut names = Vec::new();
    store.list(ObjectKind::Lease.prefix(), &mut |key, _| {
        names.extend(key.strip_prefix(ObjectKind::Lease.prefix()).and_then(ObjectId::from_hex));
    })?;
    let mut damaged = Vec::new();
    for name in names {
        match read_json(store, keys, ObjectKind::Lease, name, |body: &LeaseBody| &body.id) {
            Ok(_) => {}
            Err(error) if error.is_damage() || matches!(error, Error::NewerVersion { .. }) => {
                damaged.push(error)
            }
            Err(error) => return Err(error),
        }
    }
    Ok(damaged)
}

/// All leases there are.
pub fn list(store: &dyn Store, keys: &RepoKeys) -> Result<Vec<SeenLease>> {
    let mut names = Vec::new();
    store.list(ObjectKind::Lease.prefix(), &mut |key, _| {
        names.extend(key.strip_prefix(ObjectKind::Lease.prefix()).and_then(ObjectId::from_hex));
    })?;
    names.sort_unstable();
    let mut seen = Vec::new();
    let read =
        |name: &ObjectId| read_json(store, keys, ObjectKind::Lease, *name, |body: &LeaseBody| &body.id);
    let mut bodies = fan::map(&names, store.habits().parallel_reads, |_| false, read).into_iter();
    for of_writer in names.chunk_by(|one, other| Writer::of(*one) == Writer::of(*other)) {
        let mut body = None;
        for of_name in bodies.by_ref().take(of_writer.len()) {
            match of_name {
                Ok(Some(read)) => body = Some(read),
                Ok(None) => {}
                Err(error) if error.is_damage() || matches!(error, Error::NewerVersion { .. }) => {
                    tracing::warn!("{error}");
                }
                Err(error) => return Err(error),
            }
        }
        let mut renewed_ms = None;
        for name in of_writer {
            let object = ObjectKind::Lease.key(&name.to_string());
            renewed_ms = store.modified_ms(&object)?.max(renewed_ms);
        }
        seen.push(SeenLease {
            writer: Writer::of(of_writer[0]),
            names: of_writer.to_vec(),
            body,
            renewed_ms,
        });
    }
    Ok(seen)
}
