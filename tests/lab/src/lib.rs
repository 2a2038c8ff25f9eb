//! A server that behaves like AWS EC2, EBS, STS and IMDSv2 for what penstock does with them, with one store of real blocks behind all of it.
//!
//! [`Lab::start`] runs it in the calling process; the program `penstock-lab` runs it for others. What it is true to, and where it is not, is in `docs/LAB.md`.

#![recursion_limit = "256"]

pub mod access;
mod admin;
pub mod api;
pub mod blocks;
pub mod calls;
pub mod clock;
pub mod core;
pub mod devices;
mod ebs;
mod ec2;
pub mod faults;
pub mod http;
mod imds;
mod lab;
pub mod options;
mod policy;
mod quota;
pub mod scenario;
mod service;
mod setup;
mod sigv4;
mod stage;
pub mod state;
mod sts;

pub use crate::core::{Core, Settings};
pub use access::{KEY_ID, Key, Role, SECRET};
pub use calls::{CallRecord, Count};
pub use faults::{Fault, Rule};
pub use lab::Lab;
pub use options::{Bucket, Devices, Limits, Options, Quotas, Timing};
pub use scenario::{InstanceSpec, MissingType, Scenario, SubnetSpec, VolumeSpec};
pub use setup::Placed;
