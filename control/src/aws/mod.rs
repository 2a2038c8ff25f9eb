//! What this program asks of AWS.

pub mod credentials;
