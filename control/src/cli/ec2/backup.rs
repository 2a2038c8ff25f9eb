//! `penstock ec2 backup`: instances become recovery points.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use penstock_engine::backup::BackupOptions;
use penstock_engine::repo::Repository;
use serde::Serialize;

use super::super::backup as plain;
use super::super::exit::{Exit, Failure, Outcome};
use super::super::output::{self, Facts};
use super::super::progress::{Mode as ShownMode, Shown};
use super::super::session::Session;
use super::super::{host, units};
use super::Reach;
use super::order::OrderArgs;
use super::which::title;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::Machine;
use crate::ec2backup::chosen::Excluded;
use crate::ec2backup::job::{Job, Order};
use crate::ec2backup::look::Mode;
use crate::ec2backup::part::PartReport;
use crate::ec2run::sweep;

const EXAMPLES: &str = "\
Examples:
  penstock ec2 backup i-0123456789abcdef0
  penstock ec2 backup --tag backup=nightly
  penstock ec2 backup i-0123456789abcdef0 --exclude-device /dev/sdf --exclude-tag backup=no
  penstock ec2 backup i-0123456789abcdef0 --mode ami --read direct
  penstock ec2 backup i-0123456789abcdef0 --no-anchor

A recovery point has the instance's id as its name, and one volume for each EBS volume, named by its id.
One snapshot of each volume stays in the account as an anchor: the next backup reads only what changed since.
`penstock ec2 plan` says before what it will take.";

/// Back up instances: snapshots of all volumes of one moment, read as cheaply as they can be
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    order: OrderArgs,

    /// Instances backed up at a time, from their snapshots to the end
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel: u8,
}

/// One machine of `ec2 backup --json`.
#[derive(Serialize)]
struct Report<'a> {
    instance: &'a str,
    instance_name: &'a str,
    mode: Option<Mode>,
    reads: Vec<PartReport>,
    excluded: Vec<Excluded>,
    ec2_notes: Vec<String>,
    aws_calls: u64,
    aws_retries: u64,
    error: Option<String>,
    #[serde(flatten)]
    backup: Option<plain::Report<'a>>,
}

struct Done {
    backup: plain::Done,
    mode: Mode,
    reads: Vec<PartReport>,
    excluded: Vec<Excluded>,
    notes: Vec<String>,
}

type Result<T> = std::result::Result<T, Failure>;

/// What all machines of a run have in common.
struct Common<'a> {
    session: &'a Session,
    repo: &'a Repository,
    aws: &'a Arc<Clients>,
    proxy: Option<Proxy>,
    order: Order,
    state_dir: PathBuf,
    /// Machines at a time.
    parallel: usize,
}

/// Makes the backups, several at a time.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    session.repo_url()?;
    let repo = session.repository()?;
    let aws = reach.clients(session)?;
    let _hold = session.interrupt.hold();
    let machines = aws.block_on(args.order.which.machines(&aws))?;
    let proxy = aws.block_on(aws.proxy());
    let state_dir = host::state_dir()?;
    // What a killed run left is taken away first: it costs money.
    let swept = aws.block_on(sweep::sweep_dead(&aws, &state_dir))?;
    for left in &swept {
        tracing::info!("taken away: {} {}, {}", left.thing.name(), left.id, left.why);
    }
    let order = args.order.order(reach);
    let parallel = machines.len().min(args.parallel.into());
    let common = Common { session, repo: &repo, aws: &aws, proxy, order, state_dir, parallel };
    let outcomes = common.all(&machines)?;
    if session.globals.json {
        let counts = aws.retry.counts();
        let list: Vec<Report<'_>> =
            machines.iter().zip(&outcomes).map(|(m, o)| report(m, o, counts)).collect();
        output::print_json(&list)?;
    }
    let total = outcomes.len();
    let failed = machines.iter().zip(outcomes).find_map(|(m, outcome)| Some((&m.id, outcome.err()?)));
    match failed {
        None => Ok(Exit::Done),
        Some((_, failure)) if total == 1 => Err(failure),
        Some((id, failure)) => {
            Err(Failure::Failed(format!("not every instance was backed up: {id}: {failure}")))
        }
    }
}

impl Common<'_> {
    /// Outcomes in the order of the machines, each shown once it is there. An error if the user asked to stop.
    fn all(&self, machines: &[Machine]) -> Result<Vec<Result<Done>>> {
        let waiting = Mutex::new((0..machines.len()).collect::<VecDeque<usize>>());
        let outcomes: Mutex<BTreeMap<usize, Result<Done>>> = Mutex::default();
        let work = || {
            loop {
                let next = lock(&waiting).pop_front();
                let Some(number) = next else { return };
                let outcome = match self.session.interrupt.check() {
                    Ok(()) => self.one(&machines[number]),
                    Err(stopped) => Err(stopped),
                };
                let mut outcomes = lock(&outcomes);
                let shown = show(self.session, &machines[number], &outcome, machines.len() == 1);
                outcomes.insert(number, outcome.and_then(|done| shown.map(|()| done)));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.parallel {
                scope.spawn(work);
            }
            work();
        });
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        if outcomes.values().any(|outcome| outcome.as_ref().is_err_and(Failure::is_cancelled)) {
            return Err(penstock_engine::Error::Cancelled.into());
        }
        Ok(outcomes.into_values().collect())
    }

    fn one(&self, machine: &Machine) -> Result<Done> {
        let Self { session, repo, aws, .. } = *self;
        let (proxy, order) = (self.proxy.as_ref(), &self.order);
        let job = Job::begin(aws.clone(), proxy, order, machine.clone(), repo, &self.state_dir)?;
        let sources = match job.sources() {
            Ok(sources) => sources,
            Err(error) => return Err(job.undo(error).into()),
        };
        let mut tags = BTreeMap::new();
        if !machine.name().is_empty() {
            tags.insert("Name".to_owned(), machine.name().to_owned());
        }
        let base = plain::base_options(session, &machine.id, self.state_dir.clone());
        let options = BackupOptions {
            tags,
            parent: job.parent(),
            other: BTreeMap::from([("instance".to_owned(), job.instance())]),
            workers: share_of(base.workers, self.parallel),
            ..base
        };
        let shown = match self.parallel {
            1 => ShownMode::of(&session.globals).into(),
            _ => Shown::among_others(&session.globals, &machine.id),
        };
        let (mode, reads, excluded) = (job.mode(), job.report(), job.excluded().to_vec());
        match plain::perform(session, shown, repo, sources, &options) {
            Ok(backup) => {
                let notes = job.keep(&backup.report.point);
                Ok(Done { backup, mode, reads, excluded, notes })
            }
            Err(failure) => {
                job.undo(crate::ec2run::Error::Refused(String::new()));
                Err(failure)
            }
        }
    }
}

/// Workers of each of several backups: more than its share, since most of the time some wait for AWS; their pack buffers are what memory goes into.
fn share_of(workers: usize, parallel: usize) -> usize {
    (2 * workers).div_ceil(parallel.max(1)).min(workers)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report<'a>(
    machine: &'a Machine,
    outcome: &'a Result<Done>,
    (aws_calls, aws_retries): (u64, u64),
) -> Report<'a> {
    let done = outcome.as_ref().ok();
    Report {
        instance: &machine.id,
        instance_name: machine.name(),
        mode: done.map(|d| d.mode),
        reads: done.map(|d| d.reads.clone()).unwrap_or_default(),
        excluded: done.map(|d| d.excluded.clone()).unwrap_or_default(),
        ec2_notes: done.map(|d| d.notes.clone()).unwrap_or_default(),
        aws_calls,
        aws_retries,
        error: outcome.as_ref().err().map(ToString::to_string),
        backup: done.map(|d| d.backup.json()),
    }
}

fn show(session: &Session, machine: &Machine, outcome: &Result<Done>, alone: bool) -> Result<()> {
    if session.globals.json {
        return Ok(());
    }
    let who = title(&machine.id, machine.name());
    let done = match outcome {
        Ok(done) => done,
        // The only one is told at the end.
        Err(failure) if alone || failure.is_cancelled() => return Ok(()),
        Err(failure) => {
            output::note(&format!("penstock: {who}: {failure}"));
            return Ok(());
        }
    };
    let point = &done.backup.report.point;
    let mut facts: Facts = done.backup.facts();
    for read in &done.reads {
        let estimate = &read.decision.estimate;
        let what = match &read.anchor {
            Some(anchor) => format!("{} changed since {anchor}", units::size(estimate.bytes)),
            None => units::size(estimate.bytes),
        };
        let text = format!("{what}, by {} ({})", estimate.way.name(), read.decision.why);
        facts.add(format!("{} {}", read.volume, read.device), text);
    }
    for left in &done.excluded {
        facts.add(format!("{} {}", left.volume, left.device), format!("left out {}", left.why));
    }
    facts.add("id", &point.id);
    output::print(&format!("recovery point {} of {who}\n{}", output::short_id(&point.id), facts.text()))?;
    if !session.globals.quiet {
        let notes = done.backup.report.notes.iter().chain(&done.notes);
        notes.for_each(|text| output::note(&format!("note: {text}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_shared() {
        assert_eq!((share_of(8, 1), share_of(8, 2), share_of(8, 4), share_of(2, 4)), (8, 8, 4, 1));
    }
}
