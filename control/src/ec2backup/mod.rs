//! Backup of EC2 instances: what to read of a machine, which way, from what snapshots. What it makes in the account is noted in [`crate::ec2run`].
//!
//! | noun | file |
//! |---|---|
//! | the volumes that are backed up, and those that are not | [`chosen`] |
//! | snapshots that tell what changed since a recovery point | [`anchor`] |
//! | ways to read, with their time and price | [`way`] |
//! | what there is before anything is made | [`look`] |
//! | the snapshots it takes | [`shots`] |
//! | a volume that is read | [`part`] |
//! | one backup of one machine | [`job`], and what it would take: [`plan`] |
//! | snapshots that stay by the user's wish | [`retained`] |

pub mod anchor;
pub mod chosen;
pub mod job;
pub mod look;
pub mod part;
pub mod plan;
pub mod retained;
pub mod shots;
pub mod way;

pub use crate::ec2run::{Error, Result};
