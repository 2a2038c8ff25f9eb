//! A full disk, under the repository and under the target: a clear message, nothing lost, and on it goes after making room.

use std::fs;
use std::path::{Path, PathBuf};

use penstock_tests::filesystem::{FsKind, Mount};
use penstock_tests::loopdev::LoopDev;
use penstock_tests::penstock::code;
use penstock_tests::repo::{Access, Repo};
use penstock_tests::workdir::{Workdir, remove_if_there};
use penstock_tests::{MIB, compare, image, json};

/// A filesystem of `size_bytes` with a ballast file that can be deleted to make room.
fn small_disk(work: &Workdir, size_bytes: u64, ballast_bytes: u64) -> (Mount, PathBuf) {
    let image = work.join("disk.img");
    FsKind::Ext4.make(&image, size_bytes);
    let mount = Mount::image(&image, &work.join("disk"));
    let ballast = mount.dir().join("ballast");
    image::garbage(&ballast, ballast_bytes);
    (mount, ballast)
}

#[test]
fn the_repository_runs_out_of_space() {
    let work = Workdir::new("full");
    let (mount, ballast) = small_disk(&work, 400 * MIB, 250 * MIB);
    let repo = Repo::at(&mount.dir().join("repo"), &work.join("state"), Access::Open);
    repo.command(&["init", "--insecure-no-encryption"]).run().ok();
    let (earlier_image, big, target) =
        (work.join("earlier.img"), work.join("big.img"), work.join("target.img"));
    image::random(&earlier_image, 32 * MIB, 1);
    image::random(&big, 160 * MIB, 2);
    let earlier = repo.backup_id(&earlier_image, "earlier");

    for attempt in 0..2 {
        let failed = repo.backup_command(&big, "big", &[]).run();
        failed.expect(&[code::FAILED]).says("disk is full");
        assert_eq!(repo.temporary_files(), Vec::<PathBuf>::new(), "attempt {attempt} left temporary files");
        assert_eq!(repo.point_ids(), std::slice::from_ref(&earlier));
        repo.verify_is_clean();
        remove_if_there(&target);
        repo.restore(&earlier, &target, &[]);
        compare::assert_identical(&earlier_image, &target, "an earlier point on the full disk");
    }

    fs::remove_file(&ballast).unwrap();
    let answer = repo.backup(&big, "big", &[]);
    let stored = json::over_volumes(&answer, "stored_bytes");
    println!(
        "after making room {} MiB were stored, {} MiB taken over",
        stored / MIB,
        json::u64(&answer, "resumed_bytes") / MIB
    );
    remove_if_there(&target);
    repo.restore("latest:big", &target, &[]);
    compare::assert_identical(&big, &target, "after making room");
    repo.verify_is_clean();
}

/// Writes to a file until every last block of its disk is used.
fn fill(filler: &Path) {
    let mut room = vec![0xa5; MIB as usize];
    let mut file = fs::File::create(filler).unwrap();
    while !room.is_empty() {
        use std::io::Write;
        if file.write_all(&room).and_then(|()| file.sync_data()).is_err() {
            room.truncate(room.len() / 2);
        }
    }
}

#[test]
fn a_full_repository_can_be_collected() {
    let work = Workdir::new("full-gc");
    let (mount, ballast) = small_disk(&work, 200 * MIB, MIB);
    let repo = Repo::at(&mount.dir().join("repo"), &work.join("state"), Access::Open);
    repo.command(&["init", "--insecure-no-encryption"]).run().ok();
    let (old, kept, target) = (work.join("old.img"), work.join("kept.img"), work.join("target.img"));
    image::random(&old, 48 * MIB, 1);
    image::random(&kept, 16 * MIB, 2);
    let gone = repo.backup_id(&old, "old");
    let stays = repo.backup_id(&kept, "kept");
    for round in 0..2 {
        fill(&ballast);
        if round == 0 {
            repo.command(&["forget", &gone]).run().ok();
        }
        let done = repo.command(&["gc", "--grace", "0s", "--json"]).run().ok().json();
        let deleted = json::u64(&done, "deleted_bytes");
        assert_eq!(deleted > 40 * MIB, round == 0, "round {round}: {deleted} bytes were deleted");
        repo.verify_is_clean();
    }
    remove_if_there(&target);
    repo.restore(&stays, &target, &[]);
    compare::assert_identical(&kept, &target, "a point of a repository that was collected while full");
}

#[test]
fn init_on_a_full_disk() {
    let work = Workdir::new("full-init");
    let (mount, ballast) = small_disk(&work, 24 * MIB, MIB);
    let filler = mount.dir().join("filler");
    fill(&filler);
    let repo = Repo::at(&mount.dir().join("repo"), &work.join("state"), Access::Open);
    let failed = repo.command(&["init", "--insecure-no-encryption"]).run();
    failed.expect(&[code::FAILED]).says("disk is full");
    repo.command(&["list"]).run().expect(&[code::NO_REPOSITORY]);
    fs::remove_file(&ballast).unwrap();
    fs::remove_file(&filler).unwrap();
    // half an init must not be in the way of a whole one
    repo.command(&["init", "--insecure-no-encryption"]).run().ok();
    assert!(repo.point_ids().is_empty());
}

#[test]
fn the_target_runs_out_of_space() {
    let work = Workdir::new("full-target");
    let (mount, ballast) = small_disk(&work, 160 * MIB, 100 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let image = work.join("source.img");
    image::random(&image, 80 * MIB, 1);
    repo.backup(&image, "host", &[]);
    let target = mount.dir().join("target.img");
    let failed = repo.restore_command("latest", &target, &[]).run();
    failed.expect(&[code::FAILED, code::REFUSED]).says("full");
    fs::remove_file(&ballast).unwrap();
    repo.restore("latest", &target, &["--resume"]);
    compare::assert_identical(&image, &target, "after making room");
}

/// Not full but read-only, and not there at all.
#[test]
fn the_repository_cannot_be_written() {
    let work = Workdir::new("read-only");
    let disk = work.join("disk.img");
    FsKind::Ext4.make(&disk, 64 * MIB);
    let (image, target) = (work.join("source.img"), work.join("target.img"));
    image::mixed(&image, 5 * MIB, 1);
    let dir = work.join("disk");
    let repo = Repo::at(&dir.join("repo"), &work.join("state"), Access::Open);
    {
        let _mount = Mount::image(&disk, &dir);
        repo.command(&["init", "--insecure-no-encryption"]).run().ok();
        repo.backup(&image, "host", &[]);
    }
    {
        let device = LoopDev::attach_read_only(&disk);
        let _mount = Mount::device(device.path(), &dir, "ro");
        repo.backup_command(&image, "host", &[]).run().expect(&[code::FAILED]).says("read-only");
        repo.verify_is_clean();
        repo.restore("latest", &target, &[]);
        compare::assert_identical(&image, &target, "from a read-only repository");
    }
    repo.command(&["list"]).run().expect(&[code::NO_REPOSITORY]);
}
