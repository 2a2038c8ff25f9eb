//! Volumes of EBS's largest sizes: bounded memory, tiny manifests. Durations are printed, never asserted: timing belongs to benches.

use std::time::Instant;

use penstock_tests::damage::Kind;
use penstock_tests::filesystem::{FsKind, Mount};
use penstock_tests::repo::Repo;
use penstock_tests::workdir::{Workdir, text};
use penstock_tests::{BLOCK, GIB, MIB, TIB, compare, image, json};

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
    let answer = repo.backup(&source, "host", &["--workers", "2", "--changed-extents", text(&list)]);
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
