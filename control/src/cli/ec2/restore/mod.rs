//! `penstock ec2 restore`: a machine as it was on a day, or volumes of it.

mod args;
mod onto;
mod text;

use std::path::Path;
use std::sync::Arc;

use penstock_engine::cold::Onto;
use penstock_engine::format::point::{RecoveryPoint, Volume};
use penstock_engine::repo::Repository;
use penstock_engine::restore::{self, RestoreReport, RestoreTarget};
use serde::{Deserialize, Serialize};

pub use args::Args;

use super::super::exit::{Exit, Failure, Outcome};
use super::super::progress::{Kind, Mode, Shown};
use super::super::session::Session;
use super::super::spent::Spent;
use super::super::{args as words, host, output, restore as plain, thaw};
use super::Reach;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::direct::BLOCK_BYTES;
use crate::aws::resolver::Roots;
use crate::ec2restore::job::{Job, Report};
use crate::ec2restore::onto::OntoPlan;
use crate::ec2restore::plan::{self, Plan, Write};
use crate::ec2restore::recorded::Recorded;
use crate::ec2restore::writing::{Engine, Wishes, Writing};
use crate::ec2run;
use crate::ec2run::journal::{Dead, Runs};
use crate::ec2run::ledger::Ledger;

/// What the journal of a restore says is to be done.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Planned {
    /// A new instance, or new volumes.
    Restore(Box<Plan>),
    /// Volumes that are written over.
    Onto(OntoPlan),
}

impl Planned {
    fn recovery_point(&self) -> &str {
        match self {
            Planned::Restore(plan) => &plan.recovery_point,
            Planned::Onto(plan) => &plan.recovery_point,
        }
    }

    fn of(dead: &Dead) -> Option<Self> {
        serde_json::from_value(dead.planned.as_ref()?.1.clone()).ok()
    }
}

/// The result of `--json`.
#[derive(Serialize)]
struct Shape<'a> {
    #[serde(flatten)]
    report: &'a Report,
    aws_calls: u64,
    aws_retries: u64,
    cpu_ms: u64,
    memory_peak_bytes: u64,
    #[serde(flatten)]
    spent: Spent,
}

/// What all steps have in common.
struct Common<'a> {
    args: &'a Args,
    session: &'a Session,
    repo: &'a Repository,
    aws: Arc<Clients>,
    proxy: Option<Proxy>,
    point: &'a RecoveryPoint,
    roots: Roots,
    /// Volumes written at a time.
    parallel: usize,
}

/// Restores.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    let repo = session.source()?;
    let (text, volume) = words::split_point_volume(&args.point);
    let point = repo.resolve(text)?;
    let region = Recorded::of(&point).ok().map(|recorded| recorded.region);
    let aws = reach.clients_in(session, region.as_deref())?;
    let _hold = session.interrupt.hold();
    let proxy = aws.block_on(aws.proxy());
    let state_dir = host::state_dir()?;
    let mut common = Common {
        args,
        session,
        repo: &repo,
        aws,
        proxy,
        point: &point,
        roots: reach.roots(),
        parallel: args.parallel.into(),
    };
    let dead = common.dead(&state_dir)?;
    let (planned, ledger) = match (args.resume, dead) {
        (true, Some((planned, dead))) => (planned, Some(Ledger::revive(dead)?)),
        (true, None) => {
            let what = format!("--resume: there is no interrupted restore of {} here", point.id);
            return Err(Failure::Failed(what));
        }
        (false, dead) => {
            let planned = match args.onto.is_empty() {
                true => Planned::Restore(Box::new(common.plan(volume)?)),
                false => Planned::Onto(onto::plan(&common, volume)?),
            };
            if let Some((_, dead)) = dead.filter(|_| !args.dry_run) {
                common.undo(dead)?;
            }
            (planned, None)
        }
    };
    if args.dry_run {
        return common.show_plan(&planned);
    }
    common.parallel = match &planned {
        Planned::Restore(plan) => {
            let written = |v: &&plan::VolumePlan| matches!(v.write, Write::Direct | Write::Attach);
            common.parallel.min(plan.volumes.iter().filter(written).count()).max(1)
        }
        Planned::Onto(_) => 1,
    };
    let ledger = match ledger {
        Some(ledger) => ledger,
        None => {
            let json = serde_json::to_value(&planned)
                .map_err(|e| Failure::Failed(format!("the plan cannot be written down: {e}")))?;
            Ledger::begin_planned(&common.aws, &point.id, &state_dir, &json)?
        }
    };
    common.perform(&planned, ledger)
}

impl Common<'_> {
    /// A restore of this point that died.
    fn dead(&self, state_dir: &Path) -> Result<Option<(Planned, Dead)>, Failure> {
        let runs = Runs::read(state_dir)?;
        let here = runs.dead.into_iter().filter(|dead| dead.region == self.aws.region);
        let mut of_point = here.filter_map(|dead| Some((Planned::of(&dead)?, dead)));
        Ok(of_point.find(|(planned, _)| planned.recovery_point() == self.point.id))
    }

    fn undo(&self, dead: Dead) -> Result<(), Failure> {
        output::note(
            "an interrupted restore of this recovery point is undone first (--resume would continue it)",
        );
        let ledger = Ledger::revive(dead)?;
        let aws = &self.aws;
        aws.block_on(async {
            ledger.bring_back(aws).await?;
            ledger.remove_made(aws).await
        })?;
        ledger.end();
        Ok(())
    }

    fn plan(&self, volume: Option<&str>) -> Result<Plan, Failure> {
        let order = self.args.order(volume)?;
        let plan = plan::make(&self.aws, self.proxy.as_ref(), self.repo, self.point, &order)?;
        for part in plan.volumes.iter().filter(|v| matches!(v.write, Write::Direct | Write::Attach)) {
            let Some(volume) = self.point.volume(&part.volume) else { continue };
            let base = part.base.as_ref().map(|base| self.point_of(&base.recovery_point)).transpose()?;
            let block_bytes = (part.write == Write::Direct).then_some(BLOCK_BYTES as u32);
            if !self.args.dry_run {
                let onto = Onto { base: base.as_ref(), block_bytes };
                thaw::prepare(&self.args.thaw, self.session, self.repo, volume, onto)?;
            }
        }
        Ok(plan)
    }

    fn options(&self) -> Result<restore::RestoreOptions, Failure> {
        let base = plain::base_options(self.session, Some(host::state_dir()?));
        let workers = base.workers.div_ceil(self.parallel.max(1)).max(1);
        Ok(restore::RestoreOptions { workers, ..base })
    }

    fn point_of(&self, text: &str) -> Result<RecoveryPoint, Failure> {
        Ok(self.repo.resolve(text)?)
    }

    fn show_plan(&self, planned: &Planned) -> Outcome {
        match planned {
            Planned::Restore(plan) if self.session.globals.json => output::print_json(plan)?,
            Planned::Onto(plan) if self.session.globals.json => output::print_json(plan)?,
            Planned::Restore(plan) => {
                output::print(&text::plan(plan))?;
                plan.notes.iter().for_each(|note| output::note(&format!("note: {note}")));
            }
            Planned::Onto(plan) => output::print(&onto::text(plan))?,
        }
        Ok(Exit::Done)
    }

    /// Does it, and takes away what was only needed on the way; or everything, if it fails.
    fn perform(&self, planned: &Planned, ledger: Ledger) -> Outcome {
        let outcome = {
            let writing = Writing {
                aws: &self.aws,
                proxy: self.proxy.as_ref(),
                roots: &self.roots,
                ledger: &ledger,
                point: self.point,
                engine: self,
                throughput: self.args.throughput(),
            };
            match planned {
                Planned::Onto(plan) => onto::perform(&writing, plan),
                Planned::Restore(plan) => {
                    let trial = self.args.trial(self.address());
                    let job = Job { writing, plan, parallel: self.parallel, trial: trial.as_ref() };
                    let mut report = job.run();
                    if let Ok(report) = &mut report {
                        report.notes.splice(0..0, plan.notes.iter().cloned());
                    }
                    report
                }
            }
        };
        let mut report = match outcome {
            Ok(report) => report,
            Err(error) if self.args.keep => {
                let error = Failure::from(error);
                output::note(
                    "what was made stays: --resume goes on with it, `penstock ec2 sweep` takes it away",
                );
                return Err(error);
            }
            Err(error) => {
                return Err(self.aws.block_on(ledger.undo_after(&self.aws, error)).into());
            }
        };
        match self.aws.block_on(ledger.remove_made(&self.aws)) {
            Ok(()) => ledger.end(),
            Err(error) => report.notes.push(format!(
                "not everything temporary could be taken away, `penstock ec2 sweep` tries again: {error}"
            )),
        }
        self.show(&report)
    }

    /// Where the checks of a trial come from.
    fn address(&self) -> Option<String> {
        let proxy = self.proxy.as_ref()?;
        let ids = [proxy.instance.clone()];
        let found = self.aws.block_on(crate::aws::describe::machines(&self.aws, &ids, &[])).ok()?;
        found.first()?.whole["privateIpAddress"].as_str().map(str::to_owned)
    }

    fn show(&self, report: &Report) -> Outcome {
        if self.session.globals.json {
            let (aws_calls, aws_retries) = self.aws.retry.counts();
            output::print_json(&Shape {
                report,
                aws_calls,
                aws_retries,
                cpu_ms: host::cpu_ms(),
                memory_peak_bytes: host::memory_peak_bytes(),
                spent: Spent::of(self.repo),
            })?;
        } else {
            output::print(&text::report(report, &self.point.name))?;
            if !self.session.globals.quiet {
                report.notes.iter().for_each(|note| output::note(&format!("note: {note}")));
            }
        }
        match &report.trial {
            Some(verdict) if !verdict.passed => Err(Failure::Failed(format!(
                "the restore test failed: {}",
                verdict.why.as_deref().unwrap_or("a check did not pass")
            ))),
            _ => Ok(Exit::Done),
        }
    }
}

impl Engine for Common<'_> {
    fn restore(
        &self,
        point: &RecoveryPoint,
        volume: &Volume,
        target: RestoreTarget,
        wishes: Wishes,
    ) -> ec2run::Result<RestoreReport> {
        let engine_error = |failure: Failure| match failure {
            Failure::Engine(error) => ec2run::Error::Engine(error),
            other => ec2run::Error::Refused(other.to_string()),
        };
        let options = wishes.apply(self.options().map_err(engine_error)?);
        let shown: Shown = match self.parallel {
            1 => Mode::of(&self.session.globals).into(),
            _ => Shown::among_others(&self.session.globals, &volume.name),
        };
        self.session
            .with_run_in(Kind::Restore, shown, |run| {
                restore::run(self.repo, point, volume, target, &options, run)
            })
            .map_err(engine_error)
    }

    fn point(&self, id: &str) -> ec2run::Result<RecoveryPoint> {
        Ok(self.repo.resolve(id)?)
    }
}
