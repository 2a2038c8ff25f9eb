//! Targets that somebody else uses, that are not what they were, that are full, and that lose what is written to them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use penstock_tests::filesystem::{FsKind, Mount};
use penstock_tests::loopdev::LoopDev;
use penstock_tests::penstock::{Running, code};
use penstock_tests::repo::Repo;
use penstock_tests::workdir::{Workdir, files_under, remove_if_there, text};
use penstock_tests::{MIB, compare, image, json};

/// Each write takes so long that a restore can be met half-way.
const SLOW: &str = "inject=pwrite64:delay_enter=40000";
const IMAGE_BYTES: u64 = 96 * MIB;

/// A repository with one point of an image.
struct Scene {
    work: Workdir,
    repo: Repo,
    image: PathBuf,
    point: String,
}

impl Scene {
    fn new(label: &str, size_bytes: u64) -> Self {
        let work = Workdir::new(label);
        let repo = Repo::encrypted(&work, "repo", &[]);
        let image = work.join("source.img");
        image::random(&image, size_bytes, 1);
        let point = repo.backup_id(&image, "host");
        Self { work, repo, image, point }
    }

    /// A restore to `target` that goes slowly, met where it has `reached` something.
    fn met(&self, target: &Path, args: &[&str], reached: &dyn Fn() -> bool) -> Running {
        let slowly = ["--io-engine", "pread", "--queue-depth", "1", "--workers", "1"];
        let args = [&slowly[..], args].concat();
        let mut running = self.repo.restore_command(&self.point, target, &args).with_faults(&[SLOW]).spawn();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !reached() {
            assert!(!running.ended(), "it ended too early: {}", running.wait().show());
            assert!(Instant::now() < deadline, "it does not get there");
            std::thread::sleep(Duration::from_millis(2));
        }
        running
    }

    /// Kills a restore half-way, with a journal that has something in it.
    fn killed(&self, target: &Path, journal: &dyn Fn() -> Option<PathBuf>, args: &[&str]) {
        let mut running = self.met(target, args, &|| journal().is_some_and(|path| records_in(&path) >= 4));
        running.kill();
        running.wait();
    }

    fn journal_beside(&self, target: &Path) -> PathBuf {
        target.with_file_name(format!(".{}.penstock-restore", target.file_name().unwrap().display()))
    }

    /// The journal of the only restore to a device.
    fn journal_of_device(&self) -> Option<PathBuf> {
        let is_journal =
            |file: &PathBuf| text(file).starts_with("restore-") && text(file).ends_with(".journal");
        files_under(&self.repo.state).into_iter().find(is_journal).map(|file| self.repo.state.join(file))
    }
}

/// Segments that a journal names.
fn records_in(journal: &Path) -> usize {
    let bytes = fs::read(journal).unwrap_or_default();
    let head = bytes.iter().position(|byte| *byte == b'\n');
    head.map_or(0, |head| (bytes.len() - head - 1) / 12)
}

/// Bytes of a file that are allocated.
fn bytes_on(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |meta| meta.blocks() * 512)
}

/// D2: whatever it is told, the second one must not empty, size or write what the first one is writing.
#[test]
fn a_second_restore_to_a_file_changes_nothing() {
    let scene = Scene::new("two-restores", IMAGE_BYTES);
    let target = scene.work.join("target.img");
    let small = scene.work.join("small.img");
    image::random(&small, 4 * MIB, 2);
    let other = scene.repo.backup_id(&small, "small");
    for second in [
        vec![&scene.point, "--force"],
        vec![&other, "--force"],
        vec![&other, "--compare"],
        vec![&scene.point, "--base", &other],
        vec![&scene.point, "--resume"],
        vec![&scene.point, "--resume", "--force"],
        vec![&scene.point, "--format", "qcow2", "--force"],
    ] {
        let context = format!("beside {second:?}");
        remove_if_there(&target);
        let first = scene.met(&target, &[], &|| bytes_on(&target) >= 16 * MIB);
        first.pause();
        let before = (bytes_on(&target), fs::metadata(&target).unwrap().len());
        let refused = scene.repo.restore_command(second[0], &target, &second[1..]).run();
        refused.expect(&[code::REFUSED]).says("another restore is writing it");
        // A write that was under way may have ended since.
        assert!(bytes_on(&target) >= before.0, "{context}: emptied");
        assert_eq!(fs::metadata(&target).unwrap().len(), before.1, "{context}: sized");
        first.go_on();
        first.wait().ok();
        compare::assert_identical(&scene.image, &target, &context);
    }
}

#[test]
fn a_second_restore_to_a_device_changes_nothing() {
    let scene = Scene::new("two-restores-device", IMAGE_BYTES);
    let target = scene.work.join("target.img");
    File::create(&target).unwrap().set_len(IMAGE_BYTES).unwrap();
    {
        let device = LoopDev::attach(&target);
        let first = scene.met(device.path(), &[], &|| bytes_on(&target) >= 16 * MIB);
        first.pause();
        for more in ["--force", "--compare", "--resume"] {
            let refused = scene.repo.restore_command(&scene.point, device.path(), &[more]).run();
            refused.expect(&[code::REFUSED]);
        }
        first.go_on();
        first.wait().ok();
        device.flush();
    }
    compare::assert_identical(&scene.image, &target, "after the second one was refused");
}

/// A program that holds an image, as a guest's hypervisor does.
struct QemuIo(Child);

impl QemuIo {
    fn over(image: &Path, format: &str) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", format, text(image)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("cannot run qemu-io: {e}. These tests need it: apt-get install qemu-utils")
            });
        // Once it has answered, it has the image.
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("read"), "{line}");
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A3: the image of a running guest, with and without locks, is no target.
#[test]
fn an_image_that_another_program_uses_is_no_target() {
    let scene = Scene::new("used-image", 8 * MIB);
    let target = scene.work.join("guest.img");
    fs::copy(&scene.image, &target).unwrap();
    image::patch_random(&target, MIB, 4096, 9);
    let before = compare::blake3_hex(&target);
    let all: [&[&str]; 5] = [
        &["--force"],
        &["--compare"],
        &["--base", &scene.point],
        &["--resume", "--force"],
        &["--format", "qcow2", "--force"],
    ];
    let refused = |who: &str, all: &[&[&str]]| {
        for args in all {
            let refused = scene.repo.restore_command(&scene.point, &target, args).run();
            refused.expect(&[code::REFUSED]).says(who);
        }
        assert_eq!(compare::blake3_hex(&target), before, "{who}");
    };
    {
        let _guest = QemuIo::over(&target, "raw");
        refused("qemu-io", &all);
    }
    {
        // Locked, but not open for writing.
        let mut command = Command::new("qemu-io");
        command.args(["-r", "-f", "raw", text(&target)]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let _guest = QemuIo(child);
        refused("lock", &all);
    }
    {
        let _writer = File::options().write(true).open(&target).unwrap();
        refused("open for writing", &all);
    }
    {
        let locked = File::open(&target).unwrap();
        locked.lock().unwrap();
        refused("lock (flock)", &all[3..]); // waited for: it may be a killed restore's
    }
    // Who only reads it is in nobody's way.
    let _reader = File::open(&target).unwrap();
    scene.repo.restore(&scene.point, &target, &["--compare"]);
    compare::assert_identical(&scene.image, &target, "once nobody used it");
}

/// The same of a device: the kernel keeps mounts and the like off, but not a hypervisor.
#[test]
fn a_device_that_another_program_writes_is_no_target() {
    let scene = Scene::new("used-device", 8 * MIB);
    let target = scene.work.join("disk.img");
    image::garbage(&target, 8 * MIB);
    let device = LoopDev::attach(&target);
    let before = compare::blake3_hex(device.path());
    {
        let _guest = QemuIo::over(device.path(), "raw");
        let refused = scene.repo.restore_command(&scene.point, device.path(), &["--force"]).run();
        refused.expect(&[code::REFUSED]).says("qemu-io");
    }
    assert_eq!(compare::blake3_hex(device.path()), before);
    scene.repo.restore(&scene.point, device.path(), &["--force"]);
    compare::assert_identical(&scene.image, device.path(), "once nobody used it");
}

/// A8: where nothing can be locked, a restore works, and does not take that for another restore.
#[test]
fn a_filesystem_without_locks_is_no_obstacle() {
    let scene = Scene::new("no-locks", 8 * MIB);
    for error in ["ENOLCK", "EBADF", "ENOSYS"] {
        let faults = [&*format!("inject=flock:error={error}"), "inject=fcntl:error=ENOLCK:when=2000+"];
        let (raw, qcow2) = (scene.work.join("raw.img"), scene.work.join("disk.qcow2"));
        remove_if_there(&raw);
        remove_if_there(&qcow2);
        // The repository's own locks are another matter: it is only read here.
        let restore = |target: &Path, args: &[&str]| {
            scene.repo.restore_command(&scene.point, target, args).with_faults(&faults[..1]).run()
        };
        restore(&raw, &[]).ok().says("cannot be locked");
        compare::assert_identical(&scene.image, &raw, error);
        restore(&qcow2, &["--format", "qcow2"]).ok();
        assert!(compare::size_bytes(&qcow2) > 8 * MIB);
    }
}

/// D3: writes that the target has lost are told, by whichever sync the kernel tells of them.
#[test]
fn a_sync_that_fails_fails_the_restore() {
    let scene = Scene::new("sync", 32 * MIB);
    let target = scene.work.join("target.img");
    let run = |fault: &str, args: &[&str]| {
        let args = [&["--io-engine", "pread", "--queue-depth", "1", "--workers", "1"][..], args].concat();
        scene.repo.restore_command(&scene.point, &target, &args).with_faults(&[SLOW, fault]).run()
    };
    // The one before the journal is written, and the last one; the kernel tells each descriptor once.
    for fault in ["inject=fdatasync:error=EIO:when=1", "inject=fsync:error=EIO:when=3"] {
        remove_if_there(&target);
        let failed = run(fault, &[]);
        failed.expect(&[code::FAILED]).says("sync").says(text(&target));
        let again = scene.repo.restore(&scene.point, &target, &["--resume"]);
        println!("{fault}: resumed {} MiB", json::u64(&again, "resumed_bytes") / MIB);
        compare::assert_identical(&scene.image, &target, fault);
    }
}

/// D5: the journal of a device is named by its path, which may be another disk's by now.
#[test]
fn resume_knows_the_device_and_not_its_name() {
    let scene = Scene::new("resume-device", IMAGE_BYTES);
    let name = scene.work.join("disk");
    let (first_image, second_image) = (scene.work.join("first.img"), scene.work.join("second.img"));
    File::create(&first_image).unwrap().set_len(IMAGE_BYTES).unwrap();
    image::random(&second_image, IMAGE_BYTES, 7);
    let before = compare::blake3_hex(&second_image);
    {
        let first = LoopDev::attach(&first_image);
        symlink(first.path(), &name).unwrap();
        scene.killed(&name, &|| scene.journal_of_device(), &[]);
    }
    fs::remove_file(&name).unwrap();
    {
        let second = LoopDev::attach(&second_image);
        symlink(second.path(), &name).unwrap();
        let refused = scene.repo.restore_command(&scene.point, &name, &["--resume"]).run();
        refused.expect(&[code::REFUSED]).says("another target");
        second.flush();
    }
    assert_eq!(compare::blake3_hex(&second_image), before, "the other disk was written");
    fs::remove_file(&name).unwrap();
    {
        // The first one again, most likely as another loop device.
        let _other = LoopDev::attach(&second_image);
        let first = LoopDev::attach(&first_image);
        symlink(first.path(), &name).unwrap();
        let answer = scene.repo.restore(&scene.point, &name, &["--resume"]);
        assert!(json::u64(&answer, "resumed_bytes") > 0, "{answer:#}");
        first.flush();
    }
    compare::assert_identical(&scene.image, &first_image, "resumed on the right one");
}

/// What a journal says is believed only where some of it is found to be true.
#[test]
fn resume_looks_before_it_believes() {
    let scene = Scene::new("resume-looks", IMAGE_BYTES);
    let target = scene.work.join("target.img");
    let journal = scene.journal_beside(&target);
    let resume = |more: &[&str]| {
        let args = [&["--resume"], more].concat();
        scene.repo.restore_command(&scene.point, &target, &args).run()
    };
    let killed = || {
        remove_if_there(&target);
        remove_if_there(&journal);
        scene.killed(&target, &|| Some(journal.clone()), &[]);
    };
    // Written since: the same file, other contents.
    killed();
    image::patch(&target, 0, &vec![0; (8 * MIB) as usize]);
    resume(&[]).expect(&[code::REFUSED]).says("changed since");
    resume(&["--force"]).ok();
    compare::assert_identical(&scene.image, &target, "--force starts anew");
    // Another file of that name and size.
    killed();
    let size = fs::metadata(&target).unwrap().len();
    fs::rename(&target, scene.work.join("old.img")).unwrap();
    image::garbage(&target, size);
    let before = compare::blake3_hex(&target);
    resume(&[]).expect(&[code::REFUSED]).says("another target");
    assert_eq!(compare::blake3_hex(&target), before);
    // Emptied.
    killed();
    File::options().write(true).open(&target).unwrap().set_len(0).unwrap();
    resume(&[]).ok();
    compare::assert_identical(&scene.image, &target, "an emptied file is begun anew");
    // Cut.
    killed();
    File::options().write(true).open(&target).unwrap().set_len(IMAGE_BYTES / 2).unwrap();
    resume(&[]).expect(&[code::REFUSED]).says("changed since");
    // And nothing of that.
    killed();
    let answer = resume(&[]).ok().json();
    assert!(json::u64(&answer, "resumed_bytes") > 0, "{answer:#}");
    compare::assert_identical(&scene.image, &target, "resumed");
}

/// A fresh target's zeros are not written, so what was put there since the restore was killed would stay.
#[test]
fn resume_looks_where_zeros_were() {
    let work = Workdir::new("resume-zeros");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let image = work.join("source.img");
    image::random(&image, IMAGE_BYTES, 1);
    // All of the second half is zero.
    File::options().write(true).open(&image).unwrap().set_len(2 * IMAGE_BYTES).unwrap();
    let point = repo.backup_id(&image, "host");
    let scene = Scene { work, repo, image, point };
    let target = scene.work.join("target.img");
    let journal = scene.journal_beside(&target);
    scene.killed(&target, &|| Some(journal.clone()), &[]);
    image::patch_random(&target, IMAGE_BYTES + 8 * MIB, 64 * MIB, 3);
    let refused = scene.repo.restore_command(&scene.point, &target, &["--resume"]).run();
    refused.expect(&[code::REFUSED]).says("changed since");
    scene.repo.restore(&scene.point, &target, &["--resume", "--force"]);
    compare::assert_identical(&scene.image, &target, "begun anew");
}

/// Stopped right before the target is emptied: the journal must not promise zeros that are not there yet.
#[test]
fn a_journal_never_promises_zeros_that_are_not_there() {
    let work = Workdir::new("early-journal");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (image, target) = (work.join("source.img"), work.join("target.img"));
    image::sparse(&image, 24 * MIB, &[(0, 4 * MIB, 1), (20 * MIB, 4 * MIB, 2)]);
    let point = repo.backup_id(&image, "host");
    image::garbage(&target, 24 * MIB);
    let command = repo.restore_command(&point, &target, &["--force"]);
    command.with_faults(&["inject=ftruncate:error=EIO:when=1"]).run().expect(&[code::FAILED]);
    assert!(fs::read(&target).unwrap().iter().all(|byte| *byte == 0xa5), "it was not emptied");
    repo.restore(&point, &target, &["--resume"]);
    compare::assert_identical(&image, &target, "resumed");
}

/// C14: only the journal of a device needs a place of its own.
#[test]
fn a_restore_to_a_file_needs_no_state_directory() {
    let scene = Scene::new("no-home", 8 * MIB);
    let homeless = |target: &Path, args: &[&str]| {
        let command = scene.repo.restore_command(&scene.point, target, args);
        command.env("PENSTOCK_STATE_DIR", "").env("XDG_STATE_HOME", "").env("HOME", "nowhere").run()
    };
    let (raw, qcow2) = (scene.work.join("raw.img"), scene.work.join("disk.qcow2"));
    homeless(&raw, &[]).ok();
    compare::assert_identical(&scene.image, &raw, "without a home");
    homeless(&raw, &["--compare"]).ok();
    homeless(&qcow2, &["--format", "qcow2"]).ok();
    homeless(Path::new("-"), &[]).ok();
    File::create(scene.work.join("disk.img")).unwrap().set_len(8 * MIB).unwrap();
    let device = LoopDev::attach(&scene.work.join("disk.img"));
    homeless(device.path(), &[]).expect(&[code::USAGE]).says("PENSTOCK_STATE_DIR");
}

/// What the message says is what works.
#[test]
fn a_full_target_is_continued_as_the_message_says() {
    let scene = Scene::new("full-target", 80 * MIB);
    let disk = scene.work.join("disk.img");
    FsKind::Ext4.make(&disk, 160 * MIB);
    let mount = Mount::image(&disk, &scene.work.join("mnt"));
    let (ballast, target) = (mount.dir().join("ballast"), mount.dir().join("target.img"));
    image::garbage(&ballast, 100 * MIB);
    let run = |args: &[&str]| scene.repo.restore_command(&scene.point, &target, args).run();
    run(&[]).expect(&[code::FAILED]).says("free some space").says("--resume");
    run(&[]).expect(&[code::REFUSED]).says("--resume continues it");
    fs::remove_file(&ballast).unwrap();
    run(&["--resume"]).ok();
    compare::assert_identical(&scene.image, &target, "after making room");
    fs::remove_file(&target).unwrap();

    // Of an image nothing is left, so the same command is the right one.
    image::garbage(&ballast, 100 * MIB);
    run(&["--format", "qcow2"]).expect(&[code::FAILED]).says("same command").says("anew");
    assert!(!target.exists());
    fs::remove_file(&ballast).unwrap();
    run(&["--format", "qcow2"]).ok();
}
