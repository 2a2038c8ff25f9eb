//! `penstock ec2` on an account in the lab.

use std::time::Duration;

use penstock_lab::{Fault, Rule};
use penstock_tests::cloud::{self, Cloud};
use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, json};
use serde_json::Value;

const BLOCK: u64 = 512 << 10;

fn point(report: &Value) -> &str {
    json::text(report, "recovery_point")
}

/// The guest writes into some blocks of both volumes; returns the bytes of the blocks it touched.
fn change(cloud: &Cloud, seed: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; 3 * BLOCK as usize];
    rng.fill(&mut bytes);
    cloud.lab.volume_write(&cloud.web.volumes[0], 5 * BLOCK, &bytes).unwrap();
    cloud.lab.volume_write(&cloud.web.volumes[0], 40 * BLOCK, &bytes[..2 * BLOCK as usize]).unwrap();
    cloud.lab.volume_write(&cloud.web.volumes[1], 9 * BLOCK + 4096, &bytes[..8192]).unwrap();
    // far behind all that was ever written
    cloud.lab.volume_write(&cloud.web.volumes[1], 900 * MIB + 12_288, &bytes[..100_000]).unwrap();
    7 * BLOCK
}

/// Both nights by one way of reading; the manifests are those of plain backups.
fn two_nights(way: &str) {
    let work = Workdir::new("ec2");
    let cloud = Cloud::start(&work, cloud::options(&work), 48 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let before = cloud.account();

    let first = cloud.backup(&repo, &["--read", way]);
    assert_eq!(repo.roots(&first), cloud.roots_of_plain_backups(&repo, &work), "{way}, first night");
    assert_eq!(first["reads"][0]["way"], way);
    assert_eq!(json::list(&first, "excluded")[0]["volume"], cloud.web.volumes[2].as_str());
    let written: u64 = json::list(&first, "reads").iter().map(|r| r["bytes"].as_u64().unwrap()).sum();
    assert!(written < 100 * MIB, "{written} bytes of two GiB: what was never written is not read");
    let marked = cloud.marked();
    assert!(marked.len() == 2 && marked.iter().all(|m| m.ends_with("anchor")), "{marked:?}");

    let changed = change(&cloud, 7);
    cloud.lab.calls.clear();
    let second = cloud.backup(&repo, &["--read", way]);
    assert_eq!(second["parent"], first["recovery_point"]);
    let read: u64 = json::list(&second, "volumes").iter().map(|v| v["read_bytes"].as_u64().unwrap()).sum();
    assert!(read <= changed * 13 / 10, "{way}: {read} bytes read of {changed} changed");
    if way == "direct" {
        let gets = cloud.lab.calls.counts()["GetSnapshotBlock"].ok;
        assert_eq!(gets, changed / BLOCK, "{gets} blocks were fetched");
    }
    let full = cloud.roots_of_plain_backups(&repo, &work);
    assert_eq!(repo.roots(&second), full, "{way}, second night");
    let marked = cloud.marked();
    assert!(marked.len() == 2 && marked.iter().all(|m| m.ends_with("anchor")), "{marked:?}");

    // nothing changed
    let third = cloud.backup(&repo, &["--read", way]);
    let read: u64 = json::list(&third, "volumes").iter().map(|v| v["read_bytes"].as_u64().unwrap()).sum();
    assert_eq!((read, repo.roots(&third)), (0, full));

    // and given up
    let fourth = cloud.backup(&repo, &["--read", way, "--no-anchor"]);
    assert_eq!(fourth["parent"], third["recovery_point"]);
    assert_eq!(cloud.marked(), Vec::<String>::new());
    let mut after = cloud.account();
    // the guest wrote in between; everything else is as it was
    after["us-east-1"]["volumes"] = before["us-east-1"]["volumes"].clone();
    assert!(after == before, "{after:#}");
    repo.verify_is_clean();
}

#[test]
fn nights_read_by_the_direct_apis() {
    two_nights("direct");
}

#[test]
fn nights_read_from_attached_volumes() {
    two_nights("attach");
}

#[test]
fn the_recovery_point_keeps_the_machine() {
    let work = Workdir::new("ec2");
    let cloud = Cloud::start(&work, cloud::options(&work), 8 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let report = cloud.backup(&repo, &[]);
    let point = repo.show(point(&report));
    assert_eq!(point["name"], cloud.web.instance.as_str());
    assert_eq!(point["tags"]["Name"], "web-01");
    let instance = &point["instance"];
    assert_eq!(instance["id"], cloud.web.instance.as_str());
    assert_eq!(instance["instance"]["instanceType"], "m5.large");
    assert!(instance["instance"]["placement"]["availabilityZone"].as_str().unwrap().starts_with("us-east-1"));
    assert!(instance["instance"]["groupSet"][0]["groupId"].is_string(), "{instance:#}");
    assert!(instance["attributes"]["userData"].is_string());
    assert_eq!(instance["devices"][0]["root"], true);
    assert_eq!(instance["volumes"].as_array().unwrap().len(), 3);
    assert_eq!(instance["excluded"][0]["why"], "by its tag backup=no");
    let listed = cloud.command(&repo, &["list"]).run().ok().json();
    let web = listed.as_array().unwrap().iter().find(|i| i["name"] == "web-01").unwrap();
    assert_eq!(web["last_recovery_point"]["id"], report["recovery_point"]);
    assert_eq!(web["volumes"].as_array().unwrap().len(), 3);
    cloud.command(&repo, &["backup", "i-0123456789abcdef0"]).run().expect(&[code::FAILED]).says("us-east-1");
}

#[test]
fn snapshots_that_are_not_related_are_read_in_full_and_it_is_said() {
    let work = Workdir::new("ec2");
    let cloud = Cloud::start(&work, cloud::options(&work), 8 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    cloud.backup(&repo, &["--read", "direct"]);
    change(&cloud, 3);
    let refuse = |reason: &str| Fault::Refuse {
        status: 400,
        code: "ValidationException".into(),
        message: format!("{reason}: no"),
    };
    cloud.lab.faults.set(vec![Rule {
        action: "ListChangedBlocks".into(),
        naming: None,
        share: 1.0,
        skip: 0,
        times: None,
        fault: refuse("UNRELATED_SNAPSHOTS"),
    }]);
    let second = cloud.backup(&repo, &["--read", "direct"]);
    assert!(second["ec2_notes"].to_string().contains("read in full"), "{second:#}");
    assert_eq!(repo.roots(&second), cloud.roots_of_plain_backups(&repo, &work));
}

#[test]
fn throttling_and_late_consistency_end_right() {
    let work = Workdir::new("ec2");
    let mut options = cloud::options(&work);
    options.timing.eventual_ms = 2_000;
    options.timing.snapshot_ms = 300;
    options.limits.empty_page_every = 2;
    let cloud = Cloud::start(&work, options, 16 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let throttle = |share| Rule {
        action: "*".into(),
        naming: None,
        share,
        skip: 0,
        times: None,
        fault: Fault::Throttle,
    };
    let damage = Rule { action: "GetSnapshotBlock".into(), fault: Fault::Corrupt, ..throttle(0.05) };
    cloud.lab.faults.set(vec![damage, throttle(0.1)]);
    for way in ["direct", "attach"] {
        let report = cloud.backup(&repo, &["--read", way]);
        assert_eq!(repo.roots(&report), cloud.roots_of_plain_backups(&repo, &work), "{way}");
        change(&cloud, way.len() as u64);
    }
    assert!(cloud.lab.faults.struck().iter().sum::<u64>() > 5);
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(cloud.marked().len(), 2, "{:?}", cloud.marked());
}

/// The account, but for the snapshots that stay as anchors, whose ids change.
fn without_anchors(cloud: &Cloud) -> Value {
    let mut account = cloud.account();
    let snapshots = account["us-east-1"]["snapshots"].as_object_mut().unwrap();
    snapshots.retain(|_, s| s["tags"]["penstock:purpose"] != "anchor");
    account
}

/// kill -9 at any moment, then one sweep: the account is as it was, and earlier recovery points are there.
#[test]
fn a_killed_backup_leaves_nothing_that_a_sweep_does_not_find() {
    let work = Workdir::new("ec2");
    let mut options = cloud::options(&work);
    // slow enough that kills hit every step
    options.timing.snapshot_ms = 150;
    options.timing.volume_ms = 60;
    options.timing.attach_ms = 60;
    options.timing.udev_ms = 40;
    let cloud = Cloud::start(&work, options, 16 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let started = std::time::Instant::now();
    cloud.backup(&repo, &["--read", "attach"]);
    let whole = started.elapsed();
    let first = repo.point_ids();
    let before = without_anchors(&cloud);
    let mut rng = Rng::new(11);
    let mut killed = 0;
    for n in 0..penstock_tests::by_tier(10, 30) {
        let way = if n % 3 == 0 { "direct" } else { "attach" };
        let mut run = cloud.backup_command(&repo, &["--read", way]).spawn();
        let moment = whole.mul_f64(rng.fraction() * 1.1);
        if run.runs_at(moment) {
            run.kill();
            killed += 1;
        }
        run.wait();
        cloud.command(&repo, &["sweep"]).run().ok();
        let after = cloud.marked();
        let anchors = after.iter().filter(|m| m.ends_with("anchor")).count();
        assert!(after.len() == 2 && anchors == 2, "killed after {moment:?}: {after:?}");
        assert!(without_anchors(&cloud) == before, "killed after {moment:?}: {after:?}");
    }
    assert!(killed > 0);
    assert!(repo.point_ids().starts_with(&first));
    let last = cloud.backup(&repo, &["--read", "direct"]);
    assert_eq!(repo.roots(&last), cloud.roots_of_plain_backups(&repo, &work));
    repo.verify_is_clean();
}

/// Two machines in one run, side by side; each has its own recovery point, and a failure of one is not the other's.
#[test]
fn machines_are_backed_up_side_by_side() {
    let work = Workdir::new("ec2");
    let mut options = cloud::options(&work);
    options.timing.snapshot_ms = 300;
    options.timing.attach_ms = 100;
    let cloud = Cloud::start(&work, options, 8 * MIB);
    let other = work.join("other.img");
    penstock_tests::image::mixed(&other, 8 * MIB, 5);
    let db = Cloud::machine(&cloud.lab, "db-01", &[&other, &work.join("data.img")]);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let both = ["backup", &cloud.web.instance, &db.instance, "--exclude-tag", cloud::LEFT_OUT];
    for way in ["attach", "direct"] {
        let reports = cloud.command(&repo, &both).args(["--read", way]).run().ok().json();
        let mut instances: Vec<&str> =
            reports.as_array().unwrap().iter().map(|r| json::text(r, "instance")).collect();
        instances.sort_unstable();
        let mut expected = [cloud.web.instance.as_str(), db.instance.as_str()];
        expected.sort_unstable();
        assert_eq!(instances, expected);
        assert_eq!(cloud.marked().len(), 4, "an anchor for each volume: {:?}", cloud.marked());
        change(&cloud, 4);
    }
    let web = cloud.backup(&repo, &[]);
    assert_eq!(repo.roots(&web), cloud.roots_of_plain_backups(&repo, &work));
    // one fails
    cloud.lab.faults.set(vec![Rule {
        action: "CreateSnapshots".into(),
        naming: Some(db.instance.clone()),
        share: 1.0,
        skip: 0,
        times: None,
        fault: Fault::Refuse { status: 400, code: "InvalidParameterValue".into(), message: "no".into() },
    }]);
    let output = cloud.command(&repo, &both).run().expect(&[code::FAILED]).says(&db.instance);
    let reports = output.json();
    let of = |id: &str| reports.as_array().unwrap().iter().find(|r| r["instance"] == id).unwrap().clone();
    assert!(of(&db.instance)["error"].is_string() && of(&cloud.web.instance)["recovery_point"].is_string());
    repo.verify_is_clean();
}

#[test]
fn an_image_of_the_root_is_kept_in_mode_ami() {
    let work = Workdir::new("ec2");
    let cloud = Cloud::start(&work, cloud::options(&work), 8 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let report = cloud.backup(&repo, &["--mode", "ami", "--read", "direct"]);
    assert_eq!(repo.roots(&report), cloud.roots_of_plain_backups(&repo, &work));
    let image = repo.show(point(&report))["instance"]["kept_image"].as_str().unwrap().to_owned();
    let marked = cloud.marked();
    assert!(marked.contains(&format!("images {image} kept")), "{marked:?}");
    assert_eq!(marked.len(), 3, "the image, its snapshot, an anchor: {marked:?}");
    change(&cloud, 5);
    let second = cloud.backup(&repo, &["--read", "direct"]);
    assert_eq!(repo.roots(&second), cloud.roots_of_plain_backups(&repo, &work));
    assert!(second["reads"][0]["anchor"].is_string(), "the image's snapshot is an anchor, too");
}

#[test]
fn what_is_not_allowed_is_named() {
    let work = Workdir::new("ec2");
    let cloud = Cloud::start(&work, cloud::options(&work), 8 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let rule = |action: &str, code: &str| Rule {
        action: action.into(),
        naming: None,
        share: 1.0,
        skip: 0,
        times: None,
        fault: Fault::Refuse { status: 403, code: code.into(), message: "You are not authorized".into() },
    };
    for (action, code, way) in [
        ("CreateSnapshots", "UnauthorizedOperation", "auto"),
        ("CreateVolume", "UnauthorizedOperation", "attach"),
        ("GetSnapshotBlock", "AccessDeniedException", "direct"),
    ] {
        cloud.lab.faults.set(vec![rule(action, code)]);
        let failed = cloud.backup_command(&repo, &["--read", way]).run().expect(&[code::FAILED]);
        failed.says(action).says("iam-policy").says("request");
        cloud.lab.faults.set(Vec::new());
        assert_eq!(cloud.marked(), Vec::<String>::new(), "{action}");
    }
    // the proxy is full: what cannot be attached is read by calls, if that is left open
    cloud.lab.set(|s| s.limits.attachments = 1);
    cloud.backup_command(&repo, &["--read", "attach"]).run().expect(&[code::FAILED]).says("--read direct");
    cloud.backup(&repo, &["--no-anchor"]);
    assert_eq!(cloud.marked(), Vec::<String>::new());
}

/// What `iam-policy` prints is enough for both ways, both modes and a sweep.
#[test]
fn the_printed_policy_is_enough() {
    let work = Workdir::new("ec2");
    let cloud = Cloud::start(&work, cloud::options(&work), 8 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let policy = cloud.command(&repo, &["iam-policy"]).run().ok().json();
    cloud.lab.access.set_policy(penstock_lab::KEY_ID, Some(&policy));
    for args in [["--read", "direct"], ["--read", "attach"], ["--mode", "ami"], ["--mode", "snapshots"]] {
        cloud.backup(&repo, &args);
        change(&cloud, 9);
    }
    cloud.command(&repo, &["sweep"]).run().ok();
    let policy =
        cloud.command(&repo, &["iam-policy", "--no-attach", "--no-ami", "--no-restore"]).run().ok().json();
    cloud.lab.access.set_policy(penstock_lab::KEY_ID, Some(&policy));
    cloud.backup(&repo, &["--read", "direct"]);
    change(&cloud, 10);
    let denied = cloud.backup_command(&repo, &["--read", "attach"]).run().expect(&[code::FAILED]);
    denied.says("ec2:CreateVolume");
}
