//! Restore of EC2 instances and volumes: what is there to start from, what has to be written and which way, the new instance, and how all of it is undone if
//! it fails. What is made in the account is noted in [`crate::ec2run`].
//!
//! | noun | file |
//! |---|---|
//! | what the user asks for | [`order`] |
//! | the machine as it was | [`recorded`] |
//! | snapshots of known contents to start from | [`base`] |
//! | ways to write, with their time and price | [`way`] |
//! | the new instance | [`machine`] |
//! | what will be done | [`plan`] |
//! | one volume, written | [`writing`] |
//! | the restore | [`job`] |
//! | handing over what was restored | `handover` |
//! | volumes that exist, written over | [`onto`] |
//! | trying the new instance | [`trial`] |
//! | what a recovery point kept in the account | [`kept`] |

pub mod base;
mod handover;
pub mod job;
pub mod kept;
pub mod machine;
pub mod onto;
pub mod order;
pub mod plan;
pub mod recorded;
pub mod trial;
pub mod way;
pub mod writing;

pub use crate::ec2run::{Error, Result};
