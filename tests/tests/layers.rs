//! The house plan (`docs/ARCHITECTURE.md`), enforced on the source text: who may name whom, where `unsafe` may stand, how long a file may be.

use std::path::{Path, PathBuf};

use penstock_tests::source_text::{code_only, crate_modules, has_word, rust_files};

/// Lines from which a file is listed, and from which it fails.
const LINES_WARN: usize = 600;
const LINES_MAX: usize = 700;

/// Modules of the engine that stand above `format`.
const ABOVE_FORMAT: [&str; 14] = [
    "chunker", "crypto", "index", "manifest", "backup", "cold", "copy", "lock", "repair", "restore",
    "verify", "gc", "commit", "repo",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Source files of a folder or of one file `X.rs`, as code without comments. Empty if there is no such place.
fn sources(place: &str) -> Vec<(PathBuf, String)> {
    let path = workspace().join(place);
    let mut found = rust_files(&path);
    let file = path.with_extension("rs");
    if let Ok(text) = std::fs::read_to_string(&file) {
        found.push((file, text));
    }
    found.into_iter().map(|(path, text)| (path, code_only(&text))).collect()
}

/// Fails if a file of `place` names one of the `banned` modules of its own crate.
fn must_not_name(place: &str, banned: &[&str]) {
    for (path, code) in sources(place) {
        for module in crate_modules(&code) {
            assert!(
                !banned.contains(&module.as_str()),
                "{} names crate::{module}: the layers run the other way",
                path.display()
            );
        }
        for module in banned {
            let above = code.contains(&format!("super::super::{module}::"));
            assert!(!above, "{} names {module} through super::super", path.display());
        }
    }
}

#[test]
fn there_is_something_to_check() {
    for place in [
        "engine/src/format",
        "engine/src/id",
        "engine/src/limits",
        "engine/src/error",
        "engine/src/store",
        "engine/src/io",
    ] {
        assert!(!sources(place).is_empty(), "{place} is gone: say here where its rules went");
    }
}

#[test]
fn the_foundation_names_nothing_above_it() {
    for place in ["engine/src/id", "engine/src/limits", "engine/src/error"] {
        must_not_name(place, &ABOVE_FORMAT);
        must_not_name(place, &["format", "store", "source"]);
    }
    must_not_name("engine/src/format", &ABOVE_FORMAT);
    must_not_name("engine/src/format", &["store", "source", "io"]);
}

#[test]
fn the_middle_names_nothing_above_it() {
    for place in ["engine/src/chunker", "engine/src/crypto", "engine/src/index", "engine/src/manifest"] {
        must_not_name(
            place,
            &["backup", "cold", "copy", "lock", "repair", "restore", "verify", "gc", "commit"],
        );
    }
    must_not_name(
        "engine/src/io",
        &["format", "store", "index", "manifest", "backup", "copy", "repair", "restore", "verify", "gc"],
    );
}

/// What runs on an open repository: they share what is below, and know nothing of each other.
#[test]
fn pipelines_do_not_name_each_other() {
    let pipelines = ["backup", "cold", "copy", "gc", "lock", "repair", "restore", "verify"];
    for pipeline in pipelines {
        let others: Vec<&str> = pipelines.into_iter().filter(|other| *other != pipeline).collect();
        must_not_name(&format!("engine/src/{pipeline}"), &others);
    }
}

/// What a policy keeps is decided before, and without, any repository.
#[test]
fn retention_is_pure() {
    assert!(!sources("engine/src/retention").is_empty());
    must_not_name("engine/src/retention", &ABOVE_FORMAT);
    must_not_name("engine/src/retention", &["forget", "format", "store", "io", "source", "run"]);
}

#[test]
fn a_store_moves_opaque_bytes() {
    must_not_name(
        "engine/src/store",
        &["format", "manifest", "index", "backup", "cold", "copy", "lock", "repair", "restore"],
    );
    for (path, code) in sources("engine/src/store") {
        assert!(!code.contains("format::"), "{} mentions format::", path.display());
    }
}

#[test]
fn the_engine_knows_nothing_of_the_program_around_it() {
    for (path, code) in sources("engine/src") {
        for word in ["penstock::control", "penstock_control", "axum", "clap", "indicatif", "aws_sdk_ec2"] {
            assert!(
                !has_word(&code, word) && !code.contains(&format!("{word}::")),
                "{} mentions {word}",
                path.display()
            );
        }
    }
    let manifest = std::fs::read_to_string(workspace().join("engine/Cargo.toml")).unwrap();
    for line in manifest.lines() {
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        assert!(
            !["clap", "axum", "indicatif", "aws-sdk-ec2", "sqlx", "penstock"].contains(&name),
            "engine depends on {name}"
        );
    }
}

#[test]
fn unsafe_stands_only_in_io() {
    let io = workspace().join("engine/src/io");
    for place in ["engine", "control", "tests", "benches"] {
        for (path, code) in sources(place) {
            assert!(path.starts_with(&io) || !has_word(&code, "unsafe"), "unsafe in {}", path.display());
        }
    }
}

/// AWS is asked by those who decide, never the other way.
#[test]
fn aws_decides_nothing() {
    must_not_name("control/src/aws", &["ec2run", "ec2backup", "ec2restore", "cli"]);
    must_not_name("control/src/ec2run", &["ec2backup", "ec2restore", "cli"]);
    must_not_name("control/src/ec2backup", &["ec2restore", "cli"]);
    must_not_name("control/src/ec2restore", &["cli"]);
}

/// The two that must not know each other in the program.
#[test]
fn aws_and_catalog_do_not_name_each_other() {
    must_not_name("control/src/aws", &["catalog"]);
    must_not_name("control/src/catalog", &["aws"]);
}

#[test]
fn this_crate_knows_only_the_command_line() {
    let manifest = std::fs::read_to_string(workspace().join("tests/Cargo.toml")).unwrap();
    assert!(!manifest.contains("penstock-engine"), "the system tests must not use the engine");
}

#[test]
fn files_hold_one_noun() {
    let mut too_long = Vec::new();
    for place in ["engine", "control", "tests", "benches", "fuzz"] {
        for (path, text) in rust_files(&workspace().join(place)) {
            let lines = text.lines().count();
            if lines > LINES_WARN {
                println!("{lines} lines: {}", path.display());
            }
            if lines > LINES_MAX {
                too_long.push(format!("{} ({lines})", path.display()));
            }
        }
    }
    assert!(too_long.is_empty(), "over {LINES_MAX} lines: {too_long:?}");
}
