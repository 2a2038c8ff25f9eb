//! The writer loop without io_uring: a thread for each job in flight.

use std::os::unix::fs::FileExt;

use async_channel::Receiver;
use crossbeam::channel::Sender;

use super::threads::abandon;
use super::write::{WriteJob, WriteResult, Writing};

/// Serves `jobs` until it is closed.
pub(super) fn run<T>(jobs: &Receiver<WriteJob<T>>, done: &Sender<WriteResult<T>>) {
    while let Ok(job) = jobs.recv_blocking() {
        if done.send(write_job(job)).is_err() {
            abandon(jobs);
            return;
        }
    }
}

fn write_job<T>(job: WriteJob<T>) -> WriteResult<T> {
    let (mut writing, buf) = Writing::new(job)?;
    let bytes = writing.bytes();
    for piece in &mut writing.pieces {
        while let Some((range, at)) = piece.next() {
            let result = writing.file.file.write_at(&buf[range], at);
            if let Err(e) = piece.advance(result, &writing.file) {
                return Err((writing.tag, e));
            }
        }
    }
    Ok((writing.tag, bytes))
}
