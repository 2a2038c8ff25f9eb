//! The suite that every store passes, against real servers. `tests/run` starts them and names them by environment variables; without those, the tests fail.

use std::sync::Arc;

use penstock_engine::io::BufPool;
use penstock_engine::store::object::{
    self, AwsAccess, AwsCredential, ObjectOptions, ObjectStore, Place, Runtime,
};
use penstock_engine::store::{Body, CacheOptions, Cached, PutOutcome, Span, Store, conformance};

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
