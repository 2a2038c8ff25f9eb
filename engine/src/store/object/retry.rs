//! The one retry layer: attempts that may take as long as bytes move, full jitter between them, and a budget for the
//! whole run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fault::{Fault, Kind};
use super::http::Attempt;
use super::limit::Limiter;
use super::line::Line;
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
/// What lies in buffers on the way at most, when a body was handed over: it is on its way although nothing seems to
/// move.
const ON_THE_WAY_BYTES: u64 = 8 << 20;
/// How long that may take at most.
const ON_THE_WAY_MAX: Duration = Duration::from_secs(120);
/// How many times the limit of silence a connection may take nothing while bytes wait for it: its buffer is full, and
/// the kernel ends it if nobody acknowledges.
const FULL_BUFFER: u32 = 4;
/// Bytes of an answer that are kept, so that the next attempt goes on behind them, from which on an attempt was not
/// in vain.
const GAIN_BYTES: u64 = 1 << 20;

/// How patient a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// How long an attempt may be silent: no byte moves. Doubled for a request each time it was too short.
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
    line: Arc<Line>,
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
            line: Arc::default(),
            answered: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            last_answer: Mutex::new(None),
        }
    }

    /// Makes attempts until one has an answer, or it is time to give up. `expired` is told when credentials were too
    /// old. With `keeps`, what an attempt received is kept by `attempt`, which goes on behind it.
    pub async fn run<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        counters: &Counters,
        keeps: bool,
        expired: &(dyn Fn() + Send + Sync),
        mut attempt: impl FnMut() -> F,
    ) -> Ended<T> {
        let started = Instant::now();
        let (mut attempts, mut in_vain, mut uncertain, mut timeouts) = (0, 0, false, 0u32);
        loop {
            (attempts, in_vain) = (attempts + 1, in_vain + 1);
            let silence = self.patience.attempt.saturating_mul(1 << timeouts.min(4));
            let slot = self.limiter.slot().await;
            let note = Arc::new(Attempt::on(self.line.clone()));
            let result = watched(&note, silence, note.clone().note(attempt())).await;
            drop(slot);
            let fault = match result {
                Some(Ok(value)) => {
                    self.went_well();
                    return Ended { result: Ok(value), uncertain, attempts };
                }
                Some(Err(error)) => Fault::of(&error, &note),
                None => Fault::timeout(silence),
            };
            if fault.is_answer() {
                self.went_well();
            }
            timeouts += u32::from(fault.timed_out);
            if fault.kind == Kind::Overloaded || fault.timed_out {
                self.limiter.was_too_much(Instant::now());
            }
            if keeps && note.received_bytes() >= GAIN_BYTES {
                (in_vain, timeouts) = (0, 0);
                self.alive(Instant::now());
            } else if note.alive_at() > note.began() + self.patience.attempt {
                // It moved for longer than silence may last, and failed then: the service is there.
                self.alive(note.alive_at().min(Instant::now()));
            }
            if !fault.is_passing() || !self.may_go_on(started, in_vain) {
                return Ended { result: Err(fault), uncertain, attempts };
            }
            uncertain = true;
            if fault.kind == Kind::Expired {
                expired();
            }
            let pause = pause(in_vain.max(1), &fault);
            tracing::info!(attempts, pause_ms = pause.as_millis() as u64, "trying again: {}", fault.words());
            tokio::time::sleep(pause).await;
            self.retried.fetch_add(1, Ordering::Relaxed);
            counters.retried.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn alive(&self, at: Instant) {
        let mut last = self.last_answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *last = Some(last.map_or(at, |last| last.max(at)));
    }

    fn went_well(&self) {
        self.limiter.went_well();
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.alive(Instant::now());
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

/// Runs an attempt until it ends, or is silent for too long: `None`.
async fn watched<T>(note: &Attempt, silence: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(work);
    loop {
        let end = note.alive_at() + bearable(note, silence);
        match tokio::time::timeout_at(end.into(), &mut work).await {
            Ok(result) => return Some(result),
            Err(_) if Instant::now() < note.alive_at() + bearable(note, silence) => {}
            Err(_) => return None,
        }
    }
}

/// How long an attempt may be silent from its last sign of life on.
fn bearable(note: &Attempt, silence: Duration) -> Duration {
    if note.unsent_bytes() > 0 && note.sent_bytes() > 0 {
        return silence.saturating_mul(FULL_BUFFER);
    }
    // The last bytes pass at the rate of all before them, as far as buffers let that be seen; a small body that was taken
    // at once waits behind what others send.
    let took = note.alive_at().saturating_duration_since(note.began());
    let on_the_way = match note.sent_bytes() {
        0 => Duration::ZERO,
        sent => {
            let bytes = ON_THE_WAY_BYTES.min(sent);
            took.mul_f64(bytes as f64 / sent as f64).max(note.passes_in(bytes))
        }
    };
    silence + on_the_way.min(ON_THE_WAY_MAX)
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
        let ended = block_on(retry.run(&counters, false, &|| {}, || async {
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
        let ended =
            block_on(retry.run::<(), _>(&Counters::default(), false, &|| {}, || async { Err(broken()) }));
        assert!(ended.attempts > 1 && ended.result.is_err_and(|fault| fault.kind == Kind::Broken));
    }

    /// What moves may take many times the limit of silence; what stops is ended once it is over.
    #[test]
    fn an_attempt_lasts_as_long_as_bytes_move() {
        let retry = patient(Duration::from_secs(60));
        let tries = AtomicU32::new(0);
        let ended = block_on(retry.run(&Counters::default(), true, &|| {}, || async {
            let note = Attempt::current();
            let stops = tries.fetch_add(1, Ordering::Relaxed) == 0;
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(15)).await;
                note.received(10);
            }
            if stops { std::future::pending().await } else { Ok(()) }
        }));
        assert!(ended.result.is_ok() && ended.attempts == 2, "{} attempts", ended.attempts);
    }

    #[test]
    fn what_waits_for_its_share_is_not_silent() {
        let retry = patient(Duration::from_secs(60));
        let ended = block_on(retry.run(&Counters::default(), false, &|| {}, || async {
            Attempt::current().hold(Duration::from_millis(300));
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(())
        }));
        assert!(ended.result.is_ok() && ended.attempts == 1);
    }

    #[test]
    fn bytes_on_the_way_have_the_time_that_those_before_took() {
        let note = Attempt::default();
        let silence = Duration::from_secs(15);
        assert_eq!(bearable(&note, silence), silence);
        note.begin_upload(32 << 20);
        note.sent(16 << 20);
        assert_eq!(bearable(&note, silence), silence * FULL_BUFFER, "the connection takes no more for now");
        note.sent(16 << 20);
        note.hold(Duration::from_secs(160));
        let left = bearable(&note, silence);
        assert!(
            (Duration::from_secs(54)..Duration::from_secs(57)).contains(&left),
            "a quarter of 160 s more: {left:?}"
        );
    }

    #[test]
    fn gains_are_not_counted_against_a_request() {
        let retry = patient(Duration::from_millis(200));
        let tries = AtomicU32::new(0);
        let ended = block_on(retry.run(&Counters::default(), true, &|| {}, || async {
            Attempt::current().received(GAIN_BYTES as usize);
            if tries.fetch_add(1, Ordering::Relaxed) < ATTEMPTS_MAX + 5 { Err(broken()) } else { Ok(()) }
        }));
        assert!(ended.result.is_ok() && ended.attempts > ATTEMPTS_MAX);
    }

    #[test]
    fn expired_credentials_are_asked_for_again() {
        let (retry, asked) = (patient(Duration::from_secs(60)), AtomicU32::new(0));
        let ended = block_on(retry.run(
            &Counters::default(),
            false,
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
