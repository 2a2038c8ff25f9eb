//! How fast the line takes what is sent, over all requests: what was handed to a slow one lies in buffers for long, and is
//! neither lost nor silent there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes are counted by windows of this length; the present and the last one count.
const WINDOW: Duration = Duration::from_secs(10);
/// A faster line has passed what lies in buffers before anybody could take it for silent.
const SLOW_BYTES_PER_S: f64 = 4.0 * 1024.0 * 1024.0;
/// What took less tells nothing of the line: it was all there was to send. A line of 10 KiB/s passes it within the
/// usual silence.
const TELLING_BYTES_MIN: u64 = 128 << 10;

/// The uploads of one store.
#[derive(Debug, Default)]
pub struct Line {
    under_way: AtomicU64,
    windows: Mutex<Windows>,
}

#[derive(Debug, Default)]
struct Windows {
    began: Option<Instant>,
    last_bytes: u64,
    bytes: u64,
}

impl Windows {
    fn turn(&mut self, now: Instant) {
        let Some(began) = self.began else {
            self.began = Some(now);
            return;
        };
        let age = now.saturating_duration_since(began);
        if age >= WINDOW {
            self.last_bytes = if age < WINDOW * 2 { self.bytes } else { 0 };
            (self.began, self.bytes) = (Some(now), 0);
        }
    }
}

impl Line {
    /// An upload begins.
    pub fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// An upload is over.
    pub fn end(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    /// The line took so many bytes.
    pub fn took(&self, bytes: usize, now: Instant) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.turn(now);
        windows.bytes += bytes as u64;
    }

    /// How long `bytes` of one upload that lie in buffers may take, since all uploads share the line. Nothing on a fast line,
    /// nor on one that moves next to nothing.
    pub fn passes_in(&self, bytes: u64, now: Instant) -> Duration {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.turn(now);
        let seen = windows.last_bytes + windows.bytes;
        let Some(began) = windows.began.filter(|_| seen >= TELLING_BYTES_MIN) else { return Duration::ZERO };
        let last = if windows.last_bytes > 0 { WINDOW } else { Duration::ZERO };
        let time = (now.saturating_duration_since(began) + last).max(Duration::from_secs(1));
        let bytes_per_s = seen as f64 / time.as_secs_f64();
        if bytes_per_s >= SLOW_BYTES_PER_S {
            return Duration::ZERO;
        }
        let sharers = self.under_way.load(Ordering::Relaxed).max(1);
        Duration::from_secs_f64((bytes as f64 * sharers as f64 / bytes_per_s).min(3600.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slow_line_that_moves_makes_bytes_wait() {
        let line = Line::default();
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(line.passes_in(1 << 20, at(0)), Duration::ZERO, "nothing is known");
        line.took(700, at(0));
        assert_eq!(line.passes_in(700, at(9)), Duration::ZERO, "one small request without an answer");
        (0..4).for_each(|_| line.begin());
        line.took(100 << 20, at(0));
        assert_eq!(line.passes_in(4 << 20, at(1)), Duration::ZERO, "fast");
        (10..40).for_each(|s| line.took(256 << 10, at(s)));
        let slow = line.passes_in(4 << 20, at(40));
        assert!(
            (Duration::from_secs(55)..Duration::from_secs(75)).contains(&slow),
            "4 share 256 KiB/s: {slow:?}"
        );
        (0..3).for_each(|_| line.end());
        assert!(line.passes_in(4 << 20, at(40)) < Duration::from_secs(20), "alone");
        line.passes_in(1, at(52));
        assert_eq!(line.passes_in(4 << 20, at(75)), Duration::ZERO, "nothing moves any more");
    }
}
