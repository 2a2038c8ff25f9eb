//! What repairs leave behind for those who come later, and stores that contradict themselves.
#![allow(clippy::unwrap_used)]

#[path = "common/memory.rs"]
mod memory;

use std::io::{Cursor, Write};
use std::sync::{Arc, Mutex};

use penstock_engine::repair::{self, RepairOptions};
use penstock_engine::repo::Repository;
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::store::{Body, MemoryStore, Span, Store};
use penstock_engine::verify::{self, VerifyOptions};
use penstock_engine::{Result, Run};

use memory::{back_up, collect, new_repository, noise, open, open_hooked};

fn keys(objects: &MemoryStore, prefix: &str) -> Vec<String> {
    let mut keys = Vec::new();
    objects.list(prefix, &mut |key, _| keys.push(key.to_owned())).unwrap();
    keys
}

fn flip(objects: &MemoryStore, key: &str, from_end: usize) {
    let mut bytes = Vec::new();
    objects.get(key, Span::All, &mut bytes).unwrap().unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 1;
    objects.delete(key).unwrap();
    objects.put_new(key, Body::Bytes(&bytes)).unwrap();
}

fn mend(repo: &Repository) -> Result<repair::RepairReport> {
    repair::run(repo, &RepairOptions { workers: 1, ..RepairOptions::default() }, &Arc::new(Run::new()))
}

fn restored(objects: &Arc<MemoryStore>, id: &str) -> Result<Vec<u8>> {
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
    let (repo, sink) = (open(objects), Sink::default());
    let point = repo.resolve(id)?;
    let target = RestoreTarget::Writer(Box::new(sink.clone()));
    restore::run(
        &repo,
        &point,
        &point.volumes[0],
        target,
        &RestoreOptions::default(),
        &Arc::new(Run::new()),
    )?;
    Ok(std::mem::take(&mut sink.0.lock().unwrap()))
}

/// Finding: an index segment was damaged, and a pack that only it named was lost. After the repair nothing told of that
/// pack: the next backup took its parent on trust, ended with 0, and could not be restored.
#[test]
fn a_parent_whose_packs_were_lost_without_a_trace_is_looked_up() {
    let objects = new_repository();
    let contents = noise(1, 24 << 20);
    back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    let data = keys(&objects, "data/");
    assert!(data.len() >= 3, "{data:?}");
    objects.delete(&data[0]).unwrap();
    keys(&objects, "index/").iter().for_each(|key| flip(&objects, key, 100));
    let mended = mend(&open(&objects)).unwrap();
    assert_eq!((mended.bad_segments.count, mended.hurt.count), (1, 0), "{mended:#?}");
    let again = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    assert!(again.totals.new_bytes > 0 && !again.notes.is_empty(), "{again:#?}");
    assert!(restored(&objects, &again.point.id).unwrap() == contents);
    // A collection finds all that points need, and parents are taken on trust again.
    let report = verify::run(&open(&objects), &VerifyOptions::default(), &Arc::new(Run::new())).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    (0..2).for_each(|_| drop(collect(&open(&objects)).unwrap()));
    assert_eq!(keys(&objects, "gc/"), Vec::<String>::new());
    let night = back_up(&open(&objects), "a", Cursor::new(contents)).unwrap();
    assert_eq!((night.totals.new_bytes, night.notes.len()), (0, 0), "{:?}", night.notes);
}

/// Finding: a manifest node whose frame was flipped was taken for stored, since the index knows where it is, also by a
/// backup that had just failed to read it.
#[test]
fn a_damaged_node_is_stored_again() {
    let objects = new_repository();
    let contents = noise(1, 12 << 20);
    back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    let pack = keys(&objects, "meta/")[0].clone();
    let mut bytes = Vec::new();
    objects.get(&pack, Span::All, &mut bytes).unwrap().unwrap();
    flip(&objects, &pack, bytes.len() - 200); // in its first frame
    assert!(
        back_up(&open(&objects), "a", Cursor::new(contents.clone())).is_err(),
        "the parent cannot be read"
    );
    assert!(mend(&open(&objects)).unwrap().hurt.count == 0, "it reads no frames");
    let again = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    assert_eq!(again.totals.new_bytes, 0, "{again:#?}");
    assert!(restored(&objects, &again.point.id).unwrap() == contents);
    let report = verify::run(&open(&objects), &VerifyOptions::default(), &Arc::new(Run::new())).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}

/// Finding D9: on stores that do not list cheaply, what lost packs held counted as stored.
#[test]
fn what_a_lost_pack_held_is_stored_again_without_a_repair() {
    let contents = noise(1, 24 << 20);
    for folder in ["data/", "meta/"] {
        let objects = new_repository();
        let first = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap().point.id;
        let lost = keys(&objects, folder)[0].clone();
        objects.delete(&lost).unwrap();
        assert!(restored(&objects, &first).is_err(), "{lost} is needed");
        let again = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
        assert!(!again.notes.is_empty(), "it says so");
        assert!(restored(&objects, &again.point.id).unwrap() == contents, "{lost}");
        assert!(
            restored(&objects, &first).unwrap() == contents,
            "{lost}: what came back serves the old point, too"
        );
    }
}

/// An object in `index/` that has no name of a segment hinders no repair of the rest.
#[test]
fn strange_names_do_not_stop_a_repair() {
    let objects = new_repository();
    let contents = noise(1, 12 << 20);
    let point = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap().point.id;
    keys(&objects, "index/").iter().for_each(|key| flip(&objects, key, 100));
    objects.put_new("index/copy (2)", Body::Bytes(b"x")).unwrap();
    let mended = mend(&open(&objects)).unwrap();
    assert!(mended.new_rows > 0 && mended.segments_kept, "{mended:#?}");
    objects.delete("index/copy (2)").unwrap();
    mend(&open(&objects)).unwrap();
    assert!(restored(&objects, &point).unwrap() == contents);
}

/// Finding: a pack that a store listed, and said it did not have, was put aside as lost.
#[test]
fn a_store_that_contradicts_itself_has_nothing_put_aside() {
    let objects = new_repository();
    let contents = noise(1, 12 << 20);
    let point = back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap().point.id;
    let pack = keys(&objects, "data/")[0].clone();
    let hook = {
        let pack = pack.clone();
        move |_: &MemoryStore, operation: &'static str, key: &str| operation != "get" || key != pack
    };
    let error = mend(&open_hooked(&objects, Box::new(hook))).unwrap_err().to_string();
    assert!(error.contains(&pack) && error.contains("lists it"), "{error}");
    assert_eq!(keys(&objects, "gc/"), Vec::<String>::new());
    assert!(mend(&open(&objects)).unwrap().is_clean());
    assert!(restored(&objects, &point).unwrap() == contents);
}
