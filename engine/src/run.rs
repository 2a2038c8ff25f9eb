//! What a long operation shares with its caller: progress counters, the wish to stop, and the first error.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::error::{Error, Result};

/// Counters of a running operation; a display reads them as often as it likes. All are bytes unless named otherwise.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    /// Logical bytes the operation has to get through (0 while unknown, as for a stream).
    pub total_bytes: AtomicU64,
    /// Logical bytes dealt with so far: read, skipped as holes, or known unchanged.
    pub done_bytes: AtomicU64,
    /// Bytes really read from the source (backup), or fetched from the repository (restore, verify).
    pub read_bytes: AtomicU64,
    /// Bytes found to be zero or holes.
    pub zero_bytes: AtomicU64,
    /// Data bytes that were in the repository already (backup), or on the target already (restore).
    pub reused_bytes: AtomicU64,
    /// Data bytes that were new (backup, before compression), or written (restore).
    pub new_bytes: AtomicU64,
    /// Bytes stored in packs (backup).
    pub stored_bytes: AtomicU64,
    /// Problems met without stopping (verify).
    pub problems: AtomicUsize,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            total_bytes: AtomicU64::new(0),
            done_bytes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            zero_bytes: AtomicU64::new(0),
            reused_bytes: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            problems: AtomicUsize::new(0),
        }
    }
}

impl Progress {
    /// When the operation began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads a counter.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Handle of one operation: give a clone of the `Arc` to a signal handler and to a progress display.
#[derive(Debug, Default)]
pub struct Run {
    /// Counters.
    pub progress: Progress,
    cancelled: AtomicBool,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Run {
    /// A fresh run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the operation to stop; it ends with [`Error::Cancelled`] and leaves things clean.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// True once `cancel` was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// True if stages should drain and end: cancelled, or another stage failed.
    pub fn stopped(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancelled.load(Ordering::Relaxed)
    }

    /// True once a stage failed.
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Latches the first error; later ones are consequences and are dropped.
    pub fn fail(&self, error: Error) {
        let mut slot = self.error.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if slot.is_none() {
            tracing::debug!(%error, "first error of the run");
            *slot = Some(error);
        }
        self.failed.store(true, Ordering::SeqCst);
    }

    /// The outcome: the first error, or cancellation, or success.
    pub fn outcome(&self) -> Result<()> {
        let error = self.error.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        match error {
            Some(error) => Err(error),
            None if self.is_cancelled() => Err(Error::Cancelled),
            None => Ok(()),
        }
    }
}
