//! The one retry layer: attempts with a time limit, full jitter between them, and a budget for the whole run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::fault::{Fault, Kind};
use super::http::Attempt;
use super::limit::Limiter;
use crate::id::random_bytes;
use crate::store::metrics::Counters;

/// First pause at most; doubled with each further attempt.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// First pause at most after "slow down".
const PAUSE_FIRST_OVERLOADED: Duration = Duration::from_millis(400);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Attempts of one request at most: an object that fails while all others go well.
const ATTEMPTS_MAX: u32 = 30;
/// Retries of a run: this many, and one for so many requests that went well.
const RETRIES_FREE: u64 = 1000;
const ANSWERS_PER_RETRY: u64 = 5;
/// A service that never answered is more likely misspelt than down.
const FIRST_CONTACT: Duration = Duration::from_secs(12);
/// Slowest connection that is not taken for dead.
const BYTES_PER_S_MIN: u64 = 1 << 20;

/// How patient a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Time for an attempt without a body; a second per MiB is added. Doubled for a request each time it was too short.
    pub attempt: Duration,
    /// How long nothing may go well before the run fails.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempt: Duration::from_secs(15), silence: Duration::from_secs(180) }
    }
}

/// State of one run's retries.
#[derive(Debug)]
pub struct Retry {
    patience: Patience,
    limiter: Limiter,
    answered: AtomicU64,
    retried: AtomicU64,
    last_answer: Mutex<Option<Instant>>,
}

/// How a request ended.
pub struct Ended<T> {
    /// The answer, or the fault that ended it.
    pub result: Result<T, Fault>,
    /// An earlier attempt may have taken effect although its answer was lost.
    pub uncertain: bool,
    /// Attempts made.
    pub attempts: u32,
}

impl<T> Ended<T> {
    /// `, after 3 attempts`, or nothing.
    pub fn tried(&self) -> String {
        if self.attempts > 1 { format!(", after {} attempts", self.attempts) } else { String::new() }
    }
}

impl Retry {
    /// At most `at_a_time` requests under way.
    pub fn new(patience: Patience, at_a_time: usize) -> Self {
        Self {
            patience,
            limiter: Limiter::new(at_a_time),
            answered: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            last_answer: Mutex::new(None),
        }
    }

    /// Makes attempts until one has an answer, or it is time to give up. `bytes` is what moves in one attempt; `expired` is told when credentials were too old.
    pub async fn run<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        counters: &Counters,
        bytes: usize,
        expired: &(dyn Fn() + Send + Sync),
        mut attempt: impl FnMut() -> F,
    ) -> Ended<T> {
        let started = Instant::now();
        let (mut attempts, mut uncertain, mut timeouts) = (0, false, 0u32);
        loop {
            attempts += 1;
            let limit = (self.patience.attempt + Duration::from_secs(bytes as u64 / BYTES_PER_S_MIN))
                .saturating_mul(1 << timeouts.min(4));
            let slot = self.limiter.slot().await;
            let (result, note) = Attempt::note(tokio::time::timeout(limit, attempt())).await;
            drop(slot);
            let fault = match result {
                Ok(Ok(value)) => {
                    self.went_well();
                    return Ended { result: Ok(value), uncertain, attempts };
                }
                Ok(Err(error)) => Fault::of(&error, &note),
                Err(_) => Fault::timeout(limit),
            };
            if fault.is_answer() {
                self.went_well();
            }
            timeouts += u32::from(fault.timed_out);
            if fault.kind == Kind::Overloaded || fault.timed_out {
                self.limiter.was_too_much(Instant::now());
            }
            if !fault.is_passing() || !self.may_go_on(started, attempts) {
                return Ended { result: Err(fault), uncertain, attempts };
            }
            uncertain = true;
            if fault.kind == Kind::Expired {
                expired();
            }
            let pause = pause(attempts, &fault);
            tracing::info!(attempts, pause_ms = pause.as_millis() as u64, "trying again: {}", fault.words());
            tokio::time::sleep(pause).await;
            self.retried.fetch_add(1, Ordering::Relaxed);
            counters.retried.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn went_well(&self) {
        self.limiter.went_well();
        self.answered.fetch_add(1, Ordering::Relaxed);
        *self.last_answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Instant::now());
    }

    fn may_go_on(&self, started: Instant, attempts: u32) -> bool {
        let last = *self.last_answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let silence = last.map_or(started, |last| last.max(started)).elapsed();
        let bearable = match last {
            Some(_) => self.patience.silence,
            None => self.patience.silence.min(FIRST_CONTACT),
        };
        let budget = RETRIES_FREE + self.answered.load(Ordering::Relaxed) / ANSWERS_PER_RETRY;
        attempts < ATTEMPTS_MAX && silence < bearable && self.retried.load(Ordering::Relaxed) < budget
    }
}

/// Full jitter: anything between nothing and the bound, so that many clients do not come back together.
fn pause(attempts: u32, fault: &Fault) -> Duration {
    let first = if fault.kind == Kind::Overloaded { PAUSE_FIRST_OVERLOADED } else { PAUSE_FIRST };
    let bound = first.saturating_mul(1 << (attempts - 1).min(16)).min(PAUSE_MAX);
    let share =
        random_bytes::<4>().map_or(0.5, |bytes| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX));
    bound.mul_f64(share).max(fault.retry_after.unwrap_or_default().min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn broken() -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: "<Code>InternalError</Code>".into() }
    }

    fn patient(silence: Duration) -> Retry {
        Retry::new(Patience { attempt: Duration::from_millis(50), silence }, 4)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn failures_pass_and_hangs_are_cut_short() {
        let (retry, counters, tries) =
            (patient(Duration::from_secs(60)), Counters::default(), AtomicU32::new(0));
        let ended = block_on(retry.run(&counters, 0, &|| {}, || async {
            match tries.fetch_add(1, Ordering::Relaxed) {
                0 => Err(broken()),
                1 => std::future::pending().await,
                n => Ok(n),
            }
        }));
        assert!(ended.uncertain && ended.attempts == 3 && ended.result.is_ok_and(|n| n == 2));
        assert_eq!(counters.requests().retried, 2);
    }

    #[test]
    fn what_never_answered_is_given_up() {
        let retry = patient(Duration::from_millis(300));
        let ended = block_on(retry.run::<(), _>(&Counters::default(), 0, &|| {}, || async { Err(broken()) }));
        assert!(ended.attempts > 1 && ended.result.is_err_and(|fault| fault.kind == Kind::Broken));
    }

    #[test]
    fn expired_credentials_are_asked_for_again() {
        let (retry, asked) = (patient(Duration::from_secs(60)), AtomicU32::new(0));
        let ended = block_on(retry.run(
            &Counters::default(),
            0,
            &|| {
                asked.fetch_add(1, Ordering::Relaxed);
            },
            || async {
                match asked.load(Ordering::Relaxed) {
                    0 => Err(object_store::Error::Generic {
                        store: "S3",
                        source: "<Code>ExpiredToken</Code>".into(),
                    }),
                    _ => Ok(()),
                }
            },
        ));
        assert!(ended.result.is_ok() && asked.into_inner() == 1);
    }

    #[test]
    fn pauses_are_bounded() {
        let fault = Fault::timeout(Duration::from_secs(1));
        assert!((1..40).all(|attempt| pause(attempt, &fault) <= PAUSE_MAX));
    }
}
