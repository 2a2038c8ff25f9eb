//! A decorator that keeps whole immutable objects on local disk, so that what every run reads of a far store costs a request once. Nothing depends on the
//! cache being there, whole or right: a piece that does not have its checksum is dropped and fetched again.

mod disk;
mod entry;
#[cfg(feature = "fuzzing")]
pub use entry::fuzz as fuzz_entry;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::custody::Custody;
use super::{Body, Exclusive, Fill, Habits, PutOutcome, Requests, Span, Store};
use crate::error::Result;
use crate::io::IoEngine;
use disk::{Disk, Growing};

/// What is fetched of a large object at a time.
const FETCH_BYTES: usize = 16 << 20;
/// How long it is believed that a store keeps its promise of exclusive puts.
const EXCLUSIVE_FOR: Duration = Duration::from_secs(30 * 86_400);

/// What is kept, and where.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// The directory; a directory for each store is made in it.
    pub dir: PathBuf,
    /// Bytes kept of one store at most; what was not used for longest goes first.
    pub bytes_max: u64,
    /// Objects whose keys begin so are kept. Their names must never stand for other bytes.
    pub prefixes: Vec<String>,
}

/// Answers from local disk where it can.
pub struct Cached {
    inner: Arc<dyn Store>,
    disk: Disk,
    /// What files that say something of the store begin with: they stand beside the directory of entries.
    marks: PathBuf,
    prefixes: Vec<String>,
    state: Mutex<State>,
    loaded: Condvar,
}

#[derive(Default)]
struct State {
    /// Keys that a thread is fetching.
    loading: HashSet<String>,
    /// Keys that could not be kept: too large, or no room on the disk.
    refused: HashSet<String>,
}

/// Ends a fetch, also when it failed.
struct Loading<'a>(&'a Cached, &'a str);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.state().loading.remove(self.1);
        self.0.loaded.notify_all();
    }
}

impl Cached {
    /// Wraps a store; makes the directory.
    pub fn new(inner: Arc<dyn Store>, options: &CacheOptions) -> Result<Self> {
        let name = blake3::hash(inner.location().as_bytes()).to_hex();
        let marks = options.dir.join(&name[..32]);
        let disk = Disk::open(marks.clone(), options.bytes_max)?;
        let prefixes = options.prefixes.clone();
        Ok(Self { inner, disk, marks, prefixes, state: Mutex::default(), loaded: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each critical section is one insert, remove or look-up: a panic leaves no half of one.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn keeps(&self, key: &str) -> bool {
        self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
            && !self.state().refused.contains(key)
    }

    /// Waits until nobody fetches `key`, and claims it.
    fn claim<'a>(&'a self, key: &'a str) -> Loading<'a> {
        let mut state = self.state();
        while !state.loading.insert(key.to_owned()) {
            state = self.loaded.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        Loading(self, key)
    }

    fn keep(&self, key: &str, bytes: &[u8]) {
        if let Err(error) = self.disk.put(key, bytes) {
            tracing::debug!(key, "not kept in the local cache: {error}");
            self.state().refused.insert(key.to_owned());
        }
    }

    /// Fetches an object into the cache and gives a part of it; one that is large comes in pieces, so that it is
    /// never in memory as a whole. What cannot be kept is passed through.
    fn fetch(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        let first = Span::At { offset: 0, len: FETCH_BYTES };
        let Some(object_bytes) = self.inner.get(key, first, out)? else { return Ok(None) };
        if object_bytes <= out.len() as u64 {
            self.keep(key, out);
            let range = span.within(object_bytes);
            out.truncate(range.end as usize);
            out.drain(..range.start as usize);
            return Ok(Some(object_bytes));
        }
        if let Err(error) = self.fetch_large(key, object_bytes, out)? {
            tracing::debug!(key, "not kept in the local cache: {error}");
            self.state().refused.insert(key.to_owned());
        }
        match self.disk.get(key, span, out) {
            Some(object_bytes) => Ok(Some(object_bytes)),
            None => self.inner.get(key, span, out),
        }
    }

    /// The inner error is the cache's, which harms nobody. `piece` holds the first piece.
    fn fetch_large(&self, key: &str, object_bytes: u64, piece: &mut Vec<u8>) -> Result<io::Result<()>> {
        if !self.disk.has_room_for(object_bytes) {
            return Ok(Err(io::Error::other("it is too large for the cache")));
        }
        let mut growing = match self.disk.begin() {
            Ok(growing) => growing,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            if let Err(error) = growing.add(piece) {
                return Ok(Err(error));
            }
            let offset = growing.bytes();
            if offset >= object_bytes {
                return Ok(self.disk.end(key, growing));
            }
            let found = self.inner.get(key, Span::At { offset, len: FETCH_BYTES }, piece)?;
            if found != Some(object_bytes) || piece.is_empty() {
                return Ok(Err(io::Error::other("it went, or changed, while it was fetched")));
            }
        }
    }

    /// Replaces `out` by a part of a kept object, fetched first if it is not there.
    fn get_kept(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        if let Some(object_bytes) = self.disk.get(key, span, out) {
            return Ok(Some(object_bytes));
        }
        let _loading = self.claim(key);
        if let Some(object_bytes) = self.disk.get(key, span, out) {
            return Ok(Some(object_bytes)); // another thread was faster
        }
        self.fetch(key, span, out)
    }

    /// A file that says that the store kept its promise of exclusive puts.
    fn exclusive_mark(&self) -> PathBuf {
        let way = blake3::hash(self.inner.reached_by().as_bytes()).to_hex();
        self.marks.with_extension(format!("exclusive-{}", &way[..16]))
    }
}

/// Writes what is stored into the cache too. A cache that fails is left out: it never fails the write.
struct Tee<'a> {
    out: &'a mut dyn Write,
    copy: &'a mut Option<Growing>,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        let copied = self.copy.as_mut().map(|copy| copy.add(&bytes[..count]));
        if let Some(Err(error)) = copied {
            tracing::debug!("not kept in the local cache: {error}");
            *self.copy = None;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Store for Cached {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        // Only what the next run reads is worth a copy, and those objects are small beside data packs.
        let copy = self.keeps(key).then(|| body.as_bytes().to_vec());
        let outcome = self.inner.put_new(key, body)?;
        if let (PutOutcome::Created, Some(copy)) = (outcome, copy) {
            self.keep(key, &copy);
        }
        Ok(outcome)
    }

    fn put_streamed(&self, key: &str, fill: &mut Fill<'_>) -> Result<PutOutcome> {
        let mut copy = if self.keeps(key) { self.disk.begin().ok() } else { None };
        let outcome = self.inner.put_streamed(key, &mut |out| fill(&mut Tee { out, copy: &mut copy }))?;
        if let (PutOutcome::Created, Some(copy)) = (outcome, copy)
            && self.disk.has_room_for(copy.bytes())
            && let Err(error) = self.disk.end(key, copy)
        {
            tracing::debug!(key, "not kept in the local cache: {error}");
        }
        Ok(outcome)
    }

    fn assure_exclusive(&self, key: &str, bytes: &[u8], again: bool) -> Result<Exclusive> {
        let mark = self.exclusive_mark();
        let tried =
            fs::metadata(&mark).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if !again && tried.is_some_and(|age| age < EXCLUSIVE_FOR) {
            return Ok(Exclusive::Holds);
        }
        let _ = fs::remove_file(&mark);
        let exclusive = self.inner.assure_exclusive(key, bytes, again)?;
        if exclusive == Exclusive::Holds
            && let Err(error) = fs::write(&mark, self.location())
        {
            tracing::debug!("that puts are exclusive is not remembered: {error}");
        }
        Ok(exclusive)
    }

    fn reached_by(&self) -> String {
        self.inner.reached_by()
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        if self.keeps(key) { self.get_kept(key, span, out) } else { self.inner.get(key, span, out) }
    }

    fn get_into(&self, key: &str, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        if !self.keeps(key) {
            return self.inner.get_into(key, offset, out);
        }
        let mut bytes = Vec::new();
        let found = self.get_kept(key, Span::At { offset, len: out.len() }, &mut bytes)?;
        out[..bytes.len()].copy_from_slice(&bytes);
        Ok(found.map(|_| bytes.len()))
    }

    fn modified_ms(&self, key: &str) -> Result<Option<u64>> {
        self.inner.modified_ms(key)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.inner.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.disk.remove(key);
        self.inner.delete(key)
    }

    fn settle(&self, prefix: &str) -> Result<()> {
        self.inner.settle(prefix)
    }

    fn habits(&self) -> Habits {
        self.inner.habits()
    }

    fn keep_reserve(&self) {
        self.inner.keep_reserve();
    }

    fn release_reserve(&self) -> bool {
        self.inner.release_reserve()
    }

    fn set_io_engine(&self, engine: IoEngine) {
        self.inner.set_io_engine(engine);
    }

    fn distrust(&self, key: &str) -> bool {
        self.disk.remove(key);
        self.inner.distrust(key)
    }

    fn custody(&self) -> Option<&dyn Custody> {
        self.inner.custody()
    }

    fn requests(&self) -> Requests {
        self.inner.requests()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Counted, MemoryStore};

    fn fixture(bytes_max: u64) -> (tempfile::TempDir, Arc<Counted<MemoryStore>>, Cached) {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Counted::new(MemoryStore::default()));
        let cached = wrap(dir.path(), &inner, bytes_max);
        (dir, inner, cached)
    }

    fn wrap(dir: &std::path::Path, inner: &Arc<Counted<MemoryStore>>, bytes_max: u64) -> Cached {
        let options =
            CacheOptions { dir: dir.to_owned(), bytes_max, prefixes: vec!["index/".into(), "data/".into()] };
        Cached::new(inner.clone(), &options).unwrap()
    }

    fn contents(n: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn conforms() {
        let (_dir, _inner, cached) = fixture(1 << 30);
        crate::store::conformance::check(&cached);
    }

    #[test]
    fn a_kept_object_is_fetched_once_whatever_is_read_of_it() {
        let (dir, inner, cached) = fixture(1 << 30);
        let bytes = contents(1, 300_000);
        inner.put_new("index/a", Body::Bytes(&bytes)).unwrap();
        inner.put_new("points/a", Body::Bytes(&bytes)).unwrap();
        let mut out = Vec::new();
        for offset in (0..300_000).step_by(50_000) {
            assert_eq!(
                cached.get("index/a", Span::At { offset, len: 60_000 }, &mut out).unwrap(),
                Some(300_000)
            );
            let start = offset as usize;
            assert_eq!(out, bytes[start..(start + 60_000).min(300_000)]);
        }
        assert_eq!(inner.requests().get, 1);
        let again = wrap(dir.path(), &inner, 1 << 30);
        again.get("index/a", Span::Last(10), &mut out).unwrap();
        assert_eq!((inner.requests().get, out.as_slice()), (1, &bytes[299_990..]), "kept across runs");
        again.get("points/a", Span::All, &mut out).unwrap();
        again.get("points/a", Span::All, &mut out).unwrap();
        assert_eq!(inner.requests().get, 3, "other objects are not kept");
    }

    #[test]
    fn large_objects_come_and_go_in_pieces() {
        let (dir, inner, cached) = fixture(1 << 30);
        let bytes = contents(3, 2 * FETCH_BYTES + 12_345);
        let piecewise =
            |out: &mut dyn Write| bytes.chunks(100_003).for_each(|piece| out.write_all(piece).unwrap());
        let put = cached.put_streamed("index/a", &mut |out| {
            piecewise(out);
            Ok(())
        });
        assert_eq!(put.unwrap(), PutOutcome::Created);
        let check = |cached: &Cached, gets: u64, context: &str| {
            let (mut out, offset) = (Vec::new(), FETCH_BYTES - 100);
            let found =
                cached.get("index/a", Span::At { offset: offset as u64, len: 200 }, &mut out).unwrap();
            assert_eq!(
                (found, out.as_slice()),
                (Some(bytes.len() as u64), &bytes[offset..offset + 200]),
                "{context}"
            );
            cached.get("index/a", Span::Last(9), &mut out).unwrap();
            assert_eq!(out, bytes[bytes.len() - 9..], "{context}");
            assert_eq!(inner.requests().get, gets, "{context}");
        };
        check(&cached, 0, "kept as it was stored");
        cached.distrust("index/a");
        check(&cached, 3, "fetched in three pieces");
        let left: Vec<_> =
            std::fs::read_dir(std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path())
                .unwrap()
                .collect();
        assert_eq!(left.len(), 1, "no unfinished file is left: {left:?}");
        check(
            &wrap(&dir.path().join("small"), &inner, 1 << 20),
            6,
            "too large: passed through, once looked at",
        );
    }

    #[test]
    fn exclusive_puts_are_tried_once() {
        let (dir, inner, cached) = fixture(1 << 30);
        let holds = |cached: &Cached, again| {
            cached.assure_exclusive("config", b"x", again).is_ok_and(|found| found == Exclusive::Holds)
        };
        assert!(!holds(&cached, false), "a put that creates is no proof");
        assert!(holds(&cached, false), "a failure is not remembered, and now there is something to put on");
        inner.delete("config").unwrap();
        assert!(
            holds(&cached, false) && holds(&wrap(dir.path(), &inner, 1 << 30), false),
            "remembered across runs"
        );
        assert!(!holds(&cached, true), "asked again all the same");
    }

    #[test]
    fn threads_that_miss_together_fetch_once() {
        let (_dir, inner, cached) = fixture(1 << 30);
        inner.put_new("index/a", Body::Bytes(&contents(1, 1 << 20))).unwrap();
        std::thread::scope(|scope| {
            for offset in 0..8 {
                let cached = &cached;
                scope.spawn(move || {
                    cached.get("index/a", Span::At { offset, len: 9 }, &mut Vec::new()).unwrap()
                });
            }
        });
        assert_eq!(inner.requests().get, 1);
    }

    #[test]
    fn a_hurt_entry_is_fetched_again() {
        let (dir, inner, cached) = fixture(1 << 30);
        let bytes = contents(1, 200_000);
        cached.put_new("index/a", Body::Bytes(&bytes)).unwrap();
        let store_dir = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let file = std::fs::read_dir(store_dir).unwrap().next().unwrap().unwrap().path();
        let kept = std::fs::read(&file).unwrap();
        for at in (0..kept.len()).step_by(10_007).chain([0, 8, 16, 40]) {
            let mut hurt = kept.clone();
            hurt[at] ^= 1;
            std::fs::write(&file, &hurt).unwrap();
            let mut out = Vec::new();
            let fresh = wrap(dir.path(), &inner, 1 << 30);
            assert_eq!(fresh.get("index/a", Span::All, &mut out).unwrap(), Some(200_000));
            assert_eq!(out, bytes, "byte {at}");
            assert_eq!(std::fs::read(&file).unwrap(), kept, "byte {at}: mended");
        }
        for len in [0, 10, 100, kept.len() - 1] {
            std::fs::write(&file, &kept[..len]).unwrap();
            let mut out = Vec::new();
            wrap(dir.path(), &inner, 1 << 30).get("index/a", Span::All, &mut out).unwrap();
            assert_eq!(out, bytes, "cut to {len}");
        }
    }

    #[test]
    fn what_the_caller_distrusts_is_fetched_again() {
        let (_dir, inner, cached) = fixture(1 << 30);
        cached.put_new("index/a", Body::Bytes(b"x")).unwrap();
        cached.distrust("index/a");
        let before = inner.requests().get;
        cached.get("index/a", Span::All, &mut Vec::new()).unwrap();
        assert_eq!(inner.requests().get, before + 1);
    }

    #[test]
    fn the_oldest_go_when_it_is_full_and_the_rest_is_passed_through() {
        let (dir, inner, cached) = fixture(100_000);
        for n in 0..9u64 {
            cached.put_new(&format!("index/{n}"), Body::Bytes(&contents(n, 20_000))).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5)); // so that their times differ
        }
        let store_dir = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let held: u64 =
            std::fs::read_dir(&store_dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(held <= 100_000, "{held}");
        let mut out = Vec::new();
        cached.get("index/8", Span::All, &mut out).unwrap();
        assert_eq!((inner.requests().get, &out), (0, &contents(8, 20_000)), "the newest is there");
        cached.get("index/0", Span::All, &mut out).unwrap();
        assert_eq!((inner.requests().get, &out), (1, &contents(0, 20_000)), "the oldest is gone");
        cached.put_new("index/large", Body::Bytes(&contents(1, 99_000))).unwrap();
        cached.get("index/large", Span::At { offset: 5, len: 5 }, &mut out).unwrap();
        assert_eq!(out, contents(1, 99_000)[5..10]);
    }
}
