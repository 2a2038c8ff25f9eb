//! Makes the golden repositories of a format version: `golden-make DIR`. Run by `golden/make-v1.sh`.

use std::fs;
use std::path::{Path, PathBuf};

use penstock_tests::repo::{Access, Repo};
use penstock_tests::workdir::{Workdir, bytes_under};
use penstock_tests::{KIB, MIB, compare, image, json, tools};
use serde_json::{Value, json};

/// Committed on purpose: it guards nothing.
const PASSWORD: &str = "golden";

fn main() {
    let dir = std::env::args().nth(1).map(PathBuf::from).expect("usage: golden-make DIR");
    assert!(!dir.exists(), "{} exists", dir.display());
    fs::create_dir_all(&dir).unwrap();
    let variants: [(&str, Option<&str>, &[&str]); 3] = [
        ("encrypted", Some(PASSWORD), &[]),
        ("open", None, &["--compression", "off"]),
        ("fastcdc", None, &["--chunker", "fastcdc", "--compression", "3"]),
    ];
    let repositories: Vec<Value> =
        variants.iter().map(|(name, password, init)| make(&dir, name, *password, init)).collect();
    let text =
        serde_json::to_string_pretty(&json!({ "format_version": 1, "repositories": repositories })).unwrap();
    fs::write(dir.join("expected.json"), text + "\n").unwrap();
    println!("{}: {} KiB", dir.display(), bytes_under(&dir) / KIB);
}

/// Two nights of a host with two volumes: data, text, zeros, a hole, a repetition, a size that is no whole block.
fn make(dir: &Path, name: &str, password: Option<&str>, init: &[&str]) -> Value {
    let work = Workdir::new("golden");
    let access = password.map_or(Access::Open, |password| Access::Password(password.to_owned()));
    let repo = Repo::init(&work, name, access, init);
    let images = [work.join("root.img"), work.join("data.img")];
    image::sparse(
        &images[0],
        9 * MIB + 1234,
        &[(0, 50_000, 1), (4 * MIB - 9000, 20_000, 2), (9 * MIB + 234, 1000, 3)],
    );
    let mut text = vec![0; 200_000];
    image::fill_text(&mut penstock_tests::rng::Rng::new(4), &mut text);
    image::patch(&images[0], 6 * MIB, &text);
    image::patch(&images[0], 7 * MIB, &b"golden repetition".repeat(5000));
    image::random(&images[1], 30_001, 5);
    let mut points = vec![backup(&repo, &images)];
    image::patch_random(&images[0], 6 * MIB + 4096, 5000, 6);
    image::patch(&images[0], 0, &[0; 8192]);
    points.push(backup(&repo, &images));
    // git keeps no empty directories: the copy has files only
    let target = dir.join(name);
    tools::run("cp", &["-r", repo.dir.to_str().unwrap(), target.to_str().unwrap()]);
    json!({ "dir": name, "password": password, "points": points })
}

fn backup(repo: &Repo, images: &[PathBuf; 2]) -> Value {
    let sources = images.iter().map(|path| path.to_str().unwrap());
    let answer =
        repo.command(&["backup"]).args(sources).args(["--name", "golden", "--json"]).run().ok().json();
    let volume = |(volume, image): (&Value, &PathBuf)| {
        json!({
            "name": json::text(volume, "name"),
            "size_bytes": compare::size_bytes(image),
            "blake3": compare::blake3_hex(image),
        })
    };
    let volumes: Vec<Value> = json::list(&answer, "volumes").iter().zip(images).map(volume).collect();
    json!({ "recovery_point": json::text(&answer, "recovery_point"), "volumes": volumes })
}
