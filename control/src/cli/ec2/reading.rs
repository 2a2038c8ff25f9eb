//! How snapshots are read: options of `ec2 backup` and `ec2 plan`.

use clap::ValueEnum;

use super::Reach;
use crate::aws::prices;
use crate::ec2backup::part::Reading;
use crate::ec2backup::way::{Way, Wish};

/// Options.
#[derive(clap::Args, Debug)]
pub struct ReadingArgs {
    /// How snapshots are read: attached as volumes, by the EBS direct APIs, or what is cheaper
    #[arg(long, value_enum, default_value_t)]
    read: ReadArg,

    /// MiB/s of temporary volumes; more than 125 costs extra
    #[arg(long, value_name = "MIB", default_value_t = prices::GP3_THROUGHPUT, value_parser = clap::value_parser!(u32).range(125..=2000))]
    volume_throughput: u32,
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

impl ReadingArgs {
    /// What they say.
    pub fn reading(&self, reach: &Reach) -> Reading {
        Reading {
            wish: match self.read {
                ReadArg::Auto => Wish::Auto,
                ReadArg::Attach => Wish::Only(Way::Attach),
                ReadArg::Direct => Wish::Only(Way::Direct),
            },
            throughput: self.volume_throughput,
            roots: reach.roots(),
        }
    }
}
