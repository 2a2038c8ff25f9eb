//! The reader loop on io_uring: one thread, many jobs in flight.

use std::io;

use async_channel::Receiver;
use crossbeam::channel::Sender;

use super::pool::{BufPool, PooledBuf};
use super::read::{ReadJob, ReadResult, Reading};
use super::slots::Slots;
use super::threads::abandon;
use super::uring;

/// Serves `jobs` until it is closed. An error is that of the ring's set-up, and no job was taken.
pub(super) fn run<T: 'static>(
    depth: usize,
    jobs: &Receiver<ReadJob<T>>,
    pool: &BufPool,
    done: &Sender<ReadResult<T>>,
) -> io::Result<()> {
    uring::block_on(depth, dispatch(depth, jobs, pool, done))
}

async fn dispatch<T: 'static>(
    depth: usize,
    jobs: &Receiver<ReadJob<T>>,
    pool: &BufPool,
    done: &Sender<ReadResult<T>>,
) {
    let slots = Slots::new(depth);
    loop {
        let slot = slots.take().await;
        // The buffer first: a job taken without one could not be served by another thread that has one.
        let Some(buf) = pool.get().await else { break };
        let Ok(job) = jobs.recv().await else { break };
        let (jobs, done) = (jobs.clone(), done.clone());
        uring::spawn(async move {
            let result = read_job(job, buf).await;
            if done.send(result).is_err() {
                abandon(&jobs);
            }
            drop(slot);
        });
    }
    slots.drain().await;
}

async fn read_job<T>(job: ReadJob<T>, mut buf: PooledBuf) -> ReadResult<T> {
    let mut reading = Reading::new(job, &buf)?;
    while let Some((range, at)) = reading.next() {
        let result;
        (result, buf) = uring::read_at(&reading.job.file, buf, range, at).await;
        if let Err(e) = reading.advance(result) {
            return Err((reading.job.tag, e));
        }
    }
    Ok(reading.finish(buf))
}
