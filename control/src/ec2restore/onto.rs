//! Volumes that exist are written over: one that is attached nowhere, one of a stopped instance, or one of the proxy's own. They are taken to the proxy for that
//! time and brought back, whatever happens.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use penstock_engine::restore::RestoreTarget;
use penstock_engine::source::Extents;

use super::plan::{BasePlan, VolumePlan, Write};
use super::writing::{Wishes, Writing};
use super::{Error, Result};
use crate::aws::attach::{self, Form};
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::{self, VolumeFacts};
use crate::aws::direct::{self, Subject};
use crate::aws::error::Kind;
use crate::aws::retry::Patience;
use crate::aws::tags::Tags;
use crate::ec2restore::job::VolumeReport;
use crate::ec2run::journal::Loan;

const GIB: u64 = 1 << 30;

/// A volume that is written over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// Name of the volume in the recovery point.
    pub volume: String,
    /// Bytes in the recovery point.
    pub size_bytes: u64,
    /// `vol-…` that is written.
    pub target: String,
    /// GiB of it.
    pub target_gib: u64,
    /// The instance and device it belongs to.
    pub home: Option<(String, String)>,
    /// The recovery point that it holds, as the user says.
    pub base: Option<String>,
    /// A snapshot of it whose contents are known: only what changed since is read and compared.
    #[serde(default)]
    pub anchor: Option<BasePlan>,
    /// It is read and compared.
    pub compare: bool,
    /// What it holds is overwritten.
    pub force: bool,
}

/// What is restored over what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OntoPlan {
    /// Which recovery point.
    pub recovery_point: String,
    /// Where.
    pub region: String,
    /// Id of its repository.
    pub repository: String,
    /// The volumes.
    pub over: Vec<Over>,
}

impl OntoPlan {
    /// Asks whether all of it can be done.
    pub async fn check(aws: &Clients, proxy: Option<&Proxy>, over: &mut [Over]) -> Result<()> {
        let Some(proxy) = proxy else {
            return Err(Error::Refused(
                "volumes are written over through the instance that this program runs on: this is no EC2 instance".into(),
            ));
        };
        let ids: Vec<String> = over.iter().map(|o| o.target.clone()).collect();
        let found = describe::volumes(aws, &ids, &[], Patience::USUAL).await?;
        for over in over {
            let Some(facts) = found.iter().find(|f| f.id == over.target) else { continue };
            over.target_gib = facts.size_gib;
            check_one(aws, proxy, over, facts).await?;
        }
        Ok(())
    }
}

async fn check_one(aws: &Clients, proxy: &Proxy, over: &mut Over, facts: &VolumeFacts) -> Result<()> {
    let refuse = |why: String| Err(Error::Refused(format!("{}: {why}", over.target)));
    if facts.size_gib * GIB < over.size_bytes {
        return refuse(format!(
            "it has {} GiB, {} needs {} bytes",
            facts.size_gib, over.volume, over.size_bytes
        ));
    }
    let zone = facts.whole["availabilityZone"].as_str().unwrap_or_default();
    if zone != proxy.zone {
        return refuse(format!(
            "it is in {zone}, this instance in {}: run penstock on an instance there",
            proxy.zone
        ));
    }
    match facts.attachments.first() {
        None => over.home = None,
        Some((instance, device, _)) if *instance == proxy.instance => {
            over.home = Some((instance.clone(), device.clone()));
        }
        Some((instance, device, _)) => {
            let machines = describe::machines(aws, std::slice::from_ref(instance), &[]).await?;
            let state = machines.first().map(|m| m.state.clone()).unwrap_or_default();
            if state != "stopped" {
                return refuse(format!("{instance}, which has it, is {state}: stop it first"));
            }
            over.home = Some((instance.clone(), device.clone()));
        }
    }
    Ok(())
}

impl Writing<'_> {
    /// What the volume may hold otherwise than its anchor: asked of a snapshot that is taken of it now, before it is written. `None` if AWS does not say.
    fn changed_since(&self, over: &Over, anchor: &str, notes: &mut Vec<String>) -> Result<Option<Extents>> {
        let (aws, ledger) = (self.aws, self.ledger);
        let role = format!("state {}", over.target);
        let listed = aws.block_on(async {
            let text =
                format!("penstock: {} before it is written over (run {})", over.target, ledger.tags.run);
            let id = self.snapshot_as(&role, &over.target, &text, &ledger.tags.temporary()).await?;
            let now = Subject { snapshot: id, size_bytes: over.target_gib * GIB };
            Result::Ok(direct::changed(aws, &now, anchor).await?)
        });
        let error = match listed {
            Ok(Ok(map)) => return Ok(Some(map.extents)),
            Ok(Err(error)) => error,
            Err(Error::Aws(error)) if matches!(error.kind, Kind::Denied | Kind::Refused | Kind::NotFound) => {
                error
            }
            Err(error) => return Err(error),
        };
        notes.push(format!(
            "{}: what changed since {anchor} is not known, all of it is read: {error}",
            over.target
        ));
        Ok(None)
    }

    /// Writes over one volume, and brings it back.
    pub fn over(&self, over: &Over, notes: &mut Vec<String>) -> Result<VolumeReport> {
        let (aws, ledger) = (self.aws, self.ledger);
        let Some(proxy) = self.proxy else {
            return Err(Error::Refused("this is no EC2 instance".into()));
        };
        let Some(volume) = self.point.volume(&over.volume) else {
            return Err(Error::Refused(format!("there is no volume {}", over.volume)));
        };
        let stale = match &over.anchor {
            Some(anchor) => self.changed_since(over, &anchor.snapshot, notes)?,
            None => None,
        };
        let known = over.anchor.as_ref().filter(|_| stale.is_some()).map(|a| &a.recovery_point);
        let at_proxy = over.home.as_ref().is_some_and(|(instance, _)| *instance == proxy.instance);
        if !at_proxy {
            ledger.lent(Loan { volume: over.target.clone(), home: over.home.clone() })?;
            let is_here = aws.block_on(attach::attachment(aws, proxy, &over.target))?.is_some();
            if !is_here {
                aws.block_on(attach::detach(aws, &over.target))?;
            }
        }
        let device = aws.block_on(self.device(proxy, &over.target, over.target_gib))?;
        let base_point = over.base.as_ref().or(known).cloned();
        let options = Wishes {
            base: base_point.as_ref().map(|id| self.engine.point(id)).transpose()?,
            // With an anchor that does not help, too.
            compare: over.compare || (over.anchor.is_some() && stale.is_none()),
            stale: stale.map(Arc::new),
            force: over.force,
            zero_target: false,
            journal: Some(ledger.beside(&format!("{}.segments", over.volume))),
        };
        let report = self.engine.restore(self.point, volume, RestoreTarget::Path(device), options)?;
        if !at_proxy {
            aws.block_on(ledger.bring_back_one(aws, &over.target))?;
        }
        let plan = VolumePlan {
            volume: over.volume.clone(),
            device: over.home.as_ref().map(|(_, device)| device.clone()).unwrap_or_default(),
            root: false,
            size_bytes: over.size_bytes,
            size_gib: over.target_gib,
            base: None,
            differing_bytes: 0,
            differing_blocks: 0,
            write: Write::Attach,
            decision: None,
            otherwise: None,
            form: Form::default(),
            tags: Tags::new(),
            delete_on_termination: None,
            as_snapshot: false,
        };
        let mut done = VolumeReport::new(&plan, Some(&report), Some(over.target.clone()));
        done.base_point = base_point;
        done.base = over.anchor.as_ref().map(|a| a.snapshot.clone()).filter(|_| done.base_point.is_some());
        Ok(done)
    }
}
