//! Packs: frames are added to a builder, and taken out of a fetched range. Whoever needs contents takes them by
//! [`ChunkReader`].

mod builder;
mod chunks;
mod ends;
mod listing;
mod open;
mod reader;

pub use builder::{FinishedPack, PackBuilder, pack_buffer_bytes};
pub use chunks::{ChunkReader, Content, EachFrame};
pub use ends::{Ends, check_ends};
pub use listing::list_packs;
pub use open::{OpenOfKinds, OpenPack};
pub use reader::{FrameReader, Location, read_contents, read_toc};
