//! Sources that lie or end early: empty and cut ones, writers beside the backup, lists of changes relative to another
//! point, times of the future, places that cannot be read.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use penstock_tests::loopdev::LoopDev;
use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::workdir::{Workdir, text};
use penstock_tests::{MIB, SEGMENT, compare, image, json};

/// A repository with one whole point of `source` under the name `db`, and its id.
fn with_point(work: &Workdir, source: &Path) -> (Repo, String) {
    let repo = Repo::encrypted(work, "repo", &[]);
    let id = repo.backup_id(source, "db");
    (repo, id)
}

fn cut(path: &Path, size_bytes: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(size_bytes).unwrap();
}

fn command_args<'a>(script: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["backup", "--name", "db", "--json", "--stdin-command"];
    args.extend(more);
    args.extend(["--", "sh", "-c", script]);
    args
}

#[test]
fn an_empty_or_cut_stream_is_never_latest() {
    let work = Workdir::new("cut-stream");
    let (repo, dump, part) = (Repo::encrypted(&work, "repo", &[]), work.join("dump"), work.join("part"));
    image::random(&dump, 64 * MIB, 1);
    let stdin = || repo.backup_command(Path::new("-"), "db", &[]);
    stdin().run().expect(&[code::REFUSED]).says("0 bytes");
    assert!(repo.point_ids().is_empty(), "nothing is not a backup");
    stdin().stdin(&dump).run().ok();
    let whole = repo.point_ids();
    stdin().run().expect(&[code::REFUSED]).says("0 bytes");
    image::random(&part, 5 * MIB, 1);
    stdin().stdin(&part).run().expect(&[code::REFUSED]).says("--allow-shrink");
    repo.backup_command(Path::new("-"), "db", &["--no-parent"]).stdin(&part).run().expect(&[code::REFUSED]);
    assert_eq!(repo.point_ids(), whole);
    repo.command(&["forget", "--name", "db", "--keep-last", "1"]).run().ok();
    assert_eq!(repo.point_ids(), whole, "retention keeps what is whole");
    let small = repo.backup_command(Path::new("-"), "db", &["--allow-shrink"]).stdin(&part).run().ok().json();
    assert!(
        json::list(&small, "notes").iter().any(|note| note.as_str().unwrap().contains("shorter than before"))
    );
    repo.verify_is_clean();
}

#[test]
fn a_command_has_to_end_well() {
    let work = Workdir::new("command");
    // Without a key: the harness gives it by options behind everything, which would be the command's.
    let (repo, dump, target) = (Repo::open(&work, "repo", &[]), work.join("dump"), work.join("target"));
    image::random(&dump, 9 * MIB + 77, 2);
    let script = format!("cat {}; echo all is well >&2", text(&dump));
    let output = repo.command(&command_args(&script, &[])).run().ok().says("all is well");
    let point = json::text(&output.json(), "recovery_point").to_owned();
    repo.restore(&point, &target, &[]);
    compare::assert_identical(&dump, &target, "what the command wrote");
    for (script, said) in [
        ("false", "exit code 1"),
        ("echo disk on fire >&2; exit 7", "disk on fire"),
        (&format!("cat {}; exit 3", text(&dump)), "exit code 3"),
        (&format!("cat {}; kill -9 $$", text(&dump)), "signal 9"),
    ] {
        let output = repo.command(&command_args(script, &[])).run().expect(&[code::FAILED]);
        output.says(said).says("no recovery point was made");
    }
    let quiet = repo.command(&command_args("echo my last words >&2; exit 7", &["-q"])).run();
    quiet.expect(&[code::FAILED]).says("my last words");
    repo.command(&command_args("true", &[])).run().expect(&[code::REFUSED]).says("0 bytes");
    repo.command(&["backup", "--name", "db", "--stdin-command", "--", "/no/such/program"])
        .run()
        .expect(&[code::FAILED])
        .says("/no/such/program");
    assert_eq!(repo.point_ids(), [point]);
    // The same volume as by a pipe: moving from one to the other keeps the history.
    let piped = repo.backup_command(Path::new("-"), "db", &[]).stdin(&dump).run().ok().json();
    assert_eq!(json::over_volumes(&piped, "new_chunks"), 0);
}

#[test]
fn an_interrupt_reaches_the_command() {
    let work = Workdir::new("command-interrupt");
    let (repo, started, heard) = (Repo::open(&work, "repo", &[]), work.join("started"), work.join("heard"));
    let script = format!(
        "trap 'touch {}; exit 1' INT; printf abc; touch {}; sleep 60 & wait",
        text(&heard),
        text(&started)
    );
    let mut running = repo.command(&command_args(&script, &[])).spawn();
    for _ in 0..2000 {
        if started.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(started.exists() && !running.ended());
    running.interrupt();
    running.wait().expect(&[code::INTERRUPTED]);
    assert!(heard.exists(), "SIGINT has not come");
    assert!(repo.point_ids().is_empty());
}

#[test]
fn a_cut_image_or_device_is_refused() {
    let work = Workdir::new("cut-image");
    let source = work.join("disk.img");
    image::mixed(&source, 40 * MIB, 3);
    let (repo, whole) = with_point(&work, &source);
    // A link, so that the volume keeps its name whatever number the device has.
    let link = work.join("device");
    let device_backup = || repo.backup_command(&link, "device", &[]);
    {
        let device = LoopDev::attach_read_only(&source);
        std::os::unix::fs::symlink(device.path(), &link).unwrap();
        device_backup().run().ok();
    }
    cut(&source, 40 * MIB - 4096);
    {
        let device = LoopDev::attach_read_only(&source);
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(device.path(), &link).unwrap();
        device_backup().run().expect(&[code::REFUSED]).says("cut short");
    }
    let note = repo.backup(&source, "db", &[]);
    assert!(
        json::list(&note, "notes").iter().any(|note| note.as_str().unwrap().contains("shorter")),
        "{note:#}"
    );
    cut(&source, 30 * MIB);
    repo.backup_command(&source, "db", &[]).run().expect(&[code::REFUSED]).says("cut short");
    cut(&source, 0);
    for args in [&[][..], &["--allow-shrink"], &["--no-parent"]] {
        repo.backup_command(&source, "db", args).run().expect(&[code::REFUSED]).says("0 bytes");
    }
    assert_eq!(repo.point_ids().len(), 3, "{whole}");
    // A repository is asked for nothing where the source is none.
    let nowhere = Repo::at(&work.join("nowhere"), &work.join("state"), repo.access.clone());
    nowhere.backup_command(&source, "db", &[]).run().expect(&[code::REFUSED]);
}

/// A program that has a file open until it is dropped.
struct Holder(Child);

impl Holder {
    /// Starts it, and waits until it has answered a first command with `answer`.
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|e| panic!("{program} (Debian package qemu-utils): {e}")))
    }

    fn is_shown_by(&self, found: impl Fn() -> bool) {
        for _ in 0..1000 {
            if found() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{:?} does not hold the image", self.0);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// True if any process but this one has the file open.
fn is_open(path: &Path) -> bool {
    let path = fs::canonicalize(path).unwrap();
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|entry| entry.file_name().to_string_lossy() != *own).any(|entry| {
        let descriptors = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == path))
    })
}

#[test]
fn an_image_that_another_program_writes_is_refused() {
    let work = Workdir::new("in-use");
    let source = work.join("guest.img");
    image::mixed(&source, 8 * MIB, 4);
    let (repo, _) = with_point(&work, &source);
    let refused = |said: &str| {
        let output = repo.backup_command(&source, "db", &[]).run().expect(&[code::REFUSED]);
        output.says(said).says("--force-live");
    };
    {
        let holder = Holder::start("qemu-io", &["-f", "raw", text(&source)]);
        holder.is_shown_by(|| is_open(&source));
        refused("qemu");
        repo.backup(&source, "forced", &["--force-live"]);
    }
    {
        let socket = work.join("nbd.sock");
        let args = ["-f", "raw", "-k", text(&socket), "-t", text(&source)];
        let holder = Holder::start("qemu-nbd", &args);
        holder.is_shown_by(|| socket.exists());
        refused("qemu");
    }
    {
        let holder = Holder::start("qemu-io", &["-r", "-f", "raw", text(&source)]);
        holder.is_shown_by(|| is_open(&source));
        repo.backup(&source, "db", &[]);
    }
    let writer = OpenOptions::new().write(true).open(&source).unwrap();
    refused("open for writing");
    drop(writer);
    let locked = File::open(&source).unwrap();
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refused("locked it exclusively");
    drop(locked);
    repo.backup(&source, "db", &[]);
}

/// Writes come and go between the looks of the program: only the times tell.
#[test]
fn an_image_that_changes_while_it_is_read_is_refused() {
    let work = Workdir::new("changing");
    let (source, other) = (work.join("disk.img"), work.join("other"));
    image::dense(&source, 16 * MIB, 5);
    let (repo, whole) = with_point(&work, &source);
    // A FIFO as a second volume holds the backup up until the first was certainly opened.
    penstock_tests::tools::run("mkfifo", &[text(&other)]);
    let torn = |more: &[&str]| {
        let running = repo
            .command(&["backup", text(&source), text(&other), "--name", "db", "--json"])
            .args(more)
            .spawn();
        let mut pipe = OpenOptions::new().write(true).open(&other).unwrap();
        pipe.write_all(&vec![1; 6 * MIB as usize]).unwrap();
        // The volume before it was opened, and watched, before the first segment of this one was taken.
        OpenOptions::new().write(true).open(&source).unwrap().write_all_at(b"new", 12 * MIB).unwrap();
        drop(pipe);
        running.wait()
    };
    torn(&[]).expect(&[code::REFUSED]).says("changed while it was read");
    assert_eq!(repo.point_ids(), [whole]);
    let accepted = torn(&["--force-live"]).ok().json();
    let notes = json::list(&accepted, "notes");
    assert!(
        notes.iter().any(|note| note.as_str().unwrap().contains("changed while it was read")),
        "{accepted:#}"
    );
}

fn write_list(path: &Path, base: Option<&str>, edits: &[(u64, u64)]) {
    let mut lines: Vec<String> = base.iter().map(|id| format!("{{\"base\": \"{id}\"}}\n")).collect();
    lines.extend(edits.iter().map(|(at, len)| format!("{{\"offset\": {at}, \"length\": {len}}}\n")));
    fs::write(path, lines.concat()).unwrap();
}

#[test]
fn a_list_of_changes_names_what_it_is_relative_to() {
    let work = Workdir::new("list-base");
    let (source, list, target) = (work.join("disk.img"), work.join("changed.jsonl"), work.join("target.img"));
    image::dense(&source, 5 * SEGMENT, 6);
    let (repo, first) = with_point(&work, &source);
    image::patch_random(&source, 100, 1000, 1);
    let second = repo.backup_id(&source, "db");
    image::patch_random(&source, 3 * SEGMENT, 1000, 2);
    // What changed since the second point. Nobody says so: refused.
    write_list(&list, None, &[(3 * SEGMENT, 1000)]);
    let run = |more: &[&str]| {
        repo.backup_command(&source, "db", &["--changed-extents", text(&list)]).args(more).run()
    };
    run(&[]).expect(&[code::USAGE]).says("relative to").says("--parent");
    for latest in ["latest", "latest:db"] {
        run(&["--parent", latest]).expect(&[code::USAGE]).says("relative to");
    }
    // A point in between is latest now: it is not taken.
    image::patch_random(&source, 4 * SEGMENT, 1000, 3);
    let third = repo.backup_id(&source, "db");
    write_list(&list, Some(&second), &[(3 * SEGMENT, 1000), (4 * SEGMENT, 1000)]);
    for other in [&first, &third] {
        run(&["--parent", other]).expect(&[code::USAGE]).says(&second);
    }
    let made = run(&[]).ok().json();
    assert_eq!(json::text(&made, "parent"), second);
    repo.restore(json::text(&made, "recovery_point"), &target, &[]);
    compare::assert_identical(&source, &target, "by a list that names its base");
    let made = run(&["--parent", &second]).ok().json();
    assert_eq!(json::text(&made, "parent"), second);
    write_list(&list, Some("latest"), &[]);
    run(&[]).expect(&[code::USAGE]).says("line 1");
    write_list(&list, Some(&"ab".repeat(16)), &[]);
    run(&[]).expect(&[code::FAILED]).says("no such recovery point");
}

#[test]
fn what_a_list_leaves_out_is_looked_at_and_told() {
    let work = Workdir::new("unlisted");
    let (source, list, target) = (work.join("disk.img"), work.join("changed.jsonl"), work.join("target.img"));
    image::dense(&source, 10 * SEGMENT + 4096, 7);
    let (repo, first) = with_point(&work, &source);
    let verify = |parent: &str, percent: &str| {
        let args = ["--changed-extents", text(&list), "--parent", parent, "--verify-unlisted", percent];
        repo.backup_command(&source, "db", &args).run()
    };
    image::patch_random(&source, 2 * SEGMENT + 5, 1000, 1);
    write_list(&list, None, &[(2 * SEGMENT, 4096)]);
    let clean = verify(&first, "100").ok().json();
    assert_eq!(clean["in_part"], false, "{clean:#}");
    let second = json::text(&clean, "recovery_point").to_owned();
    // Changed, and the list does not say so.
    image::patch_random(&source, 7 * SEGMENT + 5, 1000, 2);
    write_list(&list, None, &[]);
    let blind = verify(&second, "0").ok().json();
    repo.restore(json::text(&blind, "recovery_point"), &target, &[]);
    assert!(fs::read(&source).unwrap() != fs::read(&target).unwrap(), "nobody looks unless asked to");
    let seen = verify(&second, "100").expect(&[code::IN_PART]).json();
    assert_eq!(seen["in_part"], true);
    let ranges = &json::list(&seen, "volumes")[0]["unlisted_changes"];
    assert_eq!(ranges[0]["offset"], 7 * SEGMENT, "{seen:#}");
    let id = json::text(&seen, "recovery_point");
    repo.restore(id, &target, &["--force"]);
    compare::assert_identical(&source, &target, "what was read is what is stored");
    repo.command(&["show", id]).run().ok().says("the list of changes did not name");
    repo.command(&["backup", text(&source), "--name", "db", "--verify-unlisted", "5"])
        .run()
        .expect(&[code::USAGE]);
}

#[test]
fn a_time_of_the_future_is_refused() {
    let work = Workdir::new("future");
    let source = work.join("disk.img");
    image::mixed(&source, MIB, 8);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let refused = repo.backup_command(&source, "m", &["--time", "2096-01-01T00:00:00Z"]).run();
    refused.expect(&[code::USAGE]).says("in the future");
    assert!(repo.point_ids().is_empty());
}

#[test]
fn a_misspelt_time_zone_is_told() {
    let work = Workdir::new("zone");
    let source = work.join("disk.img");
    image::mixed(&source, MIB, 9);
    let (repo, _) = with_point(&work, &source);
    let keep = || repo.command(&["forget", "--keep-daily", "3", "--dry-run"]);
    keep().env("TZ", "Europe/Berlinn").run().ok().says("Europe/Berlinn").says("midnight UTC");
    let known = keep().env("TZ", "UTC").run().ok();
    assert!(!known.stderr.contains("midnight UTC"), "{}", known.show());
    keep().env("TZ", "Nowhere").arg("--time-zone").arg("UTC").run().ok();
}

/// A loop device whose file was cut: the kernel answers EIO for what is behind the file's end.
#[test]
fn unreadable_places_are_zeros_if_that_is_wanted_and_read_again_the_next_time() {
    let work = Workdir::new("unreadable");
    let (backing, whole, target, list) =
        (work.join("backing"), work.join("whole.img"), work.join("target.img"), work.join("changed.jsonl"));
    let (size, readable) = (3 * SEGMENT, 2 * SEGMENT + 300 * 1024);
    image::dense(&whole, size, 10);
    fs::copy(&whole, &backing).unwrap();
    let repo = Repo::encrypted(&work, "repo", &[]);
    let device = LoopDev::attach_read_only(&backing);
    cut(&backing, readable);
    for engine in ["uring", "pread"] {
        let run = |more: &[&str]| {
            repo.backup_command(device.path(), "db", &["--io-engine", engine]).args(more).run()
        };
        run(&[]).expect(&[code::FAILED]).says("offset").says("input/output");
        assert_eq!(repo.point_ids().len(), usize::from(engine == "pread"), "nothing is published");
        let made = run(&["--on-read-error", "zero"]).expect(&[code::IN_PART]).json();
        let volume = &json::list(&made, "volumes")[0];
        let bad = &volume["unreadable"];
        assert_eq!(bad.as_array().unwrap().len(), 1, "{made:#}");
        assert_eq!(
            [bad[0]["offset"].as_u64(), bad[0]["length"].as_u64()],
            [Some(readable), Some(size - readable)]
        );
        let id = json::text(&made, "recovery_point");
        repo.command(&["show", id]).run().ok().says("could not be read");
        assert_eq!(repo.show(id)["volumes"][0]["unreadable"], *bad);
        let _ = fs::remove_file(&target);
        repo.restore(id, &target, &[]);
        let mut expected = fs::read(&whole).unwrap();
        expected[readable as usize..].fill(0);
        assert!(fs::read(&target).unwrap() == expected, "{engine}");
    }
    // It can be read again, and no list speaks of it.
    cut(&backing, size);
    let file = OpenOptions::new().write(true).open(&backing).unwrap();
    file.write_all_at(&fs::read(&whole).unwrap()[readable as usize..], readable).unwrap();
    file.sync_all().unwrap();
    device.flush();
    write_list(&list, None, &[]);
    let last = repo.point_ids().pop().unwrap();
    let args = ["--changed-extents", text(&list), "--parent", &last];
    let mended = repo.backup(device.path(), "db", &args);
    assert!(json::over_volumes(&mended, "read_bytes") < size, "{mended:#}");
    repo.restore(json::text(&mended, "recovery_point"), &target, &["--force"]);
    compare::assert_identical(&whole, &target, "read again");
    assert!(repo.show("latest")["volumes"][0].get("unreadable").is_none());
    repo.verify_is_clean();
}
