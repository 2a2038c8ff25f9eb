//! `penstock ec2 backup`: instances become recovery points.

use std::collections::BTreeMap;

use clap::ValueEnum;
use penstock_engine::backup::BackupOptions;
use serde::Serialize;

use super::super::backup as plain;
use super::super::exit::{Exit, Failure, Outcome};
use super::super::output::{self, Facts};
use super::super::progress::Mode as Shown;
use super::super::session::Session;
use super::super::{args, host, units};
use super::Reach;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::{self, Machine};
use crate::aws::{attach, tags};
use crate::ec2backup::chosen::{Exclude, Excluded};
use crate::ec2backup::job::{Job, Mode, Order, PartReport};
use crate::ec2backup::sweep;
use crate::ec2backup::way::{Way, Wish};

const EXAMPLES: &str = "\
Examples:
  penstock ec2 backup i-0123456789abcdef0
  penstock ec2 backup --tag backup=nightly
  penstock ec2 backup i-0123456789abcdef0 --exclude-device /dev/sdf --exclude-tag backup=no
  penstock ec2 backup i-0123456789abcdef0 --mode ami --read direct
  penstock ec2 backup i-0123456789abcdef0 --no-anchor

A recovery point has the instance's id as its name, and one volume for each EBS volume, named by its id.
One snapshot of each volume stays in the account as an anchor: the next backup reads only what changed since.";

/// Back up instances: snapshots of all volumes of one moment, read as cheaply as they can be
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Instances
    #[arg(value_name = "INSTANCE", required_unless_present = "tags")]
    instances: Vec<String>,

    /// Instances with this tag; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = args::parse_tag, conflicts_with = "instances")]
    tags: Vec<(String, String)>,

    /// Snapshots of all volumes, or an image (AMI) of the root that is kept [default: ami for Windows, else snapshots]
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<ModeArg>,

    /// How snapshots are read: attached as volumes, by the EBS direct APIs, or what is cheaper
    #[arg(long, value_enum, default_value_t)]
    read: ReadArg,

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

    /// Keep no snapshots in the account: the next backup reads everything
    #[arg(long)]
    no_anchor: bool,

    /// MiB/s of temporary volumes; more than 125 costs extra
    #[arg(long, value_name = "MIB", default_value_t = attach::GP3_THROUGHPUT, value_parser = clap::value_parser!(u32).range(125..=2000))]
    volume_throughput: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ModeArg {
    /// Snapshots of all volumes
    Snapshots,
    /// An image of the root, which is kept, and snapshots of the others
    Ami,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum ReadArg {
    /// What is cheaper in money and time
    #[default]
    Auto,
    /// Temporary volumes attached to this instance
    Attach,
    /// The EBS direct APIs, from anywhere
    Direct,
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

/// Makes the backups, one machine after the other.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    session.repo_url()?;
    let repo = session.repository()?;
    let aws = reach.clients(session)?;
    let _hold = session.interrupt.hold();
    let machines = aws.block_on(machines(args, &aws))?;
    let proxy = aws.block_on(aws.proxy());
    let state_dir = host::state_dir()?;
    // What a killed run left is taken away first: it costs money.
    let swept = aws.block_on(sweep::sweep_dead(&aws, &state_dir))?;
    for left in &swept {
        tracing::info!("taken away: {} {}, {}", left.thing.name(), left.id, left.why);
    }
    let mut reports = Vec::new();
    let mut failed = None;
    for machine in &machines {
        session.interrupt.check()?;
        let outcome = one(args, reach, session, &repo, &aws, proxy.clone(), machine);
        if let Err(failure) = &outcome
            && failure.is_cancelled()
        {
            return outcome.map(|_| Exit::Done);
        }
        show(session, machine, &outcome)?;
        reports.push((machine, outcome));
    }
    if session.globals.json {
        let counts = aws.retry.counts();
        let list: Vec<Report<'_>> = reports.iter().map(|(m, o)| report(m, o, counts)).collect();
        output::print_json(&list)?;
    }
    let total = reports.len();
    for (machine, outcome) in reports {
        if let Err(failure) = outcome {
            failed.get_or_insert((machine.id.clone(), failure));
        }
    }
    match failed {
        None => Ok(Exit::Done),
        Some((_, failure)) if total == 1 => Err(failure),
        Some((id, failure)) => {
            Err(Failure::Failed(format!("not every instance was backed up: {id}: {failure}")))
        }
    }
}

async fn machines(args: &Args, aws: &Clients) -> Result<Vec<Machine>, Failure> {
    if !args.instances.is_empty() {
        let mut ids = args.instances.clone();
        ids.sort();
        ids.dedup();
        return Ok(describe::machines_by_id(aws, &ids).await?);
    }
    let filters: Vec<_> = args.tags.iter().map(|(key, value)| tags::filter(key, value)).collect();
    let found = describe::machines(aws, &[], &filters).await?;
    if found.is_empty() {
        return Err(Failure::Failed(format!("no instance in {} has these tags", aws.region)));
    }
    Ok(found)
}

fn one(
    args: &Args,
    reach: &Reach,
    session: &Session,
    repo: &penstock_engine::repo::Repository,
    aws: &std::sync::Arc<Clients>,
    proxy: Option<Proxy>,
    machine: &Machine,
) -> Result<Done, Failure> {
    let state_dir = host::state_dir()?;
    let job = Job::begin(aws.clone(), proxy, order(args, reach), machine.clone(), repo, &state_dir)?;
    let sources = match job.sources() {
        Ok(sources) => sources,
        Err(error) => return Err(job.undo(error).into()),
    };
    let mut tags = BTreeMap::new();
    if !machine.name().is_empty() {
        tags.insert("Name".to_owned(), machine.name().to_owned());
    }
    let options = BackupOptions {
        tags,
        parent: job.parent(),
        other: BTreeMap::from([("instance".to_owned(), job.instance())]),
        ..plain::base_options(session, &machine.id, state_dir)
    };
    let (mode, reads, excluded) = (job.mode(), job.report(), job.excluded().to_vec());
    match plain::perform(session, Shown::of(&session.globals), repo, sources, &options) {
        Ok(backup) => {
            let notes = job.keep(&backup.report.point);
            Ok(Done { backup, mode, reads, excluded, notes })
        }
        Err(failure) => {
            job.undo(crate::ec2backup::Error::Refused(String::new()));
            Err(failure)
        }
    }
}

fn order(args: &Args, reach: &Reach) -> Order {
    Order {
        mode: args.mode.map(|mode| match mode {
            ModeArg::Snapshots => Mode::Snapshots,
            ModeArg::Ami => Mode::Ami,
        }),
        wish: match args.read {
            ReadArg::Auto => Wish::Auto,
            ReadArg::Attach => Wish::Only(Way::Attach),
            ReadArg::Direct => Wish::Only(Way::Direct),
        },
        exclude: Exclude {
            volumes: args.exclude_volumes.clone(),
            devices: args.exclude_devices.clone(),
            tags: args.exclude_tags.clone(),
            larger_than_gib: args.exclude_larger_than,
        },
        anchor: !args.no_anchor,
        throughput: args.volume_throughput,
        roots: reach.roots(),
    }
}

fn report<'a>(
    machine: &'a Machine,
    outcome: &'a Result<Done, Failure>,
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

fn show(session: &Session, machine: &Machine, outcome: &Result<Done, Failure>) -> Result<(), Failure> {
    if session.globals.json {
        return Ok(());
    }
    let who = match machine.name() {
        "" => machine.id.clone(),
        name => format!("{} ({name})", machine.id),
    };
    let done = match outcome {
        Ok(done) => done,
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
