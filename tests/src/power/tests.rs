//! The model by itself, then through the kernel.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::{CWD, FallocateFlags, FlockOperation, RenameFlags, fallocate, flock, renameat_with};
use rustix::io::Errno;

use super::*;
use crate::workdir::Workdir;

const ALL_STAYS: Odds = Odds { data: 100, sizes: 100, additions: 100, removals: 100 };

fn make(disk: &mut Disk, dir: Ino, name: &str, bytes: &[u8]) -> Ino {
    let ino = disk.make(dir, OsStr::new(name), 0o644, false).unwrap();
    disk.write(ino, 0, bytes).unwrap();
    ino
}

fn contents(disk: &Disk, name: &str) -> Option<Vec<u8>> {
    let ino = disk.lookup(ROOT, OsStr::new(name)).ok()?;
    Some(disk.read(ino, 0, 1 << 20).unwrap())
}

fn forgetful(disk: &Disk) -> Disk {
    disk.after_power_cut(&mut Rng::new(1), Odds::NOTHING_STAYS)
}

#[test]
fn only_file_and_directory_together_are_there_for_sure() {
    for (file_synced, dir_synced) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut disk = Disk::default();
        let ino = make(&mut disk, ROOT, "a", &[7; 5000]);
        if file_synced {
            disk.sync_file(ino).unwrap();
        }
        if dir_synced {
            disk.sync_dir(ROOT).unwrap();
        }
        let expected = match (file_synced, dir_synced) {
            (_, false) => None,
            (false, true) => Some(Vec::new()),
            (true, true) => Some(vec![7; 5000]),
        };
        assert_eq!(contents(&forgetful(&disk), "a"), expected, "file {file_synced}, directory {dir_synced}");
        let all = disk.after_power_cut(&mut Rng::new(1), ALL_STAYS);
        assert_eq!(contents(&all, "a"), Some(vec![7; 5000]));
    }
}

#[test]
fn what_is_behind_a_lost_directory_is_lost() {
    let mut disk = Disk::default();
    let dir = disk.make(ROOT, OsStr::new("d"), 0o755, true).unwrap();
    let ino = make(&mut disk, dir, "a", b"x");
    disk.sync_file(ino).unwrap();
    disk.sync_dir(dir).unwrap();
    assert!(forgetful(&disk).lookup(ROOT, OsStr::new("d")).is_err());
    disk.sync_dir(ROOT).unwrap();
    let left = forgetful(&disk);
    let dir = left.lookup(ROOT, OsStr::new("d")).unwrap();
    assert!(left.lookup(dir, OsStr::new("a")).is_ok());
}

#[test]
fn a_removed_name_comes_back_and_a_rename_is_undone() {
    let mut disk = Disk::default();
    make(&mut disk, ROOT, "a", b"old");
    make(&mut disk, ROOT, "b", b"other");
    disk.settle();
    disk.remove(ROOT, OsStr::new("a"), false).unwrap();
    disk.rename((ROOT, OsStr::new("b")), (ROOT, OsStr::new("c")), true).unwrap();
    let left = forgetful(&disk);
    assert_eq!(contents(&left, "a").as_deref(), Some(&b"old"[..]));
    assert_eq!((contents(&left, "b").as_deref(), contents(&left, "c")), (Some(&b"other"[..]), None));
    // the old name gone and the new one not there: no journal does that
    let odds = Odds { removals: 100, ..Odds::NOTHING_STAYS };
    let left = disk.after_power_cut(&mut Rng::new(1), odds);
    assert!(contents(&left, "b").is_some() && contents(&left, "a").is_none());
    disk.sync_dir(ROOT).unwrap();
    let left = forgetful(&disk);
    assert_eq!((contents(&left, "a"), contents(&left, "b")), (None, None));
    assert_eq!(contents(&left, "c").as_deref(), Some(&b"other"[..]));
}

#[test]
fn old_contents_come_back_after_truncation() {
    let mut disk = Disk::default();
    let ino = make(&mut disk, ROOT, "a", &[1; 9000]);
    disk.settle();
    disk.set_size(ino, 0).unwrap();
    disk.set_size(ino, 6000).unwrap();
    assert_eq!(contents(&disk, "a"), Some(vec![0; 6000]));
    assert_eq!(contents(&forgetful(&disk), "a"), Some(vec![1; 9000]));
    let odds = Odds { sizes: 100, ..Odds::NOTHING_STAYS };
    let left = disk.after_power_cut(&mut Rng::new(1), odds);
    assert_eq!(contents(&left, "a"), Some(vec![1; 6000]), "the length without the data");
    disk.sync_file(ino).unwrap();
    assert_eq!(contents(&forgetful(&disk), "a"), Some(vec![0; 6000]));
}

/// Whatever happens later, by whatever odds: what was synced last, or something since.
#[test]
fn every_page_and_name_is_what_it_was_or_became() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut disk = Disk::default();
        let ino = make(&mut disk, ROOT, "a", &[1; 4 * PAGE_BYTES]);
        disk.settle();
        disk.write(ino, PAGE_BYTES as u64, &[2; 2 * PAGE_BYTES]).unwrap();
        disk.set_size(ino, 3 * PAGE_BYTES as u64 + 100).unwrap();
        disk.rename((ROOT, OsStr::new("a")), (ROOT, OsStr::new("b")), false).unwrap();
        let odds = Odds::drawn(&mut rng);
        let left = disk.after_power_cut(&mut rng, odds);
        for name in ["a", "b"] {
            let Some(found) = contents(&left, name) else { continue };
            assert!([3 * PAGE_BYTES + 100, 4 * PAGE_BYTES].contains(&found.len()), "seed {seed}");
            for (at, byte) in found.iter().enumerate() {
                let may: &[u8] = match at / PAGE_BYTES {
                    0 => &[1],
                    1 | 2 => &[1, 2],
                    _ if at % PAGE_BYTES < 100 => &[1],
                    _ => &[0, 1],
                };
                assert!(may.contains(byte), "seed {seed}: {byte} at {at}");
            }
        }
        assert!(contents(&left, "a").is_some() || contents(&left, "b").is_some(), "seed {seed}");
    }
}

#[test]
fn flaws_are_what_they_say() {
    for flaw in [Flaw::FilesNotSynced, Flaw::DirectoriesNotSynced] {
        let mut disk = Disk::default();
        disk.flaw = flaw;
        let ino = make(&mut disk, ROOT, "a", b"x");
        disk.sync_file(ino).unwrap();
        disk.sync_dir(ROOT).unwrap();
        let expected = if flaw == Flaw::FilesNotSynced { Some(Vec::new()) } else { None };
        assert_eq!(contents(&forgetful(&disk), "a"), expected);
    }
}

/// What penstock asks of a filesystem, through the kernel.
#[test]
fn it_is_a_filesystem() {
    let work = Workdir::new("power");
    let disk = Powered::mount(Disk::default(), &work.join("disk"), None);
    let dir = disk.dir().join("d");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("a");
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(&path)
        .unwrap();
    direct.write_all_at(&vec![3; 5 << 20], 0).unwrap();
    let mut read = vec![0; 5 << 20];
    direct.read_exact_at(&mut read, 0).unwrap();
    assert!(read.iter().all(|byte| *byte == 3));
    fallocate(&direct, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 8192).unwrap();
    fallocate(&direct, FallocateFlags::empty(), 0, 6 << 20).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 6 << 20);
    assert!(fs::read(&path).unwrap()[4096..12288].iter().all(|byte| *byte == 0));
    // of two descriptors one has the lock
    let other = File::open(&path).unwrap();
    flock(&direct, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(flock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    let noreplace =
        |from: &str, to: &str| renameat_with(CWD, dir.join(from), CWD, dir.join(to), RenameFlags::NOREPLACE);
    fs::write(dir.join("b"), b"b").unwrap();
    assert_eq!(noreplace("b", "a"), Err(Errno::EXIST));
    noreplace("b", "c").unwrap();
    fs::hard_link(dir.join("c"), dir.join("e")).unwrap();
    assert!(fs::hard_link(dir.join("c"), dir.join("e")).is_err());
    OpenOptions::new().append(true).open(dir.join("e")).unwrap().write_all(b"!").unwrap();
    assert_eq!(fs::read(dir.join("c")).unwrap(), b"b!");
    for n in 0..300 {
        fs::write(dir.join(format!("many-{n}")), b"").unwrap();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 303);
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(fs::read_dir(disk.dir()).unwrap().count(), 0);
    drop((direct, other));

    let kept = disk.dir().join("kept");
    let file = File::create(&kept).unwrap();
    (&file).write_all(b"kept").unwrap();
    file.sync_all().unwrap();
    fs::write(disk.dir().join("lost"), b"lost").unwrap();
    File::open(disk.dir()).unwrap().sync_all().unwrap();
    fs::write(disk.dir().join("never"), b"never").unwrap();
    drop(file);
    let left = disk.cut(&mut Rng::new(1), Odds::NOTHING_STAYS);
    let disk = Powered::mount(left, &work.join("disk"), None);
    assert_eq!(fs::read(disk.dir().join("kept")).unwrap(), b"kept");
    assert_eq!(fs::read(disk.dir().join("lost")).unwrap(), b"");
    assert!(!disk.dir().join("never").exists());
}

#[test]
fn everything_fails_from_the_cut_on() {
    let work = Workdir::new("power-stop");
    let disk = Powered::mount(Disk::default(), &work.join("disk"), Some(3));
    fs::create_dir(disk.dir().join("1")).unwrap();
    fs::create_dir(disk.dir().join("2")).unwrap();
    assert!(!disk.is_stopped());
    assert!(fs::create_dir(disk.dir().join("3")).is_err());
    assert!(disk.wait_stopped(Duration::from_secs(5)));
    assert!(fs::read_dir(disk.dir().join("1")).is_err());
    disk.go_on(None);
    assert!(disk.dir().join("3").exists(), "it was made, and nobody heard of it");
}
