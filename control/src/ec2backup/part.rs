//! One volume of a backup: which blocks of its snapshot are read, which way, and the device or requests they come from.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use penstock_engine::backup::VolumeSource;
use penstock_engine::source::{self, Extents, OpenOptions, Source};
use serde::Serialize;
use serde_json::{Value, json};

use super::anchor::Anchors;
use super::chosen::Chosen;
use super::way::{self, Decision, Estimate, Way, Wish};
use super::{Error, Result};
use crate::aws::attach;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::direct::{self, Map, MappedDevice, SnapshotSource, Subject};
use crate::aws::error::{AwsError, Kind};
use crate::aws::resolver::{Roots, Wanted};
use crate::aws::snapshots::Snapshot;
use crate::aws::tags;
use crate::ec2run::journal::Thing;
use crate::ec2run::ledger::Ledger;

/// Time for udev to name a device.
const DEVICE_TIME: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

/// How volumes are read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which way.
    pub wish: Wish,
    /// MiB/s of temporary volumes.
    pub throughput: u32,
    /// Where devices are.
    pub roots: Roots,
}

/// A volume that can be read.
pub struct Part {
    /// Which.
    pub volume: Chosen,
    /// The snapshot that is read.
    pub snapshot: Snapshot,
    /// Its blocks; `None` if they could not be listed.
    map: Option<Map>,
    decision: Decision,
    /// The device of a temporary volume.
    device: Option<PathBuf>,
}

/// What the report says of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// `vol-…`.
    pub volume: String,
    /// `/dev/xvda`.
    pub device: String,
    /// The snapshot it was read from.
    pub snapshot: String,
    /// The snapshot that changes were counted from.
    pub anchor: Option<String>,
    /// The way, why, and what was expected of it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// Makes volumes ready to be read; several at a time.
pub struct Preparation<'a> {
    /// AWS.
    pub aws: &'a Arc<Clients>,
    /// This instance.
    pub proxy: Option<&'a Proxy>,
    /// How.
    pub reading: &'a Reading,
    /// What is made.
    pub ledger: &'a Ledger,
    /// What changes are counted from.
    pub anchors: &'a Anchors,
    /// For the user.
    pub notes: Mutex<Vec<String>>,
}

impl Preparation<'_> {
    fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Decides how a volume is read, and attaches it if that is the way.
    pub async fn part(&self, volume: Chosen, snapshot: Snapshot) -> Result<Part> {
        let size_gib = snapshot.size_gib;
        let subject = Subject { snapshot: snapshot.id.clone(), size_bytes: size_gib * GIB };
        let map = self.map(&volume, &subject).await?;
        let bytes = map.as_ref().map_or(subject.size_bytes, |m| m.extents.total_bytes());
        let place = way::Place::of(self.aws, self.proxy);
        let direct = Estimate::direct(bytes, self.aws.rates, &place);
        let attach = Estimate::attach(bytes, size_gib, self.reading.throughput);
        let mut decision =
            way::decide(self.reading.wish, "--read", &place, direct, attach).map_err(Error::Refused)?;
        if let Err(error) = self.may_read(&decision, &place, &subject, map.as_ref()).await {
            self.note(format!("{} is attached, not read by calls: {error}", volume.facts.id));
            decision = Decision { estimate: attach, why: format!("its blocks may not be read: {error}") };
        }
        let mut device = None;
        if decision.estimate.way == Way::Attach && bytes > 0 {
            match self.attach(&volume, &snapshot).await {
                Ok(path) => device = Some(path),
                Err(Error::Aws(error))
                    if self.reading.wish == Wish::Auto && error.kind != Kind::Cancelled && map.is_some() =>
                {
                    self.note(format!("{} is read by calls, not attached: {error}", volume.facts.id));
                    decision =
                        Decision { estimate: direct, why: format!("it could not be attached: {error}") };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Part { volume, snapshot, map, decision, device })
    }

    /// An error if the volume was to be read by calls, that is not allowed, and it can be attached instead.
    async fn may_read(
        &self,
        decision: &Decision,
        place: &way::Place,
        subject: &Subject,
        map: Option<&Map>,
    ) -> std::result::Result<(), AwsError> {
        let by_calls = self.reading.wish == Wish::Auto && decision.estimate.way == Way::Direct;
        let Some(map) = map.filter(|_| by_calls && place.no_attach.is_none()) else { return Ok(()) };
        match direct::try_block(self.aws, subject, map).await {
            Err(error) if error.kind == Kind::Denied => Err(error),
            // Whatever else is wrong is told when it is read.
            _ => Ok(()),
        }
    }

    /// Which blocks are worth reading: what changed since the anchor, or what was ever written.
    async fn map(&self, volume: &Chosen, subject: &Subject) -> Result<Option<Map>> {
        let id = &volume.facts.id;
        let denied = |kind| kind == Kind::Denied && self.reading.wish != Wish::Only(Way::Direct);
        if let Some(anchor) = self.anchors.of_volume.get(id) {
            match direct::changed(self.aws, subject, &anchor.id).await {
                Ok(Ok(map)) => return Ok(Some(map)),
                Ok(Err(why)) => self.note(format!(
                    "{id} is read in full: what changed since {} is not to be had: {why}",
                    anchor.id
                )),
                Err(error) if denied(error.kind) => {
                    self.note(format!("{id} is read in full: {error}"));
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        match direct::written(self.aws, subject).await {
            Ok(map) => Ok(Some(map)),
            Err(error) if denied(error.kind) => {
                self.note(format!("{id} is read in full, also what was never written: {error}"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a volume of the snapshot, attaches it, and finds its device.
    async fn attach(&self, volume: &Chosen, snapshot: &Snapshot) -> Result<PathBuf> {
        let (aws, ledger) = (self.aws, self.ledger);
        let Some(proxy) = self.proxy else {
            return Err(Error::Refused("this is no EC2 instance".into()));
        };
        let mut with = ledger.tags.temporary();
        with.insert(tags::VOLUME.into(), volume.facts.id.clone());
        let ask = ledger.asks(Thing::Volume)?;
        let spec = attach::VolumeSpec {
            zone: &proxy.zone,
            snapshot: Some(&snapshot.id),
            size_gib: None,
            form: &attach::Form::gp3(self.reading.throughput),
            token: ledger.tags.token(&snapshot.id),
            tags: &with,
        };
        let made = attach::create(aws, &spec).await?;
        ledger.made(Some(ask), Thing::Volume, &made)?;
        attach::wait_available(aws, &made).await?;
        let device = attach::attach(aws, proxy, &made).await?;
        let wanted = Wanted { volume: &made, size_bytes: snapshot.size_gib * GIB, device: &device };
        Ok(self.reading.roots.wait(&aws.retry, &wanted, DEVICE_TIME).await?)
    }
}

impl Part {
    /// As the engine takes it.
    pub fn source(&self, aws: &Arc<Clients>) -> Result<VolumeSource> {
        let since = self.map.as_ref().is_some_and(|m| m.since.is_some());
        let extents: Option<Extents> = self.map.as_ref().map(|m| m.extents.clone());
        let source: Box<dyn Source> = match &self.device {
            Some(device) => {
                let device = source::open(device, OpenOptions::default())?;
                let written = extents.clone().filter(|_| !since);
                Box::new(MappedDevice::new(device, &self.snapshot.id, written))
            }
            None => {
                let size_bytes = self.snapshot.size_gib * GIB;
                let subject = Subject { snapshot: self.snapshot.id.clone(), size_bytes };
                Box::new(SnapshotSource::new(aws.clone(), subject, self.map.clone()))
            }
        };
        let name = self.volume.facts.id.clone();
        Ok(VolumeSource { name, source, changed_extents: extents.filter(|_| since) })
    }

    /// What the recovery point says of it.
    pub fn recorded(&self) -> Value {
        json!({
            "volume": self.volume.facts.id, "device": self.volume.attached.device,
            "root": self.volume.attached.root, "size_gib": self.snapshot.size_gib,
            "snapshot": self.snapshot.id,
        })
    }

    /// What the report says of it.
    pub fn report(&self) -> PartReport {
        PartReport {
            volume: self.volume.facts.id.clone(),
            device: self.volume.attached.device.clone(),
            snapshot: self.snapshot.id.clone(),
            anchor: self.map.as_ref().and_then(|m| m.since.clone()),
            decision: self.decision.clone(),
        }
    }
}
