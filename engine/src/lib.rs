//! The data path of penstock.
pub mod error;
pub mod id;
pub mod limits;
pub use error::{Error, Result};
