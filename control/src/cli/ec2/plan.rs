//! `penstock ec2 plan`: what a backup would read, how, in what time and for how much.

use penstock_engine::store::Place;
use serde::Serialize;

use super::super::exit::{Exit, Outcome};
use super::super::output::{self, Facts, Table};
use super::super::session::Session;
use super::super::units;
use super::Reach;
use super::order::OrderArgs;
use super::which::title;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::prices;
use crate::ec2backup::plan::{self, Assumed, MachinePlan, VolumePlan};

const EXAMPLES: &str = "\
Examples:
  penstock ec2 plan i-0123456789abcdef0
  penstock ec2 plan --tag backup=nightly --json | jq '[.machines[].usd] | add'
  penstock ec2 plan i-0123456789abcdef0 --read attach --volume-throughput 500

Nothing is made. With a repository the next backup is planned, without one the first.";

/// Say for each volume how it would be read, and what that takes in bytes, time, requests and money
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    order: OrderArgs,

    /// How much of the data changes until the next backup, where no earlier backup tells
    #[arg(long, value_name = "SHARE", default_value = "3%", value_parser = units::parse_share)]
    changed: f64,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    machines: &'a [MachinePlan],
    store: StoreTraffic,
    aws_calls: u64,
}

/// What it costs to bring data to the repository, besides its own prices.
#[derive(Serialize)]
struct StoreTraffic {
    usd_per_gib: f64,
    /// If all that is read is new, and does not compress.
    usd_at_most: f64,
    why: String,
}

/// Plans.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    let has_repo = session.globals.repo.as_deref().is_some_and(|url| !url.is_empty());
    let repo = has_repo.then(|| session.source()).transpose()?;
    let aws = reach.clients(session)?;
    let order = args.order.order(reach);
    let assumed = Assumed { changed_share: args.changed };
    let machines = aws.block_on(args.order.which.machines(&aws))?;
    let proxy = aws.block_on(aws.proxy());
    let mut plans = Vec::new();
    for machine in machines {
        session.interrupt.check()?;
        plans.push(plan::plan(&aws, proxy.as_ref(), &order, assumed, machine, repo.as_ref())?);
    }
    let bytes = plans.iter().map(|plan| plan.bytes).sum();
    let store = store_traffic(session, &aws, proxy.as_ref(), bytes)?;
    if session.globals.json {
        output::print_json(&Report { machines: &plans, store, aws_calls: aws.retry.counts().0 })?;
    } else {
        output::print(&text(&plans, &store))?;
    }
    Ok(Exit::Done)
}

fn store_traffic(
    session: &Session,
    aws: &Clients,
    proxy: Option<&Proxy>,
    bytes: u64,
) -> Result<StoreTraffic, super::super::exit::Failure> {
    let globals = &session.globals;
    let place = match globals.repo.as_deref() {
        Some(url) if !url.is_empty() => match Place::parse(url)? {
            Place::Bucket(place) => Some(place),
            Place::Dir(_) | Place::Memory => None,
        },
        _ => None,
    };
    let far = &globals.far;
    let (usd_per_gib, why) = match (&place, proxy) {
        (None, _) => (0.0, "no repository is named, or it is on this machine".to_owned()),
        (_, None) => (0.0, "this is no EC2 instance: your own network's price".to_owned()),
        (Some(place), Some(proxy)) if place.to_string().starts_with("s3://") => {
            let region = far.s3_region.as_deref().unwrap_or(&aws.region);
            if far.s3_endpoint.is_some() {
                (
                    prices::INTERNET_GIB,
                    "--s3-endpoint leads out of AWS, if it is no endpoint of the VPC".to_owned(),
                )
            } else if region == proxy.region {
                (0.0, format!("the bucket is in {region}, where this instance is"))
            } else {
                (
                    prices::BETWEEN_REGIONS_GIB,
                    format!("the bucket is in {region}, this instance in {}", proxy.region),
                )
            }
        }
        _ => (prices::INTERNET_GIB, "the repository is in another cloud".to_owned()),
    };
    let gib = bytes as f64 / (1u64 << 30) as f64;
    Ok(StoreTraffic { usd_per_gib, usd_at_most: usd_per_gib * gib, why })
}

fn usd(value: f64) -> String {
    format!("{value:.4}")
}

fn text(plans: &[MachinePlan], store: &StoreTraffic) -> String {
    let mut text = String::new();
    for plan in plans {
        text += &format!("{}\n", title(&plan.instance, &plan.instance_name));
        let mut table = Table::new(&[
            "volume",
            "device",
            ">size",
            ">to read",
            "way",
            ">time",
            ">requests",
            ">USD",
            ">kept USD/month",
        ]);
        for volume in &plan.volumes {
            table.row(row(volume));
        }
        text += &table.text();
        let mut facts = Facts::default();
        for volume in &plan.volumes {
            let since = volume.anchor.as_ref().map(|a| format!("since {a}, ")).unwrap_or_default();
            facts.add(&volume.volume, format!("{since}{}; {}", volume.known_from, volume.decision.why));
        }
        for left in &plan.excluded {
            facts.add(&left.volume, format!("left out {}", left.why));
        }
        text += &facts.text();
        plan.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text.push('\n');
    }
    let total = |of: fn(&MachinePlan) -> f64| plans.iter().map(of).sum::<f64>();
    let mut facts = Facts::default();
    facts.add("to read", units::size(plans.iter().map(|p| p.bytes).sum()));
    facts.add("reading", format!("about {:.4} USD", total(|p| p.usd)));
    let traffic = format!("{:.4} USD at most: {}", store.usd_at_most, store.why);
    facts.add("to the repository", traffic);
    let kept = total(|p| p.kept_usd_month);
    facts.add(
        "snapshots that stay",
        format!("{kept:.2} USD a month at most: less where the account has other snapshots of the volumes"),
    );
    text + &facts.text()
}

fn row(volume: &VolumePlan) -> Vec<String> {
    let estimate = &volume.decision.estimate;
    vec![
        volume.volume.clone(),
        volume.device.clone(),
        units::size(volume.size_bytes),
        units::size(estimate.bytes),
        estimate.way.name().to_owned(),
        units::seconds(estimate.seconds.ceil() as u64),
        units::count(estimate.requests),
        usd(estimate.usd),
        format!("{:.2}", volume.kept_usd_month),
    ]
}
