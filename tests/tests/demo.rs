//! `penstock demo`: what somebody runs first.

use penstock_tests::penstock::Penstock;
use penstock_tests::workdir::{Workdir, files_under};

/// Names under the directories for temporary files that have to do with the demo.
fn traces() -> Vec<String> {
    let names = ["/tmp", "/var/tmp"].iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
    let names = names.filter_map(|entry| Some(entry.ok()?.path().display().to_string()));
    names.filter(|name| name.contains("penstock") && name.contains("demo")).collect()
}

#[test]
fn the_demo_works_and_leaves_nothing_behind() {
    let work = Workdir::new("demonstration");
    let (state, temporary, home, cwd) =
        (work.join("state"), work.join("tmp"), work.join("home"), work.join("cwd"));
    for dir in [&temporary, &home, &cwd] {
        std::fs::create_dir(dir).unwrap();
    }
    let before = traces();
    for args in [&["demo", "--size", "64MiB", "--json"][..], &["demo", "--size", "64MiB"]] {
        let command = Penstock::new(&state)
            .env("TMPDIR", &temporary)
            .env("HOME", &home)
            .env("XDG_CACHE_HOME", home.join(".cache"));
        let output = command.current_dir(&cwd).args(args).run().ok().says("identical");
        if args.contains(&"--json") {
            assert_eq!(output.json()["identical"], true, "{}", output.show());
        }
        println!("demo of 64 MiB: {:?}", output.duration);
        for dir in [&state, &temporary, &home, &cwd] {
            let left = files_under(dir);
            assert!(left.is_empty(), "the demo left {left:?} in {}", dir.display());
        }
    }
    assert_eq!(traces(), before, "the demo left something behind");
    let loops = penstock_tests::tools::run("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
    assert!(!loops.contains(work.path().to_str().unwrap()), "the demo left a loop device: {loops}");
}
