//! Which instances and which of their volumes a verb means, and in which mode they are copied.

use clap::ValueEnum;

use super::super::args;
use super::super::exit::Failure;
use crate::aws::clients::Clients;
use crate::aws::describe::{self, Machine};
use crate::aws::tags;
use crate::ec2backup::chosen::Exclude;
use crate::ec2backup::look::Mode;

/// Options of all verbs that copy instances.
#[derive(clap::Args, Debug)]
pub struct Which {
    /// Instances
    #[arg(value_name = "INSTANCE", required_unless_present = "instance_tags")]
    instances: Vec<String>,

    /// Instances with this tag; may be repeated
    #[arg(id = "instance_tags", long = "tag", value_name = "KEY=VALUE", value_parser = args::parse_tag, conflicts_with = "instances")]
    tags: Vec<(String, String)>,

    /// Snapshots of all volumes, or an image (AMI) of the root that is kept [default: ami for Windows, else snapshots]
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<ModeArg>,

    /// Leave this volume out; may be repeated
    #[arg(long = "exclude-volume", value_name = "VOLUME")]
    exclude_volumes: Vec<String>,

    /// Leave the volume at this device out; may be repeated
    #[arg(long = "exclude-device", value_name = "DEVICE")]
    exclude_devices: Vec<String>,

    /// Leave volumes with this tag out; may be repeated
    #[arg(long = "exclude-tag", value_name = "KEY=VALUE", value_parser = args::parse_tag)]
    exclude_tags: Vec<(String, String)>,

    /// Leave larger volumes out
    #[arg(long, value_name = "GIB")]
    exclude_larger_than: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ModeArg {
    /// Snapshots of all volumes
    Snapshots,
    /// An image of the root, which is kept, and snapshots of the others
    Ami,
}

impl Which {
    /// The instances, all of which have to be there; those with the tags, of which there has to be one.
    pub async fn machines(&self, aws: &Clients) -> Result<Vec<Machine>, Failure> {
        if !self.instances.is_empty() {
            let mut ids = self.instances.clone();
            ids.sort();
            ids.dedup();
            return Ok(describe::machines_by_id(aws, &ids).await?);
        }
        let filters: Vec<_> = self.tags.iter().map(|(key, value)| tags::filter(key, value)).collect();
        let found = describe::machines(aws, &[], &filters).await?;
        if found.is_empty() {
            return Err(Failure::Failed(format!("no instance in {} has these tags", aws.region)));
        }
        Ok(found)
    }

    /// Volumes that are left out.
    pub fn exclude(&self) -> Exclude {
        Exclude {
            volumes: self.exclude_volumes.clone(),
            devices: self.exclude_devices.clone(),
            tags: self.exclude_tags.clone(),
            larger_than_gib: self.exclude_larger_than,
        }
    }

    /// How machines are copied; by platform, if `None`.
    pub fn mode(&self) -> Option<Mode> {
        self.mode.map(|mode| match mode {
            ModeArg::Snapshots => Mode::Snapshots,
            ModeArg::Ami => Mode::Ami,
        })
    }
}

/// For people: `i-… (name)`.
pub fn title(instance: &str, name: &str) -> String {
    if name.is_empty() { instance.to_owned() } else { format!("{instance} ({name})") }
}
