//! Object Lock on a real bucket that has it (SeaweedFS): what a stolen key cannot do, and how a repository comes back after somebody tried.

use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::servers::{BUCKET, Seaweed};
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, compare, image, json};

const LOCKED: &str = "penstock-locked";

/// Contents of all `<name>` within `text`.
fn tags<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    text.split(open.as_str()).skip(1).filter_map(|part| part.split(close.as_str()).next()).collect()
}

/// Versions and delete markers of the bucket: key, id.
fn versions(server: &Seaweed, tag: &str) -> Vec<(String, String)> {
    let answer = server.ask("GET", &format!("/{LOCKED}?versions"), &[], "");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.body.contains("<IsTruncated>true"), "more versions than this test reads");
    tags(&answer.body, tag)
        .into_iter()
        .map(|version| (tags(version, "Key")[0].to_owned(), tags(version, "VersionId")[0].to_owned()))
        // what says who writes and what is collected is gone soon, and nothing is lost with it
        .filter(|(key, _)| !key.contains("/leases/") && !key.contains("/gc/"))
        .collect()
}

fn locked_until(server: &Seaweed, key: &str) -> String {
    let head = server.ask("HEAD", &format!("/{LOCKED}/{key}"), &[], "");
    head.headers["x-amz-object-lock-retain-until-date"].as_str().unwrap_or_default().to_owned()
}

fn locked_repo(work: &Workdir, server: &Seaweed, mode: &str) -> Repo {
    server.create_locked_bucket(LOCKED);
    let repo = Repo::in_bucket(work, "locked", "s3", LOCKED)
        .reaching_s3(&server.endpoint())
        .with_env(&[("PENSTOCK_OBJECT_LOCK", "30"), ("PENSTOCK_OBJECT_LOCK_MODE", mode)]);
    repo.command(&["init", "--pack-size", "8MiB"]).run().ok();
    repo
}

/// Somebody has the keys of the account's writer and does what they can: deletes, deletes versions, overwrites. Everything comes back.
#[test]
fn a_stolen_key_destroys_nothing() {
    let work = Workdir::new("lock-stolen");
    let server = Seaweed::start(&work.join("s3"));
    let repo = locked_repo(&work, &server, "compliance");
    let disk = work.join("disk.img");
    image::mixed(&disk, 60 * MIB, 5);
    let first = repo.backup_id(&disk, "disk");
    let before = work.join("before.img");
    std::fs::copy(&disk, &before).unwrap();
    image::patch_random(&disk, 8 * MIB, 3 * MIB, 9);
    let second = repo.backup_id(&disk, "disk");

    let all = versions(&server, "Version");
    assert!(all.len() >= 10, "{all:?}");
    for (key, version) in &all {
        assert!(!locked_until(&server, key).is_empty(), "{key} is not locked");
        let gone = server.ask("DELETE", &format!("/{LOCKED}/{key}?versionId={version}"), &[], "");
        assert_eq!(gone.status, 403, "{key}: a locked version was deleted: {gone:?}");
        let bypass = [("x-amz-bypass-governance-retention", "true")];
        let gone = server.ask("DELETE", &format!("/{LOCKED}/{key}?versionId={version}"), &bypass, "");
        assert_eq!(gone.status, 403, "{key}: compliance was bypassed: {gone:?}");
        // what they can do: hide it
        assert_eq!(server.ask("DELETE", &format!("/{LOCKED}/{key}"), &[], "").status, 204);
    }
    let pack = &all.iter().find(|(key, _)| key.contains("/data/")).unwrap().0;
    assert_eq!(server.ask("PUT", &format!("/{LOCKED}/{pack}"), &[], "rubbish").status, 200);
    repo.command(&["list"]).run().expect(&[code::NO_REPOSITORY]);

    // undone as docs/OPERATIONS.md says: remove the markers, and the versions that are younger than the attack
    for (key, version) in versions(&server, "DeleteMarker") {
        let gone = server.ask("DELETE", &format!("/{LOCKED}/{key}?versionId={version}"), &[], "");
        assert_eq!(gone.status, 204, "{key}: {gone:?}");
    }
    for (key, version) in versions(&server, "Version") {
        if !all.contains(&(key.clone(), version.clone())) {
            let gone = server.ask("DELETE", &format!("/{LOCKED}/{key}?versionId={version}"), &[], "");
            assert_eq!(gone.status, 204, "{key}: {gone:?}");
        }
    }
    repo.verify_is_clean();
    for (point, image) in [(&first, &before), (&second, &disk)] {
        let target = work.join(&format!("{point}.img"));
        repo.restore(point, &target, &[]);
        compare::assert_identical(image, &target, point);
    }
}

/// A lock is extended for what is alive, seldom, and what is hidden or replaced is told.
#[test]
fn locks_of_what_is_alive_are_extended() {
    let work = Workdir::new("lock-extend");
    let server = Seaweed::start(&work.join("s3"));
    let repo = locked_repo(&work, &server, "governance");
    let disk = work.join("disk.img");
    image::random(&disk, 40 * MIB, 5);
    repo.backup_id(&disk, "disk");
    let lock = |days: &str| {
        repo.clone().with_env(&[("PENSTOCK_OBJECT_LOCK", days)]).command(&["lock", "--json"]).run()
    };
    // fresh locks last for 45 days: nothing to do for 30, and all to do for 60
    let fresh = lock("30").ok().json();
    assert_eq!((json::u64(&fresh, "extended"), json::u64(&fresh["requests"], "put")), (0, 0), "{fresh:#}");
    let longer = lock("60").ok().json();
    let objects = json::u64(&longer, "objects");
    assert!(json::u64(&longer, "packs") >= 6 && objects > json::u64(&longer, "packs") + 3, "{longer:#}");
    assert_eq!(json::u64(&longer, "extended"), objects, "{longer:#}");
    assert_eq!(json::u64(&longer["requests"], "put"), objects, "{longer:#}");
    let again = lock("60").ok().json();
    assert_eq!((json::u64(&again, "extended"), json::u64(&again, "long_enough")), (0, objects), "{again:#}");
    let promised = json::text(&again, "locked_until");
    for (key, _) in versions(&server, "Version") {
        let until = locked_until(&server, &key);
        assert!(until.as_str() > promised, "{key}: {until}, {promised} was promised");
    }

    // index merging and a store that hides what it deletes get on with each other
    for night in 0..9 {
        image::patch_random(&disk, night * 4 * MIB, MIB, 100 + night);
        repo.backup_id(&disk, "disk");
    }
    repo.verify_is_clean();
    assert!(!versions(&server, "DeleteMarker").is_empty(), "no superseded index segment was deleted");

    let packs: Vec<_> =
        versions(&server, "Version").into_iter().filter(|(k, _)| k.contains("/data/")).collect();
    let (hidden, replaced) = (&packs[0].0, &packs[1].0);
    server.ask("DELETE", &format!("/{LOCKED}/{hidden}"), &[], "");
    server.ask("PUT", &format!("/{LOCKED}/{replaced}"), &[], "rubbish");
    let output = lock("60").expect(&[code::DAMAGE]);
    let key = |path: &str| path.trim_start_matches("locked/").to_owned();
    output.says(&key(hidden)).says("delete marker").says(&format!("{} has 7 bytes", key(replaced)));
    repo.command(&["lock", "--object-lock-mode", "compliance"]).run().expect(&[code::DAMAGE]);
}

/// Packs that go up in parts are locked as well.
#[test]
fn large_packs_are_locked() {
    let work = Workdir::new("lock-large");
    let server = Seaweed::start(&work.join("s3"));
    server.create_locked_bucket(LOCKED);
    let repo = Repo::in_bucket(&work, "large", "s3", LOCKED)
        .reaching_s3(&server.endpoint())
        .with_env(&[("PENSTOCK_OBJECT_LOCK", "1")]);
    repo.command(&["init", "--pack-size", "128MiB"]).run().ok();
    let disk = work.join("disk.img");
    image::random(&disk, 90 * MIB, 5);
    repo.backup(&disk, "disk", &["--workers", "1"]);
    let all = versions(&server, "Version");
    let pack = all.iter().find(|(key, _)| key.contains("/data/")).unwrap();
    assert!(!locked_until(&server, &pack.0).is_empty(), "{} is not locked", pack.0);
    let gone = server.ask("DELETE", &format!("/{LOCKED}/{}?versionId={}", pack.0, pack.1), &[], "");
    assert_eq!(gone.status, 403, "{gone:?}");
    repo.verify_is_clean();
}

/// What cannot be locked is said at once.
#[test]
fn a_bucket_without_object_lock_is_refused() {
    let work = Workdir::new("lock-none");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::in_cloud(&work, "none", "s3").reaching_s3(&server.endpoint());
    let locking = repo.clone().with_env(&[("PENSTOCK_OBJECT_LOCK", "30")]);
    let output = locking.command(&["init"]).run().expect(&[code::USAGE]);
    output.says(BUCKET).says("has no Object Lock").says("OPERATIONS.md");
    repo.command(&["init"]).run().ok();
    repo.command(&["lock"]).run().expect(&[code::USAGE]).says("--object-lock");
    let off = locking.with_env(&[("PENSTOCK_S3_CHECKSUM", "off")]);
    off.command(&["list"]).run().expect(&[code::USAGE]).says("checksum");
    let elsewhere = Repo { dir: "az://container/x".into(), ..repo };
    elsewhere.command(&["init", "--object-lock", "30"]).run().expect(&[code::USAGE]).says("not in S3");
}
