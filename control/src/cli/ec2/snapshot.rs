//! `penstock ec2 snapshot`: snapshots that stay in the account, with a retention of their own.

use std::path::Path;

use futures_util::future::join_all;
use serde::Serialize;

use super::super::exit::{Exit, Failure, Outcome};
use super::super::keep::{KeepArgs, local_time};
use super::super::output::{self, Facts, Table};
use super::super::session::Session;
use super::super::{host, units};
use super::Reach;
use super::which::{Which, title};
use crate::aws::clients::Clients;
use crate::aws::describe::Machine;
use crate::ec2backup::chosen::Excluded;
use crate::ec2backup::look::Mode;
use crate::ec2backup::retained::{self, Judged, Set, Taken};
use crate::ec2run::sweep;

const EXAMPLES: &str = "\
Examples:
  penstock ec2 snapshot i-0123456789abcdef0
  penstock ec2 snapshot --tag backup=hourly --keep-hourly 24 --keep-daily 7
  penstock ec2 snapshot i-0123456789abcdef0 --mode ami --keep-last 3
  penstock ec2 snapshot i-0123456789abcdef0 --keep-last 3 --dry-run

Snapshots of one moment are a set, with a tag penstock:set. Without --keep-… nothing is ever removed; the newest set of an instance
always stays. They are no recovery points: nothing is read, and they live and die with the account.";

/// Take snapshots that stay in the account, and remove older ones by policy
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    keep: KeepArgs,

    /// Take none, and say what the policy would remove
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// One machine of `--json`.
#[derive(Serialize)]
struct Report {
    instance: String,
    instance_name: String,
    mode: Option<Mode>,
    /// What was taken; null in a dry run.
    taken: Option<Set>,
    excluded: Vec<Excluded>,
    /// What the policy says of all there are; empty without one.
    sets: Vec<Judged>,
    removed: usize,
    notes: Vec<String>,
    error: Option<String>,
}

/// Takes them.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    let aws = reach.clients(session)?;
    let _hold = session.interrupt.hold();
    let state_dir = host::state_dir()?;
    let reports = aws.block_on(async {
        let machines = args.which.machines(&aws).await?;
        if !args.dry_run {
            sweep::sweep_dead(&aws, &state_dir).await?;
        }
        // AWS takes minutes for each, and this machine does nothing meanwhile.
        let all = machines.into_iter().map(|machine| one(args, &aws, machine, &state_dir));
        Ok::<_, Failure>(join_all(all).await)
    })?;
    session.interrupt.check()?;
    if session.globals.json {
        output::print_json(&reports)?;
    } else {
        reports.iter().try_for_each(|report| output::print(&text(args, report)))?;
        for report in &reports {
            report.notes.iter().for_each(|note| output::note(&format!("note: {}: {note}", report.instance)));
        }
    }
    let mut failed = reports.iter().filter_map(|r| Some(format!("{}: {}", r.instance, r.error.as_ref()?)));
    match failed.next() {
        None => Ok(Exit::Done),
        Some(first) => {
            let more = failed.count();
            let rest = if more > 0 { format!("; and {more} more failed") } else { String::new() };
            Err(Failure::Failed(first + &rest))
        }
    }
}

async fn one(args: &Args, aws: &Clients, machine: Machine, state_dir: &Path) -> Report {
    let mut report = Report {
        instance: machine.id.clone(),
        instance_name: machine.name().to_owned(),
        mode: None,
        taken: None,
        excluded: Vec::new(),
        sets: Vec::new(),
        removed: 0,
        notes: Vec::new(),
        error: None,
    };
    if let Err(error) = fill(args, aws, machine, state_dir, &mut report).await {
        report.error = Some(error.to_string());
    }
    report
}

/// What was done is in the report, also if something fails later.
async fn fill(
    args: &Args,
    aws: &Clients,
    machine: Machine,
    state_dir: &Path,
    report: &mut Report,
) -> crate::ec2run::Result<()> {
    let instance = machine.id.clone();
    if !args.dry_run {
        let exclude = args.which.exclude();
        let Taken { set, mode, excluded, notes } =
            retained::take(aws, machine, &exclude, args.which.mode(), state_dir).await?;
        report.taken = Some(set);
        report.mode = Some(mode);
        report.excluded = excluded;
        report.notes = notes;
    }
    let policy = args.keep.policy();
    if policy.is_empty() {
        return Ok(());
    }
    let judged = retained::judge(aws, &instance, &policy, &args.keep.zone()).await?;
    report.sets = judged.iter().map(|(judged, _)| judged.clone()).collect();
    if args.dry_run {
        return Ok(());
    }
    for (judged, images) in judged.iter().filter(|(judged, _)| judged.action == "remove") {
        retained::remove(aws, &judged.set, images).await?;
        report.removed += 1;
    }
    Ok(())
}

fn text(args: &Args, report: &Report) -> String {
    let who = title(&report.instance, &report.instance_name);
    let mut text = String::new();
    if let Some(set) = &report.taken {
        let mut facts = Facts::default();
        set.snapshots.iter().for_each(|(volume, snapshot)| facts.add(volume, snapshot));
        set.image.iter().for_each(|image| facts.add("image", image));
        report.excluded.iter().for_each(|left| facts.add(&left.volume, format!("left out {}", left.why)));
        text += &format!("set {} of {who}\n{}", set.set, facts.text());
    }
    if !report.sets.is_empty() {
        let zone = args.keep.zone();
        let mut table = Table::new(&["set", "time", ">snapshots", "image", "", "why"]);
        for Judged { set, action, reasons } in &report.sets {
            let goes = if args.dry_run { "would go" } else { "removed" };
            table.row(vec![
                set.set.clone(),
                local_time(&set.time, &zone),
                units::count(set.snapshots.len() as u64),
                set.image.clone().unwrap_or_else(|| "-".into()),
                if *action == "remove" { goes } else { "stays" }.to_owned(),
                reasons.join(", "),
            ]);
        }
        text += &format!("{who}\n{}", table.text());
    }
    if let Some(error) = &report.error {
        text += &format!("{who}: {error}\n");
    }
    text + "\n"
}
