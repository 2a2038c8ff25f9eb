//! What is to be backed up and how it is read: options of `ec2 backup` and `ec2 plan`.

use clap::ValueEnum;

use super::Reach;
use super::which::Which;
use crate::aws::prices;
use crate::ec2backup::job::Order;
use crate::ec2backup::part::Reading;
use crate::ec2backup::way::{Way, Wish};

/// Options.
#[derive(clap::Args, Debug)]
pub struct OrderArgs {
    /// Which instances and volumes.
    #[command(flatten)]
    pub which: Which,

    /// How snapshots are read: attached as volumes, by the EBS direct APIs, or what is cheaper
    #[arg(long, value_enum, default_value_t)]
    read: ReadArg,

    /// MiB/s of temporary volumes; more than 125 costs extra
    #[arg(long, value_name = "MIB", default_value_t = prices::GP3_THROUGHPUT, value_parser = clap::value_parser!(u32).range(125..=2000))]
    volume_throughput: u32,

    /// Keep no snapshots in the account: the next backup reads everything
    #[arg(long)]
    no_anchor: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum ReadArg {
    /// What is cheaper in money and time
    #[default]
    Auto,
    /// Temporary volumes attached to this instance
    Attach,
    /// The EBS direct APIs, from anywhere
    Direct,
}

impl OrderArgs {
    /// What they say.
    pub fn order(&self, reach: &Reach) -> Order {
        let wish = match self.read {
            ReadArg::Auto => Wish::Auto,
            ReadArg::Attach => Wish::Only(Way::Attach),
            ReadArg::Direct => Wish::Only(Way::Direct),
        };
        Order {
            mode: self.which.mode(),
            reading: Reading { wish, throughput: self.volume_throughput, roots: reach.roots() },
            exclude: self.which.exclude(),
            anchor: !self.no_anchor,
        }
    }
}
