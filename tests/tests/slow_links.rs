//! Repositories at the other end of a slow, broken or far line: what moves is waited for, what came is kept, and what
//! waits for round trips goes side by side. Nothing here asserts how long something takes, but for limits that make
//! it last.

use std::time::Duration;

use penstock_tests::repo::Repo;
use penstock_tests::servers::Seaweed;
use penstock_tests::slow::Slow;
use penstock_tests::workdir::{Workdir, remove_if_there};
use penstock_tests::{KIB, MIB, compare, image, json};

struct Scene {
    work: Workdir,
    _server: Seaweed,
    line: Slow,
    repo: Repo,
}

impl Scene {
    fn new(label: &str) -> Self {
        let work = Workdir::new(label);
        let server = Seaweed::start(&work.join("s3"));
        let line = Slow::start(server.port());
        let repo = Repo::on_s3(&work, label, &line.endpoint(), &["--pack-size", "8MiB"])
            // the program's own: what a loopback holds in its buffers takes longer than the patience of other tests
            .with_env(&[("PENSTOCK_S3_TIMEOUT", "15"), ("PENSTOCK_S3_PATIENCE", "180")]);
        Self { work, _server: server, line, repo }
    }
}

/// 512 KiB/s for all uploads together: an attempt lasts longer than its limit once did, and is not begun anew.
#[test]
fn a_backup_over_a_slow_uplink_ends_and_sends_little_twice() {
    let scene = Scene::new("slow-up");
    let disk = scene.work.join("disk.img");
    image::random(&disk, 24 * MIB, 1);
    scene.line.rates(512 * KIB, 0);
    let before = scene.line.passed().0;
    let answer = scene.repo.backup(&disk, "disk", &[]);
    let (sent, stored) = (scene.line.passed().0 - before, json::over_volumes(&answer, "stored_bytes"));
    // One pack in the kernel's buffers at the wrong moment may go twice.
    assert!(sent < stored + stored / 4, "{sent} bytes were sent to store {stored}: {answer:#}");
    scene.line.rates(0, 0);
    let target = scene.work.join("target.img");
    scene.repo.restore("latest", &target, &[]);
    compare::assert_identical(&disk, &target, "over a slow uplink");
}

#[test]
fn a_restore_over_a_slow_downlink_ends_and_fetches_little_twice() {
    let scene = Scene::new("slow-down");
    let disk = scene.work.join("disk.img");
    image::random(&disk, 24 * MIB, 2);
    scene.repo.backup(&disk, "disk", &[]);
    let (far, target) = (scene.repo.elsewhere(&scene.work, "far.state"), scene.work.join("target.img"));
    scene.line.rates(0, 512 * KIB);
    let before = scene.line.passed().1;
    far.restore("latest", &target, &[]);
    let came = scene.line.passed().1 - before;
    compare::assert_identical(&disk, &target, "over a slow downlink");
    assert!(came < 27 * MIB, "{came} bytes came");
}

/// No answer of more than 1.5 MiB ever comes whole: each attempt goes on where the one before it ended.
#[test]
fn answers_that_always_break_off_are_gone_on_with() {
    let scene = Scene::new("broken-line");
    let disk = scene.work.join("disk.img");
    image::random(&disk, 40 * MIB, 3);
    scene.repo.backup(&disk, "disk", &[]);
    let target = scene.work.join("target.img");
    scene.line.cut_answers(1_000_000, 3 * MIB / 2);
    let before = scene.line.passed().1;
    scene.repo.restore("latest", &target, &[]);
    let (came, cuts) = (scene.line.passed().1 - before, 1_000_000 - scene.line.cuts_left());
    compare::assert_identical(&disk, &target, "over a line that breaks");
    assert!(cuts >= 10, "{cuts} answers were cut");
    assert!(came < 60 * MIB, "{came} bytes came for 40 MiB");
}

/// The only thing about time that no load can break: a limit makes it last.
#[test]
fn limits_are_kept_on_every_store() {
    let scene = Scene::new("limits");
    let disk = scene.work.join("disk.img");
    image::random(&disk, 12 * MIB, 4);
    let local = Repo::encrypted(&scene.work, "local", &[]);
    let at_least = Duration::from_millis(12 * 1000 / 4 - 200);
    for repo in [&scene.repo, &local] {
        let output = repo.backup_command(&disk, "disk", &["--limit-upload", "4MiB"]).run().ok();
        assert!(output.duration >= at_least, "12 MiB at 4 MiB/s took {:?}", output.duration);
        let target = scene.work.join("target.img");
        remove_if_there(&target);
        let output = repo.restore_command("latest", &target, &["--limit-download", "4MiB/s"]).run().ok();
        assert!(output.duration >= at_least, "12 MiB at 4 MiB/s took {:?}", output.duration);
        compare::assert_identical(&disk, &target, "with a limit");
    }
    scene.repo.command(&["list", "--limit-upload", "10"]).run().expect(&[2]).says("1KiB");
}

/// With 30 ms for each request, thousands of points are not read one after the other.
#[test]
fn points_are_read_side_by_side() {
    let scene = Scene::new("far");
    let disk = scene.work.join("disk.img");
    image::random(&disk, MIB, 5);
    for n in 0..40 {
        scene.repo.backup(&disk, &format!("host-{}", n % 8), &[]);
    }
    scene.line.delay(Duration::from_millis(30));
    let none = ["--cache-size", "0"];
    for verb in [
        &["list"][..],
        &["doctor"],
        &["forget", "--keep-last", "3", "--dry-run"],
        &["restore", "latest:typo", "/nonexistent/x"],
        &["stats"],
    ] {
        scene.line.most_at_a_time();
        scene.repo.command(verb).args(none).run();
        let most = scene.line.most_at_a_time();
        assert!(most >= 8, "{verb:?}: at most {most} requests at a time");
    }
    scene.line.most_at_a_time();
    scene.repo.backup(&disk, "new", &none);
    assert!(scene.line.most_at_a_time() >= 8, "the first backup of a new name looks at all points");
}
