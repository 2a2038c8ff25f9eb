//! A decorator that keeps whole immutable objects on local disk, so that what every run reads of a far store costs a request once. Nothing depends on the
//! cache being there, whole or right: a piece that does not have its checksum is dropped and fetched again.

mod disk;
mod entry;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::custody::Custody;
use super::{Body, Habits, PutOutcome, Requests, Span, Store};
use crate::error::Result;
use crate::io::IoEngine;
use disk::Disk;

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
        let disk = Disk::open(options.dir.join(&name[..32]), options.bytes_max)?;
        let prefixes = options.prefixes.clone();
        Ok(Self { inner, disk, prefixes, state: Mutex::default(), loaded: Condvar::new() })
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

    /// Replaces `out` by a part of a kept object, fetched first if it is not there.
    fn get_kept(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        if let Some(object_bytes) = self.disk.get(key, span, out) {
            return Ok(Some(object_bytes));
        }
        let _loading = self.claim(key);
        if let Some(object_bytes) = self.disk.get(key, span, out) {
            return Ok(Some(object_bytes)); // another thread was faster
        }
        let Some(object_bytes) = self.inner.get(key, Span::All, out)? else { return Ok(None) };
        self.keep(key, out);
        let range = span.within(object_bytes);
        out.truncate(range.end as usize);
        out.drain(..range.start as usize);
        Ok(Some(object_bytes))
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
