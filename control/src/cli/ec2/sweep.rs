//! `penstock ec2 sweep`: what dead runs left in the account.

use super::super::exit::{Exit, Failure, Outcome};
use super::super::output::{self, Table};
use super::super::session::Session;
use super::super::{host, units};
use super::{Reach, kept};
use crate::ec2run::sweep::{self, Found, Sweeping};

const EXAMPLES: &str = "\
Examples:
  penstock ec2 sweep --dry-run
  penstock ec2 sweep
  penstock ec2 sweep --other-machines

Only what carries the tag penstock:run and is temporary goes, and anchors that a newer one replaces; with --repo also images
and anchors of its recovery points that are forgotten. What a run of another machine made is left alone until it expires
(48 hours), unless --other-machines is given. A restore that died is undone: volumes it took go back to where they were.";

/// Find and remove temporary instances, snapshots, volumes and images of runs that died
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Show what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Also what runs of other machines made, even if it has not expired: none of them may be under way
    #[arg(long)]
    other_machines: bool,
}

/// Sweeps.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    let aws = reach.clients(session)?;
    let _hold = session.interrupt.hold();
    let state_dir = host::state_dir()?;
    let how = Sweeping { dry_run: args.dry_run, others: args.other_machines, spare_restores: false };
    let repo = session
        .globals
        .repo
        .as_deref()
        .filter(|url| !url.is_empty())
        .map(|_| session.source())
        .transpose()?;
    let mut swept = aws.block_on(sweep::sweep(&aws, &state_dir, how))?;
    if let Some(repo) = &repo {
        let kept = kept::sweep(&aws, repo, args.dry_run)?;
        swept.removed.extend(kept.removed);
        swept.failed.extend(kept.failed);
    }
    if session.globals.json {
        output::print_json(&swept)?;
    } else {
        let mut table = Table::new(&["", "what", "id", "why"]);
        let word = if args.dry_run { "would go" } else { "removed" };
        let back = if args.dry_run { "would go back" } else { "brought back" };
        for (word, list) in [
            (word, &swept.removed),
            (back, &swept.returned),
            ("left", &swept.kept),
            ("FAILED", &swept.failed),
        ] {
            for Found { thing, id, why } in list {
                table.row(vec![word.into(), thing.name().into(), id.clone(), why.clone()]);
            }
        }
        match (swept.removed.len() + swept.returned.len(), swept.kept.len() + swept.failed.len()) {
            (0, 0) => output::print("nothing is left behind\n")?,
            _ => output::print(&table.text())?,
        }
    }
    match swept.failed.len() {
        0 => Ok(Exit::Done),
        failed => Err(Failure::Failed(format!(
            "{} could not be removed: sweep again later",
            units::plural(failed as u64, "thing")
        ))),
    }
}
