//! Options of `penstock ec2 restore`.

use std::path::PathBuf;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use clap::ValueEnum;

use super::super::super::args;
use super::super::super::exit::Failure;
use super::super::super::thaw::ThawArgs;
use crate::aws::prices;
use crate::ec2backup::way::{Way, Wish};
use crate::ec2restore::order::{Choice, Destination, Order};
use crate::ec2restore::trial::Trial;

const EXAMPLES: &str = "\
Examples:
  penstock ec2 restore latest:i-0123456789abcdef0 --dry-run
  penstock ec2 restore latest:i-0123456789abcdef0
  penstock ec2 restore 0192ab34cd56 --zone eu-central-1b --instance-type m6i.large --key-pair rescue
  penstock ec2 restore 0192ab34cd56 --image ami-0123456789abcdef0         another root, the point's data volumes
  penstock ec2 restore 0192ab34cd56/vol-0123456789abcdef0 --volumes-only  one volume, attached nowhere
  penstock ec2 restore 0192ab34cd56/vol-0123456789abcdef0 --onto vol-0123456789abcdef0    back in place, by what changed since
  penstock ec2 restore latest:i-0123456789abcdef0 --test --check-tcp 443  does it start and answer? Everything goes again

Without --volumes-only or --onto a new instance is launched, as the recovery point's was. What fails is undone;
what was killed is continued with --resume, or undone by `penstock ec2 sweep` or the next restore of that point.
To a file: `penstock restore POINT/VOLUME disk.img`, or disk.qcow2 with --format qcow2.";

/// Restore an instance, or volumes of it: writes only what differs from snapshots that are there
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// latest, latest:INSTANCE, an id or the beginning of one; /VOLUME for one volume
    #[arg(value_name = "POINT[/VOLUME]")]
    pub point: String,

    /// Restore volumes and attach them nowhere
    #[arg(long)]
    pub volumes_only: bool,

    /// Write over this volume, one of a stopped instance or one that is attached nowhere or here; VOLUME= where the point has several. Without --base, --compare or --force, an anchor tells what to read and write
    #[arg(long, value_name = "[VOLUME=]TARGET", conflicts_with_all = ["volumes_only", "test"])]
    pub onto: Vec<String>,

    /// With --onto: the volume holds this recovery point, write what differs from it
    #[arg(long, value_name = "POINT", requires = "onto")]
    pub base: Option<String>,

    /// With --onto: read the volume, write what differs
    #[arg(long, requires = "onto", conflicts_with = "base")]
    pub compare: bool,

    /// With --onto: overwrite what the volume holds
    #[arg(long, requires = "onto")]
    pub force: bool,

    /// Only this volume, by name or device; may be repeated. The root of a new instance always comes along
    #[arg(long = "volume", value_name = "VOLUME")]
    only: Vec<String>,

    /// Not this volume, by name or device; may be repeated
    #[arg(long, value_name = "VOLUME")]
    without: Vec<String>,

    /// How volumes are written: by the EBS direct APIs into snapshots, to volumes attached to this instance, or what is cheaper
    #[arg(long, value_enum, default_value_t)]
    write: WriteArg,

    /// Write everything, also where a snapshot holds a part of it already
    #[arg(long)]
    pub no_base: bool,

    /// MiB/s of temporary volumes; more than 125 costs extra
    #[arg(long, value_name = "MIB", default_value_t = prices::GP3_THROUGHPUT, value_parser = clap::value_parser!(u32).range(125..=2000))]
    volume_throughput: u32,

    /// Say what would be done, in what time and for how much, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Continue a restore of this point that was killed
    #[arg(long, conflicts_with = "dry_run")]
    pub resume: bool,

    /// If it fails, leave what was made: --resume goes on with it
    #[arg(long)]
    pub keep: bool,

    /// Volumes written at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub parallel: u8,

    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    pub trial: TrialArgs,

    /// Archived data
    #[command(flatten)]
    pub thaw: ThawArgs,
}

/// Where it goes and what it gets.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "New instance and volumes (defaults: as recorded)")]
struct PlaceArgs {
    /// Availability zone
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,

    /// Instance type
    #[arg(long, value_name = "TYPE")]
    instance_type: Option<String>,

    /// Subnet
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<String>,

    /// Security group, by id; may be repeated
    #[arg(long = "security-group", value_name = "GROUP")]
    groups: Vec<String>,

    /// Key pair, or none
    #[arg(long, value_name = "NAME|none")]
    key_pair: Option<String>,

    /// Instance profile, by name or ARN, or none
    #[arg(long, value_name = "PROFILE|none")]
    iam_profile: Option<String>,

    /// Private address, or same: the one it had [default: any]
    #[arg(long, value_name = "ADDRESS|same")]
    private_ip: Option<String>,

    /// User data from a file, or none
    #[arg(long, value_name = "FILE|none")]
    user_data: Option<PathBuf>,

    /// A further tag of the instance; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = args::parse_tag)]
    tags: Vec<(String, String)>,

    /// Type of all volumes
    #[arg(long, value_name = "TYPE")]
    volume_type: Option<String>,

    /// Encrypt all volumes with this KMS key, by ARN, or default: the account's
    #[arg(long, value_name = "ARN|default")]
    kms_key: Option<String>,

    /// Launch from this image: the point's own root is not restored
    #[arg(long, value_name = "AMI", conflicts_with = "volumes_only")]
    image: Option<String>,

    /// Write the root from the repository although mode ami kept its image
    #[arg(long, conflicts_with = "image")]
    write_root: bool,

    /// Code of a licence that AWS charges for, in the image made of the root; may be repeated
    #[arg(long = "billing-product", value_name = "CODE")]
    billing_products: Vec<String>,
}

/// Whether and how it is tried.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Restore test")]
pub struct TrialArgs {
    /// Restore, launch in isolation, wait for AWS's status checks, report, and take everything away
    #[arg(long, conflicts_with_all = ["volumes_only", "keep"])]
    pub test: bool,

    /// With --test: this TCP port has to answer
    #[arg(long, value_name = "PORT", requires = "test")]
    check_tcp: Option<u16>,

    /// With --test: this command has to succeed; it finds PENSTOCK_INSTANCE and PENSTOCK_ADDRESS
    #[arg(long, value_name = "COMMAND", requires = "test")]
    check_command: Option<String>,

    /// With --test: seconds for the checks
    #[arg(long, value_name = "SECONDS", requires = "test", default_value_t = 900)]
    check_timeout: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum WriteArg {
    /// What is cheaper in money and time
    #[default]
    Auto,
    /// Volumes attached to this instance
    Attach,
    /// The EBS direct APIs, from anywhere
    Direct,
}

fn choice(text: Option<&str>) -> Choice {
    match text {
        None => Choice::Recorded,
        Some("none") => Choice::None,
        Some(other) => Choice::This(other.to_owned()),
    }
}

impl Args {
    /// What they say. `volume`: what stands behind the slash of the point.
    pub fn order(&self, volume: Option<&str>) -> Result<Order, Failure> {
        let place = &self.place;
        let user_data = match &place.user_data {
            None => Choice::Recorded,
            Some(path) if path.as_os_str() == "none" => Choice::None,
            Some(path) => {
                let bytes = std::fs::read(path).map_err(Failure::io("read", path.display()))?;
                Choice::This(BASE64_STANDARD.encode(bytes))
            }
        };
        let private_ip = match place.private_ip.as_deref() {
            None => Choice::None,
            Some("same") => Choice::Recorded,
            Some(address) => Choice::This(address.to_owned()),
        };
        Ok(Order {
            destination: if self.volumes_only { Destination::Volumes } else { Destination::Instance },
            only: self.only.iter().cloned().chain(volume.map(str::to_owned)).collect(),
            without: self.without.clone(),
            wish: match self.write {
                WriteArg::Auto => Wish::Auto,
                WriteArg::Attach => Wish::Only(Way::Attach),
                WriteArg::Direct => Wish::Only(Way::Direct),
            },
            bases: !self.no_base,
            throughput: self.volume_throughput,
            zone: place.zone.clone(),
            instance_type: place.instance_type.clone(),
            subnet: place.subnet.clone(),
            groups: place.groups.clone(),
            key_pair: choice(place.key_pair.as_deref()),
            profile: choice(place.iam_profile.as_deref()),
            private_ip,
            user_data,
            tags: place.tags.iter().cloned().collect(),
            volume_type: place.volume_type.clone(),
            kms_key: place
                .kms_key
                .as_ref()
                .map(|key| if key == "default" { String::new() } else { key.clone() }),
            image: place.image.clone(),
            write_root: place.write_root,
            billing_products: place.billing_products.clone(),
            isolated: self.trial.test,
        })
    }

    /// MiB/s of temporary volumes.
    pub fn throughput(&self) -> u32 {
        self.volume_throughput
    }

    /// How the instance is tried. `from`: the address that the checks come from.
    pub fn trial(&self, from: Option<String>) -> Option<Trial> {
        let of = &self.trial;
        of.test.then(|| Trial {
            port: of.check_tcp,
            command: of.check_command.clone(),
            time: Duration::from_secs(of.check_timeout),
            from,
        })
    }
}
