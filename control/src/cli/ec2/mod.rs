//! `penstock ec2`: EC2 instances without a server.

mod backup;
mod doctor;
mod iam_policy;
pub mod kept;
mod list;
mod order;
mod plan;
mod restore;
mod snapshot;
mod sweep;
mod which;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use penstock_engine::Error;
use penstock_engine::store::object::Runtime;

use super::exit::{Failure, Outcome};
use super::session::Session;
use crate::aws::clients::{Clients, Options};
use crate::aws::error::{AwsError, Kind};
use crate::aws::limiter::Rates;
use crate::aws::resolver::Roots;
use crate::ec2run;

const EXAMPLES: &str = "\
Examples:
  penstock ec2 list
  penstock ec2 plan i-0123456789abcdef0
  penstock ec2 backup i-0123456789abcdef0
  penstock ec2 backup --tag backup=nightly --read auto
  penstock ec2 restore latest:i-0123456789abcdef0 --dry-run
  penstock ec2 sweep --dry-run
  penstock ec2 doctor

Credentials and region are found as the AWS command line finds them; AWS_ENDPOINT_URL_EC2, _EBS and _STS name other endpoints.";

/// Back up and restore EC2 instances through snapshots, attached volumes and the EBS direct APIs
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

/// How AWS is reached.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "EC2 options")]
struct Reach {
    /// AWS region of the instances [default: as the AWS command line]
    #[arg(long, global = true, env = "PENSTOCK_EC2_REGION", hide_env_values = true, value_name = "REGION")]
    region: Option<String>,

    /// Profile of the AWS configuration [default: AWS_PROFILE]
    #[arg(long, global = true, env = "PENSTOCK_EC2_PROFILE", hide_env_values = true, value_name = "NAME")]
    profile: Option<String>,

    /// GetSnapshotBlock calls a second that this run may make: the account's quota, or its share of it
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_EBS_GET_RATE",
        hide_env_values = true,
        value_name = "N",
        default_value_t = 1000
    )]
    ebs_get_rate: u32,

    /// PutSnapshotBlock calls a second, likewise
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_EBS_PUT_RATE",
        hide_env_values = true,
        value_name = "N",
        default_value_t = 1000
    )]
    ebs_put_rate: u32,

    /// Calls a second that list blocks
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_EBS_LIST_RATE",
        hide_env_values = true,
        value_name = "N",
        default_value_t = 50
    )]
    ebs_list_rate: u32,

    /// What stands for /dev
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_EC2_DEV",
        hide = true,
        value_name = "DIR",
        default_value = "/dev"
    )]
    dev_dir: PathBuf,

    /// What stands for /sys
    #[arg(
        long,
        global = true,
        env = "PENSTOCK_EC2_SYS",
        hide = true,
        value_name = "DIR",
        default_value = "/sys"
    )]
    sys_dir: PathBuf,
}

#[derive(Subcommand, Debug)]
enum Verb {
    List(list::Args),
    Plan(plan::Args),
    Backup(backup::Args),
    Snapshot(snapshot::Args),
    Restore(Box<restore::Args>),
    Sweep(sweep::Args),
    Doctor(doctor::Args),
    IamPolicy(iam_policy::Args),
}

/// Does it.
pub fn run(args: &Args, session: &Session) -> Outcome {
    match &args.verb {
        Verb::List(verb) => list::run(verb, &args.reach, session),
        Verb::Plan(verb) => plan::run(verb, &args.reach, session),
        Verb::Backup(verb) => backup::run(verb, &args.reach, session),
        Verb::Snapshot(verb) => snapshot::run(verb, &args.reach, session),
        Verb::Restore(verb) => restore::run(verb, &args.reach, session),
        Verb::Sweep(verb) => sweep::run(verb, &args.reach, session),
        Verb::Doctor(verb) => doctor::run(verb, &args.reach, session),
        Verb::IamPolicy(verb) => iam_policy::run(verb),
    }
}

impl Args {
    /// What an interrupted run leaves.
    pub fn interrupted_text(&self) -> &'static str {
        match self.verb {
            Verb::Backup(_) => {
                "interrupted; snapshots and volumes it made are removed, what was stored is found again by the next run"
            }
            Verb::Restore(_) => {
                "interrupted; what it made is removed, and volumes it took are back (with --keep: --resume goes on)"
            }
            Verb::Snapshot(_) => "interrupted; sets that were not complete are removed",
            _ => "interrupted",
        }
    }
}

impl Reach {
    /// For verbs that have no such options.
    fn of_environment(region: &str) -> Self {
        Self {
            region: Some(region.to_owned()),
            profile: std::env::var("PENSTOCK_EC2_PROFILE").ok().filter(|name| !name.is_empty()),
            ebs_get_rate: 0,
            ebs_put_rate: 0,
            ebs_list_rate: 0,
            dev_dir: "/dev".into(),
            sys_dir: "/sys".into(),
        }
    }

    /// Clients of the services.
    fn clients(&self, session: &Session) -> Result<Arc<Clients>, Failure> {
        self.clients_in(session, None)
    }

    /// As [`clients`](Self::clients), in another region where the user names none.
    fn clients_in(&self, session: &Session, region: Option<&str>) -> Result<Arc<Clients>, Failure> {
        let options = Options {
            region: self.region.clone().or_else(|| region.map(str::to_owned)),
            profile: self.profile.clone(),
            rates: Rates { get: self.ebs_get_rate, put: self.ebs_put_rate, list: self.ebs_list_rate },
        };
        let runtime = Runtime::start()?;
        Ok(Arc::new(Clients::connect(runtime, &options, session.interrupt.flag())?))
    }

    fn roots(&self) -> Roots {
        Roots { dev: self.dev_dir.clone(), sys: self.sys_dir.clone() }
    }
}

impl From<AwsError> for Failure {
    fn from(error: AwsError) -> Self {
        match error.kind {
            Kind::Cancelled => Failure::Engine(Error::Cancelled),
            _ => Failure::Failed(error.to_string()),
        }
    }
}

impl From<ec2run::Error> for Failure {
    fn from(error: ec2run::Error) -> Self {
        match error {
            ec2run::Error::Aws(error) => error.into(),
            ec2run::Error::Engine(error) => Failure::Engine(error),
            ec2run::Error::Refused(why) => Failure::Failed(why),
        }
    }
}
