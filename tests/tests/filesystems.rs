//! Filesystems that lack what ext4 has: locks, exclusive renames, hard links, O_DIRECT, syncs of directories. A
//! repository on them works, or is refused at once with the reason. What a kernel here does not have is injected into
//! the calls.

use std::fs;
use std::path::Path;

use penstock_tests::filesystem::Mount;
use penstock_tests::penstock::code;
use penstock_tests::repo::{Access, Repo};
use penstock_tests::tools;
use penstock_tests::workdir::{Workdir, remove_if_there, text};
use penstock_tests::{MIB, compare, image};

/// The program under `strace`, with calls that fail.
fn failing(calls: &[(&str, &str)]) -> Vec<String> {
    tools::run("strace", &["-V"]);
    let names: Vec<&str> = calls.iter().map(|(call, _)| *call).collect();
    let mut words: Vec<String> = ["strace", "-f", "-qq", "-o", "/dev/null"].map(str::to_owned).to_vec();
    words.extend(["-e".to_owned(), format!("trace={}", names.join(","))]);
    for (call, error) in calls {
        words.extend(["-e".to_owned(), format!("inject={call}:error={error}")]);
    }
    words
}

/// Init, a backup, a restore, all with these calls failing.
fn works_without(label: &str, calls: &[(&str, &str)]) {
    let work = Workdir::new(label);
    let repo = Repo::at(&work.join("repo"), &work.join("state"), Access::Open);
    let (disk, target) = (work.join("disk.img"), work.join("target.img"));
    image::random(&disk, 12 * MIB, 1);
    repo.command(&["init", "--insecure-no-encryption"]).under(failing(calls)).run().ok();
    for _ in 0..2 {
        repo.backup_command(&disk, "disk", &[]).under(failing(calls)).run().ok();
        image::patch_random(&disk, 5 * MIB, 100_000, 2);
    }
    assert_eq!(fs::read_dir(repo.dir.join("tmp")).unwrap().count(), 0, "temporary files are left");
    repo.verify_is_clean();
    let first = &repo.point_ids()[0];
    image::random(&disk, 12 * MIB, 1);
    repo.restore(first, &target, &[]);
    compare::assert_identical(&disk, &target, label);
}

/// NFS without a lock daemon, Lustre without its option, some of FUSE. With locks that fail, directories were made
/// for ever.
#[test]
fn locks_that_cannot_be_had() {
    for error in ["ENOLCK", "ENOSYS", "EBADF", "EOPNOTSUPP"] {
        works_without("no-locks", &[("flock", error)]);
    }
}

/// What a living writer has in `tmp/` stays although it cannot be locked.
#[test]
fn without_locks_the_living_are_not_swept() {
    let work = Workdir::new("no-locks-living");
    let repo = Repo::open(&work, "repo", &[]);
    let disk = work.join("disk.img");
    image::random(&disk, 4 * MIB, 1);
    let living = repo.dir.join("tmp/00112233445566778899aabbccddeeff");
    fs::create_dir_all(&living).unwrap();
    fs::write(living.join("0"), b"half a pack").unwrap();
    for wrapper in [failing(&[("flock", "ENOLCK")]), Vec::new()] {
        repo.backup_command(&disk, "disk", &[]).under(wrapper).run().ok();
        assert!(living.join("0").is_file());
    }
}

#[test]
fn no_exclusive_rename() {
    for error in ["EINVAL", "ENOSYS"] {
        works_without("no-rename", &[("renameat2", error)]);
    }
}

#[test]
fn no_hard_links() {
    works_without("no-links", &[("link,linkat", "EPERM")]);
}

#[test]
fn filesystems_in_memory_and_in_layers() {
    let work = Workdir::new("other-filesystems");
    let tmpfs = Mount::of_kind("tmpfs", &work.join("tmpfs"), "size=200m");
    on(&work, tmpfs.dir(), "tmpfs");
    let (lower, upper, inner) = (work.join("lower"), work.join("upper"), work.join("inner"));
    for dir in [&lower, &upper, &inner] {
        fs::create_dir(dir).unwrap();
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", text(&lower), text(&upper), text(&inner));
    let overlay = Mount::of_kind("overlay", &work.join("overlay"), &options);
    on(&work, overlay.dir(), "overlay");
}

fn on(work: &Workdir, dir: &Path, label: &str) {
    let repo = Repo::at(&dir.join("repo"), &work.join("state"), Access::Open);
    let (disk, target) = (work.join("disk.img"), work.join("target.img"));
    remove_if_there(&target);
    image::random(&disk, 12 * MIB, 7);
    repo.command(&["init", "--insecure-no-encryption"]).run().ok();
    let point = repo.backup_id(&disk, "disk");
    repo.restore(&point, &target, &[]);
    compare::assert_identical(&disk, &target, label);
    repo.verify_is_clean();
}

/// Without either way to publish, writers could replace each other's objects: refused, and nothing stays.
#[test]
fn neither_exclusive_rename_nor_hard_links() {
    let work = Workdir::new("neither");
    let calls = [("renameat2", "EINVAL"), ("link,linkat", "EPERM")];
    let dir = work.join("repo");
    fs::create_dir(&dir).unwrap();
    let repo = Repo::at(&dir, &work.join("state"), Access::Open);
    let init = repo.command(&["init", "--insecure-no-encryption"]).under(failing(&calls)).run();
    init.expect(&[code::USAGE, code::FAILED]).says("hard links").says("ext4");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing is left behind");

    let repo = Repo::open(&work, "made", &[]);
    let disk = work.join("disk.img");
    image::random(&disk, 4 * MIB, 1);
    let backup = repo.backup_command(&disk, "disk", &[]).under(failing(&calls)).run();
    backup.expect(&[code::USAGE, code::FAILED]).says("hard links");
    repo.command(&["doctor"]).under(failing(&calls)).run().expect(&[code::FAILED]).says("hard links");
    assert!(repo.point_ids().is_empty());
}

#[test]
fn o_direct_that_is_refused_late() {
    // The flag is taken and the transfer refused, by EINVAL or by another name.
    for error in ["EINVAL:when=1", "EOPNOTSUPP:when=1"] {
        works_without("late-direct", &[("pwrite64", error)]);
    }
}

/// Leftovers of a program that died while it filled the directory are removed in the time there is, and it is told.
#[test]
fn a_sweep_of_many_leftovers_is_bounded() {
    let work = Workdir::new("leftovers");
    let repo = Repo::open(&work, "repo", &[]);
    let disk = work.join("disk.img");
    image::random(&disk, 4 * MIB, 1);
    let tmp = repo.dir.join("tmp");
    for n in 0..20_000 {
        let dir = tmp.join(format!("{n:032x}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("lock"), b"").unwrap();
    }
    repo.backup_command(&disk, "disk", &["-v"]).run().ok().says("dead processes");
    for _ in 0..60 {
        if fs::read_dir(&tmp).unwrap().count() == 0 {
            return;
        }
        repo.backup(&disk, "disk", &[]);
    }
    panic!("later runs do not remove the rest");
}
