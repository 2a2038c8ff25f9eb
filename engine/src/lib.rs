//! The data path of penstock.
pub mod crypto;
pub mod error;
pub mod format;
pub mod id;
pub mod limits;
pub use error::{Error, Result};
