//! `penstock lock`: extends the locks of what recovery points need.

use jiff::Timestamp;
use penstock_engine::lock::{self, LockReport};
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output;
use super::progress::Kind;
use super::session::Session;
use super::spent::Spent;
use super::units;

const EXAMPLES: &str = "\
Examples:
  penstock lock --object-lock 30                              after the backups, at least every 15 days
  penstock lock --object-lock 30 --object-lock-mode compliance";

/// Extend the locks of everything that recovery points need (S3 Object Lock): exit code 12 if something is missing
///
/// A lock is set when an object is written. Recovery points made later refer to old packs, whose locks end before theirs: this extends them, and tells what
/// somebody has hidden or replaced.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// The result of `lock --json`.
#[derive(Serialize)]
struct Report<'a> {
    locked_until: String,
    points: usize,
    packs: usize,
    objects: usize,
    extended: usize,
    long_enough: usize,
    problems: &'a [String],
    #[serde(flatten)]
    spent: Spent,
}

/// Extends them.
pub fn run(_: &Args, session: &Session) -> Outcome {
    let repo = session.repository()?;
    let report = session.with_run(Kind::Lock, |run| lock::extend(&repo, Timestamp::now(), run))?;
    let spent = Spent::of(&repo);
    if session.globals.json {
        output::print_json(&json(&report, spent))?;
    } else {
        output::print(&text(&report))?;
        if let Some(spent) = spent.text() {
            output::print(&format!("requests: {spent}\n"))?;
        }
    }
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Damage })
}

fn json(report: &LockReport, spent: Spent) -> Report<'_> {
    Report {
        locked_until: report.locked_until.to_string(),
        points: report.points,
        packs: report.packs,
        objects: report.objects,
        extended: report.extended,
        long_enough: report.long_enough,
        problems: &report.problems,
        spent,
    }
}

fn text(report: &LockReport) -> String {
    let mut text = format!(
        "{} and the {} they need are locked until {} at least: {} extended, {} long enough\n",
        units::plural(report.points as u64, "recovery point"),
        units::plural(report.packs as u64, "pack"),
        output::time(&report.locked_until.to_string()),
        units::plural(report.extended as u64, "lock"),
        units::count(report.long_enough as u64),
    );
    if !report.problems.is_empty() {
        text += &format!(
            "{}; docs/OPERATIONS.md, Immutable backups, tells how versions that are locked come back:\n",
            units::plural(report.problems.len() as u64, "problem")
        );
        report.problems.iter().for_each(|problem| text += &format!("  {problem}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_told() {
        let mut report = LockReport {
            points: 2,
            packs: 5,
            objects: 9,
            extended: 4,
            long_enough: 5,
            problems: Vec::new(),
            locked_until: Timestamp::UNIX_EPOCH,
        };
        let words = text(&report);
        assert!(
            words.contains("2 recovery points and the 5 packs") && words.contains("4 locks extended"),
            "{words}"
        );
        report.problems.push("data/ab/x is missing, or hidden by a delete marker".into());
        assert!(text(&report).contains("1 problem;"), "{}", text(&report));
        assert_eq!(serde_json::to_value(json(&report, Spent::default())).unwrap()["extended"], 4);
    }
}
