//! `penstock list`: recovery points.

use penstock_engine::dated::future_points;
use penstock_engine::format::point::{Counts, RecoveryPoint};
use penstock_engine::id::PointId;
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

/// Points of the future that a warning names.
const FUTURE_SHOWN: usize = 5;

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
    let repo = session.repository()?;
    let mut listed = repo.points()?;
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
    if let Some(warning) = future_warning(&listed, repo.unix_ms()) {
        tracing::warn!("{warning}");
    }
    let damaged = listed.iter().any(|item| matches!(item, Listed::Damaged { .. }));
    Ok(if damaged { Exit::Damage } else { Exit::Done })
}

/// True for a point that is dated in the future: it is nobody's latest.
pub fn is_of_the_future(point: &RecoveryPoint, now_ms: u64) -> bool {
    point.point_id().is_some_and(|id| !future_points(&[id], now_ms).is_empty())
}

/// What is to be said of points that are dated in the future; `None` if there are none.
pub fn future_warning(listed: &[Listed], now_ms: u64) -> Option<String> {
    let id = |item: &Listed| match item {
        Listed::Point(point) => point.point_id(),
        Listed::Damaged { id, .. } => PointId::from_hex(id),
    };
    let mut ids: Vec<PointId> = listed.iter().filter_map(id).collect();
    ids.sort_unstable();
    let future: Vec<String> =
        future_points(&ids, now_ms).iter().take(FUTURE_SHOWN).map(PointId::to_string).collect();
    let count = future_points(&ids, now_ms).len();
    let more = if count > future.len() { ", …" } else { "" };
    (count > 0).then(|| {
        format!(
            "{} dated in the future by this machine's clock ({}{more}): never `latest` and no parent; restore by id, \
             or take off by `penstock forget`",
            if count == 1 { "1 recovery point is".into() } else { format!("{count} recovery points are") },
            future.join(", ")
        )
    })
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

    /// A point of nothing.
    fn point_at(unix_ms: u64) -> Listed {
        let id = PointId::at(unix_ms).unwrap();
        let json = serde_json::json!({
            "id": id.to_string(), "name": "m", "started_at": "", "finished_at": "", "parent": null, "tags": {},
            "host": "h", "program": "p", "volumes": [],
        });
        Listed::Point(RecoveryPoint::from_json("p", json.to_string().as_bytes(), &id).unwrap())
    }

    #[test]
    fn points_of_the_future_are_warned_of() {
        let now_ms = 1_700_000_000_000;
        let mut listed = vec![point_at(now_ms - 1000), point_at(now_ms + 1000)];
        assert_eq!(future_warning(&listed, now_ms), None);
        listed.push(point_at(now_ms + 86_400_000));
        let Listed::Point(future) = &listed[2] else { panic!("not a point") };
        assert!(is_of_the_future(future, now_ms));
        let warning = future_warning(&listed, now_ms).unwrap();
        assert!(warning.contains("1 recovery point is dated") && warning.contains(&future.id), "{warning}");
        let id = PointId::at(now_ms + 90_000_000).unwrap().to_string();
        listed.push(Listed::Damaged { id, error: Error::Cancelled });
        assert!(future_warning(&listed, now_ms).unwrap().starts_with("2 recovery points are dated"));
    }

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
