//! Repositories in object stores: the whole program on SeaweedFS (S3) and Azurite (Azure).

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::servers::{
    AZURE_ACCOUNT, AZURE_KEY, Azurite, BUCKET, READER, SECRET, STRANGER, Seaweed, free_port,
};
use penstock_tests::workdir::{Workdir, files_under};
use penstock_tests::{GIB, MIB, compare, image, json};

fn requests(answer: &Value, kinds: &[&str]) -> u64 {
    kinds.iter().map(|kind| json::u64(&answer["requests"], kind)).sum()
}

const ALL: [&str; 4] = ["get", "put", "list", "delete"];

fn restores(work: &Workdir, repo: &Repo, point: &str, image: &Path, context: &str) -> Value {
    let target = work.join(&format!("restored-{point}.img"));
    let answer = repo.restore(point, &target, &[]);
    compare::assert_identical(image, &target, context);
    std::fs::remove_file(&target).unwrap();
    answer
}

/// The everyday life of a repository, and what it asks of the store for it.
#[test]
fn nights_of_a_large_disk_cost_few_requests() {
    let work = Workdir::new("s3-nights");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "nights", &server.endpoint(), &[]);
    repo.command(&["init"]).run().expect(&[code::FAILED]).says("already holds a repository");
    let disk = work.join("disk.img");
    // 8 GiB with 400 MiB in 40 places that do not compress
    let data: Vec<_> = (0..40).map(|n| (n * 200 * MIB, 10 * MIB, n)).collect();
    image::sparse(&disk, 8 * GIB, &data);

    let first = repo.backup(&disk, "disk", &[]);
    let stored_mib = json::over_volumes(&first, "stored_bytes") / MIB;
    assert!(stored_mib >= 400, "{stored_mib}");
    assert_eq!(requests(&first, &["retried"]), 0, "{first:#}");
    assert!(requests(&first, &ALL) * 5 <= stored_mib, "more than 0.2 requests per MiB: {first:#}");
    assert!(first["request_usd"].as_f64().is_some_and(|usd| usd > 0.0 && usd < 0.01), "{first:#}");
    assert!(json::u64(&first, "memory_peak_bytes") < 300 * MIB, "{first:#}");

    let warm = repo.backup(&disk, "disk", &[]);
    assert!(requests(&warm, &ALL) < 15, "an unchanged night: {warm:#}");
    let cold = repo.elsewhere(&work, "cold.state").backup(&disk, "disk", &[]);
    assert!(requests(&cold, &ALL) < 50, "an unchanged night on a machine without a cache: {cold:#}");
    let none =
        repo.command(&["backup", disk.to_str().unwrap(), "--name", "disk", "--json", "--cache-size", "0"]);
    let none = none.run().ok().json();
    // Keys, records of collections, points, index and the two kinds of packs are listed once, whatever the size of the disk.
    for night in [&first, &warm, &cold, &none] {
        assert_eq!(requests(night, &["list"]), 6, "{night:#}");
    }

    image::patch_random(&disk, 3 * GIB, 5 * MIB, 77);
    let changed = repo.backup(&disk, "disk", &[]);
    let new = json::over_volumes(&changed, "stored_bytes");
    assert!((5 * MIB..8 * MIB).contains(&new), "{changed:#}");
    assert!(requests(&changed, &ALL) < 25, "{changed:#}");

    let ids = repo.point_ids();
    assert_eq!(ids.len(), 5);
    let answer = restores(&work, &repo, &ids[4], &disk, "the changed night");
    assert_eq!(requests(&answer, &["put"]), 0);
    repo.verify_is_clean();
    repo.command(&["stats"]).run().ok();
    repo.command(&["doctor"]).run().ok();
}

/// What is kept on this machine is used, and never believed.
#[test]
fn a_hurt_cache_heals() {
    let work = Workdir::new("s3-cache");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "cache", &server.endpoint(), &[]);
    let disk = work.join("disk.img");
    image::mixed(&disk, 40 * MIB, 3);
    let point = repo.backup_id(&disk, "disk");
    let cache = repo.state.join("cache");
    let files = files_under(&cache);
    assert!(files.len() >= 3, "index, metadata, point: {files:?}");
    for (round, damage) in ["flip", "cut", "remove"].iter().enumerate() {
        for file in &files {
            let path = cache.join(file);
            let Ok(mut bytes) = std::fs::read(&path) else { continue };
            let at = (bytes.len() - 1) * (round + 1) / 4;
            match *damage {
                "flip" => bytes[at] ^= 0x20,
                "cut" => bytes.truncate(at),
                _ => {
                    std::fs::remove_file(&path).unwrap();
                    continue;
                }
            }
            std::fs::write(&path, bytes).unwrap();
        }
        restores(&work, &repo, &point, &disk, damage);
        repo.backup(&disk, "disk", &["--no-parent"]);
    }
    // a cache that cannot be made costs requests, nothing else
    let file = work.join("file");
    std::fs::write(&file, b"").unwrap();
    let blocked = repo.clone().with_env(&[("PENSTOCK_CACHE_DIR", file.to_str().unwrap())]);
    blocked.command(&["list"]).run().ok().says("no local cache");
    repo.verify_is_clean();
}

/// What failed, on which object, and what to do; no secrets.
#[test]
fn mistakes_are_explained() {
    let work = Workdir::new("s3-mistakes");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "mistakes", &server.endpoint(), &[]);
    let disk = work.join("disk.img");
    image::random(&disk, MIB, 3);
    let point = repo.backup_id(&disk, "disk");
    let object = format!("s3://{BUCKET}/mistakes/");
    let with = |env: &[(&str, &str)]| repo.clone().with_env(env);
    let keys = |(id, secret): (&'static str, &'static str)| {
        [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]
    };
    let closed = format!("http://127.0.0.1:{}", free_port());
    for (case, repo, words) in [
        (
            "secret",
            with(&[("AWS_SECRET_ACCESS_KEY", "WrongSecretXYZ")]),
            &["SignatureDoesNotMatch", "secret key"][..],
        ),
        ("key id", with(&[("AWS_ACCESS_KEY_ID", "AKIDUNKNOWN")]), &["InvalidAccessKeyId", "AWS_PROFILE"]),
        ("nothing allowed", with(&keys(STRANGER)), &["AccessDenied", "OPERATIONS.md"]),
        ("endpoint", with(&[("PENSTOCK_S3_ENDPOINT", &closed)]), &["--s3-endpoint", "attempts"]),
        ("no scheme", with(&[("PENSTOCK_S3_ENDPOINT", "localhost:1")]), &["--s3-endpoint", "https://"]),
        (
            "no credentials",
            with(&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), ("HOME", "/nonexistent")]),
            &["no AWS credentials"],
        ),
    ] {
        let output = repo.backup_command(&disk, "disk", &[]).run();
        let output = output.expect(if case == "no scheme" { &[code::USAGE] } else { &[code::FAILED] });
        let output = words.iter().fold(output, |output, word| output.says(word));
        let said = output.show();
        assert!(case == "no scheme" || said.contains(&object), "{case}: no object named: {said}");
        for secret in [SECRET, "WrongSecretXYZ", STRANGER.1] {
            assert!(!said.contains(secret), "{case}: a secret is shown: {said}");
        }
    }
    // who may read can restore, and is told on what a backup fails
    let reader = with(&keys(READER));
    restores(&work, &reader, &point, &disk, "as a reader");
    let output = reader.backup_command(&disk, "disk", &["--no-parent"]).run().expect(&[code::FAILED]);
    output.says("cannot store").says("AccessDenied").says("request id").says("/leases/");

    let nowhere = Repo { dir: "s3://no-such-bucket-here/x".into(), ..repo.clone() };
    for verb in [&["init"][..], &["list"]] {
        nowhere.command(verb).run().expect(&[code::FAILED]).says("no such bucket").says("create the bucket");
    }
    let empty = Repo { dir: format!("s3://{BUCKET}/nothing").into(), ..repo.clone() };
    empty.command(&["list"]).run().expect(&[code::NO_REPOSITORY]).says("penstock init");
    let wrong = Repo { dir: "s3:///x".into(), ..repo.clone() };
    wrong.command(&["list"]).run().expect(&[code::USAGE]).says("name of a bucket");
    let unknown = Repo { dir: "ftp://x/y".into(), ..repo };
    unknown.command(&["list"]).run().expect(&[code::USAGE]).says("s3://bucket/prefix");
}

/// `kill -9` of the whole store in the middle of a backup and of a restore: both wait for it and go on.
#[test]
fn the_store_may_die_and_come_back() {
    let work = Workdir::new("s3-die");
    let mut server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "die", &server.endpoint(), &["--pack-size", "8MiB"]);
    let disk = work.join("disk.img");
    image::random(&disk, 600 * MIB, 3);
    let backup = repo.backup_command(&disk, "disk", &[]).spawn();
    wait_for_objects(&server, "die/data", 3);
    server.kill();
    std::thread::sleep(Duration::from_secs(1));
    server.restart();
    let answer = backup.wait().ok().json();
    assert!(requests(&answer, &["retried"]) > 0, "it was killed too late to be noticed: {answer:#}");
    let point = json::text(&answer, "recovery_point").to_owned();
    repo.verify_is_clean();

    let target = work.join("target.img");
    let mut restore = repo.restore_command(&point, &target, &[]).spawn();
    while !restore.ended() && compare_allocated(&target) < 20 * MIB {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(!restore.ended(), "the restore was over before the store could be killed");
    server.kill();
    std::thread::sleep(Duration::from_secs(1));
    server.restart();
    let answer = restore.wait().ok().json();
    assert!(requests(&answer, &["retried"]) > 0, "{answer:#}");
    compare::assert_identical(&disk, &target, "restored across a crash of the store");
}

fn compare_allocated(path: &Path) -> u64 {
    if path.exists() { compare::allocated_bytes(path) } else { 0 }
}

/// Waits until the server has stored so many objects under a prefix (as its filer sees them).
fn wait_for_objects(server: &Seaweed, prefix: &str, count: usize) {
    for _ in 0..3000 {
        if server.objects(BUCKET, prefix) >= count {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{count} objects under {prefix} never appeared");
}

/// Four machines back up into one repository at the same time.
#[test]
fn many_writers_share_a_bucket() {
    let work = Workdir::new("s3-writers");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "writers", &server.endpoint(), &["--pack-size", "8MiB"]);
    let disks: Vec<_> = (0..4u64)
        .map(|n| {
            let disk = work.join(&format!("disk-{n}.img"));
            image::random(&disk, 24 * MIB, 1); // all share this
            image::patch_random(&disk, n * 4 * MIB, 6 * MIB, 100 + n);
            disk
        })
        .collect();
    for night in 0..2 {
        let running: Vec<_> = disks
            .iter()
            .enumerate()
            .map(|(n, disk)| {
                let machine = repo.elsewhere(&work, &format!("machine-{n}.state"));
                machine.backup_command(disk, &format!("disk-{n}"), &[]).spawn()
            })
            .collect();
        for backup in running {
            backup.wait().ok();
        }
        assert_eq!(repo.point_ids().len(), 4 * (night + 1));
    }
    for (n, disk) in disks.iter().enumerate() {
        restores(&work, &repo, &format!("latest:disk-{n}"), disk, &format!("disk {n}"));
    }
    repo.verify_is_clean();
}

fn round_trip(work: &Workdir, repo: &Repo) {
    repo.command(&["list"]).run().expect(&[code::NO_REPOSITORY]);
    repo.command(&["init", "--pack-size", "8MiB"]).run().ok();
    let disk = work.join("disk.img");
    image::mixed(&disk, 50 * MIB, 8);
    let first = repo.backup_id(&disk, "disk");
    restores(work, repo, &first, &disk, "first");
    image::patch_random(&disk, 7 * MIB, 3 * MIB, 9);
    let second = repo.backup(&disk, "disk", &[]);
    assert!(json::over_volumes(&second, "stored_bytes") < 8 * MIB, "{second:#}");
    restores(work, repo, json::text(&second, "recovery_point"), &disk, "second");
    repo.verify_is_clean();
}

#[test]
fn azure_round_trip() {
    let work = Workdir::new("azure");
    let server = Azurite::start(work.path());
    let repo = Repo::in_cloud(&work, "azure", "az").with_env(&[
        ("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT),
        ("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY),
        ("PENSTOCK_S3_ENDPOINT", &server.endpoint()),
    ]);
    round_trip(&work, &repo);
    let wrong = AZURE_KEY.replace("Eby8", "Fby8");
    let repo = repo.with_env(&[("AZURE_STORAGE_ACCOUNT_KEY", &wrong)]);
    let output = repo.command(&["list"]).run().expect(&[code::FAILED]).says("request id");
    assert!(!output.show().contains(&wrong));
}
