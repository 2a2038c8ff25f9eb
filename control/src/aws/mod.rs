//! What this program asks of AWS.
//!
//! | noun | file |
//! |---|---|
//! | credentials for object stores | [`credentials`] |
//! | clients of the services, and who asks | [`clients`] |
//! | what went wrong, with the request's id and what to do | [`error`] |
//! | the one retry layer | [`retry`] |
//! | what may be done: the permissions it takes, who asks and by which clock, and trials | [`permissions`], [`identity`], [`trial`] |
//! | rates that the account allows | [`limiter`] |
//! | what it costs | [`prices`] |
//! | tags of what this program makes | [`tags`] |
//! | instances, volumes, images as they are | [`describe`], and whole, as AWS says it: [`whole`] |
//! | new instances, and where they go | [`launch`], [`network`] |
//! | snapshots, images: made, waited for, deleted | [`snapshots`], [`images`] |
//! | volumes at instances | [`attach`], their devices [`resolver`] |
//! | snapshots read and written by the EBS direct APIs | [`direct`] |

pub mod attach;
pub mod clients;
pub mod credentials;
pub mod describe;
pub mod direct;
pub mod error;
pub mod identity;
pub mod images;
pub mod launch;
pub mod limiter;
pub mod network;
pub mod permissions;
pub mod prices;
pub mod resolver;
pub mod retry;
pub mod snapshots;
pub mod tags;
pub mod trial;
pub mod whole;
pub mod xml;

pub use error::AwsError;
