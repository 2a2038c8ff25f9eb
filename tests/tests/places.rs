//! What people type behind `--repo` that is no repository: refused, with the form to use, and nothing is made anywhere.

use std::fs;

use penstock_tests::penstock::{Penstock, code};
use penstock_tests::workdir::{Workdir, files_under};

/// What is typed, and what the answer tells to write.
const WRONG: [(&str, &str); 33] = [
    ("", "s3://bucket/prefix"),
    ("s3:bucket/x", "s3://bucket/x"),
    ("S3:b/x", "s3://b/x"),
    ("s3//b/x", "s3://b/x"),
    ("s3:s3.amazonaws.com/b/x", "s3://b/x"),
    ("s3:s3.us-east-1.amazonaws.com/b/x", "s3://b/x"),
    ("s3:https://host/b/x", "--s3-endpoint https://host"),
    ("https://s3.amazonaws.com/b/x", "--s3-endpoint"),
    ("s3://s3.amazonaws.com/b/x", "s3://bucket/prefix"),
    ("s3.amazonaws.com/b/x", "s3://bucket/prefix"),
    ("gs:bucket:/x", "gs://bucket/x"),
    ("azure:container:/x", "az://container/x"),
    ("b2:bucket", "s3://bucket/prefix"),
    ("sftp:host:/p", "mount it"),
    ("sftp://host/p", "mount it"),
    ("user@host:/p", "mount it"),
    ("host:p", "./"),
    ("rclone:r:p", "a path"),
    ("rest:http://host/", "a path"),
    ("swift:c:/p", "a path"),
    ("file:/x", "file:///x"),
    ("file://localhost/x", "file:///x"),
    ("file://x/y", "file:///y"),
    ("file:x", "file:///x"),
    ("file:///a%20b", "/a b"),
    ("~/repo", "expanded"),
    ("$HOME/repo", "expanded"),
    ("C:\\backup", "Windows"),
    ("c:/backup", "Windows"),
    ("\"/backup\"", "quotation mark"),
    ("repo ", "blank"),
    ("-", "a path"),
    ("foo://bar", "a path"),
];

#[test]
fn what_is_no_repository_is_refused_and_nothing_is_made() {
    let work = Workdir::new("places");
    let (here, home, source) = (work.join("here"), work.join("home"), work.join("source.img"));
    for dir in [&here, &home] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(&source, b"x").unwrap();
    let run = |place: &str, args: &[&str]| {
        let command = Penstock::new(&work.join("state")).current_dir(&here).env("HOME", &home);
        let command = command.env("PENSTOCK_REPO", place).args(args);
        command.run()
    };
    for (place, says) in WRONG {
        let backup = ["backup", source.to_str().unwrap(), "--name", "x"];
        let verbs: [&[&str]; 3] = [&["init", "--insecure-no-encryption"], &backup, &["list"]];
        for args in verbs {
            let output = run(place, args).expect(&[code::USAGE]).says(says);
            assert!(!output.stderr.contains("panicked"));
        }
        run(place, &["doctor", "--json"]).expect(&[code::DONE, code::FAILED]);
    }
    assert_eq!(files_under(&here), Vec::<std::path::PathBuf>::new());
    for dir in [&here, &home] {
        let made: Vec<_> = fs::read_dir(dir).unwrap().collect();
        assert!(made.is_empty(), "{made:?}");
    }
    let copied = run("repo", &["copy", "--to", "s3:bucket/x", "latest"]);
    copied.expect(&[code::USAGE, code::NO_REPOSITORY]);
}

/// A colon is no crime behind the first slash.
#[test]
fn paths_with_odd_names_stay_possible() {
    let work = Workdir::new("odd-places");
    for (place, made) in
        [("./a:b", "a:b"), ("x/s3:y", "x/s3:y"), ("./~z", "~z"), ("s3/b", "s3/b"), ("50%20", "50%20")]
    {
        let command = Penstock::new(&work.join("state")).current_dir(work.path()).env("PENSTOCK_REPO", place);
        command.args(["init", "--insecure-no-encryption"]).run().ok();
        assert!(work.join(made).join("config").is_file(), "{place}");
    }
    let url = format!("file://{}", work.join("by-url").display());
    let command = Penstock::new(&work.join("state")).env("PENSTOCK_REPO", url);
    command.args(["init", "--insecure-no-encryption"]).run().ok();
    assert!(work.join("by-url/config").is_file());
}
