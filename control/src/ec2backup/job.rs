//! One backup of one machine: snapshots are taken, each volume's way is chosen, sources are handed to the engine, and afterwards everything is taken away
//! but the anchors. Whatever is made is in the journal and has the run's tags.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use penstock_engine::backup::{Parent, VolumeSource};
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::Repository;
use penstock_engine::source::{self, Extents, OpenOptions};
use serde::Serialize;
use serde_json::{Value, json};

use super::anchor::{self, Anchors};
use super::chosen::{self, Chosen, Exclude, Excluded};
use super::journal::{Journal, Thing};
use super::way::{self, Decision, Estimate, Way, Wish};
use super::{Error, Result, sweep};
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::{self, Machine};
use crate::aws::direct::{self, MappedDevice, SnapshotSource, Subject};
use crate::aws::error::{AwsError, Kind};
use crate::aws::images::{self, Image};
use crate::aws::resolver::{Roots, Wanted};
use crate::aws::retry::Patience;
use crate::aws::snapshots::{self, Snapshot};
use crate::aws::tags::{self, RunTags, Tags};
use crate::aws::{attach, tags as names};

/// Time for udev to name a device.
const DEVICE_TIME: Duration = Duration::from_secs(60);
/// Leftovers of a run that nobody knows may be swept after this: no backup takes longer.
const EXPIRES_H: i64 = 48;
const GIB: u64 = 1 << 30;

/// How a machine is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All volumes by snapshots of one moment.
    Snapshots,
    /// The root by an image that is kept, the others by snapshots.
    Ami,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// `None`: by platform.
    pub mode: Option<Mode>,
    /// Way to read.
    pub wish: Wish,
    /// Volumes left out.
    pub exclude: Exclude,
    /// Keep a snapshot of each volume for the next backup.
    pub anchor: bool,
    /// MiB/s of temporary volumes.
    pub throughput: u32,
    /// Where devices are.
    pub roots: Roots,
}

/// Of one volume.
struct Part {
    volume: Chosen,
    snapshot: Snapshot,
    /// Its blocks; `None` if they could not be listed.
    map: Option<direct::Map>,
    decision: Decision,
    /// A temporary volume and its device.
    attached: Option<(String, std::path::PathBuf)>,
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

/// A backup under way.
pub struct Job {
    aws: Arc<Clients>,
    proxy: Option<Proxy>,
    order: Order,
    mode: Mode,
    repository: String,
    machine: Machine,
    chosen: Vec<Chosen>,
    excluded: Vec<Excluded>,
    configuration: Value,
    anchors: Anchors,
    journal: Journal,
    tags: RunTags,
    /// What was made and not taken away yet.
    made: BTreeMap<String, Thing>,
    parts: Vec<Part>,
    image: Option<Image>,
    /// For the user.
    pub notes: Vec<String>,
}

impl Job {
    /// Takes snapshots and makes everything ready to read. What was made is taken away again if that fails.
    pub fn begin(
        aws: Arc<Clients>,
        proxy: Option<Proxy>,
        order: Order,
        machine: Machine,
        repo: &Repository,
        state_dir: &Path,
    ) -> Result<Self> {
        let here = aws.clone();
        here.block_on(async {
            let mut job = Self::look(aws, proxy, order, machine, repo, state_dir).await?;
            match job.prepare().await {
                Ok(()) => Ok(job),
                Err(error) => Err(job.undo_after(error).await),
            }
        })
    }

    /// Asks what there is; nothing is made but the journal.
    async fn look(
        aws: Arc<Clients>,
        proxy: Option<Proxy>,
        order: Order,
        machine: Machine,
        repo: &Repository,
        state_dir: &Path,
    ) -> Result<Self> {
        let ids: Vec<String> = machine.attached.iter().map(|a| a.volume.clone()).collect();
        if ids.is_empty() {
            return Err(Error::Refused(format!("{} has no EBS volumes", machine.id)));
        }
        let facts = describe::volumes(&aws, &ids, &[], Patience::USUAL).await?;
        let (chosen, excluded) = chosen::choose(&machine, &facts, &order.exclude);
        if chosen.is_empty() {
            return Err(Error::Refused(format!("all volumes of {} are left out", machine.id)));
        }
        let configuration = describe::configuration(&aws, &machine, &facts).await?;
        let repository = repo.config().repository_id.clone();
        let of: Vec<String> = chosen.iter().map(|c| c.facts.id.clone()).collect();
        let all = anchor::list(&aws, &repository, &of).await?;
        let anchors = Anchors::choose(repo, all)?;
        let windows = machine.is_windows();
        let mode = order.mode.unwrap_or(if windows { Mode::Ami } else { Mode::Snapshots });
        let mut notes = Vec::new();
        if windows && mode == Mode::Snapshots {
            notes.push(
                "Windows does not launch from images made of snapshots: a restore to a new instance will need an AMI"
                    .to_owned(),
            );
        }
        let journal = Journal::begin(state_dir, &machine.id, &aws.region)?;
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(EXPIRES_H);
        let tags =
            RunTags { run: journal.run.clone(), expires: expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() };
        Ok(Self {
            aws,
            proxy,
            order,
            mode,
            repository,
            machine,
            chosen,
            excluded,
            configuration,
            anchors,
            journal,
            tags,
            made: BTreeMap::new(),
            parts: Vec::new(),
            image: None,
            notes,
        })
    }

    fn made(&mut self, thing: Thing, id: &str) -> Result<()> {
        self.made.insert(id.to_owned(), thing);
        Ok(self.journal.made(thing, id)?)
    }

    fn settled(&mut self, id: &str) -> Result<()> {
        self.made.remove(id);
        Ok(self.journal.settled(id)?)
    }

    async fn prepare(&mut self) -> Result<()> {
        let of_volume = self.take_snapshots().await?;
        for chosen in self.chosen.clone() {
            let Some(snapshot) = of_volume.get(&chosen.facts.id).cloned() else {
                let message = format!("AWS made no snapshot of {}", chosen.facts.id);
                return Err(AwsError::new("CreateSnapshots", &self.machine.id, Kind::State, message).into());
            };
            let part = self.part(chosen, snapshot).await?;
            self.parts.push(part);
        }
        Ok(())
    }

    /// The snapshot of each chosen volume, complete.
    async fn take_snapshots(&mut self) -> Result<BTreeMap<String, Snapshot>> {
        let aws = self.aws.clone();
        let mut tags = self.tags.temporary();
        tags.insert(names::INSTANCE.into(), self.machine.id.clone());
        let description = format!("penstock backup of {} (run {})", self.machine.id, self.tags.run);
        let mut excluded: Vec<String> = self.excluded.iter().map(|e| e.volume.clone()).collect();
        let root = self.chosen.iter().find(|c| c.attached.root).map(|c| c.facts.id.clone());
        if self.mode == Mode::Ami
            && let Some(root) = &root
        {
            self.journal.asks(Thing::Image)?;
            let name = format!("penstock-{}-{}", self.machine.id, self.tags.run);
            let id = images::create(&aws, &self.machine, &name, &description, &tags).await?;
            self.made(Thing::Image, &id)?;
            excluded.push(root.clone());
        }
        let mut of_volume = BTreeMap::new();
        if self.chosen.iter().any(|c| !excluded.contains(&c.facts.id)) {
            self.journal.asks(Thing::Snapshot)?;
            let ids = snapshots::take(&aws, &self.machine, &excluded, &description, &tags).await?;
            for id in &ids {
                self.made(Thing::Snapshot, id)?;
            }
            for snapshot in snapshots::wait(&aws, &ids).await? {
                of_volume.insert(snapshot.volume.clone(), snapshot);
            }
        }
        let image = self.made.iter().find(|(_, thing)| **thing == Thing::Image).map(|(id, _)| id.clone());
        if let (Some(image), Some(root)) = (image, root) {
            let image = images::wait(&aws, &image).await?;
            let of_root = image.snapshots.iter().find(|(device, _)| *device == self.machine.root_device);
            if let Some((_, id)) = of_root.cloned() {
                self.made(Thing::Snapshot, &id)?;
                for snapshot in snapshots::wait(&aws, std::slice::from_ref(&id)).await? {
                    of_volume.insert(root.clone(), snapshot);
                }
            }
            self.image = Some(image);
        }
        Ok(of_volume)
    }

    async fn part(&mut self, volume: Chosen, snapshot: Snapshot) -> Result<Part> {
        let aws = self.aws.clone();
        let size_gib = snapshot.size_gib;
        let subject = Subject { snapshot: snapshot.id.clone(), size_bytes: size_gib * GIB };
        let map = self.map(&volume, &subject).await?;
        let bytes = map.as_ref().map_or(subject.size_bytes, |m| m.extents.total_bytes());
        let no_proxy = match &self.proxy {
            None => Some("this is no EC2 instance".to_owned()),
            Some(proxy) if proxy.region != aws.region => {
                Some(format!("this instance is in {}, the volume in {}", proxy.region, aws.region))
            }
            Some(_) => None,
        };
        let direct = Estimate::direct(bytes, aws.rates);
        let attach = Estimate::attach(bytes, size_gib, self.order.throughput);
        let mut decision =
            way::decide(self.order.wish, no_proxy.as_deref(), direct, attach).map_err(Error::Refused)?;
        let mut attached = None;
        if decision.estimate.way == Way::Attach && bytes > 0 {
            match self.attach(&volume, &snapshot).await {
                Ok(done) => attached = Some(done),
                Err(Error::Aws(error))
                    if self.order.wish == Wish::Auto && error.kind != Kind::Cancelled && map.is_some() =>
                {
                    self.notes.push(format!("{} is read by calls, not attached: {error}", volume.facts.id));
                    decision =
                        Decision { estimate: direct, why: format!("it could not be attached: {error}") };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Part { volume, snapshot, map, decision, attached })
    }

    /// Which blocks are worth reading: what changed since the anchor, or what was ever written.
    async fn map(&mut self, volume: &Chosen, subject: &Subject) -> Result<Option<direct::Map>> {
        let aws = self.aws.clone();
        let id = &volume.facts.id;
        if let Some(anchor) = self.anchors.of_volume.get(id) {
            match direct::changed(&aws, subject, &anchor.id).await {
                Ok(Ok(map)) => return Ok(Some(map)),
                Ok(Err(why)) => self.notes.push(format!(
                    "{id} is read in full: what changed since {} is not to be had: {why}",
                    anchor.id
                )),
                Err(error) if error.kind == Kind::Denied && self.order.wish != Wish::Only(Way::Direct) => {
                    self.notes.push(format!("{id} is read in full: {error}"));
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        match direct::written(&aws, subject).await {
            Ok(map) => Ok(Some(map)),
            Err(error) if error.kind == Kind::Denied && self.order.wish != Wish::Only(Way::Direct) => {
                self.notes.push(format!("{id} is read in full, also what was never written: {error}"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a volume of the snapshot, attaches it, and finds its device.
    async fn attach(&mut self, volume: &Chosen, snapshot: &Snapshot) -> Result<(String, std::path::PathBuf)> {
        let aws = self.aws.clone();
        let Some(proxy) = self.proxy.clone() else {
            return Err(Error::Refused("this is no EC2 instance".into()));
        };
        let mut tags = self.tags.temporary();
        tags.insert(names::VOLUME.into(), volume.facts.id.clone());
        self.journal.asks(Thing::Volume)?;
        let spec = attach::VolumeSpec {
            snapshot: &snapshot.id,
            throughput: self.order.throughput,
            token: self.tags.token(&snapshot.id),
            tags: &tags,
        };
        let made = attach::create(&aws, &proxy, &spec).await?;
        self.made(Thing::Volume, &made)?;
        attach::wait_available(&aws, &made).await?;
        let device = attach::attach(&aws, &proxy, &made).await?;
        let wanted = Wanted { volume: &made, size_bytes: snapshot.size_gib * GIB, device: &device };
        let path = self.order.roots.wait(&wanted, DEVICE_TIME, || aws.retry.check("AttachVolume"))?;
        Ok((made, path))
    }

    /// The sources for the engine, in the order of the machine's devices.
    pub fn sources(&self) -> Result<Vec<VolumeSource>> {
        self.parts.iter().map(|part| self.source(part)).collect()
    }

    fn source(&self, part: &Part) -> Result<VolumeSource> {
        let since = part.map.as_ref().is_some_and(|m| m.since.is_some());
        let extents: Option<Extents> = part.map.as_ref().map(|m| m.extents.clone());
        let source: Box<dyn source::Source> = match &part.attached {
            Some((_, device)) => {
                let device = source::open(device, OpenOptions::default())?;
                let written = extents.clone().filter(|_| !since);
                Box::new(MappedDevice::new(device, &part.snapshot.id, written))
            }
            None => {
                let size_bytes = part.snapshot.size_gib * GIB;
                let subject = Subject { snapshot: part.snapshot.id.clone(), size_bytes };
                Box::new(SnapshotSource::new(self.aws.clone(), subject, part.map.clone()))
            }
        };
        let name = part.volume.facts.id.clone();
        Ok(VolumeSource { name, source, changed_extents: extents.filter(|_| since) })
    }

    /// What the new recovery point is compared with.
    pub fn parent(&self) -> Parent {
        match &self.anchors.point {
            Some(point) => Parent::Point(point.id.clone()),
            None => Parent::Latest,
        }
    }

    /// The member `instance` of the recovery point.
    pub fn instance(&self) -> Value {
        let mut instance = self.configuration.clone();
        instance["mode"] = json!(self.mode);
        instance["excluded"] = json!(self.excluded);
        instance["devices"] = self
            .parts
            .iter()
            .map(|part| {
                json!({
                    "volume": part.volume.facts.id, "device": part.volume.attached.device,
                    "root": part.volume.attached.root, "size_gib": part.snapshot.size_gib,
                    "snapshot": part.snapshot.id,
                })
            })
            .collect();
        if let Some(image) = &self.image {
            instance["kept_image"] = json!(image.id);
        }
        instance
    }

    /// What the report says of the volumes.
    pub fn report(&self) -> Vec<PartReport> {
        self.parts
            .iter()
            .map(|part| PartReport {
                volume: part.volume.facts.id.clone(),
                device: part.volume.attached.device.clone(),
                snapshot: part.snapshot.id.clone(),
                anchor: part.map.as_ref().and_then(|m| m.since.clone()),
                decision: part.decision.clone(),
            })
            .collect()
    }

    /// Volumes left out.
    pub fn excluded(&self) -> &[Excluded] {
        &self.excluded
    }

    /// How it was done.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The recovery point is published: anchors are kept, everything else goes. Failures are notes: the backup itself is done, and a sweep finds the rest.
    pub fn keep(mut self, point: &RecoveryPoint) -> Vec<String> {
        let aws = self.aws.clone();
        aws.retry.clean_up(true);
        let outcome = aws.block_on(async {
            self.keep_anchors(point).await?;
            self.remove_superseded().await?;
            self.remove_made().await
        });
        aws.retry.clean_up(false);
        let mut notes = std::mem::take(&mut self.notes);
        match outcome {
            Ok(()) => self.journal.end(),
            Err(error) => notes.push(format!(
                "not everything temporary could be taken away, `penstock ec2 sweep` will: {error}"
            )),
        }
        notes
    }

    async fn keep_anchors(&mut self, point: &RecoveryPoint) -> Result<()> {
        let aws = self.aws.clone();
        let mut kept: Vec<(String, Tags)> = Vec::new();
        let image_snapshots: Vec<String> =
            self.image.iter().flat_map(|i| &i.snapshots).map(|(_, id)| id.clone()).collect();
        let tags_of = |purpose: &str| {
            Tags::from([
                (names::PURPOSE.to_owned(), purpose.to_owned()),
                (names::POINT.to_owned(), point.id.clone()),
                (names::REPOSITORY.to_owned(), self.repository.clone()),
                (names::INSTANCE.to_owned(), self.machine.id.clone()),
            ])
        };
        if let Some(image) = &self.image {
            kept.push((image.id.clone(), tags_of(tags::KEPT)));
        }
        for part in &self.parts {
            let of_image = image_snapshots.contains(&part.snapshot.id);
            if of_image || self.order.anchor {
                let mut tags = tags_of(if of_image { tags::KEPT } else { tags::ANCHOR });
                tags.insert(names::VOLUME.into(), part.volume.facts.id.clone());
                kept.push((part.snapshot.id.clone(), tags));
            }
        }
        for (id, tags) in kept {
            snapshots::retag(&aws, &id, &tags, &[names::EXPIRES]).await?;
            self.settled(&id)?;
        }
        Ok(())
    }

    /// Anchors of earlier backups of these volumes.
    async fn remove_superseded(&mut self) -> Result<()> {
        let aws = self.aws.clone();
        for old in &self.anchors.all {
            if old.tags.get(names::PURPOSE).is_some_and(|purpose| purpose == tags::ANCHOR) {
                snapshots::delete(&aws, &old.id).await?;
            }
        }
        Ok(())
    }

    async fn remove_made(&mut self) -> Result<()> {
        let aws = self.aws.clone();
        let gone = sweep::remove_run(&aws, &self.tags.run, &self.made).await?;
        for id in gone {
            self.settled(&id)?;
        }
        Ok(())
    }

    /// Takes away everything that was made: there is no recovery point.
    pub fn undo(self, error: Error) -> Error {
        let aws = self.aws.clone();
        aws.block_on(self.undo_after(error))
    }

    async fn undo_after(mut self, error: Error) -> Error {
        let aws = self.aws.clone();
        aws.retry.clean_up(true);
        let outcome = self.remove_made().await;
        aws.retry.clean_up(false);
        match outcome {
            Ok(()) => self.journal.end(),
            Err(second) => tracing::warn!(
                "not everything temporary could be taken away, `penstock ec2 sweep` will: {second}"
            ),
        }
        error
    }
}
