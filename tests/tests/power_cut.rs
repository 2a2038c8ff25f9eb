//! The power goes at any moment: what was reported as done is on the medium, nothing that can be listed is hollow,
//! and whoever goes on ends right.
//!
//! Repository, state directory and the targets of restores lie on a filesystem that forgets what was not synced
//! (`penstock_tests::power` says what that means).
//! `PENSTOCK_POWER_CUTS` (20; 200 in the long tier) are shared out over the tests; `PENSTOCK_POWER_SEED` plays a
//! single seed in each: run the test that failed with the seed it printed. The seed fixes the moment and what is
//! forgotten; threads of the program may come to that moment in another order, so a rare failure may take several
//! tries.

use std::path::Path;

use penstock_tests::power::{Act, Effect, Flaw, Odds, Scene, Story, Which};
use penstock_tests::workdir::{Workdir, text};
use penstock_tests::{KIB, MIB, by_tier, image};

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Plays a story with `share` of 20 cuts.
fn cut(scene: &Scene, story: &Story, share: u64, first_seed: u64) {
    let requests = scene.rehearse(story);
    let cuts = (setting("PENSTOCK_POWER_CUTS").unwrap_or(by_tier(20, 200)) * share).div_ceil(20);
    let seeds = match setting("PENSTOCK_POWER_SEED") {
        Some(seed) => seed..seed + 1,
        None => first_seed..first_seed + cuts,
    };
    println!("{requests} write-like requests, {} cuts", seeds.clone().count());
    let mut failed = Vec::new();
    for seed in seeds {
        let wrong = scene.play(story, requests, seed);
        wrong.iter().for_each(|line| println!("{line}"));
        failed.extend((!wrong.is_empty()).then_some(seed));
    }
    assert!(failed.is_empty(), "PENSTOCK_POWER_SEED plays one again; these failed: {failed:?}");
}

/// Numbers of the images.
const FIRST: usize = 0;
const SECOND: usize = 1;
const OTHER: usize = 2;
const THIRD: usize = 3;
const NEW: usize = 4;

fn images(work: &Workdir) -> Vec<std::path::PathBuf> {
    let path = |number: usize| work.join(&format!("{number}.img"));
    let patched = |number: usize, of: usize, seed: u64| {
        std::fs::copy(path(of), path(number)).unwrap();
        image::patch_random(&path(number), seed * MIB, 600 * KIB, seed);
        image::patch(&path(number), 5 * MIB + seed * 4 * KIB, &vec![0; 300 * KIB as usize]);
    };
    // with a whole segment of zeros: what a restore need not write into a new file
    image::dense(&path(FIRST), 13 * MIB, 1);
    image::patch(&path(FIRST), 7 * MIB, &vec![0; 5 * MIB as usize]);
    patched(SECOND, FIRST, 2);
    image::dense(&path(OTHER), 6 * MIB, 3);
    patched(THIRD, SECOND, 4);
    image::dense(&path(NEW), 9 * MIB + 512, 5);
    (0..5).map(path).collect()
}

/// Two repositories, and in the first one three points: one more backup, and the index is merged.
fn scene(label: &str) -> Scene {
    let work = Workdir::new(label);
    let images = images(&work);
    let nights = [Act::backup("host", FIRST), Act::backup("host", SECOND), Act::backup("other", OTHER)];
    Scene::new(work, images, false, &nights)
}

fn init() -> Act {
    Act::new(Effect::Makes, |place, again| {
        let repo = place.repo(Which::First);
        let is_there = again && repo.command(&["list"]).run().code == 0;
        (!is_there).then(|| repo.command(&["init", "--pack-size", "8MiB"]))
    })
}

fn copy() -> Act {
    Act::new(Effect::Copies, |place, _| {
        let (from, to) = (place.repo(Which::First), place.repo(Which::Second));
        let command = from.command(&["copy", "--all", "--json", "--to", text(&to.dir)]);
        let penstock_tests::repo::Access::KeyFile(key) = to.access else {
            unreachable!("made with a key file")
        };
        Some(command.arg("--to-key-file").arg(key))
    })
}

/// A restore that goes on with `--resume`; `--force` because it may have been stopped before it wrote that it began.
fn restore(point: String, image: usize, file: &'static str, args: Vec<String>) -> Act {
    Act::new(Effect::Restores(file, image), move |place, again| {
        let more: &[&str] = if again { &["--resume", "--force"] } else { &[] };
        let more = more.iter().filter(|arg| !args.iter().any(|given| given == *arg));
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.copied()).collect();
        Some(place.repo(Which::First).restore_command(&point, &place.join(file), &args))
    })
}

#[test]
fn init_and_the_first_backup() {
    let work = Workdir::new("power-init");
    let images = images(&work);
    let scene = Scene::new(work, images, true, &[]);
    cut(&scene, &Story { acts: vec![init(), Act::backup("host", FIRST)] }, 2, 1000);
}

#[test]
fn a_backup_of_something_new() {
    cut(&scene("power-new"), &Story { acts: vec![Act::backup("new", NEW)] }, 2, 2000);
}

#[test]
fn a_backup_with_a_parent() {
    cut(&scene("power-next"), &Story { acts: vec![Act::backup("host", THIRD)] }, 3, 3000);
}

#[test]
fn forgetting_and_collecting() {
    let scene = scene("power-gc");
    let points = scene.points();
    let acts = vec![
        Act::forget(vec![points[0].clone(), points[2].clone()]),
        Act::gc(),
        Act::backup("host", THIRD),
        Act::gc(),
    ];
    cut(&scene, &Story { acts }, 4, 4000);
}

#[test]
fn copying() {
    cut(&scene("power-copy"), &Story { acts: vec![copy(), Act::backup("host", THIRD), copy()] }, 2, 5000);
}

#[test]
fn merging_the_index() {
    let acts = vec![Act::backup("one", NEW), Act::backup("two", THIRD), Act::backup("three", OTHER)];
    cut(&scene("power-merge"), &Story { acts }, 2, 6000);
}

#[test]
fn restoring_into_a_new_file() {
    let scene = scene("power-restore");
    let point = scene.points()[1].clone();
    cut(&scene, &Story { acts: vec![restore(point, SECOND, "out/new.img", vec![])] }, 2, 7000);
}

#[test]
fn restoring_over_other_contents() {
    let mut scene = scene("power-restore-over");
    let garbage = scene.work.join("garbage.img");
    image::garbage(&garbage, 14 * MIB);
    put(&mut scene, "out/over.img", &garbage);
    let point = scene.points()[1].clone();
    let act = restore(point, SECOND, "out/over.img", vec!["--force".into()]);
    cut(&scene, &Story { acts: vec![act] }, 2, 8000);
}

#[test]
fn restoring_what_differs() {
    let mut scene = scene("power-restore-base");
    let old = scene.images[FIRST].clone();
    put(&mut scene, "out/base.img", &old);
    let points = scene.points();
    let act = restore(points[1].clone(), SECOND, "out/base.img", vec!["--base".into(), points[0].clone()]);
    cut(&scene, &Story { acts: vec![act] }, 1, 9000);
}

fn put(scene: &mut Scene, name: &str, image: &Path) {
    scene.put(name, image);
}

/// If syncing did nothing, these tests would fail: for files and for directories, for repositories and for targets.
#[test]
fn a_disk_that_ignores_fsync_is_noticed() {
    let scene = scene("power-flaw");
    let points = scene.points();
    let backup = Story { acts: vec![Act::backup("host", THIRD)] };
    let restore = Story { acts: vec![restore(points[1].clone(), SECOND, "out/new.img", vec![])] };
    for story in [&backup, &restore] {
        let sound = scene.play_flawed(story, Flaw::None, Odds::NOTHING_STAYS);
        assert!(sound.is_empty(), "{sound:#?}");
        for flaw in [Flaw::FilesNotSynced, Flaw::DirectoriesNotSynced] {
            // contents or names alone are forgotten, and the rest stays
            let stays = Odds { data: 100, sizes: 100, additions: 100, removals: 100 };
            let odds = match flaw {
                Flaw::FilesNotSynced => Odds { data: 0, sizes: 0, ..stays },
                _ => Odds { additions: 0, ..stays },
            };
            for odds in [odds, Odds::NOTHING_STAYS] {
                let wrong = scene.play_flawed(story, flaw, odds);
                println!("{flaw:?}, {odds:?}: {}", wrong.join("\n"));
                assert!(!wrong.is_empty(), "{flaw:?} with {odds:?} is not noticed");
            }
        }
    }
}
