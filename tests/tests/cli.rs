//! The command line's contract: help, exit codes, JSON fields, names of points, secrets, several writers.

use serde_json::Value;

use penstock_tests::penstock::{Penstock, code};
use penstock_tests::repo::{Access, Repo, ids_in};
use penstock_tests::workdir::{Workdir, files_under, text};
use penstock_tests::{MIB, compare, image, json};

/// Verbs of this version. A verb that is added to the program is added here.
const VERBS: [&str; 15] = [
    "init",
    "backup",
    "list",
    "show",
    "diff",
    "restore",
    "verify",
    "repair",
    "copy",
    "forget",
    "stats",
    "doctor",
    "demo",
    "completions",
    "man",
];

fn two_points(work: &Workdir) -> (Repo, [String; 2]) {
    let repo = Repo::encrypted(work, "repo", &[]);
    let source = work.join("source.img");
    image::mixed(&source, 9 * MIB, 1);
    let first = repo.backup_id(&source, "web-1");
    image::patch_random(&source, MIB, 8192, 5);
    let second = repo.backup_id(&source, "db-1");
    (repo, [first, second])
}

#[test]
fn help_and_version() {
    let work = Workdir::new("help");
    let run = |args: &[&str]| Penstock::new(&work.join("state")).args(args).run();
    let all = run(&["--help"]).ok().text();
    for verb in VERBS {
        assert!(all.contains(verb), "{verb} is not in --help:\n{all}");
        let help = run(&[verb, "--help"]).ok();
        let help = help.text();
        assert!(help.contains("Usage:"), "{verb}:\n{help}");
        let mentions = help.matches(&format!("penstock {verb}")).count();
        assert!(mentions >= 2, "no example of {verb} beside its usage line:\n{help}");
    }
    assert!(run(&["--version"]).ok().text().contains("penstock"), "--version");
}

#[test]
fn usage_errors_exit_with_2() {
    let work = Workdir::new("usage");
    let repo = Repo::open(&work, "repo", &[]);
    let source = work.join("source.img");
    image::random(&source, 4096, 1);
    let (source, fresh) = (text(&source), work.join("fresh"));
    let fresh = text(&fresh);
    for args in [
        &["no-such-verb"][..],
        &["backup"],
        &["backup", source],
        &["list", "--no-such-option"],
        &["restore", "latest"],
        &["backup", source, "--name", "x", "--io-engine", "telepathy"],
        &["backup", source, "--name", "x", "--workers", "many"],
        &["backup", source, "--name", "x", "--parent", "latest", "--no-parent"],
        &["backup", source, source, "--name", "x", "--changed-extents", source],
        &["backup", source, "--name", "a/b"],
        &["restore", "latest", "-", "--resume"],
        &["restore", "latest", "target", "--base", "latest", "--compare"],
        &["verify", "--sample", "5%"],
        &["list", "-q", "-v"],
        &["init", "--chunker", "magic"],
        &["init", "--repo", fresh, "--insecure-no-encryption", "--chunk-size", "5000"],
        &["init", "--compression", "20"],
    ] {
        repo.command(args).run().expect(&[code::USAGE]);
    }
    Penstock::new(&work.join("state")).args(["list"]).run().expect(&[code::USAGE]).says("--repo");
    assert!(repo.point_ids().is_empty());
    assert!(!work.join("fresh").join("config").exists());
}

#[test]
fn failures_have_their_own_exit_codes() {
    let work = Workdir::new("codes");
    let (repo, [first, _]) = two_points(&work);
    let target = work.join("target.img");
    repo.restore_command("ffffffffffffffff", &target, &[])
        .run()
        .expect(&[code::FAILED])
        .says("ffffffffffffffff");
    repo.restore_command(&format!("{first}/no-such-volume"), &target, &[])
        .run()
        .expect(&[code::FAILED])
        .says("no-such-volume");
    repo.restore_command("latest:nobody", &target, &[]).run().expect(&[code::FAILED]).says("nobody");
    assert!(!target.exists(), "a restore that cannot start leaves no target");
    let gone = repo.backup_command(&work.join("gone.img"), "web-1", &[]).run();
    gone.expect(&[code::FAILED, code::USAGE]).says("gone.img");
    assert_eq!(repo.point_ids().len(), 2);
}

/// Every field that programs may rely on, with the type they may rely on.
#[test]
fn backup_and_restore_answers_have_all_fields() {
    let work = Workdir::new("fields");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    image::mixed(&source, 9 * MIB, 1);
    let answer = repo.backup(&source, "host", &["--tag", "env=prod", "--tag", "team=blue"]);
    for key in ["recovery_point", "name", "started_at", "io_engine"] {
        json::text(&answer, key);
    }
    for key in ["duration_ms", "read_bytes_per_s", "cpu_ms", "memory_peak_bytes"] {
        json::u64(&answer, key);
    }
    assert!(["source", "cpu", "store"].contains(&json::text(&answer, "bottleneck")), "{answer:#}");
    assert!(["uring", "pread"].contains(&json::text(&answer, "io_engine")), "{answer:#}");
    assert!(json::text(&answer, "started_at").contains('T'), "not RFC 3339: {answer:#}");
    let volume = &json::list(&answer, "volumes")[0];
    assert_eq!(json::text(volume, "name"), "source.img");
    let numbers = [
        "size_bytes",
        "read_bytes",
        "zero_bytes",
        "reused_bytes",
        "chunks",
        "new_chunks",
        "new_bytes",
        "stored_bytes",
    ];
    for key in numbers {
        json::u64(volume, key);
    }
    // every byte is zero, reused or new
    let parts = ["zero_bytes", "reused_bytes", "new_bytes"].map(|key| json::u64(volume, key));
    assert_eq!(parts.iter().sum::<u64>(), json::u64(volume, "size_bytes"), "{volume:#}");
    for key in ["get", "put", "list", "delete", "retried"] {
        json::u64(&answer["requests"], key);
    }
    let shown = repo.show("latest");
    assert_eq!(shown["tags"]["env"], "prod", "{shown:#}");
    assert_eq!(shown["tags"]["team"], "blue", "{shown:#}");

    let answer = repo.restore("latest", &target, &[]);
    assert_eq!(json::text(&answer, "recovery_point"), json::text(&shown, "id"));
    assert_eq!(json::text(&answer, "volume"), "source.img");
    for key in [
        "size_bytes",
        "written_bytes",
        "skipped_zero_bytes",
        "skipped_same_bytes",
        "fetched_bytes",
        "duration_ms",
    ] {
        json::u64(&answer, key);
    }
    let parts = ["written_bytes", "zeroed_bytes", "skipped_zero_bytes"].map(|key| json::u64(&answer, key));
    assert_eq!(parts.iter().sum::<u64>(), 9 * MIB, "a fresh file is written or left a hole: {answer:#}");
}

/// With `--json`, standard error is JSON lines (or nothing) as long as nothing goes wrong.
#[test]
fn progress_is_json_lines() {
    let work = Workdir::new("progress");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let source = work.join("source.img");
    image::dense(&source, 128 * MIB, 1);
    let output = repo.backup_command(&source, "host", &[]).run().ok();
    output.json();
    for line in output.stderr.lines().filter(|line| !line.is_empty()) {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{line:?} is not JSON: {e}"));
    }
    // without a terminal there is no bar: no escape sequences anywhere
    let plain = repo.command(&["backup", text(&source), "--name", "host"]).run().ok();
    assert!(!plain.text().contains('\x1b') && !plain.stderr.contains('\x1b'), "{}", plain.show());
}

#[test]
fn points_are_named_in_four_ways() {
    let work = Workdir::new("names");
    let (repo, [first, second]) = two_points(&work);
    let id_of = |name: &str| json::text(&repo.show(name), "id").to_owned();
    assert_eq!(id_of("latest"), second);
    assert_eq!(id_of("latest:web-1"), first);
    assert_eq!(id_of(&first), first);
    // ids begin with the time, so a prefix that tells two points apart may be long
    let common = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    assert_eq!(id_of(&first[..common + 1]), first);
    if common > 0 {
        let ambiguous = repo.command(&["show", &first[..common]]).run();
        ambiguous.expect(&[code::FAILED, code::USAGE]).says(&second[..common + 1]);
    }
    assert_eq!(repo.point_ids(), [first, second], "oldest first");
}

#[test]
fn list_show_diff_stats_for_people_and_programs() {
    let work = Workdir::new("outputs");
    let (repo, [first, second]) = two_points(&work);
    let list = repo.command(&["list"]).run().ok().text();
    assert!(list.contains("web-1") && list.contains("db-1"), "{list}");
    assert!(list.contains("MiB"), "sizes are printed in IEC units:\n{list}");
    let show = repo.command(&["show", "latest"]).run().ok().text();
    assert!(show.contains(&second[..12]) && show.contains("source.img") && show.contains("db-1"), "{show}");
    assert_eq!(ids_in(&repo.command(&["list", "--json"]).run().ok().json()), [first.clone(), second.clone()]);

    let diff = repo.command(&["diff", &first, &second, "--json"]).run().ok().json();
    let differing = json::u64(&json::list(&diff, "volumes")[0], "differing_bytes");
    assert!((8192..=MIB).contains(&differing), "two blocks differ: {diff:#}");
    let same = repo.command(&["diff", &first, &first, "--json"]).run().ok().json();
    assert_eq!(json::u64(&json::list(&same, "volumes")[0], "differing_bytes"), 0, "{same:#}");
    repo.command(&["diff", &first, &second]).run().ok();

    let stats = repo.command(&["stats", "--json"]).run().ok().json();
    assert_eq!(json::u64(&stats, "points"), 2, "{stats:#}");
    assert_eq!(json::u64(&stats, "logical_bytes"), 18 * MIB, "{stats:#}");
    let (unique, stored) = (json::u64(&stats, "unique_bytes"), json::u64(&stats, "stored_bytes"));
    assert!(unique > 0 && unique < 10 * MIB, "{stats:#}");
    assert!(stored > 0 && stored <= unique + MIB, "{stats:#}");
    assert_eq!(json::list(&stats, "names").len(), 2, "{stats:#}");
    let people = repo.command(&["stats"]).run().ok().text();
    assert!(people.contains("MiB"), "{people}");
}

/// `list NAME` is of one machine.
#[test]
fn list_of_one_name() {
    let work = Workdir::new("list-name");
    let (repo, [first, _]) = two_points(&work);
    assert_eq!(ids_in(&repo.command(&["list", "web-1", "--json"]).run().ok().json()), [first]);
    assert!(ids_in(&repo.command(&["list", "nobody", "--json"]).run().ok().json()).is_empty());
}

#[test]
fn doctor_completions_and_manual() {
    let work = Workdir::new("helpers");
    let (repo, _) = two_points(&work);
    let bare = |args: &[&str]| Penstock::new(&work.join("state")).args(args).run();
    let healthy = repo.command(&["doctor", "--json"]).run().ok().json();
    assert_eq!(healthy["healthy"], true, "{healthy:#}");
    assert!(!json::list(&healthy, "checks").is_empty());
    bare(&["doctor"]).ok().says("io_uring");
    let wrong = Repo { access: Access::Password("wrong".into()), ..repo };
    wrong.command(&["doctor"]).run().expect(&[code::FAILED]);
    for shell in ["bash", "zsh", "fish"] {
        bare(&["completions", shell]).ok().says("changed-extents");
    }
    bare(&["man"]).ok().says("penstock");
    let dir = work.join("man");
    bare(&["man", "--dir", text(&dir)]).ok();
    assert!(dir.join("penstock-backup.1").is_file());
}

/// `init` says what it made; every parameter it was given is kept.
#[test]
fn init_answers() {
    let work = Workdir::new("init");
    let repo = Repo::at(&work.join("deep/er/repo"), &work.join("state"), Access::Open);
    let args = ["init", "--insecure-no-encryption", "--chunker", "fastcdc", "--chunk-size", "128KiB"];
    let init =
        repo.command(&args).args(["--pack-size", "16MiB", "--compression", "-5", "--json"]).run().ok().json();
    assert_eq!(json::text(&init, "encryption"), "none");
    assert_eq!(json::text(&init, "chunker"), "fastcdc");
    assert_eq!(json::text(&init, "compression"), "-5");
    assert_eq!([json::u64(&init, "chunk_bytes"), json::u64(&init, "pack_bytes")], [128 << 10, 16 * MIB]);
    assert_eq!(json::text(&init, "repository_id").len(), 32);
}

/// Standard output that nobody reads any more is no failure, and no panic.
#[test]
fn a_closed_pipe_is_quiet() {
    let work = Workdir::new("pipe");
    let (repo, _) = two_points(&work);
    let Access::KeyFile(key) = &repo.access else { panic!("an encrypted repository") };
    let line = format!(
        "set -o pipefail; '{}' --repo '{}' --key-file '{}' restore latest - 2>'{}' | head -c 10 | wc -c",
        penstock_tests::penstock::binary().display(),
        text(&repo.dir),
        text(key),
        text(&work.join("stderr")),
    );
    let _ = penstock_tests::tools::attempt("bash", &["-c", &line]);
    let stderr = std::fs::read_to_string(work.join("stderr")).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// An empty repository is not an error.
#[test]
fn an_empty_repository() {
    let work = Workdir::new("empty");
    let repo = Repo::encrypted(&work, "repo", &[]);
    assert!(repo.point_ids().is_empty());
    repo.command(&["list"]).run().ok();
    repo.command(&["stats"]).run().ok();
    repo.verify_is_clean();
    repo.restore_command("latest", &work.join("target.img"), &[]).run().expect(&[code::FAILED]).says("no");
}

#[test]
fn secrets_are_never_in_the_output() {
    let work = Workdir::new("secrets");
    let password = "hunter2-do-not-print-me";
    let repo = Repo::init(&work, "repo", Access::Password(password.into()), &[]);
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    image::mixed(&source, 5 * MIB, 1);
    let mut outputs = vec![
        repo.backup_command(&source, "host", &["-vv"]).run().ok(),
        repo.command(&["list", "-vv"]).run().ok(),
        repo.restore_command("latest", &target, &["-vv"]).run().ok(),
        repo.command(&["verify", "--read-data", "-vv"]).run().ok(),
        repo.command(&["stats", "-vv"]).run().ok(),
        repo.command(&["--help"]).run().ok(),
        repo.command(&["backup", "--help"]).run().ok(),
        repo.command(&["backup"]).run().expect(&[code::USAGE]),
        repo.backup_command(&work.join("gone.img"), "host", &["-vv"])
            .run()
            .expect(&[code::FAILED, code::USAGE]),
    ];
    let wrong = Repo { access: Access::Password(format!("{password}-wrong")), ..repo.clone() };
    outputs.push(wrong.command(&["list", "-vv"]).run().expect(&[code::WRONG_KEY]));
    for output in &outputs {
        assert!(
            !output.stderr.contains(password) && !output.text().contains(password),
            "a secret: {}",
            output.show()
        );
    }
    for dir in [&repo.dir, &repo.state] {
        for file in files_under(dir) {
            let bytes = std::fs::read(dir.join(&file)).unwrap();
            let found = bytes.windows(password.len()).any(|window| window == password.as_bytes());
            assert!(!found, "the passphrase is in {}", file.display());
        }
    }
}

/// Encrypted means that nothing of the contents, nor names, can be read from the objects.
#[test]
fn nothing_readable_is_stored() {
    let work = Workdir::new("opaque");
    let repo = Repo::encrypted(&work, "repo", &["--compression", "off"]);
    let source = work.join("very-secret-volume.img");
    let marker = b"the quick brown fox jumps over the lazy dog";
    std::fs::write(&source, marker.repeat(50_000)).unwrap();
    repo.backup(&source, "very-secret-host", &["--tag", "owner=very-secret-person"]);
    for file in files_under(&repo.dir) {
        let bytes = std::fs::read(repo.dir.join(&file)).unwrap();
        for needle in [&marker[..], b"very-secret"] {
            assert!(
                !bytes.windows(needle.len()).any(|window| window == needle),
                "readable in {}",
                file.display()
            );
        }
    }
}

#[test]
fn two_backups_at_once_into_one_repository() {
    let work = Workdir::new("concurrent");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let names = ["one", "two", "three"];
    let images = names.map(|name| work.join(&format!("{name}.img")));
    for (n, image) in images.iter().enumerate() {
        image::dense(image, 64 * MIB, n as u64);
        // and 32 MiB that all of them have
        image::patch_random(image, 16 * MIB, 32 * MIB, 99);
    }
    let running: Vec<_> = names
        .iter()
        .zip(&images)
        .map(|(name, image)| repo.backup_command(image, name, &[]).spawn())
        .collect();
    for backup in running {
        backup.wait().ok();
    }
    assert_eq!(repo.point_ids().len(), 3);
    for (name, image) in names.iter().zip(&images) {
        let target = work.join("target.img");
        penstock_tests::workdir::remove_if_there(&target);
        repo.restore(&format!("latest:{name}"), &target, &[]);
        compare::assert_identical(image, &target, name);
    }
    repo.verify_is_clean();
}

/// A restore, a verify and a list beside a running backup.
#[test]
fn readers_beside_a_writer() {
    let work = Workdir::new("readers");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (small, big, target) = (work.join("small.img"), work.join("big.img"), work.join("target.img"));
    image::mixed(&small, 16 * MIB, 1);
    image::dense(&big, 256 * MIB, 2);
    let point = repo.backup_id(&small, "small");
    let mut backup = repo.backup_command(&big, "big", &[]).spawn();
    while !backup.ended() {
        repo.restore(&point, &target, &["--force"]);
        compare::assert_identical(&small, &target, "beside a backup");
        repo.verify_is_clean();
        repo.point_ids();
    }
    backup.wait().ok();
    repo.verify_is_clean();
}

/// `--time`, in RFC 3339, is the time the contents stand for.
#[test]
fn a_time_can_be_given() {
    let work = Workdir::new("time");
    let repo = Repo::open(&work, "repo", &[]);
    let source = work.join("source.img");
    image::random(&source, 4096, 1);
    repo.backup(&source, "host", &["--time", "2024-02-29T12:30:00Z"]);
    let shown = repo.show("latest");
    assert!(json::text(&shown, "started_at").starts_with("2024-02-29T12:30:00"), "{shown:#}");
    repo.backup_command(&source, "host", &["--time", "yesterday"])
        .run()
        .expect(&[code::FAILED, code::USAGE])
        .says("yesterday");
}
