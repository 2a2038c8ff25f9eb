//! `penstock list`: recovery points.

use penstock_engine::format::point::{Counts, RecoveryPoint};
use penstock_engine::repo::Listed;
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output::{self, Table};
use super::session::Session;
use super::{args, units};

const EXAMPLES: &str = "\
Examples:
  penstock list
  penstock list web-01
  penstock list --json | jq -r '.[].id'";

/// List recovery points, oldest first
///
/// A recovery point that cannot be read is listed as damaged, and the exit code is 12.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only those of this machine
    #[arg(value_parser = args::parse_name)]
    name: Option<String>,
}

/// An element of `list --json`.
#[derive(Serialize)]
#[serde(untagged)]
enum Element<'a> {
    Point(&'a RecoveryPoint),
    Damaged { id: &'a str, damaged: String },
}

/// Lists them.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let mut listed = session.repository()?.points()?;
    if let Some(name) = &args.name {
        // Whose a damaged point is cannot be known: it stays.
        listed.retain(|item| !matches!(item, Listed::Point(point) if point.name != *name));
    }
    if session.globals.json {
        output::print_json(&listed.iter().map(element).collect::<Vec<_>>())?;
    } else if listed.is_empty() {
        let whose = args.name.as_ref().map(|name| format!(" of {name:?}")).unwrap_or_default();
        output::print(&format!(
            "no recovery points{whose} yet: `penstock backup SOURCE --name NAME` makes one\n"
        ))?;
    } else {
        output::print(&text(&listed))?;
    }
    let damaged = listed.iter().any(|item| matches!(item, Listed::Damaged { .. }));
    Ok(if damaged { Exit::Damage } else { Exit::Done })
}

fn element(item: &Listed) -> Element<'_> {
    match item {
        Listed::Point(point) => Element::Point(point),
        Listed::Damaged { id, error } => Element::Damaged { id, damaged: error.to_string() },
    }
}

/// What a point's backup did with all its volumes.
pub fn totals(point: &RecoveryPoint) -> Counts {
    let mut totals = Counts::default();
    for volume in &point.volumes {
        totals += volume.counts;
    }
    totals
}

/// `env=prod, team=db`.
pub fn tags_text(point: &RecoveryPoint) -> String {
    point.tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

fn text(listed: &[Listed]) -> String {
    let mut table = Table::new(&["id", "time", "name", ">volumes", ">size", ">stored", "tags"]);
    let mut damage = String::new();
    for item in listed {
        match item {
            Listed::Point(point) => table.row(vec![
                output::short_id(&point.id).into(),
                output::time(&point.started_at),
                point.name.clone(),
                point.volumes.len().to_string(),
                units::size(point.volumes.iter().map(|volume| volume.size_bytes).sum()),
                units::size(totals(point).stored_bytes),
                tags_text(point),
            ]),
            Listed::Damaged { id, error } => {
                let dash = || "-".to_owned();
                table.row(vec![
                    output::short_id(id).into(),
                    dash(),
                    "DAMAGED".into(),
                    dash(),
                    dash(),
                    dash(),
                    "".into(),
                ]);
                damage += &format!("damaged {id}: {error}\n");
            }
        }
    }
    table.text() + &damage
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_engine::Error;

    #[test]
    fn damaged_points_are_listed_as_such() {
        let id = "0123456789abcdef".repeat(2);
        let item = Listed::Damaged { id: id.clone(), error: Error::damaged("points/01", "a bad tag") };
        let json = serde_json::to_value(element(&item)).unwrap();
        assert_eq!(json["id"], id);
        assert!(json["damaged"].as_str().unwrap().contains("a bad tag"));
        let text = text(&[item]);
        assert!(
            text.contains("0123456789ab") && text.contains("DAMAGED") && text.contains("a bad tag"),
            "{text}"
        );
    }
}
