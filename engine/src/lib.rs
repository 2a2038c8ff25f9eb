//! The data path of penstock.
pub mod backup;
pub mod chunker;
pub mod cold;
pub mod compress;
pub mod copy;
pub mod crypto;
pub mod dated;
pub mod diff;
pub mod environment;
pub mod error;
mod fan;
pub mod forget;
pub mod format;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod gc;
mod gc_state;
pub mod id;
pub mod index;
pub mod io;
pub mod lease;
pub mod limits;
pub mod lock;
pub mod manifest;
pub mod pack;
pub mod repair;
pub mod repo;
pub mod restore;
pub mod retention;
pub mod run;
mod sealed;
#[cfg(feature = "simulation")]
pub mod simulation;
#[cfg(not(feature = "simulation"))]
mod simulation;
pub mod source;
pub mod stats;
pub mod store;
pub mod target;
pub mod verify;
mod write_session;
pub use error::{Error, Result};
pub use run::{Progress, Run};
