//! `penstock ec2 doctor`: can EC2 instances be backed up from here, and what to do where they cannot.

mod permissions;
mod place;

use std::path::Path;

use super::super::check::{self, Check};
use super::super::exit::Outcome;
use super::super::session::Session;
use super::super::{host, units};
use super::Reach;
use crate::aws::AwsError;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::{self, Machine};
use crate::aws::error::{self, Kind};
use crate::aws::identity::{self, Clock};
use crate::aws::tags;
use crate::ec2run;
use crate::ec2run::journal::Runs;
use crate::ec2run::sweep::{self, Sweeping};

const EXAMPLES: &str = "\
Examples:
  penstock ec2 doctor
  penstock ec2 doctor i-0123456789abcdef0 --region eu-central-1
  penstock ec2 doctor --json | jq '.checks[] | select(.status != \"ok\")'

Nothing is changed: permissions are tried with DryRun, and those on things of penstock's own only where such things are.";

/// Check whether instances can be backed up from here: credentials, clock, permissions, leftovers; exit code 1 if anything fails
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Ask about this instance [default: the first one found in the region]
    #[arg(value_name = "INSTANCE")]
    instance: Option<String>,
}

/// Makes all checks.
pub fn run(args: &Args, reach: &Reach, session: &Session) -> Outcome {
    let aws = match reach.clients(session) {
        Ok(aws) => aws,
        Err(failure) => {
            let advice = "give --region, or set AWS_REGION or the region of the profile";
            return check::finish(session, &[Check::fail("region", failure.to_string(), advice)]);
        }
    };
    let state_dir = host::state_dir()?;
    let checks = aws.block_on(checks(&aws, args.instance.as_deref(), &reach.sys_dir, &state_dir))?;
    check::finish(session, &checks)
}

async fn checks(
    aws: &Clients,
    instance: Option<&str>,
    sys: &Path,
    state_dir: &Path,
) -> ec2run::Result<Vec<Check>> {
    let clock = Clock::default();
    let (mut checks, reached) = credentials(aws, &clock).await?;
    let proxy = aws.proxy().await;
    checks.push(place::this_instance(proxy.as_ref(), &aws.region, host::is_ec2(sys)));
    checks.push(place::clock(clock.ahead_s()));
    if !reached {
        let found = "not checked: EC2 does not answer these credentials";
        checks.push(Check::warn("permissions", found, "see above"));
        return Ok(checks);
    }
    let here = proxy.filter(|proxy| proxy.region == aws.region);
    let (found, machine) = find_instance(aws, instance, here.as_ref()).await?;
    checks.push(found);
    checks.extend(permissions::checks(aws, machine, here).await?);
    checks.push(leftovers(aws, state_dir).await?);
    Ok(checks)
}

/// What AWS makes of the credentials, and whether EC2 takes them.
async fn credentials(aws: &Clients, clock: &Clock) -> Result<(Vec<Check>, bool), AwsError> {
    const NAME: &str = "credentials";
    let region = Check::ok("region", aws.region.clone());
    let source = match identity::source(aws).await {
        Ok(source) => source,
        Err(error) => {
            return Ok((vec![Check::fail(NAME, error.message.clone(), error.advice()), region], false));
        }
    };
    let mut checks = Vec::new();
    match identity::caller(aws, clock).await {
        Ok(who) => checks.push(Check::ok(NAME, format!("{source}: {} (account {})", who.arn, who.account))),
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        // A refusal is one of the endpoint's own policy: who asks is known.
        Err(error) if error.kind == Kind::Denied && !error.is_refusal() => {
            return Ok((
                vec![Check::fail(NAME, format!("{source}: {}", error.said()), error.advice()), region],
                false,
            ));
        }
        Err(error) => checks.push(Check::warn(
            NAME,
            format!("{source}: whose they are is not known: {}", error.said()),
            "STS is not needed for backups; a VPC without internet access has an endpoint for each service",
        )),
    }
    checks.push(region);
    match identity::reach_ec2(aws, clock).await {
        Ok(()) => Ok((checks, true)),
        Err(error) if error.kind == Kind::Cancelled => Err(error),
        Err(error) => {
            let advice = match error.kind {
                Kind::Transient | Kind::Refused => "check --region and the network: a VPC without internet access needs endpoints for ec2 and ebs".into(),
                _ => error.advice(),
            };
            checks.push(Check::fail("EC2", error.said(), advice));
            Ok((checks, false))
        }
    }
}

/// The instance to ask about.
async fn find_instance(
    aws: &Clients,
    id: Option<&str>,
    here: Option<&Proxy>,
) -> Result<(Check, Result<Machine, String>), AwsError> {
    const NAME: &str = "instance";
    let found = match id {
        Some(id) => describe::machines_by_id(aws, &[id.to_owned()]).await,
        None => describe::machines(aws, &[], &[]).await,
    };
    let mut found = match found {
        Ok(found) => found,
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        Err(error) if error.is_refusal() => {
            let why = "instances cannot be listed".to_owned();
            return Ok((Check::warn(NAME, format!("not checked: {why}"), "see below"), Err(why)));
        }
        Err(error) => {
            let why = "the instance is not known".to_owned();
            return Ok((Check::fail(NAME, error.said(), error.advice()), Err(why)));
        }
    };
    // Others than this one are what is backed up, and than those that are being restored.
    let is_own = |m: &Machine| m.tags.contains_key(tags::RUN);
    found.sort_by_key(|m| {
        (is_own(m), here.is_some_and(|p| p.instance == m.id), m.attached.is_empty(), m.id.clone())
    });
    let Some(machine) = found.into_iter().next() else {
        let why = format!("no instance in {}", aws.region);
        let advice = "checks that need one are left out: is it the right region?";
        return Ok((Check::warn(NAME, format!("not checked: {why}"), advice), Err(why)));
    };
    let mut text = machine.id.clone();
    if !machine.name().is_empty() {
        text += &format!(" ({})", machine.name());
    }
    text += &format!(", {}", units::plural(machine.attached.len() as u64, "volume"));
    if id.is_none() {
        text += "; the first one found, name another to ask about that";
    }
    Ok((Check::ok(NAME, text), Ok(machine)))
}

/// What runs left that died.
async fn leftovers(aws: &Clients, state_dir: &Path) -> ec2run::Result<Check> {
    const NAME: &str = "leftovers";
    const ADVICE: &str =
        "`penstock ec2 sweep` takes them away, and so does the next backup what runs of this machine left";
    // Their locks are let go before the sweep looks at them.
    let dead = Runs::read(state_dir).map(|runs| runs.dead.len());
    let dead = match dead {
        Ok(dead) => dead as u64,
        Err(error) => {
            return Ok(Check::warn(NAME, format!("not checked: {error}"), "see PENSTOCK_STATE_DIR"));
        }
    };
    match sweep::sweep(aws, state_dir, Sweeping { dry_run: true, ..Sweeping::default() }).await {
        Ok(swept) if swept.removed.is_empty() && dead == 0 => {
            let kept = match swept.kept.len() as u64 {
                0 => "none".to_owned(),
                kept => {
                    format!("none; {} of runs under way, or of other machines", units::plural(kept, "thing"))
                }
            };
            Ok(Check::ok(NAME, kept))
        }
        Ok(swept) => {
            let ids: Vec<&str> = swept.removed.iter().take(5).map(|found| found.id.as_str()).collect();
            let more = if swept.removed.len() > ids.len() { ", …" } else { "" };
            let mut text = units::plural(swept.removed.len() as u64, "thing");
            if !ids.is_empty() {
                text += &format!(" ({}{more})", ids.join(", "));
            }
            if dead > 0 {
                text += &format!(", {}", units::plural(dead, "journal of a dead run"));
            }
            Ok(Check::warn(NAME, text, ADVICE))
        }
        Err(ec2run::Error::Aws(error)) if error.kind == Kind::Cancelled => Err(error.into()),
        Err(ec2run::Error::Aws(error)) if error.is_refusal() => {
            let found = format!("not checked: {} is needed", error::action_of(error.call));
            Ok(Check::warn(NAME, found, "see above"))
        }
        Err(error) => Ok(Check::warn(NAME, format!("not checked: {error}"), "see above")),
    }
}
