//! qcow2 images as sources: what QEMU reads from an image is what is read here. Needs qemu-img and qemu-io.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{run, scratch};
use penstock_engine::Error;
use penstock_engine::source::{self, OpenOptions, Source};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 4 << 20;

/// A small generator, so that a case can be told by its seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.next(choices.len() as u64) as usize]
    }
}

fn open(path: &Path) -> penstock_engine::Result<Box<dyn Source>> {
    source::open(path, OpenOptions::default())
}

/// All bytes of a source: what its map calls holes is zero, the rest is fetched as a backup does it.
fn read_all(source: &dyn Source) -> Vec<u8> {
    let size = source.size_bytes().unwrap();
    let ranges = source.ranges().unwrap();
    let mut bytes = vec![0; size as usize];
    let mut from = 0;
    while let Some(data) = source.next_data(from).unwrap() {
        assert!(data.start >= from && data.end > data.start && data.end <= size, "{data:?} from {from}");
        assert!(data.end.is_multiple_of(4096) || data.end == size, "{data:?}");
        let mut at = data.start;
        while at < data.end {
            let segment = at / SEGMENT * SEGMENT;
            let end = data.end.min(segment + SEGMENT);
            let wanted = (at - segment) as u32..(end - segment) as u32;
            let fetched = ranges.fetch(segment, std::slice::from_ref(&wanted)).unwrap();
            for (place, part) in fetched.parts {
                let start = (segment + u64::from(place)) as usize;
                bytes[start..start + part.len()].copy_from_slice(&part);
            }
            at = end;
        }
        from = data.end;
    }
    bytes
}

/// What QEMU reads.
fn converted(image: &Path, format: &str) -> Vec<u8> {
    let raw = image.with_extension("converted");
    run("qemu-img", &["convert", "-f", format, "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

fn assert_same(image: &Path, context: &str) {
    let expected = converted(image, "qcow2");
    let source = open(image).unwrap_or_else(|e| panic!("{context}: {e}"));
    let found = read_all(source.as_ref());
    assert_eq!(found.len(), expected.len(), "{context}");
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{context}");
}

/// Writes, zeroes and discards here and there, as a guest does.
fn scribble(image: &Path, size: u64, rng: &mut Rng, compressed: bool) {
    let mut args: Vec<String> = vec!["-f".into(), "qcow2".into()];
    if compressed {
        // Whole clusters of any size; first, since only what is not there yet can be compressed.
        let at = rng.next(size.div_ceil(2 * MIB)) * 2 * MIB;
        let length = (2 * MIB).min(size - at);
        args.extend(["-c".into(), format!("write -c -P {} {at} {length}", rng.next(255) + 1)]);
    }
    for _ in 0..rng.next(12) {
        let offset = rng.next(size / 512) * 512;
        let longest = size - offset;
        let length = match rng.next(4) {
            0 => 512,
            1 => 4096,
            2 => rng.next(200) * 512 + 512,
            _ => rng.next(4 * MIB / 512) * 512 + 512,
        };
        let length = length.min(longest);
        let pattern = rng.next(255) + 1;
        let command = match rng.next(8) {
            0 => format!("write -z {offset} {length}"),
            1 => format!("write -z -u {offset} {length}"),
            2 => format!("discard {offset} {length}"),
            _ => format!("write -P {pattern} {offset} {length}"),
        };
        args.extend(["-c".into(), command]);
    }
    args.push(image.to_str().unwrap().into());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run("qemu-io", &args);
}

/// Noise and text here and there, over holes.
fn raw_image(path: &Path, size: u64, rng: &mut Rng) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for _ in 0..rng.next(10) {
        let at = rng.next(size);
        let mut bytes = vec![rng.next(255) as u8; (rng.next(MIB) + 1).min(size - at) as usize];
        if rng.next(2) == 0 {
            blake3::Hasher::new().update(&at.to_le_bytes()).finalize_xof().fill(&mut bytes);
        }
        file.write_all_at(&bytes, at).unwrap();
    }
}

#[test]
fn random_images_are_read_as_qemu_reads_them() {
    let rounds = if std::env::var_os("PENSTOCK_TESTS_FULL").is_some() { 200 } else { 40 };
    for seed in 0..rounds {
        let dir = scratch();
        let rng = &mut Rng(seed);
        let size = rng.of(&[512, 4096, 64 * KIB + 512, MIB, 3 * MIB + 1536, 9 * MIB, 24 * MIB + 512]);
        let depth = rng.of(&[1, 1, 1, 2, 3]);
        let mut below: Option<(PathBuf, &str)> = None;
        let mut context = format!("seed {seed}, {size} bytes");
        if rng.next(2) == 0 {
            // Bases may be smaller than what leans on them, or larger.
            let base = dir.path().join("base.raw");
            raw_image(&base, rng.of(&[size, size.div_ceil(1024) * 512, size + 8192]), rng);
            below = Some((base, "raw"));
        }
        for layer in 0..depth {
            let image = dir.path().join(format!("layer-{layer}.qcow2"));
            let cluster = rng.of(&[512, 1024, 4 * KIB, 16 * KIB, 64 * KIB, 64 * KIB, 512 * KIB, 2 * MIB]);
            let version = rng.of(&["1.1", "1.1", "0.10"]);
            let mut how = format!("cluster_size={cluster},compat={version}");
            let newer = version == "1.1";
            if newer && rng.next(3) == 0 {
                how += ",compression_type=zstd";
            }
            if newer && cluster >= 16 * KIB && rng.next(3) == 0 {
                how += ",extended_l2=on";
            }
            if newer && rng.next(6) == 0 {
                how += ",lazy_refcounts=on";
            }
            let external = newer && below.is_none() && depth == 1 && rng.next(4) == 0;
            if external {
                how += &format!(",data_file={}", dir.path().join("data.raw").display());
            } else if below.is_none() && rng.next(4) == 0 {
                how += rng.of(&[",preallocation=metadata", ",preallocation=falloc", ",preallocation=full"]);
            }
            let size_text = size.to_string();
            let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &how];
            let base_name =
                below.as_ref().map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned());
            if let (Some(name), Some((_, format))) = (&base_name, &below) {
                args.extend(["-b", name, "-F", format]);
            }
            args.extend([image.to_str().unwrap(), &size_text]);
            run("qemu-img", &args);
            let compressible = !external && !how.contains("preallocation");
            let text = compressible && rng.next(2) == 0;
            scribble(&image, size, rng, text);
            if !external && rng.next(3) == 0 {
                run("qemu-img", &["snapshot", "-c", "before", image.to_str().unwrap()]);
                scribble(&image, size, rng, false);
            }
            context += &format!(", {how} over {base_name:?}");
            below = Some((image, "qcow2"));
        }
        assert_same(&below.unwrap().0, &context);
    }
}

#[test]
fn compressed_images_of_real_contents() {
    for (kind, cluster) in [("zlib", "64k"), ("zstd", "64k"), ("zlib", "512"), ("zlib", "2M"), ("zstd", "2M")]
    {
        let dir = scratch();
        let (raw, image) = (dir.path().join("raw"), dir.path().join("image.qcow2"));
        raw_image(&raw, 7 * MIB + 512, &mut Rng(7));
        let how = format!("compression_type={kind},cluster_size={cluster}");
        let names = [raw.to_str().unwrap(), image.to_str().unwrap()];
        run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &how, names[0], names[1]]);
        assert_same(&image, &how);
        let found = read_all(open(&image).unwrap().as_ref());
        assert!(found == fs::read(&raw).unwrap(), "{how}");
    }
}

fn refusal(path: &Path) -> String {
    match open(path) {
        Err(error @ Error::SourceRefused { .. }) => error.to_string(),
        Err(error) => panic!("not a refusal: {error}"),
        Ok(_) => panic!("{} is not refused", path.display()),
    }
}

fn create(dir: &Path, name: &str, args: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let all = [&["create", "-q"], args, &[path.to_str().unwrap(), "8M"]].concat();
    run("qemu-img", &all);
    path
}

#[test]
fn what_cannot_be_read_whole_is_refused_by_name() {
    let dir = scratch();
    let base = create(dir.path(), "base.qcow2", &["-f", "qcow2"]);
    let top = create(dir.path(), "top.qcow2", &["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"]);
    assert_eq!(open(&top).unwrap().container(), Some("qcow2"));
    fs::rename(&base, dir.path().join("elsewhere")).unwrap();
    let text = refusal(&top);
    assert!(
        text.contains("base.qcow2") && text.contains("rebase") && text.contains("--raw-container"),
        "{text}"
    );
    // A chain that comes back to itself.
    fs::copy(&top, &base).unwrap();
    run("qemu-img", &["rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", base.to_str().unwrap()]);
    assert!(refusal(&top).contains("comes back to"));
    let secret =
        ["--object", "secret,id=s,data=x", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s"];
    assert!(refusal(&create(dir.path(), "luks.qcow2", &secret)).contains("encrypted (LUKS)"));
    // Cut in the middle of its tables, or of its data.
    let cut = create(dir.path(), "cut.qcow2", &["-f", "qcow2"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 6M", cut.to_str().unwrap()]);
    File::options().write(true).open(&cut).unwrap().set_len(1 << 20).unwrap();
    let source = open(&cut).unwrap();
    let whole: [std::ops::Range<u32>; 1] = std::array::from_fn(|_| 0..SEGMENT as u32);
    let found = (0..2).map(|n| source.ranges().unwrap().fetch(n * SEGMENT, &whole));
    let error = found.filter_map(Result::err).next().expect("a cut image is an error").to_string();
    assert!(error.contains("cut short"), "{error}");
}

#[test]
fn other_formats_are_refused_with_the_command_that_converts_them() {
    let dir = scratch();
    for (format, options, name) in [
        ("vmdk", "subformat=monolithicSparse", "VMDK"),
        ("vmdk", "subformat=streamOptimized", "VMDK"),
        ("vmdk", "subformat=monolithicFlat", "descriptor"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "descriptor"),
        ("vhdx", "subformat=dynamic", "VHDX"),
        ("vpc", "subformat=dynamic", "VHD"),
        ("vpc", "subformat=fixed", "VHD"),
        ("vdi", "static=off", "VDI"),
        ("qed", "cluster_size=65536", "QED"),
        ("qcow", "", "qcow (version 1)"),
        ("parallels", "", "Parallels"),
    ] {
        let path = dir.path().join(format!("{format}-{}", options.len()));
        let mut args = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([path.to_str().unwrap(), "8M"]);
        run("qemu-img", &args);
        let text = refusal(&path);
        let command = format!("qemu-img convert -f {format} -O raw");
        assert!(text.contains(name) && text.contains(&command), "{format} {options}: {text}");
        let how = OpenOptions { raw_container: true, ..OpenOptions::default() };
        let raw = source::open(&path, how).unwrap();
        assert_eq!(raw.size_bytes().unwrap(), fs::metadata(&path).unwrap().len());
        assert_eq!(raw.container(), None);
    }
}
