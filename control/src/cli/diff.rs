//! `penstock diff`: what differs between two recovery points, from their manifests alone.

use penstock_engine::diff::{self, VolumeDiff};
use penstock_engine::format::point::{RecoveryPoint, Volume};
use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output::{self, JsonRange};
use super::session::Session;
use super::units;

/// Ranges shown without `--all`.
const RANGES_SHOWN: usize = 20;

const EXAMPLES: &str = "\
Examples:
  penstock diff 0192ab34cd56 latest
  penstock diff 0192ab34cd56 latest --all
  penstock diff 0192ab34cd56 latest:web-01 --json | jq '.volumes[].differing_bytes'";

/// Compare two recovery points; no data is read
///
/// Volumes are matched by name. Two points of one volume each are compared whatever their names.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The older recovery point: latest, latest:NAME, an id or the beginning of one
    #[arg(value_name = "POINT")]
    from: String,
    /// The newer one
    #[arg(value_name = "POINT")]
    to: String,
    /// Show all ranges, not only the first 20 of a volume
    #[arg(long)]
    all: bool,
}

/// The result of `diff --json`.
#[derive(Serialize)]
struct Report<'a> {
    from: &'a str,
    to: &'a str,
    differing_bytes: u64,
    volumes: Vec<VolumeReport<'a>>,
    only_in_from: Vec<&'a str>,
    only_in_to: Vec<&'a str>,
}

#[derive(Serialize)]
struct VolumeReport<'a> {
    name: &'a str,
    from_name: &'a str,
    size_bytes: u64,
    from_size_bytes: u64,
    differing_bytes: u64,
    nodes_read: u64,
    ranges: Vec<JsonRange>,
}

/// The volumes of two points, side by side.
struct Pairing<'a> {
    both: Vec<(&'a Volume, &'a Volume)>,
    only_in_from: Vec<&'a str>,
    only_in_to: Vec<&'a str>,
}

/// Compares them.
pub fn run(args: &Args, session: &Session) -> Outcome {
    let repo = session.repository()?;
    let (from, to) = (repo.resolve(&args.from)?, repo.resolve(&args.to)?);
    let pairing = pair(&from, &to);
    let mut compared = Vec::with_capacity(pairing.both.len());
    for &(old, new) in &pairing.both {
        compared.push((old, new, diff::volumes(&repo, old, new)?));
    }
    if session.globals.json {
        output::print_json(&report(&from, &to, &compared, &pairing))?;
    } else {
        let shown = if args.all { usize::MAX } else { RANGES_SHOWN };
        output::print(&text(&from, &to, &compared, &pairing, shown))?;
    }
    Ok(Exit::Done)
}

fn pair<'a>(from: &'a RecoveryPoint, to: &'a RecoveryPoint) -> Pairing<'a> {
    if let ([old], [new]) = (from.volumes.as_slice(), to.volumes.as_slice()) {
        return Pairing { both: vec![(old, new)], only_in_from: vec![], only_in_to: vec![] };
    }
    let without = |volumes: &'a [Volume], other: &RecoveryPoint| {
        volumes.iter().filter(|v| other.volume(&v.name).is_none()).map(|v| v.name.as_str()).collect()
    };
    Pairing {
        both: to.volumes.iter().filter_map(|new| from.volume(&new.name).map(|old| (old, new))).collect(),
        only_in_from: without(&from.volumes, to),
        only_in_to: without(&to.volumes, from),
    }
}

fn report<'a>(
    from: &'a RecoveryPoint,
    to: &'a RecoveryPoint,
    compared: &[(&'a Volume, &'a Volume, VolumeDiff)],
    pairing: &Pairing<'a>,
) -> Report<'a> {
    let volume = |(old, new, diff): &(&'a Volume, &'a Volume, VolumeDiff)| VolumeReport {
        name: &new.name,
        from_name: &old.name,
        size_bytes: new.size_bytes,
        from_size_bytes: old.size_bytes,
        differing_bytes: diff.differing_bytes,
        nodes_read: diff.nodes_read,
        ranges: diff.ranges.iter().map(JsonRange::from).collect(),
    };
    Report {
        from: &from.id,
        to: &to.id,
        differing_bytes: compared.iter().map(|(_, _, diff)| diff.differing_bytes).sum(),
        volumes: compared.iter().map(volume).collect(),
        only_in_from: pairing.only_in_from.clone(),
        only_in_to: pairing.only_in_to.clone(),
    }
}

fn text(
    from: &RecoveryPoint,
    to: &RecoveryPoint,
    compared: &[(&Volume, &Volume, VolumeDiff)],
    pairing: &Pairing<'_>,
    shown: usize,
) -> String {
    let title = |point: &RecoveryPoint| {
        format!("{} ({}, {})", output::short_id(&point.id), point.name, output::time(&point.started_at))
    };
    let mut text = format!("from {}\nto   {}\n", title(from), title(to));
    for (old, new, diff) in compared {
        let sizes = match old.size_bytes == new.size_bytes {
            true => units::size(new.size_bytes),
            false => format!("{}, was {}", units::size(new.size_bytes), units::size(old.size_bytes)),
        };
        text += &match diff.ranges.len() as u64 {
            0 => format!("{} ({sizes}): identical\n", new.name),
            ranges => format!(
                "{} ({sizes}): {} differ, {}, in {}\n",
                new.name,
                units::size(diff.differing_bytes),
                units::percent(diff.differing_bytes, new.size_bytes),
                units::plural(ranges, "range")
            ),
        };
        text += &output::ranges_text(&diff.ranges, shown, "  ");
    }
    for (names, which) in [(&pairing.only_in_from, "older"), (&pairing.only_in_to, "newer")] {
        for name in names {
            text += &format!("{name}: only in the {which} recovery point\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(volumes: &[&str]) -> RecoveryPoint {
        let volume = |name: &&str| {
            serde_json::json!({"name": name, "source": "s", "source_kind": "image", "size_bytes": 1 << 20,
                "logical_block_bytes": 512, "root": {"level": 0, "node": null}, "counts": {"read_bytes": 0,
                "zero_bytes": 0, "reused_bytes": 0, "chunks": 0, "new_chunks": 0, "new_bytes": 0, "stored_bytes": 0}})
        };
        serde_json::from_value(
            serde_json::json!({"id": "0".repeat(32), "name": "n", "started_at": "", "finished_at": "",
            "parent": null, "tags": {}, "host": "h", "program": "p",
            "volumes": volumes.iter().map(volume).collect::<Vec<_>>()}),
        )
        .unwrap()
    }

    #[test]
    fn volumes_are_matched_by_name() {
        let (from, to) = (point(&["a", "b", "c"]), point(&["b", "d"]));
        let pairing = pair(&from, &to);
        let names: Vec<_> =
            pairing.both.iter().map(|(old, new)| (old.name.as_str(), new.name.as_str())).collect();
        assert_eq!(names, [("b", "b")]);
        assert_eq!(pairing.only_in_from, ["a", "c"]);
        assert_eq!(pairing.only_in_to, ["d"]);
    }

    #[test]
    fn single_volumes_match_whatever_their_names() {
        let (from, to) = (point(&["nvme1n1"]), point(&["nvme2n1"]));
        let pairing = pair(&from, &to);
        let diff = VolumeDiff { ranges: vec![0..4096, 8192..12_288], differing_bytes: 8192, nodes_read: 2 };
        let compared = [(pairing.both[0].0, pairing.both[0].1, diff)];
        let json = serde_json::to_value(report(&from, &to, &compared, &pairing)).unwrap();
        assert_eq!(json["volumes"][0]["name"], "nvme2n1");
        assert_eq!(json["volumes"][0]["from_name"], "nvme1n1");
        assert_eq!(json["volumes"][0]["ranges"][1], serde_json::json!({"offset": 8192, "length": 4096}));
        let text = text(&from, &to, &compared, &pairing, 1);
        assert!(text.contains("8 KiB differ") && text.contains("… and 1 more"), "{text}");
    }
}
