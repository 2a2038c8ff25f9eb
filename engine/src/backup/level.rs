//! The compression level of a run. With `auto`, it follows what holds the run up: while workers wait for the source or for the store,
//! stronger compression costs nothing; while they are busy, it costs time.

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::format::config::Compression;

/// How often the level is thought over.
const WINDOW: Duration = Duration::from_millis(100);
/// Fewer new bytes than this in a window say nothing of what compression costs.
const WINDOW_BYTES_MIN: u64 = 8 << 20;
/// Share of their time that workers wait, in percent: above it the next level is tried. The dearest step of the ladder (4 to 5) takes 1.8 times the time of
/// the level below, so that half of the time idle is enough for any.
const RAISE_ABOVE_PERCENT: u64 = 50;
/// Below it the level goes down by one…
const LOWER_BELOW_PERCENT: u64 = 15;
/// …and below this by two: the workers are the bottleneck.
const HURRY_BELOW_PERCENT: u64 = 5;

/// What one segment took, as its worker saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// Nanoseconds waited for data and for pack buffers.
    pub waited_ns: u64,
    /// Nanoseconds worked.
    pub busy_ns: u64,
    /// Bytes given to the compressor.
    pub new_bytes: u64,
}

/// The levels that were used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LevelUse {
    /// Lowest.
    pub lowest: i32,
    /// Highest.
    pub highest: i32,
    /// Mean over the bytes compressed, times 100.
    pub mean_percent: i64,
}

/// The level that all workers of a run use now.
pub struct LevelControl {
    /// `None`: nothing is compressed.
    bounds: Option<RangeInclusive<i32>>,
    level: AtomicI32,
    waited_ns: AtomicU64,
    busy_ns: AtomicU64,
    new_bytes: AtomicU64,
    state: Mutex<State>,
}

struct State {
    window_end: Instant,
    lowest: i32,
    highest: i32,
    /// Bytes compressed in windows that are over, and the sum of bytes × level.
    bytes: u64,
    weighted: i64,
}

impl LevelControl {
    /// Begins at the lowest level: whether there is time to spare is not known yet.
    pub fn new(compression: &Compression) -> Self {
        let bounds = compression.levels();
        let level = bounds.as_ref().map_or(0, |bounds| *bounds.start());
        Self {
            bounds,
            level: AtomicI32::new(level),
            waited_ns: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
            state: Mutex::new(State {
                window_end: Instant::now() + WINDOW,
                lowest: level,
                highest: level,
                bytes: 0,
                weighted: 0,
            }),
        }
    }

    /// The level to use, or `None` for no compression.
    pub fn level(&self) -> Option<i32> {
        self.bounds.as_ref().map(|_| self.level.load(Ordering::Relaxed))
    }

    /// Takes note of a segment; now and then, this changes the level.
    pub fn note(&self, effort: Effort) {
        let Some(bounds) = self.bounds.as_ref() else { return };
        self.waited_ns.fetch_add(effort.waited_ns, Ordering::Relaxed);
        self.busy_ns.fetch_add(effort.busy_ns, Ordering::Relaxed);
        self.new_bytes.fetch_add(effort.new_bytes, Ordering::Relaxed);
        // Whoever comes while another thinks has nothing to add.
        let Ok(mut state) = self.state.try_lock() else { return };
        let now = Instant::now();
        if now < state.window_end {
            return;
        }
        state.window_end = now + WINDOW;
        let sum = self.take();
        let level = self.level.load(Ordering::Relaxed);
        state.count(level, sum.new_bytes);
        let next = next_level(level, bounds, sum);
        self.level.store(next, Ordering::Relaxed);
    }

    fn take(&self) -> Effort {
        Effort {
            waited_ns: self.waited_ns.swap(0, Ordering::Relaxed),
            busy_ns: self.busy_ns.swap(0, Ordering::Relaxed),
            new_bytes: self.new_bytes.swap(0, Ordering::Relaxed),
        }
    }

    /// The levels used so far; `None` if nothing was to be compressed.
    pub fn used(&self) -> Option<LevelUse> {
        let level = self.level()?;
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let rest = self.take();
        state.count(level, rest.new_bytes);
        let mean_percent = match state.bytes {
            0 => i64::from(level) * 100,
            bytes => state.weighted.saturating_mul(100) / bytes.min(i64::MAX as u64) as i64,
        };
        Some(LevelUse { lowest: state.lowest, highest: state.highest, mean_percent })
    }
}

impl State {
    fn count(&mut self, level: i32, bytes: u64) {
        if bytes > 0 {
            self.lowest = self.lowest.min(level);
            self.highest = self.highest.max(level);
            self.bytes += bytes;
            self.weighted = self.weighted.saturating_add((bytes as i64).saturating_mul(i64::from(level)));
        }
    }
}

/// The level for the next window.
fn next_level(level: i32, bounds: &RangeInclusive<i32>, window: Effort) -> i32 {
    let lived_ns = (window.waited_ns + window.busy_ns).max(1);
    let waited_percent = window.waited_ns.saturating_mul(100) / lived_ns;
    let step = match waited_percent {
        percent if percent < HURRY_BELOW_PERCENT => -2,
        percent if percent < LOWER_BELOW_PERCENT => -1,
        percent if percent > RAISE_ABOVE_PERCENT && window.new_bytes >= WINDOW_BYTES_MIN => 1,
        _ => 0,
    };
    let next = level + step;
    // zstd has no level 0: it stands for the default, 3.
    let next = if next == 0 { next + step } else { next };
    next.clamp(*bounds.start(), *bounds.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(waited_percent: u64, new_bytes: u64) -> Effort {
        Effort {
            waited_ns: waited_percent * 1_000_000,
            busy_ns: (100 - waited_percent) * 1_000_000,
            new_bytes,
        }
    }

    #[test]
    fn waiting_raises_the_level_and_work_lowers_it_within_bounds() {
        let bounds = 1..=6;
        let next = |level, percent| next_level(level, &bounds, window(percent, 64 << 20));
        assert_eq!((next(1, 80), next(5, 80), next(6, 80)), (2, 6, 6));
        assert_eq!((next(3, 30), next(3, 10), next(4, 1), next(1, 1)), (3, 2, 2, 1));
        assert_eq!(next_level(2, &bounds, window(90, 1 << 20)), 2, "nothing to learn from a megabyte");
        assert_eq!(next_level(6, &bounds, window(0, 0)), 4, "busy is busy, whatever with");
    }

    #[test]
    fn level_0_is_passed_over() {
        assert_eq!(next_level(-1, &(-3..=3), window(80, 64 << 20)), 1);
        assert_eq!(next_level(1, &(-3..=3), window(10, 64 << 20)), -1);
        assert_eq!(next_level(2, &(-3..=3), window(1, 64 << 20)), -2);
    }

    #[test]
    fn a_fixed_level_stays_and_off_is_none() {
        let fixed = LevelControl::new(&Compression::Level(7));
        fixed.state.lock().unwrap().window_end = Instant::now();
        fixed.note(window(90, 64 << 20));
        assert_eq!(fixed.level(), Some(7));
        assert_eq!(fixed.used(), Some(LevelUse { lowest: 7, highest: 7, mean_percent: 700 }));
        let off = LevelControl::new(&Compression::Off);
        off.note(window(90, 64 << 20));
        assert_eq!((off.level(), off.used()), (None, None));
    }

    #[test]
    fn use_is_counted_by_bytes() {
        let control = LevelControl::new(&Compression::Auto { lowest: 1, highest: 6 });
        let close = |control: &LevelControl| control.state.lock().unwrap().window_end = Instant::now();
        close(&control);
        control.note(window(90, 64 << 20));
        assert_eq!(control.level(), Some(2));
        control.note(window(90, 64 << 20));
        assert_eq!(control.used(), Some(LevelUse { lowest: 1, highest: 2, mean_percent: 150 }));
    }
}
