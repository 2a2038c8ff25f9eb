//! The data path of penstock.
pub mod chunker;
pub mod compress;
pub mod crypto;
pub mod error;
pub mod format;
pub mod id;
pub mod index;
pub mod io;
pub mod limits;
pub mod manifest;
pub mod pack;
pub mod repo;
pub mod run;
mod sealed;
pub mod source;
pub mod store;
pub use error::{Error, Result};
pub use run::{Progress, Run};
