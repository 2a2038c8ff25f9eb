//! Recovery points removed, by name and by policy: what stays, what goes, and that nothing else notices.

use std::path::{Path, PathBuf};
use std::time::Duration;

use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::servers::{BUCKET, Seaweed};
use penstock_tests::workdir::{Workdir, files_under, remove_if_there, text};
use penstock_tests::{KIB, MIB, compare, image, json};
use serde_json::Value;

fn forget(repo: &Repo, args: &[&str]) -> Value {
    repo.command(&["forget", "--json"]).args(args).run().ok().json()
}

/// Point ids with that action, in the order of the answer.
fn with_action(answer: &Value, action: &str) -> Vec<String> {
    let points = json::list(answer, "points").iter().filter(|point| point["action"] == action);
    points.map(|point| json::text(point, "recovery_point").to_owned()).collect()
}

fn reasons(answer: &Value, id: &str) -> Vec<String> {
    let point = json::list(answer, "points").iter().find(|point| point["recovery_point"] == id);
    let point = point.unwrap_or_else(|| panic!("no {id} in {answer:#}"));
    json::list(point, "reasons").iter().map(|reason| reason.as_str().unwrap().to_owned()).collect()
}

/// A small image, and points of it at these times; each changes something.
fn nights(work: &Workdir, repo: &Repo, name: &str, times: &[&str]) -> (PathBuf, Vec<String>) {
    let source = work.join(&format!("{name}.img"));
    image::mixed(&source, 2 * MIB, name.len() as u64);
    let mut ids = Vec::new();
    for (n, time) in times.iter().enumerate() {
        image::patch_random(&source, n as u64 * 64 * KIB, 8 * KIB, n as u64);
        ids.push(json::text(&repo.backup(&source, name, &["--time", time]), "recovery_point").to_owned());
    }
    (source, ids)
}

fn restores(work: &Workdir, repo: &Repo, point: &str, image: &Path) {
    let target = work.join("restored.img");
    remove_if_there(&target);
    repo.restore(point, &target, &[]);
    compare::assert_identical(image, &target, point);
}

const TIMES: [&str; 6] = [
    "2024-12-31T22:30:00Z",
    "2026-10-30T02:00:00Z",
    "2026-11-18T02:00:00Z",
    "2026-11-19T02:00:00Z",
    "2026-11-20T02:00:00Z",
    "2026-11-20T14:00:00Z",
];

#[test]
fn a_policy_keeps_what_it_says_and_says_why() {
    for encrypted in [true, false] {
        let work = Workdir::new("forget-policy");
        let repo =
            if encrypted { Repo::encrypted(&work, "repo", &[]) } else { Repo::open(&work, "repo", &[]) };
        let (web, ids) = nights(&work, &repo, "web", &TIMES);
        let (db, others) = nights(&work, &repo, "db", &["2020-01-01T00:00:00Z", "2020-01-01T10:00:00Z"]);
        let policy = [
            "--keep-last",
            "1",
            "--keep-daily",
            "2",
            "--keep-monthly",
            "2",
            "--keep-yearly",
            "5",
            "--time-zone",
            "UTC",
        ];

        let before = files_under(&repo.dir);
        let dry = forget(&repo, &[&policy[..], &["--dry-run"]].concat());
        assert_eq!(files_under(&repo.dir), before, "a dry run removes nothing");
        let people = repo.command(&["forget", "--dry-run"]).args(policy).run().ok();
        people
            .says("web: 4 stay, 2 would go")
            .says("daily 2026-11-19")
            .says("3 recovery points would be removed");
        assert_eq!(files_under(&repo.dir), before);

        let done = forget(&repo, &policy);
        assert_eq!((dry["dry_run"].as_bool(), done["dry_run"].as_bool()), (Some(true), Some(false)));
        assert_eq!(dry["points"], done["points"]);
        assert_eq!(done["time_zone"], "UTC");
        assert_eq!(with_action(&done, "remove"), [&others[0], &ids[2], &ids[4]].map(String::as_str));
        assert_eq!((json::u64(&done, "kept"), json::u64(&done, "removed")), (5, 3), "{done:#}");
        assert_eq!(json::u64(&done, "removed_logical_bytes"), 6 * MIB);
        assert_eq!(json::u64(&done["requests"], "delete"), 3);
        assert_eq!(
            reasons(&done, &ids[5]),
            ["newest of its name", "last 1", "daily 2026-11-20", "monthly 2026-11", "yearly 2026"]
        );
        assert_eq!(reasons(&done, &ids[0]), ["yearly 2024"]);
        assert!(reasons(&done, &ids[2]).is_empty());
        let first = &json::list(&done, "points")[0];
        assert_eq!((&first["name"], json::u64(first, "logical_bytes")), (&Value::from("db"), 2 * MIB));
        assert!(first["tags"].is_object() && first["started_at"].is_string(), "{first:#}");

        assert_eq!(repo.point_ids(), [&others[1], &ids[0], &ids[1], &ids[3], &ids[5]].map(String::as_str));
        let again = forget(&repo, &policy);
        assert_eq!(json::u64(&again, "removed"), 0, "the same again removes nothing: {again:#}");
        restores(&work, &repo, &ids[5], &web);
        restores(&work, &repo, "latest:db", &db);
        repo.verify_is_clean();
    }
}

#[test]
fn time_zones_names_and_tags_choose() {
    let work = Workdir::new("forget-choice");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let late = ["2026-11-20T22:30:00Z", "2026-11-20T23:30:00Z"];
    let (_, web) = nights(&work, &repo, "web", &late);
    let (source, db) = nights(&work, &repo, "db", &late);
    let pinned = repo.backup(&source, "db", &["--time", "2026-11-01T00:00:00Z", "--tag", "pin=audit"]);
    let pinned = json::text(&pinned, "recovery_point");

    let berlin = forget(&repo, &["--keep-daily", "2", "--time-zone", "Europe/Berlin", "-n", "--name", "web"]);
    assert_eq!(json::u64(&berlin, "removed"), 0, "{berlin:#}");
    assert_eq!(json::list(&berlin, "points").len(), 2, "the other name is not spoken of");
    let utc =
        forget(&repo, &["--keep-daily", "2", "--time-zone", "UTC", "-n", "--name", "web", "--name", "db"]);
    assert_eq!(with_action(&utc, "remove"), [&*db[0], &*web[0]]);
    // the machine's own zone, by its environment
    let local = repo.command(&["forget", "--json", "-n", "--keep-daily", "2", "--name", "web"]);
    let local = local.env("TZ", "Europe/Berlin").run().ok().json();
    assert_eq!((json::u64(&local, "removed"), &local["time_zone"]), (0, &Value::from("Europe/Berlin")));

    // a tag keeps; --tag chooses
    let tagged = forget(&repo, &["--keep-last", "1", "--keep-tag", "pin", "--name", "db", "-n"]);
    assert_eq!(with_action(&tagged, "remove"), [&*db[0]]);
    assert_eq!(reasons(&tagged, pinned), ["tag pin=audit"]);
    let chosen = forget(&repo, &["--keep-last", "1", "--tag", "pin=audit", "-n"]);
    assert_eq!(with_action(&chosen, "keep"), [pinned]);
    assert_eq!(json::list(&chosen, "points").len(), 1);

    // a name that is not there is told before anything is removed
    repo.command(&["forget", "--keep-last", "1", "--name", "db", "--name", "dbb"])
        .run()
        .expect(&[code::FAILED])
        .says("dbb");
    assert_eq!(repo.point_ids().len(), 5);
}

#[test]
fn points_of_the_future_crowd_out_nothing() {
    let work = Workdir::new("forget-future");
    let repo = Repo::open(&work, "repo", &[]);
    let (source, mut ids) = nights(&work, &repo, "web", &["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]);
    // A machine whose clock is wrong: `--time` in the future is refused.
    let future = repo
        .backup_command(&source, "web", &[])
        .under(["faketime", "-f", "+1000d"])
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .run()
        .ok()
        .json();
    ids.push(json::text(&future, "recovery_point").to_owned());
    let answer = forget(&repo, &["--keep-last", "1", "--keep-within", "2h"]);
    assert_eq!(with_action(&answer, "remove"), [&*ids[0]]);
    assert_eq!(reasons(&answer, &ids[2]), ["in the future"]);
}

#[test]
fn named_points_go_all_or_none_and_the_last_one_too() {
    let work = Workdir::new("forget-named");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, ids) = nights(&work, &repo, "web", &TIMES);
    let command = |args: &[&str]| repo.command(&["forget"]).args(args).run();
    command(&[&ids[0], "ffffffffffff"]).expect(&[code::FAILED]).says("ffffffffffff");
    command(&[&ids[0], "latest:nobody"]).expect(&[code::FAILED]).says("nobody");
    // ids of 2026 begin alike
    command(&[&ids[0], &ids[4][..3]]).expect(&[code::FAILED]).says("is the beginning of");
    command(&[&ids[0], &ids[0][..2]]).expect(&[code::FAILED]);
    for usage in [
        &[][..],
        &["--dry-run"],
        &["--keep-last", "0"],
        &["latest", "--keep-last", "1"],
        &["latest", "--name", "web"],
        &["--keep-within", "soon"],
        &["--keep-last", "1", "--time-zone", "Mars/Olympus"],
    ] {
        command(usage).expect(&[code::USAGE]);
    }
    assert_eq!(repo.point_ids(), ids);

    let dry = forget(&repo, &["latest", &ids[1], "--dry-run"]);
    assert_eq!(with_action(&dry, "remove"), [&*ids[1], &*ids[5]]);
    assert!(dry["time_zone"].is_null() && json::u64(&dry, "kept") == 0, "{dry:#}");
    assert_eq!(repo.point_ids(), ids);
    // twice the same is once
    let done = forget(&repo, &["latest", &ids[1], "latest:web", &ids[1][..13]]);
    assert_eq!(json::u64(&done, "removed"), 2);
    assert_eq!(repo.point_ids(), [&ids[0], &ids[2], &ids[3], &ids[4]].map(String::as_str));
    command(&[&ids[1]]).expect(&[code::FAILED]).says(&ids[1]);

    command(&[&ids[0], &ids[2], &ids[3], &ids[4]]).ok().says("4 recovery points removed").says("penstock gc");
    assert!(repo.point_ids().is_empty());
    repo.command(&["list"]).run().ok().says("no recovery points");
    repo.command(&["stats"]).run().ok();
    repo.verify_is_clean();
    forget(&repo, &["--keep-last", "1"]);
    // what is stored is found again
    let again = repo.backup(&source, "web", &[]);
    assert_eq!(json::over_volumes(&again, "new_bytes"), 0, "{again:#}");
    assert!(again["parent"].is_null());
    restores(&work, &repo, "latest", &source);
}

/// Parents are hints.
#[test]
fn children_do_without_their_parents() {
    let work = Workdir::new("forget-parent");
    let (repo, to) = (Repo::encrypted(&work, "repo", &[]), Repo::open(&work, "to", &[]));
    let (source, ids) = nights(&work, &repo, "web", &TIMES[..4]);
    repo.command(&["copy", &ids[1], "--to", text(&to.dir)]).run().ok();
    forget(&repo, &[&ids[0], &ids[2]]);
    assert_eq!(repo.show(&ids[3])["parent"], *ids[2]);
    repo.command(&["show", &ids[3]]).run().ok().says(&ids[2]);
    let differ = repo.command(&["diff", &ids[1], &ids[3], "--json"]).run().ok().json();
    assert!(json::u64(&differ, "differing_bytes") > 0);
    repo.command(&["copy", "--all", "--to", text(&to.dir)]).run().ok();
    assert_eq!(to.point_ids(), [&*ids[1], &*ids[3]]);
    restores(&work, &to, &ids[3], &source);
    // forgotten here, it is still there, and comes back if it is copied
    forget(&repo, &[&ids[3]]);
    image::patch_random(&source, MIB, 4096, 9);
    let next = repo.backup(&source, "web", &[]);
    assert_eq!(next["parent"], *ids[1], "the newest that is left: {next:#}");
    restores(&work, &repo, "latest", &source);
    repo.verify_is_clean();
    to.verify_is_clean();
}

#[test]
fn a_damaged_point_goes_only_by_its_id() {
    let work = Workdir::new("forget-damaged");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (_, ids) = nights(&work, &repo, "web", &TIMES);
    let path = repo.dir.join("points").join(&ids[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = repo.command(&["forget", "--keep-last", "2", "--json"]).run().expect(&[code::DAMAGE]);
    let answer = output.json();
    output.says("not removed, since it cannot be read").says(&ids[1]);
    assert_eq!(with_action(&answer, "remove"), [&*ids[0], &*ids[2], &*ids[3]]);
    assert_eq!(json::list(&answer, "damaged").len(), 1);
    assert!(path.exists());
    let named = forget(&repo, &[&ids[1]]);
    assert!(json::list(&named, "points")[0]["name"].is_null(), "{named:#}");
    assert_eq!(repo.point_ids(), [&*ids[4], &*ids[5]]);
    repo.verify_is_clean();
}

/// A backup whose parent, and every other point of its name, goes while it runs; and readers meanwhile.
#[test]
fn beside_a_running_backup() {
    let work = Workdir::new("forget-beside");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let source = work.join("source.img");
    image::dense(&source, 192 * MIB, 2);
    let first = repo.backup_id(&source, "web");
    image::patch_random(&source, 8 * MIB, 96 * MIB, 7);
    let mut backup = repo.backup_command(&source, "web", &[]).spawn();
    assert!(backup.runs_at(Duration::from_millis(150)), "the backup is to be running");
    forget(&repo, &[&first]);
    repo.command(&["list"]).run().ok();
    let done = backup.wait().ok().json();
    assert_eq!(done["parent"], *first, "{done:#}");
    assert_eq!(repo.point_ids(), [json::text(&done, "recovery_point")]);
    restores(&work, &repo, "latest:web", &source);
    repo.verify_is_clean();
}

/// Lists while points go: they are there or they are not, never damaged.
#[test]
fn readers_beside_it_find_no_damage() {
    let work = Workdir::new("forget-readers");
    let repo = Repo::open(&work, "repo", &[]);
    let source = work.join("source.img");
    image::random(&source, 4096, 1);
    for n in 0..40 {
        repo.backup(&source, "web", &["--time", &format!("2026-01-01T00:00:{n:02}Z")]);
    }
    let mut listing: Vec<_> = (0..6).map(|_| repo.command(&["list"]).spawn()).collect();
    let forgetting = [20, 10, 1].map(|n| repo.command(&["forget", "--keep-last", &n.to_string()]).spawn());
    listing.extend((0..6).map(|_| repo.command(&["verify"]).spawn()));
    listing.into_iter().chain(forgetting).for_each(|run| drop(run.wait().ok()));
    assert_eq!(repo.point_ids().len(), 1);
}

/// The cache of one machine does not bring back what another has forgotten.
#[test]
fn in_a_bucket() {
    let work = Workdir::new("forget-s3");
    let server = Seaweed::start(&work.join("s3"));
    let repo = Repo::on_s3(&work, "forget", &server.endpoint(), &[]);
    let (source, ids) = nights(&work, &repo, "web", &TIMES[..4]);
    let other = repo.elsewhere(&work, "other.state");
    assert_eq!(other.point_ids(), ids);
    let answer = forget(&repo, &["--keep-last", "2"]);
    assert_eq!(with_action(&answer, "remove"), [&*ids[0], &*ids[1]]);
    assert_eq!((json::u64(&answer["requests"], "delete"), json::u64(&answer["requests"], "retried")), (2, 0));
    assert_eq!(server.objects(BUCKET, "forget/points/"), 2);
    assert_eq!(other.point_ids(), ids[2..]);
    other.command(&["show", &ids[0]]).run().expect(&[code::FAILED]);
    restores(&work, &other, "latest", &source);
    other.verify_is_clean();
}
