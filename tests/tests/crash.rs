//! kill -9 and Ctrl-C at any moment: earlier points stay whole, the rerun ends right and does not start from nothing.
//!
//! `PENSTOCK_CRASH_ROUNDS` (default 6; 50 in the long tier), `PENSTOCK_CRASH_IMAGE_MIB` (default 1024), `PENSTOCK_CRASH_SEED`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use penstock_tests::loopdev::LoopDev;
use penstock_tests::penstock::{Running, code};
use penstock_tests::repo::{Repo, ids_in};
use penstock_tests::rng::Rng;
use penstock_tests::workdir::{Workdir, files_under, remove_if_there};
use penstock_tests::{MIB, compare, image, json};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn rounds() -> u64 {
    setting("PENSTOCK_CRASH_ROUNDS", 6)
}

fn image_bytes() -> u64 {
    setting("PENSTOCK_CRASH_IMAGE_MIB", 1024) * MIB
}

/// Starts a program and waits until it has run for `share` of `whole_run`. If it ended before (a machine is not always equally fast), it is started
/// again and met earlier.
fn met_running(whole_run: Duration, share: f64, mut start: impl FnMut() -> Running) -> Running {
    let mut moment = whole_run.mul_f64(share);
    for _ in 0..10 {
        let mut running = start();
        if running.runs_at(moment) {
            return running;
        }
        running.wait();
        moment = moment.mul_f64(0.75);
    }
    panic!("it always ended before {moment:?}");
}

/// When to kill, as shares of a whole run: spread over it, with the last two late, where there is something to resume.
fn moments(seed: u64) -> Vec<f64> {
    let (mut rng, rounds) = (Rng::new(setting("PENSTOCK_CRASH_SEED", seed)), rounds().max(3));
    (0..rounds)
        .map(|round| match rounds - round {
            1 => 0.93,
            2 => 0.8,
            _ => (round as f64 + rng.fraction()) / rounds as f64,
        })
        .collect()
}

/// A repository with one small point, the image that is to be backed up, and how long that takes.
struct Scene {
    work: Workdir,
    earlier_image: PathBuf,
    earlier: String,
    image: PathBuf,
    start: Repo,
    whole_run: Duration,
}

impl Scene {
    fn new(label: &str) -> Self {
        let work = Workdir::new(label);
        let (earlier_image, image) = (work.join("earlier.img"), work.join("big.img"));
        image::mixed(&earlier_image, 24 * MIB, 1);
        image::dense(&image, image_bytes(), 2);
        let start = Repo::encrypted(&work, "start", &[]);
        let earlier = start.backup_id(&earlier_image, "earlier");
        let measured = start.copy(&work, "measured");
        let began = Instant::now();
        measured.backup(&image, "big", &[]);
        let whole_run = began.elapsed();
        measured.remove();
        println!("a whole backup takes {whole_run:?}");
        Self { work, earlier_image, earlier, image, start, whole_run }
    }

    /// The point that was there before is still all right, whatever happened since.
    fn earlier_is_whole(&self, repo: &Repo, context: &str) {
        let target = self.work.join("earlier-restored.img");
        remove_if_there(&target);
        repo.restore(&self.earlier, &target, &[]);
        compare::assert_identical(&self.earlier_image, &target, context);
    }

    fn restores(&self, repo: &Repo, point: &str, context: &str) {
        let target = self.work.join("big-restored.img");
        remove_if_there(&target);
        repo.restore(point, &target, &[]);
        compare::assert_identical(&self.image, &target, context);
    }
}

#[test]
fn a_killed_backup_harms_nothing_and_goes_on() {
    let scene = Scene::new("kill-backup");
    let (mut killed_late, mut resumed_late) = (0, 0);
    for (round, share) in moments(21).into_iter().enumerate() {
        let context = format!("round {round}, killed at {:.0} %", share * 100.0);
        let repo =
            Repo::at(&scene.work.join("repo"), &scene.work.join("repo.state"), scene.start.access.clone());
        let mut running = met_running(scene.whole_run, share, || {
            if repo.dir.exists() {
                repo.clone().remove();
            }
            scene.start.copy(&scene.work, "repo").backup_command(&scene.image, "big", &[]).spawn()
        });
        running.kill();
        let output = running.wait();

        let points = repo.point_ids();
        assert!(points.contains(&scene.earlier), "{context}: the earlier point is not listed");
        repo.verify_is_clean();
        scene.earlier_is_whole(&repo, &context);
        for point in points.iter().filter(|point| **point != scene.earlier) {
            // the commit came before the kill: then it is a whole one
            scene.restores(&repo, point, &format!("{context}: the point that got through"));
        }

        let again = repo.backup(&scene.image, "big", &[]);
        let resumed = json::u64(&again, "resumed_bytes");
        println!(
            "{context}: ended with {}, {} points after it; the rerun took over {} of {} MiB",
            output.code,
            points.len(),
            resumed / MIB,
            image_bytes() / MIB
        );
        if share >= 0.6 && points.len() == 1 {
            killed_late += 1;
            resumed_late += u64::from(resumed > 0);
        }
        scene.restores(&repo, json::text(&again, "recovery_point"), &format!("{context}: rerun"));
        scene.earlier_is_whole(&repo, &context);
        repo.verify_is_clean();
        repo.remove();
    }
    assert!(killed_late > 0, "no backup was killed late: the image is too small for this machine");
    assert!(resumed_late > 0, "{killed_late} backups were killed late, none of the reruns resumed");
}

/// Killed again and again, the same backup still ends.
#[test]
fn a_backup_killed_many_times_still_ends() {
    let scene = Scene::new("kill-often");
    let repo = scene.start.copy(&scene.work, "repo");
    let mut rng = Rng::new(5);
    for _ in 0..5 {
        let mut running = repo.backup_command(&scene.image, "big", &[]).spawn();
        running.runs_at(scene.whole_run.mul_f64(0.1 + 0.3 * rng.fraction()));
        running.kill();
        running.wait();
    }
    let answer = repo.backup(&scene.image, "big", &[]);
    scene.restores(&repo, json::text(&answer, "recovery_point"), "after five kills");
    scene.earlier_is_whole(&repo, "after five kills");
    repo.verify_is_clean();
}

/// A source that changed between the kill and the rerun: what was finished then must not stand for what is there now.
#[test]
fn a_source_that_changed_after_the_kill() {
    let scene = Scene::new("kill-changed");
    let repo = scene.start.copy(&scene.work, "repo");
    let mut running = repo.backup_command(&scene.image, "big", &[]).spawn();
    running.runs_at(scene.whole_run.mul_f64(0.8));
    running.kill();
    running.wait();
    let mut rng = Rng::new(6);
    for _ in 0..20 {
        let offset = rng.in_range(0..image_bytes() - 5000);
        image::patch_random(&scene.image, offset, 5000, rng.next_u64());
    }
    let answer = repo.backup(&scene.image, "big", &[]);
    scene.restores(&repo, json::text(&answer, "recovery_point"), "changed after the kill");
}

#[test]
fn a_killed_restore_goes_on_with_resume() {
    let scene = Scene::new("kill-restore");
    let repo = scene.start.copy(&scene.work, "repo");
    let point = repo.backup_id(&scene.image, "big");
    let target = scene.work.join("target.img");
    let began = Instant::now();
    repo.restore(&point, &target, &[]);
    let whole_run = began.elapsed();
    println!("a whole restore takes {whole_run:?}");
    let (mut killed_late, mut resumed_late) = (0, 0);
    for (round, share) in moments(22).into_iter().enumerate() {
        // every other round to a device that holds garbage
        let to_device = round % 2 == 1;
        let context = format!("round {round}, killed at {:.0} %, device {to_device}", share * 100.0);
        remove_if_there(&target);
        let device = to_device.then(|| {
            image::garbage(&target, image_bytes());
            LoopDev::attach(&target)
        });
        let place: &Path = device.as_ref().map_or(&target, LoopDev::path);
        let mut running =
            met_running(whole_run, share, || repo.restore_command(&point, place, &["--force"]).spawn());
        running.kill();
        running.wait();

        // --force too: killed early enough, there is no journal yet, and the target is just a target that is not empty
        let resumed = if round % 3 == 2 {
            repo.restore(&point, place, &["--force"]); // without --resume: from the start, over what is there
            None
        } else {
            let answer = repo.restore(&point, place, &["--resume", "--force"]);
            Some(json::u64(&answer, "resumed_bytes"))
        };
        println!("{context}: resumed {:?} MiB", resumed.map(|bytes| bytes / MIB));
        if let (true, Some(bytes)) = (share >= 0.6, resumed) {
            killed_late += 1;
            resumed_late += u64::from(bytes > 0);
        }
        drop(device);
        compare::assert_identical(&scene.image, &target, &context);
        let left: Vec<PathBuf> =
            files_under(scene.work.path()).into_iter().filter(|file| is_journal_of_target(file)).collect();
        assert!(left.is_empty(), "{context}: {left:?} left behind by a finished restore");
    }
    assert!(killed_late > 0, "no restore was killed late: the image is too small for this machine");
    assert!(resumed_late > 0, "{killed_late} restores were killed late, none of the reruns resumed");
    repo.verify_is_clean();
}

/// Files beside the target that belong to it.
fn is_journal_of_target(file: &Path) -> bool {
    let name = file.file_name().unwrap().to_string_lossy();
    file.components().count() == 1 && name.contains("target.img") && name != "target.img"
}

/// A journal of another restore must not be believed.
#[test]
fn resume_of_another_point_starts_anew() {
    let scene = Scene::new("resume-other");
    let repo = scene.start.copy(&scene.work, "repo");
    let point = repo.backup_id(&scene.image, "big");
    let other_image = scene.work.join("other.img");
    fs::copy(&scene.image, &other_image).unwrap();
    for n in 0..64 {
        image::patch_random(&other_image, n * (image_bytes() / 64), 4096, n);
    }
    let other = repo.backup_id(&other_image, "big");
    let target = scene.work.join("target.img");
    let mut running = repo.restore_command(&point, &target, &[]).spawn();
    running.runs_at(scene.whole_run.mul_f64(0.3));
    running.kill();
    running.wait();
    let output = repo.restore_command(&other, &target, &["--resume", "--force"]).run();
    let output = output.expect(&[code::DONE, code::FAILED, code::REFUSED]);
    if output.code == code::DONE {
        compare::assert_identical(&other_image, &target, "resume with the journal of another point");
    }
}

#[test]
fn an_interrupted_backup_leaves_things_clean() {
    let scene = Scene::new("interrupt");
    for share in [0.1f64, 0.5, 0.8] {
        let context = format!("SIGINT at {:.0} %", share * 100.0);
        let repo =
            Repo::at(&scene.work.join("repo"), &scene.work.join("repo.state"), scene.start.access.clone());
        // not in the first moment, when the program has not yet said that it wants to hear of signals
        let share = share.max(0.1 / scene.whole_run.as_secs_f64());
        let mut running = met_running(scene.whole_run, share, || {
            if repo.dir.exists() {
                repo.clone().remove();
            }
            scene.start.copy(&scene.work, "repo").backup_command(&scene.image, "big", &[]).spawn()
        });
        running.interrupt();
        running.wait().expect(&[code::INTERRUPTED]).says("interrupted");
        assert_eq!(repo.temporary_files(), Vec::<PathBuf>::new(), "{context}");
        assert_eq!(repo.point_ids(), std::slice::from_ref(&scene.earlier), "{context}");
        scene.earlier_is_whole(&repo, &context);
        let answer = repo.backup(&scene.image, "big", &[]);
        scene.restores(&repo, json::text(&answer, "recovery_point"), &context);
        repo.verify_is_clean();
        repo.remove();
    }
}

#[test]
fn an_interrupted_restore_can_be_resumed() {
    let scene = Scene::new("interrupt-restore");
    let repo = scene.start.copy(&scene.work, "repo");
    let point = repo.backup_id(&scene.image, "big");
    let target = scene.work.join("target.img");
    let began = Instant::now();
    repo.restore(&point, &target, &[]);
    let whole_run = began.elapsed();
    remove_if_there(&target);
    let mut running = met_running(whole_run, 0.5, || {
        remove_if_there(&target);
        repo.restore_command(&point, &target, &[]).spawn()
    });
    running.interrupt();
    running.wait().expect(&[code::INTERRUPTED]);
    let answer = repo.restore(&point, &target, &["--resume"]);
    println!("resumed {} MiB", json::u64(&answer, "resumed_bytes") / MIB);
    compare::assert_identical(&scene.image, &target, "resumed after SIGINT");
}

/// What a killed process leaves in `tmp/` is no data, whatever its name.
#[test]
fn leftovers_in_tmp_are_not_data() {
    let work = Workdir::new("tmp");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    image::mixed(&source, 9 * MIB, 1);
    let point = repo.backup_id(&source, "host");
    let tmp = repo.dir.join("tmp");
    fs::create_dir_all(&tmp).unwrap();
    fs::copy(repo.dir.join("points").join(&point), tmp.join("0123456789abcdef0123456789abcdef")).unwrap();
    fs::write(tmp.join("junk"), b"half a pack").unwrap();
    assert_eq!(ids_in(&repo.command(&["list", "--json"]).run().ok().json()), std::slice::from_ref(&point));
    repo.verify_is_clean();
    repo.restore(&point, &target, &[]);
    compare::assert_identical(&source, &target, "with leftovers in tmp/");
    repo.backup(&source, "host", &[]);
}
