//! Sources and targets on loop devices and on small mounted filesystems. Needs root.
#![allow(clippy::unwrap_used, missing_docs, clippy::single_range_in_vec_init)]

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::{ENGINES, Loop, Mount, is_root, pattern, read_all, run, scratch};
use penstock_engine::Error;
use penstock_engine::io::{AlignedBuf, BufPool, DurableWriter, WriteJob, spawn_writers};
use penstock_engine::source::{self, OpenOptions, Source, SourceKind};
use penstock_engine::target::{self, Target, TargetKind, TargetOptions};

fn open_source(path: &Path, force_live: bool) -> penstock_engine::Result<Box<dyn Source>> {
    source::open(path, OpenOptions { force_live, ..OpenOptions::default() })
}

fn open_target(path: &Path, size_bytes: u64) -> penstock_engine::Result<Target> {
    target::open(path, TargetOptions { size_bytes, ..Default::default() })
}

fn refusal<T>(result: penstock_engine::Result<T>) -> String {
    match result {
        Err(error @ (Error::SourceRefused { .. } | Error::TargetRefused { .. })) => error.to_string(),
        Err(error) => panic!("not a refusal: {error}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn devices_of_whole_sectors_are_read_exactly() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    for (sectors, sector_bytes) in [(1, "512"), (9, "512"), (8193, "512"), (1025 * 8, "4096")] {
        let contents = pattern(sectors * 512);
        let file = dir.path().join(format!("{sectors}"));
        std::fs::write(&file, &contents).unwrap();
        let device = Loop::over(&file, &["--read-only", "--sector-size", sector_bytes]);
        let source = open_source(&device.0, false).unwrap();
        assert_eq!(source.kind(), SourceKind::Device);
        assert_eq!(source.size_bytes(), Some(contents.len() as u64));
        assert_eq!(source.logical_block_bytes().to_string(), sector_bytes);
        assert_eq!(source.next_data(5).unwrap(), Some(5..contents.len() as u64));
        for engine in ENGINES {
            assert!(read_all(engine, &source.file().unwrap()) == contents, "{engine} {sectors} sectors");
        }
    }
}

#[test]
fn a_mounted_device_is_refused_only_if_writable() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let device = Loop::new(dir.path(), 16 << 20);
    run("mkfs.ext4", &["-q", device.path()]);
    let point = dir.path().join("mnt");
    let backing = dir.path().join(format!("loop-{}", 16 << 20));
    {
        let _mount = Mount::new(device.path(), &point, "rw");
        let text = refusal(open_source(&device.0, false));
        assert!(text.contains("mounted read-write at") && text.contains("--force-live"), "{text}");
        let text = refusal(open_source(&backing, false));
        assert!(text.contains("it backs /dev/loop"), "{text}");
        assert!(open_source(&device.0, true).is_ok());
        assert!(refusal(open_target(&device.0, 1 << 20)).contains("is mounted"));
        // A read-only view of a filesystem that is writable elsewhere.
        let view = dir.path().join("view");
        std::fs::create_dir(&view).unwrap();
        run("mount", &["--bind", "-o", "ro", point.to_str().unwrap(), view.to_str().unwrap()]);
        run("umount", &[point.to_str().unwrap()]);
        let found = open_source(&device.0, false);
        run("umount", &[view.to_str().unwrap()]);
        assert!(refusal(found).contains("mounted read-write"));
    }
    {
        let _mount = Mount::new(device.path(), &point, "ro");
        assert!(open_source(&device.0, false).is_ok());
        assert!(open_source(&backing, false).is_ok());
        assert!(refusal(open_target(&device.0, 1 << 20)).contains("mounted read-only"));
        let options = TargetOptions { size_bytes: 1 << 20, force: true, ..Default::default() };
        assert!(refusal(target::open(&device.0, options)).contains("is mounted"), "force does not unmount");
    }
    assert!(open_source(&device.0, false).is_ok());
}

#[test]
fn a_mounted_partition_makes_its_disk_live() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let disk = Loop::new(dir.path(), 32 << 20);
    // Told to the kernel, not found by it in a table: not every kernel reads those.
    run("addpart", &[disk.path(), "1", "2048", "32768"]);
    let partition = format!("{}p1", disk.path());
    run("mkfs.ext4", &["-q", &partition]);
    let mount = Mount::new(&partition, &dir.path().join("mnt"), "rw");
    assert!(refusal(open_source(&disk.0, false)).contains(&partition));
    assert!(refusal(open_target(&disk.0, 1 << 20)).contains(&partition));
    assert!(refusal(open_source(Path::new(&partition), false)).contains("mounted"));
    drop(mount);
    let identity = || open_source(Path::new(&partition), false).unwrap().identity().unwrap();
    let before = identity();
    let file = File::options().write(true).open(&disk.0).unwrap();
    file.write_all_at(&[1; 512], 2048 * 512).unwrap();
    file.sync_all().unwrap();
    assert_ne!(before, identity(), "written through the disk");
}

#[test]
fn every_member_of_a_mounted_btrfs_is_live() {
    if !is_root() || !Path::new("/usr/sbin/mkfs.btrfs").exists() {
        return;
    }
    let dir = scratch();
    let (one, two) = (Loop::new(dir.path(), 128 << 20), Loop::new(dir.path(), 129 << 20));
    run("mkfs.btrfs", &["-q", "-f", one.path(), two.path()]);
    run("btrfs", &["device", "scan", one.path(), two.path()]);
    let _mount = Mount::new(one.path(), &dir.path().join("mnt"), "rw");
    for member in [&one, &two] {
        let text = refusal(open_source(&member.0, false));
        assert!(text.contains("mounted read-write"), "{text}");
    }
}

#[test]
fn swap_is_live() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let device = Loop::new(dir.path(), 1 << 20);
    run("mkswap", &[device.path()]);
    run("swapon", &[device.path()]);
    let (source, target) = (open_source(&device.0, false), open_target(&device.0, 4096));
    run("swapoff", &[device.path()]);
    assert!(refusal(source).contains("active swap"));
    assert!(refusal(target).contains("active swap"));
}

#[test]
fn identity_changes_with_a_write_to_the_device() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let device = Loop::new(dir.path(), 1 << 20);
    let identity = || open_source(&device.0, false).unwrap().identity().unwrap();
    let before = identity();
    read_all(ENGINES[1], &open_source(&device.0, false).unwrap().file().unwrap());
    assert_eq!(before, identity(), "reading changes nothing");
    let file = File::options().write(true).open(&device.0).unwrap();
    file.write_all_at(&[1; 512], 0).unwrap();
    file.sync_all().unwrap();
    assert_ne!(before, identity());
}

#[test]
fn a_device_that_is_not_empty_is_refused() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let size = (3 << 20) + 512;
    let device = Loop::new(dir.path(), size);
    let target = open_target(&device.0, size).unwrap();
    assert_eq!((target.kind(), target.is_fresh()), (TargetKind::Device, false));
    let second = refusal(open_target(&device.0, size));
    assert!(
        second.contains(&format!("(process {}) has it open for writing", std::process::id())),
        "{second}"
    );
    drop(target);
    assert!(refusal(open_target(&device.0, size + 1)).contains("the volume has"));
    // Opened anew each time: a device that somebody has open for writing is refused for that.
    let write = |byte: u8, at: u64| {
        let file = File::options().write(true).open(&device.0).unwrap();
        file.write_all_at(&[byte], at).unwrap();
        file.sync_all().unwrap();
    };
    for at in [0, 700_000, size - 1] {
        write(1, at);
        let text = refusal(open_target(&device.0, size));
        assert!(text.contains("not empty") && text.contains(&at.to_string()), "{text}");
        write(0, at);
    }
    write(1, 0);
    for option in 0..4 {
        let options = TargetOptions {
            size_bytes: size,
            force: option == 0,
            resume: option == 1,
            must_hold_data: option == 2,
            zero: option == 3,
        };
        assert_eq!(target::open(&device.0, options).unwrap().is_fresh(), options.zero);
    }
}

#[test]
fn nothing_past_the_volume_is_touched_on_a_device() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let (size, volume) = (3 << 20, (2 << 20) + 1000);
    let file = dir.path().join("device");
    std::fs::write(&file, vec![5; size]).unwrap();
    let device = Loop::over(&file, &[]);
    let options = TargetOptions { size_bytes: volume, force: true, ..Default::default() };
    let target = target::open(&device.0, options).unwrap();
    assert_eq!(target.tail(), Some(2 << 20..volume));
    target.zero_range(3..volume).unwrap();
    assert!(target.zero_range(0..volume + 1).is_err());
    target.write_tail(2 << 20, &[8; 1000]).unwrap();
    assert!(target.write_tail(2 << 20, &[8; 1001]).is_err());
    target.finish().unwrap();
    let mut expected = vec![5; size];
    expected[3..2 << 20].fill(0);
    expected[2 << 20..volume as usize].fill(8);
    assert!(read_all(ENGINES[1], &target.file()) == expected[..volume as usize]);
    drop(target);
    assert!(read_all(ENGINES[0], &open_source(&device.0, false).unwrap().file().unwrap()) == expected);
    let allocated = std::fs::metadata(&file).unwrap().blocks() * 512;
    assert!(allocated < 2 << 20, "zeros give their space back: {allocated}");
}

#[test]
fn files_are_refused_unless_empty_or_asked_for() {
    let dir = scratch();
    let path = dir.path().join("t");
    let must = TargetOptions { size_bytes: 5000, must_hold_data: true, ..Default::default() };
    assert!(refusal(target::open(&path, must)).contains("does not exist"));
    File::create(&path).unwrap();
    assert!(refusal(target::open(&path, must)).contains("is empty"));
    assert!(open_target(&path, 5000).unwrap().is_fresh());
    std::fs::write(&path, [3; 9000]).unwrap();
    let text = refusal(open_target(&path, 5000));
    assert!(["--force", "--base", "--compare"].iter().all(|option| text.contains(option)), "{text}");
    let kept = target::open(&path, must).unwrap();
    assert!(!kept.is_fresh());
    kept.finish().unwrap();
    drop(kept);
    assert_eq!(std::fs::read(&path).unwrap(), [3; 5000]);
    let force = TargetOptions { size_bytes: 5000, force: true, ..Default::default() };
    let fresh = target::open(&path, force).unwrap();
    assert!(fresh.is_fresh() && fresh.kind() == TargetKind::File && fresh.size_bytes() == 5000);
    fresh.finish().unwrap();
    drop(fresh);
    assert_eq!(std::fs::read(&path).unwrap(), [0; 5000]);
    assert_eq!(std::fs::metadata(&path).unwrap().blocks(), 0);
    assert!(refusal(open_target(dir.path(), 1)).contains("neither"));
    assert!(refusal(open_target(Path::new("/dev/null"), 1)).contains("neither"));
    assert!(refusal(open_source(dir.path(), false)).contains("a directory"));
    if is_root() {
        let device = Loop::over(&path, &[]);
        assert!(refusal(target::open(&path, force)).contains(device.path()));
    }
}

#[test]
fn filesystems_without_direct_io_work_through_the_page_cache() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let point = dir.path().join("mnt");
    let _mount = Mount::of_type("ramfs", &point);
    for engine in ENGINES {
        let path = point.join(format!("{engine}-pack"));
        let writer = DurableWriter::new(engine, 4);
        let mut buf = AlignedBuf::new(5 << 20);
        buf.copy_from_slice(&pattern(5 << 20));
        writer.write_file(&path, buf, (5 << 20) - 1).0.unwrap();
        assert!(!writer.direct());
        let source = open_source(&path, false).unwrap();
        assert!(!source.file().unwrap().direct);
        assert_eq!(source.next_data(0).unwrap(), Some(0..(5 << 20) - 1));
        assert!(read_all(engine, &source.file().unwrap()) == pattern((5 << 20) - 1));
    }
    let path = point.join("target");
    std::fs::write(&path, [4; 10_000]).unwrap();
    let target =
        target::open(&path, TargetOptions { size_bytes: 9000, resume: true, ..Default::default() }).unwrap();
    assert!(!target.file().direct);
    target.zero_range(100..8500).unwrap();
    target.finish().unwrap();
    let mut expected = vec![4; 9000];
    expected[100..8500].fill(0);
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    assert!(!open_target(&point.join("new"), 9000).unwrap().file().direct);
}

#[test]
fn a_device_that_cannot_punch_is_zeroed_all_the_same() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let point = dir.path().join("mnt");
    let _mount = Mount::of_type("ramfs", &point);
    let path = point.join("backing");
    std::fs::write(&path, vec![6; 4 << 20]).unwrap();
    let device = Loop::over(&path, &[]);
    let punched = std::process::Command::new("fallocate")
        .args(["--punch-hole", "--offset", "0", "--length", "4096", device.path()])
        .output()
        .unwrap();
    assert!(!punched.status.success(), "ramfs has no holes, so the loop device offers none");
    let options = TargetOptions { size_bytes: 4 << 20, force: true, ..Default::default() };
    let target = target::open(&device.0, options).unwrap();
    target.zero_range(5000..3 << 20).unwrap();
    target.finish().unwrap();
    let mut expected = vec![6; 4 << 20];
    expected[5000..3 << 20].fill(0);
    assert!(read_all(ENGINES[0], &target.file()) == expected);
}

#[test]
fn a_full_disk_is_reported_as_such() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let device = Loop::new(dir.path(), 8 << 20);
    run("mkfs.ext4", &["-q", device.path()]);
    let point = dir.path().join("mnt");
    let _mount = Mount::new(device.path(), &point, "rw");
    for engine in ENGINES {
        let path = point.join("pack");
        let mut buf = AlignedBuf::new(16 << 20);
        buf.fill(1);
        let (result, buf) = DurableWriter::new(engine, 4).write_file(&path, buf, 16 << 20);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(buf.len() == 16 << 20 && !path.exists());

        let path = point.join("image");
        let target = open_target(&path, 32 << 20).unwrap();
        let pool = BufPool::new(8, 4 << 20);
        let (job_tx, job_rx) = async_channel::unbounded();
        let (done_tx, done_rx) = crossbeam::channel::unbounded();
        let threads = spawn_writers(engine, 1, 2, job_rx, done_tx).unwrap();
        for no in 0..8u64 {
            let (mut buf, file) = (pool.get_blocking().unwrap(), target.file());
            buf.fill(1);
            let job = WriteJob {
                tag: no,
                file,
                offset_bytes: no << 22,
                buf,
                ranges: vec![0..4 << 20],
                scattered: Vec::new(),
            };
            job_tx.send_blocking(job).unwrap();
        }
        drop(job_tx);
        let (_, error) = done_rx.iter().find_map(Result::err).unwrap();
        assert!(error.to_string().contains("the disk is full"), "{error}");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(target);
        std::fs::remove_file(&path).unwrap();
    }
}
