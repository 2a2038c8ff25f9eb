//! What goes wrong between a restore and an account: each ends right, or is told so that a person knows what to do, and leaves nothing behind.

use std::time::Duration;

use penstock_lab::{Fault, Rule};
use penstock_tests::nights::Nights;
use penstock_tests::penstock::{Output, code};
use penstock_tests::{MIB, image, json};

const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";

fn rule(action: &str, fault: Fault) -> Rule {
    Rule { action: action.into(), naming: None, share: 1.0, skip: 0, times: Some(1), fault }
}

/// A machine with one night, of which no anchor is there.
fn start() -> Nights {
    let mut nights = Nights::start();
    nights.night(&["--no-anchor"]);
    nights
}

fn run(nights: &Nights, args: &[&str]) -> Output {
    nights.cloud.command(&nights.repo, &["restore", &nights.points[0]]).args(args).run()
}

/// Answers that are lost: nothing is made twice, and nothing stays that nobody knows.
#[test]
fn lost_answers() {
    let nights = start();
    let before = nights.cloud.account();
    let made = [
        "StartSnapshot",
        "CompleteSnapshot",
        "CreateVolume",
        "AttachVolume",
        "DetachVolume",
        "CreateSnapshot",
        "RegisterImage",
        "RunInstances",
        "CreateTags",
        "DeleteTags",
        "DeregisterImage",
        "DeleteSnapshot",
        "CreateSecurityGroup",
        "RevokeSecurityGroupEgress",
        "TerminateInstances",
        "DeleteSecurityGroup",
    ];
    let rules: Vec<Rule> = made.iter().map(|action| rule(action, Fault::LostReply)).collect();
    for args in [&["--write", "direct"][..], &["--write", "attach"], &["--write", "direct", "--test"]] {
        nights.cloud.lab.faults.set(
            [
                rules.clone(),
                vec![Rule { times: Some(5), share: 0.2, ..rule("PutSnapshotBlock", Fault::LostReply) }],
            ]
            .concat(),
        );
        let report = run(&nights, args).ok().json();
        assert!(nights.cloud.lab.faults.struck().iter().filter(|struck| **struck > 0).count() >= 8);
        nights.cloud.lab.faults.set(Vec::new());
        if !args.contains(&"--test") {
            nights.check(&report, 0);
            let restored = nights.cloud.marked();
            assert!(restored.len() == 2 && restored.iter().all(|m| m.ends_with("restored")), "{restored:?}");
        }
        nights.clear();
        assert!(nights.cloud.account() == before, "{args:?}: {:?}", nights.cloud.marked());
    }
}

/// Blocks that arrive damaged, answers that are cut off, and puts that hang: the snapshot is right.
#[test]
fn blocks_on_a_bad_way() {
    let nights = start();
    let often = |share, fault| Rule { share, times: None, ..rule("PutSnapshotBlock", fault) };
    nights.cloud.lab.faults.set(vec![
        often(0.05, Fault::Truncate),
        often(0.05, Fault::Drop),
        often(0.05, Fault::ServerError { status: 503 }),
        often(0.05, Fault::Delay { ms: 100 }),
    ]);
    let report = run(&nights, &["--write", "direct"]).ok().json();
    assert!(nights.cloud.lab.faults.struck().iter().all(|struck| *struck > 0));
    nights.cloud.lab.faults.set(Vec::new());
    nights.check(&report, 0);
}

/// What is refused, or ends in error, is told with what to do, and all that was made goes.
#[test]
fn refusals_are_undone() {
    let nights = start();
    let before = nights.cloud.account();
    let refuse = |code: &str| Fault::Refuse { status: 400, code: code.into(), message: "no".into() };
    for (action, fault, args, words) in [
        ("RunInstances", refuse("InsufficientInstanceCapacity"), &["--write", "direct"], "--zone"),
        ("RunInstances", refuse("InsufficientInstanceCapacity"), &["--write", "attach"], "--instance-type"),
        ("RegisterImage", refuse("InvalidParameterValue"), &["--write", "attach"], "RegisterImage"),
        ("RegisterImage", Fault::EndsInError, &["--write", "direct"], "image"),
        ("CreateSnapshot", Fault::EndsInError, &["--write", "attach"], "error"),
        ("CompleteSnapshot", refuse("ValidationException"), &["--write", "direct"], "CompleteSnapshot"),
        (
            "PutSnapshotBlock",
            refuse("ServiceQuotaExceededException"),
            &["--write", "direct"],
            "PutSnapshotBlock",
        ),
        ("AttachVolume", refuse("AttachmentLimitExceeded"), &["--write", "attach"], "direct"),
        ("CreateVolume", refuse("VolumeLimitExceeded"), &["--write", "attach"], "CreateVolume"),
        ("CreateTags", refuse("InvalidParameterValue"), &["--write", "direct"], "CreateTags"),
    ] {
        nights.cloud.lab.faults.set(vec![rule(action, fault)]);
        run(&nights, args).expect(&[code::FAILED]).says(words);
        assert!(nights.cloud.lab.faults.struck()[0] > 0, "{action}");
        nights.cloud.lab.faults.set(Vec::new());
        assert!(nights.cloud.account() == before, "{action} {args:?}: {:?}", nights.cloud.marked());
    }
}

/// A key that may not be used is told as one, whichever way the volumes are written.
#[test]
fn a_kms_key_that_may_not_be_used() {
    let nights = start();
    nights.cloud.lab.deny_kms_keys(&[KEY]);
    let before = nights.cloud.account();
    run(&nights, &["--write", "direct", "--kms-key", KEY]).expect(&[code::FAILED]).says("KMS").says("kms:");
    assert!(nights.cloud.account() == before, "{:?}", nights.cloud.marked());
}

/// Somebody detaches the volume that is written.
#[test]
fn a_volume_that_is_torn_off_while_it_is_written() {
    let mut nights = Nights::start();
    let root = nights.cloud.web.volumes[0].clone();
    let path = nights.work.join("big.img");
    image::mixed(&path, 300 * MIB, 7);
    nights.cloud.lab.volume_load(&root, &path).unwrap();
    nights.night(&["--no-anchor"]);
    let before = nights.cloud.account();
    let mut run = nights
        .cloud
        .command(&nights.repo, &["restore", &nights.points[0], "--write", "attach", "--parallel", "1"])
        .args(["--workers", "1"])
        .spawn();
    let mut torn = false;
    while !torn && !run.ended() {
        let marked = nights.cloud.marked();
        let ids = marked.iter().filter(|m| m.starts_with("volumes")).filter_map(|m| m.split(' ').nth(1));
        for id in ids.filter(|id| nights.cloud.lab.volume_node(id).is_some()) {
            std::thread::sleep(Duration::from_millis(20));
            nights.cloud.lab.volume_break_off(id).unwrap();
            torn = true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = run.wait();
    assert!(torn, "it was attached: {}", output.text());
    output.expect(&[code::FAILED]);
    assert!(nights.cloud.account() == before, "{:?}", nights.cloud.marked());
    let report = nights.restore(&[&nights.points[0], "--write", "attach"]);
    nights.check(&report, 0);
    assert_eq!(json::list(&report, "volumes").len(), 2);
}
