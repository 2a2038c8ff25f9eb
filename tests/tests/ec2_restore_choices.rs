//! What can be chosen in `penstock ec2 restore`, and what is carried over where nothing is chosen.

use std::time::Duration;

use penstock_tests::nights::Nights;
use penstock_tests::penstock::code;
use penstock_tests::{MIB, image, json};
use serde_json::Value;

const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// An account with more to choose from.
fn start() -> Nights {
    Nights::with(|options| {
        let scenario = &mut options.scenario;
        scenario.security_groups.insert("other".into(), "another group".into());
        scenario.key_pairs.push("rescue".into());
        scenario.instance_profiles.push("web".into());
    })
}

/// The id of the security group of this name, and of the default subnet of a zone.
fn place(nights: &Nights, group: &str, zone: &str) -> (String, String) {
    nights.cloud.lab.with("us-east-1", |region| {
        let group = region.groups.values().find(|g| g.name == group).unwrap();
        let subnet = region.subnets.values().find(|s| s.zone == zone && s.default_for_zone).unwrap();
        (group.id.clone(), subnet.id.clone())
    })
}

fn volumes<'a>(nights: &Nights, report: &'a Value) -> Vec<(&'a Value, Value)> {
    let list = json::list(report, "volumes");
    list.iter().map(|v| (v, nights.thing("volumes", json::text(v, "restored_to")))).collect()
}

/// Another zone, type, group, key pair, profile, address, user data, tags, volume type: both ways to write.
#[test]
fn everything_may_be_another() {
    let mut nights = start();
    nights.night(&["--no-anchor"]);
    let (group, subnet) = place(&nights, "other", "us-east-1b");
    let file = nights.work.join("user-data");
    std::fs::write(&file, "#!/bin/sh\necho restored\n").unwrap();
    let cidr = nights.cloud.lab.with("us-east-1", |region| region.subnets[&subnet].cidr.clone());
    let prefix = cidr.rsplit_once('.').unwrap().0;
    for (way, last) in [("direct", 77), ("attach", 78)] {
        let address = format!("{prefix}.{last}");
        let report = nights.restore(&[
            &nights.points[0],
            "--write",
            way,
            "--zone",
            "us-east-1b",
            "--instance-type",
            "m6i.large",
            "--security-group",
            &group,
            "--key-pair",
            "rescue",
            "--iam-profile",
            "web",
            "--private-ip",
            &address,
            "--user-data",
            file.to_str().unwrap(),
            "--tag",
            "restored=yes",
            "--volume-type",
            "gp2",
        ]);
        nights.check(&report, 0);
        let new = nights.instance(json::text(&report, "instance"));
        assert!(new["zone"] == "us-east-1b" && new["instance_type"] == "m6i.large", "{new:#}");
        assert!(new["key_name"] == "rescue" && new["profile"] == "web", "{new:#}");
        assert_eq!(new["network"]["groups"], serde_json::json!([group]));
        assert!(new["network"]["private_ip"] == address.as_str() && report["private_ip"] == address.as_str());
        assert_eq!(new["user_data"], "IyEvYmluL3NoCmVjaG8gcmVzdG9yZWQK");
        assert!(new["tags"]["restored"] == "yes" && new["tags"]["Name"] == "web-01", "{new:#}");
        for (_, volume) in volumes(&nights, &report) {
            assert!(volume["volume_type"] == "gp2" && volume["zone"] == "us-east-1b", "{volume:#}");
        }
        nights.clear();
    }
    // What is not there is found out before anything is made.
    let before = nights.cloud.account();
    for (args, words) in [
        (["--zone", "us-east-1x"], "us-east-1x"),
        (["--instance-type", "x9.mega"], "--instance-type"),
        (["--subnet", "subnet-0123456789abcdef0"], "subnet-0123456789abcdef0"),
        (["--security-group", "sg-0123456789abcdef0"], "--security-group"),
        (["--key-pair", "nobody"], "--key-pair"),
        (["--image", "ami-0123456789abcdef0"], "ami-0123456789abcdef0"),
        (["--volume", "/dev/sdz"], "/dev/sdz"),
    ] {
        let output = nights.cloud.command(&nights.repo, &["restore", &nights.points[0]]).args(args).run();
        output.expect(&[code::FAILED]).says(words);
        assert!(nights.cloud.account() == before, "{args:?}");
    }
    nights.cloud.lab.withhold_type("m5.large", "b");
    let output =
        nights.cloud.command(&nights.repo, &["restore", &nights.points[0], "--zone", "us-east-1b"]).run();
    output.expect(&[code::FAILED]).says("--instance-type");
}

/// Parts of a machine, and of any other recovery point.
#[test]
fn volumes_only() {
    let mut nights = start();
    nights.night(&[]);
    let root = nights.cloud.web.volumes[0].clone();
    let data = nights.cloud.web.volumes[1].clone();
    let report =
        nights.restore(&[&nights.points[0], "--volumes-only", "--without", &root, "--zone", "us-east-1c"]);
    let made = volumes(&nights, &report);
    assert!(
        made.len() == 1 && made[0].0["volume"] == data.as_str() && made[0].1["zone"] == "us-east-1c",
        "{report:#}"
    );
    assert!(made[0].1["attachment"].is_null() && report["instance"].is_null());
    nights.holds(json::text(made[0].0, "restored_to"), 0, 1);
    let what = format!("{}/{root}", nights.points[0]);
    for way in ["direct", "attach"] {
        let report = nights.restore(&[&what, "--volumes-only", "--no-base", "--write", way]);
        let made = volumes(&nights, &report);
        assert_eq!(made.len(), 1);
        nights.holds(json::text(made[0].0, "restored_to"), 0, 0);
    }
    // A disk of another machine, whose size is not of whole blocks.
    let disk = nights.work.join("disk.img");
    image::mixed(&disk, 9 * MIB + 4096, 3);
    let point = nights.repo.backup_id(&disk, "laptop");
    let refused = nights.cloud.command(&nights.repo, &["restore", &point]).run();
    refused.expect(&[code::FAILED]).says("--volumes-only");
    for way in ["direct", "attach"] {
        let report = nights.restore(&[&point, "--volumes-only", "--write", way]);
        let made = volumes(&nights, &report);
        assert!(
            made[0].1["size_gib"] == 1 && made[0].1["tags"]["penstock:volume"] == made[0].0["volume"],
            "{report:#}"
        );
        let path = nights.work.join("out.img");
        nights.cloud.lab.volume_export(json::text(made[0].0, "restored_to"), &path).unwrap();
        let (wanted, found) = (std::fs::read(&disk).unwrap(), std::fs::read(&path).unwrap());
        assert!(found[..wanted.len()] == wanted[..] && found[wanted.len()..].iter().all(|b| *b == 0));
    }
}

/// Encrypted as before, or with another key, also where a snapshot that is not helps.
#[test]
fn keys() {
    let mut nights = start();
    nights.night(&[]);
    nights.change(1);
    nights.night(&[]);
    for args in [["--write", "direct"], ["--write", "attach"]] {
        for (key, is) in [(KEY, KEY), ("default", ":key/")] {
            for extra in [&[][..], &["--volumes-only"]] {
                let report = nights
                    .cloud
                    .command(&nights.repo, &["restore", &nights.points[0], "--kms-key", key])
                    .args(args)
                    .args(extra)
                    .run()
                    .ok()
                    .json();
                nights.check(&report, 0);
                for (_, volume) in volumes(&nights, &report) {
                    let has = volume["kms_key"].as_str().unwrap_or_default();
                    assert!(volume["encrypted"] == true && has.contains(is), "{volume:#}");
                }
                nights.clear();
            }
        }
    }
    nights.machine(|spec| spec.volumes.iter_mut().for_each(|v| v.kms_key = Some(KEY.into())));
    nights.points.clear();
    nights.night(&[]);
    nights.change(2);
    nights.night(&[]);
    for args in [["--write", "direct"], ["--write", "attach"]] {
        for base in [&[][..], &["--no-base"]] {
            let command = nights.cloud.command(&nights.repo, &["restore", &nights.points[0]]);
            let report = command.args(args).args(base).run().ok().json();
            nights.check(&report, 0);
            for (_, volume) in volumes(&nights, &report) {
                assert_eq!(volume["kms_key"], KEY, "{args:?} {base:?}");
            }
            nights.clear();
        }
    }
    assert!(!nights.cloud.marked().iter().any(|m| m.ends_with("temporary")));
}

/// An account that encrypts by default since takes no parent that is not encrypted: everything is written, and encrypted.
#[test]
fn an_account_that_encrypts_by_default() {
    let mut nights = start();
    nights.night(&[]);
    nights.change(1);
    nights.night(&[]);
    nights.cloud.lab.with("us-east-1", |region| region.encryption_by_default = true);
    for way in ["direct", "attach"] {
        let report = nights.restore(&[&nights.points[0], "--write", way]);
        nights.check(&report, 0);
        for (_, volume) in volumes(&nights, &report) {
            assert_eq!(volume["encrypted"], true, "{volume:#}");
        }
        nights.clear();
    }
}

/// Another image's root, and the point's data volumes.
#[test]
fn another_image() {
    let mut nights = start();
    nights.night(&["--mode", "ami"]);
    let dump = nights.cloud.lab.dump();
    let images = dump["us-east-1"]["images"].as_object().unwrap();
    let mine = |id: &str| images[id]["tags"]["penstock:purpose"] == "kept";
    let kept = images.keys().find(|id| mine(id)).unwrap();
    nights.change(4);
    nights.night(&["--mode", "snapshots"]);
    for way in ["direct", "attach"] {
        let args = [nights.points[1].as_str(), "--image", kept, "--write", way, "--no-base"];
        let report = nights.restore(&args);
        let new = nights.instance(json::text(&report, "instance"));
        assert_eq!(new["image_id"], kept.as_str());
        let root = nights.restored(&report, 0);
        assert_eq!(root["write"], "image");
        nights.holds(json::text(root, "restored_to"), 0, 0);
        nights.holds(json::text(nights.restored(&report, 1), "restored_to"), 1, 1);
        let notes = json::list(&report, "notes");
        assert!(notes.len() == 1 && notes[0].as_str().unwrap().contains(kept.as_str()), "{report:#}");
        nights.clear();
    }
    // The root is written all the same, and the kept image stays.
    let report = nights.restore(&[&nights.points[0], "--write-root"]);
    nights.check(&report, 0);
    assert_ne!(nights.restored(&report, 0)["write"], "image");
    assert!(nights.thing("images", kept).is_object());
}

/// Into a region where nothing of it is.
#[test]
fn another_region() {
    let mut nights = start();
    nights.night(&[]);
    let (subnet, group) = nights.cloud.lab.with("eu-central-1", |region| {
        let subnet = region.subnets.values().find(|s| s.zone == "eu-central-1b").unwrap();
        let group = region.groups.values().find(|g| g.vpc_id == subnet.vpc_id).unwrap();
        (subnet.id.clone(), group.id.clone())
    });
    let there = [nights.points[0].as_str(), "--region", "eu-central-1"];
    let restore =
        |args: &[&str]| nights.cloud.command(&nights.repo, &["restore"]).args(there).args(args).run();
    restore(&[]).expect(&[code::FAILED]).says("--subnet");
    let report = restore(&["--subnet", &subnet, "--security-group", &group]).ok().json();
    assert!(report["region"] == "eu-central-1" && report["zone"] == "eu-central-1b", "{report:#}");
    for v in json::list(&report, "volumes") {
        assert!(v["write"] == "direct" && v["base"].is_null(), "{v:#}");
        let id = json::text(v, "restored_to");
        let volume = nights.cloud.web.volumes.iter().position(|name| v["volume"] == name.as_str()).unwrap();
        let path = nights.work.join("there.img");
        let file = nights.cloud.lab.with("eu-central-1", |region| region.volumes[id].file.path().to_owned());
        std::fs::copy(file, &path).unwrap();
        penstock_tests::compare::assert_identical_sparse(
            &nights.day(0, volume),
            &path,
            "in the other region",
        );
    }
    let dump = nights.cloud.lab.dump();
    assert!(dump["eu-central-1"]["images"].as_object().is_none_or(|images| images.is_empty()), "{dump:#}");
    assert!(dump["eu-central-1"]["snapshots"].as_object().is_none_or(|s| s.is_empty()), "{dump:#}");
}

/// Windows launches from the image that mode ami kept, and from no other that could be made.
#[test]
fn windows() {
    let mut nights = start();
    nights.machine(|spec| spec.platform = Some("windows".into()));
    nights.night(&["--mode", "snapshots"]);
    let before = nights.cloud.account();
    let refused = nights.cloud.command(&nights.repo, &["restore", &nights.points[0]]).run();
    refused.expect(&[code::FAILED]).says("licence").says("--mode ami").says("--volumes-only").says("--image");
    assert!(nights.cloud.account() == before);
    let report = nights.restore(&[&nights.points[0], "--volumes-only"]);
    nights.check(&report, 0);
    nights.clear();
    nights.change(1);
    nights.night(&[]);
    let report = nights.restore(&[&nights.points[1]]);
    nights.check(&report, 1);
    let new = nights.instance(json::text(&report, "instance"));
    assert!(new["platform"] == "windows" && nights.restored(&report, 0)["write"] == "image", "{new:#}");
}

/// How it boots is carried over: mode, TPM, the firmware's variables.
#[test]
fn firmware() {
    let mut nights = start();
    nights.machine(|spec| {
        spec.boot_mode = Some("uefi".into());
        spec.tpm = Some("v2.0".into());
        spec.uefi_data = Some("QU1aTlVFRkkBAAAA".into());
        spec.root_device = "/dev/sda1".into();
    });
    nights.night(&["--no-anchor"]);
    let old = nights.instance(&nights.cloud.web.instance);
    for way in ["direct", "attach"] {
        let report = nights.restore(&[&nights.points[0], "--write", way]);
        nights.check(&report, 0);
        let new = nights.instance(json::text(&report, "instance"));
        for field in ["boot_mode", "tpm", "uefi_data", "root_device", "ena", "architecture"] {
            assert!(new[field] == old[field], "{field}: {} became {}", old[field], new[field]);
        }
        assert_eq!(new["uefi_data"], "QU1aTlVFRkkBAAAA");
        nights.clear();
    }
}

/// Ctrl-C: what was made goes, and the program says so.
#[test]
fn an_interrupted_restore_is_undone() {
    let mut nights = Nights::with(|options| {
        options.timing.snapshot_ms = 300;
        options.timing.volume_ms = 200;
        options.timing.attach_ms = 100;
        options.timing.image_ms = 300;
        options.timing.instance_ms = 300;
    });
    nights.night(&["--no-anchor"]);
    let before = nights.cloud.account();
    let mut interrupted = 0;
    for (way, ms) in [("direct", 400), ("direct", 900), ("attach", 700), ("attach", 1200)] {
        let mut run =
            nights.cloud.command(&nights.repo, &["restore", &nights.points[0], "--write", way]).spawn();
        let stopped = run.runs_at(Duration::from_millis(ms));
        if stopped {
            run.interrupt();
        }
        let output = run.wait();
        if output.code == code::INTERRUPTED {
            interrupted += 1;
            assert!(nights.cloud.account() == before, "{way} after {ms} ms: {:?}", nights.cloud.marked());
        } else {
            output.ok();
            nights.clear();
        }
    }
    assert!(interrupted > 0);
}
