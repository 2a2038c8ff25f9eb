//! What goes in comes out, byte for byte: every kind of source, target, chunker, I/O engine, encryption and compression.

use std::path::{Path, PathBuf};

use penstock_tests::compare::{self, assert_identical, assert_prefix_identical};
use penstock_tests::filesystem::{self, FsKind};
use penstock_tests::loopdev::LoopDev;
use penstock_tests::repo::{Access, Repo};
use penstock_tests::workdir::{Workdir, remove_if_there, text};
use penstock_tests::{KIB, MIB, image, json};

#[derive(Clone, Copy, PartialEq, Debug)]
enum SourceKind {
    Device,
    Image,
    Stdin,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum TargetKind {
    NewFile,
    ExistingFile,
    Device,
    Stdout,
}

/// A source image, the same as a device, and room for targets of all kinds.
struct Bench {
    image: PathBuf,
    device: LoopDev,
    target_file: PathBuf,
    target_device: LoopDev,
    target_device_bytes: u64,
}

impl Bench {
    fn new(work: &Workdir, size_bytes: u64) -> Self {
        let (image, target_image) = (work.join("source.img"), work.join("target-device.img"));
        image::mixed(&image, size_bytes, 42);
        // larger than the volume: restoring to a larger device is the usual case
        let target_device_bytes = size_bytes + 3 * MIB;
        image::garbage(&target_image, target_device_bytes);
        Self {
            device: LoopDev::attach_read_only(&image),
            target_device: LoopDev::attach(&target_image),
            target_file: work.join("target.img"),
            image,
            target_device_bytes,
        }
    }

    fn backup(&self, repo: &Repo, kind: SourceKind, engine: &str) -> String {
        let name = format!("{kind:?}-{engine}");
        let (source, feed) = match kind {
            SourceKind::Device => (self.device.path(), None),
            SourceKind::Image => (self.image.as_path(), None),
            SourceKind::Stdin => (Path::new("-"), Some(&self.image)),
        };
        let mut command = repo.backup_command(source, &name, &["--io-engine", engine]);
        if let Some(file) = feed {
            command = command.stdin(file);
        }
        let answer = command.run().ok().json();
        if kind != SourceKind::Stdin {
            assert_eq!(json::text(&answer, "io_engine"), engine, "{answer:#}");
        }
        let volume = &json::list(&answer, "volumes")[0];
        assert_eq!(json::u64(volume, "size_bytes"), compare::size_bytes(&self.image));
        json::text(&answer, "recovery_point").to_owned()
    }

    fn restore(&self, repo: &Repo, point: &str, kind: TargetKind, engine: &str, context: &str) {
        let size = compare::size_bytes(&self.image);
        let args = ["--io-engine", engine];
        match kind {
            TargetKind::NewFile => {
                remove_if_there(&self.target_file);
                repo.restore(point, &self.target_file, &args);
                assert_identical(&self.image, &self.target_file, context);
            }
            TargetKind::ExistingFile => {
                // longer than the volume: it must end with the volume's size
                image::garbage(&self.target_file, size + 64 * KIB + 7);
                repo.restore(point, &self.target_file, &["--io-engine", engine, "--force"]);
                assert_identical(&self.image, &self.target_file, context);
            }
            TargetKind::Device => {
                image::fill_with_garbage(self.target_device.path(), self.target_device_bytes);
                repo.restore(point, self.target_device.path(), &["--io-engine", engine, "--force"]);
                self.target_device.flush();
                assert_prefix_identical(&self.image, self.target_device.path(), size, context);
            }
            TargetKind::Stdout => {
                remove_if_there(&self.target_file);
                let output = repo
                    .command(&["restore", point, "-", "--io-engine", engine])
                    .stdout(&self.target_file)
                    .run();
                output.ok();
                assert_identical(&self.image, &self.target_file, context);
            }
        }
    }
}

fn matrix(chunker: &str) {
    let work = Workdir::new("matrix");
    let bench = Bench::new(&work, 9 * MIB);
    for encrypted in [true, false] {
        for compression in ["off", "auto", "3"] {
            let init = ["--chunker", chunker, "--compression", compression];
            let repo = if encrypted {
                Repo::encrypted(&work, "repo", &init)
            } else {
                Repo::open(&work, "repo", &init)
            };
            for engine in ["uring", "pread"] {
                for source in [SourceKind::Device, SourceKind::Image, SourceKind::Stdin] {
                    let point = bench.backup(&repo, source, engine);
                    for target in [
                        TargetKind::NewFile,
                        TargetKind::ExistingFile,
                        TargetKind::Device,
                        TargetKind::Stdout,
                    ] {
                        let context = format!(
                            "{source:?} → {target:?}, chunker {chunker}, {engine}, encrypted {encrypted}, compression {compression}"
                        );
                        bench.restore(&repo, &point, target, engine, &context);
                    }
                }
            }
            repo.verify_is_clean();
            repo.remove();
        }
    }
}

#[test]
fn every_combination_with_the_block_chunker() {
    matrix("block");
}

#[test]
fn every_combination_with_fastcdc() {
    matrix("fastcdc");
}

/// The shapes at the edges of blocks and segments.
#[test]
fn sizes_at_the_edges() {
    let sizes = [
        1,
        511,
        512,
        4095,
        4096,
        4097,
        64 * KIB - 1,
        64 * KIB + 1,
        4 * MIB - 1,
        4 * MIB,
        4 * MIB + 1,
        4 * MIB + 4096,
        8 * MIB,
        12 * MIB + 12345,
    ];
    for chunker in ["block", "fastcdc"] {
        let work = Workdir::new("sizes");
        let repo = Repo::encrypted(&work, "repo", &["--chunker", chunker]);
        let (source, target) = (work.join("source.img"), work.join("target.img"));
        for size in sizes {
            for engine in ["uring", "pread"] {
                let context = format!("{size} bytes, {chunker}, {engine}");
                image::random(&source, size, size + engine.len() as u64);
                let answer = repo.backup(&source, "sizes", &["--io-engine", engine]);
                assert_eq!(json::over_volumes(&answer, "size_bytes"), size, "{context}");
                let point = json::text(&answer, "recovery_point");
                remove_if_there(&target);
                repo.restore(point, &target, &["--io-engine", engine]);
                assert_identical(&source, &target, &context);
                let piped = repo.command(&["restore", point, "-"]).run().ok();
                compare::assert_bytes(&source, &piped.stdout, &format!("{context}, to a pipe"));
            }
            // the same through a pipe has the same manifest
            let answer = repo.backup_command(Path::new("-"), "piped", &[]).stdin(&source).run().ok().json();
            let piped = json::text(&answer, "recovery_point");
            assert_eq!(repo.root(piped, 0), repo.root("latest:sizes", 0), "{size} bytes piped, {chunker}");
        }
        repo.verify_is_clean();
    }
}

#[test]
fn all_zeros_store_nothing() {
    let work = Workdir::new("zeros");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    image::zeros(&source, 64 * MIB + 100);
    let answer = repo.backup(&source, "zeros", &[]);
    assert_eq!(json::over_volumes(&answer, "zero_bytes"), 64 * MIB + 100);
    assert_eq!(json::over_volumes(&answer, "chunks"), 0);
    assert_eq!(json::over_volumes(&answer, "stored_bytes"), 0);
    assert!(repo.root("latest", 0)["node"].is_null(), "an all-zero volume has no root node");
    let answer = repo.restore("latest", &target, &[]);
    assert_eq!(json::u64(&answer, "written_bytes"), 0, "{answer:#}");
    assert_identical(&source, &target, "zeros");
    assert!(compare::allocated_bytes(&target) < MIB, "the restored file is not sparse");
    // over garbage, zeros have to be written or punched
    image::garbage(&target, 64 * MIB + 100);
    repo.restore("latest", &target, &["--force"]);
    assert_identical(&source, &target, "zeros over garbage");
}

#[test]
fn holes_stay_holes() {
    let work = Workdir::new("holes");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    let size = 200 * MIB + 4096;
    // in the middle of a segment, over a segment border, unaligned, and at the very end
    image::sparse(
        &source,
        size,
        &[
            (5 * MIB, 64 * KIB, 1),
            (16 * MIB - 8192, 16384, 2),
            (77 * MIB + 333, 5000, 3),
            (size - 4096, 4096, 4),
        ],
    );
    let answer = repo.backup(&source, "holes", &[]);
    let read = json::over_volumes(&answer, "read_bytes");
    assert!(read <= 8 * MIB, "holes were read: {read} bytes");
    repo.restore("latest", &target, &[]);
    assert_identical(&source, &target, "sparse file");
    assert!(
        compare::allocated_bytes(&target) <= compare::allocated_bytes(&source) + MIB,
        "holes were filled"
    );
    // holes and written zeros are the same contents
    let written = work.join("written.img");
    std::fs::write(&written, std::fs::read(&source).unwrap()).unwrap();
    repo.backup(&written, "written", &[]);
    assert_eq!(repo.root("latest:holes", 0), repo.root("latest:written", 0));
}

/// Real filesystems with real files, from a device and back to a device full of garbage.
fn filesystem_round_trip(kind: FsKind, size_bytes: u64, init: &[&str]) {
    let work = Workdir::new("filesystem");
    let (image, target) = (work.join("source.img"), work.join("target.img"));
    filesystem::with_real_files(kind, &image, size_bytes, 120 * MIB);
    let repo = Repo::encrypted(&work, "repo", init);
    {
        let device = LoopDev::attach_read_only(&image);
        repo.backup(device.path(), "host", &[]);
        image::garbage(&target, size_bytes);
        let target_device = LoopDev::attach(&target);
        repo.restore("latest:host", target_device.path(), &["--force"]);
    }
    assert_identical(&image, &target, &format!("{kind:?}"));
    let fresh = work.join("fresh.img");
    repo.restore("latest:host", &fresh, &[]);
    assert_identical(&image, &fresh, &format!("{kind:?} to a new file"));
    repo.verify_is_clean();
}

#[test]
fn ext4() {
    filesystem_round_trip(FsKind::Ext4, 256 * MIB, &[]);
}

#[test]
fn xfs() {
    filesystem_round_trip(FsKind::Xfs, 384 * MIB, &["--compression", "3"]);
}

#[test]
fn btrfs() {
    filesystem_round_trip(FsKind::Btrfs, 256 * MIB, &["--chunker", "fastcdc"]);
}

#[test]
fn random_data_grows_only_little() {
    let work = Workdir::new("random");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    image::random(&source, 100 * MIB + 777, 9);
    let answer = repo.backup(&source, "random", &[]);
    let stored = json::over_volumes(&answer, "stored_bytes");
    assert!(stored < 102 * MIB, "{stored} bytes stored for 100 MiB of noise");
    repo.restore("latest", &target, &[]);
    assert_identical(&source, &target, "random data");
}

#[test]
fn several_volumes_in_one_point() {
    let work = Workdir::new("volumes");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let sizes = [5 * MIB, 1, 9 * MIB + 4097, 4096];
    let images: Vec<PathBuf> = (0..sizes.len()).map(|n| work.join(&format!("disk{n}.img"))).collect();
    for (n, image) in images.iter().enumerate() {
        image::mixed(image, sizes[n], n as u64);
    }
    let device = LoopDev::attach_read_only(&images[0]);
    let mut sources: Vec<&str> = images[1..].iter().map(|path| text(path)).collect();
    sources.insert(0, device.text());
    let output = repo
        .command(&["backup"])
        .args(&sources)
        .args(["--name", "host", "--json", "--tag", "env=test"])
        .run()
        .ok();
    let answer = output.json();
    let volumes = json::list(&answer, "volumes");
    assert_eq!(volumes.len(), 4);
    for (n, volume) in volumes.iter().enumerate() {
        let target = work.join(&format!("target{n}.img"));
        let name = json::text(volume, "name");
        assert_eq!(json::u64(volume, "size_bytes"), sizes[n], "volumes stand in the order given");
        repo.restore(&format!("latest:host/{name}"), &target, &[]);
        assert_identical(&images[n], &target, name);
    }
    // without a volume it is ambiguous: say which there are
    let refused = repo.restore_command("latest:host", &work.join("none.img"), &[]).run();
    refused.expect(&[1, 2]).says(json::text(&volumes[2], "name"));
}

/// A passphrase: the slow key derivation, from environment and file.
#[test]
fn with_a_passphrase() {
    let work = Workdir::new("password");
    let repo = Repo::init(&work, "repo", Access::Password("correct horse battery staple".into()), &[]);
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    image::mixed(&source, 5 * MIB, 3);
    repo.backup(&source, "host", &[]);
    let file = work.join("password.txt");
    std::fs::write(&file, "correct horse battery staple\n").unwrap();
    let by_file = Repo { access: Access::Open, ..repo };
    by_file.restore("latest", &target, &["--password-file", text(&file)]);
    assert_identical(&source, &target, "opened by a password file with a line end");
}

/// Chunk and pack sizes other than the default.
#[test]
fn other_chunk_and_pack_sizes() {
    let work = Workdir::new("chunk-sizes");
    let (source, target) = (work.join("source.img"), work.join("target.img"));
    image::dense(&source, 40 * MIB, 5);
    for (chunk, pack, chunker) in [
        ("16KiB", "8MiB", "block"),
        ("1MiB", "64 MiB", "block"),
        ("16KiB", "8MiB", "fastcdc"),
        ("256KiB", "32MiB", "fastcdc"),
    ] {
        let init = ["--chunk-size", chunk, "--pack-size", pack, "--chunker", chunker];
        let repo = Repo::encrypted(&work, "repo", &init);
        repo.backup(&source, "host", &[]);
        remove_if_there(&target);
        repo.restore("latest", &target, &[]);
        assert_identical(&source, &target, &format!("{init:?}"));
        repo.verify_is_clean();
        repo.remove();
    }
}
