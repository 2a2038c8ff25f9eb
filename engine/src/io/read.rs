//! Reader threads: jobs in, filled buffers out. What both engines share; the loops are in `uring_read` and
//! `pread_read`.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use async_channel::Receiver;
use crossbeam::channel::Sender;

use super::cursor::{Cursor, widen};
use super::engine::IoEngine;
use super::file::OpenFile;
use super::pool::{BufPool, PooledBuf};
use super::threads::{self, PREAD_THREADS_MAX};
use super::{pread_read, uring_read};
use crate::error::{Error, Result};
use crate::limits::IO_ALIGN;

/// Ranges of a volume to read into one buffer.
#[derive(Debug)]
pub struct ReadJob<T> {
    /// Comes back with the result.
    pub tag: T,
    /// The volume. Jobs of several volumes may be mixed.
    pub file: Arc<OpenFile>,
    /// Position in the volume of the buffer's first byte, a multiple of 4 KiB.
    pub offset_bytes: u64,
    /// What to read, relative to `offset_bytes`; each lands at the same relative place in the buffer. Ranges may end
    /// past the end of the volume (they are clipped), not past that of the buffer.
    pub ranges: Vec<Range<u32>>,
}

/// A buffer with what was asked for.
#[derive(Debug)]
pub struct ReadDone<T> {
    /// The job's.
    pub tag: T,
    /// The data. Ranges are there in whole 4 KiB blocks, zero-filled from the volume's end to the next 4 KiB border.
    /// Bytes elsewhere are **left over from earlier jobs**: see [`ReadDone::zero_gaps`].
    pub buf: PooledBuf,
    /// Bytes transferred: the ranges widened to 4 KiB and cut at the volume's end.
    pub read_bytes: u64,
    /// The job's.
    pub offset_bytes: u64,
    /// The job's, unchanged.
    pub ranges: Vec<Range<u32>>,
}

impl<T> ReadDone<T> {
    /// Zeroes what was not read in the first `len` bytes, so that holes of the source read as the zeros they are.
    pub fn zero_gaps(&mut self, len: usize) {
        let len = len.min(self.buf.len());
        let mut from = 0;
        // The ranges were accepted by `pieces`, so they widen again without an error.
        for piece in widen(&self.ranges, self.buf.len()).unwrap_or_default() {
            let start = (piece.start as usize).min(len);
            self.buf[from..start.max(from)].fill(0);
            from = (piece.end as usize).min(len);
        }
        self.buf[from..len].fill(0);
    }
}

/// What reader threads send: a filled buffer, or the tag of the job that failed and why.
pub type ReadResult<T> = Result<ReadDone<T>, (T, Error)>;

/// Starts the reader threads.
///
/// `depth_per_thread` jobs are in flight on each of the `threads` (with [`IoEngine::Pread`]: one on each of up to
/// `threads` × `depth_per_thread` threads). They end when `jobs` is closed and everything in flight was delivered,
/// when the pool is closed, or when `done` has no receiver any more; in that case `jobs` is closed and emptied, so
/// that its senders notice. A buffer is taken before a job is, so an idle thread holds one: a pool that is shared
/// needs more buffers than there are threads.
///
/// With io_uring one thread is enough for a device, and 4 to 8 jobs of 4 MiB in flight: more threads read no faster,
/// and 16 in flight read slower than 4 on the virtio disk this was measured on.
///
/// `done` must have room for every buffer of the pool: a thread that waits there stalls all its jobs. Fails if a
/// thread cannot be started; those that were end with `jobs`.
pub fn spawn_readers<T: Send + 'static>(
    engine: IoEngine,
    threads: usize,
    depth_per_thread: usize,
    jobs: Receiver<ReadJob<T>>,
    pool: BufPool,
    done: Sender<ReadResult<T>>,
) -> Result<Vec<JoinHandle<()>>> {
    let turnstile = Arc::new(Mutex::new(()));
    let count = match engine {
        IoEngine::Uring => threads.max(1),
        IoEngine::Pread => (threads * depth_per_thread).clamp(1, PREAD_THREADS_MAX),
    };
    threads::spawn_all("read", count, |_| {
        let (jobs, pool, done, turnstile) = (jobs.clone(), pool.clone(), done.clone(), turnstile.clone());
        move || {
            if engine == IoEngine::Uring {
                match uring_read::run(depth_per_thread, &jobs, &pool, &done) {
                    Ok(()) => return,
                    // The probe succeeded, this ring did not: locked memory or descriptors ran out. Slower, not
                    // wrong.
                    Err(e) => tracing::warn!("io_uring for a reader thread: {e}; it uses pread"),
                }
            }
            pread_read::run(&turnstile, &jobs, &pool, &done);
        }
    })
}

/// A job under way: its buffer, and what to transfer, in aligned pieces.
pub(super) struct Reading<T> {
    pub job: ReadJob<T>,
    pieces: std::vec::IntoIter<Range<u32>>,
    cursor: Option<Cursor>,
    read_bytes: u64,
}

impl<T> Reading<T> {
    /// Checks the job against the buffer it will fill.
    pub fn new(job: ReadJob<T>, buf: &PooledBuf) -> Result<Self, (T, Error)> {
        let size_bytes = job.file.size_bytes;
        let aligned = job.offset_bytes.is_multiple_of(IO_ALIGN as u64);
        match widen(&job.ranges, buf.len()) {
            Some(pieces) if aligned && job.offset_bytes <= size_bytes => {
                Ok(Self { pieces: pieces.into_iter(), cursor: None, read_bytes: 0, job })
            }
            _ => {
                let what = format!(
                    "read of {:?} at {} of {} ({size_bytes} bytes) into {} bytes: not aligned or out of range",
                    job.ranges,
                    job.offset_bytes,
                    job.file.name,
                    buf.len()
                );
                Err((job.tag, Error::Invalid { what }))
            }
        }
    }

    /// The next transfer: the range of the buffer, and its position in the volume.
    pub fn next(&mut self) -> Option<(Range<usize>, u64)> {
        loop {
            if let Some(next) = self.cursor.as_ref().and_then(Cursor::next) {
                return Some(next);
            }
            let piece = self.pieces.next()?;
            let cursor = Cursor::new(self.job.offset_bytes, &piece, self.job.file.size_bytes);
            let start = self.job.offset_bytes + u64::from(piece.start);
            self.read_bytes += (self.job.offset_bytes + u64::from(piece.end))
                .min(self.job.file.size_bytes)
                .saturating_sub(start);
            self.cursor = Some(cursor);
        }
    }

    /// Takes note of how the transfer went.
    pub fn advance(&mut self, result: io::Result<usize>) -> Result<()> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        let file = &self.job.file;
        let object = || match cursor.next() {
            Some((range, at)) => format!("{} ({} bytes at offset {at})", file.name, range.len()),
            None => file.name.clone(),
        };
        match result {
            Ok(n) if n > 0 => {
                let before = object();
                if cursor.advance(n) { Ok(()) } else { Err(shorter(before, cursor.reach(), file.size_bytes)) }
            }
            Ok(_) => Err(shorter(object(), cursor.reach(), file.size_bytes)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(Error::Io { action: "read", object: object(), source: e }),
        }
    }

    /// The result, once [`Reading::next`] has nothing more.
    pub fn finish(self, mut buf: PooledBuf) -> ReadDone<T> {
        // A file that grew has more behind its end than zeros: the backup is of the size found at the start.
        let end = self.job.file.size_bytes - self.job.offset_bytes;
        if end < buf.len() as u64 {
            let end = end as usize;
            let border = end.next_multiple_of(IO_ALIGN).min(buf.len());
            buf[end..border].fill(0);
        }
        ReadDone {
            tag: self.job.tag,
            buf,
            read_bytes: self.read_bytes,
            offset_bytes: self.job.offset_bytes,
            ranges: self.job.ranges,
        }
    }
}

fn shorter(object: String, end: u64, size_bytes: u64) -> Error {
    let text = format!(
        "the source became shorter while it was read: it had {size_bytes} bytes and now ends at or before {end}"
    );
    Error::Io { action: "read", object, source: io::Error::new(io::ErrorKind::UnexpectedEof, text) }
}
