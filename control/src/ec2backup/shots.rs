//! Snapshots of a machine's volumes, all of one moment; in mode ami the root's is that of an image.

use std::collections::BTreeMap;

use super::Result;
use super::look::{Look, Mode};
use crate::aws::clients::Clients;
use crate::aws::error::{AwsError, Kind};
use crate::aws::images::{self, Image};
use crate::aws::snapshots::{self, Snapshot};
use crate::aws::tags;
use crate::ec2run::journal::Thing;
use crate::ec2run::ledger::Ledger;

/// What was taken, complete.
#[derive(Debug)]
pub struct Shots {
    /// Volume → snapshot.
    of_volume: BTreeMap<String, Snapshot>,
    /// The root's image, in mode ami.
    pub image: Option<Image>,
}

impl Shots {
    /// The snapshot of a volume that was meant.
    pub fn of(&self, look: &Look, volume: &str) -> Result<&Snapshot> {
        self.of_volume.get(volume).ok_or_else(|| {
            let message = format!("AWS made no snapshot of {volume}");
            AwsError::new("CreateSnapshots", &look.machine.id, Kind::State, message).into()
        })
    }

    /// True if the snapshot belongs to the image.
    pub fn is_of_image(&self, snapshot: &str) -> bool {
        self.image.iter().flat_map(|image| &image.snapshots).any(|(_, id)| id == snapshot)
    }
}

/// Takes snapshots of the volumes that are meant and waits for them. `purpose` is for their description.
pub async fn take(aws: &Clients, ledger: &Ledger, look: &Look, purpose: &str) -> Result<Shots> {
    let machine = &look.machine;
    let mut with = ledger.tags.temporary();
    with.insert(tags::INSTANCE.into(), machine.id.clone());
    let run = &ledger.tags.run;
    let description = format!("penstock {purpose} of {} (run {run})", machine.id);
    let mut excluded: Vec<String> = look.excluded.iter().map(|e| e.volume.clone()).collect();
    let root = look.chosen.iter().find(|c| c.attached.root).map(|c| c.facts.id.clone());
    let mut image = None;
    if look.mode == Mode::Ami
        && let Some(root) = &root
    {
        let ask = ledger.asks(Thing::Image)?;
        let name = format!("penstock-{}-{run}", machine.id);
        let id = images::create(aws, machine, &name, &description, &with).await?;
        ledger.made(Some(ask), Thing::Image, &id)?;
        image = Some(id);
        excluded.push(root.clone());
    }
    let mut of_volume = BTreeMap::new();
    if look.chosen.iter().any(|c| !excluded.contains(&c.facts.id)) {
        let ask = ledger.asks(Thing::Snapshot)?;
        let ids = snapshots::take(aws, machine, &excluded, &description, &with).await?;
        for id in &ids {
            ledger.made(Some(ask), Thing::Snapshot, id)?;
        }
        for snapshot in snapshots::wait(aws, &ids).await? {
            of_volume.insert(snapshot.volume.clone(), snapshot);
        }
    }
    let image = match (image, root) {
        (Some(image), Some(root)) => {
            let image = images::wait(aws, &image).await?;
            let of_root = image.snapshots.iter().find(|(device, _)| *device == machine.root_device);
            if let Some((_, id)) = of_root {
                ledger.made(None, Thing::Snapshot, id)?;
                for snapshot in snapshots::wait(aws, std::slice::from_ref(id)).await? {
                    of_volume.insert(root.clone(), snapshot);
                }
            }
            Some(image)
        }
        _ => None,
    };
    Ok(Shots { of_volume, image })
}
