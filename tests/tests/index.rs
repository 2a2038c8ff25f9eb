//! Many backups: the index is merged as it grows, old segments go, and everything is found all the same.

use std::fs;
use std::path::Path;

use penstock_tests::damage::Kind;
use penstock_tests::repo::Repo;
use penstock_tests::workdir::Workdir;
use penstock_tests::{KIB, MIB, compare, image, json};

const NIGHTS: u64 = 40;

fn objects(repo: &Repo) -> usize {
    Kind::Index.objects(&repo.dir).len()
}

#[test]
fn forty_nights_leave_few_index_segments_and_every_point_restores() {
    let work = Workdir::new("nights");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let source = work.join("source.img");
    image::dense(&source, 6 * MIB, 1);
    let mut points = Vec::new();
    let mut most = 0;
    for night in 0..NIGHTS {
        image::patch_random(&source, night * 150 * KIB, 70_000, night);
        points.push((repo.backup_id(&source, "host"), compare::blake3_hex(&source)));
        most = most.max(objects(&repo));
    }
    // Three runs of a tier, and what the last merge superseded, which the next backup deletes.
    assert!(most <= 8, "{most} index segments at a time after {NIGHTS} backups");
    let verified = repo.command(&["verify", "--read-data", "--json"]).run().ok().json();
    assert_eq!(verified["points"], NIGHTS, "{verified:#}");
    let target = work.join("target.img");
    for (point, digest) in &points {
        repo.restore(point, &target, &[]);
        assert_eq!(&compare::blake3_hex(&target), digest, "{point}");
        fs::remove_file(&target).unwrap();
    }
    // Nothing was forgotten: the same contents again store nothing, with or without a parent.
    let again = repo.backup(&source, "host", &["--no-parent"]);
    assert_eq!(json::over_volumes(&again, "new_chunks"), 0, "{again:#}");
}

#[test]
fn many_writers_merge_at_once_and_lose_nothing() {
    let work = Workdir::new("mergers");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let source = |host: u64| work.join(&format!("{host}.img"));
    (0..4).for_each(|host| image::dense(&source(host), 4 * MIB, 100 + host));
    std::thread::scope(|scope| {
        for host in 0..4 {
            let (repo, source) = (repo.clone(), source(host));
            scope.spawn(move || {
                for night in 0..8 {
                    image::patch_random(&source, night * 300 * KIB, 50_000, host * 100 + night);
                    repo.backup(&source, &format!("host{host}"), &[]);
                }
            });
        }
    });
    let verified = repo.command(&["verify", "--read-data", "--json"]).run().ok().json();
    assert_eq!(verified["points"], 32, "{verified:#}");
    for host in 0..4 {
        let target = work.join("target.img");
        repo.restore(&format!("latest:host{host}"), &target, &[]);
        compare::assert_identical(&source(host), &target, "after merges");
        remove(&target);
    }
    let (before, one) = (objects(&repo), source(0));
    (0..3).for_each(|_| drop(repo.backup(&one, "host0", &[])));
    assert!(objects(&repo) <= before.min(12), "{before} segments, then {}", objects(&repo));
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}
