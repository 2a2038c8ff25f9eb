//! Fetcher threads: what reader threads are, for volumes that have no descriptor and are read by requests (a snapshot behind an API).
//!
//! A fetcher waits for its source first and takes a buffer of the pool afterwards, so that many requests can be in flight with few buffers. What the
//! answers hold meanwhile is the source's to bound.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_channel::Receiver;
use bytes::Bytes;
use crossbeam::channel::Sender;

use super::cursor::widen;
use super::pool::{BufPool, PooledBuf};
use super::read::{ReadDone, ReadResult};
use super::threads;
use crate::error::{Error, Result};

/// A volume that is read by requests.
pub trait RangeSource: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// Calls of [`RangeSource::fetch`] that may be under way at a time.
    fn parallel(&self) -> usize;

    /// Gets the `ranges`, which are relative to `offset_bytes`. Waits for the answers; called on several threads.
    fn fetch(&self, offset_bytes: u64, ranges: &[Range<u32>]) -> Result<Fetched>;
}

/// What came.
pub struct Fetched {
    /// Bytes by their place relative to the job's offset. They may reach beyond the ranges; parts of the ranges that are in none of them are zero.
    pub parts: Vec<(u32, Bytes)>,
    /// As `parts`, but got from elsewhere: they do not count as read.
    pub kept: Vec<(u32, Bytes)>,
    /// Dropped when the bytes were copied: the source's credit for holding them.
    pub held: Box<dyn Any + Send>,
}

/// As [`super::ReadJob`].
pub struct FetchJob<T> {
    /// Comes back with the result.
    pub tag: T,
    /// The volume.
    pub source: Arc<dyn RangeSource>,
    /// Position in the volume of the buffer's first byte.
    pub offset_bytes: u64,
    /// What to read, relative to `offset_bytes`, inside the buffer.
    pub ranges: Vec<Range<u32>>,
}

/// Starts the fetcher threads. They end when `jobs` is closed and everything was delivered, when the pool is closed, or when `done` has no receiver.
pub fn spawn_fetchers<T: Send + 'static>(
    count: usize,
    jobs: Receiver<FetchJob<T>>,
    pool: BufPool,
    done: Sender<ReadResult<T>>,
) -> Result<Vec<JoinHandle<()>>> {
    threads::spawn_all("fetch", count, |_| {
        let (jobs, pool, done) = (jobs.clone(), pool.clone(), done.clone());
        move || {
            while let Ok(job) = jobs.recv_blocking() {
                let result = match job.source.fetch(job.offset_bytes, &job.ranges) {
                    Ok(fetched) => {
                        let Some(buf) = pool.get_blocking() else { return };
                        fill(job, fetched, buf)
                    }
                    Err(error) => Err((job.tag, error)),
                };
                if done.send(result).is_err() {
                    threads::abandon(&jobs);
                    return;
                }
            }
        }
    })
}

/// Puts what came to its places, and zeros where nothing came.
fn fill<T>(job: FetchJob<T>, fetched: Fetched, mut buf: PooledBuf) -> ReadResult<T> {
    let wrong = |what: &str| Error::Invalid {
        what: format!("internal error: {} at byte {}: {what}", job.source.name(), job.offset_bytes),
    };
    let Some(pieces) = widen(&job.ranges, buf.len()) else {
        let error = wrong("ranges outside the buffer were asked for");
        return Err((job.tag, error));
    };
    for piece in pieces {
        buf[piece.start as usize..piece.end as usize].fill(0);
    }
    for (at, bytes) in fetched.parts.iter().chain(&fetched.kept) {
        let start = *at as usize;
        let Some(place) = buf.get_mut(start..start + bytes.len()) else {
            let error = wrong("it answered with bytes beyond the buffer");
            return Err((job.tag, error));
        };
        place.copy_from_slice(bytes);
    }
    let read_bytes = fetched.parts.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    Ok(ReadDone { tag: job.tag, buf, read_bytes, offset_bytes: job.offset_bytes, ranges: job.ranges })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(parts: Vec<(u32, Bytes)>) -> Fetched {
        Fetched { parts, kept: Vec::new(), held: Box::new(()) }
    }

    /// Has 0xAB in its second 4 KiB only.
    struct Sparse;

    impl RangeSource for Sparse {
        fn name(&self) -> &str {
            "sparse"
        }

        fn parallel(&self) -> usize {
            2
        }

        fn fetch(&self, offset_bytes: u64, _: &[Range<u32>]) -> Result<Fetched> {
            match offset_bytes {
                0 => Ok(got(vec![(4096, Bytes::from(vec![0xAB; 4096]))])),
                1 => Ok(got(vec![(8192, Bytes::from(vec![1; 8192]))])),
                _ => Err(Error::Cancelled),
            }
        }
    }

    #[test]
    fn what_does_not_come_is_zero_and_errors_come_back() {
        let pool = BufPool::new(1, 12_288);
        pool.get_blocking().unwrap().fill(0xFF);
        let (jobs, job_queue) = async_channel::bounded(4);
        let (done, results) = crossbeam::channel::bounded(4);
        let threads = spawn_fetchers(2, job_queue, pool.clone(), done).unwrap();
        let source: Arc<dyn RangeSource> = Arc::new(Sparse);
        let job = |offset_bytes, ranges: Range<u32>| FetchJob {
            tag: offset_bytes,
            source: source.clone(),
            offset_bytes,
            ranges: vec![ranges],
        };
        jobs.send_blocking(job(0, 0..8192)).unwrap();
        let done = results.recv().unwrap().map_err(|(_, e)| e).unwrap();
        assert_eq!(done.read_bytes, 4096);
        assert!(done.buf[..4096].iter().all(|b| *b == 0));
        assert!(done.buf[4096..8192].iter().all(|b| *b == 0xAB));
        drop(done);
        for (offset, text) in [(1, "beyond the buffer"), (2, "interrupted")] {
            jobs.send_blocking(job(offset, 0..4096)).unwrap();
            let (tag, error) = results.recv().unwrap().err().unwrap();
            assert!(tag == offset && error.to_string().contains(text), "{error}");
        }
        drop(jobs);
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(pool.free_count(), 1);
    }
}
