//! Keys and sealing: from a passphrase to the master key, from the master key to one key per object, and the
//! authenticated regions of an object. Nothing here prints, logs or formats key material.

pub mod keys;
pub mod seal;
pub mod wrap;

pub use keys::RepoKeys;
pub use seal::ObjectKey;
