//! What a backup of a machine would read, which way, in what time and for how much. Nothing is made: what only a new snapshot could tell is estimated,
//! and it is said from what.

use penstock_engine::repo::Repository;
use serde::Serialize;

use super::anchor::{self, Anchors};
use super::chosen::{Chosen, Excluded};
use super::job::Order;
use super::look::{Look, Mode};
use super::way::{self, Decision, Estimate, Place, Way};
use super::{Error, Result};
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::Machine;
use crate::aws::direct::{self, Subject};
use crate::aws::error::{AwsError, Kind};
use crate::aws::prices;
use crate::aws::snapshots;

const GIB: u64 = 1 << 30;

/// What is assumed where nothing is known.
#[derive(Clone, Copy, Debug)]
pub struct Assumed {
    /// Part of the written data that changes until the next backup.
    pub changed_share: f64,
}

/// Of one machine.
#[derive(Clone, Debug, Serialize)]
pub struct MachinePlan {
    /// `i-…`.
    pub instance: String,
    /// Its tag `Name`.
    pub instance_name: String,
    /// How it would be copied.
    pub mode: Mode,
    /// Volumes that would be read.
    pub volumes: Vec<VolumePlan>,
    /// Volumes that would be left out.
    pub excluded: Vec<Excluded>,
    /// Bytes read.
    pub bytes: u64,
    /// Calls that cost something.
    pub requests: u64,
    /// Seconds of reading; the time that AWS takes for snapshots is not in it.
    pub seconds: f64,
    /// For requests, temporary volumes, and traffic to this place.
    pub usd: f64,
    /// What the snapshots that stay cost in a month, at most.
    pub kept_usd_month: f64,
    /// For the user.
    pub notes: Vec<String>,
}

/// Of one volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumePlan {
    /// `vol-…`.
    pub volume: String,
    /// `/dev/xvda`.
    pub device: String,
    /// Its size.
    pub size_bytes: u64,
    /// What was ever written of it; null if nothing tells.
    pub written_bytes: Option<u64>,
    /// The snapshot that changes will be counted from.
    pub anchor: Option<String>,
    /// Where the number of bytes comes from.
    pub known_from: String,
    /// The way, and why.
    #[serde(flatten)]
    pub decision: Decision,
    /// The other way.
    pub otherwise: Estimate,
    /// What its snapshot costs in a month if it stays, at most.
    pub kept_usd_month: f64,
}

/// How much there is to read.
struct Amount {
    bytes: u64,
    written: Option<u64>,
    from: String,
}

/// Plans. Without a repository it is the first backup. Waits for AWS, and not on its runtime: a repository far away waits there, too.
pub fn plan(
    aws: &Clients,
    proxy: Option<&Proxy>,
    order: &Order,
    assumed: Assumed,
    machine: Machine,
    repo: Option<&Repository>,
) -> Result<MachinePlan> {
    let look = aws.block_on(Look::at(aws, machine, &order.exclude, order.mode))?;
    let anchors = match repo {
        Some(repo) => {
            let id = &repo.config().repository_id;
            let all = aws.block_on(anchor::list(aws, id, &look.volumes()))?;
            Anchors::choose(repo, all)?
        }
        None => Anchors::default(),
    };
    let place = Place::of(aws, proxy);
    let mut notes = look.notes.clone();
    let mut volumes = Vec::new();
    for chosen in &look.chosen {
        let plan = volume(aws, &place, order, assumed, &anchors, chosen, look.mode, &mut notes);
        volumes.push(aws.block_on(plan)?);
    }
    let sum = |way: Way, of: fn(&Estimate) -> f64| -> Vec<f64> {
        volumes.iter().map(|v| &v.decision.estimate).filter(|e| e.way == way).map(of).collect()
    };
    // Calls share one rate; attached volumes are read side by side.
    let by_calls: f64 = sum(Way::Direct, |e| e.seconds).iter().sum();
    let attached = sum(Way::Attach, |e| e.seconds).into_iter().fold(0.0, f64::max);
    if let Some((_, way)) = place.traffic {
        notes.push(format!("what is read travels {way}: that is in the price"));
    }
    Ok(MachinePlan {
        instance: look.machine.id.clone(),
        instance_name: look.machine.name().to_owned(),
        mode: look.mode,
        bytes: volumes.iter().map(|v| v.decision.estimate.bytes).sum(),
        requests: volumes.iter().map(|v| v.decision.estimate.requests).sum(),
        seconds: by_calls.max(attached),
        // An empty sum of floats is -0.
        usd: volumes.iter().map(|v| v.decision.estimate.usd).sum::<f64>() + 0.0,
        kept_usd_month: volumes.iter().map(|v| v.kept_usd_month).sum::<f64>() + 0.0,
        volumes,
        excluded: look.excluded,
        notes,
    })
}

#[expect(clippy::too_many_arguments, reason = "all of them are what a volume's plan depends on")]
async fn volume(
    aws: &Clients,
    place: &Place,
    order: &Order,
    assumed: Assumed,
    anchors: &Anchors,
    chosen: &Chosen,
    mode: Mode,
    notes: &mut Vec<String>,
) -> Result<VolumePlan> {
    let size_gib = chosen.facts.size_gib;
    let anchor = anchors.of_volume.get(&chosen.facts.id).map(|snapshot| snapshot.id.clone());
    let amount = match &anchor {
        Some(anchor) => since(aws, anchors, anchor, chosen, assumed, notes).await?,
        None => in_full(aws, chosen, notes).await?,
    };
    let direct = Estimate::direct(amount.bytes, aws.rates, place);
    let attach = Estimate::attach(amount.bytes, size_gib, order.reading.throughput);
    let decision =
        way::decide(order.reading.wish, "--read", place, direct, attach).map_err(Error::Refused)?;
    let otherwise = if decision.estimate.way == Way::Direct { attach } else { direct };
    let of_image = mode == Mode::Ami && chosen.attached.root;
    let kept_bytes = amount.written.unwrap_or(size_gib * GIB);
    let kept_usd_month = match order.anchor || of_image {
        true => kept_bytes as f64 / GIB as f64 * prices::SNAPSHOT_GIB_MONTH,
        false => 0.0,
    };
    Ok(VolumePlan {
        volume: chosen.facts.id.clone(),
        device: chosen.attached.device.clone(),
        size_bytes: size_gib * GIB,
        written_bytes: amount.written,
        anchor,
        known_from: amount.from,
        decision,
        otherwise,
        kept_usd_month,
    })
}

/// Bytes that were ever written, as a snapshot's list of blocks says.
async fn written(
    aws: &Clients,
    chosen: &Chosen,
    snapshot: &str,
    notes: &mut Vec<String>,
) -> Result<Option<u64>> {
    let subject = Subject { snapshot: snapshot.to_owned(), size_bytes: chosen.facts.size_gib * GIB };
    match direct::written(aws, &subject).await {
        Ok(map) => Ok(Some(map.extents.total_bytes())),
        Err(error) if matches!(error.kind, Kind::Denied | Kind::NotFound) => {
            notes.push(format!("what was written of {} is not known: {error}", chosen.facts.id));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// With an anchor: as much as the last time, if that was no full read.
async fn since(
    aws: &Clients,
    anchors: &Anchors,
    anchor: &str,
    chosen: &Chosen,
    assumed: Assumed,
    notes: &mut Vec<String>,
) -> Result<Amount> {
    let written = written(aws, chosen, anchor, notes).await?;
    let size_bytes = chosen.facts.size_gib * GIB;
    let most = written.unwrap_or(size_bytes);
    let last = anchors.point.as_ref().and_then(|point| {
        let volume = point.volume(&chosen.facts.id)?;
        let changed = volume.counts.read_bytes;
        (point.parent.is_some() && changed < most).then_some((changed, &point.id))
    });
    Ok(match last {
        Some((changed, point)) => {
            Amount { bytes: changed, written, from: format!("as much as changed before {}", short(point)) }
        }
        None => {
            let share = assumed.changed_share;
            let bytes = (most as f64 * share) as u64;
            Amount { bytes, written, from: format!("an assumption: {:.1} % of it change", share * 100.0) }
        }
    })
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Without: what was written until the newest snapshot that anybody took.
async fn in_full(aws: &Clients, chosen: &Chosen, notes: &mut Vec<String>) -> Result<Amount> {
    let size_bytes = chosen.facts.size_gib * GIB;
    let newest = newest_snapshot(aws, &chosen.facts.id).await?;
    if let Some((snapshot, time)) = newest
        && let Some(bytes) = written(aws, chosen, &snapshot, notes).await?
    {
        let from = format!("what {snapshot} says was written until {time}");
        return Ok(Amount { bytes, written: Some(bytes), from });
    }
    let from = "at most: no snapshot tells what was ever written".into();
    Ok(Amount { bytes: size_bytes, written: None, from })
}

/// Its id and time.
async fn newest_snapshot(aws: &Clients, volume: &str) -> Result<Option<(String, String)>, AwsError> {
    let mut found = snapshots::completed_of(aws, &[volume.to_owned()], &[]).await?;
    found.sort_by(|a, b| a.started.cmp(&b.started));
    Ok(found.pop().map(|s| (s.id, s.started)))
}
