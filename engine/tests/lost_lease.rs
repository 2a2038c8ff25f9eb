//! Writers whose lease is taken away, clocks that are wrong, and stores that answer 404 for what they list.
#![allow(clippy::unwrap_used)]

#[path = "common/memory.rs"]
mod memory;

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_engine::environment::{
    Clock, Environment, Liveness, Pause, ProcessId, ProcessState, SystemClock,
};
use penstock_engine::repo::Repository;
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::store::{Body, MemoryStore, Span, Store};
use penstock_engine::verify::{self, VerifyOptions};
use penstock_engine::{Error, Result, Run, forget};

use memory::{Hook, Hooked, back_up, collect, key, new_repository, noise, open, open_hooked};

fn restored(repo: &Repository, id: &str) -> Result<Vec<u8>> {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (point, sink) = (repo.resolve(id)?, Sink::default());
    let options = RestoreOptions { workers: 1, ..RestoreOptions::default() };
    let target = RestoreTarget::Writer(Box::new(sink.clone()));
    restore::run(repo, &point, &point.volumes[0], target, &options, &Arc::new(Run::new()))?;
    Ok(std::mem::take(&mut sink.0.lock().unwrap()))
}

fn take_leases_away(objects: &MemoryStore) {
    let mut leases = Vec::new();
    objects.list("leases/", &mut |key, _| leases.push(key.to_owned())).unwrap();
    leases.iter().for_each(|lease| objects.delete(lease).unwrap());
}

fn problems(repo: &Repository) -> Vec<String> {
    verify::run(repo, &VerifyOptions::default(), &Arc::new(Run::new())).unwrap().problems
}

/// A source that lets a test act once some of it was read.
struct Acting<F: FnMut() + Send + Sync> {
    contents: Cursor<Vec<u8>>,
    at: u64,
    act: Option<F>,
}

impl<F: FnMut() + Send + Sync> Read for Acting<F> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.contents.position() >= self.at
            && let Some(mut act) = self.act.take()
        {
            act();
        }
        self.contents.read(out)
    }
}

#[test]
fn a_writer_whose_packs_were_collected_publishes_nothing() {
    let objects = new_repository();
    let repo = open(&objects);
    let contents = noise(1, 40 << 20);
    let act = {
        let objects = objects.clone();
        move || {
            // What a collector does that takes this writer for dead, until the packs stored so far are gone.
            while collect(&open(&objects)).unwrap().deleted.packs == 0 {
                take_leases_away(&objects);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let source = Acting { contents: Cursor::new(contents.clone()), at: 32 << 20, act: Some(act) };
    let error = back_up(&repo, "a", source).unwrap_err();
    assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
    assert_eq!(open(&objects).point_ids().unwrap(), []);
    let again = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    assert_eq!(problems(&open(&objects)), Vec::<String>::new());
    assert!(restored(&open(&objects), &again.point.id).unwrap() == contents);
}

#[test]
fn a_point_whose_lease_went_as_it_was_published_is_withdrawn() {
    let objects = new_repository();
    let hook = |objects: &MemoryStore, operation: &'static str, key: &str| {
        if operation == "after put" && key.starts_with("points/") {
            take_leases_away(objects);
        }
        true
    };
    let error =
        back_up(&open_hooked(&objects, Box::new(hook)), "a", Cursor::new(noise(1, 4 << 20))).unwrap_err();
    assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
    assert_eq!(open(&objects).point_ids().unwrap(), []);
}

/// The worst case: the point stays, its contents go. No later backup may rely on it.
#[test]
fn a_hollow_point_that_could_not_be_withdrawn_is_no_parent() {
    let objects = new_repository();
    let contents = noise(1, 12 << 20);
    let hook = |objects: &MemoryStore, operation: &'static str, key: &str| {
        if operation == "put" && key.starts_with("points/") {
            // The writer stands still here, a collector takes it for dead, and all that it stored goes.
            take_leases_away(objects);
            let copy = Arc::new(MemoryStore::default());
            objects.list("", &mut |_, _| {}).unwrap();
            let mut keys = Vec::new();
            objects.list("", &mut |key, _| keys.push(key.to_owned())).unwrap();
            for key in &keys {
                let mut bytes = Vec::new();
                objects.get(key, Span::All, &mut bytes).unwrap();
                copy.put_new(key, Body::Bytes(&bytes)).unwrap();
            }
            while collect(&open(&copy)).unwrap().present.packs > 0 {}
            let mut left = Vec::new();
            copy.list("", &mut |key, _| left.push(key.to_owned())).unwrap();
            keys.iter().filter(|key| !left.contains(key)).for_each(|key| objects.delete(key).unwrap());
            for key in left.iter().filter(|key| !keys.contains(key)) {
                let mut bytes = Vec::new();
                copy.get(key, Span::All, &mut bytes).unwrap();
                objects.put_new(key, Body::Bytes(&bytes)).unwrap();
            }
        }
        !(operation == "delete" && key.starts_with("points/"))
    };
    let error =
        back_up(&open_hooked(&objects, Box::new(hook)), "a", Cursor::new(contents.clone())).unwrap_err();
    assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
    let repo = open(&objects);
    let hollow = repo.point_ids().unwrap();
    assert_eq!(hollow.len(), 1, "it could not be withdrawn");
    let report = verify::run(&repo, &VerifyOptions::default(), &Arc::new(Run::new())).unwrap();
    assert!(report.hurt.iter().any(|hurt| hurt.point == hollow[0].to_string()));
    let next = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    assert!(restored(&open(&objects), &next.point.id).unwrap() == contents);
    let third = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    assert_eq!(third.totals.new_bytes, 0, "the healed point is a parent again");
}

#[test]
fn a_lease_that_cannot_be_asked_for_after_publishing_fails_no_good_backup() {
    let objects = new_repository();
    let mut published = false;
    let hook = move |_: &MemoryStore, operation: &'static str, key: &str| {
        published |= operation == "after put" && key.starts_with("points/");
        !(published && operation == "delete")
    };
    let done = back_up(&open_hooked(&objects, Box::new(hook)), "a", Cursor::new(noise(1, 1 << 20)));
    assert!(done.is_ok());
}

#[test]
fn a_listed_point_that_is_said_to_be_missing_stops_a_collection() {
    let objects = new_repository();
    let contents = noise(1, 4 << 20);
    let point = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap().point.id;
    let hook = |_: &MemoryStore, operation: &'static str, key: &str| {
        operation != "get" || !key.starts_with("points/")
    };
    let repo = open_hooked(&objects, Box::new(hook));
    let error = collect(&repo).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    assert!(repo.points().unwrap().len() == 1, "it is not hidden from a list either");
    assert!(!problems(&repo).is_empty(), "nor from verify");
    assert!(restored(&open(&objects), &point).unwrap() == contents);
    // Once is no reason to stop.
    let mut times = 1;
    let hook = move |_: &MemoryStore, operation: &'static str, key: &str| {
        let wrong = operation == "get" && key.starts_with("points/") && times > 0;
        times -= i32::from(wrong);
        !wrong
    };
    assert_eq!(collect(&open_hooked(&objects, Box::new(hook))).unwrap().points, 1);
    forget::remove(&open(&objects), &open(&objects).point_ids().unwrap(), &Run::new(), &mut |_| {}).unwrap();
    assert_eq!(collect(&open(&objects)).unwrap().points, 0);
}

/// A clock that is wrong by so many milliseconds.
struct WrongClock(SystemClock, i64);

impl Clock for WrongClock {
    fn unix_ms(&self) -> u64 {
        self.0.unix_ms().saturating_add_signed(self.1)
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn pause(&self, stop: &crossbeam::channel::Receiver<()>, pause: Duration) -> Pause {
        self.0.pause(stop, pause)
    }
}

#[test]
fn a_collector_whose_clock_is_wrong_does_nothing() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let objects = new_repository();
    for wrong_by_ms in [-2 * DAY_MS, 2 * DAY_MS] {
        let mut store = Hooked::new(&objects, Box::new(|_, _, _| true));
        store.modified_ms = Some(Arc::default());
        let environment = Environment {
            clock: Arc::new(WrongClock(SystemClock::default(), wrong_by_ms)),
            ..Environment::real()
        };
        let repo = Repository::open_in(Arc::new(store), &key(), environment).unwrap();
        let error = collect(&repo).unwrap_err();
        assert!(matches!(error, Error::ClockDisagrees { .. }), "{error}");
        assert!(error.to_string().contains("48.0 h"), "{error}");
    }
}

/// A clock that a test sets forward.
#[derive(Default)]
struct SetClock(SystemClock, AtomicU64);

impl SetClock {
    fn forward(&self, hours: u64) {
        self.1.fetch_add(hours * 3_600_000, Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn unix_ms(&self) -> u64 {
        self.0.unix_ms() + self.1.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic() + Duration::from_millis(self.1.load(Ordering::SeqCst))
    }

    fn pause(&self, stop: &crossbeam::channel::Receiver<()>, pause: Duration) -> Pause {
        self.0.pause(stop, pause)
    }
}

/// A machine that sees nobody else's processes.
struct Alone(&'static str);

impl Liveness for Alone {
    fn this(&self) -> ProcessId {
        ProcessId { boot: self.0.into(), pid: 1, start: 1 }
    }

    fn state(&self, _: &ProcessId) -> ProcessState {
        ProcessState::Unknown
    }
}

/// Found by simulation (seed 887): a collector whose lease was long on its way to the store took the store's clock to be
/// ahead by that time, and removed the lease of a writer that had renewed it less than a day before.
#[test]
fn a_request_that_takes_long_makes_nobody_older() {
    let (objects, clock) = (new_repository(), Arc::new(SetClock::default()));
    let modified_ms = Some(Arc::<Mutex<BTreeMap<String, u64>>>::default());
    let open_on = |machine: &'static str, hook: Box<Hook>| {
        let mut store = Hooked::new(&objects, hook);
        (store.modified_ms, store.clock) = (modified_ms.clone(), clock.clone());
        let environment = Environment { clock: clock.clone(), liveness: Arc::new(Alone(machine)) };
        Repository::open_in(Arc::new(store), &key(), environment).unwrap()
    };
    let forwards = clock.clone();
    let slow = move |_: &MemoryStore, operation: &'static str, key: &str| {
        if operation == "put" && key.starts_with("leases/") {
            forwards.forward(8);
        }
        true
    };
    let (writer, collector) = (open_on("a", Box::new(|_, _, _| true)), open_on("b", Box::new(slow)));
    let writers = Arc::new(Mutex::new(None));
    let seen = writers.clone();
    let forwards = clock.clone();
    let contents = noise(5, 300_000);
    // In the middle of the backup: it holds its lease, which is 18 hours old when the collector looks.
    let source = Interrupted {
        rest: Cursor::new(contents),
        once: Some(Box::new(move || {
            forwards.forward(10);
            *seen.lock().unwrap() = Some(collect(&collector));
        })),
    };
    let backed_up = back_up(&writer, "a", source);
    let report = writers.lock().unwrap().take().unwrap().unwrap();
    assert_eq!((report.dead_leases, report.writers.len()), (0, 1), "{report:?}");
    // A writer that was stopped for so long publishes nothing, and says so.
    assert!(
        matches!(backed_up, Err(Error::LeaseLost { .. })),
        "{:?}",
        backed_up.map(|report| report.point.id)
    );
}

/// Found by simulation (seed 2350): the lease of a collector was gone, so the store did not tell its age; that was taken for
/// a store without a clock, and the leases of others were judged by the clocks of machines.
#[test]
fn a_collector_that_lost_its_lease_judges_nobody() {
    let objects = new_repository();
    let mut store = Hooked::new(
        &objects,
        Box::new(|objects, operation, key| {
            if operation == "after put" && key.starts_with("leases/") {
                objects.delete(key).unwrap();
            }
            true
        }),
    );
    store.modified_ms = Some(Arc::default());
    let collector = Repository::open(Arc::new(store), &key()).unwrap();
    let error = collect(&collector).unwrap_err();
    assert!(matches!(error, Error::LeaseLost { .. }), "{error}");
}

/// A source in the middle of whose first read something happens.
struct Interrupted {
    rest: Cursor<Vec<u8>>,
    once: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Read for Interrupted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(happens) = self.once.take() {
            happens();
        }
        self.rest.read(buffer)
    }
}
