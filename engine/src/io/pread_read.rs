//! The reader loop without io_uring: a thread for each job in flight.

use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use async_channel::Receiver;
use crossbeam::channel::Sender;

use super::pool::{BufPool, PooledBuf};
use super::read::{ReadJob, ReadResult, Reading};
use super::threads::abandon;

/// Serves `jobs` until it is closed. `turnstile` lets one of the threads wait for a job at a time, so that the others
/// do not sit on buffers meanwhile.
pub(super) fn run<T>(
    turnstile: &Mutex<()>,
    jobs: &Receiver<ReadJob<T>>,
    pool: &BufPool,
    done: &Sender<ReadResult<T>>,
) {
    loop {
        let (buf, job) = {
            // Guards no data, so a poisoned one is as good.
            let _turn = turnstile.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(buf) = pool.get_blocking() else { return };
            let Ok(job) = jobs.recv_blocking() else { return };
            (buf, job)
        };
        if done.send(read_job(job, buf)).is_err() {
            abandon(jobs);
            return;
        }
    }
}

fn read_job<T>(job: ReadJob<T>, mut buf: PooledBuf) -> ReadResult<T> {
    let mut reading = Reading::new(job, &buf)?;
    while let Some((range, at)) = reading.next() {
        let result = reading.job.file.file.read_at(&mut buf[range], at);
        if let Err(e) = reading.advance(result) {
            return Err((reading.job.tag, e));
        }
    }
    Ok(reading.finish(buf))
}
