//! What the user asks for.

use crate::aws::tags::Tags;
use crate::ec2backup::way::Wish;

/// Where the volumes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A new instance.
    Instance,
    /// Volumes that are attached nowhere.
    Volumes,
}

/// One of the recorded things: kept, left out, or another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// As recorded.
    #[default]
    Recorded,
    /// Without.
    None,
    /// This one.
    This(String),
}

impl Choice {
    /// What it comes to.
    pub fn of(&self, recorded: Option<String>) -> Option<String> {
        match self {
            Choice::Recorded => recorded,
            Choice::None => None,
            Choice::This(other) => Some(other.clone()),
        }
    }
}

/// What is asked for, besides the recovery point.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where to.
    pub destination: Destination,
    /// Names or devices of the volumes that are restored; all if there are none.
    pub only: Vec<String>,
    /// Names or devices of those that are not.
    pub without: Vec<String>,
    /// How they are written.
    pub wish: Wish,
    /// Start from snapshots of known recovery points.
    pub bases: bool,
    /// MiB/s of temporary volumes.
    pub throughput: u32,
    /// Availability zone.
    pub zone: Option<String>,
    /// `m5.large`.
    pub instance_type: Option<String>,
    /// `subnet-…`.
    pub subnet: Option<String>,
    /// `sg-…`; as recorded if there are none.
    pub groups: Vec<String>,
    /// Name of a key pair.
    pub key_pair: Choice,
    /// Name or ARN of an instance profile.
    pub profile: Choice,
    /// An address of the subnet: [`Choice::None`] for any.
    pub private_ip: Choice,
    /// Base64.
    pub user_data: Choice,
    /// Tags of the instance, besides those recorded.
    pub tags: Tags,
    /// Type of all volumes.
    pub volume_type: Option<String>,
    /// Encrypts all volumes; an empty one is the account's default key.
    pub kms_key: Option<String>,
    /// Launch from this image instead of the recovery point's root.
    pub image: Option<String>,
    /// Write the root from the repository although its image was kept.
    pub write_root: bool,
    /// Codes of licences that AWS charges for.
    pub billing_products: Vec<String>,
    /// For a trial: nothing that acts in the machine's name, and no way in or out.
    pub isolated: bool,
}
