//! Restores that write only what differs, and targets that must not be written.

use std::fs;

use penstock_tests::filesystem::{FsKind, Mount};
use penstock_tests::loopdev::LoopDev;
use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::workdir::{Workdir, text};
use penstock_tests::{CHUNK_MAX, KIB, MIB, compare, image, json};

/// A repository with two points of one volume that differ in a few places, and how many bytes a restore may write for them.
struct TwoNights {
    repo: Repo,
    old: String,
    new: String,
    bound_bytes: u64,
}

fn two_nights(work: &Workdir, size_bytes: u64) -> TwoNights {
    let repo = Repo::encrypted(work, "repo", &[]);
    let (old_image, new_image) = (work.join("old.img"), work.join("new.img"));
    image::dense(&old_image, size_bytes, 1);
    fs::copy(&old_image, &new_image).unwrap();
    let mut rng = Rng::new(5);
    let mut bound_bytes = 0;
    for n in 0..6 {
        let length = rng.in_range(1..200 * KIB);
        let offset = rng.in_range(0..size_bytes - length);
        if n % 3 == 0 {
            image::patch(&new_image, offset, &vec![0; length as usize]); // data turned to zeros
        } else {
            image::patch_random(&new_image, offset, length, rng.next_u64());
        }
        bound_bytes += length + 2 * CHUNK_MAX + 2 * CHUNK_MAX;
    }
    let old = repo.backup_id(&old_image, "host");
    let new = repo.backup_id(&new_image, "host");
    TwoNights { repo, old, new, bound_bytes }
}

#[test]
fn base_writes_only_what_differs() {
    let work = Workdir::new("base");
    let nights = two_nights(&work, 64 * MIB);
    let target = work.join("target.img");
    // forward, back, and forward again
    nights.repo.restore(&nights.old, &target, &[]);
    for (base, point, image) in [
        (&nights.old, &nights.new, "new.img"),
        (&nights.new, &nights.old, "old.img"),
        (&nights.old, &nights.new, "new.img"),
    ] {
        let answer = nights.repo.restore(point, &target, &["--base", base]);
        let written = json::u64(&answer, "written_bytes");
        assert!(
            written <= nights.bound_bytes,
            "{written} bytes written, at most {}: {answer:#}",
            nights.bound_bytes
        );
        assert!(json::u64(&answer, "skipped_same_bytes") >= 64 * MIB - nights.bound_bytes, "{answer:#}");
        assert!(json::u64(&answer, "fetched_bytes") <= nights.bound_bytes + MIB, "{answer:#}");
        compare::assert_identical(&work.join(image), &target, image);
    }
    let same = nights.repo.restore(&nights.new, &target, &["--base", &nights.new]);
    assert_eq!(json::u64(&same, "written_bytes"), 0, "{same:#}");
    compare::assert_identical(&work.join("new.img"), &target, "base is the point itself");
}

#[test]
fn base_on_a_device() {
    let work = Workdir::new("base-device");
    let nights = two_nights(&work, 32 * MIB);
    let target = work.join("target.img");
    fs::copy(work.join("old.img"), &target).unwrap();
    {
        let device = LoopDev::attach(&target);
        let answer = nights.repo.restore(&nights.new, device.path(), &["--base", &nights.old]);
        assert!(json::u64(&answer, "written_bytes") <= nights.bound_bytes, "{answer:#}");
    }
    compare::assert_identical(&work.join("new.img"), &target, "base on a device");
}

/// A base of another size: what lies beyond it is unknown and has to be written.
#[test]
fn base_of_another_size() {
    let work = Workdir::new("base-size");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (small, large, target) = (work.join("small.img"), work.join("large.img"), work.join("target.img"));
    image::dense(&large, 21 * MIB + 999, 3);
    fs::write(&small, &fs::read(&large).unwrap()[..(10 * MIB + 5000) as usize]).unwrap();
    let small_point = repo.backup_id(&small, "host");
    let large_point = repo.backup_id(&large, "host");
    fs::copy(&small, &target).unwrap();
    repo.restore(&large_point, &target, &["--base", &small_point]);
    compare::assert_identical(&large, &target, "the base is smaller");
    repo.restore(&small_point, &target, &["--base", &large_point]);
    compare::assert_identical(&small, &target, "the base is larger");
}

#[test]
fn compare_finds_out_what_differs() {
    let work = Workdir::new("compare-target");
    let nights = two_nights(&work, 48 * MIB);
    let target = work.join("target.img");
    // the target is the old night, with damage that nobody knows of
    fs::copy(work.join("old.img"), &target).unwrap();
    image::patch_random(&target, 7 * MIB + 1, 3, 1);
    image::patch_random(&target, 48 * MIB - 1, 1, 2);
    let answer = nights.repo.restore(&nights.new, &target, &["--compare"]);
    let bound = nights.bound_bytes + 2 * CHUNK_MAX;
    assert!(json::u64(&answer, "written_bytes") <= bound, "{answer:#}");
    compare::assert_identical(&work.join("new.img"), &target, "--compare");
    // nothing in common
    image::garbage(&target, 50 * MIB);
    nights.repo.restore(&nights.new, &target, &["--compare"]);
    compare::assert_identical(&work.join("new.img"), &target, "--compare on garbage that is too long");
    // already right, on a device
    {
        let device = LoopDev::attach(&target);
        let answer = nights.repo.restore(&nights.new, device.path(), &["--compare"]);
        assert_eq!(json::u64(&answer, "written_bytes"), 0, "{answer:#}");
    }
    compare::assert_identical(&work.join("new.img"), &target, "--compare on the same");
}

#[test]
fn a_file_that_is_not_empty_is_refused() {
    let work = Workdir::new("refused-file");
    let nights = two_nights(&work, 8 * MIB);
    let target = work.join("target.img");
    fs::write(&target, b"precious").unwrap();
    let refused = nights.repo.restore_command(&nights.new, &target, &[]).run();
    refused.expect(&[code::REFUSED]).says("--force").says(text(&target));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    // an empty file has nothing to lose
    fs::write(&target, b"").unwrap();
    nights.repo.restore(&nights.new, &target, &[]);
    compare::assert_identical(&work.join("new.img"), &target, "an empty file");
    let directory = nights.repo.restore_command(&nights.new, work.path(), &["--force"]).run();
    directory.expect(&[code::REFUSED]);
}

#[test]
fn devices_that_hold_something_or_are_too_small_are_refused() {
    let work = Workdir::new("refused-device");
    let nights = two_nights(&work, 8 * MIB);
    let (used, small) = (work.join("used.img"), work.join("small.img"));
    FsKind::Ext4.make(&used, 16 * MIB);
    image::garbage(&small, 8 * MIB - 4096);
    let before = compare::blake3_hex(&used);
    {
        let device = LoopDev::attach(&used);
        nights
            .repo
            .restore_command(&nights.new, device.path(), &[])
            .run()
            .expect(&[code::REFUSED])
            .says("--force");
    }
    assert_eq!(compare::blake3_hex(&used), before, "a refused target was written");
    let before = compare::blake3_hex(&small);
    {
        let device = LoopDev::attach(&small);
        let refused = nights.repo.restore_command(&nights.new, device.path(), &["--force"]).run();
        refused.expect(&[code::REFUSED]).says("small");
    }
    assert_eq!(compare::blake3_hex(&small), before, "a refused target was written");
}

#[test]
fn a_mounted_device_is_no_target() {
    let work = Workdir::new("refused-mounted");
    let nights = two_nights(&work, 8 * MIB);
    let image = work.join("mounted.img");
    FsKind::Ext4.make(&image, 16 * MIB);
    let device = LoopDev::attach(&image);
    let mount = Mount::device(device.path(), &work.join("mnt"), "rw");
    fs::write(mount.dir().join("file"), b"precious").unwrap();
    for args in [&[][..], &["--force"]] {
        let refused = nights.repo.restore_command(&nights.new, device.path(), args).run();
        refused.expect(&[code::REFUSED]).says("mounted");
    }
    assert_eq!(fs::read(mount.dir().join("file")).unwrap(), b"precious");
}

#[test]
fn a_live_source_needs_force_live() {
    let work = Workdir::new("live");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let image = work.join("live.img");
    FsKind::Ext4.make(&image, 32 * MIB);
    let device = LoopDev::attach(&image);
    {
        let mount = Mount::device(device.path(), &work.join("mnt"), "rw");
        fs::write(mount.dir().join("file"), b"live").unwrap();
        let refused = repo.backup_command(device.path(), "host", &[]).run();
        refused.expect(&[code::REFUSED]).says("--force-live").says("mounted");
        assert!(repo.point_ids().is_empty());
        repo.backup(device.path(), "host", &["--force-live"]);
    }
    // mounted read-only it holds still
    let _mount = Mount::device(device.path(), &work.join("mnt"), "ro");
    repo.backup(device.path(), "host", &[]);
    let target = work.join("target.img");
    repo.restore("latest", &target, &[]);
    compare::assert_identical(device.path(), &target, "mounted read-only");
}
