//! `penstock ec2 backup` of machines with filesystems, of a machine of the largest size, and at the account's rate.

use std::fs;
use std::path::Path;

use penstock_lab::{Bucket, Fault, Quotas, Rule};
use penstock_tests::cloud::{self, Cloud};
use penstock_tests::filesystem::{FsKind, Mount, with_real_files};
use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, by_tier, image, json};

const BLOCK: u64 = 512 << 10;
const GIB: u64 = 1 << 30;

/// A day of use: packages, a log, a database file that is written in places, files that go.
fn a_day(cloud: &Cloud, work: &Workdir) {
    for (number, kind) in ["root", "data"].into_iter().enumerate() {
        let path = cloud.lab.volume_path(&cloud.web.volumes[number]).unwrap();
        let mount = Mount::image(&path, &work.join(kind));
        let mut rng = Rng::new(number as u64 + 3);
        let mut bytes = vec![0; 3 * MIB as usize];
        rng.fill(&mut bytes);
        fs::create_dir_all(mount.dir().join("day2")).unwrap();
        fs::write(mount.dir().join("day2/package"), &bytes).unwrap();
        fs::write(mount.dir().join("day2/log"), "Nov 24 host app[123]: request\n".repeat(50_000)).unwrap();
        let database = mount.dir().join("day2/database");
        fs::write(&database, vec![7; 4 * MIB as usize]).unwrap();
        let old: Vec<_> = files_of(mount.dir()).into_iter().take(20).collect();
        old.iter().for_each(|file| fs::remove_file(file).unwrap());
    }
}

fn files_of(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && entry.file_name() != "day2" {
            found.extend(files_of(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Blocks that differ between two files, in bytes.
fn differing(before: &Path, after: &Path) -> u64 {
    let (before, after) = (fs::read(before).unwrap(), fs::read(after).unwrap());
    let block = BLOCK as usize;
    before.chunks(block).zip(after.chunks(block)).filter(|(a, b)| a != b).count() as u64 * BLOCK
}

/// An ext4 root, an xfs volume, and one that is left out: two days in either mode, read either way.
fn a_machine(mode: &str, way: &str) {
    let work = Workdir::new("ec2_real");
    let (root, data) = (work.join("root.ext4"), work.join("data.xfs"));
    with_real_files(FsKind::Ext4, &root, GIB, 120 * MIB);
    with_real_files(FsKind::Xfs, &data, GIB, 60 * MIB);
    let cloud = Cloud::of_images(cloud::options(&work), "web-01", &[&root, &data]);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let options = ["--mode", mode, "--read", way];
    let first = cloud.backup(&repo, &options);
    assert_eq!(first["mode"], mode);
    assert_eq!(repo.roots(&first), cloud.roots_of_plain_backups(&repo, &work), "{mode} {way}: day 1");

    let before = [work.join("before-0.img"), work.join("before-1.img")];
    before.iter().zip(&cloud.web.volumes).for_each(|(path, id)| cloud.lab.volume_export(id, path).unwrap());
    a_day(&cloud, &work);
    let after = [work.join("after-0.img"), work.join("after-1.img")];
    after.iter().zip(&cloud.web.volumes).for_each(|(path, id)| cloud.lab.volume_export(id, path).unwrap());
    let changed: u64 = before.iter().zip(&after).map(|(a, b)| differing(a, b)).sum();

    let second = cloud.backup(&repo, &options);
    let read = json::over_volumes(&second, "read_bytes");
    assert!(
        changed > 10 * MIB && read * 10 <= changed * 13,
        "{mode} {way}: {read} bytes read, {changed} changed"
    );
    let new = json::over_volumes(&second, "new_bytes");
    assert!(new <= read, "{mode} {way}: {new} new bytes of {read} read");
    // what a full read of the very devices finds is what stands there, and not a chunk more is stored for it
    for (number, path) in after.iter().enumerate() {
        let full = repo.backup(path, "full", &["--no-parent"]);
        assert_eq!(json::over_volumes(&full, "new_chunks"), 0, "{mode} {way}: volume {number}");
        let full = repo.root(json::text(&full, "recovery_point"), 0);
        assert_eq!(full, repo.roots(&second)[number], "{mode} {way}: volume {number}");
    }
    let device = work.join("restored.img");
    let volume = format!("{}/{}", json::text(&second, "recovery_point"), cloud.web.volumes[1]);
    repo.restore(&volume, &device, &[]);
    assert_eq!(differing(&device, &after[1]), 0);
    drop(Mount::image(&device, &work.join("restored")));
}

#[test]
fn two_days_by_snapshots_and_calls() {
    a_machine("snapshots", "direct");
}

#[test]
fn two_days_by_snapshots_and_attached_volumes() {
    a_machine("snapshots", "attach");
}

#[test]
fn two_days_by_an_image_and_calls() {
    a_machine("ami", "direct");
}

#[test]
fn two_days_by_an_image_and_attached_volumes() {
    a_machine("ami", "attach");
}

/// The largest volume that the lab's file system holds, with a part of its blocks written; some of them change. What it takes follows the change, not the size.
#[test]
fn a_volume_of_16_tib_takes_what_its_change_takes() {
    let work = Workdir::new("ec2_real");
    let size_gib = 16_383;
    let size_bytes = size_gib * GIB;
    let volume = work.join("huge.img");
    let pieces = by_tier(300, 2_000);
    let step = size_bytes / pieces / BLOCK * BLOCK;
    let written: Vec<(u64, u64, u64)> = (0..pieces).map(|n| (n * step + 4096, 4096, n)).collect();
    image::sparse(&volume, size_bytes, &written);
    let root = work.join("root.img");
    image::mixed(&root, 4 * MIB, 1);
    let cloud = Cloud::of_images(cloud::options(&work), "huge", &[&root, &volume]);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let first = cloud.backup(&repo, &["--read", "direct"]);
    let memory = json::u64(&first, "memory_peak_bytes");
    println!("first night: {memory} bytes of memory");
    assert!(memory <= 300 * MIB, "first night: {memory} bytes");

    // runs of blocks, so that one in a hundred of the volume would be 164 GiB: as many as time allows, all over it
    let changed_blocks = by_tier(600, 335_544u64);
    let run = by_tier(1, 16);
    let huge = &cloud.web.volumes[1];
    let mut rng = Rng::new(3);
    let mut bytes = vec![0; 4096];
    for n in 0..changed_blocks / run {
        for block in 0..run {
            rng.fill(&mut bytes);
            let at = n * (size_bytes / (changed_blocks / run)) / BLOCK * BLOCK + block * BLOCK;
            cloud.lab.volume_write(huge, at, &bytes).unwrap();
        }
    }
    for way in ["direct", "attach"] {
        cloud.lab.calls.clear();
        let command = cloud.backup_command(&repo, &["--read", way]);
        let command = command.within(std::time::Duration::from_secs(by_tier(300, 1800)));
        let second = command.run().ok().json()[0].clone();
        let memory = json::u64(&second, "memory_peak_bytes");
        assert!(memory <= 300 * MIB, "{way}: {memory} bytes");
        let changed = if way == "direct" { changed_blocks } else { 1 };
        let of_huge = &json::list(&second, "volumes")[1];
        let read = json::u64(of_huge, "read_bytes");
        assert!(read <= changed * BLOCK * 13 / 10, "{way}: {read} bytes read of {changed} blocks");
        let calls = cloud.lab.calls.counts();
        let count = |action: &str| calls.get(action).map_or(0, |c| c.ok);
        if way == "direct" {
            assert_eq!(count("GetSnapshotBlock"), changed_blocks, "a block for each that changed");
        }
        let lists = count("ListChangedBlocks") + count("ListSnapshotBlocks");
        // planning lists once, reading lists for tokens
        assert!(lists <= 4 + 3 * changed_blocks.div_ceil(10_000), "{way}: {lists} listings");
        println!("{way}: {memory} bytes of memory, {} ms, {lists} listings", second["duration_ms"]);
        cloud.lab.volume_write(huge, 77 * BLOCK, &bytes).unwrap();
    }
}

/// At the account's rate nothing is refused, and every block comes once.
#[test]
fn the_rate_of_the_account_is_kept() {
    let work = Workdir::new("ec2_real");
    let rate = Bucket::new(40.0, 200.0);
    let mut options = cloud::options(&work);
    options.quotas = Quotas { get: rate, get_per_snapshot: rate, ..Quotas::off() };
    let image = work.join("root.img");
    image::random(&image, 300 * MIB, 1);
    let cloud = Cloud::of_images(options, "web-01", &[&image]);
    cloud.lab.faults.set(vec![Rule {
        action: "GetSnapshotBlock".into(),
        naming: None,
        share: 1.0,
        skip: 0,
        times: None,
        fault: Fault::Delay { ms: 20 },
    }]);
    let repo = Repo::encrypted(&work, "repo", &[]);
    cloud.backup(&repo, &["--read", "direct", "--ebs-get-rate", "200"]);
    let gets = cloud.lab.calls.counts()["GetSnapshotBlock"];
    assert_eq!((gets.ok, gets.throttled), (600, 0));
}
