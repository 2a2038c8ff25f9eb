//! The damage matrix: every kind of object × every kind of damage. Never a panic, never wrong bytes with exit code 0, and
//! `verify --read-data` sees everything that matters.

use std::path::{Path, PathBuf};

use penstock_tests::damage::{Action, Damaged, Kind, Place, with_version};
use penstock_tests::penstock::{Output, code};
use penstock_tests::repo::{Access, Repo};
use penstock_tests::workdir::{Workdir, remove_if_there, text};
use penstock_tests::{CHUNK_MAX, MIB, compare, full_tier, image, json};

/// A repository with two points: many packs, two index segments at least; and a sibling for swaps.
struct Patient {
    work: Workdir,
    repo: Repo,
    sibling: Repo,
    images: [PathBuf; 2],
    points: [String; 2],
    /// Objects that were there after the first backup.
    first_objects: Vec<PathBuf>,
}

impl Patient {
    fn new(encrypted: bool) -> Self {
        let work = Workdir::new("damage");
        let init = ["--pack-size", "8MiB"];
        let make = |name: &str| {
            if encrypted { Repo::encrypted(&work, name, &init) } else { Repo::open(&work, name, &init) }
        };
        let (repo, sibling) = (make("repo"), make("sibling"));
        let images = [work.join("first.img"), work.join("second.img")];
        image::dense(&images[0], 16 * MIB, 1);
        std::fs::copy(&images[0], &images[1]).unwrap();
        image::patch_random(&images[1], 3 * MIB, 2 * MIB, 3);
        image::patch(&images[1], 13 * MIB, &vec![0; MIB as usize]);
        let first = repo.backup_id(&images[0], "host");
        let first_objects = Kind::NEEDED.iter().flat_map(|kind| kind.objects(&repo.dir)).collect();
        let points = [first, repo.backup_id(&images[1], "host")];
        sibling.backup(&images[1], "host", &[]);
        Self { work, repo, sibling, images, points, first_objects }
    }

    /// What a swap puts in the place of `object`: another one of its kind, of this repository if there is one.
    fn other(&self, kind: Kind, object: &Path) -> Vec<u8> {
        let here = kind.objects(&self.repo.dir).into_iter().find(|path| path != object);
        let path = here.unwrap_or_else(|| kind.objects(&self.sibling.dir)[0].clone());
        std::fs::read(path).unwrap()
    }

    fn list(&self) -> Output {
        self.repo.command(&["list", "--json"]).run()
    }

    fn verify(&self) -> Output {
        self.repo.command(&["verify", "--read-data", "--json"]).run()
    }

    /// The exit code of a restore; with 0, the bytes are right.
    #[track_caller]
    fn restore(&self, which: usize, context: &str) -> i32 {
        let target = self.work.join("target.img");
        remove_if_there(&target);
        let output = self.repo.restore_command(&self.points[which], &target, &[]).run();
        if output.code == code::DONE {
            compare::assert_identical(
                &self.images[which],
                &target,
                &format!("{context}: exit code 0 with wrong bytes"),
            );
        }
        output
            .expect(&[0, code::FAILED, code::NO_REPOSITORY, code::WRONG_KEY, code::DAMAGE, code::NEWER])
            .code
    }
}

/// Whether the place of a flip is one that carries information: the gap between header and first page of an index segment does not.
fn matters(kind: Kind, action: Action, object: &Path) -> bool {
    let bytes = std::fs::metadata(object).unwrap().len() as usize;
    let at = match action {
        Action::Flip(Place::Head(at)) => at,
        Action::Flip(Place::Tail(before)) => bytes - before,
        Action::Flip(Place::Share(share)) => (bytes as f64 * share) as usize,
        _ => return true,
    };
    kind != Kind::Index || !(96..4096).contains(&at)
}

fn hurt_and_look(patient: &Patient, kind: Kind, object: &Path, action: Action) {
    let name = text(object.strip_prefix(&patient.repo.dir).unwrap()).to_owned();
    let context = format!("{action:?} of {name}");
    let matters = matters(kind, action, object);
    let _damage = Damaged::new(object, action, &patient.other(kind, object));
    let locked_out = [code::NO_REPOSITORY, code::WRONG_KEY, code::DAMAGE, code::NEWER];

    let list = patient.list();
    let restored = [patient.restore(0, &context), patient.restore(1, &context)];
    let verify = patient.verify();
    match kind {
        Kind::Config | Kind::Key => {
            list.expect(&locked_out);
            verify.expect(&locked_out);
            assert!(restored.iter().all(|code| locked_out.contains(code)), "{context}: {restored:?}");
        }
        Kind::Point if action == Action::Delete => {
            // a point that is not there was never there
            let deleted = name.trim_start_matches("points/");
            let listed = list.ok().json();
            let ids: Vec<&str> =
                listed.as_array().unwrap().iter().map(|point| json::text(point, "id")).collect();
            assert!(!ids.contains(&deleted), "{context}: still listed");
            verify.ok();
            let hurt = usize::from(patient.points[0] != deleted);
            assert_eq!(restored[hurt], code::FAILED, "{context}: no such point");
            assert_eq!(restored[1 - hurt], code::DONE, "{context}: the other point");
        }
        Kind::Point => {
            // one damaged point does not hide the others
            let list = list.expect(&[code::DONE, code::IN_PART, code::DAMAGE]);
            let hurt = usize::from(!name.ends_with(&patient.points[0]));
            assert!(list.text().contains(&patient.points[1 - hurt]), "{context}: {}", list.show());
            verify.expect(&[code::DAMAGE]);
            assert!([code::FAILED, code::DAMAGE].contains(&restored[hurt]), "{context}: {restored:?}");
            assert_eq!(restored[1 - hurt], code::DONE, "{context}: the other point");
        }
        Kind::Data | Kind::Meta | Kind::Index if matters => {
            let verify = verify.expect(&[code::DAMAGE]);
            let id = object.file_name().unwrap().to_str().unwrap();
            let said = format!("{}{}", verify.text(), verify.stderr);
            assert!(
                kind == Kind::Index || said.contains(&id[..8]),
                "{context}: verify does not name it: {}",
                verify.show()
            );
            let fine = [code::DONE, code::DAMAGE];
            assert!(restored.iter().all(|code| fine.contains(code)), "{context}: {restored:?}");
            list.expect(&[code::DONE, code::IN_PART, code::DAMAGE]);
        }
        _ => {
            verify.expect(&[code::DONE, code::DAMAGE]);
        }
    }
}

fn matrix(encrypted: bool, kinds: &[Kind]) {
    let patient = Patient::new(encrypted);
    for &kind in kinds {
        let objects = kind.objects(&patient.repo.dir);
        assert!(!objects.is_empty(), "no object of kind {kind:?} in {}", patient.repo.dir.display());
        // the first and the last in the quick tier
        let mut chosen = objects.clone();
        if !full_tier() && chosen.len() > 2 {
            chosen.drain(1..objects.len() - 1);
        }
        for object in &chosen {
            for action in Action::all() {
                hurt_and_look(&patient, kind, object, action);
            }
        }
    }
    // the damage was all undone: this is the check of the check
    patient.verify().ok();
    assert_eq!([patient.restore(0, "healed"), patient.restore(1, "healed")], [0, 0]);
}

#[test]
fn config_and_keys() {
    matrix(true, &[Kind::Config, Kind::Key]);
}

#[test]
fn data_packs() {
    matrix(true, &[Kind::Data]);
}

#[test]
fn metadata_packs_and_index() {
    matrix(true, &[Kind::Meta, Kind::Index]);
}

#[test]
fn recovery_points() {
    matrix(true, &[Kind::Point]);
}

#[test]
fn without_encryption_damage_is_found_too() {
    matrix(false, &Kind::NEEDED);
}

/// A swap of two packs with each other: both are whole, neither is where it belongs.
#[test]
fn two_packs_exchanged() {
    let patient = Patient::new(true);
    for kind in [Kind::Data, Kind::Meta, Kind::Index, Kind::Point] {
        let objects = kind.objects(&patient.repo.dir);
        let (a, b) = (std::fs::read(&objects[0]).unwrap(), std::fs::read(&objects[1]).unwrap());
        let _damage = (Damaged::with(&objects[0], &b), Damaged::with(&objects[1], &a));
        patient.verify().expect(&[code::DAMAGE]);
        for which in 0..2 {
            patient.restore(which, &format!("two of {kind:?} exchanged"));
        }
    }
}

/// `verify` says who is hurt and where, and who is not.
#[test]
fn verify_names_the_hurt_ranges() {
    let patient = Patient::new(true);
    let packs = Kind::Data.objects(&patient.repo.dir);
    let _damage = Damaged::new(&packs[0], Action::Delete, &[]);
    let output = patient.verify().expect(&[code::DAMAGE]);
    let answer = output.json();
    let hurt = answer["hurt"].as_array().unwrap_or_else(|| panic!("no list of hurt points: {answer:#}"));
    assert!(!hurt.is_empty(), "{answer:#}");
    let known = |entry: &serde_json::Value| {
        patient.points.iter().any(|point| entry["recovery_point"] == point.as_str())
    };
    assert!(hurt.iter().all(known), "{answer:#}");
    // without reading data, a missing pack is seen as well: structure is enough
    patient.repo.command(&["verify"]).run().expect(&[code::DAMAGE]);
}

/// What the second night added hurts the second night only, and no further than its chunks reach.
#[test]
fn damage_stays_where_it_is() {
    let patient = Patient::new(true);
    for kind in [Kind::Data, Kind::Meta, Kind::Index] {
        let added: Vec<PathBuf> = kind
            .objects(&patient.repo.dir)
            .into_iter()
            .filter(|path| !patient.first_objects.contains(path))
            .collect();
        assert!(!added.is_empty(), "the second backup added no object of kind {kind:?}");
        for object in added {
            let context = format!("{} deleted", object.display());
            let _damage = Damaged::new(&object, Action::Delete, &[]);
            assert_eq!(patient.restore(0, &context), code::DONE, "{context}: the first night");
            assert_eq!(patient.restore(1, &context), code::DAMAGE, "{context}: the second night");
            let answer = patient.verify().expect(&[code::DAMAGE]).json();
            for hurt in json::list(&answer, "hurt") {
                assert_eq!(json::text(hurt, "recovery_point"), patient.points[1], "{context}: {answer:#}");
                let ranges = json::list(hurt, "ranges");
                assert!(!ranges.is_empty(), "{context}: {answer:#}");
                if kind == Kind::Data {
                    // Random data at 3..5 MiB, and zeros at 13..14 MiB, which begin and end chunks.
                    let near = [
                        3 * MIB - CHUNK_MAX..=5 * MIB + CHUNK_MAX,
                        13 * MIB - CHUNK_MAX..=14 * MIB + CHUNK_MAX,
                    ];
                    let inside = ranges.iter().map(bounds).all(|(start, end)| {
                        near.iter().any(|near| near.contains(&start) && near.contains(&end))
                    });
                    assert!(inside, "{context}: more is hurt than what changed: {answer:#}");
                }
            }
        }
    }
}

/// `[start, end)` of a range in an answer.
fn bounds(range: &serde_json::Value) -> (u64, u64) {
    let offset = json::u64(range, "offset");
    (offset, offset + json::u64(range, "length"))
}

/// A next backup of the same source stores again what is gone, or says that it cannot; it never builds on missing data silently.
#[test]
fn a_backup_after_damage_is_sound_or_says_so() {
    let patient = Patient::new(true);
    for pack in [Kind::Data, Kind::Meta].into_iter().flat_map(|kind| kind.objects(&patient.repo.dir)) {
        for (name, args) in [("fresh", &["--no-parent"][..]), ("host", &[])] {
            let repo = patient.repo.copy(&patient.work, "hurt");
            let object = repo.dir.join(pack.strip_prefix(&patient.repo.dir).unwrap());
            std::fs::remove_file(&object).unwrap();
            let context = format!("{} deleted, then a backup of {name}", object.display());
            let answer = repo.backup(&patient.images[1], name, args);
            assert!(answer["notes"].to_string().contains("missing"), "{context}: it is told: {answer:#}");
            let target = patient.work.join("fresh.img");
            remove_if_there(&target);
            repo.restore(json::text(&answer, "recovery_point"), &target, &[]);
            compare::assert_identical(&patient.images[1], &target, &context);
            // A pack whose contents are stored again is needed no more, but it is still missing.
            repo.command(&["verify"]).run().expect(&[code::DAMAGE]);
            repo.remove();
        }
    }
}

#[test]
fn newer_versions_are_said_to_be_newer() {
    let patient = Patient::new(true);
    for kind in Kind::NEEDED {
        let object = kind.objects(&patient.repo.dir)[0].clone();
        let newer = with_version(&std::fs::read(&object).unwrap(), kind, 2);
        let _damage = Damaged::with(&object, &newer);
        let output = match kind {
            Kind::Config | Kind::Key => patient.list(),
            // the first object of each kind belongs to either point: everything of both is read
            _ => {
                let codes = [patient.restore(0, "newer"), patient.restore(1, "newer")];
                println!("{kind:?} of version 2: restores end with {codes:?}");
                if kind == Kind::Point {
                    assert!(codes.contains(&code::NEWER), "{kind:?}: {codes:?}");
                }
                patient.verify()
            }
        };
        let expected = if kind.is_plain() { vec![code::NEWER] } else { vec![code::NEWER, code::DAMAGE] };
        output.expect(&expected).says("version");
    }
}

#[test]
fn wrong_keys_and_no_repository() {
    let work = Workdir::new("wrong-key");
    let repo = Repo::init(&work, "repo", Access::Password("right".into()), &[]);
    let other = Repo::encrypted(&work, "other", &[]);
    let wrong = |access: Access| Repo { access, ..repo.clone() };
    wrong(Access::Password("wrong".into()))
        .command(&["list"])
        .run()
        .expect(&[code::WRONG_KEY])
        .says("wrong key");
    wrong(other.access.clone()).command(&["list"]).run().expect(&[code::WRONG_KEY]);
    // no key at all and no terminal to ask on: not a hang
    wrong(Access::Open).command(&["list"]).run().expect(&[code::FAILED, code::USAGE, code::WRONG_KEY]);
    Repo { access: Access::Password("right".into()), ..other }
        .command(&["list"])
        .run()
        .expect(&[code::WRONG_KEY]);

    std::fs::create_dir(work.join("empty")).unwrap();
    for dir in ["empty", "not-there"] {
        let none = Repo::at(&work.join(dir), &work.join("state"), Access::Password("right".into()));
        for verb in [&["list"][..], &["verify"], &["restore", "latest", "/nonexistent/target"], &["stats"]] {
            none.command(verb).run().expect(&[code::NO_REPOSITORY]).says("init");
        }
    }
    // init never overwrites
    repo.command(&["init"]).run().expect(&[code::FAILED, code::USAGE]).says("already");
    repo.command(&["list"]).run().ok();
}
