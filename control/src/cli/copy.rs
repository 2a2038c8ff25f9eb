//! `penstock copy`: recovery points from one repository to another.

use std::path::PathBuf;

use penstock_engine::copy::{self, CopiedPoint, CopyReport};
use penstock_engine::format::point::RecoveryPoint;
use penstock_engine::repo::{Listed, Repository};
use serde::Serialize;

use super::args::{self, Globals};
use super::exit::{Exit, Failure, Outcome};
use super::output::{self, Table};
use super::progress::Kind;
use super::session::Session;
use super::spent::Spent;
use super::{host, list, units};

const EXAMPLES: &str = "\
Examples:
  penstock copy latest:web-01 --to /mnt/second/repo --to-password-file /etc/second.pass
  penstock copy --all --to s3://other-bucket/repo --to-s3-region eu-central-1 --to-key-file /etc/second.key
  penstock copy --latest --to /mnt/second/repo                  the newest of each name, every night
  penstock copy --name web-01 --to /mnt/second/repo

The destination is made by `penstock init`, with a key of its own. Copying again sends only what is missing.";

/// Copy recovery points to another repository; only what it lacks is sent
///
/// A copy keeps its id, name, times and tags. Points that the destination has are passed over.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["points", "all", "name", "latest"])))]
pub struct Args {
    /// Recovery points: latest, latest:NAME, an id or the beginning of one
    #[arg(value_name = "POINT", conflicts_with_all = ["all", "name", "latest"])]
    points: Vec<String>,

    /// All recovery points
    #[arg(long, conflicts_with_all = ["name", "latest"])]
    all: bool,

    /// All recovery points of this name
    #[arg(long, value_name = "NAME", value_parser = args::parse_name)]
    name: Option<String>,

    /// The newest of each name; with --name, of that name
    #[arg(long)]
    latest: bool,

    /// The repository to copy to: as --repo
    #[arg(long, env = "PENSTOCK_TO", hide_env_values = true, value_name = "URL")]
    to: String,

    /// Passphrase of the destination, in a file [env: PENSTOCK_TO_PASSWORD_FILE, PENSTOCK_TO_PASSWORD]
    #[arg(long, value_name = "FILE", conflicts_with = "to_key_file")]
    to_password_file: Option<PathBuf>,

    /// Key file of the destination
    #[arg(long, value_name = "FILE")]
    to_key_file: Option<PathBuf>,

    /// As --s3-endpoint, for the destination [default: --s3-endpoint]
    #[arg(long, env = "PENSTOCK_TO_S3_ENDPOINT", hide_env_values = true, value_name = "URL")]
    to_s3_endpoint: Option<String>,

    /// As --s3-region, for the destination [default: --s3-region]
    #[arg(long, env = "PENSTOCK_TO_S3_REGION", hide_env_values = true, value_name = "REGION")]
    to_s3_region: Option<String>,

    /// As --s3-profile, for the destination [default: --s3-profile]
    #[arg(long, env = "PENSTOCK_TO_S3_PROFILE", hide_env_values = true, value_name = "NAME")]
    to_s3_profile: Option<String>,
}

/// The result of `copy --json`.
#[derive(Serialize)]
struct Report<'a> {
    points: Vec<PointReport<'a>>,
    copied: usize,
    already_there: usize,
    damaged: &'a [String],
    logical_bytes: u64,
    read_bytes: u64,
    new_chunks: u64,
    new_bytes: u64,
    stored_bytes: u64,
    duration_ms: u64,
    cpu_ms: u64,
    memory_peak_bytes: u64,
    notes: &'a [String],
    source: SideReport<'a>,
    destination: SideReport<'a>,
}

#[derive(Serialize)]
struct PointReport<'a> {
    recovery_point: &'a str,
    name: &'a str,
    already_there: bool,
    compared_with: Option<&'a str>,
    logical_bytes: u64,
    read_bytes: u64,
    new_chunks: u64,
    new_bytes: u64,
    stored_bytes: u64,
}

/// What one of the two repositories was asked.
#[derive(Serialize)]
struct SideReport<'a> {
    location: &'a str,
    #[serde(flatten)]
    spent: Spent,
}

/// Copies.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let source = session.source().map_err(|failure| named(failure, session.repo_url()))?;
    let destination = session
        .destination(&args.to, &destination_options(args, &session.globals))
        .map_err(|failure| named(failure, Ok(&args.to)))?;
    if source.location() == destination.location() {
        return Err(Failure::usage(format!("{} is source and destination", source.location())));
    }
    let (points, damaged) = chosen(args, &source)?;
    let workers = session.globals.worker_count();
    let report =
        session.with_run(Kind::Copy, |run| copy::run(&source, &destination, &points, workers, run))?;
    report.notes.iter().filter(|_| !session.globals.quiet).for_each(|note| tracing::warn!("{note}"));
    if session.globals.json {
        output::print_json(&json(&report, &damaged, &source, &destination))?;
    } else {
        output::print(&text(&report, destination.location()))?;
        for (side, repo) in [("source", &source), ("destination", &destination)] {
            if let Some(spent) = Spent::of(repo).text() {
                output::print(&format!("requests to the {side}: {spent}\n"))?;
            }
        }
    }
    damaged.iter().for_each(|problem| tracing::error!("not copied: {problem}"));
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::Damage })
}

/// Says which of the two repositories a failure is of.
fn named(failure: Failure, repository: Result<&str, Failure>) -> Failure {
    match (failure, repository) {
        (Failure::Engine(error), Ok(location)) => error.in_repository(location).into(),
        (failure, _) => failure,
    }
}

/// The global options as the destination has them: its own where there are such, else those of the source, but never the source's key.
fn destination_options(args: &Args, globals: &Globals) -> Globals {
    let mut options = globals.clone();
    options.password_file.clone_from(&args.to_password_file);
    options.key_file.clone_from(&args.to_key_file);
    let own = |given: &Option<String>, of_source: &mut Option<String>| {
        if given.is_some() {
            of_source.clone_from(given);
        }
    };
    own(&args.to_s3_endpoint, &mut options.far.s3_endpoint);
    own(&args.to_s3_region, &mut options.far.s3_region);
    own(&args.to_s3_profile, &mut options.far.s3_profile);
    options
}

/// The points asked for, and what is damaged among them where they were not named one by one.
fn chosen(args: &Args, source: &Repository) -> Result<(Vec<RecoveryPoint>, Vec<String>), Failure> {
    if !args.points.is_empty() {
        let resolve = |text: &String| source.resolve(text).map_err(|e| e.in_repository(source.location()));
        let points = args.points.iter().map(resolve).collect::<Result<_, _>>()?;
        return Ok((points, Vec::new()));
    }
    let (mut points, mut damaged) = (Vec::new(), Vec::new());
    for listed in source.points()? {
        match listed {
            Listed::Point(point) if args.name.as_ref().is_none_or(|name| *name == point.name) => {
                points.push(point);
            }
            Listed::Point(_) => {}
            Listed::Damaged { error, .. } => {
                damaged.push(error.in_repository(source.location()).to_string());
            }
        }
    }
    if args.latest {
        let mut all = std::mem::take(&mut points);
        for point in all.extract_if(.., |point| list::is_of_the_future(point, source.unix_ms())) {
            tracing::warn!(
                "passing over recovery point {} of {:?}: it is dated {}, in the future by this machine's clock",
                point.id,
                point.name,
                point.started_at
            );
        }
        for (n, point) in all.iter().enumerate() {
            if !all[n + 1..].iter().any(|later| later.name == point.name) {
                points.push(point.clone());
            }
        }
    }
    if points.is_empty() && damaged.is_empty() {
        let what = args.name.as_ref().map_or("any name".to_owned(), |name| format!("the name {name}"));
        return Err(penstock_engine::Error::NoSuchPoint {
            what: format!("{} holds none of {what}", source.location()),
        }
        .into());
    }
    Ok((points, damaged))
}

fn logical_bytes(point: &RecoveryPoint) -> u64 {
    point.volumes.iter().map(|volume| volume.size_bytes).sum()
}

fn json<'a>(
    report: &'a CopyReport,
    damaged: &'a [String],
    source: &'a Repository,
    destination: &'a Repository,
) -> Report<'a> {
    let sum = |of: fn(&CopiedPoint) -> u64| report.points.iter().map(of).sum();
    let already_there = report.points.iter().filter(|copied| copied.already_there).count();
    Report {
        points: report.points.iter().map(point_report).collect(),
        copied: report.points.len() - already_there,
        already_there,
        damaged,
        logical_bytes: sum(|copied| logical_bytes(&copied.point)),
        read_bytes: sum(|copied| copied.read_bytes),
        new_chunks: sum(|copied| copied.new.new_chunks),
        new_bytes: sum(|copied| copied.new.new_bytes),
        stored_bytes: sum(|copied| copied.new.stored_bytes),
        duration_ms: report.duration_ms,
        cpu_ms: host::cpu_ms(),
        memory_peak_bytes: host::memory_peak_bytes(),
        notes: &report.notes,
        source: SideReport { location: source.location(), spent: Spent::of(source) },
        destination: SideReport { location: destination.location(), spent: Spent::of(destination) },
    }
}

fn point_report(copied: &CopiedPoint) -> PointReport<'_> {
    PointReport {
        recovery_point: &copied.point.id,
        name: &copied.point.name,
        already_there: copied.already_there,
        compared_with: copied.baseline.as_deref(),
        logical_bytes: logical_bytes(&copied.point),
        read_bytes: copied.read_bytes,
        new_chunks: copied.new.new_chunks,
        new_bytes: copied.new.new_bytes,
        stored_bytes: copied.new.stored_bytes,
    }
}

fn text(report: &CopyReport, to: &str) -> String {
    let mut table = Table::new(&["point", "name", "time", ">size", ">read", ">new", ">sent", ""]);
    for copied in &report.points {
        table.row(vec![
            output::short_id(&copied.point.id).to_owned(),
            copied.point.name.clone(),
            output::time(&copied.point.started_at),
            units::size(logical_bytes(&copied.point)),
            units::size(copied.read_bytes),
            units::size(copied.new.new_bytes),
            units::size(copied.new.stored_bytes),
            if copied.already_there { "already there" } else { "" }.to_owned(),
        ]);
    }
    let copied = report.points.iter().filter(|copied| !copied.already_there).count();
    let sent: u64 = report.points.iter().map(|copied| copied.new.stored_bytes).sum();
    format!(
        "{}{} copied to {to}, {} sent, in {}\n",
        table.text(),
        units::plural(copied as u64, "recovery point"),
        units::size(sent),
        units::duration(report.duration_ms),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        globals: Globals,
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_destination_inherits_the_service_and_never_the_key() {
        let line = "copy --all --repo s3://a/b --to s3://c/d --key-file k --s3-endpoint http://e --s3-region r \
                    --to-s3-region s --to-password-file p";
        let Line { globals, args } = Line::try_parse_from(line.split_whitespace()).unwrap();
        let options = destination_options(&args, &globals);
        assert_eq!(options.key_file, None);
        assert_eq!(options.password_file, Some("p".into()));
        assert_eq!(options.far.s3_endpoint.as_deref(), Some("http://e"));
        assert_eq!(options.far.s3_region.as_deref(), Some("s"));
    }
}
