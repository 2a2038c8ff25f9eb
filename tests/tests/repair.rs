//! `penstock repair` and what `verify` says before and after it: lost, flipped and cut objects of every kind, with
//! the program.

use std::path::{Path, PathBuf};

use penstock_tests::damage::{Action, Damaged, Kind, Place};
use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::workdir::{Workdir, files_under, remove_if_there, text};
use penstock_tests::{MIB, compare, image, json};
use serde_json::Value;

/// A repository of two points of one disk, and the disk as it was each time.
struct Patient {
    work: Workdir,
    repo: Repo,
    images: [PathBuf; 2],
    points: [String; 2],
}

impl Patient {
    fn new(encrypted: bool) -> Self {
        let work = Workdir::new("repair");
        let init = ["--pack-size", "8MiB"];
        let repo = match encrypted {
            true => Repo::encrypted(&work, "repo", &init),
            false => Repo::open(&work, "repo", &init),
        };
        let images = [work.join("first.img"), work.join("second.img")];
        image::dense(&images[0], 20 * MIB, 1);
        std::fs::copy(&images[0], &images[1]).unwrap();
        image::patch_random(&images[1], 3 * MIB, 2 * MIB, 3);
        let points = [repo.backup_id(&images[0], "host"), repo.backup_id(&images[1], "host")];
        Self { work, repo, images, points }
    }

    fn verify(&self) -> Value {
        let output = self.repo.command(&["verify", "--read-data", "--json"]).run();
        output.expect(&[code::DONE, code::DAMAGE]).json()
    }

    #[track_caller]
    fn is_clean(&self, context: &str) {
        let answer = self.verify();
        assert_eq!(answer["clean"], true, "{context}: {answer:#}");
    }

    #[track_caller]
    fn repair(&self, args: &[&str], codes: &[i32]) -> Value {
        self.repo.command(&["repair", "--json"]).args(args).run().expect(codes).json()
    }

    #[track_caller]
    fn restores(&self, context: &str) {
        for (point, image) in self.points.iter().zip(&self.images) {
            self.restores_to(point, image, context);
        }
    }

    #[track_caller]
    fn restores_to(&self, point: &str, image: &Path, context: &str) {
        let target = self.work.join("restored.img");
        remove_if_there(&target);
        self.repo.restore(point, &target, &[]);
        compare::assert_identical(image, &target, context);
    }
}

#[test]
fn a_lost_or_damaged_index_is_rebuilt() {
    for encrypted in [true, false] {
        let patient = Patient::new(encrypted);
        for action in [
            Action::Delete,
            Action::TruncateHalf,
            Action::TruncateToZero,
            Action::Flip(Place::Head(4096 + 100)),
            Action::Flip(Place::Tail(60)),
        ] {
            let context = format!("{action:?} of all index segments");
            let segments = Kind::Index.objects(&patient.repo.dir);
            for segment in &segments {
                std::mem::forget(Damaged::new(segment, action, &[])); // for good
            }
            let hurt = patient.verify();
            assert_eq!(hurt["clean"], false, "{context}");

            let before = files_under(&patient.repo.dir);
            let dry = patient.repair(&["--dry-run"], &[code::DONE, code::DAMAGE]);
            assert!(json::u64(&dry, "new_index_rows") > 0, "{context}: {dry:#}");
            assert_eq!(files_under(&patient.repo.dir), before, "{context}: a dry run changes nothing");

            let answer = patient.repair(&[], &[code::DONE]);
            assert_eq!(answer["new_index_rows"], dry["new_index_rows"], "{context}");
            patient.is_clean(&context);
            patient.restores(&context);
            let again = patient.repair(&["--read-data"], &[code::DONE]);
            assert_eq!(again["clean"], true, "{context}: {again:#}");
            let night = patient.repo.backup(&patient.images[1], "host", &[]);
            assert_eq!(json::over_volumes(&night, "new_bytes"), 0, "{context}: {night:#}");
        }
    }
}

/// The promise: after `repair`, `verify` names what is really lost, and after the next backup of what is unchanged,
/// nothing.
#[test]
fn what_the_source_still_has_is_stored_again() {
    let healthy = Patient::new(true);
    for kind in [Kind::Data, Kind::Meta] {
        for pack in kind.objects(&healthy.repo.dir) {
            for action in [
                Action::Delete,
                Action::TruncateHalf,
                Action::Flip(Place::Head(120)),
                Action::Flip(Place::Tail(60)),
                Action::Extend,
            ] {
                let repo = healthy.repo.copy(&healthy.work, "hurt");
                let object = repo.dir.join(pack.strip_prefix(&healthy.repo.dir).unwrap());
                let context = format!("{action:?} of {}", object.display());
                std::mem::forget(Damaged::new(&object, action, &[]));
                let sick = Patient {
                    work: Workdir::new("repair-sick"),
                    repo,
                    images: healthy.images.clone(),
                    points: healthy.points.clone(),
                };
                assert_eq!(sick.verify()["clean"], false, "{context}");
                let answer = sick.repair(&["--read-data"], &[code::DONE, code::DAMAGE]);
                assert_eq!(json::u64(&answer["put_aside"], "count"), 1, "{context}: {answer:#}");
                let lost = json::u64(&answer, "lost_contents");
                let left = sick.verify();
                assert_eq!(left["clean"], lost == 0, "{context}: {answer:#} {left:#}");
                let told = json::u64(&left, "problem_count");
                // Under a node that is lost nobody can look.
                let right = if kind == Kind::Data { told == lost } else { told <= lost };
                assert!(right, "{context}: {answer:#} {left:#}");
                assert_eq!(json::u64(&left, "aside_packs"), 1, "{context}");

                for image in [&sick.images[1], &sick.images[0]] {
                    sick.repo.backup(image, "host", &[]);
                }
                sick.is_clean(&format!("{context}, backed up again"));
                sick.restores(&context);
                sick.repo.command(&["gc", "--grace", "0s"]).run().ok();
                assert!(!object.exists(), "{context}: nothing needs it any more");
                sick.is_clean(&format!("{context}, collected"));
                sick.restores(&format!("{context}, collected"));
                sick.repo.remove();
            }
        }
    }
}

/// Finding: "any sample sees the same or other packs": twenty times 5 % have to see everything.
#[test]
fn samples_go_round_and_a_verification_goes_on() {
    let patient = Patient::new(true);
    for hurt in Kind::Data.objects(&patient.repo.dir) {
        let _damage = Damaged::new(&hurt, Action::Flip(Place::Head(120)), &[]);
        let found = (0..3).filter(|_| {
            let sample = ["verify", "--read-data", "--sample", "34%", "--json"];
            patient.repo.command(&sample).run().code == code::DAMAGE
        });
        assert!(found.count() >= 1, "{}: three thirds are all of it", hurt.display());
    }
    let timed = ["verify", "--read-data", "--max-time", "0s", "--resume", "--json"];
    let none = patient.repo.command(&timed).run().expect(&[code::IN_PART]).json();
    assert_eq!((&none["ended"], &none["packs"]), (&"time_limit".into(), &0.into()), "{none:#}");
    patient.repo.command(&timed[..4]).run().expect(&[code::USAGE, code::IN_PART]);
    let rest = ["verify", "--read-data", "--resume", "--json"];
    let whole = patient.repo.command(&rest).run().ok().json();
    assert_eq!((&whole["resumed"], &whole["ended"]), (&true.into(), &"whole".into()), "{whole:#}");
    assert_eq!(whole["packs"], whole["packs_known"], "{whole:#}");
}

#[test]
fn points_that_cannot_be_read_are_told_and_stay() {
    let patient = Patient::new(true);
    let point = patient.repo.dir.join("points").join(&patient.points[0]);
    std::mem::forget(Damaged::new(&point, Action::TruncateHalf, &[]));
    let answer = patient.repair(&[], &[code::DAMAGE]);
    assert_eq!(json::u64(&answer["damaged_points"], "count"), 1, "{answer:#}");
    assert!(point.exists());
    patient.repo.command(&["repair"]).run().expect(&[code::DAMAGE]).says("penstock forget ID");
    patient.repo.command(&["forget", &patient.points[0]]).run().ok();
    patient.repair(&[], &[code::DONE]);
    patient.is_clean("forgotten");
}

#[test]
fn damaged_records_of_collections_are_removed() {
    let patient = Patient::new(true);
    patient.repo.command(&["forget", &patient.points[0]]).run().ok();
    patient.repo.command(&["gc"]).run().ok();
    let records = files_under(&patient.repo.dir.join("gc"));
    assert!(!records.is_empty());
    for record in &records {
        std::mem::forget(Damaged::new(&patient.repo.dir.join("gc").join(record), Action::TruncateHalf, &[]));
    }
    // Nobody gets past them.
    let blocked = patient.repo.command(&["backup", text(&patient.images[1]), "--name", "host"]).run();
    blocked.expect(&[code::DAMAGE]);
    assert_eq!(patient.verify()["clean"], false);
    let answer = patient.repair(&[], &[code::DONE]);
    assert!(json::u64(&answer["removed_records"], "count") > 0, "{answer:#}");
    patient.is_clean("removed");
    patient.repo.backup(&patient.images[1], "host", &[]);
    patient.repo.command(&["gc", "--grace", "0s"]).run().ok();
    patient.is_clean("collected");
    patient.restores_to(&patient.points[1], &patient.images[1], "collected");
}

/// A year of nights with a hole in the oldest: gc works, and the nights stay cheap.
#[test]
fn what_is_lost_for_ever_hinders_nobody() {
    let patient = Patient::new(true);
    // The first point alone needs what the second replaced: the packs of the first backup, of which one frame of
    // each is hit.
    let packs = Kind::Data.objects(&patient.repo.dir);
    let hit = packs.iter().find(|pack| {
        let hurt = |share| {
            let _damage = Damaged::new(pack, Action::Flip(Place::Share(share)), &[]);
            let answer = patient.verify();
            let hurt = json::list(&answer, "hurt");
            hurt.len() == 1 && hurt[0]["recovery_point"] == patient.points[0].as_str()
        };
        let found = (1..40).map(|n| f64::from(n) / 40.0).find(|share| hurt(*share));
        if let Some(share) = found {
            std::mem::forget(Damaged::new(pack, Action::Flip(Place::Share(share)), &[]));
        }
        found.is_some()
    });
    let hit = hit.expect("a chunk that only the first point needs");
    patient.repair(&["--read-data"], &[code::DAMAGE]);
    for night in 0..2 {
        let answer = patient.repo.backup(&patient.images[1], "host", &[]);
        assert_eq!(json::over_volumes(&answer, "new_bytes"), 0, "{night}: {answer:#}");
        let collected = patient.repo.command(&["gc", "--grace", "0s", "--json"]).run().ok().json();
        assert_eq!(json::u64(&collected, "aside_packs"), 1, "{night}: {collected:#}");
        assert!(hit.exists());
    }
    let last = patient.repo.backup(&patient.images[1], "host", &[]);
    assert_eq!(last["notes"].as_array().map(Vec::len), Some(0), "vouched for: {last:#}");
    let answer = patient.verify();
    let hurt = json::list(&answer, "hurt");
    assert_eq!(hurt.len(), 1, "{answer:#}");
    assert_eq!(hurt[0]["recovery_point"], patient.points[0].as_str());
    patient.restores_to("latest:host", &patient.images[1], "the last night");
    // The way out that needs no source.
    patient.repo.command(&["forget", &patient.points[0]]).run().ok();
    patient.repo.command(&["gc", "--grace", "0s"]).run().ok();
    patient.is_clean("forgotten");
    assert!(!hit.exists());
}
