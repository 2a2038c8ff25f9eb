//! Ctrl-C, SIGTERM and SIGHUP: the first asks the running operation to end cleanly, the second ends the program at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use penstock_engine::{Error, Run};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::exit::{Exit, Failure};
use super::output;

/// Shared with the signal handler's thread.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Inner>);

#[derive(Default)]
struct Inner {
    hit: Arc<AtomicBool>,
    /// Holders that end cleanly by themselves once they see `hit`.
    holds: AtomicUsize,
    runs: Mutex<Vec<Weak<Run>>>,
    debris: Mutex<Option<String>>,
}

/// While it lives, the first signal is left to whoever holds it.
pub struct Hold(Arc<Inner>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Interrupt {
    /// Starts to listen; once a process.
    pub fn install() -> Result<Self, Failure> {
        let interrupt = Self::default();
        let inner = Arc::clone(&interrupt.0);
        let failed = |e| Failure::Failed(format!("cannot listen for signals: {e}"));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        // `nohup penstock backup …` goes on when its terminal is closed.
        if !is_ignored(SIGHUP) {
            signals.add_signal(SIGHUP).map_err(failed)?;
        }
        let listen = move || signals.forever().for_each(|_| inner.signalled());
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(interrupt)
    }

    /// A run which a signal cancels.
    pub fn new_run(&self) -> Arc<Run> {
        let run = Arc::new(Run::new());
        let mut runs = lock(&self.0.runs);
        runs.retain(|run| run.strong_count() > 0);
        runs.push(Arc::downgrade(&run));
        drop(runs);
        if self.is_hit() {
            run.cancel();
        }
        run
    }

    /// Leaves the first signal to the caller, who calls [`check`](Self::check) between its steps.
    pub fn hold(&self) -> Hold {
        self.0.holds.fetch_add(1, Ordering::SeqCst);
        Hold(Arc::clone(&self.0))
    }

    /// `Cancelled` once a signal has come.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_hit() { Err(Error::Cancelled.into()) } else { Ok(()) }
    }

    /// What would be left behind by ending at once; shown if that happens.
    pub fn leaves(&self, debris: Option<String>) {
        *lock(&self.0.debris) = debris;
    }

    /// True once a signal has come; for what waits elsewhere.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.hit)
    }

    fn is_hit(&self) -> bool {
        self.0.hit.load(Ordering::SeqCst)
    }
}

impl Inner {
    fn signalled(&self) {
        let again = self.hit.swap(true, Ordering::SeqCst);
        let runs: Vec<Arc<Run>> = lock(&self.runs).iter().filter_map(Weak::upgrade).collect();
        runs.iter().for_each(|run| run.cancel());
        if again || (runs.is_empty() && self.holds.load(Ordering::SeqCst) == 0) {
            let left =
                lock(&self.debris).as_ref().map(|what| format!("; left behind: {what}")).unwrap_or_default();
            output::note(&format!("penstock: interrupted{left}"));
            std::process::exit(Exit::Interrupted as i32);
        }
        tracing::warn!("stopping; once more to stop at once");
    }
}

/// True if whoever started this program had `signal` ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_cancels_the_runs_that_are_there_and_every_later_one() {
        let interrupt = Interrupt::default();
        let (run, other) = (interrupt.new_run(), interrupt.new_run());
        assert!(interrupt.check().is_ok() && !run.is_cancelled());
        interrupt.0.signalled();
        assert!(run.is_cancelled() && other.is_cancelled());
        assert!(interrupt.check().is_err_and(|e| e.is_cancelled()));
        assert!(interrupt.new_run().is_cancelled());
    }

    #[test]
    fn ignored_signals_are_known() {
        // Rust's runtime ignores SIGPIPE, and nobody ignores SIGKILL.
        assert!(is_ignored(signal_hook::consts::SIGPIPE));
        assert!(!is_ignored(signal_hook::consts::SIGKILL));
    }

    #[test]
    fn a_hold_ends_with_its_guard() {
        let interrupt = Interrupt::default();
        let hold = interrupt.hold();
        interrupt.0.signalled();
        assert!(interrupt.check().is_err());
        drop(hold);
        assert_eq!(interrupt.0.holds.load(Ordering::SeqCst), 0);
    }
}
