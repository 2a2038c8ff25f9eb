//! The damage matrix for commands that write, and for what they leave: every kind of object, `leases/` and `gc/` too,
//! × every kind of damage × backup, gc, forget, copy (and list, restore, verify for the two that
//! `damage.rs` does not know). A command either does what is right in spite of the damage or names the object and
//! changes nothing that matters: with the object put back as it was, every point restores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use penstock_tests::damage::{Action, Damaged, Kind};
use penstock_tests::penstock::{Output, Penstock, code};
use penstock_tests::repo::{Access, Repo, ids_in};
use penstock_tests::workdir::{Workdir, files_under, remove_if_there, text};
use penstock_tests::{KIB, MIB, by_tier, compare, full_tier, image, json, tools};

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verb {
    List,
    Restore,
    Verify,
    Backup,
    Gc,
    Forget,
    Copy,
}

/// A repository with three points, garbage that was collected, garbage that is condemned, and leases of two killed
/// writers.
struct Patient {
    work: Workdir,
    repo: Repo,
    /// Where points are copied to: empty, cloned for each copy.
    other: Repo,
    images: [PathBuf; 4],
    /// Of the first three images; the last of them is what is forgotten.
    points: [String; 3],
    /// Names of objects that those points need, garbage left out.
    needed: Vec<PathBuf>,
    clones: AtomicUsize,
}

/// The image that is backed up.
const NEXT: usize = 3;

impl Patient {
    fn new() -> Self {
        let work = Workdir::new("damage-writers");
        let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"]);
        let other = Repo::encrypted(&work, "other", &["--pack-size", "8MiB"]);
        let images = [0, 1, 2, 3].map(|number| work.join(&format!("{number}.img")));
        image::dense(&images[0], 5 * MIB, 1);
        for number in [1, 3] {
            std::fs::copy(&images[number / 2], &images[number]).unwrap();
            image::patch_random(&images[number], number as u64 * MIB, 300 * KIB, number as u64);
        }
        image::dense(&images[2], 2 * MIB, 2);
        let garbage = work.join("garbage.img");
        let leave_garbage = |seed: u64, gc: &[&str]| {
            image::random(&garbage, 2 * MIB, seed);
            let point = repo.backup_id(&garbage, "garbage");
            repo.command(&["forget", &point]).run().ok();
            repo.command(&["gc"]).args(gc).run().ok();
        };
        leave_garbage(7, &["--grace", "0s"]);
        let first = repo.backup_id(&images[0], "host");
        let points = [first, repo.backup_id(&images[1], "host"), repo.backup_id(&images[2], "extra")];
        let needed = files_under(&repo.dir);
        leave_garbage(8, &[]);
        let patient = Self { work, repo, other, images, points, needed, clones: AtomicUsize::new(0) };
        patient.leave_leases();
        patient
    }

    /// Two backups that are killed while they wait for more of their streams.
    fn leave_leases(&self) {
        let pipe = self.work.join("pipe");
        tools::run("mkfifo", &[text(&pipe)]);
        for number in 1..=2 {
            let mut running = self.repo.backup_command(&pipe, &format!("killed-{number}"), &[]).spawn();
            let end = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
            while Kind::Lease.objects(&self.repo.dir).len() < number {
                assert!(!running.ended(), "a backup of a pipe that nobody closed has ended");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            running.kill();
            running.wait();
            drop(end);
        }
    }

    /// The same objects (as hard links: they are never written again) and state, to be harmed and written to.
    fn clone_of(&self, repo: &Repo) -> Repo {
        let number = self.clones.fetch_add(1, Ordering::Relaxed);
        let (dir, state) =
            (self.work.join(&format!("clone-{number}")), self.work.join(&format!("clone-{number}.state")));
        tools::run("cp", &["-al", text(&repo.dir), text(&dir)]);
        Repo::at(&dir, &state, repo.access.clone())
    }

    /// What the damage puts in the place of `object`.
    fn contents_for(&self, kind: Kind, object: &Path, action: Action) -> Vec<u8> {
        let mut here = kind.objects(&self.repo.dir);
        here.retain(|path| path.file_name() != object.file_name());
        let chosen = if action == Action::Older { here.first() } else { here.last() };
        // the configuration, and a lone key, of another repository
        let chosen = chosen.cloned().unwrap_or_else(|| kind.objects(&self.other.dir)[0].clone());
        std::fs::read(chosen).unwrap()
    }

    fn command(&self, verb: Verb, repo: &Repo, other: &Repo) -> Penstock {
        match verb {
            Verb::List => repo.command(&["list", "--json"]),
            Verb::Restore => repo.restore_command(&self.points[1], &self.target(repo), &[]),
            Verb::Verify => repo.command(&["verify", "--read-data", "--json"]),
            Verb::Backup => repo.backup_command(&self.images[NEXT], "host", &[]),
            Verb::Gc => repo.command(&["gc", "--grace", "0s", "--json"]),
            Verb::Forget => repo.command(&["forget", &self.points[2]]),
            Verb::Copy => {
                let Access::KeyFile(key) = &other.access else { unreachable!("made with a key file") };
                let command = repo.command(&["copy", "--all", "--json", "--to", text(&other.dir)]);
                command.arg("--to-key-file").arg(key)
            }
        }
    }

    fn target(&self, repo: &Repo) -> PathBuf {
        repo.dir.with_extension("img")
    }

    /// Restores a point; with exit code 0, the bytes are right.
    #[track_caller]
    fn restores(&self, repo: &Repo, point: &str, image: usize, context: &str) -> i32 {
        let target = self.target(repo);
        remove_if_there(&target);
        let output = repo.restore_command(point, &target, &[]).run();
        if output.code == code::DONE {
            compare::assert_identical(
                &self.images[image],
                &target,
                &format!("{context}: exit code 0 with wrong bytes"),
            );
        }
        remove_if_there(&target);
        output.expect(&[code::DONE, code::FAILED, code::DAMAGE, code::NEWER]).code
    }
}

/// The exit codes that are right: of an object that is gone, and of one that has other bytes than it should.
fn expected(kind: Kind, verb: Verb) -> (&'static [i32], &'static [i32]) {
    const FINE: &[i32] = &[code::DONE];
    const HURT: &[i32] = &[code::DAMAGE];
    const EITHER: &[i32] = &[code::DONE, code::DAMAGE];
    const LOCKED_OUT: &[i32] = &[code::NO_REPOSITORY, code::WRONG_KEY, code::DAMAGE, code::NEWER];
    match (kind, verb) {
        (Kind::Config | Kind::Key, _) => (LOCKED_OUT, LOCKED_OUT),
        // a point that is not there was never there
        (Kind::Point, Verb::Gc) => (FINE, HURT),
        (Kind::Point, Verb::Copy) => (FINE, &[code::IN_PART, code::DAMAGE]),
        (Kind::Point, Verb::Forget) => (&[code::DONE, code::FAILED], FINE),
        (Kind::Point, _) => (FINE, FINE),
        // a pack of garbage may be hurt as it likes; bytes inside of others are looked at by those who read them
        (Kind::Data | Kind::Meta | Kind::Index, Verb::Forget | Verb::List) => (FINE, FINE),
        (Kind::Data | Kind::Meta | Kind::Index, _) => (EITHER, EITHER),
        // nobody looks at leases but gc, which takes what it cannot read for a writer under way
        (Kind::Lease, Verb::Verify) => (FINE, HURT),
        (Kind::Lease, _) => (FINE, FINE),
        // what was decided must be known to whoever reads the index or writes
        (Kind::Collection, Verb::List | Verb::Forget) => (FINE, FINE),
        (Kind::Collection, Verb::Verify) => (EITHER, EITHER),
        (Kind::Collection, _) => (FINE, HURT),
    }
}

/// One cell of the matrix; returns the exit code.
fn hurt_and_run(patient: &Patient, kind: Kind, object: &Path, action: Action, verb: Verb) -> i32 {
    let name = text(object.strip_prefix(&patient.repo.dir).unwrap()).to_owned();
    let context = format!("{verb:?} after {action:?} of {name}");
    let repo = patient.clone_of(&patient.repo);
    let other = if verb == Verb::Copy { patient.clone_of(&patient.other) } else { patient.other.clone() };
    let object = repo.dir.join(&name);
    let damage = Damaged::new(&object, action, &patient.contents_for(kind, &object, action));
    let (gone, changed) = expected(kind, verb);
    let codes = if action == Action::Delete { gone } else { changed };
    let output = patient.command(verb, &repo, &other).run();
    assert!(codes.contains(&output.code), "{context}: exit code {codes:?} expected: {}", output.show());
    if output.code == code::DAMAGE && action != Action::Delete {
        // an index segment is not needed by name: what only it knew is missing
        let named = output.stderr.contains(&name) || output.text().contains(&name);
        let id = object.file_name().unwrap().to_str().unwrap();
        let listed = verb == Verb::Verify && output.text().contains(&id[..8]);
        assert!(named || listed, "{context}: the object is not named: {}", output.show());
    }
    assert_right(patient, (action, verb), &repo, &other, &output, &context);
    drop(damage);
    assert_nothing_lost(patient, kind, action, verb, &repo, &context);
    let code = output.code;
    repo.remove();
    if verb == Verb::Copy {
        other.remove();
    }
    code
}

/// With exit code 0 the command has done what it is for, and it holds while the damage is there.
fn assert_right(
    patient: &Patient,
    (action, verb): (Action, Verb),
    repo: &Repo,
    other: &Repo,
    output: &Output,
    context: &str,
) {
    if output.code != code::DONE {
        return;
    }
    match verb {
        Verb::Backup => {
            let point = json::text(&output.json(), "recovery_point").to_owned();
            let code = patient.restores(repo, &point, NEXT, context);
            // What is not there is stored again; bytes that flipped inside of a pack nobody sees who does not read them.
            assert!(code == code::DONE || action != Action::Delete, "{context}: a hollow backup");
        }
        Verb::Copy => {
            let listed = ids_in(&other.command(&["list", "--json"]).run().ok().json());
            for (image, point) in
                patient.points.iter().enumerate().filter(|(_, point)| listed.contains(point))
            {
                let code = patient.restores(other, point, image, context);
                assert_eq!(code, code::DONE, "{context}: the copy of {point}");
            }
            other.verify_is_clean();
        }
        Verb::Restore => {
            compare::assert_identical(&patient.images[1], &patient.target(repo), context);
        }
        Verb::Forget => {
            let there = repo.dir.join("points").join(&patient.points[2]).exists();
            assert!(!there, "{context}: it is still there");
        }
        Verb::List | Verb::Verify | Verb::Gc => {}
    }
    remove_if_there(&patient.target(repo));
}

/// The object is as it was again: so is every point that nobody removed.
fn assert_nothing_lost(
    patient: &Patient,
    kind: Kind,
    action: Action,
    verb: Verb,
    repo: &Repo,
    context: &str,
) {
    remove_if_there(&patient.target(repo));
    // who deletes a point by hand and collects has removed it
    let collected = kind == Kind::Point && action == Action::Delete && verb == Verb::Gc;
    for (image, point) in patient.points.iter().enumerate() {
        let was_removed = (verb == Verb::Forget && image == 2) || collected;
        let listed = repo.dir.join("points").join(point).exists();
        if (full_tier() || image == 1) && listed && !was_removed {
            let code = patient.restores(repo, point, image, &format!("{context}, healed"));
            assert_eq!(code, code::DONE, "{context}, healed: point {image}");
        }
    }
    if !collected {
        let verify = repo.command(&["verify", "--read-data", "--json"]).run();
        // a decision that is gone for good: the index names packs that it had deleted, and no point needs them
        let forgotten = kind == Kind::Collection && action == Action::Delete && verify.code == code::DAMAGE;
        let fine = verify.code == code::DONE || (forgotten && json::list(&verify.json(), "hurt").is_empty());
        assert!(fine, "{context}, healed: {}", verify.show());
    }
}

fn matrix(kinds: &[Kind], verbs: &[Verb]) {
    let patient = Patient::new();
    let mut codes: BTreeMap<(String, Verb, i32), u64> = BTreeMap::new();
    for &kind in kinds {
        let mut objects = kind.objects(&patient.repo.dir);
        assert!(!objects.is_empty(), "no object of kind {kind:?} in {}", patient.repo.dir.display());
        // in the quick tier of records each, and of the others one that is needed
        if matches!(kind, Kind::Data | Kind::Meta | Kind::Index | Kind::Point) && !full_tier() {
            let name = |object: &PathBuf| object.strip_prefix(&patient.repo.dir).unwrap().to_owned();
            objects.retain(|object| patient.needed.contains(&name(object)));
            objects.drain(..objects.len() - 1);
        } else if kind == Kind::Lease && !full_tier() {
            objects.truncate(1);
        }
        for object in &objects {
            for action in by_tier(Action::few(), Action::all()) {
                for &verb in verbs {
                    let code = hurt_and_run(&patient, kind, object, action, verb);
                    *codes.entry((format!("{kind:?}"), verb, code)).or_default() += 1;
                }
            }
        }
    }
    for ((kind, verb, code), times) in codes {
        println!("{kind:10} {verb:?}: exit code {code} {times} times");
    }
    patient.repo.verify_is_clean();
}

const WRITERS: [Verb; 4] = [Verb::Backup, Verb::Gc, Verb::Forget, Verb::Copy];
const ALL: [Verb; 7] =
    [Verb::List, Verb::Restore, Verb::Verify, Verb::Backup, Verb::Gc, Verb::Forget, Verb::Copy];

#[test]
fn configuration_and_keys() {
    matrix(&[Kind::Config, Kind::Key], &WRITERS);
}

#[test]
fn packs() {
    matrix(&[Kind::Data, Kind::Meta], &WRITERS);
}

#[test]
fn index_and_points() {
    matrix(&[Kind::Index, Kind::Point], &WRITERS);
}

#[test]
fn leases() {
    matrix(&[Kind::Lease], &ALL);
}

#[test]
fn records_of_collections() {
    matrix(&[Kind::Collection], &ALL);
}
