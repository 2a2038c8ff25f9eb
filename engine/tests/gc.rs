//! Collections beside writers: thousands of interleavings, drawn from a seed. Every store operation of a writer or collector waits for a permit, so that the scheduler stops each of
//! them anywhere, lets others work meanwhile, lets it go on or kills it. Whatever happens, every recovery point that can be listed restores to what was backed up.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use penstock_engine::backup::{self, BackupOptions, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::config::Encryption;
use penstock_engine::gc::{self, GcOptions};
use penstock_engine::id::PointId;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::StreamSource;
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::verify::{self, VerifyOptions};
use penstock_engine::{Error, Result, Run, forget};

/// Permits of one actor.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    permits: u64,
    waiting: u64,
    free: bool,
    killed: bool,
    ended: bool,
    leases: Vec<String>,
}

impl Gate {
    fn pass(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        while !(state.free || state.killed || state.permits > 0) {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting -= 1;
        state.permits = state.permits.saturating_sub(1);
        match state.killed {
            true => Err(Error::io("reach", "the store")(std::io::Error::other("killed"))),
            false => Ok(()),
        }
    }

    fn set(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until the actor has used its permits or ended.
    fn settle(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.ended && (state.permits > 0 || state.waiting == 0) {
            let (next, timeout) = self.changed.wait_timeout(state, Duration::from_millis(20)).unwrap();
            state = next;
            if timeout.timed_out() && state.permits > 0 && state.waiting == 0 {
                continue; // computing
            }
        }
    }
}

struct Gated {
    objects: Arc<MemoryStore>,
    gate: Arc<Gate>,
}

impl Store for Gated {
    fn location(&self) -> &str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.gate.pass()?;
        if key.starts_with("leases/") {
            self.gate.set(|state| state.leases.push(key.to_owned()));
        }
        self.objects.put_new(key, body)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        self.gate.pass()?;
        self.objects.get(key, span, out)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.gate.pass()?;
        self.objects.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.gate.pass()?;
        self.objects.delete(key)
    }
}

/// xorshift: the whole history follows from the seed, but for how threads of one actor take turns.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

const BLOCK: usize = 64 << 10;

/// A disk of blocks out of a few kinds, so that what one point leaves another one finds.
fn disk(rng: &mut Rng) -> Vec<u8> {
    let blocks = 1 + rng.below(90) as usize;
    let mut disk = vec![0; blocks * BLOCK];
    let kind = rng.below(4);
    for (n, part) in disk.chunks_mut(BLOCK).enumerate() {
        let which = match kind {
            0 => (n as u64 / 8) % 4,
            _ => rng.below(6) + 10 * kind,
        };
        blake3::Hasher::new()
            .update(&which.to_le_bytes())
            .update(&(n % 16).to_le_bytes())
            .finalize_xof()
            .fill(part);
    }
    disk
}

fn key() -> AccessKey {
    AccessKey::key_file(vec![7; 40]).unwrap()
}

fn open(objects: &Arc<MemoryStore>, gate: &Arc<Gate>) -> Result<Repository> {
    let store = Gated { objects: objects.clone(), gate: gate.clone() };
    Repository::open(Arc::new(store), &key())
}

fn back_up(repo: &Repository, name: &str, contents: Vec<u8>) -> Result<String> {
    let state = tempfile::tempdir().unwrap();
    let source = Box::new(StreamSource::new("disk", Cursor::new(contents)));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
    let options = BackupOptions {
        name: name.into(),
        workers: 1,
        state_dir: state.path().to_owned(),
        ..BackupOptions::default()
    };
    Ok(backup::run(repo, volumes, &options, &Arc::new(Run::new()))?.point.id)
}

fn now() -> GcOptions {
    GcOptions { grace: Duration::ZERO, ..GcOptions::default() }
}

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

fn restored(repo: &Repository, id: &str) -> Result<Vec<u8>> {
    let point = repo.resolve(id)?;
    let sink = Sink::default();
    let target = RestoreTarget::Writer(Box::new(sink.clone()));
    let options = RestoreOptions { workers: 1, ..RestoreOptions::default() };
    restore::run(repo, &point, &point.volumes[0], target, &options, &Arc::new(Run::new()))?;
    Ok(std::mem::take(&mut sink.0.lock().unwrap()))
}

enum Ended {
    Backup(Result<String>, Vec<u8>),
    Gc(Result<()>),
}

struct Actor {
    gate: Arc<Gate>,
    what: &'static str,
    thread: JoinHandle<Ended>,
}

/// A repository, what is in it, and who works on it.
struct World {
    objects: Arc<MemoryStore>,
    free: Arc<Gate>,
    actors: Vec<Actor>,
    /// Contents by point.
    contents: HashMap<String, Vec<u8>>,
    killed_contents: Vec<Vec<u8>>,
    crowded: bool,
    log: Vec<String>,
}

impl World {
    fn new(crowded: bool) -> Self {
        let objects = Arc::new(MemoryStore::default());
        let free = Arc::new(Gate::default());
        free.set(|state| state.free = true);
        let store = Gated { objects: objects.clone(), gate: free.clone() };
        let options = InitOptions {
            encryption: Encryption::Aes256Gcm,
            chunk_bytes: 16 << 10,
            pack_bytes: 8 << 20,
            ..InitOptions::default()
        };
        Repository::init(Arc::new(store), &options, &key()).unwrap();
        Self {
            objects,
            free,
            actors: Vec::new(),
            contents: HashMap::new(),
            killed_contents: Vec::new(),
            crowded,
            log: Vec::new(),
        }
    }

    fn repo(&self) -> Repository {
        open(&self.objects, &self.free).unwrap()
    }

    fn start(&mut self, what: &'static str, rng: &mut Rng) {
        let gate = Arc::new(Gate::default());
        let (objects, of_actor, contents) = (self.objects.clone(), gate.clone(), disk(rng));
        let name = ["a", "b"][rng.below(2) as usize];
        let collect = what == "gc";
        let thread = std::thread::spawn(move || {
            let ended = match collect {
                true => Ended::Gc(
                    open(&objects, &of_actor)
                        .and_then(|repo| gc::run(&repo, &now(), &Arc::new(Run::new())).map(drop)),
                ),
                false => {
                    let result =
                        open(&objects, &of_actor).and_then(|repo| back_up(&repo, name, contents.clone()));
                    Ended::Backup(result, contents)
                }
            };
            of_actor.set(|state| state.ended = true);
            ended
        });
        self.actors.push(Actor { gate, what, thread });
    }

    fn finish(&mut self, number: usize, kill: bool) {
        let Actor { gate, what, thread } = self.actors.swap_remove(number);
        gate.set(|state| if kill { state.killed = true } else { state.free = true });
        let ended = thread.join().unwrap();
        if kill {
            // What a collector finds out of a process that is gone.
            for lease in std::mem::take(&mut gate.state.lock().unwrap().leases) {
                self.objects.delete(&lease).unwrap();
            }
        }
        match ended {
            Ended::Backup(Ok(id), contents) => {
                self.contents.insert(id, contents);
            }
            Ended::Backup(Err(_), contents) if kill => self.killed_contents.push(contents),
            Ended::Backup(Err(error), _) | Ended::Gc(Err(error)) if !kill => {
                panic!("{what} failed: {error}\n{}", self.log.join("\n"))
            }
            _ => {}
        }
    }

    fn check(&self) {
        let repo = self.repo();
        for id in repo.point_ids().unwrap() {
            let id = id.to_string();
            let bytes = restored(&repo, &id)
                .unwrap_or_else(|error| panic!("{id} is lost: {error}\n{}", self.log.join("\n")));
            let right = match self.contents.get(&id) {
                Some(contents) => *contents == bytes,
                // published, and killed before it could say so; or its writer is still under way
                None => self.killed_contents.contains(&bytes) || !self.actors.is_empty(),
            };
            assert!(right, "{id} has other contents\n{}", self.log.join("\n"));
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        let say = |log: &mut Vec<String>, text: String| log.push(text);
        // Half of the histories have more collectors than writers, at closer quarters.
        let (crowd, collectors, longest) = if self.crowded { (6, 4, 5) } else { (4, 2, 12) };
        match rng.below(10 + collectors) {
            0..=2 if self.actors.len() < crowd => {
                say(&mut self.log, "start a backup".into());
                self.start("backup", rng);
            }
            10.. if self.actors.len() < crowd => {
                say(&mut self.log, "start a collection".into());
                self.start("gc", rng);
            }
            3..=7 if !self.actors.is_empty() => {
                let number = rng.below(self.actors.len() as u64) as usize;
                let permits = 1 + rng.below(longest);
                let actor = &self.actors[number];
                say(&mut self.log, format!("{permits} steps of {} {number}", actor.what));
                actor.gate.set(|state| state.permits += permits);
                actor.gate.settle();
            }
            8 if !self.actors.is_empty() => {
                let number = rng.below(self.actors.len() as u64) as usize;
                let kill = rng.below(3) == 0;
                say(
                    &mut self.log,
                    format!("{} {} {number}", if kill { "kill" } else { "finish" }, self.actors[number].what),
                );
                self.finish(number, kill);
            }
            _ => {
                let repo = self.repo();
                let ids = repo.point_ids().unwrap();
                if !ids.is_empty() {
                    let id: PointId = ids[rng.below(ids.len() as u64) as usize];
                    say(&mut self.log, format!("forget {id}"));
                    forget::remove(&repo, &[id], &Run::new(), &mut |_| {}).unwrap();
                }
            }
        }
    }
}

fn history(seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = World::new(seed.is_multiple_of(2));
    world.log.push(format!("seed {seed}"));
    for step in 0..if world.crowded { 90 } else { 40 } {
        world.step(&mut rng);
        if step % 8 == 7 {
            world.check();
        }
    }
    while !world.actors.is_empty() {
        let number = rng.below(world.actors.len() as u64) as usize;
        world.finish(number, rng.below(4) == 0);
    }
    world.check();
    // In the end all garbage goes, in a few collections: what one moves may leave another pack without use.
    let repo = world.repo();
    let collect = |options: &GcOptions| gc::run(&repo, options, &Arc::new(Run::new())).unwrap();
    let left = |_| {
        collect(&now());
        let left = collect(&GcOptions { dry_run: true, ..now() });
        left.condemned.packs + left.candidates.packs + left.waiting.len() as u64
    };
    assert!((0..5).map(left).any(|left| left == 0), "garbage is left\n{}", world.log.join("\n"));
    world.check();
    let report = verify::run(&world.repo(), &VerifyOptions::default(), &Arc::new(Run::new())).unwrap();
    assert_eq!(report.problems, Vec::<String>::new(), "seed {seed}");
}

#[test]
fn whatever_happens_every_point_that_can_be_listed_restores() {
    let count: u64 = std::env::var("PENSTOCK_GC_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let first: u64 = std::env::var("PENSTOCK_GC_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in first..first + count {
        history(seed);
    }
}
