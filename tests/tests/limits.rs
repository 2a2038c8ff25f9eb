//! Volumes of EBS's largest sizes: bounded memory, tiny manifests. Durations are printed, never asserted: timing belongs to benches.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use penstock_tests::damage::Kind;
use penstock_tests::filesystem::{FsKind, Mount};
use penstock_tests::repo::Repo;
use penstock_tests::workdir::{Workdir, files_under, text};
use penstock_tests::{BLOCK, GIB, MIB, SEGMENT, TIB, compare, image, json};

/// `docs/PERFORMANCE.md`: for any volume size at two workers.
const MEMORY_MAX_BYTES: u64 = 256 * MIB;

/// Bytes of all metadata packs and index segments.
fn metadata_bytes(repo: &Repo) -> u64 {
    let objects = [Kind::Meta, Kind::Index].into_iter().flat_map(|kind| kind.objects(&repo.dir));
    objects.map(|path| std::fs::metadata(path).unwrap().len()).sum()
}

#[test]
fn one_tebibyte_with_little_in_it() {
    let work = Workdir::new("tebibyte");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target, list) =
        (work.join("source.img"), work.join("target.img"), work.join("changed.jsonl"));
    let extents = [
        (0, MIB, 1),
        (3 * GIB + 4096, 10 * MIB, 2),
        (511 * GIB - 8192, 16384, 3),
        (700 * GIB + 1, 100_000, 4),
        (TIB - BLOCK, BLOCK, 5),
    ];
    image::sparse(&source, TIB, &extents);
    let began = Instant::now();
    let answer = repo.backup(&source, "host", &["--workers", "2"]);
    println!("backup of 1 TiB: {:?}", began.elapsed());
    assert_eq!(json::over_volumes(&answer, "size_bytes"), TIB);
    assert!(json::u64(&answer, "memory_peak_bytes") <= MEMORY_MAX_BYTES, "{answer:#}");
    let read = json::over_volumes(&answer, "read_bytes");
    assert!(read <= 64 * MIB, "{read} bytes read: holes were read");
    assert!(metadata_bytes(&repo) < MIB, "{} bytes of metadata", metadata_bytes(&repo));

    let began = Instant::now();
    let answer = repo.restore("latest", &target, &["--workers", "2"]);
    println!("restore of 1 TiB: {:?}", began.elapsed());
    assert!(json::u64(&answer, "written_bytes") <= 64 * MIB, "{answer:#}");
    compare::assert_identical_sparse(&source, &target, "1 TiB");

    // the next night, by list
    image::patch_random(&source, 900 * GIB + 777, 20_000, 9);
    std::fs::write(&list, format!("{{\"offset\": {}, \"length\": 20000}}\n", 900 * GIB + 777)).unwrap();
    let began = Instant::now();
    let base = repo.point_ids().pop().unwrap();
    let list_args = ["--workers", "2", "--changed-extents", text(&list), "--parent", &base];
    let answer = repo.backup(&source, "host", &list_args);
    println!("backup of 1 TiB by list: {:?}", began.elapsed());
    assert!(json::over_volumes(&answer, "read_bytes") <= MIB, "{answer:#}");
    let began = Instant::now();
    let answer = repo.restore("latest", &target, &["--base", "latest"]);
    assert_eq!(json::u64(&answer, "written_bytes"), 0, "the base is the point itself");
    let points = repo.point_ids();
    repo.restore("latest", &target, &["--base", &points[0]]);
    println!("two incremental restores of 1 TiB: {:?}", began.elapsed());
    compare::assert_identical_sparse(&source, &target, "1 TiB, second night");
    repo.verify_is_clean();
}

/// ext4 ends just below 16 TiB, so the file is on an XFS of its own.
#[test]
fn sixteen_tebibytes() {
    let work = Workdir::new("sixteen");
    let disk = work.join("xfs.img");
    FsKind::Xfs.make(&disk, 512 * MIB);
    let mount = Mount::image(&disk, &work.join("xfs"));
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target) = (mount.dir().join("source.img"), mount.dir().join("target.img"));
    for (label, extents) in
        [("empty", &[][..]), ("with something at the end", &[(16 * TIB - MIB, MIB, 1), (5 * TIB + 5, 5, 2)])]
    {
        image::sparse(&source, 16 * TIB, extents);
        let began = Instant::now();
        let answer = repo.backup(&source, "host", &["--workers", "2"]);
        println!("backup of 16 TiB, {label}: {:?}", began.elapsed());
        assert_eq!(json::over_volumes(&answer, "size_bytes"), 16 * TIB);
        assert!(json::u64(&answer, "memory_peak_bytes") <= MEMORY_MAX_BYTES, "{answer:#}");
        assert!(json::over_volumes(&answer, "read_bytes") <= 16 * MIB, "{answer:#}");
        assert!(metadata_bytes(&repo) < MIB, "{} bytes of metadata", metadata_bytes(&repo));
        let began = Instant::now();
        penstock_tests::workdir::remove_if_there(&target);
        repo.restore("latest", &target, &["--workers", "2"]);
        println!("restore of 16 TiB, {label}: {:?}", began.elapsed());
        compare::assert_identical_sparse(&source, &target, label);
    }
    repo.verify_is_clean();
}

/// A run that is killed late leaves a journal of 48 bytes for each of 4 million segments: the next one reads it where
/// it is.
#[test]
fn a_resumed_backup_of_sixteen_tebibytes() {
    let work = Workdir::new("resumed");
    let disk = work.join("xfs.img");
    FsKind::Xfs.make(&disk, 2 * GIB);
    let mount = Mount::image(&disk, &work.join("xfs"));
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target) = (mount.dir().join("source.img"), mount.dir().join("target.img"));
    image::sparse(&source, 16 * TIB, &[(0, 400 * MIB, 1), (9 * TIB, MIB, 2)]);
    let journal = kill_with_a_journal(&repo, &source);
    // what lies between was finished, too
    let segments = (100..16 * TIB / SEGMENT).filter(|n| *n != 9 * TIB / SEGMENT);
    let mut file = std::io::BufWriter::new(std::fs::File::options().append(true).open(&journal).unwrap());
    for segment in segments {
        let mut record = [0u8; 48];
        record[0] = b'S';
        record[4..12].copy_from_slice(&segment.to_le_bytes());
        let check = blake3::hash(&record[..44]);
        record[44..].copy_from_slice(&check.as_bytes()[..4]);
        file.write_all(&record).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    let journal_bytes = std::fs::metadata(&journal).unwrap().len();
    assert!(journal_bytes > 190 * MIB, "{journal_bytes}");
    let answer = repo.backup(&source, "host", &["--workers", "2"]);
    let peak = json::u64(&answer, "memory_peak_bytes");
    println!("peak memory of a resumed backup of 16 TiB: {} MiB", peak / MIB);
    assert!(json::u64(&answer, "resumed_bytes") > 0, "nothing was resumed: {answer:#}");
    assert!(peak <= MEMORY_MAX_BYTES, "{answer:#}");
    repo.restore("latest", &target, &["--workers", "2"]);
    compare::assert_identical_sparse(&source, &target, "resumed, 16 TiB");
}

/// Kills a backup once its journal has a segment in it, and tells where the journal is.
fn kill_with_a_journal(repo: &Repo, source: &Path) -> PathBuf {
    for _ in 0..20 {
        let mut run = repo.backup_command(source, "host", &["--workers", "1"]).spawn();
        let mut found = None;
        while found.is_none() && !run.ended() {
            found = files_under(&repo.state).into_iter().map(|file| repo.state.join(file)).find(|file| {
                let bytes = std::fs::metadata(file).map_or(0, |meta| meta.len());
                file.extension().is_some_and(|e| e == "journal") && bytes > 2000
            });
            std::thread::sleep(Duration::from_millis(2));
        }
        run.kill();
        run.wait();
        if let Some(journal) = found.filter(|journal| journal.is_file()) {
            // whole records behind the line that says what the backup is of
            let bytes = std::fs::read(&journal).unwrap();
            let line = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
            let whole = line + (bytes.len() - line) / 48 * 48;
            std::fs::File::options().write(true).open(&journal).unwrap().set_len(whole as u64).unwrap();
            return journal;
        }
    }
    panic!("no run could be killed in its middle");
}

/// Memory does not grow with the data either.
#[test]
fn memory_stays_bounded_on_dense_data() {
    let work = Workdir::new("memory");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let source = work.join("source.img");
    image::dense(&source, GIB, 3);
    let answer = repo.backup(&source, "host", &["--workers", "2"]);
    let peak = json::u64(&answer, "memory_peak_bytes");
    println!("peak memory of a backup of 1 GiB: {} MiB", peak / MIB);
    assert!(peak <= MEMORY_MAX_BYTES, "{answer:#}");
    assert!(peak > MIB, "a peak of {peak} bytes is not believable");
    let target = work.join("target.img");
    let answer = repo.restore("latest", &target, &["--workers", "2"]);
    if let Some(peak) = answer.get("memory_peak_bytes").and_then(serde_json::Value::as_u64) {
        println!("peak memory of its restore: {} MiB", peak / MIB);
        assert!(peak <= MEMORY_MAX_BYTES, "{answer:#}");
    }
    compare::assert_identical(&source, &target, "1 GiB");
}
