//! Repair in memory: whatever is damaged, afterwards nothing is said to be hurt but what is really lost, and after
//! the next backup of an unchanged source nothing at all. Killed at any store operation, the next repair ends.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use penstock_engine::backup::{self, BackupOptions, BackupReport, VolumeSource};
use penstock_engine::crypto::wrap::AccessKey;
use penstock_engine::format::config::Encryption;
use penstock_engine::format::header::ObjectKind;
use penstock_engine::gc::{self, GcOptions};
use penstock_engine::id::ObjectId;
use penstock_engine::index::{Claims, Index};
use penstock_engine::lease::Lease;
use penstock_engine::pack::read_contents;
use penstock_engine::repair::{self, RepairOptions, RepairReport};
use penstock_engine::repo::{InitOptions, Repository};
use penstock_engine::restore::{self, RestoreOptions, RestoreTarget};
use penstock_engine::source::StreamSource;
use penstock_engine::store::{Body, MemoryStore, PutOutcome, Span, Store};
use penstock_engine::verify::{self, Ended, VerifyOptions, VerifyReport};
use penstock_engine::{Error, Result, Run, forget};

/// A store in memory that fails at an operation, or stops a run there.
#[derive(Default)]
struct Objects {
    objects: MemoryStore,
    done: AtomicU64,
    fail_at: AtomicU64,
    stop_at: AtomicU64,
    run: Mutex<Option<Arc<Run>>>,
}

impl Objects {
    fn step(&self) -> Result<()> {
        let number = self.done.fetch_add(1, Ordering::SeqCst) + 1;
        if number == self.stop_at.load(Ordering::SeqCst)
            && let Some(run) = &*self.run.lock().unwrap()
        {
            run.cancel();
        }
        match self.fail_at.load(Ordering::SeqCst) {
            0 => Ok(()),
            at if number < at => Ok(()),
            _ => Err(Error::io("reach", "the store")(std::io::Error::other("killed"))),
        }
    }

    fn keys(&self, prefix: &str) -> Vec<String> {
        let mut keys = Vec::new();
        self.objects.list(prefix, &mut |key, _| keys.push(key.to_owned())).unwrap();
        keys
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.objects.get(key, Span::All, &mut bytes).unwrap().unwrap();
        bytes
    }

    fn replace(&self, key: &str, bytes: &[u8]) {
        self.objects.delete(key).unwrap();
        self.objects.put_new(key, Body::Bytes(bytes)).unwrap();
    }

    fn all(&self) -> BTreeMap<String, Vec<u8>> {
        self.keys("").into_iter().map(|key| (key.clone(), self.bytes(&key))).collect()
    }
}

impl Store for Objects {
    fn location(&self) -> &str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: Body<'_>) -> Result<PutOutcome> {
        self.step()?;
        self.objects.put_new(key, body)
    }

    fn get(&self, key: &str, span: Span, out: &mut Vec<u8>) -> Result<Option<u64>> {
        self.step()?;
        self.objects.get(key, span, out)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<()> {
        self.step()?;
        self.objects.list(prefix, each)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.step()?;
        self.objects.delete(key)
    }
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn key() -> AccessKey {
    AccessKey::key_file(vec![7; 40]).unwrap()
}

struct Patient {
    objects: Arc<Objects>,
    state: tempfile::TempDir,
}

impl Patient {
    fn new() -> Self {
        let objects = Arc::new(Objects::default());
        let options =
            InitOptions { encryption: Encryption::Aes256Gcm, pack_bytes: 8 << 20, ..InitOptions::default() };
        Repository::init(objects.clone(), &options, &key()).unwrap();
        Self { objects, state: tempfile::tempdir().unwrap() }
    }

    /// Opened anew, as by another process.
    fn repo(&self) -> Repository {
        Repository::open(self.objects.clone(), &key()).unwrap()
    }

    fn back_up(&self, name: &str, contents: &[u8]) -> BackupReport {
        let source = Box::new(StreamSource::new("disk", Cursor::new(contents.to_vec())));
        let volumes = vec![VolumeSource { name: "disk".into(), source, changed_extents: None }];
        let options = BackupOptions {
            name: name.into(),
            workers: 2,
            state_dir: self.state.path().to_owned(),
            ..BackupOptions::default()
        };
        backup::run(&self.repo(), volumes, &options, &Arc::new(Run::new())).unwrap()
    }

    fn verify_with(&self, options: VerifyOptions, run: &Arc<Run>) -> VerifyReport {
        let options = VerifyOptions {
            read_data: true,
            workers: 2,
            state_dir: Some(self.state.path().to_owned()),
            ..options
        };
        verify::run(&self.repo(), &options, run).unwrap()
    }

    fn verify(&self) -> VerifyReport {
        self.verify_with(VerifyOptions::default(), &Arc::new(Run::new()))
    }

    #[track_caller]
    fn is_clean(&self, context: &str) {
        let report = self.verify();
        assert!(report.is_clean(), "{context}: {:#?} {:#?}", report.problems, report.hurt);
    }

    fn try_repair(&self) -> Result<RepairReport> {
        let options = RepairOptions { read_data: true, dry_run: false, workers: 2 };
        let repo = Repository::open(self.objects.clone(), &key())?;
        repair::run(&repo, &options, &Arc::new(Run::new()))
    }

    fn repair(&self) -> RepairReport {
        self.try_repair().unwrap()
    }

    fn collect(&self) -> gc::GcReport {
        let options = GcOptions { grace: Duration::ZERO, ..GcOptions::default() };
        gc::run(&self.repo(), &options, &Arc::new(Run::new())).unwrap()
    }

    #[track_caller]
    fn restores(&self, point: &str, contents: &[u8], context: &str) {
        let restored = self.restored(point).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(restored == contents, "{context}: other bytes");
    }

    fn restored(&self, point: &str) -> Result<Vec<u8>> {
        let repo = self.repo();
        let point = repo.resolve(point)?;
        let sink = Sink::default();
        let target = RestoreTarget::Writer(Box::new(sink.clone()));
        let options = RestoreOptions { workers: 2, ..RestoreOptions::default() };
        restore::run(&repo, &point, &point.volumes[0], target, &options, &Arc::new(Run::new()))?;
        Ok(std::mem::take(&mut sink.0.lock().unwrap()))
    }

    /// The frames of a pack.
    fn frames(&self, key: &str) -> Vec<(u32, u32)> {
        let repo = self.repo();
        let kind = if key.starts_with("data/") { ObjectKind::Data } else { ObjectKind::Meta };
        let id = ObjectId::from_hex(key.rsplit('/').next().unwrap()).unwrap();
        let (_, rows) = read_contents(self.objects.as_ref(), repo.keys(), kind, id).unwrap();
        rows.iter().map(|row| (row.offset, row.stored_bytes)).collect()
    }
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

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    Lost,
    /// In the middle of its first frame or page.
    Flipped,
    Halved,
    Emptied,
    /// Its table of contents, or its tail.
    Tail,
    Extended,
}

const HARMS: [Harm; 6] = [Harm::Lost, Harm::Flipped, Harm::Halved, Harm::Emptied, Harm::Tail, Harm::Extended];

fn harm(objects: &Objects, key: &str, harm: Harm) {
    let mut bytes = objects.bytes(key);
    let len = bytes.len();
    match harm {
        Harm::Lost => return objects.objects.delete(key).unwrap(),
        Harm::Flipped if key.starts_with("index/") => bytes[4096 + 77] ^= 8,
        Harm::Flipped => bytes[96 + 10] ^= 8,
        Harm::Halved => bytes.truncate(len / 2),
        Harm::Emptied => bytes.clear(),
        Harm::Tail => bytes[len - 60] ^= 8,
        Harm::Extended => bytes.push(0),
    }
    objects.replace(key, &bytes);
}

/// Two points of one disk and one of another: several data packs, metadata packs and index segments.
fn patient() -> (Patient, Vec<(String, Vec<u8>)>) {
    let patient = Patient::new();
    let mut disk = noise(1, 18 << 20);
    let mut points = vec![(patient.back_up("a", &disk).point.id, disk.clone())];
    disk[3 << 20..5 << 20].copy_from_slice(&noise(2, 2 << 20));
    points.push((patient.back_up("a", &disk).point.id, disk));
    let other = noise(3, 9 << 20);
    points.push((patient.back_up("b", &other).point.id, other));
    (patient, points)
}

#[test]
fn a_damaged_or_lost_index_is_built_anew() {
    for harmed in HARMS {
        let (patient, points) = patient();
        let segments = patient.objects.keys("index/");
        assert!(segments.len() >= 3);
        // All of them: even the nodes can be found only from packs.
        segments.iter().for_each(|key| harm(&patient.objects, key, harmed));
        let context = format!("{harmed:?}");
        let report = patient.verify();
        assert!(!report.is_clean(), "{context}");
        let repaired = patient.repair();
        assert!(repaired.new_rows > 400 && repaired.unknown_packs >= 5, "{context}: {repaired:#?}");
        assert_eq!(repaired.bad_segments.count > 0, harmed != Harm::Lost, "{context}: {repaired:#?}");
        assert!(!repaired.is_hurt() && !repaired.is_in_part(), "{context}: {repaired:#?}");
        patient.is_clean(&context);
        points.iter().for_each(|(id, contents)| patient.restores(id, contents, &context));
        let index = patient.objects.keys("index/");
        assert!(segments.iter().all(|key| !index.contains(key)), "{context}: the damaged ones are gone");
        assert!(patient.repair().is_clean(), "{context}: nothing is left to do");
        assert_eq!(patient.back_up("a", &points[1].1).totals.new_bytes, 0, "{context}");
        patient.collect();
        points.iter().for_each(|(id, contents)| patient.restores(id, contents, &context));
    }
}

/// Finding: a flipped frame was taken over from the parent for ever.
#[test]
fn after_repair_and_the_next_backup_of_what_is_unchanged_nothing_is_hurt() {
    for prefix in ["data/", "meta/"] {
        for harmed in HARMS {
            let (patient, points) = patient();
            let packs = patient.objects.keys(prefix);
            for pack in &packs {
                let before = patient.objects.all();
                let context = format!("{harmed:?} {pack}");
                harm(&patient.objects, pack, harmed);
                let hurt = patient.verify();
                assert!(!hurt.is_clean(), "{context}");
                let repaired = patient.repair();
                assert_eq!(repaired.hurt.count, 1, "{context}: {repaired:#?}");
                assert!(repaired.hurt.lines[0].contains(pack.as_str()), "{context}: {repaired:#?}");
                // Only what is really lost is named now.
                let left = patient.verify();
                assert_eq!(left.is_clean(), repaired.lost == 0, "{context}: {repaired:#?} {left:#?}");
                // Under a node that is lost nobody can look.
                let told = if prefix == "data/" { repaired.lost..=repaired.lost } else { 1..=repaired.lost };
                assert!(
                    told.contains(&left.problem_count) || repaired.lost == 0,
                    "{context}: {repaired:#?} {left:#?}"
                );
                match harmed {
                    Harm::Flipped => assert_eq!(repaired.lost, 1, "{context}: {repaired:#?}"),
                    Harm::Tail | Harm::Extended => assert_eq!(repaired.lost, 0, "{context}: {repaired:#?}"),
                    _ => assert!(repaired.lost > 0, "{context}: {repaired:#?}"),
                }
                let hurt_bytes =
                    |report: &VerifyReport| report.hurt.iter().map(|hurt| hurt.bytes).sum::<u64>();
                assert!(hurt_bytes(&left) <= hurt_bytes(&hurt), "{context}");
                assert!(patient.repair().hurt.count == 0, "{context}: put aside once");

                // The same sources again, and the first state of the one that has changed since.
                let stored: u64 = [("a", 1), ("b", 2), ("old", 0)]
                    .map(|(name, which)| patient.back_up(name, &points[which].1).totals.new_chunks)
                    .iter()
                    .sum();
                assert!(stored <= repaired.lost || prefix == "meta/", "{context}: {stored} stored again");
                patient.is_clean(&format!("{context}, backed up again"));
                points.iter().for_each(|(id, contents)| patient.restores(id, contents, &context));
                assert_eq!(patient.back_up("a", &points[1].1).totals.new_bytes, 0, "{context}");

                // Now nothing needs the pack.
                let collected = patient.collect();
                assert_eq!(collected.aside.packs, 0, "{context}: {collected:#?}");
                assert!(patient.objects.keys(prefix).iter().all(|key| key != pack), "{context}: it is gone");
                patient.is_clean(&format!("{context}, collected"));
                points.iter().for_each(|(id, contents)| patient.restores(id, contents, &context));

                for key in patient.objects.keys("") {
                    patient.objects.objects.delete(&key).unwrap();
                }
                before.iter().for_each(|(key, bytes)| patient.objects.replace(key, bytes));
            }
        }
    }
}

/// What is lost and in no source any more stays lost, and is in nobody's way.
#[test]
fn a_point_that_is_hurt_for_ever_hinders_nobody() {
    let (patient, points) = patient();
    // A chunk that only the first point has: of what the second backup replaced.
    let first_packs = patient.objects.keys("data/");
    let mut lost = None;
    for pack in first_packs {
        let before = patient.objects.bytes(&pack);
        for (offset, stored_bytes) in patient.frames(&pack) {
            let mut bytes = before.clone();
            bytes[(offset + stored_bytes / 2) as usize] ^= 1;
            patient.objects.replace(&pack, &bytes);
            if patient.restored(&points[0].0).is_err()
                && patient.restored(&points[1].0).is_ok()
                && patient.restored(&points[2].0).is_ok()
            {
                lost = Some(pack.clone());
                break;
            }
        }
        if lost.is_some() {
            break;
        }
        patient.objects.replace(&pack, &before);
    }
    let lost = lost.unwrap();
    assert_eq!(patient.repair().lost, 1);
    // As long as no collection has said which points do without the pack, everything is looked up, and nothing stored.
    let again = patient.back_up("a", &points[1].1);
    assert_eq!(again.totals.new_bytes, 0);
    for round in 0..3 {
        let collected = patient.collect();
        assert_eq!(collected.aside.packs, 1, "{round}: {collected:#?}");
        assert!(patient.objects.keys("data/").contains(&lost), "{round}: it is all there is of that chunk");
        let report = patient.verify();
        assert_eq!((report.problem_count, report.hurt.len()), (1, 1), "{round}: {report:#?}");
        assert_eq!(report.hurt[0].point, points[0].0, "{round}");
        assert!(report.hurt[0].bytes <= 256 << 10, "{round}: {report:#?}");
        assert_eq!(report.aside_packs, 1, "{round}");
        for (id, contents) in &points[1..] {
            patient.restores(id, contents, "those that are whole");
        }
        // Vouched for by the collection: nothing has to be read again, and nobody says so.
        let night = patient.back_up("a", &points[1].1);
        assert_eq!(night.totals.new_bytes, 0);
        assert!(round == 0 || night.notes.is_empty(), "{round}: {:?}", night.notes);
    }
    // It comes back: then all is well.
    patient.back_up("old", &points[0].1);
    patient.is_clean("stored again");
    patient.restores(&points[0].0, &points[0].1, "stored again");
    patient.collect();
    assert!(!patient.objects.keys("data/").contains(&lost));
    patient.is_clean("collected");
}

/// Finding D1: rows that no index segment has, of packs that are there.
#[test]
fn chunks_that_only_a_table_of_contents_knows_get_their_rows_again() {
    let (patient, points) = patient();
    let repo = patient.repo();
    // The index written anew, with half of the rows of each pack.
    let packs: Vec<_> = ["data/", "meta/"].iter().flat_map(|prefix| patient.objects.keys(prefix)).collect();
    for key in patient.objects.keys("index/") {
        patient.objects.objects.delete(&key).unwrap();
    }
    let store: Arc<dyn Store> = patient.objects.clone();
    let claims = Claims::new(Arc::new(Index::load(store, repo.keys().clone()).unwrap()));
    let mut left_out = 0;
    for key in packs {
        let kind = if key.starts_with("data/") { ObjectKind::Data } else { ObjectKind::Meta };
        let id = ObjectId::from_hex(key.rsplit('/').next().unwrap()).unwrap();
        let (pack, mut rows) = read_contents(patient.objects.as_ref(), repo.keys(), kind, id).unwrap();
        left_out += rows.len() as u64 / 2;
        rows.truncate(rows.len() - rows.len() / 2);
        claims.add_durable(pack, rows).unwrap();
    }
    claims.flush().unwrap();
    assert!(!patient.verify().is_clean());
    let repaired = patient.repair();
    assert_eq!((repaired.new_rows, repaired.unknown_packs), (left_out, 0), "{repaired:#?}");
    patient.is_clean("mended");
    points.iter().for_each(|(id, contents)| patient.restores(id, contents, "mended"));
    assert!(patient.repair().is_clean());
}

#[test]
fn a_dry_run_says_the_same_and_changes_nothing() {
    let (patient, _) = patient();
    harm(&patient.objects, &patient.objects.keys("index/")[0], Harm::Lost);
    harm(&patient.objects, &patient.objects.keys("data/")[0], Harm::Flipped);
    let before = patient.objects.all();
    let options = RepairOptions { read_data: true, dry_run: true, workers: 2 };
    let dry = repair::run(&patient.repo(), &options, &Arc::new(Run::new())).unwrap();
    assert!(patient.objects.all() == before);
    let repaired = patient.repair();
    assert_eq!((dry.new_rows, dry.hurt.count), (repaired.new_rows, repaired.hurt.count));
    assert_eq!((dry.moved, dry.lost), (repaired.moved, repaired.lost));
    assert!(dry.has_damage());
}

/// Killed at any store operation: the next one does the rest.
#[test]
fn a_repair_that_is_killed_is_finished_by_the_next() {
    let (patient, points) = patient();
    harm(&patient.objects, &patient.objects.keys("index/")[0], Harm::Flipped);
    harm(&patient.objects, &patient.objects.keys("data/")[0], Harm::Flipped);
    harm(&patient.objects, &patient.objects.keys("meta/")[0], Harm::Tail);
    let before = patient.objects.all();
    let mut at = 5;
    loop {
        patient.objects.done.store(0, Ordering::SeqCst);
        patient.objects.fail_at.store(at, Ordering::SeqCst);
        let ended = patient.try_repair().is_ok();
        patient.objects.fail_at.store(0, Ordering::SeqCst);
        let context = format!("killed at operation {at}");
        let repaired = patient.repair();
        assert!(repaired.lost <= 1, "{context}: {repaired:#?}");
        for (name, which) in [("a", 1), ("b", 2), ("old", 0)] {
            patient.back_up(name, &points[which].1);
        }
        patient.is_clean(&context);
        points.iter().for_each(|(id, contents)| patient.restores(id, contents, &context));
        patient.collect();
        patient.is_clean(&context);
        if ended {
            assert!(at > 40, "{at} operations are few");
            break;
        }
        for key in patient.objects.keys("") {
            patient.objects.objects.delete(&key).unwrap();
        }
        before.iter().for_each(|(key, bytes)| patient.objects.replace(key, bytes));
        at += 3;
    }
}

#[test]
fn damaged_points_stay_and_are_told() {
    let (patient, points) = patient();
    let key = format!("points/{}", points[0].0);
    harm(&patient.objects, &key, Harm::Tail);
    let repaired = patient.repair();
    assert_eq!(repaired.points.count, 1);
    assert!(repaired.points.lines[0].contains(&key) && repaired.is_hurt());
    assert!(patient.objects.keys("points/").contains(&key));
    let repo = patient.repo();
    let ids = repo.resolve_ids(&[points[0].0.clone()]).unwrap();
    forget::remove(&repo, &ids, &Run::new(), &mut |_| ()).unwrap();
    assert!(patient.repair().is_clean());
}

/// Records of garbage collection stop everybody who meets them damaged.
#[test]
fn damaged_records_go_unless_a_collector_may_have_read_them() {
    for harmed in [Harm::Emptied, Harm::Halved, Harm::Tail] {
        for decided in [false, true] {
            let (patient, points) = patient();
            let repo = patient.repo();
            let run = Arc::new(Run::new());
            let ids = repo.resolve_ids(&[points[2].0.clone()]).unwrap();
            forget::remove(&repo, &ids, &run, &mut |_| ()).unwrap();
            let grace = if decided { Duration::ZERO } else { Duration::from_secs(3600) };
            gc::run(&repo, &GcOptions { grace, ..GcOptions::default() }, &run).unwrap();
            let records = patient.objects.keys("gc/");
            assert_eq!(records.len(), if decided { 1 } else { 2 });
            records.iter().for_each(|key| harm(&patient.objects, key, harmed));
            let context = format!("{harmed:?}, decided: {decided}");
            assert!(!patient.verify().is_clean(), "{context}");
            assert!(patient.restored(&points[0].0).unwrap_err().is_damage(), "{context}");

            let store: Arc<dyn Store> = patient.objects.clone();
            let lease = Lease::take(&store, repo.keys(), repo.environment(), "gc").unwrap();
            let repaired = patient.repair();
            assert_eq!(repaired.collectors.len(), 1, "{context}: {repaired:#?}");
            let there = patient.objects.keys("gc/");
            assert!(repaired.is_in_part() && records.iter().all(|key| there.contains(key)), "{context}");
            lease.end().unwrap();

            let repaired = patient.repair();
            assert!(repaired.records.count >= 1, "{context}: {repaired:#?}");
            patient.restores(&points[0].0, &points[0].1, &context);
            patient.repair(); // what was decided on and deleted is lost now, and put aside
            patient.is_clean(&context);
            for (name, which) in [("a", 1), ("b", 2)] {
                patient.back_up(name, &points[which].1);
            }
            patient.collect();
            assert!(records.iter().all(|key| !patient.objects.keys("gc/").contains(key)), "{context}");
            patient.is_clean(&context);
            points[..2].iter().for_each(|(id, contents)| patient.restores(id, contents, &context));
            patient.restores("latest:b", &points[2].1, &context);
        }
    }
}

#[test]
fn a_damaged_lease_is_told_and_left_to_gc() {
    let (patient, points) = patient();
    let store: Arc<dyn Store> = patient.objects.clone();
    let repo = patient.repo();
    let lease = Lease::take(&store, repo.keys(), repo.environment(), "backup").unwrap();
    let key = patient.objects.keys("leases/")[0].clone();
    harm(&patient.objects, &key, Harm::Tail);
    let verified = patient.verify();
    assert!(verified.problems.iter().any(|line| line.contains(&key)), "{verified:#?}");
    let repaired = patient.repair();
    assert_eq!(repaired.leases.count, 1);
    assert!(repaired.is_in_part() && patient.objects.keys("leases/").contains(&key));
    points.iter().for_each(|(id, contents)| patient.restores(id, contents, "beside it"));
    drop(lease);
}

/// Stopped anywhere, a verification goes on where it was, and in the end has read everything once and found all.
#[test]
fn a_verification_that_is_stopped_goes_on() {
    let (patient, _) = patient();
    harm(&patient.objects, &patient.objects.keys("data/")[1], Harm::Flipped);
    let whole = patient.verify();
    assert_eq!((whole.problem_count, whole.ended), (1, Ended::Whole));
    let (mut parts, mut resumed) = (0, false);
    let last = loop {
        let run = Arc::new(Run::new());
        patient.objects.done.store(0, Ordering::SeqCst);
        // More each time: what a pack takes, and what opening takes, is no matter of this test.
        patient.objects.stop_at.store(40 + 10 * parts, Ordering::SeqCst);
        *patient.objects.run.lock().unwrap() = Some(run.clone());
        let report = patient.verify_with(VerifyOptions { resume: true, ..VerifyOptions::default() }, &run);
        assert_eq!(report.resumed, resumed);
        parts += 1;
        if report.ended == Ended::Whole {
            break report;
        }
        assert_eq!(report.ended, Ended::Interrupted);
        assert!(parts < 20, "it does not get on: {report:#?}");
        resumed = true;
    };
    assert!(parts >= 2);
    assert_eq!((last.problem_count, &last.problems), (whole.problem_count, &whole.problems));
    assert_eq!((last.packs, last.points, last.chunks), (whole.packs, whole.points, whole.chunks));
    assert_eq!(last.hurt, whole.hurt);
    // The next one begins anew.
    patient.objects.stop_at.store(0, Ordering::SeqCst);
    let again = patient.verify_with(
        VerifyOptions { resume: true, time_max: Some(Duration::ZERO), ..VerifyOptions::default() },
        &Arc::new(Run::new()),
    );
    assert_eq!((again.ended, again.resumed, again.packs), (Ended::TimeLimit, false, 0));
}

/// Finding: samples were drawn anew each time, so that no number of them was sure to see everything.
#[test]
fn samples_go_round() {
    let (patient, _) = patient();
    let packs = patient.objects.keys("data/").len() + patient.objects.keys("meta/").len();
    for hurt in patient.objects.keys("data/") {
        let before = patient.objects.bytes(&hurt);
        harm(&patient.objects, &hurt, Harm::Flipped);
        let mut found = 0;
        let mut read = 0;
        for _ in 0..4 {
            let sample = VerifyOptions { sample: Some(0.25), ..VerifyOptions::default() };
            let report = patient.verify_with(sample, &Arc::new(Run::new()));
            assert_eq!(report.packs, packs as u64, "the ends of all are looked at");
            assert!(report.packs_read < packs as u64);
            read += report.packs_read;
            found += report.problem_count;
        }
        assert!(
            found >= 1 && read >= packs as u64,
            "{hurt}: {read} of {packs} packs were read, {found} found"
        );
        patient.objects.replace(&hurt, &before);
    }
}
