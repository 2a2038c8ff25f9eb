//! The writer loop on io_uring: one thread, many jobs in flight.

use std::io;

use async_channel::Receiver;
use crossbeam::channel::Sender;

use super::slots::Slots;
use super::threads::abandon;
use super::uring;
use super::write::{WriteJob, WriteResult, Writing};

/// Serves `jobs` until it is closed. An error is that of the ring's set-up, and no job was taken.
pub(super) fn run<T: 'static>(
    depth: usize,
    jobs: &Receiver<WriteJob<T>>,
    done: &Sender<WriteResult<T>>,
) -> io::Result<()> {
    uring::block_on(depth, dispatch(depth, jobs, done))
}

async fn dispatch<T: 'static>(depth: usize, jobs: &Receiver<WriteJob<T>>, done: &Sender<WriteResult<T>>) {
    let slots = Slots::new(depth);
    loop {
        let slot = slots.take().await;
        let Ok(job) = jobs.recv().await else { break };
        let (jobs, done) = (jobs.clone(), done.clone());
        uring::spawn(async move {
            let result = write_job(job).await;
            if done.send(result).is_err() {
                abandon(&jobs);
            }
            drop(slot);
        });
    }
    slots.drain().await;
}

async fn write_job<T>(job: WriteJob<T>) -> WriteResult<T> {
    let (mut writing, mut buf) = Writing::new(job)?;
    while let Some((range, at)) = writing.next() {
        let result;
        (result, buf) = uring::write_at(&writing.file, buf, range, at).await;
        if let Err(e) = writing.advance(result) {
            return Err((writing.tag, e));
        }
    }
    Ok(writing.finish())
}
