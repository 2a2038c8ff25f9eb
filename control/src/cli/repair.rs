//! `penstock repair`: mends what `verify` found, as far as it can be mended.

use penstock_engine::repair::{self, Lines, RepairOptions, RepairReport};
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output::{self, Facts};
use super::progress::Kind;
use super::session::Session;
use super::spent::Spent;
use super::units;

/// Lines shown of each kind of damage.
const LINES_SHOWN: usize = 50;

const EXAMPLES: &str = "\
Examples:
  penstock repair --dry-run                    what would be done
  penstock repair                              missing index rows, lost and cut packs
  penstock repair --read-data                  and packs with flipped bytes: reads everything

Then run `penstock backup` as usual: it stores again what the sources still have. `penstock verify` names what is lost.";

/// Mend a damaged repository: rebuild the index, put damaged packs aside
///
/// May run beside anything else. Index rows are rebuilt from packs; what can be read of damaged packs is moved into new
/// ones, and the damaged ones are put aside, so that the next backup stores again what the source still has.
/// Recovery points and packs are never deleted by this.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Read, decrypt and check all data: flipped bytes are found only so
    #[arg(long)]
    read_data: bool,

    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// The result of `repair --json`.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    clean: bool,
    packs: u64,
    read_bytes: u64,
    new_index_rows: u64,
    unknown_packs: u64,
    bad_index_segments: Found<'a>,
    index_segments_kept: bool,
    put_aside: Found<'a>,
    put_aside_before: u64,
    moved_contents: u64,
    moved_bytes: u64,
    lost_contents: u64,
    useless_packs: Found<'a>,
    archived_packs: u64,
    damaged_points: Found<'a>,
    damaged_leases: Found<'a>,
    removed_records: Found<'a>,
    collectors: &'a [String],
    duration_ms: u64,
    #[serde(flatten)]
    spent: Spent,
}

#[derive(Serialize)]
struct Found<'a> {
    count: u64,
    lines: &'a [String],
}

impl<'a> From<&'a Lines> for Found<'a> {
    fn from(lines: &'a Lines) -> Self {
        Self { count: lines.count, lines: &lines.lines }
    }
}

/// Mends.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let repo = session.repository_as_stored()?;
    let options = RepairOptions {
        read_data: args.read_data,
        dry_run: args.dry_run,
        workers: session.globals.worker_count(),
    };
    let report = session.with_run(Kind::Repair, |run| repair::run(&repo, &options, run))?;
    if session.globals.json {
        output::print_json(&json(args, &report, Spent::of(&repo)))?;
    } else {
        output::print(&text(args, &report, Spent::of(&repo)))?;
    }
    Ok(exit(args, &report))
}

fn exit(args: &Args, report: &RepairReport) -> Exit {
    match (report.is_hurt() || (args.dry_run && report.has_damage()), report.is_in_part()) {
        (true, _) => Exit::Damage,
        (false, true) => Exit::InPart,
        (false, false) => Exit::Done,
    }
}

fn json<'a>(args: &Args, report: &'a RepairReport, spent: Spent) -> Report<'a> {
    Report {
        dry_run: args.dry_run,
        clean: report.is_clean(),
        packs: report.packs,
        read_bytes: report.read_bytes,
        new_index_rows: report.new_rows,
        unknown_packs: report.unknown_packs,
        bad_index_segments: (&report.bad_segments).into(),
        index_segments_kept: report.segments_kept,
        put_aside: (&report.hurt).into(),
        put_aside_before: report.aside_before,
        moved_contents: report.moved.0,
        moved_bytes: report.moved.1,
        lost_contents: report.lost,
        useless_packs: (&report.useless).into(),
        archived_packs: report.archived,
        damaged_points: (&report.points).into(),
        damaged_leases: (&report.leases).into(),
        removed_records: (&report.records).into(),
        collectors: &report.collectors,
        duration_ms: report.duration_ms,
        spent,
    }
}

fn text(args: &Args, report: &RepairReport, spent: Spent) -> String {
    let would = |done: &str, not_done: &str| if args.dry_run { not_done.to_owned() } else { done.to_owned() };
    let mut text = String::new();
    let mut list = |what: String, lines: &Lines| {
        if lines.count == 0 {
            return;
        }
        text += &format!("{what}:\n");
        for line in lines.lines.iter().take(LINES_SHOWN) {
            text += &format!("  {line}\n");
        }
        let shown = lines.lines.len().min(LINES_SHOWN) as u64;
        if lines.count > shown {
            text += &format!("  … and {} more\n", units::count(lines.count - shown));
        }
    };
    let segments = match report.segments_kept {
        true => "index segments that are damaged, and stay until all packs can be read".to_owned(),
        false => would("damaged index segments, replaced", "damaged index segments, would be replaced"),
    };
    list(segments, &report.bad_segments);
    list(would("packs put aside", "packs that would be put aside"), &report.hurt);
    list(
        "packs of which nothing can be used, since no index segment tells what is in them".into(),
        &report.useless,
    );
    list("recovery points that cannot be read, `penstock forget ID` removes one".into(), &report.points);
    list(
        "leases that cannot be read, `penstock gc` removes them when they are a day old".into(),
        &report.leases,
    );
    let records = match report.collectors.is_empty() {
        true => {
            would("records in gc/ that could not be read, removed", "records in gc/ that would be removed")
        }
        false => format!(
            "records in gc/ that cannot be read, and stay while a collection is under way ({}): run this again then",
            report.collectors.join(", ")
        ),
    };
    list(records, &report.records);
    let mut facts = Facts::default();
    facts.add("looked at", units::plural(report.packs, "pack"));
    if report.read_bytes > 0 {
        facts.add("read", units::size(report.read_bytes));
    }
    if report.new_rows > 0 {
        let rows = units::plural(report.new_rows, "row");
        let of = units::plural(report.unknown_packs, "pack");
        facts.add(would("index", "index, would get"), format!("{rows} anew, of {of} that it did not know"));
    }
    if report.moved.0 > 0 {
        let moved = format!("{} ({})", units::plural(report.moved.0, "content"), units::size(report.moved.1));
        facts.add(would("moved", "would move"), moved + " out of damaged packs");
    }
    if report.lost > 0 {
        facts.add(
            "lost",
            units::plural(report.lost, "content") + ": the next backup stores again what its source has",
        );
    }
    if report.aside_before > 0 {
        facts.add("put aside before", units::plural(report.aside_before, "pack"));
    }
    if report.archived > 0 {
        facts.add("archived", units::plural(report.archived, "pack") + ": thaw them and run this again");
    }
    spent.add_to(&mut facts);
    facts.add("time", units::duration(report.duration_ms));
    text += &facts.text();
    if report.is_clean() {
        text += "nothing had to be mended\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_say_what_was_done_and_what_is_lost() {
        let args = Args { read_data: true, dry_run: false };
        let mut report = RepairReport { packs: 7, ..RepairReport::default() };
        assert!(text(&args, &report, Spent::default()).contains("nothing had to be mended"));
        assert_eq!(exit(&args, &report), Exit::Done);
        report.hurt = Lines { lines: vec!["data/ab/x is damaged: a bad tag".into()], count: 60 };
        report.moved = (12, 1 << 20);
        assert_eq!(exit(&args, &report), Exit::Done, "all of it was moved");
        assert_eq!(exit(&Args { dry_run: true, ..args }, &report), Exit::Damage);
        report.lost = 1;
        let args = Args { read_data: true, dry_run: false };
        assert_eq!(exit(&args, &report), Exit::Damage);
        let words = text(&args, &report, Spent::default());
        for expected in
            ["packs put aside:\n  data/ab/x", "… and 59 more", "12 contents (1 MiB)", "1 content:"]
        {
            assert!(words.contains(expected), "{expected} in {words}");
        }
        let json = serde_json::to_value(json(&args, &report, Spent::default())).unwrap();
        assert_eq!(json["put_aside"]["count"], 60);
        assert_eq!(json["lost_contents"], 1);
    }
}
