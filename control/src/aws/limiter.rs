//! Rates: AWS allows an account so many calls a second of each kind, whoever makes them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A token bucket. Callers are served in the order they ask.
#[derive(Debug)]
pub struct Limiter {
    per_second: f64,
    /// When the next call may be made, if all before it are.
    next: Mutex<Instant>,
}

/// Calls that may be made at once after a pause, as a share of a second's.
const BURST_S: f64 = 0.05;

impl Limiter {
    /// `per_second` calls; 0 is without limit.
    pub fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second), next: Mutex::new(Instant::now()) }
    }

    /// Waits for its turn.
    pub async fn turn(&self) {
        let wait = self.reserve(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// AWS refused: nobody goes for a moment.
    pub fn refused(&self) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + Duration::from_millis(100));
    }

    fn reserve(&self, now: Instant) -> Duration {
        if self.per_second <= 0.0 {
            return Duration::ZERO;
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(Duration::from_secs_f64(BURST_S)).unwrap_or(now);
        let mine = (*next).max(earliest);
        *next = mine + Duration::from_secs_f64(1.0 / self.per_second);
        mine.saturating_duration_since(now)
    }
}

/// Calls a second that the account allows.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// GetSnapshotBlock.
    pub get: u32,
    /// PutSnapshotBlock.
    pub put: u32,
    /// ListSnapshotBlocks and ListChangedBlocks, each.
    pub list: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_used() {
        let limiter = Limiter::new(1000);
        let start = Instant::now() + Duration::from_secs(1);
        let waits: Vec<Duration> = (0..1000).map(|_| limiter.reserve(start)).collect();
        assert!(waits[0].is_zero() && waits[40].is_zero());
        let last = waits[999].as_secs_f64();
        assert!((0.94..=0.96).contains(&last), "{last}");
        assert!(Limiter::new(0).reserve(start).is_zero());
    }
}
