//! `penstock ec2 list`: instances and their volumes, with the last recovery point.

use std::collections::BTreeMap;

use penstock_engine::repo::Listed;
use serde::Serialize;

use super::super::exit::{Exit, Failure, Outcome};
use super::super::output::{self, Table};
use super::super::session::Session;
use super::super::{args, list as cli_list, units};
use super::Reach;
use crate::aws::describe::{self, Machine, VolumeFacts};
use crate::aws::retry::Patience;
use crate::aws::tags;

const EXAMPLES: &str = "\
Examples:
  penstock ec2 list
  penstock ec2 list --tag env=prod --region eu-central-1
  penstock ec2 list --json | jq -r '.[] | select(.last_recovery_point == null) | .instance'";

/// List instances and their volumes, with the last recovery point of each (if a repository is named)
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only instances with this tag; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = args::parse_tag)]
    tags: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Row {
    instance: String,
    name: String,
    state: String,
    instance_type: String,
    platform: String,
    zone: String,
    volumes: Vec<VolumeRow>,
    size_bytes: u64,
    last_recovery_point: Option<Last>,
}

#[derive(Serialize)]
struct VolumeRow {
    volume: String,
    device: String,
    root: bool,
    size_bytes: u64,
    volume_type: String,
    encrypted: bool,
}

#[derive(Serialize, Clone)]
struct Last {
    id: String,
    time: String,
}

/// Lists them.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    let aws = reach.clients(session)?;
    let filters: Vec<_> = args.tags.iter().map(|(key, value)| tags::filter(key, value)).collect();
    let (machines, volumes) = aws.block_on(async {
        let machines = describe::machines(&aws, &[], &filters).await?;
        let ids: Vec<String> = machines.iter().flat_map(|m| &m.attached).map(|a| a.volume.clone()).collect();
        let mut volumes = Vec::new();
        for ids in ids.chunks(200) {
            volumes.extend(describe::volumes(&aws, ids, &[], Patience::USUAL).await?);
        }
        Ok::<_, crate::aws::AwsError>((machines, volumes))
    })?;
    let last = last_points(session)?;
    let mut rows: Vec<Row> = machines.iter().map(|m| row(m, &volumes, last.get(&m.id))).collect();
    rows.sort_by(|a, b| (&a.name, &a.instance).cmp(&(&b.name, &b.instance)));
    if session.globals.json {
        output::print_json(&rows)?;
    } else if rows.is_empty() {
        output::print(&format!("no instances in {}\n", aws.region))?;
    } else {
        output::print(&text(&rows))?;
    }
    Ok(Exit::Done)
}

/// The newest recovery point by name; none without a repository.
fn last_points(session: &Session) -> Result<BTreeMap<String, Last>, Failure> {
    if session.globals.repo.as_deref().is_none_or(str::is_empty) {
        return Ok(BTreeMap::new());
    }
    let mut last = BTreeMap::new();
    let repo = session.repository()?;
    for listed in repo.points()? {
        if let Listed::Point(point) = listed
            && !cli_list::is_of_the_future(&point, repo.unix_ms())
        {
            last.insert(point.name.clone(), Last { id: point.id.clone(), time: point.started_at.clone() });
        }
    }
    Ok(last)
}

fn row(machine: &Machine, volumes: &[VolumeFacts], last: Option<&Last>) -> Row {
    let rows: Vec<VolumeRow> = machine
        .attached
        .iter()
        .filter_map(|at| {
            let volume = volumes.iter().find(|v| v.id == at.volume)?;
            Some(VolumeRow {
                volume: volume.id.clone(),
                device: at.device.clone(),
                root: at.root,
                size_bytes: volume.size_gib << 30,
                volume_type: volume.kind.clone(),
                encrypted: volume.encrypted,
            })
        })
        .collect();
    Row {
        instance: machine.id.clone(),
        name: machine.name().to_owned(),
        state: machine.state.clone(),
        instance_type: machine.instance_type.clone(),
        platform: machine.platform.clone(),
        zone: machine.zone.clone(),
        size_bytes: rows.iter().map(|v| v.size_bytes).sum(),
        volumes: rows,
        last_recovery_point: last.cloned(),
    }
}

fn text(rows: &[Row]) -> String {
    let mut table = Table::new(&[
        "instance",
        "name",
        "state",
        "type",
        "platform",
        "zone",
        ">volumes",
        ">size",
        "last recovery point",
    ]);
    for row in rows {
        let last = row.last_recovery_point.as_ref();
        table.row(vec![
            row.instance.clone(),
            row.name.clone(),
            row.state.clone(),
            row.instance_type.clone(),
            row.platform.clone(),
            row.zone.clone(),
            row.volumes.len().to_string(),
            units::size(row.size_bytes),
            last.map_or("-".into(), |l| format!("{} {}", output::short_id(&l.id), output::time(&l.time))),
        ]);
        for volume in &row.volumes {
            let mut cells = vec![
                format!("  {}", volume.volume),
                volume.device.clone(),
                String::new(),
                volume.volume_type.clone(),
                if volume.encrypted { "encrypted".into() } else { String::new() },
            ];
            cells.extend([String::new(), String::new(), units::size(volume.size_bytes), String::new()]);
            table.row(cells);
        }
    }
    table.text()
}
