//! `penstock ec2 plan` says before what `backup` does then; `penstock ec2 snapshot` keeps sets of snapshots by policy.

use penstock_tests::cloud::{self, Cloud};
use penstock_tests::penstock::code;
use penstock_tests::repo::Repo;
use penstock_tests::rng::Rng;
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, by_tier, json};
use serde_json::Value;

const BLOCK: u64 = 512 << 10;

fn plan(cloud: &Cloud, repo: &Repo, args: &[&str]) -> Value {
    let before = cloud.lab.dump();
    let which = ["plan", &cloud.web.instance, "--exclude-tag", cloud::LEFT_OUT];
    let answer = cloud.command(repo, &which).args(args).run().ok().json();
    assert!(cloud.lab.dump() == before, "a plan makes nothing");
    answer["machines"][0].clone()
}

fn bytes(list: &Value, key: &str) -> Vec<u64> {
    json::list(list, key).iter().map(|v| json::u64(v, "bytes")).collect()
}

#[test]
fn a_plan_is_what_happens_then() {
    let work = Workdir::new("ec2_plan");
    let cloud = Cloud::start(&work, cloud::options(&work), 16 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    // nothing tells what was written
    let first = plan(&cloud, &repo, &[]);
    assert_eq!(bytes(&first, "volumes"), [1 << 30, 1 << 30]);
    assert!(json::text(&first["volumes"][0], "known_from").contains("at most"), "{first:#}");
    assert_eq!(first["excluded"][0]["volume"], cloud.web.volumes[2].as_str());
    // any snapshot does
    cloud.command(&repo, &["snapshot", &cloud.web.instance]).run().ok();
    let first = plan(&cloud, &repo, &[]);
    assert!(json::text(&first["volumes"][0], "known_from").contains("snap-"), "{first:#}");
    let done = cloud.backup(&repo, &[]);
    assert_eq!(bytes(&first, "volumes"), bytes(&done, "reads"));
    for (planned, read) in json::list(&first, "volumes").iter().zip(json::list(&done, "reads")) {
        assert_eq!(
            (&planned["way"], &planned["requests"], &planned["usd"]),
            (&read["way"], &read["requests"], &read["usd"])
        );
        assert!(planned["kept_usd_month"].as_f64().unwrap() > 0.0);
    }
    // an anchor without any experience: an assumption, and it can be another
    let second = plan(&cloud, &repo, &["--changed", "50%"]);
    assert_eq!(bytes(&second, "volumes")[0], bytes(&first, "volumes")[0] / 2);
    assert!(second["volumes"][0]["anchor"].is_string());
    // with experience
    cloud.lab.volume_write(&cloud.web.volumes[0], 5 * BLOCK, &[1; 3 * BLOCK as usize]).unwrap();
    cloud.backup(&repo, &["--read", "direct"]);
    let third = plan(&cloud, &repo, &[]);
    assert_eq!(bytes(&third, "volumes"), [3 * BLOCK, 0]);
    assert!(json::text(&third["volumes"][0], "known_from").contains("as much as changed"), "{third:#}");
    // ways that are asked for, and a place from which nothing can be attached
    let attach = plan(&cloud, &repo, &["--read", "attach", "--no-anchor"]);
    assert_eq!((&attach["volumes"][0]["way"], &attach["kept_usd_month"]), (&"attach".into(), &0.0.into()));
    let which = ["plan", &cloud.web.instance];
    let outside = cloud.command(&repo, &which).env("AWS_EC2_METADATA_DISABLED", "true");
    let outside = outside.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1").run().ok().json();
    let volume = &outside["machines"][0]["volumes"][0];
    assert!(
        volume["way"] == "direct" && json::text(volume, "why").contains("no EC2 instance"),
        "{outside:#}"
    );
    assert!(outside["machines"][0]["notes"].to_string().contains("out of AWS"), "{outside:#}");
    // for people
    let text = repo.command(&["ec2", "plan", &cloud.web.instance]);
    let text = cloud.lab.env().iter().fold(text, |c, (name, value)| c.env(name, value)).run().ok();
    text.says("USD").says("snapshots that stay").says("takes about");
}

fn snapshot(cloud: &Cloud, repo: &Repo, args: &[&str]) -> Value {
    let which = ["snapshot", &cloud.web.instance, "--exclude-tag", cloud::LEFT_OUT];
    cloud.command(repo, &which).args(args).run().ok().json()[0].clone()
}

#[test]
fn sets_of_snapshots_stay_as_long_as_the_policy_says() {
    let work = Workdir::new("ec2_plan");
    let cloud = Cloud::start(&work, cloud::options(&work), 4 * MIB);
    let repo = Repo::encrypted(&work, "repo", &[]);
    let first = snapshot(&cloud, &repo, &[]);
    assert_eq!(first["taken"]["snapshots"].as_object().unwrap().len(), 2);
    assert_eq!(first["excluded"][0]["volume"], cloud.web.volumes[2].as_str());
    assert_eq!(first["sets"].as_array().unwrap().len(), 0, "no policy, nothing goes");
    // times of sets are whole seconds: two of one second would be in no order
    let next = || std::thread::sleep(std::time::Duration::from_millis(1_050));
    next();
    let image = snapshot(&cloud, &repo, &["--mode", "ami"]);
    assert!(image["taken"]["image"].is_string());
    assert_eq!(cloud.marked().len(), 5, "{:?}", cloud.marked());
    // sweeps and backups leave them alone
    cloud.backup(&repo, &["--no-anchor"]);
    cloud.command(&repo, &["sweep"]).run().ok();
    assert_eq!(cloud.marked().len(), 5, "{:?}", cloud.marked());

    next();
    let dry = snapshot(&cloud, &repo, &["--keep-last", "1", "--dry-run"]);
    let actions = |report: &Value| -> Vec<String> {
        json::list(report, "sets").iter().map(|s| json::text(s, "action").to_owned()).collect()
    };
    assert_eq!((actions(&dry), &dry["taken"]), (vec!["remove".into(), "keep".into()], &Value::Null));
    assert_eq!(cloud.marked().len(), 5);
    let third = snapshot(&cloud, &repo, &["--keep-last", "1"]);
    assert_eq!(actions(&third), ["remove", "remove", "keep"]);
    assert_eq!(third["removed"], 2);
    let marked = cloud.marked();
    assert!(marked.len() == 2 && marked.iter().all(|m| m.ends_with("kept")), "{marked:?}");
    // what is pinned by a tag of the user stays
    let pinned = third["taken"]["snapshots"].as_object().unwrap().values().next().unwrap().as_str().unwrap();
    cloud.tag(pinned, "pin", "yes");
    next();
    let fourth = snapshot(&cloud, &repo, &["--keep-last", "1", "--keep-tag", "pin"]);
    assert_eq!(actions(&fourth), ["keep", "keep"]);
    assert!(fourth["sets"][0]["reasons"].to_string().contains("pin"), "{fourth:#}");
    cloud.command(&repo, &["snapshot", &cloud.web.instance, "--keep-last", "x"]).run().expect(&[code::USAGE]);

    // killed at any moment, a sweep leaves whole sets only
    let mut rng = Rng::new(5);
    for _ in 0..by_tier(8, 30) {
        let which = ["snapshot", &cloud.web.instance, "--exclude-tag", cloud::LEFT_OUT];
        let mut run = cloud.command(&repo, &which).spawn();
        if run.runs_at(std::time::Duration::from_millis(20).mul_f64(1.0 + 10.0 * rng.fraction())) {
            run.kill();
        }
        run.wait();
        cloud.command(&repo, &["sweep"]).run().ok();
        assert!(cloud.marked().iter().all(|m| m.ends_with("kept")), "{:?}", cloud.marked());
        let sets = snapshot(&cloud, &repo, &["--keep-last", "100", "--dry-run"]);
        for set in json::list(&sets, "sets") {
            assert_eq!(set["snapshots"].as_object().unwrap().len(), 2, "{set:#}");
        }
    }
}
