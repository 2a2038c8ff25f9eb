//! Image formats that hold a disk: qcow2 is backed up as the disk, others are refused.

use std::fs;
use std::path::Path;

use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::tools::run;
use penstock_tests::workdir::{Workdir, remove_if_there, text};
use penstock_tests::{MIB, compare, image, json};

fn qemu_io(image: &Path, commands: &[&str]) {
    let mut args = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(text(image));
    run("qemu-io", &args);
}

/// What QEMU reads from `image`, as a raw file.
fn as_raw(work: &Workdir, image: &Path) -> std::path::PathBuf {
    let raw = work.join("expected.img");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(image), text(&raw)]);
    raw
}

/// The recipe of the finding: an overlay whose base is elsewhere restores to nothing when it is taken as bytes.
#[test]
fn an_overlay_is_backed_up_as_the_disk_it_shows() {
    let work = Workdir::new("overlay");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (raw, base, top) = (work.join("base.img"), work.join("base.qcow2"), work.join("top.qcow2"));
    image::mixed(&raw, 40 * MIB, 1);
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&base)]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", text(&top), "1G"]);
    qemu_io(&top, &["write -P 7 5M 1M", "write -z 20M 3M", "write -P 9 900M 64k"]);
    let answer = repo.backup(&top, "v", &[]);
    let volume = &json::list(&answer, "volumes")[0];
    assert_eq!(json::u64(volume, "size_bytes"), 1 << 30);
    assert!(json::u64(volume, "read_bytes") < 42 * MIB, "what is nowhere is not read: {volume:#}");
    let id = json::text(&answer, "recovery_point");
    assert_eq!(repo.show(id)["volumes"][0]["container"], "qcow2");
    repo.command(&["show", id]).run().ok().says("image, qcow2");
    let expected = as_raw(&work, &top);
    let (target, image) = (work.join("target.img"), work.join("restored.qcow2"));
    repo.restore(id, &target, &[]);
    compare::assert_identical_sparse(&expected, &target, "the disk of an overlay");
    repo.restore(id, &image, &["--format", "qcow2"]);
    let said = run("qemu-img", &["info", "--backing-chain", text(&image)]);
    assert!(said.contains("1 GiB") && !said.contains("backing file"), "{said}");
    compare::assert_identical_sparse(&expected, &as_raw(&work, &image), "and as an image of its own");

    // The next night: the same chunks, and what changed.
    qemu_io(&top, &["write -P 3 33M 100k"]);
    let next = repo.backup(&top, "v", &[]);
    assert!(json::over_volumes(&next, "new_bytes") < MIB, "{next:#}");
    remove_if_there(&target);
    repo.restore("latest:v", &target, &[]);
    compare::assert_identical_sparse(&as_raw(&work, &top), &target, "the next night");

    // A list of changes speaks of the disk, not of the file.
    qemu_io(&top, &["write -P 4 34M 100k"]);
    let list = work.join("changed.jsonl");
    let base_id = json::text(&next, "recovery_point");
    fs::write(
        &list,
        format!("{{\"base\": \"{base_id}\"}}\n{{\"offset\": {}, \"length\": 102400}}\n", 34 * MIB),
    )
    .unwrap();
    let listed = repo.backup(&top, "v", &["--changed-extents", text(&list)]);
    assert!(json::over_volumes(&listed, "read_bytes") < 3 * MIB, "{listed:#}");
    remove_if_there(&target);
    repo.restore("latest:v", &target, &[]);
    compare::assert_identical_sparse(&as_raw(&work, &top), &target, "by a list");

    // Without its base there is no disk.
    fs::rename(&base, work.join("moved")).unwrap();
    repo.backup_command(&top, "v", &[]).run().expect(&[code::REFUSED]).says("base.qcow2").says("rebase");
    let bytes = repo.backup(&top, "bytes", &["--raw-container"]);
    remove_if_there(&target);
    repo.restore(json::text(&bytes, "recovery_point"), &target, &[]);
    compare::assert_identical(&top, &target, "the file as it is");
    repo.verify_is_clean();
}

#[test]
fn an_image_in_use_or_with_snapshots_is_told() {
    let work = Workdir::new("qcow2-in-use");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (base, top) = (work.join("base.qcow2"), work.join("top.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&base), "64M"]);
    qemu_io(&base, &["write -P 1 0 8M"]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&base), "-F", "qcow2", text(&top)]);
    run("qemu-img", &["snapshot", "-c", "before", text(&top)]);
    let answer = repo.backup(&top, "v", &[]);
    let notes = json::list(&answer, "notes");
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains("snapshots of its own")), "{answer:#}");
    // Somebody commits into the base, or the guest runs.
    for image in [&base, &top] {
        let writer = fs::OpenOptions::new().write(true).open(image).unwrap();
        let refused = repo.backup_command(&top, "v", &[]).run().expect(&[code::REFUSED]);
        refused.says(text(image)).says("open for writing");
        repo.backup(&top, "forced", &["--force-live"]);
        drop(writer);
    }
    repo.backup(&top, "v", &[]);
}

#[test]
fn other_containers_are_refused_with_the_way_out() {
    let work = Workdir::new("containers");
    let repo = Repo::encrypted(&work, "repo", &[]);
    for (format, options) in
        [("vmdk", "subformat=monolithicFlat"), ("vhdx", "subformat=dynamic"), ("vdi", "static=on")]
    {
        let (file, raw) = (work.join(&format!("disk.{format}")), work.join("disk.raw"));
        run("qemu-img", &["create", "-q", "-f", format, "-o", options, text(&file), "16M"]);
        let refused = repo.backup_command(&file, "w", &[]).run().expect(&[code::REFUSED]);
        let command = format!("qemu-img convert -f {format} -O raw {} {}", text(&file), text(&raw));
        refused.says(&command).says("--raw-container");
        // The command works as it stands.
        run("sh", &["-c", &command]);
        repo.backup(&raw, "w", &[]);
        remove_if_there(&raw);
        repo.backup(&file, "as-it-is", &["--raw-container", "--allow-shrink"]);
    }
}
