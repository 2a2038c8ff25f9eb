//! An account with instances, in the lab, and penstock on its proxy.

use std::path::Path;

use penstock_lab::{InstanceSpec, Lab, Options, Placed, Quotas, Timing, VolumeSpec};
use serde_json::Value;

use crate::penstock::Penstock;
use crate::repo::Repo;
use crate::workdir::Workdir;
use crate::{MIB, image};

/// A lab, and a machine in it with a root, a data volume and one that is left out.
pub struct Cloud {
    /// The account.
    pub lab: Lab,
    /// The machine and its volumes, in that order.
    pub web: Placed,
}

/// The tag of the volume that is left out.
pub const LEFT_OUT: &str = "backup=no";

/// A quick lab without quotas, below `work`.
pub fn options(work: &Workdir) -> Options {
    Options {
        root: Some(work.join("lab")),
        timing: Timing { eventual_ms: 0, ..Timing::instant() },
        quotas: Quotas::off(),
        ..Options::default()
    }
}

impl Cloud {
    /// A machine whose volumes hold these images, and one that is left out.
    pub fn of_images(options: Options, name: &str, images: &[&Path]) -> Self {
        std::fs::create_dir_all(options.root.as_ref().unwrap()).unwrap();
        let lab = Lab::start(options).unwrap();
        let web = Self::machine(&lab, name, images);
        Self { lab, web }
    }

    /// Adds such a machine.
    pub fn machine(lab: &Lab, name: &str, images: &[&Path]) -> Placed {
        Self::machine_with(lab, name, images, |_| ())
    }

    /// The same, changed.
    pub fn machine_with(
        lab: &Lab,
        name: &str,
        images: &[&Path],
        change: impl FnOnce(&mut InstanceSpec),
    ) -> Placed {
        let volume = |file: &&Path| VolumeSpec { file: Some(file.to_path_buf()), ..VolumeSpec::default() };
        let scratch = VolumeSpec {
            size_gib: Some(1),
            tags: [("backup".to_owned(), "no".to_owned())].into(),
            ..VolumeSpec::default()
        };
        let mut spec = InstanceSpec {
            name: name.into(),
            user_data: Some("#!/bin/sh\n".into()),
            volumes: images.iter().map(volume).chain([scratch]).collect(),
            ..InstanceSpec::default()
        };
        change(&mut spec);
        let machine = lab.add_instance(&spec).unwrap();
        lab.volume_write(machine.volumes.last().unwrap(), 0, b"not to be read").unwrap();
        machine
    }

    /// Starts it. The root holds `root_bytes` of contents of several kinds, the data volume a few MiB, each in a volume of whole GiB.
    pub fn start(work: &Workdir, options: Options, root_bytes: u64) -> Self {
        let root = work.join("root.img");
        let data = work.join("data.img");
        image::mixed(&root, root_bytes, 1);
        image::mixed(&data, 24 * MIB, 2);
        Self::of_images(options, "web-01", &[&root, &data])
    }

    /// `ec2 ARGS… --json` on this account.
    pub fn command(&self, repo: &Repo, args: &[&str]) -> Penstock {
        let command = repo.command(&["ec2"]).args(args).arg("--json");
        let command = self.lab.env().iter().fold(command, |c, (name, value)| c.env(name, value));
        command.env("PENSTOCK_EC2_DEV", self.lab.dev_dir()).env("PENSTOCK_EC2_SYS", self.lab.sys_dir())
    }

    /// The command that backs the machine up, but for the volume that is left out.
    pub fn backup_command(&self, repo: &Repo, args: &[&str]) -> Penstock {
        self.command(repo, &["backup", &self.web.instance, "--exclude-tag", LEFT_OUT]).args(args)
    }

    /// Backs it up; the report of the one machine.
    #[track_caller]
    pub fn backup(&self, repo: &Repo, args: &[&str]) -> Value {
        self.backup_command(repo, args).run().ok().json()[0].clone()
    }

    /// The manifest roots of the machine's two volumes as plain backups of the same bytes give them.
    #[track_caller]
    pub fn roots_of_plain_backups(&self, repo: &Repo, work: &Workdir) -> Vec<Value> {
        (0..2)
            .map(|n| {
                let path = work.join(&format!("plain-{n}.img"));
                self.lab.volume_export(&self.web.volumes[n], &path).unwrap();
                let id = repo.backup(&path, &format!("plain-{n}"), &["--no-parent"]);
                repo.root(id["recovery_point"].as_str().unwrap(), 0)
            })
            .collect()
    }

    /// Sets a tag, as the user does.
    pub fn tag(&self, id: &str, key: &str, value: &str) {
        self.lab.set_tag(id, key, value).unwrap();
    }

    /// The account, without what only counts (numbers given out).
    pub fn account(&self) -> Value {
        let mut dump = self.lab.dump();
        if let Some(region) = dump[&self.lab.options.region].as_object_mut() {
            region.remove("ids");
        }
        dump
    }

    /// Snapshots, volumes and images in the account that carry penstock's tag, as `kind id purpose`.
    pub fn marked(&self) -> Vec<String> {
        let dump = self.lab.dump();
        let mut found = Vec::new();
        for kind in ["snapshots", "volumes", "images"] {
            for (id, thing) in dump[&self.lab.options.region][kind].as_object().into_iter().flatten() {
                if let Some(purpose) = thing["tags"]["penstock:purpose"].as_str() {
                    found.push(format!("{kind} {id} {purpose}"));
                }
            }
        }
        found
    }
}
