//! Copies between repositories in memory: stores that fail at any put, keys that agree and keys that do not.
#![allow(clippy::unwrap_used)]

use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use penstock_engine::backup::{self, BackupOptions, VolumeSource};
use penstock_engine::copy::{self, COPIED_FROM, CopyReport};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::config::Encryption;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::StreamSource;
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::verify::{self, VerifyOptions};
use penstock_engine::{Error, Result, Run};

/// A store that refuses puts of some prefix after a number of them.
struct Faulty {
    objects: MemoryStore,
    location: String,
    prefix: Mutex<String>,
    puts_left: AtomicI64,
}

impl Faulty {
    fn new(location: &str) -> Arc<Self> {
        Arc::new(Self {
            objects: MemoryStore::default(),
            location: location.to_owned(),
            prefix: Mutex::default(),
            puts_left: AtomicI64::new(i64::MAX),
        })
    }

    fn allow(&self, puts: i64, prefix: &str) {
        *self.prefix.lock().unwrap() = prefix.to_owned();
        self.puts_left.store(puts, Ordering::SeqCst);
    }
}

impl Store for Faulty {
    fn location(&self) -> &str {
        &self.location
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        let counts = key.starts_with(self.prefix.lock().unwrap().as_str());
        if counts && self.puts_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(Error::io("write", format_args!("{}/{key}", self.location))(std::io::Error::other(
                "no more",
            )));
        }
        self.objects.put_new(key, body)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        self.objects.get(key, span, out)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.objects.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.objects.delete(key)
    }
}

/// Text and noise by turns, with a hole.
fn disk(bytes: usize, seed: u8) -> Vec<u8> {
    let mut disk = vec![0; bytes];
    let mut noise = blake3::Hasher::new().update(&[seed]).finalize_xof();
    for (n, part) in disk.chunks_mut(300_000).enumerate() {
        match n % 4 {
            0 | 2 => noise.fill(part),
            1 => part.iter_mut().enumerate().for_each(|(i, byte)| *byte = b'a' + ((i / 7 + n) % 20) as u8),
            _ => {}
        }
    }
    disk
}

fn init(store: &Arc<Faulty>, encryption: Encryption) -> Repository {
    let options = InitOptions { encryption, pack_bytes: 8 << 20, ..InitOptions::default() };
    let access = match encryption {
        Encryption::None => AccessKey::None,
        Encryption::Aes256Gcm => key(),
    };
    Repository::init(store.clone(), &options, &access).unwrap()
}

fn key() -> AccessKey {
    AccessKey::key_file(vec![7; 40]).unwrap()
}

fn back_up(repo: &Repository, contents: &[u8]) -> RecoveryPoint {
    let state = tempfile::tempdir().unwrap();
    let source = Box::new(StreamSource::new("disk", Cursor::new(contents.to_vec())));
    let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
    let options = BackupOptions {
        name: "host".into(),
        workers: 2,
        allow_shrink: true,
        state_dir: state.path().to_owned(),
        ..BackupOptions::default()
    };
    backup::run(repo, volumes, &options, &Arc::new(Run::new())).unwrap().point
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

fn contents(repo: &Repository, id: &str) -> Vec<u8> {
    let (point, state, sink) = (repo.resolve(id).unwrap(), tempfile::tempdir().unwrap(), Sink::default());
    let options =
        RestoreOptions { workers: 2, state_dir: Some(state.path().to_owned()), ..RestoreOptions::default() };
    let target = RestoreTarget::Writer(Box::new(sink.clone()));
    restore::run(repo, &point, &point.volumes[0], target, &options, &Arc::new(Run::new())).unwrap();
    sink.0.lock().unwrap().clone()
}

fn assert_clean(repo: &Repository) {
    let options = VerifyOptions { read_data: true, workers: 2, ..VerifyOptions::default() };
    let report = verify::run(repo, &options, &Arc::new(Run::new())).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn copy_all(from: &Repository, to: &Repository) -> Result<CopyReport> {
    let ids = from.point_ids().unwrap();
    let points: Vec<RecoveryPoint> = ids.iter().map(|id| from.read_point(*id).unwrap()).collect();
    copy::run(from, to, &points, 2, &Arc::new(Run::new()))
}

#[test]
fn whatever_put_fails_nothing_half_done_is_published_and_the_next_run_ends() {
    let from = init(&Faulty::new("from"), Encryption::Aes256Gcm);
    let (first, second) = (disk(21 << 20, 1), disk(22 << 20, 2));
    let points = [back_up(&from, &first), back_up(&from, &second)];
    for allowed in 0.. {
        let store = Faulty::new("to");
        init(&store, Encryption::None);
        store.allow(allowed, "");
        let to = Repository::open(store.clone(), &AccessKey::None).unwrap();
        let outcome = copy_all(&from, &to);
        store.allow(i64::MAX, "");
        let again = Repository::open(store.clone(), &AccessKey::None).unwrap();
        for id in again.point_ids().unwrap() {
            let expected = if id.to_string() == points[0].id { &first } else { &second };
            assert!(contents(&again, &id.to_string()) == *expected, "after {allowed} puts");
        }
        assert_clean(&again);
        match outcome {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("to/"), "{error}"),
        }
        copy_all(&from, &again).unwrap();
        assert!(contents(&again, &points[0].id) == first && contents(&again, &points[1].id) == second);
        assert_clean(&again);
        assert!(allowed < 100, "it never ended");
    }
}

#[test]
fn what_was_stored_by_a_run_that_failed_is_not_sent_again() {
    let from = init(&Faulty::new("from"), Encryption::Aes256Gcm);
    back_up(&from, &disk(40 << 20, 1));
    let whole = init(&Faulty::new("whole"), Encryption::None);
    let chunks = copy_all(&from, &whole).unwrap().points[0].new.new_chunks;
    let store = Faulty::new("to");
    let to = init(&store, Encryption::Aes256Gcm);
    store.allow(2, "data/");
    assert!(copy_all(&from, &to).is_err());
    store.allow(i64::MAX, "");
    let rest = copy_all(&from, &to).unwrap().points[0].new.new_chunks;
    assert!(0 < rest && rest < chunks, "{rest} of {chunks}");
    assert_clean(&to);
}

#[test]
fn a_damaged_chunk_of_the_source_is_named_with_its_repository() {
    let source = Faulty::new("from");
    let from = init(&source, Encryption::Aes256Gcm);
    back_up(&from, &disk(12 << 20, 1));
    let mut packs = Vec::new();
    source.list("data/", &mut |key, _| packs.push(key.to_owned())).unwrap();
    let mut bytes = Vec::new();
    source.get(&packs[0], Span::All, &mut bytes).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    source.delete(&packs[0]).unwrap();
    source.put_new(&packs[0], Body::Bytes(&bytes)).unwrap();
    let to = init(&Faulty::new("to"), Encryption::None);
    let error = copy_all(&from, &to).unwrap_err();
    assert!(error.is_damage() && error.to_string().starts_with(&format!("{} in from", packs[0])), "{error}");
    assert!(to.point_ids().unwrap().is_empty());
    assert_clean(&to);
}

#[test]
fn a_copy_says_where_it_came_from_and_keeps_what_it_does_not_know() {
    let from = init(&Faulty::new("from"), Encryption::Aes256Gcm);
    let to = init(&Faulty::new("to"), Encryption::Aes256Gcm);
    let bytes = disk(3 << 20, 5);
    let mut point = back_up(&from, &bytes);
    point.other.insert("instance".into(), "m7i.large".into());
    let report = copy::run(&from, &to, std::slice::from_ref(&point), 1, &Arc::new(Run::new())).unwrap();
    let copied = to.resolve(&point.id).unwrap();
    assert_eq!(copied, report.points[0].point);
    assert_eq!(copied.other["instance"], "m7i.large");
    assert_eq!(copied.other[COPIED_FROM]["repository_id"], from.config().repository_id.as_str());
    assert_eq!(copied.other[COPIED_FROM]["recovery_point"], point.id.as_str());
    assert!(contents(&to, "latest") == bytes);
    // a point of that id which is another one is not taken for a copy
    point.name = "stranger".into();
    let error = copy::run(&from, &to, &[point], 1, &Arc::new(Run::new())).unwrap_err();
    assert!(matches!(error, Error::TargetRefused { .. }), "{error}");
}

#[test]
fn a_cancelled_copy_publishes_nothing() {
    let from = init(&Faulty::new("from"), Encryption::Aes256Gcm);
    back_up(&from, &disk(9 << 20, 1));
    let to = init(&Faulty::new("to"), Encryption::None);
    let run = Arc::new(Run::new());
    run.cancel();
    let point = from.resolve("latest").unwrap();
    assert!(matches!(copy::run(&from, &to, &[point], 2, &run), Err(Error::Cancelled)));
    assert!(to.point_ids().unwrap().is_empty());
}
