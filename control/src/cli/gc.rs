//! `penstock gc`: gives back the space of what no recovery point needs.

use std::time::Duration;

use jiff::Timestamp;
use penstock_engine::gc::{self, Amount, GcOptions, GcReport, Waiting};
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output::{self, Facts};
use super::progress::Kind;
use super::session::Session;
use super::spent::Spent;
use super::units;

const EXAMPLES: &str = "\
Examples:
  penstock gc --dry-run
  penstock gc
  penstock gc --grace 0s          at once; only where no restore is under way

Space comes back in two runs: the first condemns what nothing needs, a later one deletes it when the grace is over and all writers that were under way have ended.";

/// Give back the space of what no recovery point needs any more
///
/// May run on any machine, at any time, beside backups, restores, and others of its kind. Nothing is locked.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Delete nothing that was not condemned for so long: 24h, 90m, 0s. A restore or verify that began before loses what it has not read yet, if it takes longer
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = units::parse_duration)]
    grace: Duration,

    /// Move so much out of packs of which less than 7/10 is needed, so that they can go; 0 for none
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = units::parse_size)]
    max_repack: u64,

    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// The result of `gc --json`.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    points: u64,
    packs: u64,
    pack_bytes: u64,
    needed_bytes: u64,
    deleted_packs: u64,
    deleted_bytes: u64,
    condemned_packs: u64,
    condemned_bytes: u64,
    moved_packs: u64,
    moved_bytes: u64,
    rescued_packs: u64,
    aside_packs: u64,
    aside_bytes: u64,
    candidate_packs: u64,
    candidate_bytes: u64,
    waiting: Vec<WaitingReport>,
    writers: Vec<String>,
    dead_leases: u64,
    index_rows: u64,
    gone_index_rows: u64,
    duration_ms: u64,
    #[serde(flatten)]
    spent: Spent,
}

#[derive(Serialize)]
struct WaitingReport {
    packs: u64,
    not_before: String,
    writers: Vec<String>,
}

/// Collects.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let repo = session.repository()?;
    let options = GcOptions { grace: args.grace, max_repack_bytes: args.max_repack, dry_run: args.dry_run };
    let started = std::time::Instant::now();
    let report = session.with_run(Kind::Gc, |run| gc::run(&repo, &options, run))?;
    let duration_ms = started.elapsed().as_millis() as u64;
    if session.globals.json {
        output::print_json(&json(args, &report, duration_ms, Spent::of(&repo)))?;
    } else {
        output::print(&text(args, &report, duration_ms, Spent::of(&repo)))?;
    }
    Ok(Exit::Done)
}

fn json(args: &Args, report: &GcReport, duration_ms: u64, spent: Spent) -> Report {
    let waiting = |waiting: &Waiting| WaitingReport {
        packs: waiting.condemned.packs,
        not_before: time(waiting.not_before_ms),
        writers: waiting.writers.clone(),
    };
    Report {
        dry_run: args.dry_run,
        points: report.points,
        packs: report.present.packs,
        pack_bytes: report.present.bytes,
        needed_bytes: report.needed_bytes,
        deleted_packs: report.deleted.packs,
        deleted_bytes: report.deleted.bytes,
        condemned_packs: report.condemned.packs,
        condemned_bytes: report.condemned.bytes,
        moved_packs: report.moved.packs,
        moved_bytes: report.moved.bytes,
        rescued_packs: report.rescued.packs,
        aside_packs: report.aside.packs,
        aside_bytes: report.aside.bytes,
        candidate_packs: report.candidates.packs,
        candidate_bytes: report.candidates.bytes,
        waiting: report.waiting.iter().map(waiting).collect(),
        writers: report.writers.clone(),
        dead_leases: report.dead_leases,
        index_rows: report.index_rows,
        gone_index_rows: report.gone_rows,
        duration_ms,
        spent,
    }
}

/// RFC 3339 to seconds.
fn time(unix_ms: u64) -> String {
    Timestamp::from_millisecond(unix_ms as i64).map_or_else(|_| unix_ms.to_string(), |at| format!("{at:.0}"))
}

fn amount(amount: Amount) -> String {
    format!("{} in {}", units::size(amount.bytes), units::plural(amount.packs, "pack"))
}

fn text(args: &Args, report: &GcReport, duration_ms: u64, spent: Spent) -> String {
    let would = |done: &str, not_done: &str| if args.dry_run { not_done.to_owned() } else { done.to_owned() };
    let mut facts = Facts::default();
    facts.add(
        "looked at",
        format!("{}, {}", units::plural(report.points, "recovery point"), amount(report.present)),
    );
    facts.add(
        "needed",
        format!(
            "{} ({})",
            units::size(report.needed_bytes),
            units::percent(report.needed_bytes, report.present.bytes)
        ),
    );
    facts.add(would("deleted", "would delete"), amount(report.deleted));
    if report.condemned.packs > 0 {
        let moved = match report.moved.packs {
            0 => String::new(),
            packs => format!(
                ", {} of them after moving {} elsewhere",
                units::count(packs),
                units::size(report.moved.bytes)
            ),
        };
        facts.add(would("condemned", "would condemn"), amount(report.condemned) + &moved);
    }
    if report.rescued.packs > 0 {
        facts.add("in use again", amount(report.rescued));
    }
    if report.aside.packs > 0 {
        facts.add("damaged, kept", format!("{}: points need what is in them", amount(report.aside)));
    }
    if report.candidates.packs > 0 {
        facts.add(
            "perhaps needless",
            format!("{}: a later run knows, when those who write now have ended", amount(report.candidates)),
        );
    }
    for waiting in &report.waiting {
        let packs = units::plural(waiting.condemned.packs, "condemned pack");
        let mut why = format!("{packs} until {}", time(waiting.not_before_ms));
        if !waiting.writers.is_empty() {
            why += &format!(" and for {}", waiting.writers.join(", "));
        }
        facts.add("waiting", why);
    }
    if !report.writers.is_empty() {
        facts.add("writing now", report.writers.join(", "));
    }
    if report.dead_leases > 0 {
        facts.add("dead writers", units::count(report.dead_leases));
    }
    spent.add_to(&mut facts);
    facts.add("time", units::duration(duration_ms));
    facts.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_say_what_happens_and_what_is_waited_for() {
        let args = Args { grace: Duration::ZERO, max_repack: 0, dry_run: false };
        let mut report = GcReport { points: 2, ..GcReport::default() };
        report.present = Amount { packs: 4, bytes: 4 << 20 };
        report.needed_bytes = 1 << 20;
        report.condemned = Amount { packs: 3, bytes: 3 << 20 };
        report.waiting = vec![Waiting {
            condemned: Amount { packs: 2, bytes: 0 },
            not_before_ms: 1_700_000_000_000,
            writers: vec!["backup on web (process 7)".into()],
        }];
        let words = text(&args, &report, 5, Spent::default());
        for expected in [
            "1 MiB (25 %)",
            "condemned",
            "2 condemned packs until 2023-11-14T22:13:20Z and for backup on web",
        ] {
            assert!(words.contains(expected), "{expected} in {words}");
        }
        let json = serde_json::to_value(json(&args, &report, 5, Spent::default())).unwrap();
        assert_eq!(json["waiting"][0]["packs"], 2);
        assert_eq!(units::parse_duration("36h").unwrap().as_secs(), 36 * 3600);
        assert!(units::parse_duration("-1h").is_err() && units::parse_duration("soon").is_err());
    }
}
