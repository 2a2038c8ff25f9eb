//! Writer threads: filled buffers in, acknowledgements out. What both engines share; the loops are in `uring_write`
//! and `pread_write`.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_channel::Receiver;
use crossbeam::channel::Sender;

use super::cursor::{Cursor, widen};
use super::engine::IoEngine;
use super::file::OpenFile;
use super::pool::PooledBuf;
use super::threads::{self, PREAD_THREADS_MAX};
use super::{pread_write, uring_write};
use crate::error::{Error, Result};
use crate::limits::IO_ALIGN;

/// Ranges of one buffer to write to a volume.
#[derive(Debug)]
pub struct WriteJob<T> {
    /// Comes back with the result.
    pub tag: T,
    /// The volume, opened for writing.
    pub file: Arc<OpenFile>,
    /// Position in the volume of the buffer's first byte, a multiple of 4 KiB.
    pub offset_bytes: u64,
    /// The data; returns to its pool when written, or failed.
    pub buf: PooledBuf,
    /// What to write, relative to the buffer; starts and ends are multiples of 4 KiB. Nothing may end past
    /// [`OpenFile::size_bytes`]: the last, partial block of a volume is the target's business.
    pub ranges: Vec<Range<u32>>,
    /// Further ranges of the buffer, each with a position in the volume of its own; all multiples of 4 KiB.
    pub scattered: Vec<(Range<u32>, u64)>,
}

/// What writer threads send: the tag and the bytes written, or the tag and the error. The data is not durable before
/// the target's `finish`.
pub type WriteResult<T> = Result<(T, u64), (T, Error)>;

/// Starts the writer threads; the counterpart of [`super::read::spawn_readers`], with the same rules. The buffer is
/// back in its pool before its result is sent, so `done` is not bounded by the pool: make it unbounded, or drain it.
pub fn spawn_writers<T: Send + 'static>(
    engine: IoEngine,
    threads: usize,
    depth_per_thread: usize,
    jobs: Receiver<WriteJob<T>>,
    done: Sender<WriteResult<T>>,
) -> Result<Vec<JoinHandle<()>>> {
    let count = match engine {
        IoEngine::Uring => threads.max(1),
        IoEngine::Pread => (threads * depth_per_thread).clamp(1, PREAD_THREADS_MAX),
    };
    threads::spawn_all("write", count, |_| {
        let (jobs, done) = (jobs.clone(), done.clone());
        move || {
            if engine == IoEngine::Uring {
                match uring_write::run(depth_per_thread, &jobs, &done) {
                    Ok(()) => return,
                    Err(e) => tracing::warn!("io_uring for a writer thread: {e}; it uses pwrite"),
                }
            }
            pread_write::run(&jobs, &done);
        }
    })
}

/// A job under way, apart from its buffer, which the ring owns during a transfer.
pub(super) struct Writing<T> {
    pub tag: T,
    pub file: Arc<OpenFile>,
    /// What is to be written.
    pub pieces: Vec<Piece>,
}

impl<T> Writing<T> {
    /// Checks the job and takes it apart.
    pub fn new(job: WriteJob<T>) -> Result<(Self, PooledBuf), (T, Error)> {
        let WriteJob { tag, file, offset_bytes, buf, ranges, scattered } = job;
        let align = IO_ALIGN as u32;
        let aligned = offset_bytes.is_multiple_of(IO_ALIGN as u64)
            && ranges.iter().all(|r| (r.start | r.end).is_multiple_of(align))
            && scattered
                .iter()
                .all(|(r, at)| (r.start | r.end).is_multiple_of(align) && at.is_multiple_of(IO_ALIGN as u64));
        let fits = |at: Option<u64>, len: u32| {
            len == 0 || at.and_then(|at| at.checked_add(len.into())).is_some_and(|end| end <= file.size_bytes)
        };
        let inside = ranges
            .iter()
            .all(|r| fits(offset_bytes.checked_add(r.start.into()), r.end.saturating_sub(r.start)))
            && scattered.iter().all(|(r, at)| {
                r.start <= r.end && r.end as usize <= buf.len() && fits(Some(*at), r.end - r.start)
            });
        match widen(&ranges, buf.len()) {
            Some(wide) if aligned && inside => {
                let wide = wide.into_iter().map(|r| Piece::new(offset_bytes + u64::from(r.start), &r));
                let apart = scattered.iter().filter(|(r, _)| !r.is_empty()).map(|(r, at)| Piece::new(*at, r));
                Ok((Self { tag, pieces: wide.chain(apart).collect(), file }, buf))
            }
            _ => {
                let what = format!(
                    "write of {ranges:?} at {offset_bytes} and {scattered:?} of {} ({} bytes) from {} bytes: not aligned or out of range",
                    file.name,
                    file.size_bytes,
                    buf.len()
                );
                Err((tag, Error::Invalid { what }))
            }
        }
    }

    /// Bytes of all pieces.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len_bytes)).sum()
    }
}

/// A run of bytes that is written to one place.
pub(super) struct Piece {
    cursor: Cursor,
    /// Where it begins in the buffer.
    start: usize,
    len_bytes: u32,
}

impl Piece {
    fn new(at: u64, range: &Range<u32>) -> Self {
        let len_bytes = range.end - range.start;
        Self { cursor: Cursor::new(at, &(0..len_bytes), u64::MAX), start: range.start as usize, len_bytes }
    }

    /// The next transfer: the range of the buffer, and its position in the volume.
    pub fn next(&self) -> Option<(Range<usize>, u64)> {
        let (range, at) = self.cursor.next()?;
        Some((self.start + range.start..self.start + range.end, at))
    }

    /// Takes note of how the transfer went.
    pub fn advance(&mut self, result: io::Result<usize>, file: &OpenFile) -> Result<()> {
        let (len, at) = self.cursor.next().map_or((0, 0), |(range, at)| (range.len(), at));
        let source = match result {
            Ok(n) if self.cursor.advance(n) => return Ok(()),
            Ok(_) => io::Error::from(io::ErrorKind::WriteZero),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(e) => e,
        };
        let object = format!("{} ({len} bytes at offset {at})", file.name);
        Err(Error::Io { action: "write", object, source })
    }
}
