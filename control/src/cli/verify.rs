//! `penstock verify`: is everything there, and is it what was written?

use penstock_engine::verify::{self, Hurt, VerifyOptions, VerifyReport};
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output::{self, JsonRange};
use super::progress::Kind;
use super::session::Session;
use super::spent::Spent;
use super::units;

/// Hurt ranges shown of each volume.
const RANGES_SHOWN: usize = 20;

const EXAMPLES: &str = "\
Examples:
  penstock verify                              structure: every manifest, every chunk in its place
  penstock verify --read-data                  and every byte
  penstock verify --read-data --sample 5%      and every byte of a twentieth of the packs
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

    /// Share of the packs whose data is read
    #[arg(long, value_name = "PERCENT", requires = "read_data", value_parser = units::parse_share)]
    sample: Option<f64>,
}

/// The result of `verify --json`.
#[derive(Serialize)]
struct Report<'a> {
    clean: bool,
    points: usize,
    nodes: u64,
    chunks: u64,
    packs: u64,
    archived_packs: u64,
    archived_bytes: u64,
    read_bytes: u64,
    read_bytes_per_s: u64,
    duration_ms: u64,
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
    ranges: Vec<JsonRange>,
}

/// Verifies.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let repo = session.repository_as_stored()?;
    let options = VerifyOptions {
        points: args.points.iter().map(|text| repo.resolve(text)).collect::<Result<_, _>>()?,
        read_data: args.read_data,
        sample: args.sample,
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
    Ok(match (report.is_clean(), args.read_data && report.archived_packs > 0) {
        (false, _) => Exit::Damage,
        (true, true) => Exit::InPart,
        (true, false) => Exit::Done,
    })
}

fn json(report: &VerifyReport, spent: Spent) -> Report<'_> {
    Report {
        clean: report.is_clean(),
        points: report.points,
        nodes: report.nodes,
        chunks: report.chunks,
        packs: report.packs,
        archived_packs: report.archived_packs,
        archived_bytes: report.archived_bytes,
        read_bytes: report.read_bytes,
        read_bytes_per_s: units::per_second(report.read_bytes, report.duration_ms) as u64,
        duration_ms: report.duration_ms,
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
    if report.is_clean() {
        return text + "nothing is damaged or missing\n";
    }
    text += &format!("{}:\n", units::plural(report.problems.len() as u64, "problem"));
    for problem in &report.problems {
        text += &format!("  {problem}\n");
    }
    if report.hurt.is_empty() {
        return text + "no recovery point that was checked is hurt by that\n";
    }
    text += "hurt by that:\n";
    for hurt in &report.hurt {
        let bytes = hurt.ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        text += &format!(
            "  {} ({}), volume {}: {} in {}\n",
            output::short_id(&hurt.point),
            hurt.name,
            hurt.volume,
            units::size(bytes),
            units::plural(hurt.ranges.len() as u64, "range"),
        );
        text += &output::ranges_text(&hurt.ranges, RANGES_SHOWN, "    ");
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
        assert!(text(&report).contains("no recovery point that was checked is hurt"));
        report.hurt.push(Hurt {
            point: "0123456789abcdef".into(),
            name: "web-01".into(),
            volume: "vda".into(),
            ranges: [(65_536, 131_072)].map(|(start, end)| start..end).to_vec(),
        });
        let words = text(&report);
        assert!(words.contains("0123456789ab (web-01), volume vda: 64 KiB in 1 range"), "{words}");
        let json = serde_json::to_value(json(&report, Spent::default())).unwrap();
        assert_eq!(json["clean"], false);
        assert_eq!(json["hurt"][0]["ranges"][0]["length"], 65_536);
        assert_eq!(json["requests"]["get"], 0);
    }
}
