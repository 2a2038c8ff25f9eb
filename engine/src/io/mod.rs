//! Block I/O: aligned buffers, the credit pool, and threads that read and write with io_uring or, where that is
//! refused, with pread and pwrite. With `unsafe` in three files: `aligned` (allocation), `claims` (locks and leases) and
//! `uring` (buffer traits).

pub mod aligned;
pub mod claims;
mod cursor;
pub mod durable;
pub mod engine;
pub mod fetch;
pub mod file;
pub mod pool;
mod pread_read;
mod pread_write;
pub mod read;
mod slots;
mod threads;
mod uring;
mod uring_read;
mod uring_write;
pub mod write;

pub use aligned::AlignedBuf;
pub use durable::DurableWriter;
pub use engine::{IoEngine, IoEngineChoice, choose};
pub use fetch::{FetchJob, Fetched, RangeSource, spawn_fetchers};
pub use file::OpenFile;
pub use pool::{BufPool, PooledBuf};
pub use read::{ReadDone, ReadJob, ReadResult, spawn_readers};
pub use write::{WriteJob, WriteResult, spawn_writers};
