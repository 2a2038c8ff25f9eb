//! A restore, by its plan: all volumes are written, several at a time; then they become an instance with its volumes, or volumes by themselves; then everything
//! goes that was only needed on the way. A run that died is continued by the same steps: each asks first whether it was done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use penstock_engine::restore::RestoreReport;
use serde::Serialize;

use super::handover::{Handover, Restored};
use super::machine::{ImagePlan, MachinePlan};
use super::plan::{Plan, VolumePlan, Write};
use super::trial::{self, Trial, Verdict};
use super::writing::{Content, Writing, Written};
use super::{Error, Result};
use crate::aws::attach::{self, VolumeSpec};
use crate::aws::clients::Clients;
use crate::aws::describe::Machine;
use crate::aws::images::{self, Registration};
use crate::aws::launch::{self, Launch, Mapping};
use crate::aws::tags;
use crate::ec2run::journal::Thing;
use crate::ec2run::ledger::Ledger;

/// Characters of a client token.
const TOKEN_MAX: usize = 64;

/// What a restore did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which recovery point.
    pub recovery_point: String,
    /// Where.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// The new instance; gone again after a trial.
    pub instance: Option<String>,
    /// Its address.
    pub private_ip: Option<String>,
    /// What it was launched from.
    pub image: Option<String>,
    /// The volumes.
    pub volumes: Vec<VolumeReport>,
    /// What the trial found.
    pub trial: Option<Verdict>,
    /// Data written.
    pub written_bytes: u64,
    /// Wall time.
    pub duration_ms: u64,
    /// For the user.
    pub notes: Vec<String>,
}

/// A restored volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeReport {
    /// Its name in the recovery point.
    pub volume: String,
    /// `/dev/sdf`.
    pub device: String,
    /// The new volume.
    pub restored_to: Option<String>,
    /// `nothing`, `direct`, `attach`, `image`.
    pub write: Write,
    /// The snapshot it started from.
    pub base: Option<String>,
    /// The recovery point whose contents that had.
    pub base_point: Option<String>,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// What differed from the base, by the manifests.
    pub differing_bytes: u64,
    /// Data written.
    pub written_bytes: u64,
    /// Zeros that were not written.
    pub skipped_zero_bytes: u64,
    /// Bytes that were right already.
    pub skipped_same_bytes: u64,
    /// What a run that died had written.
    pub resumed_bytes: u64,
    /// Bytes fetched from packs.
    pub fetched_bytes: u64,
    /// Of writing.
    pub duration_ms: u64,
}

impl VolumeReport {
    /// Of what was written.
    pub fn new(plan: &VolumePlan, report: Option<&RestoreReport>, restored_to: Option<String>) -> Self {
        let of = |get: fn(&RestoreReport) -> u64| report.map_or(0, get);
        Self {
            volume: plan.volume.clone(),
            device: plan.device.clone(),
            restored_to,
            write: plan.write,
            base: plan.base.as_ref().map(|base| base.snapshot.clone()),
            base_point: plan.base.as_ref().map(|base| base.recovery_point.clone()),
            size_bytes: plan.size_bytes,
            differing_bytes: plan.differing_bytes,
            written_bytes: of(|r| r.written_bytes),
            skipped_zero_bytes: of(|r| r.skipped_zero_bytes),
            skipped_same_bytes: of(|r| r.skipped_same_bytes),
            resumed_bytes: of(|r| r.resumed_bytes),
            fetched_bytes: of(|r| r.fetched_bytes),
            duration_ms: of(|r| r.duration_ms),
        }
    }
}

/// A restore under way.
pub struct Job<'a> {
    /// Writes volumes.
    pub writing: Writing<'a>,
    /// What is to be done.
    pub plan: &'a Plan,
    /// Volumes written at a time.
    pub parallel: usize,
    /// How the new instance is tried, in a trial.
    pub trial: Option<&'a Trial>,
}

impl Job<'_> {
    fn aws(&self) -> &Arc<Clients> {
        self.writing.aws
    }

    fn ledger(&self) -> &Ledger {
        self.writing.ledger
    }

    fn handover(&self) -> Handover<'_> {
        Handover {
            aws: self.aws(),
            ledger: self.ledger(),
            recovery_point: &self.plan.recovery_point,
            repository: &self.plan.repository,
        }
    }

    /// Does it, but for taking away what was only needed on the way. Goes on where a run that died stopped.
    pub fn run(&self) -> Result<Report> {
        let started = Instant::now();
        let written = self.write_all()?;
        let aws = self.aws().clone();
        let mut notes = Vec::new();
        let mut made = Made::default();
        match &self.plan.machine {
            Some(machine) => aws.block_on(self.instance(machine, &written, &mut made, &mut notes))?,
            None => aws.block_on(self.volumes(&written, &mut made, &mut notes))?,
        }
        let volumes: Vec<VolumeReport> = self
            .plan
            .volumes
            .iter()
            .zip(&written)
            .map(|(plan, written)| {
                VolumeReport::new(plan, written.report.as_ref(), made.volumes.get(&plan.volume).cloned())
            })
            .collect();
        Ok(Report {
            recovery_point: self.plan.recovery_point.clone(),
            region: self.plan.region.clone(),
            zone: self.plan.zone.clone(),
            instance: made.instance,
            private_ip: made.private_ip,
            image: made.image,
            written_bytes: volumes.iter().map(|v| v.written_bytes).sum(),
            volumes,
            trial: made.verdict,
            duration_ms: started.elapsed().as_millis() as u64,
            notes,
        })
    }

    /// All volumes, in the order of the plan. The first failure keeps others from being begun.
    fn write_all(&self) -> Result<Vec<Written>> {
        let plans = &self.plan.volumes;
        let waiting = Mutex::new((0..plans.len()).collect::<VecDeque<usize>>());
        let outcomes: Mutex<BTreeMap<usize, Result<Written>>> = Mutex::default();
        let work = || {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(number) = next else { return };
                let outcome = self.writing.volume(&plans[number]);
                if outcome.is_err() {
                    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(number, outcome);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.parallel.min(plans.len()) {
                scope.spawn(work);
            }
            work();
        });
        outcomes.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }

    /// Volumes by themselves.
    async fn volumes(&self, written: &[Written], made: &mut Made, notes: &mut Vec<String>) -> Result<()> {
        for (plan, written) in self.plan.volumes.iter().zip(written) {
            let id = match &written.content {
                Content::Volume(id) => id.clone(),
                Content::Image => continue,
                Content::Snapshot(snapshot) => self.volume_of(plan, snapshot).await?,
            };
            if !self.handover().is_done() {
                attach::wait_available(self.aws(), &id).await?;
            }
            made.volumes.insert(plan.volume.clone(), id);
        }
        let restored: Vec<Restored> = (self.plan.volumes.iter())
            .filter_map(|p| {
                Some(Restored::volume(made.volumes.get(&p.volume)?, p.tags.clone(), Some(&p.volume)))
            })
            .collect();
        self.handover().all(&restored).await?;
        self.handover().let_go(&restored, notes).await;
        Ok(())
    }

    /// A volume of its final kind, made of a snapshot.
    async fn volume_of(&self, plan: &VolumePlan, snapshot: &str) -> Result<String> {
        let (aws, ledger) = (self.aws(), self.ledger());
        let role = format!("restored {}", plan.volume);
        if let Some(id) = ledger.known(&role) {
            return Ok(id);
        }
        let ask = ledger.asks(Thing::Volume)?;
        let spec = VolumeSpec {
            zone: &self.plan.zone,
            snapshot: Some(snapshot),
            size_gib: Some(plan.size_gib),
            form: &plan.form,
            token: token(&ledger.tags.run, "new", &plan.volume),
            tags: &ledger.tags.temporary(),
        };
        let id = attach::create(aws, &spec).await?;
        ledger.made_as(ask, Thing::Volume, &id, &role)?;
        Ok(id)
    }

    /// The instance.
    async fn instance(
        &self,
        machine: &MachinePlan,
        written: &[Written],
        made: &mut Made,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let (aws, ledger) = (self.aws(), self.ledger());
        let image = self.image(machine, written).await?;
        made.image = Some(image.clone());
        let parts: Vec<(&VolumePlan, &Content)> =
            self.plan.volumes.iter().zip(written.iter().map(|w| &w.content)).collect();
        let id = match ledger.known("instance") {
            Some(id) => id,
            None => {
                let mut groups = machine.launch.groups.clone();
                if let Some(trial) = self.trial.filter(|_| groups.is_empty()) {
                    groups.push(trial::closed_group(aws, ledger, &machine.launch.subnet, trial).await?);
                }
                let ask = ledger.asks(Thing::Instance)?;
                let launch = Launch {
                    image: image.clone(),
                    groups,
                    mappings: mappings(machine, &parts),
                    token: token(&ledger.tags.run, "instance", ""),
                    ..machine.launch.clone()
                };
                let mut tags = machine.tags.clone();
                tags.extend(ledger.tags.temporary());
                let id = launch.run(aws, &tags, &ledger.tags.temporary()).await?;
                ledger.made_as(ask, Thing::Instance, &id, "instance")?;
                id
            }
        };
        made.instance = Some(id.clone());
        launch::wait_running(aws, &id).await?;
        for (plan, content) in &parts {
            if let Content::Volume(volume) = content {
                attach::attach_as(aws, &id, volume, &plan.device).await?;
            }
        }
        let found = self.with_all_volumes(&id, &parts).await?;
        made.private_ip = found.whole["privateIpAddress"].as_str().map(str::to_owned);
        for attached in &found.attached {
            let plan = self.plan.volumes.iter().find(|p| p.device == attached.device);
            if let Some(plan) = plan {
                made.volumes.insert(plan.volume.clone(), attached.volume.clone());
            }
        }
        if let Some(trial) = self.trial {
            made.verdict = Some(trial::run(aws, &id, made.private_ip.as_deref(), trial).await?);
            return Ok(());
        }
        let mut restored: Vec<Restored> = (found.attached.iter())
            .map(|attached| {
                let plan = self.plan.volumes.iter().find(|p| p.device == attached.device);
                let own = plan.map(|p| p.tags.clone()).unwrap_or_default();
                Restored::volume(&attached.volume, own, plan.map(|p| p.volume.as_str()))
            })
            .collect();
        let mut tags = machine.tags.clone();
        tags.insert(tags::INSTANCE.into(), self.plan.name.clone());
        restored.push(Restored { id: id.clone(), tags });
        self.handover().all(&restored).await?;
        // Not before, or a failure could not be undone; not after it is let go, when it may not be changed any more.
        let (termination, stop) = machine.protect;
        if let Err(error) = launch::protect(aws, &id, termination, stop).await {
            notes.push(format!("the protection that the instance had was not set: {error}"));
        }
        self.handover().let_go(&restored, notes).await;
        Ok(())
    }

    /// The instance once AWS shows all its volumes: lists may be behind.
    async fn with_all_volumes(&self, id: &str, parts: &[(&VolumePlan, &Content)]) -> Result<Machine> {
        let mut poll = crate::aws::retry::Poll::up_to(Duration::from_secs(300));
        loop {
            let found = launch::wait_running(self.aws(), id).await?;
            let missing = parts.iter().find(|(p, _)| !found.attached.iter().any(|a| a.device == p.device));
            let Some((plan, _)) = missing else { return Ok(found) };
            let still = format!("without a volume at {}", plan.device);
            poll.again(&self.aws().retry, "DescribeInstances", id, &still).await?;
        }
    }

    async fn image(&self, machine: &MachinePlan, written: &[Written]) -> Result<String> {
        let (aws, ledger) = (self.aws(), self.ledger());
        let of = match &machine.image {
            ImagePlan::Kept { id } | ImagePlan::Named { id, .. } => return Ok(id.clone()),
            ImagePlan::Registered(of) => of,
        };
        if ledger.known("instance").is_some()
            && let Some(id) = ledger.known("image")
        {
            return Ok(id);
        }
        let root = self.plan.volumes.iter().zip(written).find(|(plan, _)| plan.root);
        let Some((_, Written { content: Content::Snapshot(snapshot), .. })) = root else {
            return Err(Error::Refused("the root did not come to a snapshot".into()));
        };
        let id = match ledger.known("image") {
            Some(id) => id,
            None => {
                let ask = ledger.asks(Thing::Image)?;
                let name = format!("penstock-restore-{}", ledger.tags.run);
                let description = format!("penstock restore of {}", self.plan.name);
                let registration = Registration {
                    name: &name,
                    description: &description,
                    root_device: &of.root_device,
                    snapshot,
                    architecture: &of.architecture,
                    boot_mode: of.boot_mode.as_deref(),
                    tpm: of.tpm.as_deref(),
                    uefi_data: of.uefi_data.as_deref(),
                    imds: of.imds.as_deref(),
                    ena: of.ena,
                    sriov: of.sriov.as_deref(),
                    billing_products: &of.billing_products,
                };
                let id = images::register(aws, &registration, &ledger.tags.temporary()).await?;
                ledger.made_as(ask, Thing::Image, &id, "image")?;
                id
            }
        };
        images::wait(aws, &id).await?;
        Ok(id)
    }
}

/// What was made that stays.
#[derive(Default)]
struct Made {
    instance: Option<String>,
    private_ip: Option<String>,
    image: Option<String>,
    /// Name in the recovery point → new volume.
    volumes: BTreeMap<String, String>,
    verdict: Option<Verdict>,
}

/// A client token of this run, within what AWS takes.
fn token(run: &str, what: &str, of: &str) -> String {
    let mut token = format!("{run}-{what}-{of}");
    token.truncate(token.floor_char_boundary(TOKEN_MAX));
    token
}

/// Volumes that come with the launch: those whose contents are in a snapshot are there when the instance boots.
fn mappings(machine: &MachinePlan, parts: &[(&VolumePlan, &Content)]) -> Vec<Mapping> {
    let (root_device, of_image) = match &machine.image {
        ImagePlan::Named { root_device, devices, .. } => (Some(root_device.clone()), devices.clone()),
        _ => (None, Vec::new()),
    };
    let mut found = Vec::new();
    for (plan, content) in parts {
        let mapping = Mapping {
            device: plan.device.clone(),
            snapshot: None,
            form: Some(plan.form.clone()),
            delete_on_termination: plan.delete_on_termination,
            no_device: false,
        };
        found.push(match content {
            // A named image has its own root, under its own name.
            Content::Image => {
                Mapping { device: root_device.clone().unwrap_or(mapping.device.clone()), ..mapping }
            }
            Content::Snapshot(_) if plan.root => mapping,
            Content::Snapshot(id) => Mapping { snapshot: Some(id.clone()), ..mapping },
            Content::Volume(_) if of_image.contains(&plan.device) => {
                Mapping { no_device: true, form: None, ..mapping }
            }
            Content::Volume(_) => continue,
        });
    }
    found
}
