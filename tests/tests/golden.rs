//! Repositories of every format version ever released, committed under `golden/` and never edited, are still read.

use std::path::{Path, PathBuf};

use penstock_tests::repo::{Access, Repo};
use penstock_tests::workdir::{Workdir, files_under, remove_if_there, text};
use penstock_tests::{compare, json, tools};

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(version)
}

/// Names and BLAKE3 of everything in a directory.
fn tree(dir: &Path) -> Vec<(PathBuf, String)> {
    let hashed = |file: PathBuf| {
        let hash = compare::blake3_hex(&dir.join(&file));
        (file, hash)
    };
    files_under(dir).into_iter().map(hashed).collect()
}

fn reads(version: &str) {
    let dir = golden(version);
    let expected_file = dir.join("expected.json");
    let expected = std::fs::read(&expected_file).unwrap_or_else(|e| {
        panic!(
            "{}: {e}. Make it once with tests/golden/make-{version}.sh and commit it",
            expected_file.display()
        )
    });
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let repositories = json::list(&expected, "repositories");
    assert!(!repositories.is_empty());
    for repository in repositories {
        let name = json::text(repository, "dir");
        let work = Workdir::new("golden");
        // a copy: not even a lease or a temporary file may get into the original
        let copy = work.join("repo");
        tools::run("cp", &["-r", text(&dir.join(name)), text(&copy)]);
        let before = tree(&copy);
        let access = match repository["password"].as_str() {
            Some(password) => Access::Password(password.to_owned()),
            None => Access::Open,
        };
        let repo = Repo::at(&copy, &work.join("state"), access);
        repo.verify_is_clean();
        let points = json::list(repository, "points");
        let ids: Vec<&str> = points.iter().map(|point| json::text(point, "recovery_point")).collect();
        assert_eq!(repo.point_ids(), ids, "{version}/{name}");
        for point in points {
            let id = json::text(point, "recovery_point");
            for volume in json::list(point, "volumes") {
                let volume_name = json::text(volume, "name");
                let target = work.join("target.img");
                remove_if_there(&target);
                repo.restore(&format!("{id}/{volume_name}"), &target, &[]);
                let context = format!("{version}/{name}: {id}/{volume_name}");
                assert_eq!(compare::size_bytes(&target), json::u64(volume, "size_bytes"), "{context}");
                assert_eq!(compare::blake3_hex(&target), json::text(volume, "blake3"), "{context}");
            }
        }
        assert_eq!(tree(&copy), before, "{version}/{name}: reading changed the repository");
        // and it can be written to: a new point beside the old ones, with their data taken over
        let target = work.join("target.img");
        let answer = repo.backup(&target, "new", &[]);
        assert_eq!(
            json::over_volumes(&answer, "new_chunks"),
            0,
            "{version}/{name}: chunk ids or cuts have changed: {answer:#}"
        );
    }
}

#[test]
fn version_1() {
    reads("v1");
}
