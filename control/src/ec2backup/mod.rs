//! Backup of EC2 instances: what to read of a machine, which way, from what snapshots, and how all of it is taken away again.
//!
//! | noun | file |
//! |---|---|
//! | the volumes that are backed up, and those that are not | [`chosen`] |
//! | snapshots that tell what changed since a recovery point | [`anchor`] |
//! | ways to read, with their time and price | [`way`] |
//! | what a run has made, written down before and after | [`journal`] |
//! | one backup of one machine | [`job`] |
//! | leftovers | [`sweep`] |

pub mod anchor;
pub mod chosen;
pub mod job;
pub mod journal;
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
