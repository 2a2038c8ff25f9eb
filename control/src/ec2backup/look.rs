//! What there is before anything is made: the machine with its volumes, which of them are meant, and in which mode they are copied.

use serde::Serialize;
use serde_json::Value;

use super::chosen::{self, Chosen, Exclude, Excluded};
use super::{Error, Result};
use crate::aws::clients::Clients;
use crate::aws::describe::{self, Machine, VolumeFacts};
use crate::aws::retry::Patience;

/// How a machine is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All volumes by snapshots of one moment.
    Snapshots,
    /// The root by an image that is kept, the others by snapshots.
    Ami,
}

/// A machine that was looked at.
#[derive(Clone, Debug)]
pub struct Look {
    /// The machine.
    pub machine: Machine,
    /// Volumes that are meant, in the order of its devices. One at least.
    pub chosen: Vec<Chosen>,
    /// The others.
    pub excluded: Vec<Excluded>,
    /// How it is copied.
    pub mode: Mode,
    /// For the user.
    pub notes: Vec<String>,
    facts: Vec<VolumeFacts>,
}

impl Look {
    /// Asks what there is. `mode` is by platform, if `None`.
    pub async fn at(aws: &Clients, machine: Machine, exclude: &Exclude, mode: Option<Mode>) -> Result<Self> {
        let ids: Vec<String> = machine.attached.iter().map(|a| a.volume.clone()).collect();
        if ids.is_empty() {
            return Err(Error::Refused(format!("{} has no EBS volumes", machine.id)));
        }
        let facts = describe::volumes(aws, &ids, &[], Patience::USUAL).await?;
        let (chosen, excluded) = chosen::choose(&machine, &facts, exclude);
        if chosen.is_empty() {
            return Err(Error::Refused(format!("all volumes of {} are left out", machine.id)));
        }
        let windows = machine.is_windows();
        let mode = mode.unwrap_or(if windows { Mode::Ami } else { Mode::Snapshots });
        let mut notes = Vec::new();
        if windows && mode == Mode::Snapshots {
            notes.push(
                "Windows does not launch from images made of snapshots: a restore to a new instance will need an AMI"
                    .to_owned(),
            );
        }
        Ok(Self { machine, chosen, excluded, mode, notes, facts })
    }

    /// All that a restore needs to know of the machine.
    pub async fn configuration(&self, aws: &Clients) -> Result<Value> {
        Ok(describe::configuration(aws, &self.machine, &self.facts).await?)
    }

    /// Ids of the volumes that are meant.
    pub fn volumes(&self) -> Vec<String> {
        self.chosen.iter().map(|c| c.facts.id.clone()).collect()
    }
}
