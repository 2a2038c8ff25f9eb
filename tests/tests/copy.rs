//! Recovery points copied to another repository: the same bytes, only what is missing, and nothing published that is not whole.

use std::fs;
use std::path::Path;
use std::time::Instant;

use penstock_tests::damage::Kind;
use penstock_tests::penstock::{Penstock, code};
use penstock_tests::repo::{Access, Repo};
use penstock_tests::servers::Seaweed;
use penstock_tests::workdir::{Workdir, bytes_under, remove_if_there, text};
use penstock_tests::{KIB, MIB, compare, image, json};
use serde_json::Value;

/// `copy --json` from one repository to another.
fn copy_command(from: &Repo, to: &Repo, args: &[&str]) -> Penstock {
    let command = from.command(&["copy", "--json", "--to", text(&to.dir)]).args(args);
    let command = to.env.iter().fold(command, |command, (name, value)| command.env(name, value));
    match &to.access {
        Access::KeyFile(path) => command.arg("--to-key-file").arg(path),
        Access::Password(password) => command.env("PENSTOCK_TO_PASSWORD", password),
        Access::Open => command,
    }
}

#[track_caller]
fn copy(from: &Repo, to: &Repo, args: &[&str]) -> Value {
    copy_command(from, to, args).run().ok().json()
}

#[track_caller]
fn restores(work: &Workdir, repo: &Repo, point: &str, image: &Path, context: &str) {
    let target = work.join("restored.img");
    remove_if_there(&target);
    repo.restore(point, &target, &[]);
    compare::assert_identical(image, &target, context);
}

fn puts(answer: &Value) -> u64 {
    json::u64(&answer["destination"]["requests"], "put")
}

#[test]
fn a_copy_of_a_copy_of_a_copy_is_the_same_whatever_the_keys() {
    for chunker in ["block", "fastcdc"] {
        let work = Workdir::new("copy-keys");
        let init = ["--chunker", chunker];
        let chain = [
            Repo::encrypted(&work, "a", &init),
            Repo::open(&work, "b", &[&init[..], &["--compression", "off"]].concat()),
            Repo::init(
                &work,
                "c",
                Access::Password("second".into()),
                &[&init[..], &["--chunk-size", "128KiB"]].concat(),
            ),
            Repo::encrypted(&work, "d", &[&init[..], &["--pack-size", "8MiB"]].concat()),
        ];
        let source = work.join("source.img");
        image::mixed(&source, 48 * MIB + 4096 + 512, 7);
        let made = chain[0].backup(&source, "host", &["--tag", "env=prod", "--time", "2026-01-02T03:04:05Z"]);
        let id = json::text(&made, "recovery_point").to_owned();
        let first = chain[0].show(&id);
        for pair in chain.windows(2) {
            let answer = copy(&pair[0], &pair[1], &[&id]);
            assert_eq!(json::u64(&answer, "copied"), 1, "{answer:#}");
            assert_eq!(json::u64(&answer, "new_bytes"), json::over_volumes(&made, "new_bytes"), "{answer:#}");
            // payloads go on as they were compressed, whatever the destination would have chosen
            let stored = json::u64(&answer, "stored_bytes");
            assert!(stored.abs_diff(json::over_volumes(&made, "stored_bytes")) < 64 * KIB, "{answer:#}");
            assert!(json::u64(&answer, "memory_peak_bytes") < 256 * MIB, "{answer:#}");
            restores(&work, &pair[1], &id, &source, chunker);
            pair[1].verify_is_clean();
            let shown = pair[1].show(&id);
            for field in ["id", "name", "started_at", "finished_at", "tags", "host", "program", "parent"] {
                assert_eq!(shown[field], first[field], "{field}");
            }
            assert_eq!(shown["copied_from"]["recovery_point"], id.as_str());
            assert_ne!(shown["volumes"][0]["root"], first["volumes"][0]["root"], "names differ by keys");
        }
    }
}

#[test]
fn the_next_copy_reads_and_sends_what_differs() {
    let work = Workdir::new("copy-next");
    let (from, to) = (Repo::encrypted(&work, "from", &[]), Repo::open(&work, "to", &[]));
    let source = work.join("source.img");
    image::dense(&source, 96 * MIB, 1);
    let first_id = from.backup_id(&source, "host");
    let first = copy(&from, &to, &["--all"]);
    assert!(json::u64(&first, "read_bytes") > 40 * MIB, "{first:#}");
    for (n, offset) in [3 * MIB + 77, 50 * MIB, 95 * MIB].into_iter().enumerate() {
        image::patch_random(&source, offset, 10_000, 100 + n as u64);
    }
    let second_id = from.backup_id(&source, "host");
    let (before, of_source) = (bytes_under(&to.dir), bytes_under(&from.dir));
    let second = copy(&from, &to, &["--all"]);
    assert_eq!((json::u64(&second, "copied"), json::u64(&second, "already_there")), (1, 1));
    let point = &json::list(&second, "points")[1];
    assert_eq!(json::text(point, "compared_with"), first_id);
    let (read, stored) = (json::u64(&second, "read_bytes"), json::u64(&second, "stored_bytes"));
    assert!((30_000..3 * MIB).contains(&stored), "{second:#}");
    assert!(read < 6 * MIB, "only changed chunks are read: {second:#}");
    assert!(bytes_under(&to.dir) - before < stored + 256 * KIB);
    assert_eq!(bytes_under(&from.dir), of_source, "the source is only read");
    assert_eq!(json::u64(&second["source"]["requests"], "put"), 0, "{second:#}");
    restores(&work, &to, &second_id, &source, "second");

    let before = bytes_under(&to.dir);
    let third = copy(&from, &to, &["--all"]);
    assert_eq!((json::u64(&third, "copied"), json::u64(&third, "already_there")), (0, 2), "{third:#}");
    assert_eq!((puts(&third), json::u64(&third, "read_bytes")), (0, 0), "{third:#}");
    assert_eq!(bytes_under(&to.dir), before);
    assert_eq!(to.point_ids(), [first_id, second_id]);
    to.verify_is_clean();
}

#[test]
fn what_the_destination_has_is_not_sent() {
    let work = Workdir::new("copy-dedup");
    let (from, to) = (Repo::encrypted(&work, "from", &[]), Repo::encrypted(&work, "to", &[]));
    let source = work.join("source.img");
    image::mixed(&source, 40 * MIB, 3);
    from.backup(&source, "one", &[]);
    from.backup(&source, "two", &[]);
    copy(&from, &to, &["--name", "one"]);
    let same = copy(&from, &to, &["--name", "two"]);
    assert_eq!(json::u64(&same, "new_chunks"), 0, "{same:#}");
    restores(&work, &to, "latest:two", &source, "two");

    // a repository that began as a copy of the objects names chunks alike: what is there is not even read
    let twin = from.copy(&work, "twin");
    image::patch_random(&source, 9 * MIB, 3 * MIB, 5);
    let id = from.backup_id(&source, "three");
    let answer = copy(&from, &twin, &["latest"]);
    assert!(json::u64(&answer, "read_bytes") < 6 * MIB, "{answer:#}");
    assert_eq!(from.root(&id, 0), twin.root(&id, 0));
    restores(&work, &twin, &id, &source, "twin");
}

#[test]
fn volumes_of_all_shapes() {
    let work = Workdir::new("copy-shapes");
    let (from, to) = (Repo::encrypted(&work, "from", &[]), Repo::open(&work, "to", &[]));
    let names = ["one.img", "zeros.img", "tiny.img", "segment.img", "wide.img"];
    let images = names.map(|name| work.join(name));
    fs::write(&images[0], b"1").unwrap();
    image::zeros(&images[1], 9 * MIB);
    image::random(&images[2], 1000, 1);
    image::mixed(&images[3], 4 * MIB, 2);
    // more than one group of 256 segments, with holes of whole groups
    image::sparse(
        &images[4],
        5000 * MIB + 512,
        &[(0, MIB, 3), (2500 * MIB, 300 * KIB, 4), (5000 * MIB, 512, 5)],
    );
    let backup = |args: &[&str]| {
        let command = from.command(&["backup", "--name", "host", "--json"]);
        let answer = command.args(images.iter().map(|path| text(path))).args(args).run().ok().json();
        json::text(&answer, "recovery_point").to_owned()
    };
    let restored = |repo: &Repo, id: &str, name: &str, to: &str| {
        let target = work.join(to);
        remove_if_there(&target);
        repo.restore(&format!("{id}/{name}"), &target, &[]);
        target
    };
    let check = |id: &str| {
        for name in names {
            let (expected, found) = (restored(&from, id, name, "a.img"), restored(&to, id, name, "b.img"));
            compare::assert_identical_sparse(&expected, &found, name);
        }
    };
    let first = backup(&[]);
    copy(&from, &to, &[&first]);
    check(&first);
    // they grow, shrink, and become zero and data
    image::random(&images[0], 5000, 6);
    image::mixed(&images[1], 13 * MIB, 7);
    image::zeros(&images[3], 4 * MIB);
    fs::OpenOptions::new().write(true).open(&images[4]).unwrap().set_len(4000 * MIB).unwrap();
    image::patch_random(&images[4], 100 * MIB, 5000, 8);
    let second = backup(&["--allow-shrink"]);
    let answer = copy(&from, &to, &[&second]);
    assert_eq!(json::text(&json::list(&answer, "points")[0], "compared_with"), first);
    check(&second);
    check(&first);
    to.verify_is_clean();
}

#[test]
fn points_are_chosen_as_asked() {
    let work = Workdir::new("copy-choice");
    let from = Repo::encrypted(&work, "from", &[]);
    let source = work.join("source.img");
    let mut ids = Vec::new();
    for (n, name) in ["a", "b", "a", "b"].into_iter().enumerate() {
        image::random(&source, 100_000, n as u64);
        ids.push(from.backup_id(&source, name));
    }
    let chosen = |name: &str, args: &[&str]| {
        let to = Repo::open(&work, name, &[]);
        copy(&from, &to, args);
        to.point_ids()
    };
    assert_eq!(chosen("1", &["--all"]), ids);
    assert_eq!(chosen("2", &["--name", "a"]), [ids[0].clone(), ids[2].clone()]);
    assert_eq!(chosen("3", &["--latest"]), ids[2..]);
    assert_eq!(chosen("4", &["--latest", "--name", "a"]), [ids[2].clone()]);
    assert_eq!(chosen("5", &["latest:a", &ids[0], &ids[0]]), [ids[0].clone(), ids[2].clone()]);
    let to = Repo::open(&work, "6", &[]);
    copy_command(&from, &to, &["--name", "c"]).run().expect(&[code::FAILED]).says("holds none of the name c");

    // one that is damaged does not keep the others back
    let victim = from.dir.join("points").join(&ids[1]);
    fs::write(&victim, b"rubbish").unwrap();
    copy_command(&from, &to, &["--all"]).run().expect(&[code::DAMAGE]).says(&ids[1]);
    assert_eq!(to.point_ids(), [ids[0].clone(), ids[2].clone(), ids[3].clone()]);
}

#[test]
fn refusals_say_which_repository() {
    let work = Workdir::new("copy-refused");
    let (from, to) = (Repo::encrypted(&work, "from", &[]), Repo::encrypted(&work, "to", &[]));
    let source = work.join("source.img");
    image::random(&source, 100_000, 1);
    from.backup(&source, "host", &[]);
    let nowhere = Repo::at(&work.join("nowhere"), &to.state, Access::Open);
    fs::create_dir(&nowhere.dir).unwrap();
    copy_command(&from, &nowhere, &["latest"]).run().expect(&[code::NO_REPOSITORY]).says(text(&nowhere.dir));
    let stranger = Repo::at(&to.dir, &to.state, from.access.clone());
    copy_command(&from, &stranger, &["latest"]).run().expect(&[code::WRONG_KEY]).says(text(&to.dir));
    let keyless = Repo::at(&to.dir, &to.state, Access::Open);
    copy_command(&from, &keyless, &["latest"]).run().expect(&[code::USAGE]).says("--to-password-file");
    copy_command(&from, &from, &["latest"]).run().expect(&[code::USAGE]).says("source and destination");
    let open = Repo::open(&work, "open", &[]);
    let keyed = Repo::at(&open.dir, &open.state, from.access.clone());
    copy_command(&from, &keyed, &["latest"]).run().expect(&[code::WRONG_KEY]).says("PENSTOCK_TO_PASSWORD");
    let bytewise = Repo::open(&work, "bytewise", &["--chunker", "fastcdc"]);
    copy_command(&from, &bytewise, &["latest"]).run().expect(&[code::REFUSED]).says("--chunker block");
    assert!(to.point_ids().is_empty() && bytewise.point_ids().is_empty());
}

#[test]
fn damage_in_the_source_is_told_and_not_copied() {
    let work = Workdir::new("copy-damage");
    let from = Repo::encrypted(&work, "from", &["--pack-size", "8MiB"]);
    let source = work.join("source.img");
    image::dense(&source, 32 * MIB, 1);
    let id = from.backup_id(&source, "host");
    let pack = Kind::Data.objects(&from.dir).remove(1);
    let sound = fs::read(&pack).unwrap();
    let to = Repo::open(&work, "to", &[]);
    for damage in ["flip", "cut", "remove"] {
        let mut bytes = sound.clone();
        match damage {
            "flip" => bytes[sound.len() / 2] ^= 1,
            "cut" => bytes.truncate(sound.len() / 2),
            _ => {}
        }
        fs::remove_file(&pack).unwrap();
        if damage != "remove" {
            fs::write(&pack, &bytes).unwrap();
        }
        let output = copy_command(&from, &to, &[&id]).run().expect(&[code::DAMAGE]);
        output.says(text(pack.file_name().unwrap().as_ref())).says(&format!("in {}", text(&from.dir)));
        assert!(to.point_ids().is_empty(), "{damage}");
        to.verify_is_clean();
    }
    fs::write(&pack, &sound).unwrap();
    copy(&from, &to, &[&id]);
    restores(&work, &to, &id, &source, "healed");
    to.verify_is_clean();
}

#[test]
fn lost_packs_of_the_destination_are_sent_again() {
    let work = Workdir::new("copy-lost");
    let (from, to) = (Repo::encrypted(&work, "from", &[]), Repo::open(&work, "to", &[]));
    let source = work.join("source.img");
    image::dense(&source, 16 * MIB, 1);
    from.backup(&source, "host", &[]);
    copy(&from, &to, &["--all"]);
    Kind::Data.objects(&to.dir).iter().for_each(|pack| fs::remove_file(pack).unwrap());
    let id = from.backup_id(&source, "host");
    let answer = copy(&from, &to, &["--all"]);
    assert_eq!(json::list(&answer, "notes").len(), 1, "{answer:#}");
    restores(&work, &to, &id, &source, "sent again");
}

#[test]
fn a_copy_killed_or_interrupted_publishes_nothing_and_goes_on() {
    let work = Workdir::new("copy-kill");
    let from = Repo::encrypted(&work, "from", &["--pack-size", "8MiB"]);
    let source = work.join("source.img");
    image::dense(&source, 256 * MIB, 1);
    let id = from.backup_id(&source, "host");
    let empty = Repo::encrypted(&work, "empty", &["--pack-size", "8MiB"]);
    let measured = empty.copy(&work, "measured");
    let began = Instant::now();
    let whole = copy(&from, &measured, &[&id]);
    let whole_run = began.elapsed();
    assert!(json::u64(&whole, "memory_peak_bytes") < 256 * MIB, "{whole:#}");
    measured.remove();
    let mut met = 0;
    for (round, share) in [0.15, 0.35, 0.55, 0.75, 0.9].into_iter().enumerate() {
        let to = empty.copy(&work, &format!("to-{round}"));
        let mut running = copy_command(&from, &to, &[&id]).spawn();
        met += u32::from(running.runs_at(whole_run.mul_f64(share)));
        if round % 2 == 0 {
            running.kill();
            running.wait();
        } else {
            running.interrupt();
            running.wait().expect(&[code::INTERRUPTED, code::DONE]);
            assert!(to.temporary_files().is_empty());
        }
        if !to.point_ids().is_empty() {
            restores(&work, &to, &id, &source, "the commit came first");
        }
        to.verify_is_clean();
        copy(&from, &to, &[&id]);
        restores(&work, &to, &id, &source, "again");
        to.verify_is_clean();
        to.remove();
    }
    assert!(met > 0, "all copies ended before they could be stopped");
}

/// Cuts of a copy are those of the source; a backup into the destination that goes by a list of changes must not mind.
#[test]
fn a_backup_builds_on_a_copy() {
    let work = Workdir::new("copy-parent");
    let (from, to) =
        (Repo::encrypted(&work, "from", &["--chunk-size", "256KiB"]), Repo::encrypted(&work, "to", &[]));
    let source = work.join("source.img");
    image::mixed(&source, 32 * MIB, 1);
    from.backup(&source, "host", &[]);
    copy(&from, &to, &["--all"]);
    image::patch_random(&source, 5 * MIB + 100, 20_000, 2);
    let extents = work.join("extents");
    fs::write(&extents, format!("{{\"offset\":{},\"length\":20000}}\n", 5 * MIB + 100)).unwrap();
    // The copy has the id of its original, so a list that is relative to the one is relative to the other.
    let base = from.point_ids().pop().unwrap();
    let answer = to.backup(&source, "host", &["--changed-extents", text(&extents), "--parent", &base]);
    assert!(json::over_volumes(&answer, "new_bytes") < 5 * MIB, "{answer:#}");
    restores(&work, &to, "latest", &source, "by a list");
    to.backup(&source, "host", &[]);
    restores(&work, &to, "latest", &source, "read in full");
    to.verify_is_clean();
}

#[test]
fn to_a_bucket_and_back() {
    let work = Workdir::new("copy-s3");
    let server = Seaweed::start(&work.join("s3"));
    let from = Repo::encrypted(&work, "from", &[]);
    let bucket = Repo::on_s3(&work, "bucket", &server.endpoint(), &[]);
    let back = Repo::open(&work, "back", &[]);
    let source = work.join("source.img");
    image::dense(&source, 64 * MIB, 1);
    from.backup(&source, "host", &[]);
    let sent = copy(&from, &bucket, &["--all"]);
    assert!(puts(&sent) < 13, "{sent:#}");
    assert!(sent["destination"]["request_usd"].as_f64().is_some_and(|usd| usd > 0.0), "{sent:#}");
    assert!(sent["source"]["request_usd"].is_null(), "{sent:#}");
    image::patch_random(&source, 20 * MIB, 100_000, 2);
    let id = from.backup_id(&source, "host");
    let next = copy(&from, &bucket, &["--all"]);
    assert!(json::u64(&next, "stored_bytes") < 2 * MIB && puts(&next) < 7, "{next:#}");
    let idle = copy(&from, &bucket, &["--all"]);
    assert_eq!(puts(&idle), 0, "{idle:#}");
    bucket.verify_is_clean();
    copy(&bucket, &back, &["--latest"]);
    restores(&work, &back, &id, &source, "there and back");
    // two buckets: the endpoint is that of both unless the destination has its own
    let other = Repo::on_s3(&work, "other", &server.endpoint(), &[]);
    copy_command(&bucket, &other, &["--latest", "--to-s3-endpoint", &server.endpoint()]).run().ok();
    restores(&work, &other, &id, &source, "bucket to bucket");
}
