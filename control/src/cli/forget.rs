//! `penstock forget`: removes recovery points, by name or by policy.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::id::PointId;
use penstock_engine::repo::{Listed, Repository};
use penstock_engine::retention::{self, Reason};
use penstock_engine::{Error, forget};
use serde::Serialize;

use super::ec2::kept;
use super::exit::{Exit, Failure, Outcome};
use super::keep::{KeepArgs, local_time, zone_name};
use super::output::{self, Table};
use super::session::Session;
use super::spent::Spent;
use super::{args, list, units};
use crate::ec2restore::kept::Removed;
use crate::ec2run::sweep::Found;

const EXAMPLES: &str = "\
Examples:
  penstock forget --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --keep-yearly 3 --dry-run
  penstock forget --keep-last 3 --keep-within 14d --keep-tag pin --name web-01 --name db-01
  penstock forget 01a20c61731f 01a211871b1f

Space comes back with `penstock gc`. Images (AMIs) and anchors that recovery points of EC2 instances kept in the account go, too.";

/// Remove recovery points: those named, or those that a policy does not keep
///
/// Rules apply to each name by itself, and a point stays if any rule keeps it. The newest point of each name always stays, and so do points that cannot be read;
/// only naming them removes them. There is no question asked: try --dry-run first.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(
    ["points", "keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within", "keep_tags"])))]
#[command(group(clap::ArgGroup::new("policy").multiple(true).conflicts_with("points").args(
    ["keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within", "keep_tags", "names", "tags", "time_zone"])))]
pub struct Args {
    /// Recovery points to remove: latest, latest:NAME, an id or the beginning of one
    #[arg(value_name = "POINT")]
    points: Vec<String>,

    #[command(flatten)]
    keep: KeepArgs,

    /// Only points of this machine; may be given several times
    #[arg(long = "name", value_name = "NAME", value_parser = args::parse_name)]
    names: Vec<String>,

    /// Only points with this tag; of several, with all of them. Other points are neither removed nor counted
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = args::parse_tag)]
    tags: Vec<(String, String)>,

    /// Say what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// The result of `forget --json`.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    time_zone: Option<&'a str>,
    points: Vec<PointReport<'a>>,
    kept: usize,
    removed: usize,
    removed_logical_bytes: u64,
    damaged: &'a [String],
    /// What the points kept in AWS accounts.
    account: &'a Removed,
    #[serde(flatten)]
    spent: Spent,
}

#[derive(Serialize)]
struct PointReport<'a> {
    recovery_point: &'a str,
    /// Null if the point cannot be read.
    name: Option<&'a str>,
    started_at: Option<&'a str>,
    tags: Option<&'a BTreeMap<String, String>>,
    logical_bytes: Option<u64>,
    action: &'static str,
    reasons: Vec<String>,
}

/// A point that was looked at, and why it stays.
struct Decided {
    id: PointId,
    text_id: String,
    /// `None` if it cannot be read.
    point: Option<RecoveryPoint>,
    reasons: Vec<Reason>,
}

impl Decided {
    fn goes(&self) -> bool {
        self.reasons.is_empty()
    }

    fn name(&self) -> &str {
        self.point.as_ref().map_or("", |point| &point.name)
    }

    fn logical_bytes(&self) -> Option<u64> {
        self.point.as_ref().map(|point| point.volumes.iter().map(|volume| volume.size_bytes).sum())
    }
}

/// Removes them.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let repo = session.repository()?;
    let zone = args.keep.zone();
    let (decided, damaged) = if args.points.is_empty() {
        by_policy(args, &repo, &zone)?
    } else {
        (named(args, &repo)?, Vec::new())
    };
    let going: Vec<PointId> = decided.iter().filter(|item| item.goes()).map(|item| item.id).collect();
    if !args.dry_run {
        remove(&repo, &going, session)?;
    }
    let gone = decided.iter().filter(|item| item.goes()).filter_map(|item| item.point.as_ref());
    let account = kept::forget(session, &repo, gone, args.dry_run);
    if session.globals.json {
        output::print_json(&json(args, &decided, &damaged, &account.things, &zone, &repo))?;
    } else {
        output::print(&text(args, &decided, &zone))?;
        output::print(&account_text(args, &account.things))?;
        if let Some(spent) = Spent::of(&repo).text() {
            output::print(&format!("requests: {spent}\n"))?;
        }
    }
    for left in &account.things.failed {
        tracing::warn!("{} {} is still in the account: {}", left.thing.name(), left.id, left.why);
    }
    for problem in &account.problems {
        tracing::warn!(
            "what the recovery points kept in the AWS account was not looked for ({problem}). `penstock ec2 sweep` with this repository takes it away"
        );
    }
    damaged.iter().for_each(|problem| tracing::error!("not removed, since it cannot be read: {problem}"));
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::Damage })
}

/// The points named, all of which have to be there. They need not be readable.
fn named(args: &Args, repo: &Repository) -> Result<Vec<Decided>, Failure> {
    let read = |id: PointId| {
        let point = match repo.read_point(id) {
            Ok(point) => Some(point),
            Err(error) if error.is_damage() || matches!(error, Error::NewerVersion { .. }) => {
                tracing::debug!("to be removed unread: {error}");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Decided { id, text_id: id.to_string(), point, reasons: Vec::new() })
    };
    Ok(repo.resolve_ids(&args.points)?.into_iter().map(read).collect::<Result<_, _>>()?)
}

/// What the policy says of the points asked for, by name and time; and what is damaged.
fn by_policy(
    args: &Args,
    repo: &Repository,
    zone: &TimeZone,
) -> Result<(Vec<Decided>, Vec<String>), Failure> {
    let (mut points, mut damaged) = (Vec::new(), Vec::new());
    for listed in repo.points()? {
        match listed {
            Listed::Point(point) => points.push(point),
            Listed::Damaged { error, .. } => damaged.push(error.to_string()),
        }
    }
    let known: BTreeSet<&str> = points.iter().map(|point| point.name.as_str()).collect();
    if let Some(name) = args.names.iter().find(|name| !known.contains(name.as_str())) {
        let what = format!("{} holds none of the name {name}; nothing was removed", repo.location());
        return Err(Error::NoSuchPoint { what }.into());
    }
    points.retain(|point| {
        (args.names.is_empty() || args.names.contains(&point.name))
            && args.tags.iter().all(|(key, value)| point.tags.get(key) == Some(value))
    });
    let candidate = |point: &RecoveryPoint| {
        let (name, tags) = (point.name.clone(), point.tags.clone());
        Some(retention::Point { id: point.point_id()?, name, time: point.started_at.parse().ok(), tags })
    };
    let candidates: Vec<retention::Point> = points.iter().filter_map(candidate).collect();
    let mut reasons = retention::decide(&args.keep.policy(), &candidates, Timestamp::now(), zone)?;
    let decided = |point: RecoveryPoint| {
        let id = point.point_id()?;
        // What the policy did not speak of does not go.
        let reasons = reasons.remove(&id)?;
        Some(Decided { id, text_id: id.to_string(), point: Some(point), reasons })
    };
    let mut decided: Vec<Decided> = points.into_iter().filter_map(decided).collect();
    decided.sort_by(|a, b| (a.name(), a.id).cmp(&(b.name(), b.id)));
    Ok((decided, damaged))
}

/// Removes them, and says how far it came if it did not come to the end.
fn remove(repo: &Repository, going: &[PointId], session: &Session) -> Result<(), Failure> {
    let run = session.interrupt.new_run();
    let mut removed = 0;
    forget::remove(repo, going, &run, &mut |_| removed += 1).map_err(|error| {
        tracing::warn!(
            "{removed} of {} were removed before that",
            units::plural(going.len() as u64, "recovery point")
        );
        error.into()
    })
}

fn json<'a>(
    args: &Args,
    decided: &'a [Decided],
    damaged: &'a [String],
    account: &'a Removed,
    zone: &'a TimeZone,
    repo: &Repository,
) -> Report<'a> {
    let report = |item: &'a Decided| PointReport {
        recovery_point: &item.text_id,
        name: item.point.as_ref().map(|point| point.name.as_str()),
        started_at: item.point.as_ref().map(|point| point.started_at.as_str()),
        tags: item.point.as_ref().map(|point| &point.tags),
        logical_bytes: item.logical_bytes(),
        action: if item.goes() { "remove" } else { "keep" },
        reasons: item.reasons.iter().map(ToString::to_string).collect(),
    };
    let removed = decided.iter().filter(|item| item.goes()).count();
    Report {
        dry_run: args.dry_run,
        time_zone: args.points.is_empty().then(|| zone_name(zone)),
        points: decided.iter().map(report).collect(),
        kept: decided.len() - removed,
        removed,
        removed_logical_bytes: going_bytes(decided),
        damaged,
        account,
        spent: Spent::of(repo),
    }
}

/// What went in accounts, one line for each thing.
fn account_text(args: &Args, account: &Removed) -> String {
    let word = if args.dry_run { "would be removed" } else { "removed" };
    let line = |found: &Found| format!("{} {} {word}: {}\n", found.thing.name(), found.id, found.why);
    account.removed.iter().map(line).collect()
}

fn going_bytes(decided: &[Decided]) -> u64 {
    decided.iter().filter(|item| item.goes()).filter_map(Decided::logical_bytes).sum()
}

/// A table for each name, and what it comes to.
fn text(args: &Args, decided: &[Decided], zone: &TimeZone) -> String {
    let goes = if args.dry_run { "would go" } else { "removed" };
    let mut text = String::new();
    for of_name in decided.chunk_by(|a, b| a.name() == b.name()) {
        let mut table = Table::new(&["id", "time", ">size", "tags", "", "why"]);
        for item in of_name {
            let of = |get: &dyn Fn(&RecoveryPoint) -> String| item.point.as_ref().map_or("-".to_owned(), get);
            table.row(vec![
                output::short_id(&item.text_id).to_owned(),
                of(&|point| local_time(&point.started_at, zone)),
                item.logical_bytes().map_or("-".to_owned(), units::size),
                of(&list::tags_text),
                if item.goes() { goes } else { "stays" }.to_owned(),
                item.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            ]);
        }
        let removed = of_name.iter().filter(|item| item.goes()).count();
        let heading = match of_name[0].point {
            Some(_) => of_name[0].name(),
            None => "DAMAGED",
        };
        let counts = match args.points.is_empty() {
            true => format!(": {} stay, {removed} {goes}", of_name.len() - removed),
            false => String::new(),
        };
        text += &format!("{heading}{counts}\n{}\n", table.text());
    }
    let removed = decided.iter().filter(|item| item.goes()).count() as u64;
    let points = units::plural(removed, "recovery point");
    let verb = if args.dry_run { " would be" } else { "" };
    text += &format!("{points}{verb} removed ({} of disks)", units::size(going_bytes(decided)));
    if args.points.is_empty() {
        text += &format!(", {} stay", units::count(decided.len() as u64 - removed));
    }
    text.push('\n');
    if removed > 0 && !args.dry_run {
        text += "what only they used is still stored: space comes back with `penstock gc`\n";
    }
    text
}
