//! The one retry layer of all AWS calls: the SDK's own is off.
//!
//! A call that is throttled or not answered is made again with growing, random pauses, until it succeeds, its patience is over, or the run's budget is
//! used up; each success pays a little back. What was made less than two minutes ago may "not exist" yet: that is waited for. What is forbidden or wrong
//! fails at once.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::error::{AwsError, Kind};

/// How long AWS may say that something new does not exist.
pub const GRACE: Duration = Duration::from_secs(120);
/// The grace itself, and what a clock and a slow answer add.
const GRACE_MARGIN: Duration = Duration::from_secs(15);
/// The first pause is up to this long.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Retries a run may make beyond those that successes pay for, in tenths.
const BUDGET_TENTHS: i64 = 5_000;
/// What a success pays back, in tenths of a retry.
const SUCCESS_TENTHS: i64 = 3;

/// How long to keep trying.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For throttles and failures.
    pub total: Duration,
    /// The object was made just now: that it is not found means nothing yet.
    pub fresh: bool,
}

impl Patience {
    /// For objects that have been there for a while.
    pub const USUAL: Patience = Patience { total: Duration::from_secs(300), fresh: false };
    /// For what this run made.
    pub const FRESH: Patience = Patience { fresh: true, ..Patience::USUAL };
}

/// Shared by all calls of a run.
#[derive(Debug, Default)]
pub struct Retry {
    spent_tenths: AtomicI64,
    retries: AtomicU64,
    calls: AtomicU64,
    cancelled: Arc<AtomicBool>,
    cleaning_up: AtomicUsize,
}

/// Something is being taken away.
pub struct CleanUp<'a>(&'a Retry);

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        self.0.cleaning_up.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Retry {
    /// `cancelled` ends waiting.
    pub fn new(cancelled: Arc<AtomicBool>) -> Self {
        Self { cancelled, ..Self::default() }
    }

    /// Calls made, and those among them that were repetitions.
    pub fn counts(&self) -> (u64, u64) {
        (self.calls.load(Ordering::Relaxed), self.retries.load(Ordering::Relaxed))
    }

    /// While the guard lives, calls are made although the user asked to stop: they take away what is there.
    pub fn clean_up(&self) -> CleanUp<'_> {
        self.cleaning_up.fetch_add(1, Ordering::Relaxed);
        CleanUp(self)
    }

    /// `Cancelled` once the user asked to stop.
    pub fn check(&self, call: &'static str) -> Result<(), AwsError> {
        match self.cancelled.load(Ordering::Relaxed) && self.cleaning_up.load(Ordering::Relaxed) == 0 {
            true => Err(AwsError::new(call, "", Kind::Cancelled, "interrupted")),
            false => Ok(()),
        }
    }

    /// Makes the call until it succeeds or there is no point any more.
    pub async fn call<T, E, F>(
        &self,
        call: &'static str,
        object: &str,
        patience: Patience,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, AwsError>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let started = Instant::now();
        let mut pause = PAUSE_FIRST;
        loop {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let error = match attempt().await {
                Ok(answer) => {
                    let spent = self.spent_tenths.load(Ordering::Relaxed);
                    self.spent_tenths.fetch_sub(SUCCESS_TENTHS.min(spent), Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => AwsError::from_sdk(call, object, &error),
            };
            let time = match error.kind {
                Kind::Throttled | Kind::Transient => patience.total,
                Kind::NotFound if patience.fresh => GRACE + GRACE_MARGIN,
                _ => return Err(error),
            };
            if started.elapsed() >= time {
                return Err(error);
            }
            let spent = self.spent_tenths.fetch_add(10, Ordering::Relaxed);
            if error.kind != Kind::NotFound && spent > BUDGET_TENTHS {
                tracing::warn!("the run's budget of retries is used up");
                return Err(error);
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(call, object, code = error.code, "again in up to {pause:?}");
            self.pause(call, random_part(pause)).await?;
            pause = (pause * 2).min(if error.kind == Kind::NotFound { PAUSE_MAX / 3 } else { PAUSE_MAX });
        }
    }

    /// Waits, but not longer than until the user asks to stop.
    pub async fn pause(&self, call: &'static str, time: Duration) -> Result<(), AwsError> {
        let end = Instant::now() + time;
        loop {
            self.check(call)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(Duration::from_millis(200))).await;
        }
    }
}

/// Between a quarter and all of `time`: many programs that were refused together do not come again together.
fn random_part(time: Duration) -> Duration {
    let mut bytes = [0; 2];
    // Without a random number everybody waits as long.
    let share = match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 1.0,
    };
    time.mul_f64(0.25 + 0.75 * share)
}

/// Asks again, in growing steps, until something is so.
pub struct Poll {
    started: Instant,
    pause: Duration,
    total: Duration,
}

impl Poll {
    /// For so long at most.
    pub fn up_to(total: Duration) -> Self {
        Self { started: Instant::now(), pause: Duration::from_millis(100), total }
    }

    /// Waits before the next question; an error once time is up.
    pub async fn again(
        &mut self,
        retry: &Retry,
        call: &'static str,
        object: &str,
        still: &str,
    ) -> Result<(), AwsError> {
        if self.started.elapsed() > self.total {
            let message = format!("it is still {still} after {} s", self.total.as_secs());
            return Err(AwsError::new(call, object, Kind::State, message));
        }
        let pause = self.pause;
        self.pause = (self.pause * 3 / 2).min(Duration::from_secs(10));
        retry.pause(call, pause).await
    }
}
