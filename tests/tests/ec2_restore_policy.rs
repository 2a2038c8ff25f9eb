//! Restores with the printed policy and nothing else: it is enough, each permission of it is needed, and what was restored is out of its reach.

use std::net::TcpListener;

use penstock_lab::{KEY_ID, SubnetSpec};
use penstock_tests::iam::{actions, without};
use penstock_tests::json;
use penstock_tests::nights::Nights;
use penstock_tests::penstock::{Output, code};
use serde_json::Value;

/// Addresses of this machine: what listens there answers for a restored instance.
const HERE: &str = "127.77.0.0/24";

struct Setting {
    nights: Nights,
    /// A subnet whose addresses are [`HERE`], and a security group of its VPC.
    subnet: String,
    /// What answers there.
    listener: TcpListener,
}

impl Setting {
    /// A protected machine with a key pair, one night of it, without anchors.
    fn start() -> Self {
        let mut nights = Nights::with(|options| {
            let subnet =
                SubnetSpec { zone: "a".into(), cidr: HERE.into(), own_vpc: true, ..SubnetSpec::default() };
            options.scenario.subnets.push(subnet);
        });
        nights.machine(|spec| spec.key_name = Some("admin".into()));
        let instance = nights.cloud.web.instance.clone();
        let subnet = nights.cloud.lab.with("us-east-1", |region| {
            region.instances.get_mut(&instance).unwrap().disable_termination = true;
            region.subnets.values().find(|s| s.cidr == HERE).unwrap().id.clone()
        });
        let listener = TcpListener::bind(("127.77.0.4", 0)).unwrap();
        nights.night(&["--no-anchor"]);
        Self { nights, subnet, listener }
    }

    fn policy(&self, args: &[&str]) -> Value {
        self.nights.cloud.command(&self.nights.repo, &["iam-policy"]).args(args).run().ok().json()
    }

    fn allow(&self, policy: Option<&Value>) {
        assert!(self.nights.cloud.lab.access.set_policy(KEY_ID, policy));
    }

    fn restore(&self, kind: Kind) -> Output {
        let port = self.listener.local_addr().unwrap().port().to_string();
        let point = self.nights.points[0].as_str();
        let args: &[&str] = match kind {
            Kind::Attached => &[point, "--write", "attach"],
            Kind::Volumes => &[point, "--volumes-only", "--write", "direct"],
            Kind::Tried | Kind::Impaired => {
                &[point, "--test", "--subnet", &self.subnet, "--write", "direct", "--check-tcp", &port]
            }
        };
        self.nights.cloud.lab.impair_new(kind == Kind::Impaired);
        self.nights.cloud.command(&self.nights.repo, &["restore"]).args(args).run()
    }

    /// What was restored goes, and what could not be taken away without a permission.
    fn clear(&self) {
        self.allow(None);
        self.nights.clear();
        self.nights.cloud.command(&self.nights.repo, &["sweep"]).run().ok();
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// A new instance, through attached volumes.
    Attached,
    /// Volumes, by the direct APIs.
    Volumes,
    /// A restore test by the direct APIs that passes.
    Tried,
    /// One that fails.
    Impaired,
}

/// Where the lack of a permission shows.
fn needed_by(action: &str) -> Kind {
    match action {
        "ec2:DescribeAvailabilityZones" => Kind::Volumes,
        "ebs:StartSnapshot" | "ebs:PutSnapshotBlock" | "ebs:CompleteSnapshot" => Kind::Volumes,
        "ec2:DescribeSubnets"
        | "ec2:DescribeSecurityGroups"
        | "ec2:DescribeKeyPairs"
        | "ec2:DescribeInstanceTypeOfferings"
        | "ec2:CreateSnapshot"
        | "ec2:RegisterImage"
        | "ec2:RunInstances"
        | "ec2:ModifyInstanceAttribute" => Kind::Attached,
        "ec2:DescribeInstanceStatus"
        | "ec2:TerminateInstances"
        | "ec2:CreateSecurityGroup"
        | "ec2:RevokeSecurityGroupEgress"
        | "ec2:AuthorizeSecurityGroupIngress"
        | "ec2:DeleteSecurityGroup" => Kind::Tried,
        "ec2:GetConsoleOutput" => Kind::Impaired,
        other => panic!("which restore needs {other}?"),
    }
}

#[test]
fn the_printed_policy_is_enough_and_no_more() {
    let setting = Setting::start();
    let nights = &setting.nights;
    let policy = setting.policy(&[]);
    setting.clear();
    let before = nights.cloud.account();
    setting.allow(Some(&policy));
    for kind in [Kind::Attached, Kind::Volumes, Kind::Tried, Kind::Impaired] {
        let output =
            setting.restore(kind).expect(&[if kind == Kind::Impaired { code::FAILED } else { code::DONE }]);
        let report = output.json();
        assert!(json::list(&report, "notes").is_empty(), "{report:#}");
        if matches!(kind, Kind::Tried | Kind::Impaired) {
            assert_eq!(report["trial"]["passed"], kind == Kind::Tried, "{report:#}");
            assert_eq!(report["trial"]["console"].is_string(), kind == Kind::Impaired, "{report:#}");
            assert_eq!(report["trial"]["tcp"] == true, kind == Kind::Tried, "{report:#}");
        } else {
            nights.check(&report, 0);
            // It is the user's from now on: nothing that the policy lets this program end or delete.
            let mut ids: Vec<(&str, &str)> = json::list(&report, "volumes")
                .iter()
                .map(|v| ("volumes", json::text(v, "restored_to")))
                .collect();
            ids.extend(report["instance"].as_str().map(|id| ("instances", id)));
            for (kind, id) in ids {
                let tags = nights.thing(kind, id)["tags"].clone();
                assert!(
                    tags["penstock:run"].is_null() && tags["penstock:purpose"] == "restored",
                    "{id}: {tags}"
                );
            }
            let protected = report["instance"]
                .as_str()
                .is_some_and(|id| nights.instance(id)["disable_termination"] == true);
            assert_eq!(protected, kind == Kind::Attached);
        }
        nights.clear();
        assert!(nights.cloud.account() == before, "{kind:?}: {:?}", nights.cloud.marked());
    }
    let of_backups = actions(&setting.policy(&["--no-restore"]));
    for action in actions(&policy).difference(&of_backups).filter(|a| !a.starts_with("kms:")) {
        let kind = needed_by(action);
        setting.allow(Some(&without(&policy, action)));
        let output = setting.restore(kind);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let lacks = match kind {
            Kind::Impaired => report["trial"]["console"].is_null(),
            _ => {
                let notes = report["notes"].as_array().is_some_and(|notes| !notes.is_empty());
                notes || output.code != code::DONE || output.text().contains(action)
            }
        };
        assert!(lacks, "without {action}: {}", output.show());
        setting.clear();
        assert!(nights.cloud.account() == before, "{action}: {:?}", nights.cloud.marked());
    }
}

/// Writing over a volume of another instance needs more than the rest, and says so; the volume is where it was.
#[test]
fn volumes_of_others_need_their_own_permission() {
    let setting = Setting::start();
    let nights = &setting.nights;
    let data = &nights.cloud.web.volumes[1];
    nights.cloud.lab.stop(&nights.cloud.web.instance).unwrap();
    let what = format!("{}/{data}", nights.points[0]);
    nights.change(1);
    let onto = || nights.cloud.command(&nights.repo, &["restore", &what, "--onto", data, "--compare"]).run();
    setting.allow(Some(&setting.policy(&[])));
    onto().expect(&[code::FAILED]).says("--onto");
    let home = |nights: &Nights| nights.thing("volumes", data)["attachment"]["instance_id"].clone();
    assert_eq!(home(nights), nights.cloud.web.instance.as_str());
    setting.allow(Some(&setting.policy(&["--onto"])));
    onto().ok();
    nights.holds(data, 0, 1);
    assert_eq!(home(nights), nights.cloud.web.instance.as_str());
}

/// A role is given to a restored instance only by whoever may pass it.
#[test]
fn roles_have_to_be_named() {
    let mut setting = Setting::start();
    setting.nights.machine(|spec| spec.profile = Some("web".into()));
    setting.nights.night(&["--no-anchor"]);
    let point = setting.nights.points[1].clone();
    let nights = &setting.nights;
    let restore = |args: &[&str]| nights.cloud.command(&nights.repo, &["restore", &point]).args(args).run();
    setting.allow(Some(&setting.policy(&[])));
    restore(&[]).expect(&[code::FAILED]).says("--pass-role").says("--iam-profile none");
    assert_eq!(nights.cloud.marked(), Vec::<String>::new());
    let report = restore(&["--iam-profile", "none"]).ok().json();
    assert!(nights.instance(json::text(&report, "instance"))["profile"].is_null());
    setting.allow(Some(&setting.policy(&["--pass-role", "arn:aws:iam::*:role/web"])));
    let report = restore(&[]).ok().json();
    assert_eq!(nights.instance(json::text(&report, "instance"))["profile"], "web");
}

/// A port at which nothing answers fails the test, and everything goes all the same.
#[test]
fn a_port_that_does_not_answer() {
    let setting = Setting::start();
    let nights = &setting.nights;
    let before = nights.cloud.account();
    let port = setting.listener.local_addr().unwrap().port().to_string();
    drop(setting.listener);
    let args = ["--test", "--subnet", &setting.subnet, "--check-tcp", &port, "--check-timeout", "1"];
    let output = nights.cloud.command(&nights.repo, &["restore", &nights.points[0]]).args(args).run();
    let report = output.expect(&[code::FAILED]).says("nothing answers").json();
    assert!(report["trial"]["passed"] == false && report["trial"]["tcp"] == false, "{report:#}");
    assert!(nights.cloud.account() == before, "{:?}", nights.cloud.marked());
}
