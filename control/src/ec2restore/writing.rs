//! One volume, written: by calls into a new snapshot, or to a volume that is attached to the proxy for that time. Every step can be done again by a run that
//! continues a dead one: what was made is known by its role, and AWS makes one thing for one token.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use penstock_engine::format::point::{RecoveryPoint, Volume};
use penstock_engine::restore::{RestoreOptions, RestoreReport, RestoreTarget};
use penstock_engine::source::Extents;

use super::plan::{VolumePlan, Write};
use super::{Error, Result};
use crate::aws::attach::{self, Form, VolumeSpec};
use crate::aws::clients::{Clients, Proxy};
use crate::aws::direct::writer::{self, SnapshotWriter, Wanted};
use crate::aws::resolver::{self, Roots};
use crate::aws::retry::Patience;
use crate::aws::snapshots;
use crate::aws::tags::{self, Tags};
use crate::ec2run::journal::Thing;
use crate::ec2run::ledger::Ledger;

/// Time for udev to name a device.
const DEVICE_TIME: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

/// The engine's restore, with the display of whoever asks for it.
pub trait Engine: Sync {
    /// Restores a volume. `options` has what depends on the target only.
    fn restore(
        &self,
        point: &RecoveryPoint,
        volume: &Volume,
        target: RestoreTarget,
        options: Wishes,
    ) -> Result<RestoreReport>;

    /// Reads a recovery point of the repository.
    fn point(&self, id: &str) -> Result<RecoveryPoint>;
}

/// Options of a restore that depend on its target.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// What the target holds.
    pub base: Option<RecoveryPoint>,
    /// Where it may hold something else.
    pub stale: Option<Arc<Extents>>,
    /// It is read and compared.
    pub compare: bool,
    /// It reads as zeros.
    pub zero_target: bool,
    /// What it holds is overwritten.
    pub force: bool,
    /// Where the journal of the writing lies; continued if it is there.
    pub journal: Option<PathBuf>,
}

impl Wishes {
    /// As the engine takes them, beside what it has by default.
    pub fn apply(self, options: RestoreOptions) -> RestoreOptions {
        RestoreOptions {
            base: self.base,
            stale: self.stale,
            compare: self.compare,
            zero_target: self.zero_target,
            force: self.force,
            resume: self.journal.as_ref().is_some_and(|path| path.exists()),
            journal: self.journal,
            ..options
        }
    }
}

/// What a volume's contents are in, once they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In the image that is launched from.
    Image,
    /// In a snapshot.
    Snapshot(String),
    /// In a volume of its final kind and place.
    Volume(String),
}

/// A volume that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where its contents are.
    pub content: Content,
    /// What the engine did; `None` where nothing was written, or by a run that died.
    pub report: Option<RestoreReport>,
}

/// What writing volumes takes.
pub struct Writing<'a> {
    /// AWS.
    pub aws: &'a Arc<Clients>,
    /// This instance.
    pub proxy: Option<&'a Proxy>,
    /// Where devices are.
    pub roots: &'a Roots,
    /// What is made.
    pub ledger: &'a Ledger,
    /// What is restored.
    pub point: &'a RecoveryPoint,
    /// What does it.
    pub engine: &'a dyn Engine,
    /// MiB/s of temporary volumes.
    pub throughput: u32,
}

impl Writing<'_> {
    /// Writes one volume, by its plan.
    pub fn volume(&self, plan: &VolumePlan) -> Result<Written> {
        match plan.write {
            Write::Image => Ok(Written { content: Content::Image, report: None }),
            Write::Nothing => {
                let Some(base) = &plan.base else {
                    return Err(Error::Refused(format!("{}: the plan has no snapshot for it", plan.volume)));
                };
                Ok(Written { content: Content::Snapshot(base.snapshot.clone()), report: None })
            }
            Write::Direct => self.direct(plan),
            Write::Attach => self.attached(plan),
        }
    }

    fn contents(&self, plan: &VolumePlan) -> Result<&Volume> {
        self.point.volume(&plan.volume).ok_or_else(|| {
            Error::Refused(format!("recovery point {} has no volume {}", self.point.id, plan.volume))
        })
    }

    fn base(&self, plan: &VolumePlan) -> Result<Option<RecoveryPoint>> {
        plan.base.as_ref().map(|base| self.engine.point(&base.recovery_point)).transpose()
    }

    fn tags(&self, plan: &VolumePlan) -> Tags {
        let mut tags = self.ledger.tags.temporary();
        tags.insert(tags::VOLUME.into(), plan.volume.clone());
        tags
    }

    fn direct(&self, plan: &VolumePlan) -> Result<Written> {
        let (aws, ledger) = (self.aws, self.ledger);
        let (role, what) = (format!("snapshot {}", plan.volume), format!("written {}", plan.volume));
        let orphan = format!("without a parent {}", plan.volume);
        let id = match ledger.known(&role) {
            Some(id) => id,
            None => {
                let ask = ledger.asks(Thing::Snapshot)?;
                let description = format!("penstock restore of {} (run {})", plan.volume, ledger.tags.run);
                let wanted = Wanted {
                    parent: plan.base.as_ref().map(|base| base.snapshot.as_str()),
                    size_gib: plan.size_gib,
                    key: plan.form.key.as_deref(),
                    description: &description,
                    token: ledger.tags.token(&plan.volume),
                    tags: &self.tags(plan),
                };
                let id = match aws.block_on(writer::start(aws, &wanted)) {
                    // An account that encrypts by default takes no parent that is not encrypted.
                    Err(error) if wanted.parent.is_some() && error.is("ValidationException") => {
                        tracing::warn!("{}: written from nothing: {error}", plan.volume);
                        ledger.done(&orphan)?;
                        let token = ledger.tags.token(&format!("{}-alone", plan.volume));
                        aws.block_on(writer::start(aws, &Wanted { parent: None, token, ..wanted }))?
                    }
                    id => id?,
                };
                ledger.made_as(ask, Thing::Snapshot, &id, &role)?;
                id
            }
        };
        if ledger.is_done(&what) || self.is_complete(&id)? {
            return Ok(Written { content: Content::Snapshot(id), report: None });
        }
        let sums = ledger.beside(&format!("{}.sums", plan.volume));
        let sink = Arc::new(SnapshotWriter::new(aws.clone(), &id, plan.size_gib * GIB, &sums)?);
        let base = if ledger.is_done(&orphan) { None } else { self.base(plan)? };
        let options = Wishes { base, ..Wishes::default() };
        let report = self.engine.restore(
            self.point,
            self.contents(plan)?,
            RestoreTarget::Blocks(sink.clone()),
            options,
        )?;
        aws.block_on(sink.complete())?;
        aws.block_on(snapshots::wait(aws, std::slice::from_ref(&id)))?;
        ledger.done(&what)?;
        Ok(Written { content: Content::Snapshot(id), report: Some(report) })
    }

    /// True if a run that died completed it.
    fn is_complete(&self, snapshot: &str) -> Result<bool> {
        let ids = [snapshot.to_owned()];
        let found = self.aws.block_on(snapshots::find(self.aws, &ids, &[], Patience::FRESH))?;
        Ok(found.iter().any(|s| s.state == "completed"))
    }

    fn attached(&self, plan: &VolumePlan) -> Result<Written> {
        let (aws, ledger) = (self.aws, self.ledger);
        let Some(proxy) = self.proxy else {
            return Err(Error::Refused("nothing can be attached here: this is no EC2 instance".into()));
        };
        let (role, what) = (format!("volume {}", plan.volume), format!("written {}", plan.volume));
        let id = match ledger.known(&role) {
            Some(id) => id,
            None => {
                // A volume that only carries the bytes has the kind that is fast, and the key that it will have.
                let vehicle = Form { key: plan.form.key.clone(), ..Form::gp3(self.throughput) };
                let ask = ledger.asks(Thing::Volume)?;
                let spec = VolumeSpec {
                    zone: &proxy.zone,
                    snapshot: plan.base.as_ref().map(|base| base.snapshot.as_str()),
                    size_gib: Some(plan.size_gib),
                    form: if plan.as_snapshot { &vehicle } else { &plan.form },
                    token: ledger.tags.token(&plan.volume),
                    tags: &self.tags(plan),
                };
                let id = aws.block_on(attach::create(aws, &spec))?;
                ledger.made_as(ask, Thing::Volume, &id, &role)?;
                id
            }
        };
        let mut report = None;
        if !ledger.is_done(&what) {
            let device = aws.block_on(self.device(proxy, &id, plan.size_gib))?;
            let base = self.base(plan)?;
            let options = Wishes {
                zero_target: base.is_none(),
                base,
                force: true,
                journal: Some(ledger.beside(&format!("{}.segments", plan.volume))),
                ..Wishes::default()
            };
            let target = RestoreTarget::Path(device);
            report = Some(self.engine.restore(self.point, self.contents(plan)?, target, options)?);
            ledger.done(&what)?;
        }
        // Once only: later it may be at the new instance.
        let detached = format!("detached {}", plan.volume);
        if !ledger.is_done(&detached) {
            aws.block_on(attach::detach(aws, &id))?;
            ledger.done(&detached)?;
        }
        let content = match plan.as_snapshot {
            true => Content::Snapshot(aws.block_on(self.snapshot_of(plan, &id))?),
            false => Content::Volume(id),
        };
        Ok(Written { content, report })
    }

    /// Attaches a volume to the proxy, if it is not, and finds its device.
    pub async fn device(&self, proxy: &Proxy, volume: &str, size_gib: u64) -> Result<PathBuf> {
        let aws = self.aws;
        let device = match attach::attachment(aws, proxy, volume).await? {
            Some(device) => device,
            None => {
                attach::wait_available(aws, volume).await?;
                attach::attach(aws, proxy, volume).await?
            }
        };
        let wanted = resolver::Wanted { volume, size_bytes: size_gib * GIB, device: &device };
        Ok(self.roots.wait(&aws.retry, &wanted, DEVICE_TIME).await?)
    }

    /// A snapshot of a volume that was written.
    async fn snapshot_of(&self, plan: &VolumePlan, volume: &str) -> Result<String> {
        let role = format!("snapshot {}", plan.volume);
        let text = format!("penstock restore of {} (run {})", plan.volume, self.ledger.tags.run);
        self.snapshot_as(&role, volume, &text, &self.tags(plan)).await
    }

    /// A complete snapshot of a volume, taken once for this role. There is no token for it: one that a run which died asked for is found by its tags.
    pub(super) async fn snapshot_as(
        &self,
        role: &str,
        volume: &str,
        text: &str,
        tags: &Tags,
    ) -> Result<String> {
        let (aws, ledger) = (self.aws, self.ledger);
        let id = match ledger.known(role) {
            Some(id) => id,
            None => {
                let of_run = [tags::filter(tags::RUN, &ledger.tags.run)];
                let earlier = snapshots::find(aws, &[], &of_run, Patience::USUAL).await?;
                let ask = ledger.asks(Thing::Snapshot)?;
                let id = match earlier.into_iter().find(|s| s.volume == volume) {
                    Some(snapshot) => snapshot.id,
                    None => snapshots::take_one(aws, volume, text, tags).await?,
                };
                ledger.made_as(ask, Thing::Snapshot, &id, role)?;
                id
            }
        };
        snapshots::wait(aws, std::slice::from_ref(&id)).await?;
        Ok(id)
    }
}
