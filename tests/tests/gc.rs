//! Garbage collection with the whole program: what comes back, what never goes, kills at any moment, and many writers on one bucket.

use std::path::Path;
use std::time::Duration;

use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::servers::Seaweed;
use penstock_tests::workdir::{Workdir, bytes_under, files_under, remove_if_there};
use penstock_tests::{KIB, MIB, compare, image, json};
use serde_json::Value;

fn gc(repo: &Repo, args: &[&str]) -> Value {
    repo.command(&["gc", "--json"]).args(args).run().ok().json()
}

fn restores(work: &Workdir, repo: &Repo, point: &str, image: &Path) {
    let target = work.join("restored.img");
    remove_if_there(&target);
    repo.restore(point, &target, &[]);
    compare::assert_identical(image, &target, point);
}

fn packs(repo: &Repo) -> Vec<std::path::PathBuf> {
    [repo.dir.join("data"), repo.dir.join("meta")].iter().flat_map(|dir| files_under(dir)).collect()
}

#[test]
fn space_comes_back_and_nothing_else_goes() {
    for encrypted in [true, false] {
        let work = Workdir::new("gc-space");
        let repo = if encrypted {
            Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"])
        } else {
            Repo::open(&work, "repo", &["--pack-size", "8MiB"])
        };
        let (old, kept) = (work.join("old.img"), work.join("kept.img"));
        image::random(&old, 60 * MIB, 1);
        image::random(&kept, 30 * MIB, 2);
        let old_point = repo.backup_id(&old, "old");
        let kept_point = repo.backup_id(&kept, "kept");
        let full = bytes_under(&repo.dir);

        let answer = gc(&repo, &["--grace", "0s"]);
        assert_eq!(json::u64(&answer, "condemned_packs"), 0, "everything is needed: {answer:#}");
        repo.command(&["forget", &old_point]).run().ok();
        let before = packs(&repo);
        let dry = gc(&repo, &["--dry-run"]);
        assert!(json::u64(&dry, "condemned_bytes") > 55 * MIB, "{dry:#}");
        assert_eq!(packs(&repo), before, "a dry run changes nothing");
        assert!(
            files_under(&repo.dir.join("gc")).is_empty() && files_under(&repo.dir.join("leases")).is_empty()
        );

        // condemned now, deleted when the grace is over
        let first = gc(&repo, &[]);
        assert_eq!(json::u64(&first, "condemned_bytes"), json::u64(&dry, "condemned_bytes"));
        assert_eq!(json::u64(&first, "deleted_packs"), 0);
        repo.command(&["gc"]).run().ok().says("waiting").says("condemned packs until");
        assert_eq!(packs(&repo), before);
        restores(&work, &repo, &kept_point, &kept);
        // what is condemned is not relied on: its contents are stored again, and the new point keeps them
        let again = repo.backup(&old, "again", &[]);
        assert!(json::over_volumes(&again, "new_bytes") > 55 * MIB, "{again:#}");
        let second = gc(&repo, &["--grace", "0s"]);
        assert_eq!(json::u64(&second, "deleted_packs"), json::u64(&first, "condemned_packs"), "{second:#}");
        restores(&work, &repo, "latest:again", &old);
        restores(&work, &repo, &kept_point, &kept);
        repo.verify_is_clean();
        let now = bytes_under(&repo.dir);
        assert!(now < full + 3 * MIB, "{now} bytes, {full} before");

        // a night later everything is found again, also what was stored twice
        let night = repo.backup(&old, "again", &[]);
        assert_eq!(json::over_volumes(&night, "new_bytes"), 0, "{night:#}");

        // all points gone: next to nothing is left, and the repository is usable
        for point in repo.point_ids() {
            repo.command(&["forget", &point]).run().ok();
        }
        gc(&repo, &["--grace", "0s"]);
        gc(&repo, &["--grace", "0s"]);
        assert_eq!(packs(&repo).len(), 0);
        let left = bytes_under(&repo.dir) - bytes_under(&repo.dir.join("reserve"));
        assert!(left < MIB, "{left} bytes are left");
        repo.backup(&kept, "kept", &[]);
        restores(&work, &repo, "latest", &kept);
        repo.verify_is_clean();
    }
}

/// Packs of which a tenth is needed: it is moved, and they go.
#[test]
fn little_used_packs_are_moved_together() {
    let work = Workdir::new("gc-move");
    let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"]);
    let disk = work.join("disk.img");
    image::random(&disk, 80 * MIB, 1);
    repo.backup(&disk, "disk", &[]);
    let first = repo.point_ids();
    for n in 0..10 {
        image::patch_random(&disk, n * 8 * MIB + MIB, 7 * MIB, 50 + n);
    }
    let second = repo.backup_id(&disk, "disk");
    repo.command(&["forget", &first[0]]).run().ok();
    let none = gc(&repo, &["--dry-run", "--max-repack", "0"]);
    assert_eq!(json::u64(&none, "moved_packs"), 0);
    let answer = gc(&repo, &["--grace", "0s"]);
    let (moved, deleted) = (json::u64(&answer, "moved_bytes"), json::u64(&answer, "deleted_bytes"));
    assert!((8 * MIB..20 * MIB).contains(&moved) && deleted > 75 * MIB, "{answer:#}");
    assert!(bytes_under(&repo.dir) < 84 * MIB, "{}", bytes_under(&repo.dir));
    restores(&work, &repo, &second, &disk);
    repo.verify_is_clean();
    assert_eq!(json::over_volumes(&repo.backup(&disk, "disk", &[]), "new_bytes"), 0);
}

/// A killed backup leaves packs that no index knows, and a lease. A collection on the same machine sees that it is dead.
#[test]
fn what_killed_backups_leave_goes() {
    let work = Workdir::new("gc-killed");
    let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"]);
    let (kept, disk) = (work.join("kept.img"), work.join("disk.img"));
    image::random(&kept, 10 * MIB, 3);
    image::random(&disk, 600 * MIB, 4);
    let point = repo.backup_id(&kept, "kept");
    let whole = packs(&repo).len();
    let mut backup = repo.backup_command(&disk, "disk", &[]).spawn();
    while packs(&repo).len() < whole + 3 {
        assert!(!backup.ended(), "the backup was over before it could be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    backup.kill();
    backup.wait();
    assert_eq!(files_under(&repo.dir.join("leases")).len(), 1);
    let answer = gc(&repo, &["--grace", "0s"]);
    assert_eq!(json::u64(&answer, "dead_leases"), 1, "{answer:#}");
    assert!(json::u64(&answer, "deleted_packs") >= 3, "{answer:#}");
    assert_eq!(packs(&repo).len(), whole);
    restores(&work, &repo, &point, &kept);
    // the journal of the killed run names packs that are gone now
    repo.backup(&disk, "disk", &[]);
    restores(&work, &repo, "latest", &disk);
    repo.verify_is_clean();
}

/// kill -9 of collections at any moment, backups between: every point stays whole, and the next collection goes on.
#[test]
fn collections_may_be_killed() {
    let work = Workdir::new("gc-kill");
    let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB"]);
    let disk = work.join("disk.img");
    image::random(&disk, 48 * MIB, 5);
    let mut rng = Rng::new(11);
    repo.backup(&disk, "disk", &[]);
    let rounds = if std::env::var_os("PENSTOCK_TESTS_FULL").is_some() { 60 } else { 12 };
    for round in 0..rounds {
        let at = rng.in_range(0..44) * MIB;
        image::patch_random(&disk, at, 4 * MIB, 100 + round);
        repo.backup(&disk, "disk", &[]);
        let points = repo.point_ids();
        repo.command(&["forget", &points[0]]).run().ok();
        let mut running = repo.command(&["gc", "--grace", "0s"]).spawn();
        running.runs_at(Duration::from_millis(rng.in_range(5..160)));
        running.kill();
        running.wait();
        restores(&work, &repo, "latest", &disk);
    }
    for _ in 0..3 {
        gc(&repo, &["--grace", "0s"]);
    }
    repo.verify_is_clean();
    restores(&work, &repo, "latest", &disk);
    let bytes = bytes_under(&repo.dir);
    assert!(bytes < 80 * MIB, "{bytes}: 48 MiB are needed");
    assert!(files_under(&repo.dir.join("leases")).is_empty());
}

/// Eight machines write into one bucket, each several nights, and forget; collections without grace run all the while, from other machines.
#[test]
fn eight_writers_and_collections_share_a_bucket() {
    let work = Workdir::new("gc-writers");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "gc", &server.endpoint(), &["--pack-size", "8MiB"]);
    let nights = if std::env::var_os("PENSTOCK_TESTS_FULL").is_some() { 8 } else { 3 };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collectors: Vec<_> = (0..2)
            .map(|n| {
                let (machine, done) = (repo.elsewhere(&work, &format!("collector-{n}.state")), &done);
                scope.spawn(move || {
                    let mut condemned = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        condemned += json::u64(&gc(&machine, &["--grace", "0s"]), "condemned_packs");
                    }
                    condemned
                })
            })
            .collect();
        let machines: Vec<_> = (0..8u64)
            .map(|n| {
                let (work, machine) = (&work, repo.elsewhere(&work, &format!("machine-{n}.state")));
                scope.spawn(move || {
                    let (disk, name) = (work.join(&format!("disk-{n}.img")), format!("disk-{n}"));
                    image::random(&disk, 12 * MIB, 1); // all share this
                    for night in 0..nights {
                        // what some write others wrote a night ago, and have forgotten
                        image::patch_random(&disk, (n % 4) * 2 * MIB, 3 * MIB, 100 + (n / 2 + night) % 6);
                        machine.backup(&disk, &name, &[]);
                        let target = work.join(&format!("{name}.restored"));
                        machine.restore(&format!("latest:{name}"), &target, &["--force"]);
                        compare::assert_identical(&disk, &target, &format!("{name}, night {night}"));
                        machine.command(&["forget", "--keep-last", "1", "--name", &name]).run().ok();
                    }
                    disk
                })
            })
            .collect();
        let disks: Vec<_> = machines.into_iter().map(|machine| machine.join().unwrap()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let condemned: u64 = collectors.into_iter().map(|collector| collector.join().unwrap()).sum();
        for (n, disk) in disks.iter().enumerate() {
            restores(&work, &repo, &format!("latest:disk-{n}"), disk);
        }
        for _ in 0..3 {
            gc(&repo, &["--grace", "0s"]);
        }
        for (n, disk) in disks.iter().enumerate() {
            restores(&work, &repo, &format!("latest:disk-{n}"), disk);
        }
        repo.command(&["verify", "--read-data"]).run().ok();
        let last = gc(&repo, &["--dry-run"]);
        assert!(condemned > 0 && json::list(&last, "writers").is_empty(), "{condemned}, {last:#}");
        let (needed, there) = (json::u64(&last, "needed_bytes"), json::u64(&last, "pack_bytes"));
        assert!(there < needed * 10 / 6, "{there} bytes are there, {needed} needed");
    });
}

#[test]
fn wrong_arguments_and_damage_are_told() {
    let work = Workdir::new("gc-wrong");
    let repo = Repo::open(&work, "repo", &[]);
    repo.command(&["gc", "--grace", "soon"]).run().expect(&[code::USAGE]).says("24h");
    let disk = work.join("disk.img");
    image::random(&disk, 512 * KIB, 1);
    repo.backup(&disk, "disk", &[]);
    let (one, other) = (repo.backup_id(&disk, "a"), repo.dir.join("points"));
    std::fs::write(other.join(&one), b"rubbish").unwrap();
    let before = packs(&repo);
    repo.command(&["gc", "--grace", "0s"]).run().expect(&[code::DAMAGE]).says("points/");
    repo.command(&["forget", &one]).run().ok();
    std::fs::remove_file(
        files_under(&repo.dir.join("data")).first().map(|file| repo.dir.join("data").join(file)).unwrap(),
    )
    .unwrap();
    repo.command(&["gc", "--grace", "0s"]).run().expect(&[code::DAMAGE]).says("nothing is collected");
    assert_eq!(packs(&repo).len(), before.len() - 1);
}
