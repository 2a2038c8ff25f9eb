//! Restores into images for QEMU, as QEMU's own tool reads them.

use std::fs;
use std::path::Path;
use std::process::Command;

use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::workdir::{Workdir, text};
use penstock_tests::{MIB, compare, image, json};

/// Runs qemu-img, and returns what it says.
fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {args:?}: {said}");
    said.into_owned()
}

/// Fails unless QEMU reads from `image` what `raw` has, and finds nothing wrong with it.
fn assert_image(raw: &Path, image: &Path, work: &Workdir) {
    let said = qemu_img(&["check", text(image)]);
    assert!(said.contains("No errors"), "{said}");
    let said = qemu_img(&["compare", "-f", "raw", "-F", "qcow2", text(raw), text(image)]);
    assert!(said.contains("identical"), "{said}");
    let converted = work.join("converted.img");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(image), text(&converted)]);
    compare::assert_identical(raw, &converted, "converted");
}

#[test]
fn qemu_reads_what_was_backed_up() {
    let work = Workdir::new("qcow2");
    let repo = Repo::encrypted(&work, "repo", &[]);
    for size_bytes in [512, 9 * MIB + 512, 70 * MIB] {
        let (raw, target) = (work.join("raw.img"), work.join("disk.qcow2"));
        image::mixed(&raw, size_bytes, size_bytes);
        let point = repo.backup_id(&raw, "host");
        let answer = repo.restore(&point, &target, &["--format", "qcow2"]);
        assert_eq!(json::u64(&answer, "size_bytes"), size_bytes);
        assert_image(&raw, &target, &work);
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn a_sparse_volume_is_a_small_image() {
    let work = Workdir::new("qcow2-sparse");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (raw, target) = (work.join("raw.img"), work.join("disk.qcow2"));
    image::sparse(&raw, 20 << 30, &[(5 * MIB, MIB, 1), ((20 << 30) - 4096, 4096, 2)]);
    let point = repo.backup_id(&raw, "host");
    repo.restore(&point, &target, &["--format", "qcow2"]);
    assert!(compare::size_bytes(&target) < 3 * MIB, "{} bytes", compare::size_bytes(&target));
    let said = qemu_img(&["check", text(&target)]);
    assert!(said.contains("No errors"), "{said}");
    let said = qemu_img(&["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&target)]);
    assert!(said.contains("identical"), "{said}");
}

#[test]
fn an_image_is_not_overwritten_unasked() {
    let work = Workdir::new("qcow2-force");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (raw, target) = (work.join("raw.img"), work.join("disk.qcow2"));
    image::mixed(&raw, 6 * MIB, 1);
    let point = repo.backup_id(&raw, "host");
    fs::write(&target, b"precious").unwrap();
    repo.restore_command(&point, &target, &["--format", "qcow2"]).run().expect(&[code::REFUSED]);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    repo.restore(&point, &target, &["--format", "qcow2", "--force"]);
    assert_image(&raw, &target, &work);
    for more in [["--resume"].as_slice(), &["--compare"], &["--base", &point]] {
        let args = [&["--format", "qcow2"], more].concat();
        repo.restore_command(&point, &target, &args).run().expect(&[code::USAGE]);
    }
}
