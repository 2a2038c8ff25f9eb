//! A writer's lease: as long as it is there, garbage collection deletes nothing that the writer may rely on. A writer that could not renew its lease for long publishes nothing.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use crate::collection::{put_json, read_json};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::collection::{LeaseBody, Writer};
use crate::format::header::ObjectKind;
use crate::id::ObjectId;
use crate::run::unix_ms_now;
use crate::store::{PutOutcome, Store};

/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(15 * 60);
/// When a renewal that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(60);
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
    state: Mutex<State>,
}

struct State {
    renewals: u16,
    /// By the clock that never goes back, and by the one that goes on while the machine sleeps.
    renewed: (Instant, SystemTime),
    lost: bool,
}

impl Lease {
    /// Takes a lease: before the writer reads anything that it will rely on.
    pub fn take(store: &Arc<dyn Store>, keys: &Arc<RepoKeys>, purpose: &'static str) -> Result<Self> {
        let writer = Writer::of(ObjectId::at(unix_ms_now())?);
        let state = State { renewals: 0, renewed: (Instant::now(), SystemTime::now()), lost: false };
        let shared = Arc::new(Shared {
            store: store.clone(),
            keys: keys.clone(),
            writer,
            purpose,
            state: Mutex::new(state),
        });
        if shared.put(0)? == PutOutcome::Exists {
            let object = ObjectKind::Lease.key(&writer.lease(0).to_string());
            return Err(Error::damaged(
                object,
                "a random name that was taken: the random source repeats itself",
            ));
        }
        let (stop, stopped) = bounded::<()>(0);
        let renewed = shared.clone();
        let thread = std::thread::Builder::new()
            .name("lease".into())
            .spawn(move || {
                let mut pause = RENEW_EVERY;
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
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

    /// An error if the writer must not publish anything any more.
    pub fn check(&self) -> Result<()> {
        let state = self.shared.state();
        let age = state.renewed.0.elapsed().max(state.renewed.1.elapsed().unwrap_or_default());
        if state.lost || age > TRUSTED {
            return Err(Error::LeaseLost { location: self.shared.store.location().to_owned() });
        }
        Ok(())
    }

    /// Asks the store if the lease is still there: after publishing.
    pub fn confirm(&self) -> Result<()> {
        let renewals = self.shared.state().renewals;
        match self.shared.read(renewals)? {
            Some(_) => Ok(()),
            // a renewal may have come between
            None if self.shared.state().renewals != renewals => Ok(()),
            None => Err(Error::LeaseLost { location: self.shared.store.location().to_owned() }),
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
        let renewals = self.shared.state().renewals;
        self.shared.delete(renewals)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("the lease is left behind, `penstock gc` removes it in time: {error}");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, renewals: u16) -> Result<PutOutcome> {
        let name = self.writer.lease(renewals);
        let process = Process::this();
        let body = LeaseBody {
            id: name.to_string(),
            purpose: self.purpose.into(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            renewed_ms: unix_ms_now(),
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
        let renewals = self.state().renewals;
        if self.read(renewals)?.is_none() {
            self.state().lost = true;
            return Err(Error::LeaseLost { location: self.store.location().to_owned() });
        }
        let (now, next) = ((Instant::now(), SystemTime::now()), renewals.wrapping_add(1));
        self.put(next)?;
        {
            let mut state = self.state();
            (state.renewals, state.renewed) = (next, now);
        }
        self.delete(renewals)
    }
}

/// A process, as far as others of this machine can tell if it still runs.
struct Process {
    boot: String,
    pid: u32,
    start: u64,
}

impl Process {
    fn this() -> Self {
        let pid = std::process::id();
        Self { boot: boot(), pid, start: start_of(pid).unwrap_or(0) }
    }
}

/// Which boot of which machine, and which process namespace: empty if it cannot be told.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    match boot.trim() {
        "" => String::new(),
        boot => format!("{boot} {}", namespace.display()),
    }
}

/// When a process started, in ticks since boot; `None` if there is none.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    // A zombie runs no more; the 22nd field of all is the 20th behind the name.
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18).and_then(|ticks| ticks.parse().ok())).flatten()
}

/// A lease as a collector sees it.
pub struct Seen {
    /// Whose.
    pub writer: Writer,
    /// The names it stands under: two while it is renewed.
    pub names: Vec<ObjectId>,
    /// What the newest says; `None` if it cannot be read.
    pub body: Option<LeaseBody>,
}

impl Seen {
    /// True if its writer is gone: a process of this machine that runs no more, or one that has not renewed it for a day.
    pub fn is_dead(&self) -> bool {
        let Some(body) = &self.body else {
            // Cut short or of a later version: judged by its age alone, from its name.
            let taken_ms = self.names.first().map_or(0, ObjectId::unix_ms);
            return unix_ms_now().saturating_sub(taken_ms) > DEAD_AFTER.as_millis() as u64;
        };
        if !body.boot.is_empty() && body.boot == boot() {
            return start_of(body.pid) != Some(body.process_start);
        }
        unix_ms_now().saturating_sub(body.renewed_ms) > DEAD_AFTER.as_millis() as u64
    }

    /// For people.
    pub fn describe(&self) -> String {
        match &self.body {
            Some(body) => format!("{} on {} (process {})", body.purpose, body.host, body.pid),
            None => "a writer whose lease cannot be read".into(),
        }
    }
}

/// All leases there are.
pub fn list(store: &dyn Store, keys: &RepoKeys) -> Result<Vec<Seen>> {
    let mut names = Vec::new();
    store.list(ObjectKind::Lease.prefix(), &mut |key, _| {
        names.extend(key.strip_prefix(ObjectKind::Lease.prefix()).and_then(ObjectId::from_hex));
    })?;
    names.sort_unstable();
    let mut seen = Vec::new();
    for of_writer in names.chunk_by(|one, other| Writer::of(*one) == Writer::of(*other)) {
        let mut body = None;
        for name in of_writer {
            match read_json(store, keys, ObjectKind::Lease, *name, |body: &LeaseBody| &body.id) {
                Ok(Some(read)) => body = Some(read),
                Ok(None) => {}
                Err(error) if error.is_damage() || matches!(error, Error::NewerVersion { .. }) => {
                    tracing::warn!("{error}");
                }
                Err(error) => return Err(error),
            }
        }
        seen.push(Seen { writer: Writer::of(of_writer[0]), names: of_writer.to_vec(), body });
    }
    Ok(seen)
}
