//! A machine in the lab with a root and a data volume, backed up on several nights, and what its volumes held on each.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cloud::{self, Cloud};
use crate::repo::Repo;
use crate::rng::Rng;
use crate::workdir::Workdir;
use crate::{MIB, compare, json};

/// Bytes of a block of the EBS direct APIs.
pub const BLOCK: u64 = 512 << 10;

/// A machine with a root and a data volume, and nights of it.
pub struct Nights {
    /// Where images of days lie.
    pub work: Workdir,
    /// The account.
    pub cloud: Cloud,
    /// Its repository.
    pub repo: Repo,
    /// Recovery points.
    pub points: Vec<String>,
}

impl Nights {
    /// A quick lab.
    pub fn start() -> Self {
        Self::with(|_| ())
    }

    /// A lab that is set differently.
    pub fn with(change: impl FnOnce(&mut penstock_lab::Options)) -> Self {
        let work = Workdir::new("ec2-restore");
        let mut options = cloud::options(&work);
        change(&mut options);
        let cloud = Cloud::start(&work, options, 24 * MIB);
        let repo = Repo::encrypted(&work, "repo", &[]);
        Self { work, cloud, repo, points: Vec::new() }
    }

    /// Another machine, changed, with the same contents: nights are of it from now on.
    pub fn machine(&mut self, change: impl FnOnce(&mut penstock_lab::InstanceSpec)) {
        let images = [self.work.join("root.img"), self.work.join("data.img")];
        let images = [images[0].as_path(), images[1].as_path()];
        self.cloud.web = Cloud::machine_with(&self.cloud.lab, "web-02", &images, change);
    }

    /// A backup, and a copy of both volumes as they are.
    pub fn night(&mut self, args: &[&str]) {
        for n in 0..2 {
            self.cloud
                .lab
                .volume_export(&self.cloud.web.volumes[n], &self.day(self.points.len(), n))
                .unwrap();
        }
        let report = self.cloud.backup(&self.repo, args);
        self.points.push(json::text(&report, "recovery_point").to_owned());
    }

    /// The guest writes here and there, a few bytes or some blocks.
    pub fn change(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        let mut bytes = vec![0; 3 * BLOCK as usize];
        rng.fill(&mut bytes);
        for n in 0..2 {
            let volume = &self.cloud.web.volumes[n];
            self.cloud.lab.volume_write(volume, 5 * BLOCK, &bytes).unwrap();
            self.cloud.lab.volume_write(volume, 21 * BLOCK + 4096, &bytes[..4096]).unwrap();
            self.cloud.lab.volume_write(volume, 30 * BLOCK, &vec![0; 70_000]).unwrap();
            self.cloud.lab.volume_write(volume, 700 * MIB + seed * 8192, &bytes[..100_000]).unwrap();
        }
    }

    /// What a volume held on a day.
    pub fn day(&self, number: usize, volume: usize) -> PathBuf {
        self.work.join(&format!("day-{number}-{volume}.img"))
    }

    /// `ec2 restore ARGS…`; its report.
    pub fn restore(&self, args: &[&str]) -> Value {
        self.cloud.command(&self.repo, &["restore"]).args(args).run().ok().json()
    }

    /// The new volume of an old one.
    pub fn restored<'a>(&self, report: &'a Value, volume: usize) -> &'a Value {
        let name = &self.cloud.web.volumes[volume];
        json::list(report, "volumes").iter().find(|v| v["volume"] == name.as_str()).unwrap()
    }

    /// That the new volumes hold what the volumes did on that day.
    #[track_caller]
    pub fn check(&self, report: &Value, day: usize) {
        for volume in 0..2 {
            let id = json::text(self.restored(report, volume), "restored_to");
            self.holds(id, day, volume);
        }
    }

    /// That a volume holds what another did on that day.
    #[track_caller]
    pub fn holds(&self, id: &str, day: usize, volume: usize) {
        let path = self.work.join("restored.img");
        let _ = fs::remove_file(&path);
        self.cloud.lab.volume_export(id, &path).unwrap();
        compare::assert_identical_sparse(&self.day(day, volume), &path, "restored volume");
    }

    /// Blocks that were put since the calls were cleared.
    pub fn puts(&self) -> u64 {
        self.cloud.lab.calls.counts().get("PutSnapshotBlock").map_or(0, |c| c.ok)
    }

    /// Something in the account, as the lab has it: `volumes`, `vol-…`.
    pub fn thing(&self, kind: &str, id: &str) -> Value {
        self.cloud.lab.dump()["us-east-1"][kind][id].clone()
    }

    /// What was restored goes, as if the user had removed it.
    pub fn clear(&self) {
        self.cloud.lab.vanish("penstock:purpose", "restored");
    }

    /// An instance, as the lab has it.
    pub fn instance(&self, id: &str) -> Value {
        self.thing("instances", id)
    }
}

/// Blocks of 512 KiB that differ between two files.
pub fn differing(a: &Path, b: &Path) -> u64 {
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    a.chunks(BLOCK as usize).zip(b.chunks(BLOCK as usize)).filter(|(a, b)| a != b).count() as u64
}
