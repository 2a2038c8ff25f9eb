//! `penstock stats`: how large a repository is, and what deduplication and compression do for it.

use penstock_engine::stats::{self, NameStats, Stats};
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output::{self, Facts, Table};
use super::session::Session;
use super::spent::Spent;
use super::units;

const EXAMPLES: &str = "\
Examples:
  penstock stats
  penstock stats --json | jq '{stored_bytes, dedup_ratio}'";

/// Show sizes and ratios of the repository
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// The result of `stats --json`.
#[derive(Serialize)]
struct Report<'a> {
    points: u64,
    logical_bytes: u64,
    data_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    dedup_ratio: f64,
    compression_ratio: f64,
    data_packs: u64,
    meta_packs: u64,
    meta_bytes: u64,
    index_segments: u64,
    index_bytes: u64,
    chunks: u64,
    names: Vec<NameReport<'a>>,
    #[serde(flatten)]
    spent: Spent,
}

#[derive(Serialize)]
struct NameReport<'a> {
    name: &'a str,
    points: u64,
    logical_bytes: u64,
    data_bytes: u64,
    stored_bytes: u64,
}

/// Collects and shows them.
pub fn run(_: &Args, session: &Session) -> Outcome {
    let repo = session.repository()?;
    let stats = stats::collect(&repo)?;
    if session.globals.json {
        output::print_json(&json(&stats, Spent::of(&repo)))?;
    } else {
        output::print(&text(&stats, repo.requests()))?;
    }
    Ok(Exit::Done)
}

fn json(stats: &Stats, spent: Spent) -> Report<'_> {
    Report {
        points: stats.points,
        logical_bytes: stats.logical_bytes,
        data_bytes: stats.data_bytes,
        unique_bytes: stats.unique_bytes,
        stored_bytes: stats.stored_bytes,
        dedup_ratio: stats.dedup_ratio(),
        compression_ratio: stats.compression_ratio(),
        data_packs: stats.data_packs,
        meta_packs: stats.meta_packs,
        meta_bytes: stats.meta_bytes,
        index_segments: stats.index_segments,
        index_bytes: stats.index_bytes,
        chunks: stats.chunks,
        names: stats.names.iter().map(name_report).collect(),
        spent,
    }
}

fn name_report(stats: &NameStats) -> NameReport<'_> {
    NameReport {
        name: &stats.name,
        points: stats.points,
        logical_bytes: stats.logical_bytes,
        data_bytes: stats.data_bytes,
        stored_bytes: stats.stored_bytes,
    }
}

fn text(stats: &Stats, requests: penstock_engine::store::Requests) -> String {
    let with = |bytes: u64, what: String| format!("{:>10}  {what}", units::size(bytes));
    let mut facts = Facts::default();
    facts.add(
        "disks",
        with(stats.logical_bytes, format!("in {}", units::plural(stats.points, "recovery point"))),
    );
    facts.add("data", with(stats.data_bytes, "of them are not zero".into()));
    let chunks = units::plural(stats.chunks, "chunk");
    facts.add(
        "unique",
        with(stats.unique_bytes, format!("in {chunks}, deduplicated {:.1} : 1", stats.dedup_ratio())),
    );
    let packs = units::plural(stats.data_packs, "pack");
    facts.add(
        "stored",
        with(stats.stored_bytes, format!("in {packs}, compressed {:.1} : 1", stats.compression_ratio())),
    );
    facts.add("manifests", with(stats.meta_bytes, format!("in {}", units::plural(stats.meta_packs, "pack"))));
    facts.add(
        "index",
        with(stats.index_bytes, format!("in {}", units::plural(stats.index_segments, "segment"))),
    );
    let mut table = Table::new(&["name", ">points", ">disks", ">data", ">stored"]);
    for name in &stats.names {
        table.row(vec![
            name.name.clone(),
            units::count(name.points),
            units::size(name.logical_bytes),
            units::size(name.data_bytes),
            units::size(name.stored_bytes),
        ]);
    }
    let names = if stats.names.is_empty() { String::new() } else { format!("\n{}", table.text()) };
    let asked = format!(
        "\nasked of the store: {} get, {} list\n",
        units::count(requests.get),
        units::count(requests.list)
    );
    facts.text() + &names + &asked
}
