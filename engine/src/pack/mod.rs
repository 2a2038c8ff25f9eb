//! Packs: frames are added to a builder, and taken out of a fetched range.

mod builder;
mod listing;
mod reader;

pub use builder::{FinishedPack, PackBuilder, pack_buffer_bytes};
pub use listing::list_packs;
pub use reader::{FrameReader, Location, read_contents, read_toc};
