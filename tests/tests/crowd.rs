//! Many processes at one local repository: collections that are killed at any moment while others write, and dozens
//! of backups at once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::workdir::{Workdir, files_under, remove_if_there};
use penstock_tests::{KIB, MIB, by_tier, compare, image};

/// Restores the newest point of a name and compares. Beside collections without grace, which readers are not
/// protected from (`docs/CONCURRENCY.md`), it is tried again if a pack was moved meanwhile.
fn restores(work: &Workdir, repo: &Repo, name: &str, image: &Path, tries: u64) {
    let target = work.join(&format!("{name}.restored"));
    let point = format!("latest:{name}");
    for attempt in 1..=tries {
        remove_if_there(&target);
        let output = repo.restore_command(&point, &target, &["--workers", "1"]).run();
        if output.code == code::DONE {
            compare::assert_identical(image, &target, name);
            break;
        }
        assert!(attempt < tries, "{attempt} tries: {}", output.show());
        output.expect(&[code::DAMAGE]).says("missing");
    }
    remove_if_there(&target);
}

/// Raises its flag when dropped, also by a panic: then the others end too.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// kill -9 of collections, at 50 moments in the long tier, while three machines back up, forget and restore. Nothing
/// is lost, and the next collection ends.
#[test]
fn collections_are_killed_while_others_write() {
    let work = Workdir::new("crowd-kill");
    let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"]);
    let kills = by_tier(5, 50);
    let (done, nights) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let machines: Vec<_> = (0..3u64)
            .map(|n| {
                let (work, done, nights) = (&work, &done, &nights);
                let machine = repo.elsewhere(work, &format!("machine-{n}.state"));
                scope.spawn(move || -> PathBuf {
                    let _ending = Ending(done);
                    let (disk, name) = (work.join(&format!("{n}.img")), format!("disk-{n}"));
                    image::random(&disk, 6 * MIB, 1); // all share this
                    for night in 0.. {
                        image::patch_random(&disk, (night % 5) * MIB, 900 * KIB, 1000 * n + night);
                        machine.backup(&disk, &name, &["--workers", "1"]);
                        machine.command(&["forget", "--keep-last", "1", "--name", &name]).run().ok();
                        restores(work, &machine, &name, &disk, 3);
                        nights.fetch_add(1, Ordering::Relaxed);
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    disk
                })
            })
            .collect();
        let _ending = Ending(&done);
        let collector = repo.elsewhere(&work, "collector.state");
        let (mut rng, mut killed, mut seen) = (Rng::new(31), 0, 0);
        while killed < kills && !done.load(Ordering::Relaxed) {
            let mut running = collector.command(&["gc", "--grace", "0s"]).spawn();
            let runs = running.runs_at(Duration::from_millis(rng.in_range(2..150)));
            running.kill();
            let output = running.wait();
            assert!([code::DONE, -9].contains(&output.code), "{}", output.show());
            killed += u64::from(runs && output.code == -9);
            // something has changed before the next one
            while nights.load(Ordering::Relaxed) == seen && !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            seen = nights.load(Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
        let disks: Vec<PathBuf> = machines.into_iter().map(|machine| machine.join().unwrap()).collect();
        assert_eq!(killed, kills, "a machine gave up");
        println!("{killed} collections were killed in {} nights", nights.load(Ordering::Relaxed));
        for _ in 0..3 {
            collector.command(&["gc", "--grace", "0s", "--json"]).run().ok();
        }
        for (n, disk) in disks.iter().enumerate() {
            restores(&work, &repo, &format!("disk-{n}"), disk, 1);
        }
    });
    repo.verify_is_clean();
    assert_eq!(files_under(&repo.dir.join("leases")).len(), 0, "leases of killed collectors are left");
}

/// 64 backups at once in the long tier, with collections and forgetting beside them: each restores byte by byte.
#[test]
fn dozens_of_backups_at_once() {
    let work = Workdir::new("crowd-many");
    let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"]);
    let count = by_tier(16, 64);
    let names: Vec<String> = (0..count).map(|n| format!("disk-{n}")).collect();
    let disk = |n: usize| work.join(&format!("{n}.img"));
    for n in 0..count {
        image::random(&disk(n), 2 * MIB, n as u64 / 4); // four have the same
        image::patch_random(&disk(n), MIB, 200 * KIB, 100 + n as u64);
        image::dense(&work.join("old.img"), 512 * KIB, 500 + n as u64);
        if n % 4 == 0 {
            repo.backup(&work.join("old.img"), "old", &["--workers", "1"]);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (repo, done, names) = (&repo, &done, &names);
        scope.spawn(|| {
            let collector = repo.elsewhere(&work, "collector.state");
            let mut keep = count as u64 / 4;
            while !done.load(Ordering::Relaxed) {
                keep = (keep - 1).max(1);
                let keep = keep.to_string();
                collector.command(&["forget", "--name", "old", "--keep-last", &keep]).run().ok();
                collector.command(&["gc", "--grace", "0s"]).run().ok();
            }
        });
        let _ending = Ending(done);
        for _night in 0..2 {
            let running: Vec<_> = (0..count)
                .map(|n| {
                    let machine = repo.elsewhere(&work, &format!("machine-{n}.state"));
                    machine.backup_command(&disk(n), &names[n], &["--workers", "1"]).spawn()
                })
                .collect();
            running.into_iter().for_each(|running| drop(running.wait().ok()));
            for n in 0..count {
                image::patch_random(&disk(n), 0, 100 * KIB, 900 + n as u64);
            }
        }
        let running: Vec<_> = (0..count)
            .map(|n| repo.backup_command(&disk(n), &names[n], &["--workers", "1", "--no-resume"]).spawn())
            .collect();
        running.into_iter().for_each(|running| drop(running.wait().ok()));
        done.store(true, Ordering::Relaxed);
    });
    for (n, name) in names.iter().enumerate() {
        restores(&work, &repo, name, &disk(n), 1);
    }
    // however far the other one came
    repo.command(&["forget", "--name", "old", "--keep-last", "1"]).run().ok();
    for _ in 0..2 {
        repo.command(&["gc", "--grace", "0s"]).run().ok();
    }
    for (n, name) in names.iter().enumerate() {
        restores(&work, &repo, name, &disk(n), 1);
    }
    repo.verify_is_clean();
    assert_eq!(repo.point_ids().len(), 3 * count + 1);
}
