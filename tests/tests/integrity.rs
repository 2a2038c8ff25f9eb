//! What close readings found that exit codes and tests did not see: backups that end with 0 and cannot be restored.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use penstock_tests::penstock::{Running, binary, code};
use penstock_tests::repo::Repo;
use penstock_tests::workdir::{Workdir, files_under, remove_if_there};
use penstock_tests::{KIB, MIB, compare, image, json};

/// A backup that reads a pipe, so that a test decides when it goes on.
struct PipedBackup {
    pipe: File,
    running: Running,
}

impl PipedBackup {
    fn start(work: &Workdir, repo: &Repo, name: &str) -> Self {
        let path = work.join("pipe");
        remove_if_there(&path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let running = repo.backup_command(&path, name, &["--workers", "1"]).spawn();
        // Opening a pipe for writing waits for its reader.
        Self { pipe: OpenOptions::new().write(true).open(&path).unwrap(), running }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.pipe.write_all(bytes).unwrap();
    }

    fn end(self) -> penstock_tests::penstock::Output {
        drop(self.pipe);
        self.running.wait()
    }
}

fn join(work: &Workdir, name: &str, parts: &[&Path]) -> PathBuf {
    let path = work.join(name);
    let bytes: Vec<u8> = parts.iter().flat_map(|part| std::fs::read(part).unwrap()).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn restores(work: &Workdir, repo: &Repo, point: &str, image: &Path) {
    let target = work.join("restored.img");
    remove_if_there(&target);
    repo.restore(point, &target, &[]);
    compare::assert_identical(image, &target, point);
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    for _ in 0..600 {
        if there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{what} did not happen in a minute");
}

/// Pack P holds X, the newer row of X is in pack Q, a merge keeps only that one, and Q is collected.
#[test]
fn contents_that_only_a_table_of_contents_knows_are_no_hole() {
    let work = Workdir::new("hints");
    let repo = Repo::open(&work, "repo", &[]);
    let part = |name: &str, bytes: u64, seed: u64| {
        let path = work.join(name);
        image::random(&path, bytes, seed);
        path
    };
    let (y, x, z) = (part("y", 20 * MIB, 1), part("x", 4 * MIB, 2), part("z", 4 * MIB, 3));
    let small = part("small", 64 * KIB, 4);
    let (a, b) = (join(&work, "a.img", &[&y, &x]), std::fs::read(join(&work, "b.img", &[&x, &z])).unwrap());

    let mut second = PipedBackup::start(&work, &repo, "b");
    second.write(&b[..1]); // it has opened its index before it reads
    wait_for("the lease", || !files_under(&repo.dir.join("leases")).is_empty());
    std::thread::sleep(Duration::from_millis(500));
    repo.backup(&a, "a", &["--workers", "1"]);
    second.write(&b[1..]);
    second.end().ok();
    repo.backup(&y, "y", &["--workers", "1"]);
    repo.backup(&small, "s", &["--workers", "1"]); // the fourth run: the index is merged
    repo.command(&["forget", "latest:a", "latest:b"]).run().ok();
    repo.command(&["gc", "--grace", "0s"]).run().ok();

    let again = join(&work, "c.img", &[&y, &x]);
    let answer = repo.backup(&again, "c", &["--workers", "1"]);
    assert_eq!(json::over_volumes(&answer, "new_bytes"), 0, "the bytes are in the pack: {answer:#}");
    repo.verify_is_clean();
    restores(&work, &repo, "latest:c", &again);
    repo.command(&["gc", "--grace", "0s"]).run().ok();
    restores(&work, &repo, "latest:c", &again);
}

#[test]
fn a_writer_that_lost_its_lease_leaves_no_point() {
    let work = Workdir::new("lost-lease");
    let repo = Repo::open(&work, "repo", &[]);
    let image = work.join("a.img");
    image::random(&image, 48 * MIB, 1);
    let bytes = std::fs::read(&image).unwrap();
    let mut writer = PipedBackup::start(&work, &repo, "a");
    writer.write(&bytes[..40 << 20]);
    wait_for("the first pack", || !files_under(&repo.dir.join("data")).is_empty());
    // What a collector does that takes the writer for dead.
    for lease in files_under(&repo.dir.join("leases")) {
        std::fs::remove_file(repo.dir.join("leases").join(lease)).unwrap();
    }
    repo.command(&["gc", "--grace", "0s"]).run().ok();
    writer.write(&bytes[40 << 20..]);
    writer.end().expect(&[code::FAILED]).says("lease");
    assert_eq!(repo.point_ids(), Vec::<String>::new());
    repo.backup(&image, "a", &[]);
    repo.verify_is_clean();
    restores(&work, &repo, "latest:a", &image);
}

/// Under `hidepid` a collector cannot see the processes of others.
#[test]
fn a_writer_that_is_hidden_is_not_taken_for_dead() {
    let work = Workdir::new("hidepid");
    let repo = Repo::open(&work, "repo", &[]);
    let mut writer = PipedBackup::start(&work, &repo, "a");
    writer.write(&[1; 4096]);
    wait_for("the lease", || !files_under(&repo.dir.join("leases")).is_empty());
    for (dir, mode) in [(work.join("."), "a+rx"), (repo.dir.clone(), "-R a+rX")] {
        let mut chmod = Command::new("chmod");
        assert!(chmod.args(mode.split(' ')).arg(dir).status().unwrap().success());
    }
    // The program may lie where only root can read it.
    let program = work.join("penstock");
    std::fs::copy(binary(), &program).unwrap();
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --clear-groups env HOME=/nonexistent \
         PENSTOCK_STATE_DIR=/tmp/penstock-hidepid PENSTOCK_REPO={} {} gc --dry-run --json",
        repo.dir.display(),
        program.display()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json::u64(&answer, "dead_leases"), 0, "{answer:#}");
    assert_eq!(answer["writers"].as_array().map(Vec::len), Some(1), "{answer:#}");
    writer.end().ok();
}

/// A collector whose clock is a day ahead, in a process namespace of its own, as on another machine.
#[test]
fn a_collector_with_a_wrong_clock_deletes_nothing() {
    let work = Workdir::new("wrong-clock");
    let repo = Repo::open(&work, "repo", &[]);
    let image = work.join("a.img");
    image::random(&image, 40 * MIB, 1);
    let bytes = std::fs::read(&image).unwrap();
    let mut writer = PipedBackup::start(&work, &repo, "a");
    writer.write(&bytes[..36 << 20]);
    wait_for("the first pack", || !files_under(&repo.dir.join("data")).is_empty());
    let before = files_under(&repo.dir.join("data"));
    let output = Command::new("faketime")
        .args(["-f", "+26h", "unshare", "-pf", "--mount-proc"])
        .arg(binary())
        .args(["gc", "--grace", "0s"])
        .env("PENSTOCK_REPO", &repo.dir)
        .env("PENSTOCK_STATE_DIR", work.join("collector-state"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(code::FAILED), "{}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("26.0 h ahead") && text.contains("clock"), "{text}");
    assert_eq!(files_under(&repo.dir.join("data")), before);
    writer.write(&bytes[36 << 20..]);
    writer.end().ok();
    repo.verify_is_clean();
    restores(&work, &repo, "latest:a", &image);
}
