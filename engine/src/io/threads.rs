//! Starting the I/O threads, and ending them early.

use std::thread::{Builder, JoinHandle};

use async_channel::Receiver;

use crate::error::{Error, Result};

/// Threads for one set of readers or writers without io_uring. More in flight than this gains nothing on NVMe.
pub(super) const PREAD_THREADS_MAX: usize = 32;

/// Starts `count` threads named `name-0` and so on, each with the body that `body_of` makes for its number.
pub(super) fn spawn_all<F: FnOnce() + Send + 'static>(
    name: &str,
    count: usize,
    body_of: impl Fn(usize) -> F,
) -> Result<Vec<JoinHandle<()>>> {
    (0..count)
        .map(|no| {
            let name = format!("{name}-{no}");
            Builder::new()
                .name(name.clone())
                .spawn(body_of(no))
                .map_err(Error::io("start", format!("thread {name}")))
        })
        .collect()
}

/// Nobody wants results any more: refuse and drop the jobs, which also ends the other threads.
pub(super) fn abandon<J>(jobs: &Receiver<J>) {
    jobs.close();
    while jobs.try_recv().is_ok() {}
}
