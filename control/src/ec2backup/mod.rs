//! Backup of EC2 instances: what to read of a machine, which way, from what snapshots, and how all of it is taken away again.
//!
//! | noun | file |
//! |---|---|
//! | the volumes that are backed up, and those that are not | [`chosen`] |
//! | snapshots that tell what changed since a recovery point | [`anchor`] |
//! | ways to read, with their time and price | [`way`] |
//! | what there is before anything is made | [`look`] |
//! | what a run has made, and not taken away | [`ledger`], written down before and after: [`journal`] |
//! | the snapshots it takes | [`shots`] |
//! | a volume that is read | [`part`] |
//! | one backup of one machine | [`job`], and what it would take: [`plan`] |
//! | snapshots that stay by the user's wish | [`retained`] |
//! | leftovers | [`sweep`] |

pub mod anchor;
pub mod chosen;
pub mod job;
pub mod journal;
pub mod ledger;
pub mod look;
pub mod part;
pub mod plan;
pub mod retained;
pub mod shots;
pub mod sweep;
pub mod way;

use crate::aws::AwsError;

/// Why a backup of a machine did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// AWS.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// The engine, or this machine.
    #[error(transparent)]
    Engine(#[from] penstock_engine::Error),
    /// It cannot be done as asked.
    #[error("{0}")]
    Refused(String),
}

/// The result of what stands here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
