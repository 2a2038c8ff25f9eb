//! What goes wrong between penstock and an account: each ends right, or is told so that a person knows what to do, and leaves nothing behind.

use std::time::Duration;

use penstock_lab::{Fault, InstanceSpec, Options, Rule, VolumeSpec};
use penstock_tests::cloud::{self, Cloud};
use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, by_tier, image, json};

fn rule(action: &str, share: f64, fault: Fault) -> Rule {
    Rule { action: action.into(), naming: None, share, skip: 0, times: None, fault }
}

/// One call in ten is throttled, some are not answered, and what is new is not to be seen for as long as AWS says it may be.
#[test]
fn throttling_and_the_longest_consistency_end_right() {
    let work = Workdir::new("ec2_faults");
    let mut options = cloud::options(&work);
    options.timing.eventual_ms = by_tier(4_000, 120_000);
    options.timing.snapshot_ms = 300;
    options.limits.empty_page_every = 3;
    let eventual = Duration::from_millis(options.timing.eventual_ms as u64);
    let cloud = Cloud::start(&work, options, 16 * MIB);
    std::thread::sleep(eventual);
    let repo = Repo::encrypted(&work, "repo", &[]);
    cloud.lab.faults.set(vec![
        rule("GetSnapshotBlock", 0.05, Fault::Corrupt),
        rule("GetSnapshotBlock", 0.02, Fault::Truncate),
        rule("*", 0.02, Fault::ServerError { status: 500 }),
        rule("*", 0.1, Fault::Throttle),
    ]);
    for way in ["direct", "attach"] {
        let report = cloud.backup(&repo, &["--read", way]);
        assert_eq!(repo.roots(&report), cloud.roots_of_plain_backups(&repo, &work), "{way}");
        cloud.lab.volume_write(&cloud.web.volumes[0], 3 * MIB, way.as_bytes()).unwrap();
    }
    assert!(cloud.lab.faults.struck().iter().all(|struck| *struck > 0), "{:?}", cloud.lab.faults.struck());
    std::thread::sleep(eventual);
    let marked = cloud.marked();
    assert!(marked.len() == 2 && marked.iter().all(|m| m.ends_with("anchor")), "{marked:?}");
}

/// A key that may not be used shows in different ways by the way that is taken; it is told as what it is.
#[test]
fn a_kms_key_that_may_not_be_used() {
    let work = Workdir::new("ec2_faults");
    let root = work.join("root.img");
    image::mixed(&root, 4 * MIB, 1);
    let cloud = Cloud::of_images(cloud::options(&work), "web-01", &[&root]);
    let key = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";
    let secret = InstanceSpec {
        name: "secret".into(),
        volumes: vec![VolumeSpec {
            file: Some(root),
            encrypted: true,
            kms_key: Some(key.into()),
            ..VolumeSpec::default()
        }],
        ..InstanceSpec::default()
    };
    let secret = cloud.lab.add_instance(&secret).unwrap().instance;
    let repo = Repo::encrypted(&work, "repo", &[]);
    cloud.command(&repo, &["backup", &secret, "--read", "direct", "--no-anchor"]).run().ok();
    cloud.lab.deny_kms_keys(&[key]);
    let before = cloud.account();
    // a volume that is never to be seen is waited for as long as AWS may take to show it: more than two minutes
    for way in by_tier(vec!["direct"], vec!["direct", "attach"]) {
        let failed = cloud.command(&repo, &["backup", &secret, "--read", way]).run().expect(&[code::FAILED]);
        failed.says("KMS").says("kms:Decrypt");
        assert!(cloud.account() == before, "{way}: {:?}", cloud.marked());
    }
}

/// The proxy's region and that of the instances differ: nothing can be attached, and it is said; an instance of another region is not found, and it is said where it was looked for.
#[test]
fn regions_that_do_not_match() {
    let work = Workdir::new("ec2_faults");
    let cloud = Cloud::start(&work, cloud::options(&work), 4 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let elsewhere = ["--region", "eu-west-1"];
    let failed = cloud.backup_command(&repo, &elsewhere).run().expect(&[code::FAILED]);
    failed.says("eu-west-1").says(&cloud.web.instance);
    // a proxy that says it is elsewhere
    let abroad =
        Options { region: "eu-central-1".into(), root: Some(work.join("abroad")), ..cloud::options(&work) };
    std::fs::create_dir_all(work.join("abroad")).unwrap();
    let abroad = penstock_lab::Lab::start(abroad).unwrap();
    let attach = cloud
        .backup_command(&repo, &["--read", "attach"])
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", abroad.endpoint())
        .run()
        .expect(&[code::FAILED]);
    attach.says("eu-central-1").says("us-east-1").says("--read direct");
    assert_eq!(cloud.marked(), Vec::<String>::new());
    let auto = cloud
        .backup_command(&repo, &[])
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", abroad.endpoint())
        .run()
        .ok()
        .json();
    let why = json::text(&auto[0]["reads"][0], "why");
    assert!(auto[0]["reads"][0]["way"] == "direct" && why.contains("eu-central-1"), "{auto:#}");
}

/// Somebody detaches a temporary volume while it is read.
#[test]
fn a_volume_that_is_torn_off_while_it_is_read() {
    let work = Workdir::new("ec2_faults");
    let root = work.join("root.img");
    // slow to compress, so that the volume is still read when it goes
    image::text(&root, 100 * MIB, 1);
    let cloud = Cloud::of_images(cloud::options(&work), "web-01", &[&root]);
    let repo = Repo::encrypted(&work, "repo", &["--compression", "19"]);
    let before = cloud.account();
    let mut run = cloud
        .backup_command(&repo, &["--read", "attach"])
        .args(["--workers", "1", "--queue-depth", "1"])
        .spawn();
    let mut torn = false;
    while !torn && !run.ended() {
        let temporary = cloud.marked().into_iter().find(|m| m.starts_with("volumes"));
        let id = temporary.as_ref().and_then(|m| m.split(' ').nth(1));
        if let Some(id) = id.filter(|id| cloud.lab.volume_node(id).is_some()) {
            std::thread::sleep(Duration::from_millis(20));
            cloud.lab.volume_break_off(id).unwrap();
            torn = true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = run.wait();
    assert!(torn, "it was attached: {}", output.text());
    output.expect(&[code::FAILED]).says("read");
    assert!(cloud.account() == before, "{:?}", cloud.marked());
    let report = cloud.backup(&repo, &["--read", "attach"]);
    assert_eq!(json::list(&report, "volumes").len(), 1);
    repo.verify_is_clean();
}

/// Blocks come slowly and some answers never come: the run ends, and is right.
#[test]
fn answers_that_never_come() {
    let work = Workdir::new("ec2_faults");
    let cloud = Cloud::start(&work, cloud::options(&work), 8 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    cloud.lab.faults.set(vec![
        Rule { times: Some(2), ..rule("CreateVolume", 1.0, Fault::LostReply) },
        Rule { times: Some(2), ..rule("AttachVolume", 1.0, Fault::LostReply) },
        Rule { times: Some(1), ..rule("CreateSnapshots", 1.0, Fault::LostReply) },
        Rule { times: Some(1), ..rule("DetachVolume", 1.0, Fault::Drop) },
        Rule { times: Some(1), ..rule("DeleteVolume", 1.0, Fault::LostReply) },
        Rule { times: Some(1), ..rule("CreateTags", 1.0, Fault::LostReply) },
        Rule { times: Some(1), ..rule("DeleteSnapshot", 1.0, Fault::LostReply) },
    ]);
    for _ in 0..2 {
        let report = cloud.backup(&repo, &["--read", "attach"]);
        assert_eq!(repo.roots(&report), cloud.roots_of_plain_backups(&repo, &work));
    }
    assert!(cloud.lab.faults.struck().iter().all(|struck| *struck > 0), "{:?}", cloud.lab.faults.struck());
    let marked = cloud.marked();
    assert!(marked.len() == 2 && marked.iter().all(|m| m.ends_with("anchor")), "{marked:?}");
}

/// Ctrl-C at any time leaves the account as it was.
#[test]
fn an_interrupted_backup_cleans_up() {
    let work = Workdir::new("ec2_faults");
    let mut options = cloud::options(&work);
    options.timing.snapshot_ms = 400;
    options.timing.volume_ms = 200;
    options.timing.attach_ms = 200;
    let cloud = Cloud::start(&work, options, 8 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let before = cloud.account();
    for after_ms in by_tier(vec![150, 500, 900], (1..20).map(|n| n * 80).collect()) {
        let mut run = cloud.backup_command(&repo, &["--read", "attach", "--no-anchor"]).spawn();
        if run.runs_at(Duration::from_millis(after_ms)) {
            run.interrupt();
        }
        run.wait().expect(&[0, code::INTERRUPTED]);
        assert!(cloud.account() == before, "interrupted after {after_ms} ms: {:?}", cloud.marked());
    }
}
