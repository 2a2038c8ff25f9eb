//! `penstock ec2 restore` on an account in the lab: what comes back is what was there, only what differs is written, and nothing else stays.

use penstock_tests::cloud::{self, Cloud};
use penstock_tests::repo::Repo;
use penstock_tests::workdir::Workdir;
use penstock_tests::{MIB, compare, json};
use serde_json::Value;

const BLOCK: u64 = 512 << 10;

fn point(report: &Value) -> &str {
    json::text(report, "recovery_point")
}

/// The volumes of a restore, by the name they had.
fn restored<'a>(report: &'a Value, volume: &str) -> &'a Value {
    json::list(report, "volumes").iter().find(|v| v["volume"] == volume).unwrap()
}

/// A machine with a root and a data volume, and both nights of it.
struct Nights {
    work: Workdir,
    cloud: Cloud,
    repo: Repo,
    /// Recovery points.
    points: Vec<String>,
}

impl Nights {
    fn start() -> Self {
        let work = Workdir::new("ec2-restore");
        let cloud = Cloud::start(&work, cloud::options(&work), 48 * MIB);
        let repo = Repo::encrypted(&work, "repo", &[]);
        Self { work, cloud, repo, points: Vec::new() }
    }

    /// A night: a backup, and a copy of both volumes as they are.
    fn night(&mut self, args: &[&str]) {
        let number = self.points.len();
        for n in 0..2 {
            self.cloud.lab.volume_export(&self.cloud.web.volumes[n], &self.day(number, n)).unwrap();
        }
        let report = self.cloud.backup(&self.repo, args);
        self.points.push(point(&report).to_owned());
    }

    fn day(&self, number: usize, volume: usize) -> std::path::PathBuf {
        self.work.join(&format!("day-{number}-{volume}.img"))
    }

    fn restore(&self, args: &[&str]) -> Value {
        self.cloud.command(&self.repo, &["restore"]).args(args).run().ok().json()
    }

    /// That a new volume holds what a volume did on a day.
    #[track_caller]
    fn check(&self, report: &Value, day: usize, volume: usize) {
        let new = json::text(restored(report, &self.cloud.web.volumes[volume]), "restored_to");
        let path = self.work.join("restored.img");
        self.cloud.lab.volume_export(new, &path).unwrap();
        compare::assert_identical_sparse(&self.day(day, volume), &path, "restored volume");
    }
}

fn new_instance(way: &str) {
    let mut nights = Nights::start();
    nights.night(&["--no-anchor"]);
    let before = nights.cloud.marked();
    let report = nights.restore(&[&nights.points[0], "--write", way]);
    for volume in 0..2 {
        nights.check(&report, 0, volume);
    }
    let marked = nights.cloud.marked();
    assert!(marked.len() == before.len() + 2, "{marked:?}");
    assert!(marked.iter().all(|m| m.starts_with("volumes") && m.ends_with("restored")), "{marked:?}");
    let _ = BLOCK;
}

#[test]
fn a_new_instance_by_the_direct_apis() {
    new_instance("direct");
}

#[test]
fn a_new_instance_through_attached_volumes() {
    new_instance("attach");
}
