//! The suite that every store passes, against real servers. `tests/run` starts them and names them by environment variables; without those, the tests fail.

use std::sync::Arc;

use penstock_engine::io::BufPool;
use penstock_engine::store::object::{
    self, AwsAccess, AwsCredential, ObjectOptions, ObjectStore, Place, Runtime,
};
use penstock_engine::store::{Body, CacheOptions, Cached, Exclusive, PutOutcome, Span, Store, conformance};

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: `bash tests/run --only stores` starts the servers that these tests need")
    })
}

fn place(url: &str) -> Place {
    Place::parse(url).unwrap().unwrap()
}

fn credentials() -> AwsAccess {
    let credential = AwsCredential {
        key_id: setting("AWS_ACCESS_KEY_ID"),
        secret_key: setting("AWS_SECRET_ACCESS_KEY"),
        token: None,
    };
    AwsAccess {
        provider: Arc::new(object_store::StaticCredentialProvider::new(credential)),
        expired: Arc::new(|| {}),
    }
}

/// A fresh prefix of the bucket.
fn s3(prefix: &str, change: impl FnOnce(&mut ObjectOptions)) -> ObjectStore {
    let mut options = ObjectOptions {
        endpoint: Some(setting("PENSTOCK_TEST_S3")),
        aws: Some(credentials()),
        ..ObjectOptions::default()
    };
    change(&mut options);
    let url = format!("s3://{}/{prefix}", setting("PENSTOCK_TEST_BUCKET"));
    object::open(place(&url), options, Runtime::start().unwrap()).unwrap()
}

#[test]
fn s3_conforms() {
    conformance::check(&s3("conforms", |_| {}));
}

#[test]
fn s3_conforms_with_other_options() {
    use penstock_engine::store::object::ChecksumKind;
    conformance::check(&s3("sha256", |options| options.checksum = ChecksumKind::Sha256));
    conformance::check(&s3("off", |options| options.checksum = ChecksumKind::Off));
    conformance::check(&s3("class", |options| {
        options.storage_class = Some("STANDARD_IA".into());
        options.storage_class_prefix = "data/".into();
    }));
}

#[test]
fn s3_conforms_behind_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions {
        dir: dir.path().into(),
        bytes_max: 1 << 30,
        prefixes: vec!["index/".into(), "keys/".into()],
    };
    conformance::check(&Cached::new(Arc::new(s3("cached", |_| {})), &options).unwrap());
}

#[test]
fn azure_conforms() {
    let options =
        ObjectOptions { endpoint: Some(setting("PENSTOCK_TEST_AZURE")), ..ObjectOptions::default() };
    let url = format!("az://{}/conforms", setting("PENSTOCK_TEST_BUCKET"));
    conformance::check(&object::open(place(&url), options, Runtime::start().unwrap()).unwrap());
}

/// Larger than a single request: goes up in parts, and is put-if-absent all the same.
#[test]
fn large_objects_go_up_in_parts() {
    const BYTES: usize = 100 << 20;
    let store = s3("large", |_| {});
    let pool = BufPool::new(1, BYTES);
    let put = |fill: u8| {
        let mut buf = pool.get_blocking().unwrap();
        buf.fill(fill);
        buf[BYTES - 1] = 0xff;
        store.put_new("data/large", Body::Pooled { buf, len: BYTES }).unwrap()
    };
    assert_eq!(put(1), PutOutcome::Created);
    assert_eq!(store.requests().put, 6, "begin, four parts, end");
    assert_eq!(put(2), PutOutcome::Exists);
    let mut out = Vec::new();
    assert_eq!(store.get("data/large", Span::Last(2), &mut out).unwrap(), Some(BYTES as u64));
    assert_eq!(out, [1, 0xff]);
}

/// Peak of this process's resident memory.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// A part of a merged index has 202 MB: stored, kept in the cache and read, it is never in memory as a whole.
/// The other tests of this process may run beside it and have 100 MiB and more in memory: they are counted out by a
/// child.
#[test]
fn streamed_objects_are_never_whole_in_memory() {
    if std::env::var_os("PENSTOCK_TEST_STREAMED").is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "streamed_objects_are_never_whole_in_memory", "--nocapture"])
            .env("PENSTOCK_TEST_STREAMED", "1")
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        return;
    }
    const BYTES: u64 = 202 << 20;
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let cached = |store: ObjectStore, name: &str| {
        let options =
            CacheOptions { dir: dir.path().join(name), bytes_max: 1 << 30, prefixes: vec!["index/".into()] };
        Cached::new(Arc::new(store), &options).unwrap()
    };
    let piece: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    let fill = &mut |out: &mut dyn std::io::Write| {
        (0..BYTES >> 20).for_each(|_| out.write_all(&piece).unwrap());
        Ok(())
    };
    let store = cached(s3("streamed", |_| {}), "one");
    assert_eq!(store.put_streamed("index/a", fill).unwrap(), PutOutcome::Created);
    assert_eq!(store.requests().put, 28, "begin, 26 parts of 8 MiB, end");
    let mut out = Vec::new();
    for store in [&store, &cached(s3("streamed", |_| {}), "two")] {
        assert_eq!(
            store.get("index/a", Span::At { offset: BYTES - 10, len: 99 }, &mut out).unwrap(),
            Some(BYTES)
        );
        assert_eq!(out, piece[piece.len() - 10..]);
    }
    let again = cached(s3("streamed", |_| {}), "three");
    assert_eq!(
        again.put_streamed("index/a", fill).unwrap(),
        PutOutcome::Exists,
        "put-if-absent all the same"
    );
    let peak = peak_bytes();
    println!("peak memory: {} MiB", peak >> 20);
    assert!(peak < 128 << 20, "{} MiB", peak >> 20);
}

#[test]
fn putting_again_what_is_there_is_refused() {
    let store = s3("exclusive", |_| {});
    store.put_new("config", Body::Bytes(b"x")).unwrap();
    assert_eq!(store.assure_exclusive("config", b"x", true).unwrap(), Exclusive::Holds);
}

#[test]
fn listings_are_complete_over_many_pages() {
    let store = s3("pages", |_| {});
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..150 {
                    let key = format!("points/{:04}", thread * 150 + n);
                    assert_eq!(store.put_new(&key, Body::Bytes(b"x")).unwrap(), PutOutcome::Created);
                }
            });
        }
    });
    let mut keys = Vec::new();
    store.list("points/", &mut |key, bytes| keys.push((key.to_owned(), bytes))).unwrap();
    keys.sort();
    let expected: Vec<_> = (0..1200).map(|n| (format!("points/{n:04}"), 1)).collect();
    assert_eq!(keys, expected);
    let requests = store.requests();
    assert_eq!((requests.put, requests.get, requests.list, requests.retried), (1200, 0, 2, 0));
}
