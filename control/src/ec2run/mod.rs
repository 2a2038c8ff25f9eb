//! What a run makes in an account, and how all of it is taken away again, whatever becomes of the run.
//!
//! | noun | file |
//! |---|---|
//! | what was made, written down before and after | [`journal`] |
//! | the same in memory, for one run: [`ledger`] | |
//! | leftovers of runs that died | [`sweep`] |

pub mod journal;
pub mod ledger;
pub mod sweep;

use crate::aws::AwsError;

/// Why a run did not work.
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
