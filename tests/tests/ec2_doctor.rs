//! `penstock ec2 doctor` on an account in the lab: what it says is what happens, and it changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use penstock_lab::{Fault, InstanceSpec, KEY_ID, Key, Rule, SECRET, VolumeSpec};
use penstock_tests::cloud::{self, Cloud};
use penstock_tests::iam::{actions, without};
use penstock_tests::penstock::{Output, code};
use penstock_tests::repo::Repo;
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, json};
use serde_json::{Value, json};

/// Permissions that only the tag of a thing of penstock's own can decide.
const OF_VOLUMES: [&str; 3] = ["ec2:AttachVolume", "ec2:DetachVolume", "ec2:DeleteVolume"];
const OF_INSTANCES: [&str; 2] = ["ec2:TerminateInstances", "ec2:ModifyInstanceAttribute"];
const OF_GROUPS: [&str; 3] =
    ["ec2:RevokeSecurityGroupEgress", "ec2:AuthorizeSecurityGroupIngress", "ec2:DeleteSecurityGroup"];
const OF_SNAPSHOTS: [&str; 9] = [
    "ebs:PutSnapshotBlock",
    "ebs:CompleteSnapshot",
    "ec2:RegisterImage",
    "ec2:DeleteSnapshot",
    "ec2:CreateTags",
    "ec2:DeleteTags",
    "ebs:ListSnapshotBlocks",
    "ebs:ListChangedBlocks",
    "ebs:GetSnapshotBlock",
];

struct Setting {
    cloud: Cloud,
    repo: Repo,
    _work: Workdir,
}

impl Setting {
    fn new() -> Self {
        let work = Workdir::new("ec2_doctor");
        let cloud = Cloud::start(&work, cloud::options(&work), 4 * MIB);
        let repo = Repo::encrypted(&work, "repo", &[]);
        Self { cloud, repo, _work: work }
    }

    fn policy(&self, args: &[&str]) -> Value {
        self.cloud.command(&self.repo, &["iam-policy"]).args(args).run().ok().json()
    }

    fn allow(&self, policy: &Value) {
        assert!(self.cloud.lab.access.set_policy(KEY_ID, Some(policy)));
    }

    /// A doctor's answer; the account is as it was.
    #[track_caller]
    fn doctor(&self, args: &[&str]) -> Output {
        self.doctor_with(&[], args)
    }

    #[track_caller]
    fn doctor_with(&self, env: &[(&str, &str)], args: &[&str]) -> Output {
        let before = self.cloud.lab.dump();
        let command = self.cloud.command(&self.repo, &["doctor"]).args(args);
        let output = env.iter().fold(command, |c, (name, value)| c.env(name, value)).run();
        assert_eq!(self.cloud.lab.dump(), before, "a doctor changes nothing");
        output
    }

    /// A volume of a run of another machine that may still be under way.
    fn add_volume(&self) {
        let tags = [
            ("penstock:run", "0123456789abcdef"),
            ("penstock:purpose", "temporary"),
            ("penstock:expires", "2999-01-01T00:00:00Z"),
        ];
        let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        self.cloud.lab.add_volume(&VolumeSpec { size_gib: Some(1), tags, ..VolumeSpec::default() }).unwrap();
    }

    /// That volume, an instance and a group of a restore, an anchor of each volume, and an image with its snapshot.
    fn add_own_things(&self) -> [String; 2] {
        self.add_volume();
        let lab = &self.cloud.lab;
        let spec = InstanceSpec { name: "restored".into(), ..InstanceSpec::default() };
        let instance = lab.add_instance(&spec).unwrap().instance;
        let own = [instance, self.group()];
        for id in &own {
            lab.set_tag(id, "penstock:run", "0123456789abcdef").unwrap();
            lab.set_tag(id, "penstock:purpose", "temporary").unwrap();
            lab.set_tag(id, "penstock:expires", "2999-01-01T00:00:00Z").unwrap();
        }
        self.cloud.backup(&self.repo, &["--mode", "ami", "--read", "direct"]);
        own
    }

    /// A security group that nothing uses.
    fn group(&self) -> String {
        let dump = self.cloud.lab.dump();
        let groups = dump["us-east-1"]["groups"].as_object().unwrap();
        groups.keys().next_back().unwrap().clone()
    }

    /// AWS answers this to every such call.
    fn refuse(&self, action: &str, code: &str) {
        let fault = Fault::Refuse { status: 400, code: code.into(), message: "no".into() };
        let rule = Rule { action: action.into(), naming: None, share: 1.0, skip: 0, times: None, fault };
        self.cloud.lab.faults.set(vec![rule]);
    }
}

#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = json::list(report, "checks");
    checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no check {name} in {report:#}"))
}

fn names_of(report: &Value, is: impl Fn(&Value) -> bool) -> BTreeSet<&str> {
    json::list(report, "checks").iter().filter(|c| is(c)).map(|c| json::text(c, "name")).collect()
}

fn says(check: &Value, word: &str) -> bool {
    json::text(check, "found").contains(word)
}

/// Before the first backup there is nothing of penstock's own: what only that could decide is said to be open.
#[test]
fn the_printed_policy_is_healthy() {
    let setting = Setting::new();
    let policy = setting.policy(&[]);
    setting.allow(&policy);
    let report = setting.doctor(&[]).ok().json();
    assert_eq!(report["healthy"], true);
    let open = names_of(&report, |c| c["status"] != "ok");
    let of_restores =
        || OF_VOLUMES.into_iter().chain(OF_INSTANCES).chain(OF_GROUPS).chain(["ec2:DeregisterImage"]);
    assert_eq!(open, of_restores().chain(OF_SNAPSHOTS).collect(), "{report:#}");
    for name in open {
        assert!(says(check(&report, name), "not decided") && says(check(&report, name), "penstock:run"));
    }
    assert!(says(check(&report, "credentials"), "environment variables: arn:aws:iam::"));
    assert!(says(check(&report, "this instance"), &setting.cloud.lab.proxy_id()));
    assert!(says(check(&report, "instance"), &setting.cloud.web.instance));
    assert!(says(check(&report, "instance"), "first one found"));
    assert_eq!(check(&report, "clock")["found"], "as AWS's");

    setting.cloud.backup(&setting.repo, &[]);
    let report = setting.doctor(&[&setting.cloud.web.instance]).ok().json();
    assert!(!says(check(&report, "instance"), "first one found"));
    let open = names_of(&report, |c| c["status"] != "ok");
    assert_eq!(open, of_restores().collect(), "{report:#}");

    let own = setting.add_own_things();
    let report = setting.doctor(&[]).ok().json();
    assert_eq!(names_of(&report, |c| c["status"] != "ok"), BTreeSet::new(), "{report:#}");
    // Every action of the policy is a check, or said not to be tried.
    for action in actions(&policy) {
        match action.starts_with("kms:") {
            false => assert_eq!(check(&report, &action)["status"], "ok"),
            true => assert!(says(check(&report, "KMS keys"), &action), "{action}"),
        }
    }
    assert_eq!(report["healthy"], true);
    // What changes something is a trial, and what takes away is tried on nothing that is not penstock's own.
    let marked = setting.cloud.marked().join(" ") + &own.join(" ");
    setting.cloud.lab.calls.clear();
    setting.doctor(&[]).ok();
    let mut tried = BTreeSet::new();
    for call in setting.cloud.lab.calls.records().into_iter().filter(|c| c.service == "ec2") {
        if call.action.starts_with("Describe") || call.action.starts_with("Get") {
            continue;
        }
        assert_eq!(call.params.get("DryRun").map(String::as_str), Some("true"), "{call:?}");
        let makes = ["Create", "Run", "Register"].iter().any(|verb| call.action.starts_with(verb));
        if !makes || call.action == "CreateTags" {
            let ids = [
                "VolumeId",
                "SnapshotId",
                "ImageId",
                "ResourceId.1",
                "InstanceId",
                "InstanceId.1",
                "GroupId",
            ];
            let id = ids.iter().find_map(|name| call.params.get(*name)).unwrap();
            assert!(marked.contains(id.as_str()), "{call:?}");
        }
        tried.insert(call.action);
    }
    assert_eq!(tried.len(), 19, "{tried:?}");
}

/// Each action is taken out of the policy by itself: the doctor names it and nothing else, and `fail` is said of exactly those without which a backup as it is
/// by default does not work, or leaves things that cost.
#[test]
fn a_missing_permission_is_named_with_its_feature() {
    let setting = Setting::new();
    let policy = setting.policy(&[]);
    setting.add_own_things();
    for action in actions(&policy).iter().filter(|a| !a.starts_with("kms:")) {
        setting.allow(&without(&policy, action));
        let output = setting.doctor(&[]);
        let report = output.json();
        let missing = names_of(&report, |c| json::text(c, "found").starts_with("missing"));
        assert_eq!(missing, [action.as_str()].into(), "{action}: {report:#}");
        let found = check(&report, action);
        let status = json::text(found, "status");
        assert!(json::text(found, "found").starts_with("missing: "), "{found}");
        assert!(json::text(found, "advice").contains("iam-policy"), "{found}");
        assert_eq!(
            (output.code, report["healthy"] == true),
            if status == "fail" { (1, false) } else { (0, true) }
        );
        let others = names_of(&report, |c| c["status"] == "fail" && c["name"] != action.as_str());
        assert_eq!(others, BTreeSet::new(), "{action}: {report:#}");

        let open = names_of(&report, |c| says(c, "not decided"));
        let expected: &[&str] = match action.as_str() {
            "ebs:ListSnapshotBlocks" => &["ebs:GetSnapshotBlock"],
            "ec2:DescribeInstances" => &[
                "ec2:DescribeInstanceAttribute",
                "ec2:GetInstanceUefiData",
                "ec2:GetConsoleOutput",
                "ec2:CreateSnapshots",
                "ec2:CreateVolume",
                "ec2:CreateImage",
                "ec2:CreateSnapshot",
                "ec2:RegisterImage",
                "ec2:RunInstances",
                "ec2:CreateSecurityGroup",
                "ec2:TerminateInstances",
                "ec2:ModifyInstanceAttribute",
                "iam:PassRole",
            ],
            "ec2:DescribeSecurityGroups" => &OF_GROUPS,
            "ec2:DescribeVolumes" => &OF_VOLUMES,
            "ec2:DescribeSnapshots" => &OF_SNAPSHOTS,
            "ec2:DescribeImages" => &["ec2:DeregisterImage"],
            _ => &[],
        };
        assert_eq!(open, expected.iter().copied().collect(), "{action}: {report:#}");
    }
}

/// What `fail` says is so: without it, and only without it, a backup as it is by default fails, or one by any way leaves things.
#[test]
fn fail_means_that_backups_fail() {
    let setting = Setting::new();
    let (cloud, repo) = (&setting.cloud, &setting.repo);
    let policy = setting.policy(&["--no-restore"]);
    setting.add_own_things();
    cloud.backup(repo, &[]);
    let mut seed = 0;
    for action in actions(&policy).iter().filter(|a| !a.starts_with("kms:")) {
        setting.allow(&without(&policy, action));
        let fails = check(&setting.doctor(&[]).json(), action)["status"] == "fail";
        let mut bad = Vec::new();
        // the third gives up the anchors, so that the fourth begins anew
        for args in [&["auto"][..], &["attach"], &["auto", "--no-anchor"], &["auto"]] {
            seed += 1;
            cloud.lab.volume_write(&cloud.web.volumes[0], 5 * MIB, &[seed; 4096]).unwrap();
            setting.allow(&without(&policy, action));
            let output = cloud.backup_command(repo, &["--read"]).args(args).run();
            let leaves = output.text().contains("could be taken away");
            if (output.code != code::DONE && args[0] == "auto") || leaves {
                bad.push(format!("{args:?}: {}", output.show()));
            }
            cloud.lab.access.set_policy(KEY_ID, None);
            cloud.command(repo, &["sweep"]).run().ok();
        }
        assert_eq!(fails, !bad.is_empty(), "{action}: {bad:#?}");
    }
}

#[test]
fn without_attaching_a_feature_is_lost() {
    let setting = Setting::new();
    let policy = setting.policy(&["--no-attach", "--no-ami", "--no-restore"]);
    let backups = actions(&setting.policy(&["--no-restore"]));
    setting.allow(&policy);
    setting.add_volume();
    let report = setting.doctor(&[]).ok().json();
    assert_eq!(report["healthy"], true);
    let missing = names_of(&report, |c| json::text(c, "found").starts_with("missing"));
    let (of_backups, of_restores): (BTreeSet<&str>, BTreeSet<&str>) =
        missing.iter().partition(|name| backups.contains(**name));
    assert_eq!(of_backups, OF_VOLUMES.into_iter().chain(["ec2:CreateVolume", "ec2:CreateImage"]).collect());
    assert!(of_restores.contains("ec2:RunInstances") && of_restores.contains("ebs:StartSnapshot"));
    for name in ["ec2:CreateVolume", "ec2:AttachVolume"] {
        assert!(says(check(&report, name), "everything is read by the EBS direct APIs"));
    }
    assert!(missing.iter().all(|name| check(&report, name)["status"] == "warn"));
    // Then the listing of blocks is worth all.
    setting.allow(&without(&policy, "ebs:ListSnapshotBlocks"));
    let report = setting.doctor(&[]).expect(&[code::FAILED]).json();
    assert_eq!(check(&report, "ebs:ListSnapshotBlocks")["status"], "fail");
    setting.cloud.backup_command(&setting.repo, &[]).run().expect(&[code::FAILED]);
}

/// Tags that may be given to snapshots, and not to volumes, cost no more than attaching; a policy that forbids is told from one that does not allow.
#[test]
fn refusals_are_told_apart() {
    let setting = Setting::new();
    let mut policy = setting.policy(&[]);
    let statements = policy["Statement"].as_array_mut().unwrap();
    let tagging = statements.iter_mut().find(|s| s["Sid"] == "TagNewThings").unwrap();
    let actions = tagging["Condition"]["StringEquals"]["ec2:CreateAction"].as_array_mut().unwrap();
    actions.retain(|action| action != "CreateVolume");
    statements.push(json!({"Effect": "Deny", "Action": "ec2:CreateImage", "Resource": "*"}));
    setting.allow(&policy);
    let report = setting.doctor(&[]).ok().json();
    assert_eq!(check(&report, "ec2:CreateVolume")["status"], "ok");
    let tags = check(&report, "ec2:CreateTags");
    assert_eq!(tags["status"], "warn");
    assert!(says(tags, "not with CreateVolume: volumes cannot be attached"), "{tags}");
    assert!(says(check(&report, "ec2:CreateImage"), "forbidden by an identity-based policy"), "{report:#}");
    setting.cloud.backup(&setting.repo, &[]);
    // what AWS says otherwise decides nothing
    setting.refuse("CreateSnapshots", "UnsupportedOperation");
    let report = setting.doctor(&[]).ok().json();
    let snapshots = check(&report, "ec2:CreateSnapshots");
    assert!(says(snapshots, "not decided") && says(snapshots, "UnsupportedOperation"), "{snapshots}");
}

#[test]
fn credentials_that_aws_does_not_take() {
    let setting = Setting::new();
    let expired = Key {
        id: "ASIAEXPIRED".into(),
        secret: SECRET.into(),
        session_token: Some("session".into()),
        arn: None,
        policy: None,
        expires_ms: Some(1),
    };
    setting.cloud.lab.access.add_key(expired);
    let nowhere = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_PROFILE", ""),
        ("AWS_CONFIG_FILE", "/nonexistent"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    for (env, words) in [
        (&[("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")][..], "InvalidClientTokenId"),
        (&[("AWS_SECRET_ACCESS_KEY", "wrong")], "SignatureDoesNotMatch"),
        (&[("AWS_ACCESS_KEY_ID", "ASIAEXPIRED"), ("AWS_SESSION_TOKEN", "session")], "expired"),
        (&nowhere, "credentials"),
    ] {
        let report = setting.doctor_with(env, &[]).expect(&[code::FAILED]).json();
        assert_eq!(report["healthy"], false);
        let credentials = check(&report, "credentials");
        assert!(credentials["status"] == "fail" && says(credentials, words), "{words}: {credentials}");
        assert!(!credentials["advice"].to_string().contains("iam-policy"), "{credentials}");
        assert!(says(check(&report, "permissions"), "not checked"));
        let list = setting.cloud.command(&setting.repo, &["list"]);
        let list = env.iter().fold(list, |c, (name, value)| c.env(name, value)).run();
        assert!(!list.expect(&[code::FAILED]).stderr.contains("iam-policy"));
    }
}

#[test]
fn a_clock_that_is_off() {
    let setting = Setting::new();
    setting.cloud.lab.set(|s| s.limits.signature_ms = 300_000);
    setting.cloud.lab.advance(Duration::from_secs(60));
    let report = setting.doctor(&[]).ok().json();
    let clock = check(&report, "clock");
    assert!(clock["status"] == "warn" && says(clock, "behind"), "{clock}");
    setting.cloud.lab.advance(Duration::from_secs(400));
    let report = setting.doctor(&[]).expect(&[code::FAILED]).json();
    let clock = check(&report, "clock");
    assert!(clock["status"] == "fail" && says(clock, "behind"), "{clock}");
    assert!(check(&report, "credentials")["advice"].to_string().contains("clock"), "{report:#}");
    setting.cloud.command(&setting.repo, &["list"]).run().expect(&[code::FAILED]).says("clock");
}

#[test]
fn other_places() {
    let setting = Setting::new();
    // another region, with nothing in it; the lab has it from the first time that it is named
    setting.cloud.lab.with("eu-central-1", |_| ());
    let report = setting.doctor(&["--region", "eu-central-1"]).ok().json();
    let here = check(&report, "this instance");
    assert!(here["status"] == "warn" && says(here, "not in eu-central-1"), "{here}");
    assert!(says(check(&report, "instance"), "not checked: no instance in eu-central-1"), "{report:#}");
    assert!(says(check(&report, "ec2:CreateSnapshots"), "no instance in eu-central-1"), "{report:#}");
    // an instance that is not there
    let report = setting.doctor(&["i-0123456789abcdef0"]).expect(&[code::FAILED]).json();
    assert_eq!(check(&report, "instance")["status"], "fail");
    // not on EC2
    setting.add_volume();
    let output =
        setting.doctor_with(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")], &[]).ok();
    assert!(output.duration < Duration::from_secs(10), "{:?}", output.duration);
    let report = output.json();
    assert!(says(check(&report, "this instance"), "not an EC2 instance"), "{report:#}");
    assert!(says(check(&report, "ec2:AttachVolume"), "cannot be attached"), "{report:#}");
    let firmware = setting.cloud.lab.sys_dir().join("class/dmi/id");
    std::fs::create_dir_all(&firmware).unwrap();
    std::fs::write(firmware.join("sys_vendor"), "Amazon EC2\n").unwrap();
    let output =
        setting.doctor_with(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")], &[]).ok();
    assert!(check(&output.json(), "this instance")["advice"].to_string().contains("hop limit"));
    // nobody answers; or only STS does not
    let closed = "http://127.0.0.1:9";
    let report = setting.doctor_with(&[("AWS_ENDPOINT_URL_STS", closed)], &[]).ok().json();
    assert_eq!(check(&report, "credentials")["status"], "warn");
    assert_eq!(check(&report, "ec2:DescribeVolumes")["status"], "ok");
    assert_eq!(check(&report, "clock")["found"], "as AWS's");
    let report = setting.doctor_with(&[("AWS_ENDPOINT_URL_EC2", closed)], &[]).expect(&[code::FAILED]).json();
    assert!(check(&report, "EC2")["advice"].to_string().contains("endpoints"), "{report:#}");
    // no region
    let env = [
        ("AWS_REGION", ""),
        ("AWS_DEFAULT_REGION", ""),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/nonexistent"),
    ];
    let report = setting.doctor_with(&env, &[]).expect(&[code::FAILED]).json();
    assert!(check(&report, "region")["advice"].to_string().contains("--region"), "{report:#}");
}

#[test]
fn keys_of_encrypted_volumes_are_named() {
    let setting = Setting::new();
    let key = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let volume = VolumeSpec { size_gib: Some(1), kms_key: Some(key.into()), ..VolumeSpec::default() };
    let spec = InstanceSpec { name: "vault".into(), volumes: vec![volume], ..InstanceSpec::default() };
    let vault = setting.cloud.lab.add_instance(&spec).unwrap();
    let report = setting.doctor(&[&vault.instance]).ok().json();
    let keys = check(&report, "KMS keys");
    assert!(keys["status"] == "warn" && says(keys, key) && says(keys, &vault.volumes[0]), "{keys}");
    assert!(says(keys, "kms:CreateGrant") && says(keys, "not tried"), "{keys}");
    // A key that may not be used is no lack of ebs:…
    setting.cloud.command(&setting.repo, &["backup", &vault.instance]).run().ok();
    setting.cloud.lab.deny_kms_keys(&[key]);
    let report = setting.doctor(&[&vault.instance]).ok().json();
    let list = check(&report, "ebs:ListSnapshotBlocks");
    assert!(list["status"] == "warn" && says(list, "KMS key"), "{list}");
}

#[test]
fn leftovers_are_told() {
    let setting = Setting::new();
    let report = setting.doctor(&[]).ok().json();
    assert_eq!(check(&report, "leftovers")["found"], "none");
    setting.add_volume();
    let report = setting.doctor(&[]).ok().json();
    assert!(says(check(&report, "leftovers"), "none; 1 thing of runs under way"), "{report:#}");
    // a run that cannot take away what it made, and so leaves its journal
    setting.refuse("DeleteSnapshot", "UnauthorizedOperation");
    setting.cloud.backup(&setting.repo, &["--no-anchor", "--read", "direct"]);
    setting.cloud.lab.faults.set(Vec::new());
    let report = setting.doctor(&[]).ok().json();
    let leftovers = check(&report, "leftovers");
    assert!(
        leftovers["status"] == "warn" && says(leftovers, "snap-") && says(leftovers, "journal"),
        "{leftovers}"
    );
    assert!(json::text(leftovers, "advice").contains("sweep"));
    setting.cloud.command(&setting.repo, &["sweep"]).run().ok();
    let report = setting.doctor(&[]).ok().json();
    assert_eq!(check(&report, "leftovers")["status"], "ok");
}

/// For people: a line a check, advice below; and the other doctor knows of this one.
#[test]
fn words_for_people() {
    let setting = Setting::new();
    setting.allow(&without(&setting.policy(&[]), "ec2:CreateVolume"));
    let command = setting.repo.command(&["ec2", "doctor"]);
    let command = setting.cloud.lab.env().iter().fold(command, |c, (name, value)| c.env(name, value));
    let text = command.run().ok().text();
    assert!(
        text.lines()
            .any(|l| l.starts_with("warn  ec2:CreateVolume")
                && l.contains("missing: volumes cannot be attached")),
        "{text}"
    );
    assert!(text.lines().any(|l| l.trim_start().starts_with("→ `penstock ec2 iam-policy`")), "{text}");
    let general = |env: &[(&str, &str)]| {
        let command = setting.repo.command(&["doctor", "--json"]).env("HOME", "/nonexistent");
        let clear = ["AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"];
        let command = clear.iter().fold(command, |c, name| c.env(name, ""));
        let report = env.iter().fold(command, |c, (name, value)| c.env(name, value)).run().ok().json();
        json::list(&report, "checks").iter().any(|c| says(c, "penstock ec2 doctor"))
    };
    let on_ec2 =
        std::fs::read_to_string("/sys/class/dmi/id/sys_vendor").is_ok_and(|v| v.trim() == "Amazon EC2");
    assert!(general(&[("AWS_PROFILE", "backup")]));
    assert_eq!(general(&[]), on_ec2);
}

/// Roles are passed to restored instances only if they are named.
#[test]
fn roles_are_passed_by_name() {
    let setting = Setting::new();
    let proxy = setting.cloud.lab.proxy_id();
    setting.allow(&setting.policy(&[]));
    let report = setting.doctor(&[]).ok().json();
    assert!(says(check(&report, "iam:PassRole"), "not needed"), "{report:#}");
    let report = setting.doctor(&[&proxy]).ok().json();
    let role = check(&report, "iam:PassRole");
    assert!(role["status"] == "warn" && json::text(role, "advice").contains("--pass-role"), "{role}");
    assert_eq!(check(&report, "ec2:RunInstances")["status"], "ok");
    setting.allow(&setting.policy(&["--pass-role", "arn:aws:iam::*:role/penstock-proxy"]));
    let report = setting.doctor(&[&proxy]).ok().json();
    assert_eq!(check(&report, "iam:PassRole")["found"], "allowed");
}
