//! `penstock verify`: is everything there, and is it what was written?

use std::time::Duration;

use penstock_engine::verify::{self, Ended, Hurt, VerifyOptions, VerifyReport};
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::host;
use super::output::{self, JsonRange};
use super::progress::Kind;
use super::session::Session;
use super::spent::Spent;
use super::units;

/// Problems shown.
const PROBLEMS_SHOWN: usize = 100;
/// Hurt ranges shown of each volume.
const RANGES_SHOWN: usize = 20;
/// Hurt volumes shown.
const HURT_SHOWN: usize = 200;

const EXAMPLES: &str = "\
Examples:
  penstock verify                              structure: every manifest, every chunk in its place
  penstock verify --read-data                  and every byte
  penstock verify --read-data --sample 5%      and a twentieth of the data, another one each time
  penstock verify --read-data --max-time 2h --resume    every night: all of it, two hours at a time
  penstock verify latest:web-01 --read-data";

/// Check the repository: exit code 12 if anything is damaged or missing
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only these recovery points: latest, latest:NAME, an id or the beginning of one [default: all]
    #[arg(value_name = "POINT")]
    points: Vec<String>,

    /// Read, decrypt and check the data too
    #[arg(long)]
    read_data: bool,

    /// Share of the data that is read. Each run goes on behind the last one: twenty times 5% read everything
    #[arg(long, value_name = "PERCENT", requires = "read_data", value_parser = units::parse_share)]
    sample: Option<f64>,

    /// Stop after so long: 2h, 90m. The exit code is 3 then, and --resume goes on
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    max_time: Option<Duration>,

    /// Go on where the last verification of the same on this machine was stopped; if none was, begin
    #[arg(long, conflicts_with = "sample")]
    resume: bool,
}

/// The result of `verify --json`.
#[derive(Serialize)]
struct Report<'a> {
    clean: bool,
    ended: &'static str,
    resumed: bool,
    points: usize,
    points_chosen: usize,
    nodes: u64,
    chunks: u64,
    packs: u64,
    packs_known: u64,
    packs_read: u64,
    aside_packs: u64,
    archived_packs: u64,
    archived_bytes: u64,
    read_bytes: u64,
    read_bytes_per_s: u64,
    duration_ms: u64,
    problem_count: u64,
    problems: &'a [String],
    hurt: Vec<HurtReport<'a>>,
    #[serde(flatten)]
    spent: Spent,
}

#[derive(Serialize)]
struct HurtReport<'a> {
    recovery_point: &'a str,
    name: &'a str,
    volume: &'a str,
    bytes: u64,
    range_count: u64,
    ranges: Vec<JsonRange>,
}

/// Verifies.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let repo = session.repository_as_stored()?;
    let options = VerifyOptions {
        points: args.points.iter().map(|text| repo.resolve(text)).collect::<Result<_, _>>()?,
        read_data: args.read_data,
        sample: args.sample,
        time_max: args.max_time,
        resume: args.resume,
        state_dir: host::state_dir().ok(),
        workers: session.globals.worker_count(),
    };
    let report = session.with_run(Kind::Verify, |run| verify::run(&repo, &options, run))?;
    if session.globals.json {
        output::print_json(&json(&report, Spent::of(&repo)))?;
    } else {
        output::print(&text(&report))?;
        if let Some(spent) = Spent::of(&repo).text() {
            output::print(&format!("requests: {spent}\n"))?;
        }
    }
    Ok(exit(args, &report))
}

fn exit(args: &Args, report: &VerifyReport) -> Exit {
    let archived = args.read_data && report.archived_packs > 0;
    match report.ended {
        Ended::Interrupted => Exit::Interrupted,
        _ if !report.is_clean() => Exit::Damage,
        Ended::TimeLimit => Exit::InPart,
        Ended::Whole if archived => Exit::InPart,
        Ended::Whole => Exit::Done,
    }
}

fn json(report: &VerifyReport, spent: Spent) -> Report<'_> {
    Report {
        clean: report.is_clean(),
        ended: match report.ended {
            Ended::Whole => "whole",
            Ended::TimeLimit => "time_limit",
            Ended::Interrupted => "interrupted",
        },
        resumed: report.resumed,
        points: report.points,
        points_chosen: report.points_chosen,
        nodes: report.nodes,
        chunks: report.chunks,
        packs: report.packs,
        packs_known: report.packs_known,
        packs_read: report.packs_read,
        aside_packs: report.aside_packs,
        archived_packs: report.archived_packs,
        archived_bytes: report.archived_bytes,
        read_bytes: report.read_bytes,
        read_bytes_per_s: units::per_second(report.read_bytes, report.duration_ms) as u64,
        duration_ms: report.duration_ms,
        problem_count: report.problem_count,
        problems: &report.problems,
        hurt: report.hurt.iter().map(hurt_report).collect(),
        spent,
    }
}

fn hurt_report(hurt: &Hurt) -> HurtReport<'_> {
    HurtReport {
        recovery_point: &hurt.point,
        name: &hurt.name,
        volume: &hurt.volume,
        bytes: hurt.bytes,
        range_count: hurt.range_count,
        ranges: hurt.ranges.iter().map(JsonRange::from).collect(),
    }
}

fn text(report: &VerifyReport) -> String {
    let mut text = format!(
        "checked {}, {}, {} in {}",
        units::plural(report.points as u64, "recovery point"),
        units::plural(report.nodes, "manifest node"),
        units::plural(report.chunks, "chunk"),
        units::plural(report.packs, "pack"),
    );
    if report.read_bytes > 0 {
        let rate = units::rate(report.read_bytes, report.duration_ms);
        text += &format!("; read {} at {rate}", units::size(report.read_bytes));
    }
    text += &format!("; {}\n", units::duration(report.duration_ms));
    if report.archived_packs > 0 {
        text += &format!(
            "{} ({}) archived and not readable now: they are there and have their length, their contents were not checked\n",
            units::plural(report.archived_packs, "data pack"),
            units::size(report.archived_bytes),
        );
    }
    if report.aside_packs > 0 {
        text += &format!(
            "{} put aside as damaged: nobody relies on them, and `penstock gc` removes them when no point needs them\n",
            units::plural(report.aside_packs, "pack"),
        );
    }
    text += &ended_text(report);
    if report.is_clean() {
        let what = if report.ended == Ended::Whole { "" } else { " so far" };
        return text + &format!("nothing is damaged or missing{what}\n");
    }
    text += &format!("{}:\n", units::plural(report.problem_count, "problem"));
    for problem in report.problems.iter().take(PROBLEMS_SHOWN) {
        text += &format!("  {problem}\n");
    }
    let shown = report.problems.len().min(PROBLEMS_SHOWN) as u64;
    if report.problem_count > shown {
        text += &format!("  … and {} more\n", units::count(report.problem_count - shown));
    }
    text += &hurt_text(report);
    text + "`penstock repair` mends what can be mended\n"
}

/// How far a verification came that was stopped.
fn ended_text(report: &VerifyReport) -> String {
    let why = match report.ended {
        Ended::Whole => return String::new(),
        Ended::TimeLimit => "the time is over",
        Ended::Interrupted => "interrupted",
    };
    format!(
        "{why}: {} of {} and {} of {} were checked. The same command{} goes on\n",
        units::count(report.packs),
        units::plural(report.packs_known.saturating_sub(report.aside_packs), "pack"),
        units::count(report.points as u64),
        units::plural(report.points_chosen as u64, "recovery point"),
        if report.sampled { "" } else { " with --resume" },
    )
}

fn hurt_text(report: &VerifyReport) -> String {
    if report.hurt.is_empty() {
        return "no recovery point that was checked is hurt by that\n".into();
    }
    let mut text = String::from("hurt by that:\n");
    let shown = &report.hurt[..report.hurt.len().min(HURT_SHOWN)];
    for of_point in shown.chunk_by(|one, other| one.point == other.point) {
        for (number, hurt) in of_point.iter().enumerate() {
            if number == 0 {
                text += &format!("  {} ({})\n", output::short_id(&hurt.point), hurt.name);
            }
            let ranges = units::plural(hurt.range_count, "range");
            text += &format!("    {}: {} in {ranges}\n", hurt.volume, units::size(hurt.bytes));
            for range in hurt.ranges.iter().take(RANGES_SHOWN) {
                text += &format!("      {}…{}\n", units::exact(range.start), units::exact(range.end));
            }
            let listed = hurt.ranges.len().min(RANGES_SHOWN) as u64;
            if hurt.range_count > listed {
                text += &format!("      … and {} more\n", units::count(hurt.range_count - listed));
            }
        }
    }
    if report.hurt.len() > HURT_SHOWN {
        let more = (report.hurt.len() - HURT_SHOWN) as u64;
        text += &format!("  … and {}\n", units::plural(more, "more volume"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_say_who_is_hurt_and_where() {
        let mut report = VerifyReport { points: 1, chunks: 1200, packs: 2, ..VerifyReport::default() };
        assert!(text(&report).contains("1,200 chunks in 2 packs"));
        assert!(text(&report).contains("nothing is damaged"));
        report.problems.push("data/ab/x is damaged: a bad tag".into());
        report.problem_count = 30_000;
        assert!(text(&report).contains("no recovery point that was checked is hurt"));
        for volume in ["vda", "vdb"] {
            report.hurt.push(Hurt {
                point: "0123456789abcdef".into(),
                name: "web-01".into(),
                volume: volume.into(),
                ranges: std::iter::once(4 << 20..12 << 20).collect(),
                range_count: 3,
                bytes: 10 << 20,
            });
        }
        let words = text(&report);
        for expected in [
            "30,000 problems:\n  data/ab/x is damaged: a bad tag\n  … and 29,999 more\n",
            "  0123456789ab (web-01)\n    vda: 10 MiB in 3 ranges\n      4 MiB…12 MiB\n      … and 2 more\n    vdb:",
        ] {
            assert!(words.contains(expected), "{expected} in {words}");
        }
        let json = serde_json::to_value(json(&report, Spent::default())).unwrap();
        assert_eq!(json["clean"], false);
        assert_eq!(json["problem_count"], 30_000);
        assert_eq!(json["hurt"][0]["ranges"][0]["length"], 8 << 20);
        assert_eq!(json["requests"]["get"], 0);
    }

    #[test]
    fn a_verification_that_was_stopped_says_how_far_it_came() {
        let args = Args { points: Vec::new(), read_data: true, sample: None, max_time: None, resume: false };
        let mut report =
            VerifyReport { packs: 12, packs_known: 40, points_chosen: 3, ..VerifyReport::default() };
        report.ended = Ended::TimeLimit;
        assert!(text(&report).contains("12 of 40 packs and 0 of 3 recovery points were checked"));
        assert!(text(&report).contains("nothing is damaged or missing so far"));
        assert_eq!(exit(&args, &report), Exit::InPart);
        report.problem_count = 1;
        assert_eq!(exit(&args, &report), Exit::Damage);
        report.ended = Ended::Interrupted;
        assert_eq!(exit(&args, &report), Exit::Interrupted);
    }
}
