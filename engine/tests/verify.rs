//! Verification that is stopped, that runs beside collections, and that meets packs which do not tell what is in them.
#![allow(clippy::unwrap_used)]

#[path = "common/memory.rs"]
mod memory;

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use penstock_engine::id::PointId;
use penstock_engine::store::{Body, MemoryStore, Span, Store};
use penstock_engine::verify::{self, Ended, VerifyOptions, VerifyReport};
use penstock_engine::{Run, forget};

use memory::{back_up, collect, new_repository, noise, open, open_hooked};

fn keys(objects: &MemoryStore, prefix: &str) -> Vec<String> {
    let mut keys = Vec::new();
    objects.list(prefix, &mut |key, _| keys.push(key.to_owned())).unwrap();
    keys
}

fn bytes(objects: &MemoryStore, key: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    objects.get(key, Span::All, &mut bytes).unwrap().unwrap();
    bytes
}

fn hurts(report: &VerifyReport, point: &PointId) -> bool {
    report.hurt.iter().any(|hurt| hurt.point == point.to_string())
}

/// Five segments, of which the second night changes all but the first, whose rows are lost then.
fn with_lost_rows() -> Arc<MemoryStore> {
    let objects = new_repository();
    let mut contents = noise(1, 20 << 20);
    back_up(&open(&objects), "a", Cursor::new(contents.clone())).unwrap();
    let before = keys(&objects, "index/");
    let first = open(&objects).point_ids().unwrap();
    contents[4 << 20..].copy_from_slice(&noise(2, 16 << 20));
    back_up(&open(&objects), "a", Cursor::new(contents)).unwrap();
    forget::remove(&open(&objects), &first, &Run::new(), &mut |_| {}).unwrap();
    before.iter().for_each(|key| objects.delete(key).unwrap());
    objects
}

#[test]
fn what_was_found_is_told_wherever_a_verification_is_stopped() {
    let objects = with_lost_rows();
    let whole = verify::run(&open(&objects), &VerifyOptions::default(), &Arc::new(Run::new())).unwrap();
    assert!(whole.problem_count > 0, "its rows are lost");
    let (mut told, mut stopped) = (0, 0);
    for stop_at in 1..200 {
        let run = Arc::new(Run::new());
        let seen = Arc::new(AtomicU64::new(0));
        let hook = {
            let (run, seen) = (run.clone(), seen.clone());
            move |_: &MemoryStore, operation: &'static str, key: &str| {
                if operation == "get" && key.starts_with("meta/") {
                    let number = seen.fetch_add(1, Ordering::SeqCst) + 1;
                    if number == stop_at {
                        run.cancel();
                    }
                }
                true
            }
        };
        let repo = open_hooked(&objects, Box::new(hook));
        let report = verify::run(&repo, &VerifyOptions::default(), &run).unwrap();
        if report.ended == Ended::Whole {
            break;
        }
        stopped += 1;
        told += u64::from(report.problem_count > 0);
    }
    assert!(stopped >= 3, "{stopped} stops");
    assert!(told > 0, "of {stopped} verifications that were stopped none tells what it had found");
}

#[test]
fn a_point_is_hurt_whose_packs_a_collector_deletes_while_verify_looks() {
    let objects = new_repository();
    back_up(&open(&objects), "a", Cursor::new(noise(1, 4 << 20))).unwrap();
    back_up(&open(&objects), "b", Cursor::new(noise(2, 4 << 20))).unwrap();
    let point = *open(&objects).point_ids().unwrap().first().unwrap();
    let name = format!("points/{point}");
    let record = bytes(&objects, &name);
    let mut done = false;
    let hook = move |objects: &MemoryStore, operation: &'static str, key: &str| {
        if operation == "get" && key.starts_with("data/") && !done {
            done = true;
            // A writer whose lease was taken away: a collector lists the points before its own comes.
            objects.delete(&name).unwrap();
            let shared = Arc::new(MemoryStore::default());
            copy(objects, &shared);
            assert!(collect(&open(&shared)).unwrap().deleted.packs > 0);
            copy(&shared, objects);
            objects.put_new(&name, Body::Bytes(&record)).unwrap();
        }
        true
    };
    let repo = open_hooked(&objects, Box::new(hook));
    let report = verify::run(&repo, &VerifyOptions::default(), &Arc::new(Run::new())).unwrap();
    assert!(hurts(&report, &point), "{:?}", report.problems);
    assert_eq!(report.hurt.len(), 1, "the other one is whole: {:?}", report.hurt);
}

/// Makes `to` what `from` is.
fn copy(from: &MemoryStore, to: &MemoryStore) {
    let (wanted, there) = (keys(from, ""), keys(to, ""));
    there.iter().filter(|key| !wanted.contains(key)).for_each(|key| to.delete(key).unwrap());
    for key in wanted.iter().filter(|key| !there.contains(key)) {
        to.put_new(key, Body::Bytes(&bytes(from, key))).unwrap();
    }
}

#[test]
fn limits_of_time_get_past_a_pack_that_does_not_tell_what_is_in_it() {
    let objects = new_repository();
    back_up(&open(&objects), "a", Cursor::new(noise(1, 60 << 20))).unwrap();
    let packs = keys(&objects, "data/");
    assert!(packs.len() >= 6, "{} packs", packs.len());
    let mut pack = bytes(&objects, &packs[0]);
    let last = pack.len() - 1;
    pack[last] ^= 1; // the trailer
    objects.delete(&packs[0]).unwrap();
    objects.put_new(&packs[0], Body::Bytes(&pack)).unwrap();
    let state = tempfile::tempdir().unwrap();
    let options = VerifyOptions {
        read_data: true,
        time_max: Some(Duration::from_millis(250)),
        resume: true,
        state_dir: Some(state.path().to_owned()),
        workers: 1,
        ..VerifyOptions::default()
    };
    for night in 1.. {
        let hook = |_: &MemoryStore, operation: &'static str, key: &str| {
            if operation == "get" && key.starts_with("data/") {
                std::thread::sleep(Duration::from_millis(20));
            }
            true
        };
        let repo = open_hooked(&objects, Box::new(hook));
        let report = verify::run(&repo, &options, &Arc::new(Run::new())).unwrap();
        assert!(report.problem_count > 0, "the pack without a trailer is told each night");
        if report.ended == Ended::Whole {
            return;
        }
        assert!(night < 60, "it does not get on: {report:?}");
    }
}
