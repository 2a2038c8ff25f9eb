//! `penstock show`: one recovery point in full.

use penstock_engine::backup::findings::{CONTAINER, UNLISTED, UNREADABLE, ranges_of};
use penstock_engine::format::point::{RecoveryPoint, Volume};

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

/// Ranges of a volume that are shown; --json has all of them.
const RANGES_SHOWN: usize = 40;

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
            source_text(volume),
        ]);
    }
    let amiss: String = point.volumes.iter().map(amiss_text).collect();
    format!("recovery point {}\n{}\n{}{amiss}", point.id, facts.text(), volumes.text())
}

fn source_text(volume: &Volume) -> String {
    let mut kind = volume.source_kind.clone();
    if let Some(container) = volume.other.get(CONTAINER).and_then(|value| value.as_str()) {
        kind += &format!(", {container}");
    }
    if volume.logical_block_bytes > 1 {
        kind += &format!(", {}-byte sectors", volume.logical_block_bytes);
    }
    format!("{} ({kind})", volume.source)
}

/// What is not as it was on the source.
fn amiss_text(volume: &Volume) -> String {
    let mut text = String::new();
    for (member, what) in [
        (UNREADABLE, "could not be read, and is stored as zeros"),
        (
            UNLISTED,
            "had changed although the list of changes did not name it; what else it missed is not known",
        ),
    ] {
        let ranges = ranges_of(volume, member);
        if !ranges.is_empty() {
            text +=
                &format!("{}: {what}:\n{}", volume.name, output::ranges_text(&ranges, RANGES_SHOWN, "  "));
        }
    }
    text
}
