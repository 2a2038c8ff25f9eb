//! Data in archive classes, behind a proxy that answers as S3 does (`penstock_tests::archive`).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use penstock_tests::archive::Archive;
use penstock_tests::cloud::{self, Cloud};
use penstock_tests::penstock::{Penstock, code};
use penstock_tests::repo::Repo;
use penstock_tests::servers::{self, BUCKET, Seaweed};
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, compare, image, json};

const THAW: Duration = Duration::from_secs(4);

/// A repository whose data is archived, with two nights of a disk.
struct Cold {
    repo: Repo,
    archive: Archive,
    server: Seaweed,
    disk: PathBuf,
    first: String,
    second: String,
}

fn cold(work: &Workdir, class: &str) -> Cold {
    let server = Seaweed::start(&work.join("s3"));
    let archive = Archive::start(server.port(), THAW);
    let repo = Repo::in_cloud(work, "cold", "s3")
        .reaching_s3(&archive.endpoint())
        .with_env(&[("PENSTOCK_DATA_CLASS", class)]);
    repo.command(&["init", "--pack-size", "8MiB"]).run().ok();
    let disk = work.join("disk.img");
    image::random(&disk, 96 * MIB, 5);
    let first = repo.backup_id(&disk, "disk");
    image::patch_random(&disk, 8 * MIB, 3 * MIB, 9);
    let second = repo.backup_id(&disk, "disk");
    Cold { repo, archive, server, disk, first, second }
}

/// The events of a kind among the lines of standard error.
fn events(stderr: &str, kind: &str) -> Vec<Value> {
    let lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|event| event["event"] == kind).collect()
}

/// Writers never read data, so that archived data is in nobody's way.
#[test]
fn backups_and_reports_work_on_archived_data() {
    let work = Workdir::new("cold-backups");
    let cold = cold(&work, "glacier");
    let packs = cold.archive.archived("/data/");
    assert!(packs >= 10, "{packs}");
    assert_eq!(cold.archive.archived(""), packs, "only data packs are archived");
    assert_eq!(cold.archive.take_counts().read, 0);

    // another machine, without a cache or a parent: every chunk is looked up
    let elsewhere = cold.repo.elsewhere(&work, "other.state");
    let night = elsewhere.backup(&cold.disk, "other", &["--no-parent"]);
    assert_eq!(json::over_volumes(&night, "stored_bytes"), 0, "{night:#}");
    image::patch_random(&cold.disk, 20 * MIB, MIB, 77);
    cold.repo.backup_id(&cold.disk, "disk");
    for verb in
        [&["list"][..], &["stats"], &["show", "latest"], &["diff", &cold.first, &cold.second], &["doctor"]]
    {
        cold.repo.command(verb).run().ok();
    }
    let counts = cold.archive.take_counts();
    assert!(counts.refused <= 4, "hints are looked for in archived packs: {counts:?}");

    // structure can be verified, data cannot, and nothing is thawed for it
    let verified = cold.repo.command(&["verify", "--json"]).run().ok().json();
    assert_eq!(
        json::u64(&verified, "archived_packs"),
        cold.archive.archived("/data/") as u64,
        "{verified:#}"
    );
    let read = cold.repo.command(&["verify", "--read-data"]).run().expect(&[code::IN_PART]);
    read.says("not readable now").says("nothing is damaged");
    assert_eq!(cold.archive.take_counts().thaws, 0);
    // metadata is read in full all the same, and a pack that is gone is told
    let list = cold.server.ask("GET", &format!("/{BUCKET}?list-type=2&prefix=cold/data/"), &[], "");
    let key =
        list.body.split("<Key>").nth(1).and_then(|part| part.split("</Key>").next()).unwrap().to_owned();
    cold.server.ask("DELETE", &format!("/{BUCKET}/{key}"), &[], "");
    let hurt = cold.repo.command(&["verify"]).run().expect(&[code::DAMAGE]);
    hurt.says(key.trim_start_matches("cold/"));
}

/// Nor of an instance's volumes that are read by calls: what is unchanged in a chunk comes from the snapshot then.
#[test]
fn nights_by_calls_work_on_archived_data() {
    let work = Workdir::new("cold-ec2");
    let cold = cold(&work, "GLACIER");
    let root = work.join("root.img");
    image::mixed(&root, 24 * MIB, 1);
    let cloud = Cloud::of_images(cloud::options(&work), "web-01", &[&root]);
    let (id, secret) = (servers::KEY_ID.to_owned(), servers::SECRET.to_owned());
    cloud.lab.access.add_key(penstock_lab::Key { id, secret, ..penstock_lab::Key::default() });
    let with_keys = |command: Penstock| {
        command.env("AWS_ACCESS_KEY_ID", servers::KEY_ID).env("AWS_SECRET_ACCESS_KEY", servers::SECRET)
    };
    let night = || {
        let command = cloud.backup_command(&cold.repo, &["--read", "direct"]);
        with_keys(command).run().ok().json()[0].clone()
    };
    night();
    cloud.lab.volume_write(&cloud.web.volumes[0], 5 * MIB + 1000, &[1; 70_000]).unwrap();
    cold.archive.take_counts();
    let second = night();
    let plan = with_keys(cloud.command(&cold.repo, &["plan", &cloud.web.instance])).run().ok();
    plan.says("as much as changed");
    let counts = cold.archive.take_counts();
    assert!(counts.read == 0 && counts.thaws == 0 && counts.refused <= 80, "{counts:?}");
    let plain = work.join("plain.img");
    cloud.lab.volume_export(&cloud.web.volumes[0], &plain).unwrap();
    let plain = cold.repo.backup(&plain, "plain", &["--no-parent"]);
    let root = |report: &Value| cold.repo.root(json::text(report, "recovery_point"), 0);
    assert_eq!((root(&second), json::over_volumes(&plain, "new_chunks")), (root(&plain), 0));
}

/// What has to be thawed is found before anything is written; it is priced, asked for once, waited for, and then restored.
#[test]
fn a_restore_thaws_what_it_needs() {
    let work = Workdir::new("cold-restore");
    let cold = cold(&work, "GLACIER");
    let packs = cold.archive.archived("/data/");
    let target = work.join("target.img");
    let said = cold.repo.command(&["restore", &cold.second, target.to_str().unwrap()]).run();
    let said =
        said.expect(&[code::ARCHIVED]).says("5 to 12 hours").says("3 to 5 hours").says("1 to 5 minutes");
    let command = format!("restore {} {} --key-file", cold.second, target.display());
    said.says(&command).says("--thaw standard --thaw-wait").says("nothing was restored");
    assert!(!target.exists(), "the target was touched");
    let counts = cold.archive.take_counts();
    assert_eq!((counts.thaws, counts.refused), (0, 0), "{counts:?}");

    let json = cold.repo.restore_command(&cold.second, &target, &[]).run().expect(&[code::ARCHIVED]);
    let event = &events(&json.stderr, "archived")[0];
    assert!(json::u64(event, "packs") as usize <= packs && json::u64(event, "bytes") > 90 * MIB, "{event:#}");
    assert_eq!(event["classes"]["GLACIER"], event["packs"], "{event:#}");
    let offers = event["offers"].as_array().unwrap();
    assert!(offers.len() == 3 && offers[0]["usd"].as_f64() < offers[2]["usd"].as_f64(), "{event:#}");
    assert_eq!(events(&json.stderr, "error")[0]["kind"], "archived");

    // asked for, and no more; asking again is no failure
    let wanted = json::u64(event, "packs") as usize;
    let thaw = ["--thaw", "expedited", "--thaw-days", "2"];
    let asked = cold.repo.restore_command(&cold.second, &target, &thaw).run();
    asked.expect(&[code::ARCHIVED]).says("run the same command again");
    assert_eq!(cold.archive.take_counts().thaws, wanted);
    let waits = cold.repo.restore_command(&cold.second, &target, &["--thaw", "expedited", "--thaw-wait"]);
    let waits = waits.run().ok();
    assert!(!events(&waits.stderr, "thawing").is_empty(), "{}", waits.show());
    assert!(waits.duration > Duration::from_secs(1), "it did not wait");
    compare::assert_identical(&cold.disk, &target, "thawed");
    let counts = cold.archive.take_counts();
    assert_eq!(
        (counts.thaws, counts.refused),
        (0, 0),
        "what is under way is not asked for again: {counts:?}"
    );

    // while the copies last nothing has to be asked for
    let again = work.join("again.img");
    cold.repo.restore(&cold.second, &again, &[]);
    compare::assert_identical(&cold.disk, &again, "from thawed copies");

    // what changed since a point that the target holds takes few packs
    cold.archive.freeze();
    let base = ["--base", &cold.second, "--json", "--force"];
    let some = cold.repo.command(&["restore", &cold.first, again.to_str().unwrap()]).args(base).run();
    let some = some.expect(&[code::ARCHIVED]);
    let few = json::u64(&events(&some.stderr, "archived")[0], "packs") as usize;
    assert!(few >= 1 && few * 4 < packs, "{few} of {packs}");
    cold.archive.take_counts();
    let command = cold.repo.command(&["restore", &cold.first, again.to_str().unwrap()]).args(base);
    command.args(["--thaw", "standard", "--thaw-wait"]).run().ok();
    assert_eq!(cold.archive.take_counts().thaws, few);
    image::random(&cold.disk, 96 * MIB, 5);
    compare::assert_identical(&cold.disk, &again, "back to the first night");
}

/// Other classes, and what is refused.
#[test]
fn classes_have_their_own_speeds() {
    let work = Workdir::new("cold-deep");
    let cold = cold(&work, "DEEP_ARCHIVE");
    let target = work.join("target.img");
    let path = target.to_str().unwrap();
    let said = cold.repo.command(&["restore", "latest", path]).run().expect(&[code::ARCHIVED]);
    let said = said.says("up to 48 hours").says("up to 12 hours");
    assert!(!said.show().contains("minutes"), "{}", said.show());
    let expedited = cold.repo.command(&["restore", "latest", path, "--thaw", "expedited"]).run();
    expedited.expect(&[code::USAGE]).says("no such speed");
    assert_eq!(cold.archive.take_counts().thaws, 0);
    // to a pipe as well
    let piped = work.join("piped.img");
    let to_stdout = ["restore", &cold.second, "-", "--thaw", "bulk", "--thaw-wait"];
    cold.repo.command(&to_stdout).stdout(&piped).run().ok();
    compare::assert_identical(&cold.disk, &piped, "to standard output");

    for (url, class) in [("az://c/x", "Archive"), ("gs://b/x", "GLACIER")] {
        let repo = Repo { dir: url.into(), ..cold.repo.clone() };
        repo.command(&["list", "--data-class", class]).run().expect(&[code::USAGE]).says("--data-class");
    }
}

/// A lifecycle rule archived some packs and nobody told the program: a restore says so, at its start or when it meets one, and goes on later.
#[test]
fn what_a_lifecycle_rule_archived_is_found() {
    let work = Workdir::new("cold-rule");
    let server = Seaweed::start(&work.join("s3"));
    let archive = Archive::start(server.port(), Duration::from_secs(1));
    let repo = Repo::in_cloud(&work, "rule", "s3").reaching_s3(&archive.endpoint());
    repo.command(&["init", "--pack-size", "8MiB"]).run().ok();
    let disk = work.join("disk.img");
    // 80 segments, of which the start looks at 16; a pack holds two
    image::random(&disk, 320 * MIB, 5);
    repo.backup(&disk, "disk", &["--workers", "1"]);
    assert_eq!(archive.archived(""), 0);
    let list = server.ask("GET", &format!("/{BUCKET}?list-type=2&prefix=rule/data/"), &[], "");
    let keys = list.body.split("<Key>").skip(1).filter_map(|part| part.split("</Key>").next());
    let paths: Vec<String> = keys.map(|key| format!("/{BUCKET}/{key}")).collect();
    assert!(paths.len() >= 35, "{paths:?}");
    let (mut found_at_start, mut met) = (0, 0);
    for path in &paths {
        if found_at_start > 0 && met > 0 {
            break;
        }
        archive.move_only(path, "GLACIER");
        let target = work.join("target.img");
        let args = ["restore", "latest", target.to_str().unwrap()];
        let said = repo.command(&args).run().expect(&[code::ARCHIVED]).says("--thaw standard --thaw-wait");
        let mut again = repo.command(&args).args(["--thaw", "standard", "--thaw-wait"]);
        if target.exists() {
            met += 1;
            said.says("--resume");
            again = again.arg("--resume");
        } else {
            found_at_start += 1;
        }
        again.run().ok();
        compare::assert_identical(&disk, &target, path);
        std::fs::remove_file(&target).unwrap();
    }
    assert!(found_at_start > 0 && met > 0, "{found_at_start} found at the start, {met} met while restoring");
}
