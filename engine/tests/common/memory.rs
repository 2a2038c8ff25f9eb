//! A repository in memory, and a store over it at whose operations a test can act.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_engine::backup::{self, BackupOptions, BackupReport, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::environment::{Clock, SystemClock};
use penstock_engine::gc::{self, GcOptions};
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::source::StreamSource;
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::{Error, Result, Run};

/// What a test does at an operation, before it is carried out: `true` lets it go on, `false` makes it fail (put, delete)
/// or answer that there is no such object (get).
pub type Hook = dyn FnMut(&MemoryStore, &'static str, &str) -> bool + Send;

pub struct Hooked {
    pub objects: Arc<MemoryStore>,
    /// When each object was stored, by the store's clock.
    pub modified_ms: Option<Arc<Mutex<BTreeMap<String, u64>>>>,
    pub clock: Arc<dyn Clock>,
    pub hook: Mutex<Box<Hook>>,
}

impl Hooked {
    pub fn new(objects: &Arc<MemoryStore>, hook: Box<Hook>) -> Self {
        let clock = Arc::new(SystemClock::default());
        Self { objects: objects.clone(), modified_ms: None, clock, hook: Mutex::new(hook) }
    }

    fn passes(&self, operation: &'static str, key: &str) -> bool {
        (self.hook.lock().unwrap())(&self.objects, operation, key)
    }
}

pub fn refused() -> Error {
    Error::io("reach", "the store")(std::io::Error::other("a test refuses it"))
}

impl Store for Hooked {
    fn location(&self) -> &str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        if !self.passes("put", key) {
            return Err(refused());
        }
        let outcome = self.objects.put_new(key, body)?;
        if let Some(modified_ms) = &self.modified_ms {
            modified_ms.lock().unwrap().insert(key.to_owned(), self.clock.unix_ms());
        }
        self.passes("after put", key);
        Ok(outcome)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        match self.passes("get", key) {
            true => self.objects.get(key, span, out),
            false => Ok(None),
        }
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.objects.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        if !self.passes("delete", key) {
            return Err(refused());
        }
        self.objects.delete(key)
    }

    fn modified_ms(&self, key: &str) -> Result<Option<u64>> {
        let there = self.objects.get(key, Span::All, &mut Vec::new())?.is_some();
        let known = self.modified_ms.as_ref().filter(|_| there);
        Ok(known.and_then(|known| known.lock().unwrap().get(key).copied()))
    }
}

pub fn key() -> AccessKey {
    AccessKey::key_file(vec![7; 40]).unwrap()
}

pub fn new_repository() -> Arc<MemoryStore> {
    let objects = Arc::new(MemoryStore::default());
    let options = InitOptions { chunk_bytes: 16 << 10, pack_bytes: 8 << 20, ..InitOptions::default() };
    Repository::init(objects.clone(), &options, &key()).unwrap();
    objects
}

pub fn open(objects: &Arc<MemoryStore>) -> Repository {
    Repository::open(objects.clone(), &key()).unwrap()
}

pub fn open_hooked(objects: &Arc<MemoryStore>, hook: Box<Hook>) -> Repository {
    Repository::open(Arc::new(Hooked::new(objects, hook)), &key()).unwrap()
}

pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut contents = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut contents);
    contents
}

pub fn back_up(
    repo: &Repository,
    name: &str,
    source: impl Read + Send + Sync + 'static,
) -> Result<BackupReport> {
    let state = tempfile::tempdir().unwrap();
    let source = Box::new(StreamSource::new("disk", source));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
    let state_dir = state.path().to_owned();
    let options = BackupOptions { name: name.into(), workers: 1, state_dir, ..BackupOptions::default() };
    backup::run(repo, volumes, &options, &Arc::new(Run::new()))
}

pub fn collect(repo: &Repository) -> Result<gc::GcReport> {
    let options = GcOptions { grace: Duration::ZERO, ..GcOptions::default() };
    gc::run(repo, &options, &Arc::new(Run::new()))
}
