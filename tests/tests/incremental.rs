//! The next night: unchanged data costs nothing, a changed-extents list gives the manifest a full read would give.

use std::fs::{self, OpenOptions};
use std::path::Path;

use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::workdir::{Workdir, bytes_under, remove_if_there, text};
use penstock_tests::{BLOCK, KIB, MIB, SEGMENT, by_tier, compare, image, json};

#[test]
fn an_unchanged_image_stores_nothing_again() {
    for chunker in ["block", "fastcdc"] {
        let work = Workdir::new("unchanged");
        let repo = Repo::encrypted(&work, "repo", &["--chunker", chunker]);
        let source = work.join("source.img");
        image::mixed(&source, 64 * MIB + 4096, 1);
        let first = repo.backup(&source, "host", &[]);
        assert!(json::over_volumes(&first, "new_chunks") > 0);
        let before = bytes_under(&repo.dir);
        for args in [&[][..], &["--no-parent"]] {
            let again = repo.backup(&source, "host", args);
            assert_eq!(json::over_volumes(&again, "new_chunks"), 0, "{args:?} {again:#}");
            assert_eq!(json::over_volumes(&again, "new_bytes"), 0);
            assert_eq!(json::over_volumes(&again, "stored_bytes"), 0);
        }
        let grown = bytes_under(&repo.dir) - before;
        assert!(grown < 64 * KIB, "two backups of the same contents added {grown} bytes ({chunker})");
    }
}

#[test]
fn identical_data_under_another_name_is_stored_once() {
    let work = Workdir::new("dedup");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (one, two) = (work.join("one.img"), work.join("two.img"));
    image::mixed(&one, 32 * MIB, 1);
    // the same contents 8 MiB + 12 KiB later: other segments, other places within them
    let mut moved = vec![0; (8 * MIB + 12 * KIB) as usize];
    Rng::new(3).fill(&mut moved);
    moved.extend(fs::read(&one).unwrap());
    fs::write(&two, &moved).unwrap();
    repo.backup(&one, "one", &[]);
    let same = repo.backup(&one, "one-again", &[]);
    assert_eq!(json::over_volumes(&same, "new_chunks"), 0, "{same:#}");
    let shifted = repo.backup(&two, "two", &[]);
    let new = json::over_volumes(&shifted, "new_bytes");
    // the new front, and at most two chunks at every border of the eight segments
    assert!(new <= 8 * MIB + 12 * KIB + 9 * 512 * KIB, "{new} new bytes: moved data did not dedup");
    let target = work.join("target.img");
    repo.restore("latest:two", &target, &[]);
    compare::assert_identical(&two, &target, "moved data");
}

#[test]
fn only_what_changed_is_stored() {
    let work = Workdir::new("changes");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let source = work.join("source.img");
    image::dense(&source, 64 * MIB, 1);
    repo.backup(&source, "host", &[]);
    for (n, offset) in [5 * MIB + 77, 20 * MIB, 63 * MIB].into_iter().enumerate() {
        image::patch_random(&source, offset, 10_000, 100 + n as u64);
    }
    let second = repo.backup(&source, "host", &[]);
    let new = json::over_volumes(&second, "new_bytes");
    assert!(new >= 30_000, "{second:#}");
    assert!(new <= 3 * MIB, "{new} new bytes for three edits of 10 kB");
    let target = work.join("target.img");
    repo.restore("latest", &target, &[]);
    compare::assert_identical(&source, &target, "after edits");
}

#[test]
fn parents_are_as_asked_for() {
    let work = Workdir::new("parents");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let source = work.join("source.img");
    image::mixed(&source, 9 * MIB, 1);
    let first = repo.backup_id(&source, "host");
    let other = repo.backup_id(&source, "other");
    let second = repo.backup_id(&source, "host");
    assert_eq!(repo.show(&second)["parent"], first.as_str(), "the newest of the same name");
    assert!(repo.show(&other)["parent"].is_null(), "another name is no parent by itself");
    repo.backup(&source, "host", &["--no-parent"]);
    assert!(repo.show("latest:host")["parent"].is_null());
    repo.backup(&source, "other", &["--parent", &first]);
    assert_eq!(repo.show("latest:other")["parent"], first.as_str());
    let wrong = repo.backup_command(&source, "host", &["--parent", "ffffffffffff"]).run();
    wrong.expect(&[1, 2]).says("ffffffffffff");
}

/// One edit: `(offset, length)` of what may differ now.
type Edit = (u64, u64);

/// Changes `image` at random, as programs on a host would, and says where.
fn edit(image: &Path, rng: &mut Rng) -> Vec<Edit> {
    let mut edits = Vec::new();
    for _ in 0..rng.in_range(1..6) {
        let size = compare::size_bytes(image);
        let offset =
            if rng.percent(50) { rng.in_range(0..size) } else { rng.in_range(0..size) / BLOCK * BLOCK };
        let wanted = match rng.in_range(0..6) {
            0 => 1,
            1 => rng.in_range(1..5000),
            2 => BLOCK * rng.in_range(1..20),
            3 => rng.in_range(1..300_000),
            4 => rng.in_range(1..SEGMENT + MIB),
            _ => SEGMENT - offset % SEGMENT, // up to a border
        };
        let length = wanted.min(size - offset).max(1);
        let mut bytes = vec![0; length as usize];
        match rng.in_range(0..7) {
            0..3 => rng.fill(&mut bytes),
            3..5 => {} // zeros
            5 => image::fill_text(rng, &mut bytes),
            _ => bytes = fs::read(image).unwrap()[offset as usize..(offset + length) as usize].to_vec(), // the same
        }
        image::patch(image, offset, &bytes);
        edits.push((offset, length));
    }
    let size = compare::size_bytes(image);
    match rng.in_range(0..8) {
        0 => {
            let grown = size + rng.in_range(1..6 * MIB);
            image::patch_random(image, size, grown - size, rng.next_u64());
            edits.push((size, grown - size));
        }
        1 => {
            // grown by zeros, and nobody says so: the size tells
            OpenOptions::new()
                .write(true)
                .open(image)
                .unwrap()
                .set_len(size + rng.in_range(1..5 * MIB))
                .unwrap();
        }
        2 if size > 12 * MIB => {
            let shrunk = size - rng.in_range(1..3 * MIB);
            OpenOptions::new().write(true).open(image).unwrap().set_len(shrunk).unwrap();
            edits.retain(|(offset, _)| *offset < shrunk);
            for (offset, length) in &mut edits {
                *length = (*length).min(shrunk - *offset);
            }
        }
        _ => {}
    }
    edits
}

fn write_extents(path: &Path, edits: &[Edit]) {
    let line = |(offset, length): &Edit| format!("{{\"offset\": {offset}, \"length\": {length}}}\n");
    fs::write(path, edits.iter().map(line).collect::<String>()).unwrap();
}

/// What the next list of changes is relative to.
fn newest(repo: &Repo, name: &str) -> String {
    json::text(&repo.show(&format!("latest:{name}")), "id").to_owned()
}

/// Edits in ascending order, overlapping ones as one.
fn merged(edits: &[Edit]) -> Vec<Edit> {
    let mut sorted = edits.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<Edit> = Vec::new();
    for (offset, length) in sorted {
        match merged.last_mut() {
            Some(last) if offset <= last.0 + last.1 => last.1 = last.1.max(offset + length - last.0),
            _ => merged.push((offset, length)),
        }
    }
    merged
}

/// A chain of nights: each point comes from the list alone, a full read of the same contents has to give the same root.
/// The disk shrinks by up to a quarter now and then.
fn changed_extents_chain(chunker: &str, engine: &str, seed: u64, nights: u64) {
    let work = Workdir::new("extents");
    let repo = Repo::encrypted(&work, "repo", &["--chunker", chunker]);
    let (source, list, target) =
        (work.join("source.img"), work.join("changed.jsonl"), work.join("target.img"));
    image::mixed(&source, 24 * MIB + 12_345, seed);
    repo.backup(&source, "host", &[]);
    let mut rng = Rng::new(seed);
    for night in 0..nights {
        let edits = edit(&source, &mut rng);
        write_extents(&list, &edits);
        let context = format!("{chunker}, {engine}, seed {seed}, night {night}, edits {edits:?}");
        let base = newest(&repo, "host");
        let how = ["--allow-shrink", "--io-engine", engine];
        let list_args = ["--changed-extents", text(&list), "--parent", &base];
        let tracked = repo.backup(&source, "host", &[&list_args[..], &how].concat());
        let full = repo.backup(&source, "full", &[&["--no-parent"][..], &how].concat());
        let roots = [&tracked, &full].map(|answer| repo.root(json::text(answer, "recovery_point"), 0));
        assert_eq!(roots[0], roots[1], "{context}: the manifest is not that of a full read");
        assert_eq!(
            json::over_volumes(&full, "new_chunks"),
            0,
            "{context}: a full read finds chunks that the tracked backup missed"
        );
    }
    repo.restore("latest:host", &target, &[]);
    compare::assert_identical(&source, &target, chunker);
    repo.verify_is_clean();
}

#[test]
fn changed_extents_give_the_manifest_of_a_full_read() {
    for seed in 0..by_tier(3, 12) {
        let engine = if seed % 2 == 0 { "uring" } else { "pread" };
        changed_extents_chain("block", engine, 1000 + seed, 12);
    }
}

#[test]
fn changed_extents_with_fastcdc() {
    for seed in 0..by_tier(2, 8) {
        changed_extents_chain("fastcdc", "uring", 2000 + seed, 8);
    }
}

/// What is read follows the change: the ranges, and 512 KiB around each to find the old cuts again.
#[test]
fn changed_extents_read_in_proportion() {
    let work = Workdir::new("proportion");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, list) = (work.join("source.img"), work.join("changed.jsonl"));
    let size = 96 * MIB;
    image::dense(&source, size, 4);
    repo.backup(&source, "host", &[]);
    let mut rng = Rng::new(11);
    for night in 0..10 {
        let mut edits = Vec::new();
        for _ in 0..rng.in_range(1..8) {
            let length = rng.in_range(1..2 * MIB);
            let offset = rng.in_range(0..size - length);
            image::patch_random(&source, offset, length, rng.next_u64());
            edits.push((offset, length));
        }
        write_extents(&list, &edits);
        let base = newest(&repo, "host");
        let answer = repo.backup(&source, "host", &["--changed-extents", text(&list), "--parent", &base]);
        let read = json::over_volumes(&answer, "read_bytes");
        let ranges = merged(&edits);
        let changed: u64 = ranges.iter().map(|(_, length)| length).sum();
        // a range that spans segments has one window in each end segment; cuts never depend on another segment
        let bound = changed + ranges.len() as u64 * (512 * KIB + 2 * BLOCK);
        assert!(read <= bound, "night {night}: {read} bytes read, at most {bound} expected for {ranges:?}");
        assert!(read >= changed, "night {night}: {read} bytes read of {changed} changed ones");
        let reused = json::over_volumes(&answer, "reused_bytes");
        assert!(reused >= size - bound - 8 * MIB, "{answer:#}");
    }
    // nothing changed: nothing is read
    write_extents(&list, &[]);
    let base = newest(&repo, "host");
    let answer = repo.backup(&source, "host", &["--changed-extents", text(&list), "--parent", &base]);
    assert_eq!(json::over_volumes(&answer, "read_bytes"), 0, "{answer:#}");
    let full = repo.backup(&source, "full", &["--no-parent"]);
    assert_eq!(repo.root("latest:host", 0), repo.root(json::text(&full, "recovery_point"), 0));
}

#[test]
fn bad_extent_lists_are_refused() {
    let work = Workdir::new("bad-extents");
    let repo = Repo::encrypted(&work, "repo", &[]);
    let (source, list) = (work.join("source.img"), work.join("changed.jsonl"));
    image::mixed(&source, 8 * MIB, 1);
    write_extents(&list, &[(0, 4096)]);
    let no_parent = repo.backup_command(&source, "host", &["--changed-extents", text(&list)]).run();
    let no_parent = no_parent.expect(&[0, 1, 2]);
    if no_parent.code == 0 {
        // without a parent everything differs: a full read is the only right answer
        assert_eq!(json::over_volumes(&no_parent.json(), "size_bytes"), 8 * MIB);
        let target = work.join("target.img");
        repo.restore("latest", &target, &[]);
        compare::assert_identical(&source, &target, "a list without a parent");
    }
    repo.backup(&source, "host", &[]);
    let points = repo.point_ids();
    for bad in [
        "not json\n",
        "{\"offset\": -1, \"length\": 5}\n",
        "{\"offset\": 5}\n",
        "{\"offset\": 18446744073709551615, \"length\": 18446744073709551615}\n",
    ] {
        fs::write(&list, bad).unwrap();
        let output = repo.backup_command(&source, "host", &["--changed-extents", text(&list)]).run();
        output.expect(&[1, 2]).says("changed.jsonl");
    }
    remove_if_there(&list);
    repo.backup_command(&source, "host", &["--changed-extents", text(&list)])
        .run()
        .expect(&[1, 2])
        .says("changed.jsonl");
    assert_eq!(repo.point_ids(), points, "a refused backup leaves no point");
}
