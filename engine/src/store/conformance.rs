//! What every store must do. Each implementation's tests call [`check`].

use super::{Body, PutOutcome, Span, Store};
use crate::error::Error;
use crate::io::BufPool;

/// Runs the suite on an empty store.
pub fn check(store: &dyn Store) {
    put_if_absent(store);
    spans(store);
    listing(store);
    racing_puts(store);
    streams(store);
}

fn get(store: &dyn Store, key: &str, span: Span) -> Option<(u64, Vec<u8>)> {
    let mut out = b"left over".to_vec();
    store.get(key, span, &mut out).unwrap().map(|bytes| (bytes, out))
}

fn put_if_absent(store: &dyn Store) {
    assert_eq!(get(store, "keys/aa", Span::All), None);
    assert_eq!(store.put_new("keys/aa", Body::Bytes(b"one")).unwrap(), PutOutcome::Created);
    assert_eq!(store.put_new("keys/aa", Body::Bytes(b"two")).unwrap(), PutOutcome::Exists);
    assert_eq!(get(store, "keys/aa", Span::All), Some((3, b"one".to_vec())));
    store.delete("keys/aa").unwrap();
    store.delete("keys/aa").unwrap();
    assert_eq!(get(store, "keys/aa", Span::All), None);

    let pool = BufPool::new(1, 1 << 20);
    for (key, len) in
        [("data/00/00aa", 0), ("data/00/00ab", 1), ("data/00/00ac", 4097), ("data/01/01aa", 1 << 20)]
    {
        let mut buf = pool.get_blocking().unwrap();
        buf.fill(7);
        assert_eq!(store.put_new(key, Body::Pooled { buf, len }).unwrap(), PutOutcome::Created);
        assert_eq!(get(store, key, Span::All), Some((len as u64, vec![7; len])));
        let buf = pool.get_blocking().expect("the buffer comes back");
        assert_eq!(store.put_new(key, Body::Pooled { buf, len }).unwrap(), PutOutcome::Exists);
    }
}

fn spans(store: &dyn Store) {
    let bytes: Vec<u8> = (0..=255).collect();
    store.put_new("index/span", Body::Bytes(&bytes)).unwrap();
    let at = |offset, len| get(store, "index/span", Span::At { offset, len }).unwrap();
    assert_eq!(at(0, 256), (256, bytes.clone()));
    assert_eq!(at(10, 5), (256, vec![10, 11, 12, 13, 14]));
    assert_eq!(at(250, 100), (256, (250..=255).collect()), "short at the end");
    assert_eq!(at(256, 1), (256, vec![]));
    assert_eq!(at(1 << 40, 1), (256, vec![]));
    let into = |key: &str, offset, len| {
        let mut out = vec![7; len];
        store.get_into(key, offset, &mut out).unwrap().map(|count| out[..count].to_vec())
    };
    assert_eq!(into("index/span", 10, 2), Some(vec![10, 11]));
    assert_eq!(into("index/span", 254, 9), Some(vec![254, 255]), "short at the end");
    assert_eq!(into("index/span", 999, 9), Some(vec![]));
    assert_eq!(into("index/none", 0, 9), None);
    assert_eq!(get(store, "index/span", Span::Last(2)), Some((256, vec![254, 255])));
    assert_eq!(get(store, "index/span", Span::Last(1000)), Some((256, bytes)));
}

fn listing(store: &dyn Store) {
    let list = |prefix: &str| {
        let mut keys = Vec::new();
        store.list(prefix, &mut |key, bytes| keys.push((key.to_owned(), bytes))).unwrap();
        keys.sort();
        keys
    };
    assert_eq!(list("points/"), vec![]);
    assert_eq!(list("index/"), vec![("index/span".to_owned(), 256)]);
    assert_eq!(list("data/").len(), 4);
    assert_eq!(list("data/01/"), vec![("data/01/01aa".to_owned(), 1 << 20)]);
}

fn racing_puts(store: &dyn Store) {
    let created = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8u8)
            .map(|n| scope.spawn(move || store.put_new("points/race", Body::Bytes(&[n; 100])).unwrap()))
            .collect();
        writers.into_iter().map(|w| w.join().unwrap()).filter(|o| *o == PutOutcome::Created).count()
    });
    assert_eq!(created, 1, "exactly one of racing puts wins");
    let (bytes, contents) = get(store, "points/race", Span::All).unwrap();
    assert!(bytes == 100 && contents.iter().all(|b| *b == contents[0]));
}

fn streams(store: &dyn Store) {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let stored = store.put_streamed("index/streamed", &mut |out| {
        bytes.chunks(7777).for_each(|piece| out.write_all(piece).unwrap());
        Ok(())
    });
    assert_eq!(stored.unwrap(), PutOutcome::Created);
    assert_eq!(get(store, "index/streamed", Span::All), Some((3_000_000, bytes.clone())));
    let again =
        store.put_streamed("index/streamed", &mut |out| out.write_all(b"x").map_err(Error::io("write", "x")));
    assert_eq!(again.unwrap(), PutOutcome::Exists);
    let failed = store.put_streamed("index/failed", &mut |out| {
        out.write_all(b"half").unwrap();
        Err(Error::Cancelled)
    });
    assert!(matches!(failed, Err(Error::Cancelled)));
    assert_eq!(get(store, "index/failed", Span::All), None);
    assert!(store.open_object("index/failed").unwrap().is_none());
    if let Some(open) = store.open_object("index/streamed").unwrap() {
        store.delete("index/streamed").unwrap();
        let mut out = [0; 100];
        assert_eq!(open.read_at(2_999_950, &mut out).unwrap(), 50, "readable though deleted");
        assert_eq!(out[..50], bytes[2_999_950..]);
    }
}
