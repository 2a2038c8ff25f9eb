//! How many requests are under way at a time: fewer when the service says it is too much, slowly more while it does not.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// After a cut, further complaints belong to requests that were sent before it.
const CUT_PAUSE: Duration = Duration::from_secs(1);

/// A large body that takes longer is on a slow line.
const SLOW: Duration = Duration::from_secs(30);
/// One that takes less leaves room for another beside it.
const QUICK: Duration = Duration::from_secs(10);

/// Additive increase, multiplicative decrease.
#[derive(Debug)]
pub struct Limiter {
    state: Mutex<State>,
    freed: Notify,
    max: f64,
}

#[derive(Debug)]
struct State {
    limit: f64,
    under_way: usize,
    cut_at: Option<Instant>,
}

/// A request under way.
#[derive(Debug)]
pub struct Slot<'a>(&'a Limiter);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
        self.0.freed.notify_one();
    }
}

impl Limiter {
    /// Begins with all of `max`.
    pub fn new(max: usize) -> Self {
        Self::beginning_with(max, max)
    }

    /// Begins with some of `max`.
    pub fn beginning_with(limit: usize, max: usize) -> Self {
        let (limit, max) = (limit.clamp(1, max.max(1)) as f64, max.max(1) as f64);
        Self { state: Mutex::new(State { limit, under_way: 0, cut_at: None }), freed: Notify::new(), max }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Each critical section is a few assignments: a panic leaves no half of one.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn try_take(&self) -> Option<Slot<'_>> {
        let mut state = self.state();
        if (state.under_way as f64) < state.limit.floor().max(1.0) {
            state.under_way += 1;
            return Some(Slot(self));
        }
        None
    }

    /// Waits for a slot.
    pub async fn slot(&self) -> Slot<'_> {
        loop {
            let freed = self.freed.notified();
            if let Some(slot) = self.try_take() {
                return slot;
            }
            freed.await;
        }
    }

    /// A request went well.
    pub fn went_well(&self) {
        let mut state = self.state();
        let before = state.limit.floor();
        state.limit = (state.limit + 1.0 / state.limit).min(self.max);
        if state.limit.floor() > before {
            self.freed.notify_one();
        }
    }

    /// Large bodies: one took so long. On a slow line fewer at a time, so that less is lost with each that fails; on a
    /// fast one soon as many as may be.
    pub fn took(&self, time: Duration, now: Instant) {
        match time {
            _ if time > SLOW => self.was_too_much(now),
            _ if time < QUICK => {
                let mut state = self.state();
                state.limit = (state.limit + 1.0).min(self.max);
                drop(state);
                self.freed.notify_one();
            }
            _ => {}
        }
    }

    /// The service was overloaded.
    pub fn was_too_much(&self, now: Instant) {
        let mut state = self.state();
        if state.cut_at.is_none_or(|at| now.duration_since(at) >= CUT_PAUSE) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.cut_at = Some(now);
            tracing::debug!(limit = state.limit, "fewer requests at a time");
        }
    }

    /// Requests allowed at a time.
    #[cfg(test)]
    fn limit(&self) -> usize {
        self.state().limit.floor() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_once_per_complaint_wave_and_climbs_back_slowly() {
        let limiter = Limiter::new(16);
        let start = Instant::now();
        limiter.was_too_much(start);
        limiter.was_too_much(start + Duration::from_millis(10));
        assert_eq!(limiter.limit(), 8, "one wave of complaints is one cut");
        for wave in 1..10 {
            limiter.was_too_much(start + CUT_PAUSE * wave);
        }
        assert_eq!(limiter.limit(), 1, "never none");
        (0..10).for_each(|_| limiter.went_well());
        assert!((3..8).contains(&limiter.limit()), "{}", limiter.limit());
        (0..1000).for_each(|_| limiter.went_well());
        assert_eq!(limiter.limit(), 16, "never more than there were");
    }

    #[test]
    fn large_bodies_are_few_on_a_slow_line_and_many_on_a_fast_one() {
        let limiter = Limiter::beginning_with(4, 16);
        let start = Instant::now();
        (0..20).for_each(|_| limiter.took(Duration::from_secs(1), start));
        assert_eq!(limiter.limit(), 16);
        limiter.took(Duration::from_secs(20), start);
        assert_eq!(limiter.limit(), 16, "neither slow nor quick");
        (0..6).for_each(|n| limiter.took(Duration::from_secs(100), start + CUT_PAUSE * n));
        assert_eq!(limiter.limit(), 1);
    }

    #[test]
    fn slots_are_bounded_and_come_back() {
        let limiter = Limiter::new(2);
        let (a, b) = (limiter.try_take().unwrap(), limiter.try_take().unwrap());
        assert!(limiter.try_take().is_none());
        drop(a);
        assert!(limiter.try_take().is_some());
        drop(b);
    }
}
