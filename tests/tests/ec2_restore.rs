//! `penstock ec2 restore` on an account in the lab: what comes back is what was there, only what differs is written, and nothing else stays.

use penstock_lab::{Fault, Rule};
use penstock_tests::nights::{BLOCK, Nights, differing};
use penstock_tests::penstock::code;
use penstock_tests::rng::Rng;
use penstock_tests::{MIB, by_tier, json};

fn refuse(action: &str) -> Rule {
    let fault = Fault::Refuse { status: 400, code: "InvalidParameterValue".into(), message: "no".into() };
    Rule { action: action.into(), naming: None, share: 1.0, skip: 0, times: None, fault }
}

fn new_instance(way: &str) {
    let mut nights = Nights::start();
    nights.night(&["--no-anchor"]);
    let report = nights.restore(&[&nights.points[0], "--write", way]);
    nights.check(&report, 0);
    let marked = nights.cloud.marked();
    assert!(
        marked.len() == 2 && marked.iter().all(|m| m.starts_with("volumes") && m.ends_with("restored")),
        "{marked:?}"
    );
    let (old, new) =
        (nights.instance(&nights.cloud.web.instance), nights.instance(json::text(&report, "instance")));
    for field in
        ["instance_type", "zone", "key_name", "profile", "user_data", "root_device", "boot_mode", "metadata"]
    {
        assert!(old[field] == new[field], "{field}: {} became {}", old[field], new[field]);
    }
    assert!(old["network"]["groups"] == new["network"]["groups"] && new["tags"]["Name"] == "web-01");
    assert!(old["network"]["subnet_id"] == new["network"]["subnet_id"]);
}

#[test]
fn a_new_instance_by_the_direct_apis() {
    new_instance("direct");
}

#[test]
fn a_new_instance_through_attached_volumes() {
    new_instance("attach");
}

/// Day 1 onto the anchor of day 2, and back: just the blocks that differ are put.
#[test]
fn only_blocks_that_differ_are_put() {
    let mut nights = Nights::start();
    nights.night(&[]);
    nights.change(1);
    nights.night(&[]);
    let differ =
        |nights: &Nights, a, b| (0..2).map(|n| differing(&nights.day(a, n), &nights.day(b, n))).sum::<u64>();
    nights.cloud.lab.calls.clear();
    let report = nights.restore(&[&nights.points[0], "--write", "direct"]);
    nights.check(&report, 0);
    let expected = differ(&nights, 0, 1);
    assert!(expected > 8 && nights.puts() == expected, "{} blocks put, {expected} differ", nights.puts());
    assert_eq!(json::u64(&report, "written_bytes"), expected * BLOCK);
    // the machine itself goes back to day 1; then day 2 onto the anchor of that
    for n in 0..2 {
        nights.cloud.lab.volume_load(&nights.cloud.web.volumes[n], &nights.day(0, n)).unwrap();
    }
    nights.night(&["--read", "attach"]);
    nights.cloud.lab.calls.clear();
    let report = nights.restore(&[&nights.points[1], "--write", "direct", "--volumes-only"]);
    nights.check(&report, 1);
    assert_eq!(nights.puts(), differ(&nights, 1, 2));
    // what there is a snapshot of is not written at all
    nights.cloud.lab.calls.clear();
    let before = nights.cloud.marked();
    let report = nights.restore(&[&nights.points[2]]);
    nights.check(&report, 2);
    assert!(before.iter().all(|anchor| nights.cloud.marked().contains(anchor)), "what it started from stays");
    assert!(nights.puts() == 0 && json::u64(&report, "written_bytes") == 0);
}

/// Attached, just the chunks that differ are written.
#[test]
fn only_chunks_that_differ_are_written_to_attached_volumes() {
    let mut nights = Nights::start();
    nights.night(&[]);
    nights.change(2);
    nights.night(&[]);
    let diff =
        nights.repo.command(&["diff", &nights.points[1], &nights.points[0], "--json"]).run().ok().json();
    let report = nights.restore(&[&nights.points[0], "--write", "attach"]);
    nights.check(&report, 0);
    let (written, differing) = (json::u64(&report, "written_bytes"), json::u64(&diff, "differing_bytes"));
    assert!(written > 0 && written * 10 <= differing * 11, "{written} bytes written, {differing} differ");
}

#[test]
fn a_plan_makes_nothing() {
    let mut nights = Nights::start();
    nights.night(&[]);
    let before = nights.cloud.account();
    let plan = nights.restore(&[&nights.points[0], "--no-base", "--dry-run"]);
    assert!(
        plan["usd"].as_f64().unwrap() > 0.0 && plan["volumes"].as_array().unwrap().len() == 2,
        "{plan:#}"
    );
    assert!(nights.cloud.account() == before);
}

/// In mode ami the kept image is launched from; forgetting the point takes it and its snapshot away, and nothing else.
#[test]
fn a_kept_image_is_launched_from_and_goes_with_its_point() {
    let mut nights = Nights::start();
    nights.night(&[]);
    let before = nights.cloud.account();
    nights.change(3);
    nights.night(&["--mode", "ami"]);
    nights.change(4);
    nights.night(&["--mode", "snapshots"]);
    let report = nights.restore(&[&nights.points[1]]);
    nights.check(&report, 1);
    assert_eq!(nights.restored(&report, 0)["write"], "image");
    let images = |nights: &Nights| nights.cloud.marked().iter().filter(|m| m.starts_with("images")).count();
    assert_eq!(images(&nights), 1);
    let env = nights.cloud.lab.env();
    let forget = env
        .iter()
        .fold(nights.repo.command(&["forget", &nights.points[1], "--json"]), |c, (n, v)| c.env(n, v));
    let forgotten = forget.run().ok().json();
    let removed: Vec<&str> =
        json::list(&forgotten["account"], "removed").iter().map(|r| json::text(r, "thing")).collect();
    assert_eq!(removed, ["image", "snapshot"]);
    assert_eq!(images(&nights), 0);
    let marked = nights.cloud.marked();
    assert_eq!(marked.iter().filter(|m| m.ends_with("anchor")).count(), 2, "{marked:?}");
    assert!(!marked.iter().any(|m| m.ends_with("kept")), "{marked:?}");
    let after = nights.cloud.account();
    assert!(before["us-east-1"]["images"] == after["us-east-1"]["images"]);
}

/// A volume of a stopped instance is written over and is back at its device.
#[test]
fn a_volume_is_written_over() {
    let mut nights = Nights::start();
    nights.night(&[]);
    nights.change(5);
    nights.night(&[]);
    let data = nights.cloud.web.volumes[1].clone();
    let what = format!("{}/{data}", nights.points[0]);
    let refused = nights.cloud.command(&nights.repo, &["restore", &what, "--onto", &data, "--compare"]).run();
    refused.expect(&[code::FAILED]).says("stop it first");
    nights.cloud.lab.stop(&nights.cloud.web.instance).unwrap();
    let home = nights.cloud.lab.dump()["us-east-1"]["volumes"][&data]["attachment"]["device"].clone();
    for (args, day) in [(["--compare", ""], 0), (["--base", &nights.points[0]], 1)] {
        let what = format!("{}/{data}", nights.points[day]);
        let args = args.iter().filter(|a| !a.is_empty());
        let report = nights
            .cloud
            .command(&nights.repo, &["restore", &what, "--onto", &data])
            .args(args)
            .run()
            .ok()
            .json();
        nights.holds(&data, day, 1);
        assert!(json::u64(&report, "written_bytes") < 8 * MIB, "{report:#}");
        let now = nights.cloud.lab.dump()["us-east-1"]["volumes"][&data]["attachment"].clone();
        assert!(now["device"] == home && now["instance_id"] == nights.cloud.web.instance.as_str(), "{now}");
    }
}

/// A volume goes back to a day without a word of what it holds: its anchor is known, and AWS says what changed since.
#[test]
fn a_volume_goes_back_by_what_changed_since_its_anchor() {
    let mut nights = Nights::start();
    nights.night(&[]);
    nights.change(5);
    nights.night(&[]);
    nights.change(6);
    let data = nights.cloud.web.volumes[1].clone();
    nights.cloud.lab.stop(&nights.cloud.web.instance).unwrap();
    let before = nights.cloud.marked();
    let onto = |nights: &Nights, day: usize, more: &[&str]| {
        let what = format!("{}/{data}", nights.points[day]);
        nights.cloud.command(&nights.repo, &["restore", &what, "--onto", &data]).args(more).run()
    };
    let plan = onto(&nights, 0, &["--dry-run"]).ok().json();
    assert_eq!(plan["over"][0]["anchor"]["recovery_point"], nights.points[1].as_str());
    assert!(nights.cloud.marked() == before);
    for day in [0, 1] {
        let report = onto(&nights, day, &[]).ok().json();
        nights.holds(&data, day, 1);
        let volume = &report["volumes"][0];
        assert_eq!(volume["base_point"], nights.points[1].as_str());
        assert!(
            json::u64(volume, "written_bytes") < 8 * MIB && json::list(&report, "notes").is_empty(),
            "{report:#}"
        );
        assert!(nights.cloud.marked() == before, "{:?}", nights.cloud.marked());
        nights.change(7 + day as u64);
    }
    // AWS does not say what changed: all of it is read.
    nights.cloud.lab.faults.set(vec![refuse("ListChangedBlocks")]);
    let report = onto(&nights, 0, &[]).ok().json();
    nights.cloud.lab.faults.set(Vec::new());
    nights.holds(&data, 0, 1);
    assert!(json::list(&report, "notes")[0].as_str().unwrap().contains("all of it is read"), "{report:#}");
    // Without an anchor it is not known, and nothing is overwritten by mistake.
    onto(&nights, 1, &["--no-base"]).expect(&[code::REFUSED]).says("--compare");
    nights.holds(&data, 0, 1);
    // Killed in the middle, and continued.
    let mut rng = Rng::new(9);
    for _ in 0..by_tier(3, 10) {
        nights.change(20);
        let what = format!("{}/{data}", nights.points[0]);
        let mut run = nights.cloud.command(&nights.repo, &["restore", &what, "--onto", &data]).spawn();
        if run.runs_at(std::time::Duration::from_millis(20 + (rng.fraction() * 300.0) as u64)) {
            run.kill();
        }
        run.wait();
        let resumed = onto(&nights, 0, &["--resume"]).expect(&[code::DONE, code::FAILED]);
        if resumed.code == code::FAILED {
            onto(&nights, 0, &[]).ok();
        }
        nights.holds(&data, 0, 1);
        assert!(nights.cloud.marked() == before, "{:?}", nights.cloud.marked());
    }
}

/// What fails is undone; with --keep it is continued.
#[test]
fn a_failure_is_undone_or_continued() {
    let mut nights = Nights::start();
    nights.night(&[]);
    let before = nights.cloud.account();
    for way in ["direct", "attach"] {
        let args = [nights.points[0].as_str(), "--write", way, "--no-base"];
        nights.cloud.lab.faults.set(vec![refuse("RunInstances")]);
        let failed = nights.cloud.command(&nights.repo, &["restore"]).args(args).run();
        failed.expect(&[code::FAILED]).says("RunInstances");
        assert!(nights.cloud.account() == before, "{way}: {:?}", nights.cloud.marked());
        let kept = nights.cloud.command(&nights.repo, &["restore"]).args(args).arg("--keep").run();
        kept.expect(&[code::FAILED]).says("--resume");
        nights.cloud.lab.faults.set(Vec::new());
        nights.cloud.lab.calls.clear();
        let report = nights.restore(&[&nights.points[0], "--resume"]);
        nights.check(&report, 0);
        assert!(nights.puts() == 0, "what was written is not written again");
        nights.clear();
    }
}

#[test]
fn a_restore_is_tried_and_leaves_nothing() {
    let mut nights = Nights::start();
    nights.night(&[]);
    let before = nights.cloud.account();
    let command = "test -n \"$PENSTOCK_ADDRESS\" && test -n \"$PENSTOCK_INSTANCE\"";
    let report = nights.restore(&[&nights.points[0], "--test", "--check-command", command]);
    assert!(report["trial"]["passed"] == true && report["trial"]["command_exit"] == 0, "{report:#}");
    let left = |nights: &Nights| {
        nights.clear();
        nights.cloud.account()
    };
    assert!(left(&nights) == before, "{:?}", nights.cloud.marked());
    nights.cloud.lab.impair_new(true);
    let failed = nights.cloud.command(&nights.repo, &["restore", &nights.points[0], "--test"]).run();
    failed.expect(&[code::FAILED]).says("impaired");
    assert!(left(&nights) == before);
}

/// kill -9 at any moment; then it is continued, or undone: the right result, or nothing.
#[test]
fn a_killed_restore_is_continued_or_undone() {
    let mut nights = Nights::with(|options| {
        options.timing.snapshot_ms = 100;
        options.timing.volume_ms = 60;
        options.timing.attach_ms = 60;
        options.timing.udev_ms = 40;
        options.timing.image_ms = 60;
        options.timing.instance_ms = 100;
    });
    nights.night(&[]);
    nights.change(7);
    nights.night(&[]);
    let before = nights.cloud.account();
    let started = std::time::Instant::now();
    let report = nights.restore(&[&nights.points[0], "--write", "attach"]);
    nights.check(&report, 0);
    let whole = started.elapsed();
    nights.clear();
    let mut rng = Rng::new(5);
    let mut killed = 0;
    for n in 0..by_tier(10, 30) {
        let way = if n % 2 == 0 { "direct" } else { "attach" };
        let mut args = vec![nights.points[0].as_str(), "--write", way];
        if n % 3 == 0 {
            args.push("--no-base");
        }
        let mut run = nights.cloud.command(&nights.repo, &["restore"]).args(&args).spawn();
        let moment = whole.mul_f64(rng.fraction());
        if run.runs_at(moment) {
            run.kill();
            killed += 1;
        }
        run.wait();
        // Continued two times of three; without a journal there is nothing to continue, and nothing was made.
        let continued = if n % 3 == 1 {
            nights.cloud.command(&nights.repo, &["sweep"]).run().ok();
            false
        } else {
            let resume = ["restore", &nights.points[0], "--resume"];
            let output =
                nights.cloud.command(&nights.repo, &resume).run().expect(&[code::DONE, code::FAILED]);
            output.text().contains("restored_to")
        };
        let marked = nights.cloud.marked();
        assert!(!marked.iter().any(|m| m.ends_with("temporary")), "killed after {moment:?}: {marked:?}");
        let restored: Vec<String> = marked
            .iter()
            .filter(|m| m.ends_with("restored"))
            .map(|m| m.split(' ').nth(1).unwrap().to_owned())
            .collect();
        for id in &restored {
            let of = nights.cloud.lab.dump()["us-east-1"]["volumes"][id]["tags"]["penstock:volume"].clone();
            let volume = nights.cloud.web.volumes.iter().position(|v| of == v.as_str()).unwrap();
            nights.holds(id, 0, volume);
        }
        assert!(
            restored.len() == 2 || (restored.is_empty() && !continued),
            "killed after {moment:?}: {marked:?}"
        );
        nights.clear();
        assert!(nights.cloud.account() == before, "killed after {moment:?}: {marked:?}");
    }
    assert!(killed > 0);
}

/// One call in ten is throttled, some are not answered, blocks are sent damaged, and what is new is not to be seen at first.
#[test]
fn throttling_and_late_consistency_end_right() {
    let mut nights = Nights::with(|options| options.timing.eventual_ms = by_tier(2_000, 120_000));
    nights.night(&[]);
    let rule = |action: &str, share, fault| Rule {
        action: action.into(),
        naming: None,
        share,
        skip: 0,
        times: None,
        fault,
    };
    let eventual = std::time::Duration::from_millis(by_tier(2_000, 120_000));
    std::thread::sleep(eventual);
    for way in ["direct", "attach"] {
        nights
            .cloud
            .lab
            .faults
            .set(vec![rule("*", 0.02, Fault::ServerError { status: 500 }), rule("*", 0.1, Fault::Throttle)]);
        // Each thing that is made is waited for until it is seen, one after the other.
        let report = nights
            .cloud
            .command(&nights.repo, &["restore", &nights.points[0], "--write", way, "--no-base"])
            .within(eventual * 20 + std::time::Duration::from_secs(300))
            .run()
            .ok()
            .json();
        nights.cloud.lab.faults.set(Vec::new());
        std::thread::sleep(eventual);
        nights.check(&report, 0);
        let marked = nights.cloud.marked();
        assert!(!marked.iter().any(|m| m.ends_with("temporary")), "{marked:?}");
        nights.clear();
    }
}
