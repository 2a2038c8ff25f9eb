//! What a restore will do, decided before anything is made: for each volume where it starts from, how much is written and which way, and the new instance.
//! The plan is kept in the run's journal, and a restore that was killed goes on by it.

use penstock_engine::format::point::{RecoveryPoint, Volume};
use penstock_engine::repo::Repository;
use serde::{Deserialize, Serialize};

use super::base::{self, Base, Difference};
use super::machine::{ImagePlan, MachinePlan};
use super::order::{Destination, Order};
use super::recorded::{Recorded, RecordedVolume};
use super::way as write_way;
use super::{Error, Result};
use crate::aws::attach::Form;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::network;
use crate::aws::tags::Tags;
use crate::ec2backup::way::{self, Decision, Estimate, Place, Way};

const GIB: u64 = 1 << 30;

/// A restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Which recovery point.
    pub recovery_point: String,
    /// Its name.
    pub name: String,
    /// The time it stands for.
    pub started_at: String,
    /// Id of its repository.
    pub repository: String,
    /// Where it goes.
    pub region: String,
    /// Where volumes go that are no instance's.
    pub zone: String,
    /// Its volumes.
    pub volumes: Vec<VolumePlan>,
    /// The new instance.
    pub machine: Option<MachinePlan>,
    /// What goes again when it was tried.
    pub trial: bool,
    /// Bytes that are written at most.
    pub write_bytes: u64,
    /// Calls that cost something.
    pub requests: u64,
    /// Of writing, one volume after the other.
    pub seconds: f64,
    /// Of writing.
    pub usd: f64,
    /// For the user.
    pub notes: Vec<String>,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumePlan {
    /// Its name in the recovery point.
    pub volume: String,
    /// Where it will be: `/dev/sdf`.
    pub device: String,
    /// The root.
    pub root: bool,
    /// Bytes in the recovery point.
    pub size_bytes: u64,
    /// Its new size.
    pub size_gib: u64,
    /// What it starts from.
    pub base: Option<BasePlan>,
    /// What differs from that: bytes of chunks.
    pub differing_bytes: u64,
    /// Blocks of 512 KiB that they touch.
    pub differing_blocks: u64,
    /// How it is written.
    pub write: Write,
    /// Why, and what it takes.
    #[serde(flatten)]
    pub decision: Option<Decision>,
    /// The other way.
    pub otherwise: Option<Estimate>,
    /// What it becomes.
    pub form: Form,
    /// Tags of the user.
    pub tags: Tags,
    /// Whether it goes with its instance.
    pub delete_on_termination: Option<bool>,
    /// It has to come to a snapshot: for an image, or for another zone.
    pub as_snapshot: bool,
}

/// What a volume starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasePlan {
    /// `snap-…`.
    pub snapshot: String,
    /// The recovery point whose contents it has.
    pub recovery_point: String,
}

/// How a volume is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// Not at all: it comes with the image.
    Image,
    /// Not at all: there is a snapshot of just these contents.
    Nothing,
    /// By the EBS direct APIs.
    Direct,
    /// To a volume at the proxy.
    Attach,
}

impl Write {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Write::Image => "image",
            Write::Nothing => "nothing",
            Write::Direct => "direct",
            Write::Attach => "attach",
        }
    }
}

/// Plans. Waits for AWS, and not on its runtime: a repository far away waits there, too.
pub fn make(
    aws: &Clients,
    proxy: Option<&Proxy>,
    repo: &Repository,
    point: &RecoveryPoint,
    order: &Order,
) -> Result<Plan> {
    let mut notes = Vec::new();
    let recorded = match Recorded::of(point) {
        Ok(recorded) => Some(recorded),
        // Volumes of any recovery point can become EBS volumes.
        Err(_) if order.destination == Destination::Volumes => None,
        Err(error) => return Err(error),
    };
    let chosen = choose(point, recorded.as_ref(), order)?;
    let machine = match (&order.destination, &recorded) {
        (Destination::Instance, Some(recorded)) => {
            Some(aws.block_on(MachinePlan::make(aws, recorded, order, &mut notes))?)
        }
        _ => None,
    };
    let zone = match &machine {
        Some(machine) => machine.zone.clone(),
        None => aws.block_on(zone(aws, proxy, recorded.as_ref(), order))?,
    };
    let has_root = chosen.iter().any(|(_, facts)| facts.root);
    if machine.as_ref().is_some_and(|m| matches!(m.image, ImagePlan::Registered(_))) && !has_root {
        return Err(Error::Refused(
            "the recovery point has no root volume, or it is left out: launch from an image (--image ami-…), or restore volumes only (--volumes-only)".into(),
        ));
    }
    let repository = repo.config().repository_id.clone();
    let names: Vec<String> = chosen.iter().map(|(volume, _)| volume.name.clone()).collect();
    let candidates = match order.bases {
        true => aws.block_on(base::candidates(aws, &repository, &names))?,
        false => Default::default(),
    };
    let place = Place::of(aws, proxy);
    let mut volumes = Vec::new();
    for (volume, facts) in chosen {
        let of_image = machine.as_ref().is_some_and(|m| !matches!(m.image, ImagePlan::Registered(_)));
        let found = match facts.root && of_image {
            true => None,
            false => base::choose(repo, volume, candidates.get(&volume.name).map_or(&[], Vec::as_slice))?,
        };
        let planner = Planner { aws, proxy, place: &place, order, zone: &zone, machine: machine.is_some() };
        volumes.push(match facts.root && of_image {
            true => planner.of_image(volume, facts),
            false => planner.written(repo, volume, facts, found)?,
        });
    }
    let estimates = || volumes.iter().filter_map(|v| v.decision.as_ref()).map(|d| d.estimate);
    Ok(Plan {
        recovery_point: point.id.clone(),
        name: point.name.clone(),
        started_at: point.started_at.clone(),
        repository,
        region: aws.region.clone(),
        zone,
        write_bytes: estimates().map(|e| e.bytes).sum(),
        requests: estimates().map(|e| e.requests).sum(),
        // An empty sum of floats is -0.
        seconds: estimates().map(|e| e.seconds).sum::<f64>() + 0.0,
        usd: estimates().map(|e| e.usd).sum::<f64>() + 0.0,
        volumes,
        machine,
        trial: order.isolated,
        notes,
    })
}

/// The volumes that are meant, with what is known of each.
fn choose<'a>(
    point: &'a RecoveryPoint,
    recorded: Option<&Recorded>,
    order: &Order,
) -> Result<Vec<(&'a Volume, RecordedVolume)>> {
    let mut all: Vec<(&Volume, RecordedVolume)> = Vec::new();
    for volume in &point.volumes {
        let known = recorded.and_then(|r| r.volumes.iter().find(|v| v.id == volume.name)).cloned();
        all.push((volume, known.unwrap_or_else(|| unknown(&volume.name))));
    }
    let is = |text: &String, (volume, facts): &(&Volume, RecordedVolume)| {
        *text == volume.name || (!facts.device.is_empty() && *text == facts.device)
    };
    for text in order.only.iter().chain(&order.without) {
        if !all.iter().any(|item| is(text, item)) {
            let names: Vec<String> =
                all.iter().map(|(v, f)| format!("{} {}", v.name, f.device).trim().to_owned()).collect();
            return Err(Error::Refused(format!(
                "the recovery point has no volume {text}; it has: {}",
                names.join(", ")
            )));
        }
    }
    all.retain(|item| {
        let root_for_instance = item.1.root && order.destination == Destination::Instance;
        let wanted = order.only.is_empty() || root_for_instance || order.only.iter().any(|t| is(t, item));
        wanted && !order.without.iter().any(|t| is(t, item))
    });
    if all.is_empty() {
        return Err(Error::Refused("all volumes of the recovery point are left out".into()));
    }
    Ok(all)
}

fn unknown(name: &str) -> RecordedVolume {
    RecordedVolume {
        id: name.to_owned(),
        device: String::new(),
        root: false,
        form: Form { kind: "gp3".into(), ..Form::default() },
        tags: Tags::from([("Name".to_owned(), name.to_owned())]),
        delete_on_termination: None,
    }
}

/// Where volumes go: as asked, or where they were, or where this program runs.
async fn zone(
    aws: &Clients,
    proxy: Option<&Proxy>,
    recorded: Option<&Recorded>,
    order: &Order,
) -> Result<String> {
    let was = recorded
        .filter(|r| r.region == aws.region)
        .and_then(|r| r.instance(&["placement", "availabilityZone"]));
    let here = proxy.filter(|p| p.region == aws.region).map(|p| p.zone.clone());
    let Some(zone) = order.zone.clone().or(was).or(here) else {
        return Err(Error::Refused("in which availability zone? Choose by --zone".into()));
    };
    let zones = network::zones(aws).await?;
    if zones.contains(&zone) {
        return Ok(zone);
    }
    let names: Vec<&str> = zones.iter().map(String::as_str).collect();
    Err(Error::Refused(format!("{} has no zone {zone}; it has: {}", aws.region, names.join(", "))))
}

/// What the plans of all volumes depend on.
struct Planner<'a> {
    aws: &'a Clients,
    proxy: Option<&'a Proxy>,
    place: &'a Place,
    order: &'a Order,
    zone: &'a str,
    machine: bool,
}

impl Planner<'_> {
    fn form(&self, recorded: Form) -> Form {
        let mut form = recorded;
        if let Some(kind) = self.order.volume_type.as_ref().filter(|kind| **kind != form.kind) {
            // What belongs to a type does not outlive it.
            form = Form { kind: kind.clone(), iops: None, throughput: None, key: form.key };
        }
        if let Some(key) = &self.order.kms_key {
            form.key = Some(key.clone());
        }
        form
    }

    fn volume(&self, volume: &Volume, facts: RecordedVolume, write: Write) -> VolumePlan {
        VolumePlan {
            volume: volume.name.clone(),
            device: facts.device,
            root: facts.root,
            size_bytes: volume.size_bytes,
            size_gib: volume.size_bytes.div_ceil(GIB),
            base: None,
            differing_bytes: 0,
            differing_blocks: 0,
            write,
            decision: None,
            otherwise: None,
            form: self.form(facts.form),
            tags: facts.tags,
            delete_on_termination: facts.delete_on_termination,
            as_snapshot: false,
        }
    }

    fn of_image(&self, volume: &Volume, facts: RecordedVolume) -> VolumePlan {
        self.volume(volume, facts, Write::Image)
    }

    fn written(
        &self,
        repo: &Repository,
        volume: &Volume,
        facts: RecordedVolume,
        found: Option<Base>,
    ) -> Result<VolumePlan> {
        let all = match &found {
            Some(found) if found.difference.blocks == 0 => Difference::default(),
            _ => base::everything(repo, volume)?,
        };
        // A base of which most differs is no help, and the snapshot that is made would depend on it.
        let found = found.filter(|f| f.difference.blocks <= all.blocks);
        let difference = found.as_ref().map_or(all, |f| f.difference);
        let far = self.proxy.is_some_and(|proxy| proxy.zone != *self.zone);
        let mut plan = self.volume(volume, facts, Write::Nothing);
        plan.as_snapshot = far || (self.machine && plan.root);
        plan.differing_bytes = difference.bytes;
        plan.differing_blocks = difference.blocks;
        plan.base = found.map(|found| BasePlan { snapshot: found.snapshot, recovery_point: found.point.id });
        if plan.base.is_some() && difference.blocks == 0 {
            return Ok(plan);
        }
        let direct = write_way::direct(difference, self.aws.rates, self.place);
        let attach = write_way::attached(difference, plan.size_gib, self.order.throughput, plan.as_snapshot);
        let decision =
            way::decide(self.order.wish, "--write", self.place, direct, attach).map_err(Error::Refused)?;
        let (write, other) = match decision.estimate.way {
            Way::Direct => (Write::Direct, attach),
            Way::Attach => (Write::Attach, direct),
        };
        plan.write = write;
        plan.decision = Some(decision);
        plan.otherwise = Some(other);
        Ok(plan)
    }
}
