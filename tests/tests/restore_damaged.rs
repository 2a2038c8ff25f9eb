//! `restore --skip-damaged`: from a damaged repository comes all that can be read, and a list of what is not right.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use penstock_tests::damage::{Action, Damaged, Kind, Place};
use penstock_tests::loopdev::LoopDev;
use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::workdir::{Workdir, remove_if_there, text};
use penstock_tests::{KIB, MIB, compare, image, json};

/// The volume's length: no whole block at the end.
const IMAGE_BYTES: u64 = 40 * MIB + 700;

/// A repository of small packs, and the image in it.
struct Patient {
    work: Workdir,
    repo: Repo,
    image: PathBuf,
    point: String,
}

impl Patient {
    fn new(label: &str, chunker: &str) -> Self {
        let work = Workdir::new(label);
        let repo = Repo::encrypted(&work, "repo", &["--pack-size", "8MiB", "--chunker", chunker]);
        let image = work.join("source.img");
        image::random(&image, IMAGE_BYTES, 1);
        // Zeros, which are in no pack.
        image::patch(&image, 5 * MIB, &vec![0; (3 * MIB) as usize]);
        let point = repo.backup_id(&image, "host");
        Self { work, repo, image, point }
    }

    fn data_packs(&self) -> Vec<PathBuf> {
        let packs = Kind::Data.objects(&self.repo.dir);
        assert!(packs.len() >= 4, "{packs:?}");
        packs
    }

    /// One pack is gone, one is cut in half, and one has a flipped bit.
    fn hurt(&self) -> [Damaged; 3] {
        let mut packs = self.data_packs();
        packs.sort_by_key(|pack| std::cmp::Reverse(fs::metadata(pack).unwrap().len()));
        [
            Damaged::new(&packs[0], Action::Delete, &[]),
            Damaged::new(&packs[1], Action::TruncateHalf, &[]),
            Damaged::new(&packs[2], Action::Flip(Place::Share(0.5)), &[]),
        ]
    }

    /// The ranges that `verify` says are hurt.
    fn hurt_ranges(&self, point: &str) -> Vec<Range<u64>> {
        let answer =
            self.repo.command(&["verify", "--read-data", "--json"]).run().expect(&[code::DAMAGE]).json();
        let hurt =
            json::list(&answer, "hurt").iter().find(|hurt| json::text(hurt, "recovery_point") == point);
        ranges(hurt.unwrap_or_else(|| panic!("{point} is not hurt: {answer:#}")), "ranges")
    }

    /// `restore --skip-damaged` that leaves something out; the ranges it names.
    #[track_caller]
    fn restore(&self, point: &str, target: &Path, args: &[&str]) -> Vec<Range<u64>> {
        let args = [&["--skip-damaged"], args].concat();
        let answer = self.repo.restore_command(point, target, &args).run().expect(&[code::IN_PART]).json();
        let damaged = ranges(&answer, "damaged_ranges");
        assert_eq!(json::u64(&answer, "damaged_bytes"), damaged.iter().map(|r| r.end - r.start).sum::<u64>());
        assert!(!json::list(&answer, "problems").is_empty(), "{answer:#}");
        damaged
    }
}

fn ranges(answer: &Value, field: &str) -> Vec<Range<u64>> {
    let range = |range: &Value| {
        let offset = json::u64(range, "offset");
        offset..offset + json::u64(range, "length")
    };
    json::list(answer, field).iter().map(range).collect()
}

/// Asserts that outside of `damaged` the target is `expected`, and inside it `instead`; `None` is zeros.
#[track_caller]
fn assert_restored(
    expected: &Path,
    found: &[u8],
    damaged: &[Range<u64>],
    instead: Option<&[u8]>,
    context: &str,
) {
    let mut wanted = fs::read(expected).unwrap();
    for range in damaged {
        let range = range.start as usize..range.end as usize;
        match instead {
            Some(instead) => wanted[range.clone()].copy_from_slice(&instead[range]),
            None => wanted[range].fill(0),
        }
    }
    assert_eq!(wanted.len(), found.len(), "{context}: length");
    let first = wanted.iter().zip(found).position(|(a, b)| a != b);
    assert_eq!(first, None, "{context}: differs first there; damaged are {damaged:?}");
}

fn target_bytes(target: &Path) -> Vec<u8> {
    let mut bytes = vec![0; IMAGE_BYTES as usize];
    File::open(target).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn all_that_can_be_read_is_restored_to_every_kind_of_target() {
    for chunker in ["block", "fastcdc"] {
        let patient = Patient::new("skip-damaged", chunker);
        let (work, image, point) = (&patient.work, &patient.image, &patient.point);
        let target = work.join("target.img");
        let hurt = patient.hurt();
        let damaged = patient.hurt_ranges(point);
        let bytes: u64 = damaged.iter().map(|r| r.end - r.start).sum();
        assert!((8 * MIB..30 * MIB).contains(&bytes), "a pack and a half, and a chunk: {bytes}");

        let failed = patient.repo.restore_command(point, &target, &[]).run();
        failed.expect(&[code::DAMAGE]);
        let plain = patient.repo.command(&["restore", point, text(&target), "--force"]).run();
        plain.expect(&[code::DAMAGE]).says("--skip-damaged");

        // a new file, and one that held something
        remove_if_there(&target);
        assert_eq!(patient.restore(point, &target, &[]), damaged, "{chunker}: as verify says");
        assert_restored(image, &fs::read(&target).unwrap(), &damaged, None, "a new file");
        image::garbage(&target, 50 * MIB);
        assert_eq!(patient.restore(point, &target, &["--force"]), damaged);
        assert_restored(image, &fs::read(&target).unwrap(), &damaged, None, "--force");

        // a device that held something, and is larger
        image::garbage(&target, 48 * MIB);
        {
            let device = LoopDev::attach(&target);
            assert_eq!(patient.restore(point, device.path(), &["--force"]), damaged);
            device.flush();
        }
        assert_restored(image, &target_bytes(&target), &damaged, None, "a device");
        let behind = &fs::read(&target).unwrap()[IMAGE_BYTES as usize..];
        assert!(behind.iter().all(|byte| *byte == 0xa5), "what is behind the volume is touched");

        // standard output
        let piped = work.join("piped.img");
        let output =
            patient.repo.command(&["restore", point, "-", "--skip-damaged", "--json"]).stdout(&piped).run();
        let output = output.expect(&[code::IN_PART]);
        assert_restored(image, &fs::read(&piped).unwrap(), &damaged, None, "standard output");
        let line = output.stderr.lines().find(|line| line.contains("damaged_ranges")).unwrap();
        assert_eq!(ranges(&serde_json::from_str(line).unwrap(), "damaged_ranges"), damaged);

        // an image of qemu's
        let (qcow2, raw) = (work.join("disk.qcow2"), work.join("raw.img"));
        remove_if_there(&qcow2);
        assert_eq!(patient.restore(point, &qcow2, &["--format", "qcow2"]), damaged);
        let converted = Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", "raw", text(&qcow2), text(&raw)])
            .status()
            .unwrap();
        assert!(converted.success());
        assert_restored(image, &target_bytes(&raw), &damaged, None, "qcow2");

        // Mended, what is missing is all that is written.
        drop(hurt);
        image::garbage(&target, IMAGE_BYTES);
        fs::write(&target, fs::read(&piped).unwrap()).unwrap();
        let answer = patient.repo.restore(point, &target, &["--compare"]);
        assert!(json::u64(&answer, "written_bytes") <= bytes + 64 * KIB, "{answer:#}");
        compare::assert_identical(image, &target, "mended");
    }
}

/// For people: exit code 3, what is missing, and why.
#[test]
fn what_is_missing_is_told() {
    let patient = Patient::new("skip-told", "block");
    let target = patient.work.join("target.img");
    let pack = patient.data_packs()[0].clone();
    let _hurt = Damaged::new(&pack, Action::Delete, &[]);
    let args = ["restore", &patient.point, text(&target), "--skip-damaged"];
    let output = patient.repo.command(&args).run().expect(&[code::IN_PART]);
    output.says("NOT RESTORED").says(pack.file_name().unwrap().to_str().unwrap());
    // Nothing is amiss: nothing is told.
    drop(_hurt);
    fs::remove_file(&target).unwrap();
    let answer = patient.repo.restore(&patient.point, &target, &["--skip-damaged"]);
    assert_eq!((json::list(&answer, "damaged_ranges").len(), json::u64(&answer, "damaged_bytes")), (0, 0));
    compare::assert_identical(&patient.image, &target, "not hurt");
}

/// A target that holds a state of the volume keeps what it has where the new one cannot be read.
#[test]
fn a_state_that_is_there_is_kept_where_the_new_one_is_lost() {
    for chunker in ["block", "fastcdc"] {
        let patient = Patient::new("skip-keeps", chunker);
        let (work, repo) = (&patient.work, &patient.repo);
        let first_packs = patient.data_packs();
        let second = work.join("second.img");
        fs::copy(&patient.image, &second).unwrap();
        let mut rng = Rng::new(3);
        for no in 0..60 {
            let (offset, length) = (rng.in_range(0..IMAGE_BYTES - 300 * KIB), rng.in_range(1..300 * KIB));
            image::patch_random(&second, offset, length, no);
        }
        let point = repo.backup_id(&second, "host");
        let added: Vec<PathBuf> =
            patient.data_packs().into_iter().filter(|pack| !first_packs.contains(pack)).collect();
        let _hurt = Damaged::new(&added[0], Action::ZeroMiddle, &[]);
        let old = fs::read(&patient.image).unwrap();
        let target = work.join("target.img");
        for args in [&["--base", &patient.point][..], &["--compare"]] {
            fs::copy(&patient.image, &target).unwrap();
            let damaged = patient.restore(&point, &target, args);
            let context = format!("{chunker} {args:?}");
            assert_restored(&second, &fs::read(&target).unwrap(), &damaged, Some(&old), &context);
            // A loop device has whole sectors only.
            let padded = work.join("padded.img");
            fs::write(&padded, [&old[..], &vec![0; 8192 - IMAGE_BYTES as usize % 4096]].concat()).unwrap();
            let on_device = {
                let device = LoopDev::attach(&padded);
                let damaged = patient.restore(&point, device.path(), args);
                device.flush();
                damaged
            };
            assert_restored(&second, &target_bytes(&padded), &on_device, Some(&old), &context);
        }
    }
}

/// After many nights most chunks come deferred, apart from their segments.
#[test]
fn deferred_chunks_are_left_out_too() {
    let patient = Patient::new("skip-deferred", "block");
    let (work, repo) = (&patient.work, &patient.repo);
    let mut rng = Rng::new(5);
    for night in 0..6 {
        for _ in 0..40 {
            let block = rng.in_range(0..IMAGE_BYTES / 4096 - 4);
            image::patch_random(&patient.image, block * 4096, 3 * 4096, rng.next_u64() + night);
        }
        repo.backup(&patient.image, "host", &[]);
    }
    let packs = patient.data_packs();
    let smallest = |pack: &PathBuf| fs::metadata(pack).unwrap().len();
    let mut small = packs.clone();
    small.sort_by_key(smallest);
    let _hurt = [
        Damaged::new(&small[0], Action::Delete, &[]),
        Damaged::new(&small[1], Action::ZeroMiddle, &[]),
        Damaged::new(&small[2], Action::TruncateHalf, &[]),
    ];
    let point = repo.point_ids().pop().unwrap();
    let damaged = patient.hurt_ranges(&point);
    let target = work.join("target.img");
    assert_eq!(patient.restore(&point, &target, &[]), damaged);
    assert_restored(&patient.image, &fs::read(&target).unwrap(), &damaged, None, "a new file");
    image::garbage(&target, IMAGE_BYTES);
    assert_eq!(patient.restore(&point, &target, &["--force"]), damaged);
    assert_restored(&patient.image, &fs::read(&target).unwrap(), &damaged, None, "over garbage");
}

/// Manifests, and what places chunks.
#[test]
fn lost_manifests_are_lost_segments() {
    let patient = Patient::new("skip-manifest", "block");
    let (work, repo) = (&patient.work, &patient.repo);
    let first: Vec<PathBuf> = Kind::Meta.objects(&repo.dir);
    let second = work.join("second.img");
    fs::copy(&patient.image, &second).unwrap();
    image::patch_random(&second, 9 * MIB, 100 * KIB, 3);
    let point = repo.backup_id(&second, "host");
    let meta = Kind::Meta.objects(&repo.dir);
    assert!(meta.iter().any(|pack| !first.contains(pack)));
    let target = work.join("target.img");
    let old = fs::read(&patient.image).unwrap();
    // The leaves of the first night: what is unchanged is lost with them, and what changed is not.
    {
        let _hurt = first.iter().map(|pack| Damaged::new(pack, Action::Delete, &[])).collect::<Vec<_>>();
        let damaged = patient.restore(&point, &target, &[]);
        assert_eq!(damaged, [0..8 * MIB, 12 * MIB..IMAGE_BYTES], "all but the segment that changed");
        assert_restored(&second, &fs::read(&target).unwrap(), &damaged, None, "a new file");
        // Everything is lost.
        remove_if_there(&target);
        let damaged = patient.restore(&patient.point, &target, &[]);
        assert_eq!((damaged.len(), &damaged[0]), (1, &(0..IMAGE_BYTES)));
        assert!(fs::read(&target).unwrap().iter().all(|byte| *byte == 0));
        let piped = work.join("piped.img");
        let args = ["restore", &point, "-", "--skip-damaged"];
        repo.command(&args).stdout(&piped).run().expect(&[code::IN_PART]);
        assert_restored(
            &second,
            &fs::read(&piped).unwrap(),
            &[0..8 * MIB, 12 * MIB..IMAGE_BYTES],
            None,
            "piped",
        );
        fs::copy(&patient.image, &target).unwrap();
        let damaged = patient.restore(&point, &target, &["--compare"]);
        assert_restored(&second, &fs::read(&target).unwrap(), &damaged, Some(&old), "--compare");
    }
    // An index segment: its chunks are nowhere.
    let index = Kind::Index.objects(&repo.dir);
    let _hurt = Damaged::new(&index[0], Action::Delete, &[]);
    remove_if_there(&target);
    let damaged = patient.restore(&point, &target, &[]);
    assert_restored(&second, &fs::read(&target).unwrap(), &damaged, None, "without an index segment");
}

/// What a run that was stopped left out is left out, and told, by the one that continues.
#[test]
fn damage_is_told_after_resume() {
    let patient = Patient::new("skip-resume", "block");
    let target = patient.work.join("target.img");
    let _hurt = patient.hurt();
    let damaged = patient.hurt_ranges(&patient.point);
    let slowly = ["--io-engine", "pread", "--queue-depth", "1", "--workers", "1", "--skip-damaged"];
    let mut running = patient
        .repo
        .restore_command(&patient.point, &target, &slowly)
        .with_faults(&["inject=pwrite64:delay_enter=250000"])
        .spawn();
    let journal = patient.work.join(".target.img.penstock-restore");
    let records =
        |bytes: Vec<u8>| bytes.iter().position(|byte| *byte == b'\n').map_or(0, |n| bytes.len() - n - 1);
    while fs::read(&journal).map_or(0, records) < 3 * 12 {
        assert!(!running.ended(), "it ended too early");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    running.kill();
    running.wait();
    assert_eq!(patient.restore(&patient.point, &target, &["--resume"]), damaged);
    assert_restored(&patient.image, &fs::read(&target).unwrap(), &damaged, None, "resumed");
}
