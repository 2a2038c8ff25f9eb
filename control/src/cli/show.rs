//! `penstock show`: one recovery point in full.

use penstock_engine::format::point::RecoveryPoint;

use super::exit::{Exit, Outcome};
use super::list;
use super::output::{self, Facts, Table};
use super::session::Session;
use super::units;

const EXAMPLES: &str = "\
Examples:
  penstock show latest
  penstock show latest:web-01
  penstock show 0192ab34cd56 --json | jq .volumes";

/// Show all about a recovery point
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// latest, latest:NAME, an id or the beginning of one
    point: String,
}

/// Shows it.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let point = session.repository()?.resolve(&args.point)?;
    if session.globals.json {
        output::print_json(&point)?;
    } else {
        output::print(&text(&point))?;
    }
    Ok(Exit::Done)
}

fn text(point: &RecoveryPoint) -> String {
    let mut facts = Facts::default();
    facts.add("name", &point.name);
    facts.add("time", &point.started_at);
    facts.add("finished", &point.finished_at);
    facts.add("parent", point.parent.as_deref().unwrap_or("none"));
    if !point.tags.is_empty() {
        facts.add("tags", list::tags_text(point));
    }
    facts.add("made by", format!("{} on {}", point.program, point.host));
    for (key, value) in &point.other {
        facts.add(key, value.to_string());
    }
    let mut volumes =
        Table::new(&["volume", ">size", ">read", ">zero", ">reused", ">new", ">stored", ">chunks", "source"]);
    for volume in &point.volumes {
        let counts = &volume.counts;
        volumes.row(vec![
            volume.name.clone(),
            units::size(volume.size_bytes),
            units::size(counts.read_bytes),
            units::size(counts.zero_bytes),
            units::size(counts.reused_bytes),
            units::size(counts.new_bytes),
            units::size(counts.stored_bytes),
            units::count(counts.chunks),
            match volume.logical_block_bytes {
                0 | 1 => format!("{} ({})", volume.source, volume.source_kind),
                sector => format!("{} ({}, {sector}-byte sectors)", volume.source, volume.source_kind),
            },
        ]);
    }
    format!("recovery point {}\n{}\n{}", point.id, facts.text(), volumes.text())
}
