//! Pure bytes: encoders and decoders of every repository object, as laid down in `docs/FORMAT.md`. No I/O, no keys, no threads.
//! Decoders take hostile bytes: they return an error that names the object and the field, and allocate nothing they have not checked.

pub mod bytes;
pub mod collection;
pub mod config;
pub mod header;
pub mod index_segment;
pub mod index_tail;
pub mod node;
pub mod pack;
pub mod plain;
pub mod point;

/// The version of every object kind that this program writes, and the highest it reads.
pub const VERSION: u16 = 1;
